"""Fields fitted to slices that moved: poses, gains and variances found with them; Gaussians, whose thick slices are known in closed form."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medfields.cases import Slices, Stack
from medfields.cases.stacks import Profile
from medfields.errors import InputError
from medfields.evaluate import moved
from medfields.fields import Field, Gaussians, GridEncoding
from medfields.kernels.image_splat import image_sums, image_sums_torch
from medfields.losses import orthogonality
from medfields.solve import Run
from medfields.solve.motion import Found
from medfields.solve.slice_fit import EMBEDDING, SliceFit
from medfields.solve.slice_splat import GaussianSliceFit, begin
from medfields.space import Grid, Volume
from medfields.space.rigid import maps_of

RNG = np.random.default_rng(5)
CENTRES, WIDTHS, HEIGHTS = RNG.uniform(-12, 12, (40, 3)), RNG.uniform(1.8, 3.5, 40), RNG.uniform(20, 100, 40)
SIDE, COUNT = 18, 9
STILL = [np.eye(4)] * (3 * COUNT)


def subject(x: np.ndarray, sigma: float = 0.0, across: np.ndarray | None = None) -> np.ndarray:
    """Blobs, averaged across by a normal profile in closed form."""
    d = x[..., None, :] - CENTRES
    along = np.zeros(d.shape[:-1]) if across is None else d @ across
    wide = WIDTHS**2 + sigma**2
    return (HEIGHTS * WIDTHS / np.sqrt(wide) * np.exp(-((d**2).sum(-1) - along**2) / (2 * WIDTHS**2) - along**2 / (2 * wide))).sum(-1)


def scan(poses: list[np.ndarray], bad: tuple[int, ...] = (), gain: dict[int, float] | None = None, bent: float = 0.0) -> Slices:
    """Three orthogonal stacks, 1.5 mm in the plane and 4 mm thick, slice n of all seen through poses[n]; in the last two the subject is bent, mm."""
    stacks, n, sigma = [], 0, 4.0 / math.sqrt(8 * math.log(2))
    for axis in (2, 0, 1):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, [(axis + 1) % 3, (axis + 2) % 3, axis]] * [1.5, 1.5, 3.0]
        affine[:3, 3] = -affine[:3, :3] @ [(SIDE - 1) / 2, (SIDE - 1) / 2, (COUNT - 1) / 2]
        grid, data = Grid((SIDE, SIDE, COUNT), affine), np.zeros((SIDE, SIDE, COUNT))
        for k in range(COUNT):
            noise = np.random.default_rng(n)
            x = grid.world(np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), k, indexing="ij"), -1))[:, :, 0]
            at = x @ poses[n][:3, :3].T + poses[n][:3, 3]
            at = at + bent * (0, 1, -1)[(2, 0, 1).index(axis)] * np.sin(at[..., [1, 2, 0]] / 7)
            seen = subject(at, sigma, poses[n][:3, axis])
            data[:, :, k] = (gain or {}).get(n, 1.0) * seen + noise.normal(0, 1, seen.shape)
            if n in bad:
                data[:, :, k] = 0.3 * data[:, :, k] + noise.normal(0, 40, seen.shape)
            n += 1
        stacks.append(Stack(Volume(data, grid), 4.0, name=f"s{axis}", through=2))
    return Slices.of(stacks, [None] * 3, grid=Grid.from_spacing((18,) * 3, 1.5, [-12.75] * 3))


def shaken(degrees: float, mm: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(maps_of(np.c_[np.radians(rng.uniform(-degrees, degrees, (27, 3))), rng.uniform(-mm, mm, (27, 3))], np.zeros(3)))


def fit_of(case: Slices, poses: list[np.ndarray] = STILL, **options: Any) -> SliceFit:
    torch.manual_seed(0)
    encoding = GridEncoding(5, 1.5, 12.0, log2_table=14)
    return SliceFit(encoding, 32, 1, case, Found.at(np.stack(poses)), **{"samples": 1024, "nodes": 6, **options})


def trained(problem: Any, steps: int, **frozen: bool) -> Any:
    rates = {name: 0.01 for name, _ in problem.named_parameters() if not frozen.get(name.replace(".", "_"))}
    return Run(seed=0).fit(problem, steps=steps, lr=rates, name="fit", schedule="exponential", final=0.1)


def error(field: Field, case: Slices) -> float:
    """Root mean square against the subject, where slices see it."""
    x = case.grid.points()
    inside = x.norm(dim=-1) < 11
    return float((field.on(case.grid).volume().data[0][inside] - torch.as_tensor(subject(x.numpy()))[inside]).square().mean().sqrt())


@functools.cache
def still() -> Slices:
    return scan(STILL)


# Fields on a grid


def test_the_gradient_of_poses_is_that_of_differences() -> None:
    problem = fit_of(still(), edge=0.0, pose=0.1, in_plane=1.0)
    with torch.no_grad():
        problem.net.net.encoding.table.uniform_(-1, 1)
        problem.poses.moves.uniform_(-0.05, 0.05)
    problem.double()
    batch = tuple(t.double() if t is not None and t.is_floating_point() else t for t in problem.batch(torch.Generator().manual_seed(0)))

    def total() -> torch.Tensor:
        return sum(problem.losses(batch, 0.5).values())  # type: ignore[return-value]

    total().backward()
    for n, k in ((0, 0), (5, 1), (13, 2), (20, 3), (26, 4), (9, 5)):
        sides = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                problem.poses.moves[n, k] += step
                sides.append(float(total()))
                problem.poses.moves[n, k] -= step
        slope = (sides[0] - sides[1]) / 2e-6
        assert abs(slope) > 1e-5
        assert float(problem.poses.moves.grad[n, k]) == pytest.approx(slope, rel=1e-3)


def test_maps_are_where_the_nodes_lie() -> None:
    """The poses that are told carry the headers' points to where the field is read."""
    case = still()
    problem = fit_of(replace(case, profile="none"), shaken(10, 5))
    with torch.no_grad():
        problem.poses.moves.uniform_(-0.1, 0.1)
        x, w = problem.points(torch.arange(len(problem.value)))
    maps, plane = problem.poses.maps(), problem.poses.plane.numpy()
    expected = np.einsum("pij,pj->pi", maps[plane][:, :3, :3], case.points()) + maps[plane][:, :3, 3]
    assert w.eq(1).all() and x.shape[1] == 1
    np.testing.assert_allclose(x[:, 0], expected, atol=1e-4)


