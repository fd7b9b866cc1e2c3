"""Classical reconstruction: known values, least squares, minima, and which method beats which."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch

from medfields.cases import Projections
from medfields.classical.asd_pocs import ASDPOCS
from medfields.classical.cgls import CGLS
from medfields.classical.fbp import FBP
from medfields.classical.os_sart import OSSART
from medfields.classical.pdhg_tv import PDHGTV
from medfields.classical.sirt import SIRT
from medfields.errors import GeometryError, InputError
from medfields.methods.pnp import PnP
from medfields.operators.projections import Projector
from medfields.solve import Run
from medfields.solve.fbp import angular_weights, filtered_backprojection, parker
from medfields.solve.tomography import LeastSquares, PrimalDualTV, RaySystem, Slopes, Sweeps, coarser, finer, noise, tv_weight, visits, worth
from medfields.space import Geometry, Grid

VALUE, CENTRE, RADIUS = 0.02, np.array([6.0, -4.0, 0.0]), 20.0
GRID = Grid.from_spacing((64, 64, 1), 1.0, (-31.5, -31.5, 0))
DEEP = Grid.from_spacing((64, 64, 3), 1.0, (-31.5, -31.5, -1))


def turns(span, n=240):
    return np.linspace(0, span, n, endpoint=False)


def fan(angles, columns=121, offset=0.0, arc=False, rows=1):
    return Geometry.cone(angles, (rows, columns), 1.5, 200.0, 320.0, offset=(0.0, offset), arc=arc)


def ball(geometry, grid=GRID):
    """Exact projections of a ball, which in its middle plane is a disc."""
    origin, direction = geometry.rays()
    away = CENTRE - origin
    along = (away * direction).sum(-1)
    chord = 2 * np.sqrt(np.maximum(RADIUS**2 - (away**2).sum(-1) + along**2, 0))
    return Projections(torch.tensor(VALUE * chord, dtype=torch.float32), geometry, grid)


SHORT = np.pi + 2 * np.arctan(90 / 320)
UNEVEN = np.random.default_rng(0).permutation(np.cumsum(np.random.default_rng(0).uniform(0.5, 1.5, 240)) * 2 * np.pi / 240)
SCANS = {
    "parallel": (Geometry.parallel(turns(np.pi), 95, 1.0), "half turn"),
    "parallel, full turn": (Geometry.parallel(turns(2 * np.pi), 95, 1.0), "half turn"),
    "parallel, on one side": (Geometry.parallel(turns(2 * np.pi), 61, 1.0, offset=20.0), "half-fan"),
    "parallel, golden": (Geometry.parallel(2.39996 * np.arange(240), 95, 1.0), "half turn"),
    "parallel, uneven and unsorted": (Geometry.parallel(UNEVEN, 95, 1.0), "half turn"),
    "fan, flat": (fan(turns(2 * np.pi)), "full turn"),
    "fan, arc": (fan(turns(2 * np.pi), arc=True), "full turn"),
    "fan, flat, half-fan": (fan(turns(2 * np.pi), 81, 40.0), "half-fan"),
    "fan, arc, half-fan, backwards": (fan(-turns(2 * np.pi), 81, -40.0, arc=True), "half-fan"),
    "fan, flat, short": (fan(turns(SHORT)), "short scan"),
    "fan, flat, short, backwards": (fan(2.0 - turns(SHORT)), "short scan"),
    "fan, arc, more than short": (fan(turns(5.2), arc=True), "short scan"),
    "cone": (fan(turns(2 * np.pi), rows=9), "full turn"),
    "cone, short": (fan(turns(SHORT), rows=9), "short scan"),
    "cone, half-fan": (fan(turns(2 * np.pi), 81, 40.0, rows=9), "half-fan"),
}


@pytest.mark.parametrize("name", SCANS)
def test_filtered_backprojection_of_a_disc_is_its_value(name):
    geometry, kind = SCANS[name]
    grid = DEEP if geometry.shape[0] > 1 else GRID
    x, told = filtered_backprojection(ball(geometry, grid))
    away = np.linalg.norm(grid.points().numpy() - CENTRE, axis=-1)[:, :, grid.shape[2] // 2]
    x = x[:, :, grid.shape[2] // 2].numpy()
    assert told == kind
    assert abs(x[away < RADIUS - 4] / VALUE - 1).max() < 0.01
    assert abs(x[away > RADIUS + 4] / VALUE).max() < 0.05


@pytest.mark.parametrize("span", [SHORT, 4.5, 6.2])
def test_parkers_weights_of_a_line_that_is_measured_twice_add_up_to_one(span):
    rng = np.random.default_rng(0)
    reach = (span - np.pi) / 2
    for angle, g in zip(rng.uniform(0, span, 200), rng.uniform(-min(reach, 0.5), min(reach, 0.5), 200), strict=True):
        total = sum(parker(np.array([b]), np.array([h]), span)[0, 0] for b, h in
                    ((angle, g), (angle + np.pi + 2 * g, -g), (angle - np.pi + 2 * g, -g)) if 0 <= b <= span)
        assert abs(total - 1) < 1e-9


def test_angular_weights():
    assert np.allclose(angular_weights(turns(np.pi, 10), np.pi), np.pi / 10)
    assert np.allclose(angular_weights(turns(2 * np.pi, 10), np.pi), np.pi / 10)  # each direction twice: they share
    assert np.allclose(angular_weights(turns(np.pi / 2, 10), np.pi), np.pi / 20)  # half is missing, and does not make the ends heavy
    assert np.isclose(angular_weights(UNEVEN, 2 * np.pi).sum(), 2 * np.pi)


REFUSED = {
    "circle": Geometry.cone(turns(6, 20), (3, 31), 2.0, 200.0, 320.0, rise=2.0),
    "tilted": Geometry.cone(turns(6, 20), (3, 31), 2.0, 200.0, 320.0, tilt=0.1),
    "rolled": Geometry.cone(turns(6, 20), (3, 31), 2.0, 200.0, 320.0, roll=0.1),
    "not turn": Geometry.fan([0.0, 0.0, 0.0], 31, 2.0, 200.0, 320.0),
}


@pytest.mark.parametrize("word", REFUSED)
def test_other_orbits_are_refused_with_a_hint(word):
    with pytest.raises(GeometryError, match=word) as found:
        filtered_backprojection(ball(REFUSED[word], DEEP))
    assert "sirt" in found.value.hint


def test_filtered_backprojection_fills_dead_pixels():
    case = ball(SCANS["parallel"][0])
    good = torch.ones_like(case.data, dtype=torch.bool)
    good[:, :, 40:42] = False
    good[17] = False
    spoilt = replace(case, data=torch.where(good, case.data, torch.nan), good=good)
    whole, repaired = (filtered_backprojection(c)[0] for c in (case, spoilt))
    zeroed = filtered_backprojection(replace(case, data=torch.where(good, case.data, 0.0)))[0]
    assert (repaired - whole).abs().max() < 0.1 * VALUE < (zeroed - whole).abs().max()


def piecewise(n=32, views=12, seed=0, sigma=0.0):
    """A lattice of flat patches, its case and the truth; made by the same matrix, so that only the algorithm is judged."""
    i = torch.arange(n) - (n - 1) / 2
    x, y = i[:, None] / n, i[None, :] / n
    truth = 0.02 * (x**2 / 0.16 + y**2 / 0.09 < 1) + 0.01 * ((x - 0.1).abs() + (y + 0.05).abs() < 0.12) - 0.01 * ((x + 0.2) ** 2 + y**2 < 0.008)
    grid = Grid.from_spacing((n, n, 1), 2.0, (-(n - 1.0), -(n - 1.0), 0))
    geometry = Geometry.parallel(turns(np.pi, views), int(1.5 * n), 2.0)
    first = Projections(torch.ones(views, 1, int(1.5 * n)), geometry, grid)
    data = first.projector().apply(truth[:, :, None].float())
    data = data + sigma * torch.randn(data.shape, generator=torch.Generator().manual_seed(seed))
    return replace(first, data=data), truth[:, :, None].float()


def error(method, case, truth):
    x = method.solve(case, Run()).data[0]
    return float((x - truth).norm() / truth.norm())


def test_slopes_have_an_exact_adjoint_and_count_per_voxel_side():
    grid = Grid.from_spacing((5, 4, 3), (2.0, 1.0, 4.0), (-4, -2, -4))
    case = Projections(torch.ones(3, 4, 9), Geometry.parallel(turns(np.pi, 3), 9, 1.0, rows=4), grid)
    slopes, rng = Slopes(RaySystem(case)), torch.Generator().manual_seed(0)
    x, p = torch.randn(grid.shape, generator=rng), torch.randn(3, *grid.shape, generator=rng)
    assert torch.isclose((slopes.apply(x) * p).sum(), (x * slopes.adjoint(p)).sum(), atol=1e-4)
    ramp = grid.points()[..., 0]  # 1 per mm along i: per side of 1 mm
    assert torch.allclose(slopes.apply(ramp)[0, :-1], torch.tensor(1.0)) and slopes.apply(ramp)[1:].abs().max() == 0


def test_sirt_lowers_the_residual_in_every_step():
    case, _ = piecewise()
    state, found = Sweeps([RaySystem(case)]), []
    for _ in range(40):
        state.step()
        found.append(float(state.residual))
    assert all(b < a for a, b in itertools.pairwise(found)) and found[-1] < 0.02


def worths(case):
    """Of each ray: a tenth counts for nothing, a tenth for 0.003, the others for up to 2."""
    share = torch.rand(case.data.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(share < 0.2, torch.where(share < 0.1, 0.0, 0.003), 2 * share)


def test_least_squares_equals_the_dense_solution():
    case, _ = piecewise(n=8, views=16, sigma=0.01)
    system = RaySystem(case, weight=worths(case))
    root = system.weight.sqrt()
    columns = [root * system.apply(e.reshape(8, 8, 1)) for e in torch.eye(64)]
    matrix = torch.stack([c.reshape(-1) for c in columns], 1).double()
    exact = torch.linalg.lstsq(matrix, (root * system.y).reshape(-1, 1).double(), driver="gelsd").solution[:, 0]
    state = LeastSquares(system)
    for _ in range(150):
        state.step()
    assert torch.isfinite(state.x).all()
    assert (state.x.reshape(-1) - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("pull", [0.0, 0.3])
def test_primal_dual_finds_the_minimum(pull, weight=0.5):
    """Against L-BFGS-B with bounds, on the cost with a total variation that is rounded by very little; with a pull, and rays of unequal worth."""
    case, truth = piecewise(n=8, views=6, sigma=0.01)
    system = RaySystem(case, weight=worths(case) if pull else None)
    worth, towards = system.weight.reshape(-1).double(), truth.flip(0).reshape(-1).double() / system.level
    matrix = torch.stack([system.apply(e.reshape(8, 8, 1)).reshape(-1) for e in torch.eye(64)], 1).double()
    slopes, y = Slopes(system), system.y.reshape(-1).double()
    turn = torch.stack([slopes.apply(e.reshape(8, 8, 1)).reshape(3, -1) for e in torch.eye(64)], -1).double()

    def cost(x, rounding=0.0):
        misfit, variation = (worth * (matrix @ x - y).square()).sum(), ((turn @ x).square().sum(0) + rounding).sqrt().sum()
        return 0.5 * misfit + weight * variation + 0.5 * pull * (x - towards).square().sum()

    def both(x):
        x = torch.tensor(x, requires_grad=True)
        value = cost(x, 1e-10)
        return float(value.detach()), torch.autograd.grad(value, x)[0].numpy()

    best = scipy.optimize.minimize(both, np.full(64, 0.3), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 64,
                                   options={"maxiter": 1000, "maxfun": 1500, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 40})
    state = PrimalDualTV(system, weight, pull=pull)
    if pull:
        state.towards = towards.float().reshape(state.x.shape)
    for _ in range(1000):
        state.step()
    found, wanted = float(cost(state.answer.reshape(-1).double())), float(cost(torch.tensor(best.x)))
    assert abs(found / wanted - 1) < 1e-4


def test_a_pull_is_part_of_the_state_and_negative_weights_are_refused():
    system = RaySystem(piecewise(n=8)[0])
    first, second = PrimalDualTV(system, 0.1, pull=0.5), PrimalDualTV(system, 0.1, pull=0.5)
    first.towards = torch.ones_like(first.x)
    first.step()
    second.load_state_dict(first.state_dict())
    for state in (first, second):
        state.step()
    assert torch.equal(first.x, second.x) and (first.x - first.towards).norm() < first.towards.norm()
    assert "towards" not in PrimalDualTV(system, 0.1).state_dict()
    for weight, pull in ((-1.0, 0.0), (0.1, -1.0)):
        with pytest.raises(InputError, match="neither can be negative"):
            PrimalDualTV(system, weight, pull=pull)


def test_total_variation_counts_alike_in_any_unit_and_voxel_size():
    case, _ = piecewise(sigma=0.01)
    grid = Grid.from_spacing(case.grid.shape, 0.5, (-(31 / 4), -(31 / 4), 0))
    small = Projections(5 * case.data, Geometry.parallel(turns(np.pi, 12), 48, 0.5), grid)  # a quarter of the size, 20 times the attenuation
    a, b = (PDHGTV(weight=0.2, steps=60).solve(c, Run()).data for c in (case, small))
    assert (b / 20 - a).abs().max() < 1e-3 * a.max()


def test_which_method_beats_which_on_flat_patches():
    case, truth = piecewise()
    methods = FBP(), SIRT(steps=100), PDHGTV(weight=0.01, steps=400, finer=1, subrays=1), ASDPOCS(rounds=60)
    fbp, sirt, tv, asd = (error(m, case, truth) for m in methods)
    assert tv < 0.5 * sirt and asd < 0.7 * sirt and sirt < 0.7 * fbp


def test_a_finer_lattice_explains_edges_that_voxels_cut():
    """A disc whose border runs through voxels: coarse ones cannot explain its projections."""
    geometry = Geometry.parallel(turns(np.pi, 12), 47, 2.0)
    grid = Grid.from_spacing((32, 32, 1), 2.0, (-31.0, -31.0, 0.0))
    wide = ball(geometry.finer(8), grid).data.reshape(12, 1, 47, 8).mean(-1)  # what a pixel sees is the mean over its width
    case = Projections(wide, geometry, grid)
    points = Grid.from_spacing((256, 256, 1), 0.25, (-31.875, -31.875, 0.0)).points().numpy()
    inside = torch.tensor(np.linalg.norm((points - CENTRE)[..., :2], axis=-1) < RADIUS, dtype=torch.float32)
    truth = VALUE * inside.reshape(32, 8, 32, 8).mean((1, 3))[..., None]
    coarse, fine = (error(PDHGTV(steps=300, finer=n, subrays=2 * n - 1), case, truth) for n in (1, 2))
    assert fine < 0.7 * coarse


@pytest.mark.parametrize(("grid", "cut"), [(GRID, (2, 2, 1)), (DEEP, (2, 2, 1))], ids=["slice", "thin stack"])
def test_finer_and_coarser_cut_voxels_across_the_rows(grid, cut):
    case = ball(Geometry.parallel(turns(np.pi, 8), 95, 1.0, rows=grid.shape[2]), grid)
    fine = finer(case, 2)
    assert fine.grid.shape == tuple(n * c for n, c in zip(grid.shape, cut, strict=True))
    assert np.allclose(fine.grid.corners(), grid.corners())
    values = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    doubled = values
    for axis, n in enumerate(cut):
        doubled = doubled.repeat_interleave(n, axis)
    assert torch.allclose(coarser(doubled, case, 2), values) and finer(case, 1) is case


def test_subsets_do_in_few_sweeps_what_one_does_in_many():
    case, truth = piecewise()
    assert error(OSSART(sweeps=10, subsets=6), case, truth) < error(SIRT(steps=20), case, truth)


@pytest.mark.parametrize("order", ["golden", "bit-reversed", "as measured"])
def test_every_subset_is_visited_once_and_together_they_are_the_whole(order):
    assert all(sorted(visits(n, order)) == list(range(n)) for n in (1, 2, 3, 7, 10, 16))
    case, _ = piecewise()
    parts = RaySystem(case).subsets(5, order)
    assert sum(p.y.numel() for p in parts) == case.data.numel()
    weighted = RaySystem(case, weight=worths(case))
    assert torch.isclose(sum(p.weight.sum() for p in weighted.subsets(5, order)), weighted.weight.sum())
    assert len(RaySystem(case).subsets(100, order)) == case.geometry.views


@pytest.mark.parametrize("method", [SIRT(steps=5), CGLS(steps=3), OSSART(sweeps=2), PDHGTV(steps=20), ASDPOCS(rounds=2)])
def test_iterative_methods_ignore_dead_pixels_and_take_volumes_and_wide_pixels(method):
    grid = Grid.from_spacing((10, 9, 4), (2.0, 2.0, 3.0), (-9, -8, -4.5))
    geometry = Geometry.cone(turns(6.0, 8), (5, 12), 4.0, 60.0, 100.0, rise=5.0)
    case = Projections(torch.ones(8, 5, 12), geometry, grid)
    case = replace(case, data=case.projector().apply(0.01 * torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))))
    good = torch.rand(case.data.shape, generator=torch.Generator().manual_seed(1)) > 0.2
    a, b = (replace(method, subrays=2).solve(replace(case, data=torch.where(good, case.data, bad), good=good), Run()).data
            for bad in (torch.nan, torch.tensor(7.0)))
    assert torch.equal(a, b) and torch.isfinite(a).all() and a.max() > 0


def test_noise_is_estimated_and_raises_the_weight():
    clean, _ = piecewise(n=64, views=20)
    noisy, _ = piecewise(n=64, views=20, sigma=0.02)
    for case, sigma in ((clean, 0.0), (noisy, 0.02)):
        system = RaySystem(case)
        assert abs(noise(system) * system.level * system.side - sigma) < 0.005
    assert tv_weight(RaySystem(noisy)) > tv_weight(RaySystem(clean)) > 0


def test_without_noise_the_weight_falls_with_the_area_of_the_voxels():
    """On half the pixel's side what the lattice cannot explain is a quarter."""
    smooth = Geometry.parallel(turns(np.pi, 12), 47, 2.0)
    case = Projections(torch.ones(12, 1, 47), smooth, Grid.from_spacing((32, 32, 1), 2.0, (-31.0, -31.0, 0.0)))
    assert tv_weight(RaySystem(case)) == pytest.approx(0.7) and tv_weight(RaySystem(finer(case, 2), 4)) == pytest.approx(0.175)


