"""Warps: affine maps, compositions, flows and inverses against closed forms, and what a pair of images does with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from io_samples import FLIP, oblique, rotation
from medfields.cases import Pair
from medfields.errors import InputError
from medfields.fields import (
    MLP,
    Affine,
    Agreed,
    BSpline,
    Composed,
    Field,
    Flow,
    Hybrid,
    InPlane,
    Siren,
    Spec,
    Tube,
    composed,
    displacement,
    from_lattice,
    inverse_at,
    jacobian,
    on_lattice,
)
from medfields.io import read_field, write_field
from medfields.space import Box, Grid, Volume

BOX = Box((-40, -30, -20), (20, 30, 50))
LATTICE = Grid.from_spacing((7, 7, 8), 10.0, (-40, -30, -20))
SMOOTH = Siren(width=8, depth=2, omega_first=2.0, omega=2.0)
TUBE = Tube((-10.0, 0.0, -15.0, -12.0, 3.0, 5.0, -8.0, 5.0, 25.0, -10.0, 0.0, 45.0), 12.0, SMOOTH, "polynomial")


def matrix(shift: tuple[float, float, float] = (4, -3, 7)) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3] = rotation((0.2, -0.1, 0.3)) @ np.array([[1.1, 0.1, 0], [0, 0.9, 0], [-0.05, 0, 1.05]])
    made[:3, 3] = shift
    return made


def carried(m: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    return x @ torch.tensor(m[:3, :3], dtype=x.dtype).T + torch.tensor(m[:3, 3], dtype=x.dtype)


def points(n: int = 60, seed: int = 0) -> torch.Tensor:
    return BOX.random(n, torch.Generator().manual_seed(seed))


def bumpy(size: float = 1.5, degree: int = 3, seed: int = 0, lattice: Grid = LATTICE) -> Field:
    """A B-spline warp whose coefficients are `size` mm on average."""
    made = displacement(BSpline.on(lattice, degree), BOX)
    with torch.no_grad():
        made.net.coefficients.copy_(torch.randn(3, *lattice.shape, generator=torch.Generator().manual_seed(seed)) * size / made.radius[0])
    return made


def near(a: torch.Tensor, b: torch.Tensor, mm: float) -> None:
    torch.testing.assert_close(a, b.to(a), rtol=0, atol=mm)


def module(spec: Spec) -> torch.nn.Module:
    torch.manual_seed(2)
    return spec.build(BOX, 3).double()


def differences(net: torch.nn.Module, u: torch.Tensor, h: float = 1e-4) -> tuple[torch.Tensor, torch.Tensor]:
    """Jacobian and Hessian by central differences."""
    step = h * torch.eye(3, dtype=u.dtype)
    with torch.no_grad():
        first = torch.stack([(net(u + e) - net(u - e)) / (2 * h) for e in step], -1)
        second = torch.stack([torch.stack([(net(u + a + b) - net(u + a - b) - net(u - a + b) + net(u - a - b)) / (4 * h * h)
                                           for b in step], -1) for a in step], -2)
    return first, second


# --- affine maps ---

def test_affine_is_its_matrix() -> None:
    m, x = matrix(), points()
    warp = displacement(Affine.of(m), BOX)
    assert (warp.unit, warp.names) == ("mm", ("dx", "dy", "dz"))
    near(x + warp(x), carried(m, x), 1e-4)
    _, slope, bend = warp.value_jacobian_hessian(x)
    near(slope, torch.tensor(m[:3, :3] - np.eye(3)).expand(60, 3, 3), 1e-6)
    near(jacobian(warp, x), torch.tensor(m[:3, :3]).expand(60, 3, 3), 1e-6)
    assert bend.shape == (60, 3, 3, 3) and not bend.any()
    near(displacement(Affine(), BOX)(x), torch.zeros(60, 3), 0)


@pytest.mark.parametrize("numbers", [(1, 0, 0, 0) * 3, (float("nan"),) + (0,) * 11, (1, 0, 0, 0, 0, 1, 0, 0)], ids=["flat", "nan", "short"])
def test_affine_refuses(numbers: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="affine map"):
        Affine(numbers)


# --- compositions ---

def test_composed_goes_first_then_second() -> None:
    m, first, x = matrix(), bumpy(), points()
    both = composed(first, displacement(Affine.of(m), BOX))
    near(x + both(x), carried(m, x + first(x)), 1e-4)
    other = composed(displacement(Affine.of(m), BOX), first)
    near(x + other(x), carried(m, x) + first(carried(m, x)), 1e-4)
    assert float((both(x) - other(x)).detach().abs().max()) > 0.5
    twice = composed(composed(first, bumpy(seed=1)), bumpy(seed=2))
    y = x + first(x)
    z = y + bumpy(seed=1)(y)
    near(x + twice(x), z + bumpy(seed=2)(z), 1e-4)
    near(jacobian(composed(displacement(Affine.of(m), BOX), displacement(Affine.of(np.linalg.inv(m)), BOX)), x), torch.eye(3).expand(60, 3, 3), 1e-5)


def test_composed_has_weights_of_its_own() -> None:
    first, x = bumpy(), points()
    both = composed(first, bumpy(seed=1))
    before = both(x).detach()
    with torch.no_grad():
        first.net.coefficients.zero_()
    assert torch.equal(both(x), before)


@pytest.mark.parametrize("spec", [Composed(SMOOTH, SMOOTH), Composed(BSpline.on(LATTICE, 3), SMOOTH), Composed(Affine.of(matrix()), SMOOTH),
                                  Composed(SMOOTH, Affine.of(matrix())), InPlane(Composed(SMOOTH, SMOOTH), 1)], ids=lambda s: str(s)[:24])
def test_chain_rule(spec: Spec) -> None:
    net, u = module(spec), points(7).double() / 60
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape))
    first, second = differences(net, u)
    value, slope, bend = net.jet(u, 2)
    torch.testing.assert_close(value, net(u))
    torch.testing.assert_close(slope, first, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bend, second, rtol=1e-3, atol=1e-4 * float(1 + second.abs().max()))
    assert float(second.abs().max()) > 1e-3
    torch.testing.assert_close(net.jet(u, 1), (value, slope))


def test_boxes() -> None:
    flat = Box((0, 0), (1, 1))
    for spec in (Affine(), Composed(Affine(), Affine()), Flow(Affine()), InPlane(Affine())):
        for box, channels in ((flat, 3), (BOX, 2), (BOX.extended(0, 1), 3)):
            with pytest.raises(InputError, match="three coordinates to three"):
                spec.build(box, channels)
    elsewhere = displacement(SMOOTH, Box((0, 0, 0), (9, 9, 9)), seed=0)
    with pytest.raises(InputError, match="different boxes"):
        composed(elsewhere, bumpy())
    m, x = matrix(), points(5)
    near(x + composed(displacement(Affine(), BOX), displacement(Affine.of(m), elsewhere.box))(x), carried(m, x), 1e-4)  # an affine map has no box
    with pytest.raises(InputError, match="steps"):
        Flow(Affine(), 0)
    with pytest.raises(InputError, match="axis"):
        InPlane(Affine(), 3)


# --- flows ---

def test_flow_of_a_linear_velocity_is_the_matrix_exponential() -> None:
    m, x = matrix(), points()
    generator = m - np.eye(4)
    warp = displacement(Flow(Affine.of(m), 8), BOX)
    whole = scipy.linalg.expm(generator)
    near(x + warp(x), carried(whole, x), 1e-3)
    near(jacobian(warp, x), torch.tensor(whole[:3, :3]).expand(60, 3, 3), 1e-4)
    back = displacement(Flow(Affine.of(m), 8, backwards=True), BOX)
    near(x + back(x), carried(scipy.linalg.expm(-generator), x), 1e-3)


@pytest.mark.parametrize("timed", [False, True])
def test_flow_backwards_is_the_inverse(timed: bool) -> None:
    there, back = (displacement(Flow(SMOOTH, 12, timed, backwards), BOX, seed=4) for backwards in (False, True))
    x = points()
    y = x + there(x)
    assert float((y - x).detach().norm(dim=-1).max()) > 3
    near(y + back(y), x, 1e-3)
    near(jacobian(back, y) @ jacobian(there, x), torch.eye(3).expand(60, 3, 3), 1e-3)


@pytest.mark.parametrize("backwards", [False, True])
def test_timed_flow_is_the_integral_over_time(backwards: bool) -> None:
    """v = a sin(w (2 t - 1) + c) everywhere."""
    warp = displacement(Flow(Siren(width=1, depth=1, omega_first=1.0), 10, timed=True, backwards=backwards), BOX)
    w, c, a = 2.0, 0.7, torch.tensor([0.1, -0.2, 0.05])
    first, last = warp.net.velocity.body.linears()[0], warp.net.velocity.branches[0].last
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[0, 0, 0, w]]))
        first.bias.fill_(c)
        last.weight.copy_(a[:, None])
        last.bias.zero_()
    wanted = a * (np.cos(c - w) - np.cos(c + w)) / (2 * w) * float(warp.radius[0]) * (-1 if backwards else 1)
    near(warp(points()), wanted.expand(60, 3), 1e-4)
    near(jacobian(warp, points()), torch.eye(3).expand(60, 3, 3), 1e-6)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_flow_slope(timed: bool, backwards: bool) -> None:
    net, u = module(Flow(SMOOTH, 3, timed, backwards)), points(7).double() / 60
    value, slope = net.jet(u, 1)
    torch.testing.assert_close(value, net(u))
    torch.testing.assert_close(slope, differences(net, u)[0], rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="order 2"):
        net.jet(u, 2)
    with pytest.raises(InputError, match="order 2"):
        module(Composed(Flow(SMOOTH, 2), SMOOTH)).jet(u, 2)


# --- inverses ---

def test_inverse_of_an_invertible_warp() -> None:
    warp, y = bumpy(2.5), points(200)
    x, error = inverse_at(warp, y)
    near(x + warp(x), y, 1.1e-3)
    assert float(error.max()) <= 1e-3 and float((x - y).norm(dim=-1).max()) > 2
    near(error, (x + warp(x) - y).detach().norm(dim=-1), 1e-5)
    m = matrix()
    near(inverse_at(displacement(Affine.of(m), BOX), y)[0], carried(np.linalg.inv(m), y), 2e-3)
    assert inverse_at(warp, y.reshape(2, 10, 10, 3))[1].shape == (2, 10, 10)


def test_inverse_says_where_there_is_none() -> None:
    """Everything is pressed onto the plane x = 0: only points there have an inverse."""
    flat = displacement(Affine((1e-8, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)), BOX)
    y = torch.tensor([[0.0, 5, 6], [7.0, 1, 2], [-3.0, 0, 0]])
    near(inverse_at(flat, y)[1], torch.tensor([0.0, 7.0, 3.0]), 1e-4)


def test_inverse_of_a_folded_warp_is_honest() -> None:
    warp, y = bumpy(14.0), points(400)
    assert float((torch.linalg.det(jacobian(warp, y)) < 0).float().mean()) > 0.05
    x, error = inverse_at(warp, y)
    assert torch.isfinite(x).all()
    near(error, (x + warp(x) - y).detach().norm(dim=-1), 1e-4)


# --- lattices ---

def turned(spacing: tuple[float, float, float], shape: tuple[int, int, int] = (6, 7, 5), shift: tuple[float, float, float] = (-30, -20, 0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation((0.3, -0.2, 0.5)) * spacing
    affine[:3, 3] = shift
    return Grid(shape, affine)


LATTICES = {
    "same": (LATTICE, LATTICE), "finer": (LATTICE, Grid.from_spacing((15, 9, 11), (3.1, 7.0, 5.2), (-38.5, -33, -14))),
    "larger": (LATTICE, Grid.from_spacing((9, 9, 9), 12.0, (-60, -50, -40))),
    "flipped": (LATTICE, Grid((5, 6, 7), FLIP @ Grid.from_spacing((5, 6, 7), (8, 9, 7), (-18, -28, -18)).affine)),
    "oblique": (turned((9, 11, 14)), turned((4.0, 5.5, 3.0), (9, 8, 10), (-29, -21, 2))),
    "oblique, flipped": (turned((9, 11, 14)), turned((4.0, -5.5, 3.0), (9, 8, 10), (-10, 10, 2))), "turned": (LATTICE, turned((7, 8, 9))),
    "permuted": (LATTICE, Grid((4, 5, 6), Grid.from_spacing((4, 5, 6), (7, 8, 9), (-30, -20, 0)).affine[:, [2, 0, 1, 3]])),
    "one slice": (LATTICE, Grid.from_spacing((9, 8, 1), (4, 4, 5), (-30, -20, 3))),
    "slices of coefficients": (Grid.from_spacing((6, 5, 1), 10.0, (-35, -25, 0)), Grid.from_spacing((9, 8, 4), 4, (-30, -20, -4))),
}


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("name", LATTICES)
def test_on_lattice_is_at_its_points(name: str, degree: int) -> None:
    lattice, grid = LATTICES[name]
    warp = bumpy(3.0, degree, lattice=lattice)
    assert (warp.net.bases(grid) is None) == (name in ("turned", "permuted"))
    u = on_lattice(warp, grid)
    assert u.unit == "mm" and u.grid.same_as(grid)
    near(u.data, warp(grid.points()).detach().movedim(-1, 0), 2e-4)
    assert float(u.data.abs().max()) > 1


@pytest.mark.parametrize(("order", "degree"), [(1, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("name", ["finer", "oblique, flipped"])
def test_bases_of_derivatives(name: str, order: int, degree: int) -> None:
    """Per step of the lattice, along each of its axes."""
    lattice, grid = LATTICES[name]
    net = bumpy(3.0, degree, lattice=lattice).net
    plain, curved = net.bases(grid), net.bases(grid, order)
    u = (grid.points() - torch.tensor(BOX.centre)).float() / float(BOX.radius[0])
    jet = net.jet(u, order)[order].detach()
    steps = torch.linalg.inv(net.to_index)
    turned = torch.einsum("...ab,ai,bj->...ij", jet, steps, steps) if order == 2 else jet @ steps
    for d in range(3):
        found = net.on([curved[k] if k == d else plain[k] for k in range(3)], net.coefficients).detach()
        near(found, (turned[..., d, d] if order == 2 else turned[..., d]).movedim(-1, 0), 2e-4)


def test_on_lattice_of_what_is_no_basis() -> None:
    warp, grid = displacement(Flow(SMOOTH, 3), BOX, seed=1), oblique()
    near(on_lattice(warp, grid).data, warp(grid.points()).detach().movedim(-1, 0), 1e-4)


@pytest.mark.parametrize("grid", [LATTICE, oblique(), Grid((5, 4, 3), FLIP @ oblique().affine), oblique((5, 4, 1))],
                         ids=["upright", "oblique", "flipped", "2d"])
def test_from_lattice(grid: Grid) -> None:
    u = Volume(torch.randn(3, *grid.shape, generator=torch.Generator().manual_seed(0)) * 4, grid, "mm")
    warp = from_lattice(u)
    assert warp.grid is grid and warp.unit == "mm"
    near(on_lattice(warp, grid).data, u.data, 1e-5)
    near(warp(grid.points()).detach().movedim(-1, 0), u.data, 2e-3)  # float32 indices
    inside = grid.world(np.random.default_rng(0).uniform(0, 1, (50, 3)) * (np.array(grid.shape) - 1))
    x = torch.tensor(inside, dtype=torch.float32)
    near(warp(x), u(x), 1e-3)
    beyond = grid.world(np.array([[-9.0, 0, 0], [grid.shape[0] + 9, grid.shape[1] + 5, 0]]))
    near(warp(torch.tensor(beyond, dtype=torch.float32)), torch.stack([u.data[:, 0, 0, 0], u.data[:, -1, -1, 0]]), 1e-3)
    with pytest.raises(InputError, match="three channels"):
        from_lattice(Volume(torch.zeros(2, *grid.shape), grid))


# --- starts, planes, files ---

STARTS = [SMOOTH, BSpline.on(LATTICE), Flow(SMOOTH), Flow(SMOOTH, timed=True), InPlane(SMOOTH, 1), InPlane(BSpline.on(LATTICE)), TUBE,
          Hybrid(SMOOTH, SMOOTH), Hybrid(SMOOTH, BSpline.on(LATTICE)), Flow(Hybrid(BSpline.on(LATTICE), SMOOTH)), Agreed(SMOOTH, SMOOTH),
          Composed(SMOOTH, BSpline.on(LATTICE)), MLP(width=8, depth=3, split=2)]
WRITTEN = [Affine.of(matrix()), Composed(BSpline.on(LATTICE, 3), Affine.of(matrix())), Composed(Composed(SMOOTH, SMOOTH), Affine()),
           Flow(SMOOTH, 5, True, True), Flow(BSpline.on(LATTICE, 2), 3), InPlane(Flow(SMOOTH, 2), 0), TUBE, Agreed(SMOOTH, SMOOTH)]


@pytest.mark.parametrize("spec", STARTS, ids=lambda s: str(s)[:40])
def test_zero(spec: Spec) -> None:
    warp, x = displacement(spec, BOX, seed=3, zero=True), points()
    near(warp(x), torch.zeros(60, 3), 1e-4 if isinstance(spec, Tube) else 0)
    # and it can leave zero
    warp(x).square().sum().backward()
    (warp(x) - 1).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in warp.parameters())


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_slices_stay_in_their_plane(axes: tuple[int, int, int]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * (2, -3, 5)
    grid = Grid((12, 10, 1), affine)
    image = Volume(torch.rand(12, 10, 1), grid)
    warp = Pair(image, image).displacement(SMOOTH, seed=0)
    x, axis = grid.points(), axes[2]
    value, slope = (t.detach() for t in warp.value_and_jacobian(x))
    assert not value[..., axis].any() and not slope[..., axis, :].any()
    assert all(value[..., d].any() for d in range(3) if d != axis)
    for net in (BSpline.on(grid), Flow(SMOOTH, 2)):
        assert not Pair(image, image).displacement(net, seed=0)(x)[..., axis].any()
    affine[:3, :3] = rotation((0.2, 0.3, 0.1)) @ affine[:3, :3]
    with pytest.raises(InputError, match="oblique"):
        displacement(SMOOTH, BOX, flat=Grid((12, 10, 1), affine).normal(2))


@pytest.mark.parametrize("spec", WRITTEN, ids=lambda s: str(s)[:40])
def test_round_trip(tmp_path: Path, spec: Spec) -> None:
    warp, x = displacement(spec, BOX, seed=3), points()
    with torch.no_grad():
        for p in warp.parameters():
            p.add_(0.05 * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape))
    write_field(warp, tmp_path / "warp.field")
    found = read_field(tmp_path / "warp.field")
    assert found.spec == spec and found.unit == "mm" and found.names == ("dx", "dy", "dz") and found.box == BOX
    assert torch.equal(found(x), warp(x)) and warp(x).any()


def test_whole_moves_first_and_starts_second() -> None:
    """A landmark goes through the found displacement, and then to the moving world."""
    case, start = Pair.toy(), matrix((150, -80, 60))
    there = Grid(case.moving.grid.shape, start @ case.moving.grid.affine)
    moved = case.replaced(moving=Volume(case.moving.data, there), start=start)
    assert moved.aligned.grid.same_as(case.moving.grid)
    m = matrix((3, 2, -1))
    u = moved.displacement(Affine.of(m))
    marks = torch.tensor([[0.0, 0, 0], [10, -4, 3], [-7, 8, -12]])
    whole = moved.whole(u)
    near(marks + whole(marks), carried(start @ m, marks), 1e-3)
    assert float((carried(start @ m, marks) - carried(m @ start, marks)).norm(dim=-1).min()) > 5
    assert whole.grid is moved.grid and case.whole(u) is u
    # what it says of the images
    zero = moved.displacement(BSpline.on(case.grid), zero=True)
    x = case.points()
    near(moved.moving(x + moved.whole(zero)(x)), case.moving(x), 1e-3)


def test_fields_of_another_scale_are_not_composed() -> None:
    warp = displacement(SMOOTH, BOX)
    with pytest.raises(InputError, match="scale of its box's radius"):
        composed(warp, Field(SMOOTH, BOX, 3, scale=1.0, unit="mm"))
