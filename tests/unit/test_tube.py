"""The tube chart: round trips, frames without twist, true slopes; what overlaps is refused; a displacement in a tube; the phantom."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from medfields.cases import Pair
from medfields.errors import GeometryError, InputError
from medfields.evaluate.simulate_tube import Bowel, Wave, peristalsis
from medfields.fields import Siren, Tube, displacement
from medfields.fields.tube import InTube
from medfields.io import read_field, write_field
from medfields.methods.geometry_informed import GeometryInformed, Tubular
from medfields.solve import Run
from medfields.space import Box
from medfields.space.tube import TubeChart

T = np.linspace(0, 1, 60)
LINE = np.stack([3 + 0 * T, -5 + 0 * T, 80 * T], 1)
HELIX = np.stack([40 * np.cos(4 * T), 40 * np.sin(4 * T), 60 * T], 1)
S_CURVE = np.stack([0 * T, 30 * np.sin(2 * np.pi * T), 192 * T], 1)
CURVES = {"line": LINE, "helix": HELIX, "S": S_CURVE}


def in_tube(n: int = 2000, seed: int = 0) -> torch.Tensor:
    """Random tube coordinates, up to the tube's border and over both added ends."""
    q = 2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1
    return q * torch.tensor([0.999, 0.35, 0.35])


@pytest.mark.parametrize("name", CURVES)
def test_round_trip(name: str) -> None:
    chart = TubeChart(CURVES[name], 15.0, slack=0.02)
    q = in_tube()
    x = chart.to_world(q)
    assert (chart.from_world(x) - q).abs().max() < 2e-6
    assert (chart.to_world(chart.from_world(x)) - x).norm(dim=-1).max() < 2e-4  # mm


@pytest.mark.parametrize("name", CURVES)
def test_frames_are_orthonormal_and_the_slope_is_true(name: str) -> None:
    chart = TubeChart(CURVES[name], 15.0, slack=0.02)
    q = in_tube(200)
    j = chart.jacobian(q)
    axes = j / j.norm(dim=-2, keepdim=True)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(3).expand(200, 3, 3), atol=2e-5, rtol=0)  # so no twist either: U', V' have no part across
    torch.testing.assert_close(j[..., 1:].norm(dim=-2), torch.full((200, 2), 30.0), atol=1e-3, rtol=0)
    by_autograd = torch.stack([torch.autograd.functional.jacobian(chart.to_world, p) for p in q[:8]])
    torch.testing.assert_close(by_autograd, j[:8], atol=1e-3, rtol=1e-5)
    back = torch.stack([torch.autograd.functional.jacobian(chart.from_world, p) for p in chart.to_world(q[:8])])
    torch.testing.assert_close(back @ j[:8], torch.eye(3).expand(8, 3, 3), atol=2e-4, rtol=0)


def test_a_straight_tube_in_closed_form() -> None:
    chart = TubeChart(LINE, 10.0, extend=0.25)
    assert (chart.length, chart.span) == pytest.approx((80, 60), rel=1e-5)
    x = chart.to_world(torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0], [0, 0.5, 0]]))
    torch.testing.assert_close(x[:3], torch.tensor([[3.0, -5, -20], [3, -5, 40], [3, -5, 100]]), atol=1e-3, rtol=0)
    assert (x[3] - x[1]).norm() == pytest.approx(10.0, rel=1e-5)  # half the plane is the tube


def test_a_planar_curve_keeps_its_binormal() -> None:
    chart = TubeChart(S_CURVE, 15.0)
    across = chart.pieces[:, 0, 3:].reshape(-1, 2, 3)
    out_of_plane = across[..., 0]  # of U and V, along the binormal x
    torch.testing.assert_close(out_of_plane, out_of_plane[:1].expand_as(out_of_plane), atol=1e-6, rtol=0)