def test_rays_that_few_photons_pass_count_less() -> None:
    """By exp(-y), 1 on average over the trusted; with equal worth the middle of a dense body is noisier, whatever the penalty."""
    rng = np.random.default_rng(0)
    grid = Grid.from_spacing((48, 48, 1), 4.0, (-94.0, -94.0, 0.0))
    x = grid.points()[..., :2]
    truth = 0.03 * ((x / torch.tensor([92.0, 60.0])).square().sum(-1) < 1).float()
    geometry = Geometry.parallel(np.arange(30) * np.pi / 30, 69, 4.0)
    clean = Projector(grid, geometry).apply(truth).double().numpy()
    counted = rng.poisson(3e3 * np.exp(-clean)).clip(1)
    case = Projections(torch.tensor(-np.log(counted / 3e3), dtype=torch.float32), geometry, grid, photons=3e3)
    errors = {p: (PDHGTV(steps=100, finer=1).solve(replace(case, photons=p), Run()).data[0] - truth).square().mean().item() for p in (0.0, 3e3)}
    assert errors[3e3] < 0.8 * errors[0.0], errors
    told = [PnP(start=10, steps=4, finer=1).solve(replace(case, photons=p), Run()).data for p in (0.0, 3e3)]
    assert not torch.allclose(*told)
    good = torch.ones(case.data.shape, dtype=torch.bool)
    good[:, :, :30] = False
    shares = worth(replace(case, good=good))
    assert float(shares[good].mean()) == pytest.approx(1.0, abs=1e-4) and not shares[~good].any()
    assert torch.allclose((shares * case.data.exp())[good], (shares * case.data.exp())[good][0].expand(int(good.sum())), rtol=1e-4)
    assert torch.equal(worth(replace(case, photons=0.0)), case.weight)
