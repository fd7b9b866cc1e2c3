"""Gaussians, poses and energies: closed forms against integration, finite differences and truths that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medfields.cases import Projections
from medfields.classical.li_mar import LinearInterpolationMAR
from medfields.errors import InputError
from medfields.fields import MLP, Field, Gaussians, GridEncoding, Positive
from medfields.kernels.splat import point_sums, point_sums_torch, ray_sums, ray_sums_torch
from medfields.methods.gaussians import GaussianSplats
from medfields.methods.polyner import Polyner, SpectralFit
from medfields.methods.scnf import SCNF
from medfields.operators.projections import LineIntegral
from medfields.operators.spectrum import Spectrum
from medfields.operators.splat import SplatProjector
from medfields.solve import Run
from medfields.solve.moving import MovingFit
from medfields.solve.projections import ProjectionFit
from medfields.solve.splat import SplatFit, begin, densified
from medfields.space import Box, Geometry

ANGLES = np.linspace(0, 5, 3)
BEAMS = {
    "parallel": Geometry.parallel(ANGLES, 20, 4.0, rows=12, offset=2.0),
    "cone": Geometry.cone(ANGLES, (12, 20), 4.0, 150.0, 250.0, offset=(2.0, 3.0), roll=0.1, tilt=0.1),
    "arc": Geometry.cone(ANGLES, (12, 20), 4.0, 100.0, 200.0, arc=True),
    "slice": Geometry.fan(ANGLES, 60, 2.0, 150.0, 250.0),
}


def _field(flat: bool, count: int = 60) -> Field:
    side = 0.5 if flat else 24.0
    field = Field(Gaussians(count, flat), Box((-30, -26, -side), (30, 26, side)), scale=0.02, seed=3)
    with torch.no_grad():
        field.net.log_scales.sub_(0.4)
    return field


@pytest.mark.parametrize("beam", BEAMS)
def test_ray_sums_are_the_integrals(beam):
    """In closed form as by midpoints every mm: to 1e-6 for the twin, and for the kernel to what it leaves out beyond 4.3 deviations."""
    field, geometry = _field(beam == "slice"), BEAMS[beam]
    side = 0.5 if beam == "slice" else 90.0
    walk = LineIntegral(Box((-90, -90, -side), (90, 90, side)), 1.0).eval()
    c, a, w = (t.detach() for t in (*field.net.places(), field.scale * field.net.weights[:, 0]))
    exactly = lambda x: point_sums_torch(((x - field.centre) / field.radius).reshape(-1, 3).double(), c.double(), a.double(), w.double()[:, None])  # noqa: E731
    with torch.no_grad():
        rays = {k: v.double() if v.is_floating_point() else v for k, v in geometry.at(torch.arange(geometry.size)).items()}
        numeric = walk(lambda x: exactly(x).reshape(*x.shape[:-1], 1), rays).reshape(geometry.views, *geometry.shape)
    projector = SplatProjector(field.box, geometry)
    twin, kernel = ray_sums_torch(c.double(), a.double(), w.double(), projector.table), projector(field).detach()
    assert (twin - numeric).abs().max() < 1e-6 * numeric.max()
    assert (kernel - twin).abs().max() < 3e-4 * twin.max()
    assert (projector(field, torch.tensor([2, 0])) - kernel[[2, 0]]).abs().max() == 0


@pytest.mark.parametrize("beam", BEAMS)
def test_gradients_of_ray_sums(beam):
    """The twin's are finite differences; the kernel's are the twin's."""
    field, table = _field(beam == "slice", 8), SplatProjector(_field(beam == "slice").box, BEAMS[beam].subset([1])).table
    given = [t.detach() for t in (*field.net.places(), field.net.weights[:, 0])]
    weight = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    double = [t.double().requires_grad_() for t in given]
    wanted = torch.autograd.grad((ray_sums_torch(*double, table) * weight).sum(), double)
    with torch.no_grad():
        for k, g in enumerate(wanted):
            step = torch.zeros(double[k].shape, dtype=torch.float64)
            at = int(g.abs().argmax())
            step.reshape(-1)[at] = 1e-6
            ends = [ray_sums_torch(*(t + s * step if i == k else t for i, t in enumerate(double)), table) for s in (1, -1)]
            slope = float(((ends[0] - ends[1]) * weight).sum() / 2e-6)
            assert abs(slope - float(g.reshape(-1)[at])) < 1e-5 * abs(slope)
    single = [t.clone().requires_grad_() for t in given]
    got = torch.autograd.grad((ray_sums(*single, table) * weight).sum(), single)
    for g, w in zip(got, wanted, strict=True):
        assert (g - w).abs().max() < 3e-3 * w.abs().max()