def test_nodes_that_shift_together_weigh_as_before() -> None:
    problem = fit_of(still(), nodes=16)
    pixel = torch.arange(40)
    for shift in (-0.5, 0.13, 0.5):
        with torch.no_grad():
            x, w = problem.points(pixel, torch.full((40,), shift))
            middle = problem.points(pixel)[0].mean(1)
        assert float((w.sum(1) - 1).abs().max()) < 5e-3
        away = ((x - middle[:, None]).norm(dim=-1).square() * w).sum(1).sqrt() * math.sqrt(8 * math.log(2))
        torch.testing.assert_close(away, torch.full((40,), 4.0), atol=0.08, rtol=0)  # width at half maximum, less what three sigma cut off


def test_poses_are_found_with_the_field() -> None:
    true = shaken(4.0, 1.5)
    case = scan(true)
    before, turned_before = moved.errors(case, np.stack(STILL), np.stack(true))
    problem = trained(fit_of(case), 140)
    after, turned = moved.errors(case, problem.found().poses, np.stack(true))
    assert np.median(before) > 1.0
    assert np.median(after) < 0.4 * np.median(before) and np.median(turned) < 0.5 * np.median(turned_before)
    assert error(problem.field(), case) < 0.8 * error(trained(fit_of(case), 140, poses_moves=True).field(), case)


def test_a_pose_prior_holds_slices() -> None:
    case = scan(shaken(4.0, 1.5))
    free, held = (trained(fit_of(case, pose=weight), 40).poses.prior().detach() for weight in (0.0, 1e3))
    assert float(held) < 0.01 * float(free)