def test_a_helix_turns_by_its_torsion() -> None:
    """Against the frame of Frenet, a frame without twist turns by the integral of the torsion, b / (a^2 + b^2) along a helix."""
    a, b = 40.0, 15.0
    angle = np.linspace(0, 4, 400)
    chart = TubeChart(np.stack([a * np.cos(angle), a * np.sin(angle), b * angle], 1), 15.0, slack=1e-4)
    at = torch.linspace(-0.6, 0.6, 50)
    q = torch.stack([at, torch.zeros(50), torch.zeros(50)], 1)
    p, j = chart.to_world(q), chart.jacobian(q)
    normal = -p * torch.tensor([1.0, 1.0, 0.0]) / a
    binormal = torch.linalg.cross(j[..., 0] / j[..., :1].norm(dim=-2), normal)
    turned = np.unwrap(torch.atan2((j[..., 1] * binormal).sum(-1), (j[..., 1] * normal).sum(-1)).numpy())
    torsion = b / (a**2 + b**2)
    np.testing.assert_allclose(turned - turned[0], -torsion * chart.span * (at - at[0]).numpy(), atol=5e-3)
    assert chart.reach == pytest.approx((a**2 + b**2) / a, rel=0.06)  # a natural spline bends more before its straight ends


def test_what_overlaps_is_refused() -> None:
    angle = np.linspace(0, np.pi, 60)
    arc = np.stack([20 * np.cos(angle), 20 * np.sin(angle), 0 * angle], 1)
    with pytest.raises(GeometryError, match=r"radius 19 mm overlaps itself.*within a radius of 1[89]\.\d mm"):
        TubeChart(arc, 19.0, slack=1e-4)
    assert TubeChart(arc, 15.0, slack=1e-4).reach == pytest.approx(20, rel=0.06)
    hairpin = np.concatenate([[[25.0, -y, 0] for y in np.linspace(100, 1, 40)], [[25 * np.cos(v), 25 * np.sin(v), 0] for v in angle],
                              [[-25.0, -y, 0] for y in np.linspace(1, 100, 40)]])
    assert TubeChart(hairpin, 15.0, slack=0.01).reach == pytest.approx(25, rel=0.15)  # half the distance of the strands
    for points, radius in ((LINE[:1], 10.0), (LINE, 0.0), (LINE * np.nan, 10.0), (np.zeros((6, 3)), 10.0), (LINE[:3], 10.0)):
        with pytest.raises(InputError):
            TubeChart(points, radius)


def test_smoothing_takes_noise_away_and_a_polynomial_needs_two_points() -> None:
    noisy = HELIX + np.random.default_rng(0).normal(0, 0.3, HELIX.shape)
    chart = TubeChart(noisy, 15.0)
    off = chart.to_world(torch.tensor([[0.0, 0, 0]])) - torch.tensor([40 * np.cos(2.0), 40 * np.sin(2.0), 30.0], dtype=torch.float32)
    assert off[0, :2].norm() < 1.5 and chart.reach > 35
    assert TubeChart(LINE[[0, -1]], 10.0, "polynomial").length == pytest.approx(80)
    assert TubeChart(HELIX, 15.0, "polynomial").reach == pytest.approx(45.6, rel=0.02)  # (40^2 4^2 + 60^2) / (40 4^2)


def test_fade_and_its_slope() -> None:
    chart = TubeChart(HELIX, 30.0)
    assert 0.5 < chart.rim < 0.75  # the helix cannot serve two radii
    body = chart.length / 2 / chart.span
    fade = chart.fade(torch.tensor([[body - 1e-3, 0.3, 0.39], [0.0, chart.rim, 0.0], [1.0, 0, 0], [-1.0, 0, 0], [0.0, 0, -0.999]]))[0]
    assert fade[:, 0].tolist() == [1, 0, 0, 0, 0]
    q = 2 * torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    q = (q * torch.tensor([1.0, 0.6, 0.6])).requires_grad_()
    value, slope = chart.fade(q)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), q)[0], slope)
    assert (slope != 0).any(0).all()


