"""Field, linear bases, hybrids and lazy arrays."""

import nibabel as nib
import numpy as np
import pytest
import torch

from medfields.errors import InputError
from medfields.fields import MLP, BSpline, Field, Fourier, Hybrid, Siren
from medfields.space import Box, Grid, Volume

GRID = Grid(((6, 5, 7)), np.array([[0, 1.5, 0, -3], [1.0, 0, 0, -2], [0, 0, -2, 6], [0, 0, 0, 1]]))


def _filled(degree, grid=GRID, channels=2):
    field = Field(BSpline.on(grid, degree), grid.box(), channels, scale=torch.arange(1.0, channels + 1), offset=5.0)
    with torch.no_grad():
        field.net.coefficients.normal_(generator=torch.Generator().manual_seed(0))
    return field


def test_degree_one_is_the_volume():
    field = _filled(1)
    volume = Volume(5 + field.scale[:, None, None, None] * field.net.coefficients.detach(), GRID)
    x = GRID.box().random(200, torch.Generator().manual_seed(1))
    index = GRID.index(x.numpy())
    inner = torch.tensor(((index >= 0) & (index <= np.array(GRID.shape) - 1)).all(1))
    assert torch.allclose(field(x)[inner], volume(x)[inner], atol=1e-4)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_basis_is_a_partition_of_unity_with_an_adjoint(degree):
    field = _filled(degree)
    u = field.unit_coordinates(GRID.box().random(50))
    ones = torch.ones(1, *GRID.shape)
    assert torch.allclose(field.net.apply_at(u, ones), torch.ones(50, 1), atol=1e-5)
    c, y = torch.randn(2, *GRID.shape), torch.randn(50, 2)
    assert torch.allclose((field.net.apply_at(u, c) * y).sum(), (c * field.net.adjoint_at(u, y)).sum(), atol=1e-3)


def _autograd(field, x):
    x = x.clone().requires_grad_()
    v = field(x)
    j = torch.stack([torch.autograd.grad(v[..., c].sum(), x, create_graph=True)[0] for c in range(v.shape[-1])], -2)
    h = torch.stack([torch.stack([torch.autograd.grad(j[..., c, d].sum(), x, create_graph=True, allow_unused=True)[0]
                                  for d in range(x.shape[-1])], -2) for c in range(v.shape[-1])], -3)
    return v, j, h


@pytest.mark.parametrize("spec", [BSpline.on(GRID, 3), Hybrid(BSpline.on(GRID, 3), Siren(width=16, depth=2)),
                                  MLP(Fourier(size=8), width=16, depth=2, activation="silu")])
def test_derivatives_per_mm_equal_autograd(spec):
    field = Field(spec, GRID.box(), 2, scale=torch.tensor([2.0, 3.0]), seed=0).double()
    if isinstance(spec, BSpline | Hybrid):
        basis = field.net if isinstance(spec, BSpline) else field.net.base
        torch.nn.init.normal_(basis.coefficients)
    x = GRID.box().random(20, torch.Generator().manual_seed(2)).double()
    for got, want in zip(field.value_jacobian_hessian(x), _autograd(field, x), strict=True):
        assert torch.allclose(got, want, atol=1e-8, rtol=1e-6)
    assert torch.allclose(field.value_and_jacobian(x)[1], field.value_jacobian_hessian(x)[1])


def test_jacobian_is_per_mm():
    """A ramp of 3 per mm has slope 3 whatever box and voxels it lives in."""
    grid = Grid.from_spacing((8, 8, 8), 2.0, origin=(10, 20, 30))
    field = Field(BSpline.on(grid), grid.box(50.0))
    with torch.no_grad():
        field.net.coefficients.copy_(3 * grid.points()[..., 1][None])
    x = torch.tensor([[15.0, 25.0, 35.0], [12.3, 28.1, 33.0]])
    v, j = field.value_and_jacobian(x)
    assert torch.allclose(v[:, 0], 3 * x[:, 1], atol=1e-3) and torch.allclose(j[:, 0], torch.tensor([0.0, 3, 0]), atol=1e-3)


def test_seed_fixes_the_weights_and_nothing_else():
    state = torch.random.get_rng_state()
    a, b, c = (Field(Siren(width=8, depth=1), GRID.box(), seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)
    assert torch.equal(state, torch.random.get_rng_state())


def test_names_must_fit():
    with pytest.raises(InputError, match="2 names"):
        Field(Siren(width=8, depth=1), GRID.box(), names=("a", "b"))


def test_a_lattice_lies_in_three_dimensions():
    with pytest.raises(InputError, match="three dimensions"):
        Field(BSpline.on(GRID), Box((0, 0), (1, 1)))


def test_lazy_slices_equal_the_whole_and_touch_only_what_they_need():
    field = _filled(2)
    lazy, seen = field.on(GRID, chunk=40), []
    whole = np.asarray(lazy)
    assert whole.shape == lazy.shape == (2, *GRID.shape) and np.allclose(whole, lazy.volume().data.numpy())
    hook = field.register_forward_hook(lambda m, a, out: seen.append(out.shape[:-1].numel()))
    for key in [(0,), (..., 3), (slice(None), 2), (1, slice(1, 4)), (0, 3, 2, 1), (slice(None), slice(None, None, 2), [0, 2])]:
        assert np.allclose(lazy[key], whole[key])
    hook.remove()
    seen.clear()
    lazy[:, 2:3]
    assert sum(seen) == 0 or sum(seen) == 35


def test_lazy_volume_can_be_written_by_nibabel():
    lazy = _filled(1, channels=1).on(GRID)
    image = nib.Nifti1Image(np.asarray(lazy)[0], GRID.affine)
    assert image.shape == GRID.shape


def test_value_is_found_again_at_its_world_point():
    """Geometry: a bright coefficient answers at its own millimetres and nowhere else."""
    field = Field(BSpline.on(GRID), GRID.box())
    with torch.no_grad():
        field.net.coefficients[0, 4, 1, 5] = 1.0
    data = np.asarray(field.on(GRID))[0]
    assert np.unravel_index(data.argmax(), data.shape) == (4, 1, 5) and abs(data.sum() - 1) < 1e-4
    assert abs(float(field(torch.tensor(GRID.world(np.array([4.0, 1, 5])), dtype=torch.float32)[None])) - 1) < 1e-4