def test_gains_are_one_in_the_mean_and_a_bright_slice_has_more() -> None:
    problem = trained(fit_of(scan(STILL, gain={4: 1.4, 15: 0.7})), 150, poses_moves=True)
    gain = problem.found().gain
    assert gain.mean() == pytest.approx(1, abs=1e-5)
    others = np.delete(gain, [4, 15])
    assert gain[4] > others.max() + 0.1 and gain[15] < others.min() - 0.1


def test_a_corrupted_slice_has_a_large_variance() -> None:
    bad = (4, 13, 22)  # the middle slice of each stack
    case = scan(STILL, bad=bad)
    robust, equal = (trained(fit_of(case, robust=on), 120, poses_moves=True) for on in (True, False))
    worth = robust.found().worth
    assert worth[list(bad)].max() < 0.1 and np.median(np.delete(worth, bad)) > 0.8
    variance = torch.cat([robust.seen(p)[1].detach() for p in torch.arange(len(robust.value)).split(4096)])
    own = [float(variance[robust.poses.plane == n].mean()) for n in range(27)]
    assert min(own[n] for n in bad) > 5 * float(np.median(own))
    assert error(robust.field(), case) < 0.8 * error(equal.field(), case)
    assert len(equal.seen(torch.arange(500))[1].detach().unique()) == 1


def test_thick_slices_taken_for_thin_ones_blur() -> None:
    thick, thin = (error(trained(fit_of(replace(still(), profile=p)), 150, poses_moves=True).field(), still()) for p in ("gauss", "none"))
    assert thick < 0.75 * thin


def test_a_slope_costs() -> None:
    plain, smooth = (trained(fit_of(still(), edge=weight), 60, poses_moves=True).field() for weight in (0.0, 50.0))
    rough = [float(np.abs(np.diff(f.on(still().grid).volume().data[0].numpy(), axis=0)).mean()) for f in (plain, smooth)]
    assert rough[1] < 0.7 * rough[0]


def test_a_bias_multiplies_and_its_mean_costs() -> None:
    plain, biased = (fit_of(still(), bias=levels) for levels in (0, 2))
    assert biased.biases[0].layers[0].in_features == EMBEDDING + 4
    pixel = torch.arange(200)
    with torch.no_grad():
        biased.biases[1].weight.zero_()
        unit = biased.seen(pixel)[0]
        biased.biases[1].bias.fill_(math.log(2))
        torch.testing.assert_close(biased.seen(pixel)[0], 2 * unit)
        losses = biased.losses(biased.batch(torch.Generator().manual_seed(0)), 0.0)
    assert float(losses["bias"]) == pytest.approx(100 * math.log(2) ** 2, rel=1e-5)
    assert "bias" not in plain.losses(plain.batch(torch.Generator().manual_seed(0)), 0.0)
    with pytest.raises(InputError, match="a bias of 6 levels"):
        fit_of(still(), bias=6)


def test_slices_of_a_subject_that_bends_are_explained() -> None:
    case = scan(STILL, bent=2.0)
    left = []
    for weight in (None, 0.1):
        problem = trained(fit_of(case, bend=weight), 120, poses_moves=True)
        pixel = torch.arange(len(problem.value))
        with torch.no_grad():
            left.append(float((problem.seen(pixel)[0] - problem.value).square().mean().sqrt()))
    assert left[1] < 0.8 * left[0]
    with torch.no_grad():
        x, plane = problem.points(pixel)[0].mean(1), problem.poses.plane
        moved_by = problem.bends(x, plane).norm(dim=1)
    assert 0.5 < float(moved_by.mean()) < 5.0  # mm


def test_bending_costs_and_turning_does_not() -> None:
    problem = fit_of(still(), bend=1.0)
    x, plane = problem.points(torch.arange(300))[0].mean(1), problem.poses.plane[:300]
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.3, 0.0], [-0.3, 0.0, 0.1], [0.0, -0.1, 0.0]]))
    rest = float(problem.bends.stretch(x, plane).detach())
    assert rest < 1e-4 and float(orthogonality(turn)) < 1e-10
    with torch.no_grad():
        problem.bends.encoding.table.normal_()
        problem.bends.net[-1].weight.normal_(0, 10)
        assert float(problem.bends.stretch(x, plane)) > 1.0


