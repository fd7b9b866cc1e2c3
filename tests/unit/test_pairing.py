"""Problems of registration: flows, points, blocks; the published networks on a pair whose motion is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medfields import plugins
from medfields.cases.pair import Pair, toy_motion
from medfields.errors import InputError
from medfields.fields import Affine, Field, Flow, Siren, displacement, jacobian
from medfields.fields.agreed import Agreed, uncertainty
from medfields.losses import determinant, diffusion
from medfields.solve import Run
from medfields.solve.pairing import (
    BlockMatch,
    PointMatch,
    _block,
    differences,
    exponential,
    flow,
    index_points,
    lattice,
    sampled,
    velocity_of,
)
from medfields.space import Box, Grid, Volume
from medfields.testing import check_field

LOW = Siren(width=32, depth=2, omega_first=6.0, omega=6.0)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _affine(box: Box, matrix: list[list[float]], shift: tuple[float, float, float] = (0, 0, 0)) -> Field:
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = matrix, shift
    return displacement(Affine.of(whole), box)


def _slices(case: Pair) -> Pair:
    """The middle slice of both images, and the mask there."""
    grid = Grid((*case.grid.shape[:2], 1), case.grid.crop((0, 0, 10), (20, 20, 1)).affine)
    return Pair(*(Volume(v.data[..., 10:11], grid) for v in (case.fixed, case.moving, case.mask)))


def test_exponential_of_constant_and_linear_velocities() -> None:
    still = torch.tensor([0.7, -1.2, 0.4]).reshape(1, 3, 1, 1, 1).expand(1, 3, 9, 8, 7)
    assert torch.allclose(exponential(still), still, atol=1e-5)
    a = torch.tensor([[0.1, -0.2, 0.0], [0.15, -0.05, 0.1], [0.0, 0.1, 0.05]])
    x = index_points(torch.zeros(1, 1, 25, 25, 25)) - 12
    u = exponential((x @ a.T).movedim(-1, 0)[None])[0].movedim(0, -1)
    true = x @ (torch.linalg.matrix_exp(a) - torch.eye(3)).T
    middle = (slice(6, 19),) * 3  # where the border does not reach
    assert (u - true)[middle].norm(dim=-1).max() < 0.01  # first order in 1/128; the displacement itself is up to 3 steps


def test_exponential_has_the_inverse_and_is_the_flow() -> None:
    case = Pair.toy()
    torch.manual_seed(0)
    warp = flow(case, Siren(16, 2, 4.0, 4.0), steps=8)
    with torch.no_grad():
        for p in warp.net.velocity.branches.parameters():
            p.mul_(0.25)
    grid = Grid.from_spacing((41, 41, 41), 1.2, (-24, -24, -24))
    with torch.no_grad():
        v = (velocity_of(warp)(grid.points()).movedim(-1, 0) / 1.2)[None]
        there, back = exponential(v), exponential(-v)
        exact = warp(grid.points()).movedim(-1, 0)
        returned = there + sampled(back, index_points(v) + there.movedim(1, -1))
    inner = (..., *(slice(6, -6),) * 3)  # the paths of the others leave the lattice
    assert 1.0 < exact[inner].norm(dim=0).max() < 6.0
    assert (there[0] * 1.2 - exact)[inner].norm(dim=0).max() < 0.05
    assert returned[inner].norm(dim=1).max() < 0.05


def test_differences_of_a_linear_field_on_an_oblique_lattice() -> None:
    grid = Grid((4, 5, 6), np.array([[0, 1.5, 0.2, -3], [1.0, 0, 0, -2], [0, 0.3, -2, 6], [0, 0, 0, 1.0]]))
    a = torch.tensor([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6], [0.7, 0.8, 0.9]])
    slopes = differences((grid.points() @ a.T).movedim(-1, 0)[None], grid)[0]
    assert torch.allclose(slopes[:-1, :-1, :-1], a.expand(3, 4, 5, 3, 3), atol=1e-4)


def test_lattice_holds_what_counts_in_so_many_nodes() -> None:
    case = Pair.toy()
    whole, coarse = lattice(case, 10**6), lattice(case, 200)
    assert whole.size == np.prod(np.ptp(torch.nonzero(case.inside).numpy(), axis=0) + 1) and np.allclose(whole.spacing, 2)
    assert 100 < coarse.size <= 200 and coarse.box().contains(case.points()).all()
    assert lattice(_slices(case), 50).shape[2] == 1


def test_blocks_lie_on_voxel_centres() -> None:
    grid = Grid((9, 9, 9), np.array([[0, 1.5, 0, -3], [1.0, 0, 0, -2], [0, 0, -2, 6], [0, 0, 0, 1.0]]))
    x = torch.tensor(grid.world(np.array([4, 4, 4])), dtype=torch.float32) + _block(grid, 4, 2)
    assert np.allclose(grid.index(x.numpy())[:, 0, 0, 0], [0, 2, 4, 6]) and x.shape == (4, 4, 4, 3)
    assert np.allclose(grid.index(x.numpy())[0, 0, :, 2], [0, 2, 4, 6], atol=1e-5)
    coarse, fine = _block(grid, 3, 2), _block(grid, 5, 1)
    assert torch.allclose(fine[::2, ::2, ::2], coarse)


def test_blur_keeps_the_mean_and_widens_by_sigma() -> None:
    spike = torch.zeros(31, 31, 31)
    spike[15, 15, 15] = 1
    made = Volume(spike, Grid.from_spacing((31, 31, 31), (1.0, 2.0, 1.0))).blurred(2.0).data[0]
    i = torch.arange(31.0) - 15
    assert float(made.sum()) == pytest.approx(1, abs=1e-4)
    assert float((made.sum((1, 2)) * i**2).sum()) == pytest.approx(4, abs=0.05)  # of 1 mm voxels
    assert float((made.sum((0, 2)) * i**2).sum()) == pytest.approx(1, abs=0.05)  # of 2 mm voxels


def test_what_lies_beyond_a_blurred_image() -> None:
    """Its border goes on, or nothing is there; channels and slices keep to themselves."""
    even = Volume(torch.stack([torch.ones(21, 21, 1), torch.full((21, 21, 1), 3.0)]), Grid.from_spacing((21, 21, 1), 1.0))
    assert torch.allclose(even.blurred(2.0).data, even.data)
    inside = even.blurred(2.0, "constant").data
    assert inside[:, 10, 10, 0].tolist() == pytest.approx([1, 3], abs=1e-3)
    assert inside[:, 0, 10, 0].tolist() == pytest.approx([0.6, 1.8], abs=0.05)


def test_points_of_equal_images_are_alike_and_levels_follow_the_progress() -> None:
    case = Pair.toy()
    same = case.replaced(moving=case.fixed)
    problem = PointMatch(same, _affine(case.box(), np.eye(3).tolist()), 200, lambda slope: diffusion(slope), blur=(4.0, 2.0, 0.0))
    seen = []
    for progress in (0.0, 0.34, 0.99, 1.0):
        problem.before_step(progress)
        seen.append(problem.level)
        terms = problem.losses(problem.batch(_generator()), progress)
        assert abs(float(terms["unlike"])) < 1e-5 and float(terms["penalty"]) == 0
    assert seen == [0, 1, 2, 2]
    assert torch.equal(problem.batch(_generator(3)), problem.batch(_generator(3)))
    assert case.mask is not None and bool((case.mask(problem.batch(_generator())) > 0.5).all())


def test_penalty_and_value_come_from_one_affine_map() -> None:
    """|grad u|^2 of an affine map is known, by points as by blocks; second derivatives vanish."""
    case = Pair.toy()
    matrix = [[1.1, 0.05, 0], [0, 0.9, 0], [0, 0.1, 1.0]]
    warp = _affine(case.box(), matrix)
    expected = float(((np.array(matrix) - np.eye(3)) ** 2).sum())
    for problem in (PointMatch(case, warp, 50, diffusion), BlockMatch(case, warp, 2, 3, 2, 1, 27, diffusion)):
        u, terms = problem.swept(problem.points[:10])
        assert torch.allclose(u, warp(problem.points[:10])) and float(terms["penalty"]) == pytest.approx(expected, rel=1e-5)
        assert float(problem.losses(problem.batch(_generator()), 0)["penalty"]) == pytest.approx(expected, rel=1e-5)
    bent = PointMatch(case, warp, 50, lambda slope, h: h.square().sum() + slope.square().sum((-2, -1)).mean(), 2)
    assert float(bent.losses(bent.batch(_generator()), 0)["penalty"]) == pytest.approx(expected, rel=1e-5)


def test_the_penalty_of_a_flow_is_that_of_its_velocity() -> None:
    case = Pair.toy()
    a = np.array([[0.2, 0.1, 0], [0, -0.1, 0], [0, 0, 0.05]])
    whole = np.eye(4)
    whole[:3, :3] += a
    problem = PointMatch(case, displacement(Flow(Affine.of(whole), 8), case.box()), 50, diffusion)
    x = problem.points[:20]
    u, terms = problem.swept(x)
    assert float(terms["penalty"]) == pytest.approx(float((a**2).sum()), rel=1e-4)
    grown = torch.linalg.matrix_exp(torch.tensor(a, dtype=torch.float32)) - torch.eye(3)
    assert torch.allclose(u, x @ grown.T, atol=1e-3)


def test_blocks_forgive_what_changes_slowly_and_points_do_not() -> None:
    case = Pair.toy()
    x = case.grid.points()
    biased = case.replaced(moving=case.fixed.with_data(case.fixed.data[0] * torch.exp(0.06 * x[..., 0])))
    still = _affine(case.box(), np.eye(3).tolist())
    points = PointMatch(biased, still, 2000)
    blocks = BlockMatch(biased, still, 8, 7, 1, 1, 27)
    by_points, by_blocks = (float(p.losses(p.batch(_generator()), 0)["unlike"]) for p in (points, blocks))
    assert by_points > 0.15 and by_blocks < 0.4 * by_points


def test_what_is_masked_in_the_moving_image_does_not_count() -> None:
    case = Pair.toy()
    where = case.grid.points()[..., 0] > 0
    moving = case.fixed.with_data(torch.where(where, -3.0, case.fixed.data[0]))
    still = _affine(case.box(), np.eye(3).tolist())
    for counted, low, high in ((Volume((~where).float(), case.grid), -1e-3, 0.05), (None, 0.2, 2.0)):  # the coarse lattice is blurred
        pair = case.replaced(moving=moving, moving_mask=counted)
        for problem in (PointMatch(pair, still, 2000), BlockMatch(pair, still, 30, 7, 1, 1, 27)):
            assert low < float(problem.losses(problem.batch(_generator()), 0)["unlike"]) < high


def test_agreed_is_the_mean_and_knows_what_is_unsure() -> None:
    """Backward is the inverse of forward but for a shift of 2 mm: half of it is corrected, and half of it is the uncertainty."""
    box = Pair.toy().box()
    a = np.array([[1.1, 0.1, 0], [0, 0.9, 0.05], [0, 0, 1.0]])
    inverse = np.linalg.inv(a)
    back = np.eye(4)
    back[:3, :3], back[:3, 3] = inverse, -inverse @ [0, 0, 2.0]  # of y = a x + (0, 0, 2)
    there = np.eye(4)
    there[:3, :3] = a
    agreed = displacement(Agreed(Affine.of(there), Affine.of(back)), box)
    x = box.random(30, _generator())
    assert torch.allclose(agreed(x), _affine(box, a.tolist(), (0, 0, 1.0))(x), atol=1e-4)
    assert torch.allclose(jacobian(agreed, x), torch.tensor(a, dtype=torch.float32).expand(30, 3, 3), atol=1e-4)
    assert torch.allclose(uncertainty(agreed, x), torch.ones(30), atol=1e-4)


def test_agreed_keeps_the_promises_of_fields() -> None:
    check_field(displacement(Agreed(LOW, Siren(16, 2, 5.0, 5.0)), Pair.toy().box(), seed=1))


def test_bad_input() -> None:
    case = Pair.toy()
    warp = _affine(case.box(), np.eye(3).tolist())
    with pytest.raises(InputError, match="widths"):
        PointMatch(case, warp, 10, blur=(2.0, -1.0))
    with pytest.raises(InputError, match="no window of radius 4"):
        BlockMatch(case, warp, 1, 4, 2, 4)
    with pytest.raises(InputError, match="has no velocity"):
        velocity_of(warp)
    apart = torch.zeros(case.grid.shape)
    apart[0, 0, 0] = 1
    with pytest.raises(InputError, match="do not overlap"):
        PointMatch(case.replaced(moving_mask=Volume(apart, case.grid)), warp, 10)


BETTER = {"lr": 3e-3, "net": LOW, "zero_start": True}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "idir": ("idir", {**BETTER, "steps": 40, "schedule": "cosine", "blur": (2.0, 0.0)}),
    "idir bending": ("idir", {**BETTER, "steps": 25, "points": 300, "schedule": "cosine", "penalty": "bending"}),
    "hyperelastic": ("hyperelastic", {**BETTER, "steps": 40, "schedule": "cosine"}),
    "blocks": ("mirnf", {**BETTER, "steps": 35, "blur": (2.0, 0.0)}),
    "velocity": ("mirnf", {**BETTER, "steps": 25, "mode": "velocity", "flow_steps": 2, "blur": (0.0,)}),
    "dnvf": ("dnvf", {"net": LOW, "steps": 30, "lr": 5e-3}),
    "cycle": ("cycle", {**BETTER, "steps": 30}),
}


@pytest.mark.parametrize("name", RUNS)
def test_published_systems_find_a_known_motion(name: str) -> None:
    case = Pair.toy()
    method, flags = RUNS[name]
    cls = plugins.load(method)
    warp = cls(**{**cls.tiny, **flags}).solve(case, Run(device="cpu"))
    x = case.points()
    true = torch.tensor(toy_motion(x.double().numpy()), dtype=torch.float32)
    with torch.no_grad():
        error = float((warp(x) - true).norm(dim=-1).mean())
    assert error < 0.3 * float(true.norm(dim=-1).mean()), f"{error:.3f} mm"
    assert bool((determinant(jacobian(warp, x[::5])) > 0).all())


def test_dnvf_starts_from_another_displacement() -> None:
    """A rate of nothing leaves the start as it was, whichever box it was told in; from there the flow goes on."""
    case = Pair.toy()
    shift = (0.0, -0.9, 1.8)
    cls = plugins.load("dnvf")
    x = case.points()
    for box in (case.box(), case.grid.box(7.0)):
        start = case.replaced(first=_affine(box, np.eye(3).tolist(), shift))
        warp = cls(**{**cls.tiny, "steps": 1, "lr": 1e-9}).solve(start, Run(device="cpu"))
        assert torch.allclose(warp(x), torch.tensor(shift).expand(len(x), 3), atol=1e-3)
    true = torch.tensor(toy_motion(x.double().numpy()), dtype=torch.float32)

    def error(u: Tensor) -> float:
        return float((u - true).detach().norm(dim=-1).mean())

    better = cls(**{**cls.tiny, "net": LOW, "steps": 20, "lr": 2e-3}).solve(start, Run(device="cpu"))
    assert error(better(x)) < 0.6 * error(torch.tensor(shift).expand(len(x), 3))


@pytest.mark.parametrize("name", ["idir", "mirnf", "dnvf", "cycle", "hyperelastic"])
def test_slices_stay_in_their_plane(name: str) -> None:
    case = _slices(Pair.toy())
    cls = plugins.load(name)
    flags = {"mode": "velocity"} if name == "mirnf" else {}
    warp = cls(**{**cls.tiny, "steps": 3, **flags}).solve(case, Run(device="cpu"))
    u = warp(case.points()).detach()
    assert float(u[:, 2].abs().max()) == 0 and float(u[:, :2].abs().max()) > 0
