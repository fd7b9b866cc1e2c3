"""Nested lattices say the same as one spline, penalties on them are those of the field, and steps compose."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from medfields.cases import Pair
from medfields.cases.pair import toy_motion
from medfields.classical.bspline import BSplineFFD
from medfields.errors import InputError
from medfields.fields import BSpline, Field, jacobian, on_lattice
from medfields.fields.bspline import LinearBasis
from medfields.kernels.trilinear import trilinear
from medfields.losses import bending, determinant
from medfields.losses.local import local_ncc
from medfields.losses.regularity import barrier
from medfields.methods.fluid import Fluid
from medfields.solve import Run
from medfields.solve.fluid import Likeness, Steps, _ways, flow, searched
from medfields.solve.freeform import FreeForm, LatticeMatch, Regularity, Views, nested, subdivided
from medfields.solve.pairing import displaced
from medfields.space import Box, Grid, Volume
from medfields.space.rigid import rotation

BOX = Box((-20.0, -15.0, 0.0), (25.0, 20.0, 30.0))
TURNED = np.eye(4)
TURNED[:3, :3] = rotation(torch.tensor([0.2, -0.3, 0.4])).double().numpy() @ np.diag([2.0, 1.5, 3.0])


@pytest.fixture
def form() -> FreeForm:
    made = FreeForm(Grid((8, 9, 10), TURNED), BOX, 8.0, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in made.parts:
            part.copy_(torch.randn(part.shape, generator=generator))
    return made


def as_field(form: FreeForm, finest: int = 0) -> Field:
    field = Field(BSpline.on(form.lattices[finest], 3), BOX, 3)
    with torch.no_grad():
        field.net.coefficients.copy_(form.coefficients(finest))  # type: ignore[operator]
    return field


def test_lattices_cover_the_box_and_share_their_nodes() -> None:
    lattices = nested(Grid((8, 9, 10), TURNED), BOX, 8.0, 3)
    corners = np.array(np.meshgrid(*zip(BOX.lo, BOX.hi, strict=True), indexing="ij")).reshape(3, -1).T
    for lattice in lattices:
        index = lattice.index(corners)
        assert (index >= 1 - 1e-9).all() and (index <= np.array(lattice.shape) - 2 + 1e-9).all()
    for fine, coarse in itertools.pairwise(lattices):
        at = fine.index(coarse.world(np.argwhere(np.ones(coarse.shape))))
        assert np.abs(at - 2 * np.argwhere(np.ones(coarse.shape))).max() < 1e-9


def test_subdivision_keeps_the_function(form: FreeForm) -> None:
    coarse = Field(BSpline.on(form.lattices[1], 3), BOX, 3)
    fine = Field(BSpline.on(form.lattices[0], 3), BOX, 3)
    with torch.no_grad():
        coarse.net.coefficients.copy_(form.parts[1])  # type: ignore[operator]
        fine.net.coefficients.copy_(subdivided(form.parts[1], form.lattices[0].shape))  # type: ignore[operator]
    x = BOX.random(300, torch.Generator().manual_seed(1))
    assert torch.allclose(fine(x), coarse(x), atol=1e-5)


@pytest.mark.parametrize("finest", [0, 1])
def test_penalties_are_those_of_the_field_at_the_nodes(form: FreeForm, finest: int) -> None:
    field, nodes = as_field(form, finest), form.lattices[finest].points().reshape(-1, 3)
    found = Regularity(form, finest, 2.0, 3.0)(form.coefficients(finest))
    hessian = field.value_jacobian_hessian(nodes)[2]
    assert found["bending"].item() == pytest.approx(2 * bending(hessian).item(), rel=1e-3)
    d = determinant(jacobian(field, nodes))
    assert found["volume"].item() == pytest.approx(3 * barrier(d, 0.1).mean().item(), rel=1e-3)


def test_a_turned_grid_is_refused(form: FreeForm) -> None:
    with pytest.raises(InputError, match="along the lattices"):
        form.tables(Grid.from_spacing((4, 4, 4), 2.0))


@pytest.mark.parametrize("base", [False, True])
def test_the_warped_image_is_the_moving_one_where_the_displacement_says(base: bool) -> None:
    case = Pair.toy()
    views = Views(case, 2.0, 0.0)
    x = views.grid.points()
    u = 1.5 * torch.sin(x / 9).movedim(-1, 0).contiguous()
    wide = Grid.from_spacing((60, 60, 60), 1.0, [-30.0] * 3)
    then = Volume(0.8 * torch.cos(wide.points() / 11).movedim(-1, 0), wide, "mm") if base else None
    y = x + u.movedim(0, -1)
    y = y + (then(y) if then is not None else 0)
    match = LatticeMatch(FreeForm(case.grid, case.box(), 8.0, 1), views, 0, "ncc", 2, 1.0, 1.0, then)
    inside = views.inside  # beyond the image a warped one goes on as at its border
    assert torch.allclose(views.warped(match.carried(u))[inside], case.aligned(y)[..., 0][inside], atol=2e-4)


@pytest.mark.parametrize("similarity", ["ncc", "mi", "mind", "mse"])
def test_the_truth_is_more_alike_than_nothing(similarity: str) -> None:
    case = Pair.toy()
    match = LatticeMatch(FreeForm(case.grid, case.box(), 8.0, 2), Views(case, 2.0, 0.0), 0, similarity, 2, 1.0, 0.1)
    truth = torch.tensor(toy_motion(match.views.grid.points().double().numpy()), dtype=torch.float32).movedim(-1, 0)
    before, after = match.unlike(0 * truth), match.unlike(truth)
    assert after < (before - 0.1 if similarity == "mi" else 0.6 * before)  # mutual information has no zero


def error(warp: Field, case: Pair) -> float:
    x = case.points()
    return float((warp(x).detach().double() - torch.tensor(toy_motion(x.double().numpy()))).norm(dim=-1).mean())


def test_bspline_finds_the_motion() -> None:
    case = Pair.toy()
    assert error(BSplineFFD(spacing=8.0, levels=2, voxels=(4.0, 2.0), blur=(2.0, 0.0), steps=(40, 40)).solve(case, Run()), case) < 0.35  # 1.66 before


@pytest.mark.parametrize("similarity", ["mi", "mind"])
@pytest.mark.parametrize("method", [BSplineFFD(spacing=8.0, levels=2, voxels=(4.0, 2.0), blur=(2.0, 0.0), steps=(40, 40)),
                                    Fluid(elastic=(10, 10, 10, 10), spacing=16.0, voxels=(2.0,), steps=(24,))])
def test_other_modalities(method: BSplineFFD | Fluid, similarity: str) -> None:
    """Contrast that is turned round, then folded: no correlation is left, and the motion is found all the same."""
    case = Pair.toy()
    other = case.moving.with_data((case.moving.data - case.moving.data.median()).abs().sqrt())
    assert error(replace(method, similarity=similarity).solve(case.replaced(moving=other), Run()), case) < 0.8  # type: ignore[arg-type]  # 1.66 before


def test_displaced_points_are_those_of_the_world() -> None:
    """On a turned lattice of three spacings, the first of which runs backwards."""
    grid = Grid((5, 6, 7), TURNED @ np.diag([-1.0, 1, 1, 1]))
    u = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    world = grid.points().double().numpy() + u.movedim(0, -1).double().numpy()
    torch.testing.assert_close(displaced(grid, u), torch.tensor(grid.index(world.reshape(-1, 3)), dtype=torch.float32), rtol=0, atol=1e-4)


def waves(x: torch.Tensor) -> torch.Tensor:
    """A pattern without end, some 15 mm wide."""
    return torch.sin(x[..., 0] / 3) + torch.cos(x[..., 1] / 2.5 + 0.5) + torch.sin((x[..., 2] + x[..., 0]) / 3.5)


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_mind_sees_the_moving_image_where_the_displacement_says(flip: float) -> None:
    """On a turned lattice the shift that was made leaves nothing, its opposite does; the images have lattices and extents of their own."""
    grid = Grid((22, 24, 20), TURNED @ np.diag([flip, 1.0, 1.0, 1.0]))
    wide = Grid.from_spacing((110, 110, 130), 1.0, (grid.centre - 55).tolist())
    shift = torch.tensor([3.0, -2.0, 4.0])
    case = Pair(Volume(waves(grid.points() + shift), grid), Volume(waves(wide.points()), wide))
    match = LatticeMatch(FreeForm(grid, grid.box(), 12.0, 1), Views(case, 1.0, 0.0), 0, "mind", 2, 0.0, 0.0)
    inside = torch.zeros(match.views.grid.shape, dtype=torch.bool)
    inside[4:-4, 4:-4, 4:-4] = True  # beyond the fixed image its border goes on, in the moving one the pattern
    match.views.inside = inside
    u = shift[:, None, None, None].expand(3, *match.views.grid.shape).contiguous()
    right, still, wrong = (float(match.unlike(v)) for v in (u, 0 * u, -u))
    assert right < 0.2 * min(still, wrong)


def test_the_end_of_an_image_is_no_edge_to_mind() -> None:
    """Even images, however far from the value that volumes have beyond themselves, have nothing to tell at their borders either."""
    case = Pair.toy()
    even = case.replaced(fixed=case.fixed.with_data(0 * case.fixed.data + 500), moving=case.moving.with_data(0 * case.moving.data + 500), mask=None)
    fixed, moving, _ = Views(even, 2.0, 0.0).described()
    assert torch.equal(fixed, torch.ones_like(fixed)) and torch.equal(moving, torch.ones_like(moving))


def test_fluid_finds_the_motion_and_composes_what_it_says() -> None:
    case = Pair.toy()
    warp = Fluid(search=4.0, elastic=(10, 10, 10, 10), spacing=16.0, voxels=(4.0, 2.0), steps=(12, 12)).solve(case, Run())
    assert error(warp, case) < 0.35
    assert (determinant(jacobian(warp, case.points())) > 0.3).all()
    assert isinstance(warp.net, LinearBasis)
    assert warp.net.coefficients.shape[1:] == nested(case.grid, case.box(), 3.0, 1)[0].shape  # one and a half voxels of the last stage


def test_a_flow_goes_no_further_than_its_steps_and_does_not_fold() -> None:
    """Even from noise, whose slope points everywhere: each step is a quarter of a voxel where it is longest, and space stays whole."""
    case = Pair.toy()
    case = case.replaced(fixed=case.fixed.with_data(torch.randn(case.fixed.data.shape, generator=torch.Generator().manual_seed(0))))
    views, small = Views(case, 2.0, 0.0), FreeForm(case.grid, case.box(), 6.0, 1)
    for n in (1, 12):
        whole = Steps(case, 1.0)
        flow(whole, Likeness(small, views, "ncc", 2, whole.whole, 0.01, 1.0, 10.0), Run(), n, 0.5, 0.0, "flow")
        longest = float(whole.u.norm(dim=0).max())
        assert 0 < longest < 1.1 * n * 0.5
        warp = whole.field(case)
        assert (determinant(jacobian(warp, case.points())) > 0.05).all()
    held, match = Steps(case, 1.0), Likeness(small, views, "ncc", 2, whole.whole, 0.01, 1.0, 10.0)
    flow(held, match, Run(), 12, 0.5, 0.9, "flow")
    assert match.slope.any()  # its lines were drawn
    assert held.u.diff(dim=1).square().sum() < 0.8 * whole.u.diff(dim=1).square().sum()  # the whole was held together
    with pytest.raises(InputError, match="voxels and steps"):
        Fluid(voxels=(2.0,), steps=(3, 3)).solve(case, Run())


def test_steps_compose_and_the_field_takes_their_values(form: FreeForm) -> None:
    case = Pair.toy()
    whole, fields = Steps(case, 2.0), []
    for seed in (1, 2):
        step = FreeForm(case.grid, case.box(), 8.0, 3)
        with torch.no_grad():
            step.parts[0].copy_(2.0 * torch.randn(step.parts[0].shape, generator=torch.Generator().manual_seed(seed)))
        fields.append(step.field(case))
        whole.add(step)
    x = case.points()
    u = fields[1](x)
    expected = u + fields[0](x + u)
    off = (whole.field(case)(x) - expected).norm(dim=-1).mean()  # linear between nodes 2 mm apart, then a spline
    assert off < 0.25 * (u + fields[0](x) - expected).norm(dim=-1).mean()  # than if the later step were not followed
    nodes = whole.grid.crop((3, 3, 3), (4, 4, 4))
    assert torch.allclose(on_lattice(whole.field(case), nodes).data, whole.u[:, 3:7, 3:7, 3:7], atol=1e-4)


def test_the_whole_is_smoothed_by_its_variance() -> None:
    whole = Steps(Pair.toy(), 4.0)
    with torch.no_grad():
        whole.u.normal_(generator=torch.Generator().manual_seed(0))
    expected = whole.u.numpy().copy()
    for axis in (1, 2, 3):
        expected = scipy.ndimage.convolve1d(expected, [0.2, 0.6, 0.2], axis, mode="nearest")
    whole.smooth(0.4)
    np.testing.assert_allclose(whole.u.numpy(), expected, atol=1e-6)


def test_values_count_once_lines_have_made_them_comparable() -> None:
    """A change of brightness that is slow beside the wide windows costs next to nothing, and one that is as wide as a small window costs much."""
    case = Pair.toy()
    x = torch.arange(case.fixed.grid.shape[0], dtype=torch.float32)[:, None, None]
    form, still = FreeForm(case.grid, case.box(), 8.0, 1), torch.zeros(3, *Views(case, 2.0, 0.0).grid.shape)

    def costs(change: Tensor) -> tuple[float, float]:
        """Before and after the lines are drawn."""
        views = Views(case.replaced(moving=case.fixed.with_data(change)), 2.0, 0.0)
        small = 1 - local_ncc(views.fixed, views.warped(still), 2, views.counting(still), noise=0.01, squared=True)
        match = Likeness(form, views, "ncc", 2, Steps(case, 4.0).whole, 0.01, 1.0, 8.0)
        nothing_known = match.unlike(still) - small
        match.draw_lines()
        return float(nothing_known), float(match.unlike(still) - small)

    image = case.fixed.data
    assert costs(image)[0] == pytest.approx(1, rel=0.1)  # no line yet: all of the values is unlike
    same, slow, turned, fine = (costs(change)[1] for change in (image, image * torch.exp(x / 20) + x / 10, 5 - 3 * image, image + torch.sin(2 * x)))
    assert same < 0.01 and slow < 0.05 and turned < 0.01 and fine > 0.2
    views = Views(case, 2.0, 0.0)
    views.inside = torch.zeros_like(views.inside)
    nobody = Likeness(form, views, "ncc", 2, Steps(case, 4.0).whole, 0.01, 1.0, 8.0)
    nobody.draw_lines()
    assert nobody.unlike(still).item() == 1.0


def test_a_search_reaches_what_descent_does_not() -> None:
    case = Pair.toy()
    moved = Grid(case.moving.grid.shape, np.array([[1, 0, 0, 8.0], [0, 1, 0, 0], [0, 0, 1, -6.0], [0, 0, 0, 1]]) @ case.moving.grid.affine)
    far = case.replaced(moving=Volume(case.moving.data, moved))
    found = searched(far, Run(), 12.0)
    inside = far.mask.on(found.grid).data[0] > 0.5  # type: ignore[union-attr]
    middle = found.data[:, inside].mean(1) - torch.tensor([8.0, 0.0, -6.0])
    assert middle.norm() < 3.0


def test_the_search_is_consistent_both_ways() -> None:
    """There and back again ends nearer to the start than what the two searches found by themselves."""
    case = Pair.toy()
    turned = Pair(case.moving, case.fixed, case.mask, None)
    there, back = (searched(c, Run(), 6.0) for c in (case, turned))
    views = Views(case, float(there.grid.spacing[0]), 0.4 * float(there.grid.spacing[0]))
    alone = _ways(case, views)

    def lacking(u: torch.Tensor, v: torch.Tensor) -> float:
        return float((u + trilinear(v.contiguous(), displaced(there.grid, u)).T.reshape(u.shape)).norm(dim=0)[views.inside].mean())

    assert there.grid.same_as(back.grid) and lacking(there.data, back.data) < 0.6 * lacking(*alone)


def test_linear_basis_tables_are_per_mm(form: FreeForm) -> None:
    grid = Grid((5, 6, 7), TURNED)
    c = form.coefficients()
    table, slope = form.tables(grid), form.tables(grid, 0, 1)
    along = LinearBasis.on([slope[0], table[1], table[2]], c)
    step = torch.tensor(grid.directions[:, 0] * 0.05, dtype=torch.float32)
    field, x = as_field(form), grid.points()
    numeric = (field(x + step) - field(x - step)) / 0.1
    assert torch.allclose(along.movedim(0, -1), numeric.detach(), atol=2e-3)