def test_the_field_says_what_was_fitted() -> None:
    problem = trained(fit_of(still()), 20)
    x = 10 * torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(problem.field()(x)[:, 0], problem.offset + problem.scale * problem.told(x)[0])


# Gaussians


def pairs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Forty Gaussians of three images, and rows of pixels."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.rand(40, 2, generator=rng) * torch.tensor([12.0, 15.0])
    whiten = torch.stack([0.3 + torch.rand(40, generator=rng), torch.rand(40, generator=rng) - 0.5, 0.3 + torch.rand(40, generator=rng)], 1)
    rows = torch.tensor([[2, 13]]).repeat(3, 11, 1)
    rows[1, 4] = 0  # nothing is wanted there
    return centres.to(dtype), whiten.to(dtype), torch.rand(40, generator=rng).to(dtype), torch.tensor([0, 15, 15, 40]), rows


def test_images_of_gaussians_agree_with_their_twin() -> None:
    *told, starts, rows = pairs()
    told = [t.requires_grad_() for t in told]
    images = [f(*told, starts, rows, 15) for f in (image_sums, image_sums_torch)]
    torch.testing.assert_close(*images, atol=3e-4, rtol=0)
    assert float(images[0].detach().max()) > 0.5
    assert not images[0][1].any() and not images[0][:, :, :2].any() and not images[0][:, :, 13:].any()
    weight = torch.randn(images[0].shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((weight * image).sum(), told) for image in images)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-3)  # what lies beyond 4.3 standard deviations is left out


def test_an_image_is_the_sum_of_its_gaussians() -> None:
    told = pairs()[:3]
    told[2][:] = 1
    image = image_sums(*told, torch.tensor([0, 40]), torch.tensor([0, 15]).repeat(1, 11, 1), 15)[0]
    y, x = torch.meshgrid(torch.arange(11.0), torch.arange(15.0), indexing="ij")
    c, (a, b, d) = told[0], told[1].unbind(1)
    z = a * (y[..., None] - c[:, 0]) + b * (x[..., None] - c[:, 1]), d * (x[..., None] - c[:, 1])
    torch.testing.assert_close(image, torch.exp(-0.5 * (z[0].square() + z[1].square())).sum(-1), atol=1e-3, rtol=0)


def bells_of(case: Slices, count: int = 150, **options: Any) -> GaussianSliceFit:
    """Anisotropic Gaussians at random places, slices at random poses."""
    torch.manual_seed(1)
    field = Field(Gaussians(count), Grid.from_spacing((24,) * 3, 1.5, [-17.25] * 3).box(), scale=100.0)
    with torch.no_grad():
        field.net.turns.normal_()
        field.net.log_scales.copy_(torch.log((1.2 + 2 * torch.rand(count, 3)) / float(field.radius[0])))
    problem = GaussianSliceFit(field, case, Found.at(np.stack(shaken(20, 3))), 27, **options)
    with torch.no_grad():
        problem.poses.moves.uniform_(-0.1, 0.1)
    return problem


@pytest.mark.parametrize("profile", ["gauss", "none"])
def test_slices_in_closed_form_are_those_of_quadrature(profile: Profile) -> None:
    """All pixels of slices in any pose, against the field sampled across each of them."""
    problem = bells_of(replace(still(), profile=profile))
    with torch.no_grad():
        shown, pixel = problem.shown(torch.tensor([1, 4, 12, 25]))
        plane = problem.poses.plane[pixel]
        columns, origin, across = problem.poses.laid()
        x = (columns[plane] @ problem.poses.at[pixel][..., None])[..., 0] + origin[plane]
        z = torch.linspace(-5, 5, 80) * 4.0 / math.sqrt(8 * math.log(2)) if profile == "gauss" else torch.zeros(1)
        w = torch.softmax(-4 * math.log(2) * (z / 4.0).square(), 0)
        values = problem.field(x[:, None] + z[:, None] * across[plane][:, None])[..., 0] / 100
    expected = (values * w).sum(1)
    assert plane.unique().tolist() == [1, 4, 12, 25] and len(pixel) == 4 * SIDE**2
    assert float(expected.max()) > 0.5
    torch.testing.assert_close(shown, expected, atol=1e-3 * float(expected.max()), rtol=0)


