"""The two ways to a thick slice: sampling under the profile, and the exact matrix; both against closed forms and each other."""

import itertools

import numpy as np
import pytest
import torch

from medfields.errors import GeometryError
from medfields.fields import BSpline, Field
from medfields.operators import SliceAverage, SliceOperator, slice_quadrature
from medfields.space import Grid
from medfields.space.rigid import rotation

LATTICE = Grid.from_spacing((26, 24, 28), 1.0, origin=(-12, -11, -13))


def _stack(axis=2, distance=3.0, turn=(0.0, 0.0, 0.0), shape=(12, 10, 4)):
    step = np.diag(np.array([1.2, 0.9, distance])[np.argsort([*[a for a in range(3) if a != axis], axis])])
    affine = np.eye(4)
    affine[:3, :3] = rotation(torch.tensor(turn, dtype=torch.float64)).numpy() @ step
    n = [shape[0], shape[1]]
    n.insert(axis, shape[2])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(n) - 1) / 2)
    return Grid(tuple(n), affine)


def test_quadrature_has_unit_mass_and_the_stated_width():
    for profile in ("gauss", "box", "none"):
        z, w = slice_quadrature(profile, 4.0)
        assert abs(w.sum() - 1) < 1e-12 and abs((z * w).sum()) < 1e-12
    z, w = slice_quadrature("gauss", 4.0, 16)
    assert abs(np.sqrt((w * z**2).sum()) - 4.0 / 2.3548) < 0.03
    z, w = slice_quadrature("box", 4.0, 16)
    assert abs((w * z**2).sum() - 16 / 12) < 0.01 and abs(z).max() < 2


def test_slice_average_of_a_gaussian_blob_is_known():
    """A Gaussian seen through a Gaussian is a Gaussian: variances add, the peak falls by their ratio."""
    s, t = 3.0, 5.0 / 2.3548
    operator = SliceAverage("gauss", [5.0], np.array([[0.0, 0.0, 1.0]]), 16).eval()
    x = torch.tensor([[0.0, 0, 0], [1, 0, 2], [0, 0, -4]])
    at = {"x": x, "stack": torch.zeros(3, dtype=torch.long), "channel": torch.zeros(3, dtype=torch.long)}
    got = operator(lambda p: torch.exp(-(p**2).sum(-1, keepdim=True) / (2 * s**2)), at)[:, 0]
    v = s**2 + t**2
    want = s / v**0.5 * torch.exp(-(x[:, 0] ** 2 + x[:, 1] ** 2) / (2 * s**2) - x[:, 2] ** 2 / (2 * v))
    assert torch.allclose(got, want, atol=2e-3)


def test_jittered_nodes_are_right_on_average():
    operator = SliceAverage("gauss", [5.0], np.array([[0.0, 0.0, 1.0]]), 4)
    torch.manual_seed(0)
    n = 20000
    at = {"x": torch.zeros(n, 3), "stack": torch.zeros(n, dtype=torch.long), "channel": torch.zeros(n, dtype=torch.long)}
    wave = lambda p: torch.cos(2.6 * p[..., 2:])  # noqa: E731
    truth = np.exp(-0.5 * (2.6 * 5.0 / 2.3548) ** 2)
    few_fixed = float(operator.eval()(wave, at)[0, 0])
    assert abs(float(operator.train()(wave, at).mean()) - truth) < 0.05 < abs(few_fixed - truth)


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("profile", ["gauss", "box", "none"])
@pytest.mark.parametrize("axis", [0, 2])
def test_product_of_three_matrices_equals_the_walk(axis, profile, degree):
    stack = _stack(axis)
    exact = SliceOperator(LATTICE, stack, axis, profile, 3.0, degree)
    walk = SliceOperator(LATTICE, stack, axis, profile, 3.0, degree, exact=False)
    assert exact.factors is not None and walk.factors is None
    c = torch.randn(LATTICE.shape, generator=torch.Generator().manual_seed(0))
    tolerance = 2e-2 if profile == "box" else 5e-3  # a box cut by 16 points, against white noise, is the worst case
    assert (exact.apply(c) - walk.apply(c)).abs().max() < tolerance * c.abs().max()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turned_and_mirrored_stacks(axis):
    """Every way in which a stack's axes can lie along the lattice's: one matrix for each axis, and the walk agrees."""
    c = torch.randn(LATTICE.shape, generator=torch.Generator().manual_seed(0))
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            upright = _stack(axis)
            turn = np.eye(4)
            turn[:3, :3] = np.eye(3)[list(order)] * signs
            stack = Grid(upright.shape, turn @ upright.affine)
            exact = SliceOperator(LATTICE, stack, axis, "gauss", 3.0)
            walk = SliceOperator(LATTICE, stack, axis, "gauss", 3.0, exact=False)
            assert exact.factors is not None
            assert (exact.apply(c) - walk.apply(c)).abs().max() < 7e-3 * c.abs().max()