@pytest.mark.parametrize("even", [True, False])
def test_a_displacement_in_a_tube(tmp_path: Path, even: bool) -> None:
    """It moves by what the network says, in tube coordinates; has true slopes; is nothing far away; and lives in a file."""
    box = Box((-60.0, -60.0, -20.0), (60.0, 60.0, 80.0))
    field = displacement(Tube.along(HELIX, 15.0, Siren(width=16, depth=2, omega_first=4, omega=4), even=even), box, seed=0)
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(0.3)  # so that points stay in the tube
    net = field.net
    assert isinstance(net, InTube)
    q = in_tube(300) * torch.tensor([0.6, 1, 1])
    x = net.chart.to_world(q)
    units = torch.tensor([net.chart.span, 30.0, 30.0]) / 60 if even else torch.ones(3)
    d = net.inner(units * q) / units
    torch.testing.assert_close(net.chart.from_world(x + field(x)), q + d, atol=1e-5, rtol=0)
    assert d.abs().max() > 1e-3
    far = torch.tensor([[0.0, 0.0, 30.0], [59.0, -59.0, -19.0]])
    assert torch.equal(field(far), torch.zeros(2, 3)) and torch.equal(field.value_and_jacobian(far)[1], torch.zeros(2, 3, 3))
    near = net.chart.to_world(in_tube(300, 1) * torch.tensor([1.0, 2, 2]))  # the fading part too
    u, j = field.value_and_jacobian(near)
    torch.testing.assert_close(u, field(near), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        steps = 0.1 * torch.eye(3)
        slopes = torch.stack([(field(near + h) - field(near - h)) / 0.2 for h in steps], -1)
    assert (slopes - j).abs().median() < 2e-3 and (slopes - j).abs().max() < 0.03 and j.abs().max() > 0.1
    with pytest.raises(InputError, match="order 2"):
        field.value_jacobian_hessian(x)
    write_field(field, tmp_path / "a.field")
    assert torch.equal(read_field(tmp_path / "a.field")(near), field(near))
    with pytest.raises(InputError, match="three numbers"):
        Tube((0.0,) * 7, 10.0, Siren())


def test_the_volume_penalty_in_the_world_is_that_of_the_field() -> None:
    pair = Pair.toy()
    method = dataclasses.replace(GeometryInformed.for_tests(), penalty="image")
    assert isinstance(method, GeometryInformed) and pair.centreline is not None
    spec = Tube.along(pair.centreline, pair.tube_radius, method.net)
    problem = Tubular(pair.displacement(spec, seed=0), spec.chart, pair, method)
    at = torch.arange(200)
    stated = float(problem.losses(at, 0.0)["volume"].detach()) / method.weight
    j = problem.field.value_and_jacobian(problem.x[at])[1] + torch.eye(3)
    assert stated == pytest.approx(float((torch.linalg.det(j) - 1).abs().mean().detach()), rel=1e-3)


def test_what_the_method_refuses() -> None:
    pair = Pair.toy()
    method = GeometryInformed.for_tests()
    for parts in ({"centreline": None}, {"tube_radius": 0.0}):
        with pytest.raises(InputError, match="--tube-radius 15"):
            method.solve(pair.replaced(**parts), Run())
    assert pair.centreline is not None
    with pytest.raises(GeometryError, match="only 0 voxels"):
        method.solve(pair.replaced(centreline=pair.centreline + 500), Run())


def test_the_phantom_moves_as_it_says() -> None:
    """The motion has an inverse; the moving image seen through it is the fixed one; and without it is not."""
    wave = Wave(Bowel())
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-15, 15, (500, 1)), rng.uniform(-90, 90, (500, 2))], 1)
    rest = wave.at_rest(x, 0.0)
    np.testing.assert_allclose(wave.from_rest(rest, 0.0), x, atol=1e-3)
    assert 2 < np.linalg.norm(rest - x, axis=1).max() < 12
    pair, truth, tube = peristalsis(1, shape=(10, 32, 48), spacing=4.0, noise=0.0)
    inside = tube.data[0] > 0.5
    points = pair.grid.points()
    seen = pair.moving(points + truth.data.movedim(0, -1))[..., 0]
    apart, before = ((image - pair.fixed.data[0])[inside].abs().mean() for image in (seen, pair.moving.data[0]))
    assert before > 0.05 and apart < 0.5 * before
    again = peristalsis(1, shape=(10, 32, 48), spacing=4.0, noise=0.0)[0]
    assert again.fingerprint() == pair.fingerprint()