@pytest.mark.parametrize("flat", [True, False])
def test_point_sums_and_their_gradients(flat):
    net = _field(flat).net
    given = [t.detach() for t in (*net.places(), torch.cat([net.weights, 2 * net.weights], 1))]
    x = torch.rand(700, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[:, 2] *= not flat
    single, double = [t.clone().requires_grad_() for t in given], [t.double().requires_grad_() for t in given]
    y, wanted = point_sums(x, *single), point_sums_torch(x.double(), *double)
    assert (y - wanted).abs().max() < 3e-4 * wanted.max()
    part = point_sums(x[5:200], *single)
    assert torch.equal(part, y[5:200]), "a value does not depend on which others are asked for"
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    for g, w in zip(torch.autograd.grad((y * weight).sum(), single), torch.autograd.grad((wanted * weight).sum(), double), strict=True):
        assert (g - w).abs().max() < 3e-3 * w.abs().max()


def test_splitting_hardly_changes_the_field():
    """More Gaussians, the same function but for the faint ones that go: mass and longest variance are kept."""
    case = Projections.toy()
    problem = SplatFit(begin(case, 80, 10, torch.Generator().manual_seed(0)), case)
    more = densified(problem, 120)
    x = case.grid.points()
    before, after = problem.field(x).detach(), more(x).detach()
    assert more.spec.count == 120 and len(more.net.centres) == 120
    assert (after - before).square().mean().sqrt() < 0.1 * before.square().mean().sqrt()
    assert float(after.sum() / before.sum()) == pytest.approx(1, abs=0.02)


def test_gaussians_explain_the_projections():
    """Steps lower the misfit to less than half of its start, and densifying none of the times is a choice, none of the Gaussians is not."""
    case = Projections.toy()
    start = SplatFit(begin(case, 200, 10, torch.Generator().manual_seed(0)), case).misfit(slice(None))
    for densify in (0, 1):
        field = GaussianSplats(count=200, densify=densify, steps=40, start=10).solve(case, Run())
        assert SplatFit(field, case).misfit(slice(None)) < start / 2
    with pytest.raises(InputError, match="count"):
        GaussianSplats(count=0, densify=0)


def _moved(views: int = 30) -> tuple[Projections, Projections, np.ndarray]:
    """The toy as it was seen while it moved, the same with the views that were right, and how it moved [V, 6]."""
    case, rng = Projections.toy(views=views), np.random.default_rng(1)
    poses = np.zeros((views, 6))
    poses[:, 2], poses[:, 3:5] = np.radians(rng.uniform(-3, 3, views)), rng.uniform(-4, 4, (views, 2))
    poses -= poses.mean(0)
    turn = np.stack([[[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]] for a in poses[:, 2]])
    still = case.geometry.moved(turn, -np.einsum("nij,nj->ni", turn, poses[:, 3:]), case.box().centre)
    return case, replace(case, geometry=case.geometry.moved(turn.transpose(0, 2, 1), poses[:, 3:], case.box().centre)), poses, still


def test_poses_carry_rays_as_a_moved_geometry():
    """x -> R (x - c) + c + t of the subject is the inverse of the rays."""
    case, _, poses, still = _moved(6)
    problem = MovingFit(Positive(MLP(GridEncoding(3, 2.0, 16.0, 10), 16, 1), "softplus", 3.0), case, 64)
    with torch.no_grad():
        problem.moves.copy_(torch.tensor(poses[:, 2:5]) / problem.scale)
    np.testing.assert_allclose(problem.poses().detach().numpy(), poses, atol=1e-5)
    index = torch.arange(0, case.geometry.size, 7)
    got, wanted = problem.carried(case.geometry.at(index)), still.at(index)
    for key in ("origin", "direction"):
        torch.testing.assert_close(got[key], wanted[key], rtol=0, atol=1e-3)
    problem.anchor = "first"
    assert problem.poses()[0].abs().max() == 0


def test_scnf_finds_poses():
    """A subject at rest, seen by views that were elsewhere than the geometry says, which is the same to the data as a subject that moved:
    with poses the misfit falls to less than half of what it is without, and shifts across the rays are found to less than half."""
    _, seen, poses, _ = _moved(40)
    # `seen` holds the data of the right geometry under views moved by the poses, so the subject seems moved by them.
    found = {}
    for motion in (False, True):
        run = Run()
        SCNF(levels=5, features=2, log2_table=12, width=32, steps=160, rays=512, motion=motion).solve(seen, run)
        found[motion] = (run.stages[-1]["terms"]["data"], run.notes)
    assert found[True][0] < found[False][0] / 2
    got = np.array(found[True][1]["poses"])
    angle = np.linspace(0, np.pi, 40, endpoint=False)
    across = lambda p: p[:, 3] * np.cos(angle) + p[:, 4] * np.sin(angle)  # noqa: E731
    frame = np.stack([np.cos(angle), np.sin(angle)], 1)
    apart = across(got - poses)
    apart = apart - frame @ np.linalg.lstsq(frame, apart, rcond=None)[0]
    assert apart.std() < across(poses).std() / 2
    assert "poses" not in found[False][1]


NET = Positive(MLP(GridEncoding(4, 2.0, 16.0, 10), 16, 1), "squareplus", 3.0)


def test_one_energy_is_the_plain_model():
    """-log(1 exp(-p)) = p: the same losses for the same weights, through the lattice and along rays."""
    case = Projections.toy()
    for rays in (0, 50):
        torch.manual_seed(0)
        plain = ProjectionFit(NET, case, rays=rays).eval()
        torch.manual_seed(0)
        spectral = SpectralFit(NET, case, Spectrum((70.0,), (1.0,)), 0.2, rays).eval()
        batch = plain.batch(torch.Generator().manual_seed(0))
        torch.testing.assert_close(spectral.losses(batch, 0.0), plain.losses(batch, 0.0), rtol=1e-5, atol=0)


def test_energies_are_held_together_outside_metal_only():
    case = Projections.toy()
    problem = SpectralFit(NET, case, case.spectrum, 0.2, 0)
    inside = (case.metal.data[0] > 0.5).reshape(-1)
    with torch.no_grad():
        values = torch.full((len(inside), 7), 0.02)
        values[inside] *= torch.arange(1.0, 8.0)
    problem.field.forward = lambda x: values
    assert float(problem.losses(None, 0.0)["smoothness"]) == 0
    with torch.no_grad():
        values[~inside, 3:] += 0.01
    expected = 0.2 * 0.01 / case.water * float((~inside).float().mean())
    assert float(problem.losses(None, 0.0)["smoothness"]) == pytest.approx(expected, rel=1e-4)


def test_polyner_returns_the_energy_next_to_the_mean():
    case = replace(Projections.toy(), spectrum=Spectrum((40.0, 60.0, 100.0), (0.2, 0.6, 0.2)))
    run = Run()
    field = Polyner(net=NET, steps=3).solve(case, run)
    assert run.notes["energy"] == 60.0 and field.channels == 1
    with pytest.raises(InputError, match="spectrum"):
        Polyner(net=NET, steps=3).solve(replace(case, spectrum=None), Run())
    Polyner(net=NET, steps=3, monochromatic=True).solve(replace(case, spectrum=None), Run())


def test_linear_interpolation_removes_streaks():
    """Rays through metal that read nonsense: what lies outside the metal is nearer to the clean image by more than half."""
    case = Projections.toy(views=40)
    clean = LinearInterpolationMAR().solve(replace(case, metal=case.metal.with_data(case.metal.data * 0)), Run()).data
    trace = case.projector().apply(case.metal.data[0]) > 0.05
    spoilt = replace(case, data=torch.where(trace, case.data * 0.3, case.data))
    got = LinearInterpolationMAR().solve(spoilt, Run()).data
    raw = LinearInterpolationMAR().solve(replace(spoilt, metal=case.metal.with_data(case.metal.data * 0)), Run()).data
    out = case.metal.data < 0.5
    assert (got - clean)[out].square().mean() < 0.25 * (raw - clean)[out].square().mean()
    assert torch.equal(got[~out], raw[~out]), "the metal is put back"
    with pytest.raises(InputError, match="metal"):
        LinearInterpolationMAR().solve(replace(case, metal=None), Run())


def test_bells_that_do_not_adapt_stay_as_they_start() -> None:
    case = Projections.toy(0)
    method = GaussianSplats(count=60, densify=0, steps=12, start=5, adapt=False)
    rng = Run().generator("start")
    start, found = begin(case, 60, 5, rng).net, method.solve(case, Run()).net
    assert torch.equal(start.centres, found.centres.cpu()) and torch.equal(start.log_scales, found.log_scales.cpu())
    assert not torch.equal(start.densities, found.densities.cpu())