def test_a_lattice_sheared_like_its_stack_has_no_factors():
    """A tilted gantry: the slices' normal is not along the third axis, though the voxels line up."""
    shear = np.eye(4)
    shear[1, 2] = np.tan(np.radians(30))
    lattice, stack = Grid(LATTICE.shape, shear @ LATTICE.affine), Grid((12, 10, 4), shear @ _stack().affine)
    operator = SliceOperator(lattice, stack, 2, "gauss", 5.0)
    assert operator.factors is None
    wave = torch.cos(lattice.points()[..., 1] * (2 * np.pi / 9))  # varies within the slice planes only: nothing to blur but by the lattice
    seen = operator.apply(wave)[operator.inside]
    expected = torch.cos(stack.crop([s.start for s in operator.block], operator.shape).points()[..., 1] * (2 * np.pi / 9))[operator.inside]
    assert len(seen) > 20 and float((seen - expected).abs().max()) < 0.1


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (0.2, -0.3, 0.1)])
def test_operator_equals_sampling_the_field(turn):
    """`OnGrid` and sampling are the same measurement of the same function."""
    stack = _stack(turn=turn)
    field = Field(BSpline.on(LATTICE, 3), LATTICE.box())
    with torch.no_grad():
        field.net.coefficients.copy_(torch.randn(1, *LATTICE.shape, generator=torch.Generator().manual_seed(1)))
    operator = SliceOperator(LATTICE, stack, 2, "gauss", 3.0, 3)
    grid = stack.crop([s.start for s in operator.block], operator.shape)
    x = grid.points().reshape(-1, 3)
    zero = torch.zeros(len(x), dtype=torch.long)
    sampled = SliceAverage("gauss", [3.0], stack.directions[:, 2][None], 16).eval()(field, {"x": x, "stack": zero, "channel": zero})
    got = operator.apply(field.net.coefficients[0].detach())
    inside = operator.inside.flatten()
    assert inside.sum() > 50
    assert (got.flatten() - sampled.detach()[:, 0])[inside].abs().max() < 2e-3


@pytest.mark.parametrize("degree", [1, 3])
@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (0.2, -0.3, 0.1)])
def test_adjoint(turn, degree):
    operator = SliceOperator(LATTICE, _stack(turn=turn), 2, "gauss", 4.0, degree)
    rng = torch.Generator().manual_seed(0)
    c, y = torch.randn(LATTICE.shape, generator=rng), torch.randn(operator.shape, generator=rng)
    assert abs(float((operator.apply(c) * y).sum() - (c * operator.adjoint(y)).sum())) < 1e-3 * float(y.norm() * operator.apply(c).norm())


def test_walking_kernel_agrees_with_its_twin():
    operator = SliceOperator(LATTICE, _stack(turn=(0.2, -0.3, 0.1)), 2, "gauss", 4.0, 3)
    rng = torch.Generator().manual_seed(0)
    c, y = torch.randn(LATTICE.shape, generator=rng), torch.randn(operator.shape, generator=rng)
    assert torch.allclose(operator.apply(c).double(), operator.apply(c.double()), atol=1e-5)
    assert torch.allclose(operator.adjoint(y).double(), operator.adjoint(y.double()), atol=1e-5)


def test_gradient_of_the_call_is_the_adjoint():
    operator = SliceOperator(LATTICE, _stack(), 2, "gauss", 4.0)
    c = torch.zeros(LATTICE.shape, requires_grad=True)
    y = torch.randn(operator.shape)
    (operator(c) * y).sum().backward()
    assert torch.equal(c.grad, operator.adjoint(y))


def test_constants_stay_and_voxels_outside_are_left_out():
    stack = _stack(shape=(40, 10, 4))
    operator = SliceOperator(LATTICE, stack, 2, "gauss", 4.0)
    y = operator.apply(torch.ones(LATTICE.shape))
    assert 0 < operator.inside.float().mean() <= 1 and operator.shape[0] < 40
    assert torch.allclose(y[operator.inside], torch.ones(()), atol=1e-5) and (y[~operator.inside] == 0).all()


def test_a_stack_elsewhere_is_refused():
    with pytest.raises(GeometryError, match="inside the output grid"):
        SliceOperator(LATTICE, Grid.from_spacing((4, 4, 4), 1.0, origin=(100, 0, 0)), 2, "gauss", 4.0)


def test_the_twin_of_the_adjoint_needs_no_gradient_mode():
    operator = SliceOperator(LATTICE, _stack(turn=(0.2, -0.3, 0.1)), 2, "gauss", 3.0, 1)
    y = torch.rand(operator.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(operator.adjoint(y.double()).float(), operator.adjoint(y), atol=1e-4)


def test_slices_of_a_tilted_gantry_are_blurred_across_their_planes():
    affine = _stack().affine.copy()
    affine[0, 2] = 1.0  # each slice is shifted along the first axis
    operator = SliceOperator(LATTICE, Grid((12, 10, 4), affine), 2, "gauss", 3.0, 1)
    x = LATTICE.points()[..., 0].contiguous()  # does not vary across the planes, so no blur may be seen
    at = torch.tensor(operator._m[0, 0] * np.arange(operator.shape[0]) + operator._t[0] + LATTICE.affine[0, 3])
    assert np.allclose(Grid((12, 10, 4), affine).normal(2), [0, 0, 1])
    assert torch.allclose(operator.apply(x)[:, 0, 0], at.float(), atol=1e-3)