def test_the_gradient_of_poses_through_gaussians_is_that_of_differences() -> None:
    problem = bells_of(still(), 40).double()
    index = torch.tensor([3, 11, 20])
    weight = torch.randn(3 * SIDE**2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = [problem.poses.moves, problem.field.net.centres, problem.field.net.log_scales, problem.field.net.turns, problem.field.net.densities]

    def total() -> torch.Tensor:
        return (weight * problem.shown(index)[0]).sum()

    grads = torch.autograd.grad(total(), wanted)
    for parameter, grad, places in zip(wanted, grads, [[(3, 0), (11, 2), (20, 1), (3, 4), (11, 5)], [(7, 0)], [(7, 1)], [(7, 2)], [(7, 0)]],
                                       strict=True):
        for place in places:
            sides = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter[place] += step
                    sides.append(float(total()))
                    parameter[place] -= step
            assert float(grad[place]) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-6)
            assert abs(float(grad[place])) > 1e-6


def test_gaussians_begin_as_the_subject_that_least_squares_rebuild() -> None:
    case = still()
    field = begin(case, Found.at(np.stack(STILL)), 3000, 0.02, 20, np.random.default_rng(0))
    dim = begin(case, Found.at(np.stack(STILL)), 300, 0.02, 20, np.random.default_rng(0))
    assert len(field.net.centres) == 3000
    x = case.grid.points()
    spread = float(subject(x.numpy())[x.norm(dim=-1) < 11].std())
    assert error(field, case) < 0.5 * spread < error(dim, case)


def test_gaussians_find_poses() -> None:
    true = shaken(4.0, 1.5)
    case = scan(true)
    start = Found.at(np.stack(STILL))
    problem = GaussianSliceFit(begin(case, start, 1500, 0.05, 20, np.random.default_rng(0)), case, start, 27)
    Run(seed=0).fit(problem, steps=100, lr={"field.net": 0.02, "field.net.centres": 0.002, "logits": 0.005, "poses": 0.01}, name="fit",
                    schedule="exponential", final=0.1)
    found = problem.found(start)
    before, after = (np.median(moved.errors(case, p, np.stack(true))[0]) for p in (start.poses, found.poses))
    assert after < 0.5 * before and found.gain.mean() == pytest.approx(1, abs=1e-5)
    assert (found.worth == 1).all() and found.likeness.min() > 0.9


def test_widths_are_held() -> None:
    case, start = still(), Found.at(np.stack(STILL))
    changed = []
    for weight in (0.0, 10.0):
        problem = GaussianSliceFit(begin(case, start, 500, 0.05, 10, np.random.default_rng(0)), case, start, 9, size=weight)
        Run(seed=0).fit(problem, steps=15, lr={"field.net": 0.05}, name="fit")
        changed.append(float((problem.field.net.log_scales.detach() - problem.first).square().mean()))
    assert changed[1] < 0.3 * changed[0]


def test_a_slice_that_is_worth_nothing_does_not_count() -> None:
    case = scan(STILL, bad=(13,))
    worth = np.ones(27)
    worth[13] = 0
    start = Found(np.stack(STILL), np.ones(27), worth, np.ones(27))
    field = begin(still(), Found.at(np.stack(STILL)), 500, 0.05, 10, np.random.default_rng(0))
    clean, spoilt = (GaussianSliceFit(field, c, f, 27).losses(torch.arange(27), 0)["data"].detach() for c, f in ((still(), start), (case, start)))
    with_it = GaussianSliceFit(field, case, Found.at(np.stack(STILL)), 27).losses(torch.arange(27), 0)["data"].detach()
    assert float(spoilt) == pytest.approx(float(clean), rel=1e-4) and float(with_it) > 1.05 * float(clean)
