"""SCOPE, CoIL, Kim and NAF: what each adds to filtered backprojection, on small phantoms; and the dense views they share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medfields.cases import Projections
from medfields.errors import GeometryError, InputError
from medfields.fields import MLP, Field, Fourier, Harmonics, Positive
from medfields.methods.coil import CoIL
from medfields.methods.kim import Kim
from medfields.methods.naf import NAF
from medfields.methods.scope import SCOPE
from medfields.solve import Method, Run
from medfields.solve.fbp import filtered_backprojection
from medfields.solve.views import closed, denser, reprojected
from medfields.space import Geometry, Grid, Volume

TURN = 2 * np.pi


def shifted_disc(geometry: Geometry, shape: tuple[int, int, int] = (32, 32, 1), mm: float = 2.0) -> tuple[Projections, Volume]:
    """A ball (of a slice: a disc) beside the axis, its projections, and the truth."""
    grid = Grid.from_spacing(shape, mm, [-(n - 1) / 2 * mm for n in shape])
    x = grid.points()
    inside = ((x[..., 0] - 4).square() + (x[..., 1] + 6).square() + (x[..., 2].square() if shape[2] > 1 else 0)).sqrt() < 0.25 * shape[0] * mm
    truth = Volume(0.02 * inside.float(), grid)
    case = Projections(torch.zeros(geometry.views, *geometry.shape) + 1, geometry, grid)
    return replace(case, data=case.projector(2 if shape[2] == 1 else 1).apply(truth.data[0])), truth


def fan(views: int = 16, span: float = TURN, arc: bool = False) -> Geometry:
    return Geometry.fan(np.linspace(0, span, views, endpoint=False), 49, 3.0, 120.0, 200.0, arc=arc)


def error(found: Field | Volume | torch.Tensor, truth: Volume) -> float:
    """Root mean square over the truth's maximum."""
    if isinstance(found, Field):
        found = found.on(truth.grid).volume()
    data = found.data if isinstance(found, Volume) else found
    return float((data.reshape(-1) - truth.data.reshape(-1)).square().mean().sqrt() / truth.data.max())


def solved(method: Method, case: Projections) -> Field | Volume:
    return method.solve(case, Run(device="cpu"))


GEOMETRIES = {
    "parallel": Geometry.parallel(np.linspace(0, np.pi, 9, endpoint=False), 33, 2.0),
    "parallel, shifted detector": Geometry.parallel(np.linspace(0, np.pi, 9, endpoint=False), 37, 2.0, offset=1.2, isocentre=(3.0, -5.0, 1.0)),
    "parallel, whole turn": Geometry.parallel(np.linspace(0, TURN, 9, endpoint=False), 33, 2.0),
    "fan": fan(),
    "arc": fan(arc=True),
    "cone": Geometry.cone(np.linspace(0.3, 0.3 + TURN, 9, endpoint=False), (9, 33), 3.0, 120.0, 200.0, offset=(0.0, 4.0)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_dense_views_are_those_of_the_same_gantry_at_more_angles(name: str) -> None:
    g = GEOMETRIES[name]
    path = denser(g, 4)
    assert path.geometry.views == 4 * g.views and path.closing is not None
    kept = path.geometry.subset(path.measured)
    for part in ("source", "centre", "u", "v"):
        assert np.allclose(getattr(kept, part), getattr(g, part), atol=1e-9)
    # Every fourth dense view is measured; the others, taken for measured ones, lead to the same gantry.
    again = denser(path.geometry.subset(slice(2, None, 4)), 2).geometry
    shifted = path.geometry.subset(np.r_[2 : 4 * g.views : 2])
    assert np.allclose(again.centre[:-1], shifted.centre, atol=1e-6) and np.allclose(again.u[:-1], shifted.u, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in GEOMETRIES if n != "cone"])
def test_the_view_that_closes_a_turn_is_the_first_one_or_its_mirror_image(name: str) -> None:
    case, truth = shifted_disc(GEOMETRIES[name])
    path = denser(case.geometry, 2)
    data, weight, angle = closed(case, path)
    assert path.closing is not None
    assert angle[-1] == pytest.approx(np.pi if name.startswith("parallel") and "whole" not in name else TURN)
    expected = replace(case, data=case.data[:1] + 1, geometry=path.closing[1]).projector(2).apply(truth.data[0])[0]
    seen = weight[-1] > 0
    assert seen.float().mean() > 0.9
    assert float(((data[-1] - expected)[seen]).abs().max()) < 0.12 * float(expected.max())  # a step of a whole view would be 4 times that
    assert float(((data[-1] - expected)[seen]).abs().mean()) < 0.01 * float(expected.max())


def test_views_in_any_order_are_put_in_order() -> None:
    g = Geometry.parallel(np.linspace(0, np.pi, 8, endpoint=False), 33, 2.0)
    mixed = np.array([3, 0, 7, 5, 1, 6, 2, 4])
    path = denser(g.subset(mixed), 3)
    assert np.allclose(path.geometry.subset(path.measured).u, g.u[mixed])
    assert np.allclose(np.diff(path.angle), np.pi / 24)


def test_a_part_of_a_turn_is_not_closed() -> None:
    path = denser(fan(10, np.pi), 3)
    assert path.closing is None and path.geometry.views == 9 * 3 + 1 and path.angle[-1] == pytest.approx(0.9 * np.pi)


@pytest.mark.parametrize(("geometry", "what"), [
    (Geometry.parallel([0.3], 33, 2.0), "two views"),
    (Geometry.parallel([0.0, 0.5, 0.5, 1.0], 33, 2.0), "every view once"),
    (Geometry.cone(np.linspace(0, 2 * TURN, 24), (4, 33), 3.0, 120.0, 200.0, rise=2.0), "circle"),
])
def test_views_without_a_way_between_them_are_refused_before_the_fit(geometry: Geometry, what: str) -> None:
    case, _ = shifted_disc(geometry, (32, 32, 1 if geometry.shape[0] == 1 else 4))
    for method in (SCOPE(steps=10**6), CoIL()):
        with pytest.raises(InputError, match=what):
            solved(method, case)


def test_kim_refuses_a_helix_before_the_fit_and_naf_takes_it() -> None:
    case, _ = shifted_disc(Geometry.cone(np.linspace(0, 2 * TURN, 24), (4, 33), 3.0, 120.0, 200.0, rise=2.0), (32, 32, 4))
    with pytest.raises(GeometryError, match="circle"):
        solved(Kim(steps=10**6), case)
    assert torch.isfinite(solved(NAF.for_tests(), case).on(case.grid).volume().data).all()


def test_reprojection_keeps_measured_rays_and_fills_those_not_trusted() -> None:
    case, truth = shifted_disc(fan())
    good = torch.ones(case.data.shape, dtype=torch.bool)
    good[3, 0, 10:20] = False
    broken = replace(case, data=torch.where(good, case.data, torch.full_like(case.data, 9.0)), good=good)
    path = denser(case.geometry, 5)
    at, dense = path.measured, reprojected(broken, truth, path.geometry, path.measured)
    assert torch.equal(dense.data[at][good], case.data[good])
    assert float((dense.data[at] - case.data)[~good].abs().max()) < 0.1 * float(case.data.max())


@pytest.mark.parametrize("geometry", [GEOMETRIES["parallel"], fan(9)], ids=["parallel", "fan"])
def test_scope_beats_fbp_and_reprojection_changes_the_result(geometry: Geometry) -> None:
    case, truth = shifted_disc(geometry)
    method = SCOPE(levels=5, features=2, log2_table=12, width=16, depth=1, steps=150, lr=1e-2, views=90)
    again, direct = solved(method, case), solved(replace(method, reproject=False), case)
    plain = error(filtered_backprojection(case)[0], truth)
    assert isinstance(again, Volume) and isinstance(direct, Field)
    assert error(again, truth) < 0.9 * plain and error(direct, truth) < 0.7 * plain
    assert error(direct, truth) < error(again, truth)  # against the object itself re-projection costs something


def test_kim_corrects_an_unfinished_field() -> None:
    case, truth = shifted_disc(fan(12))
    method = Kim(net=Positive(MLP(Fourier(size=16, sigma=1.0), width=32, depth=2)), steps=150, lr=1e-2)
    field = solved(replace(method, weight=0.0), case)
    half, whole = (solved(replace(method, weight=w), case) for w in (0.5, 1.0))
    assert isinstance(field, Field) and isinstance(whole, Volume)
    plain = error(filtered_backprojection(case)[0], truth)
    assert error(whole, truth) < 0.9 * error(field, truth) and error(whole, truth) < 0.85 * plain
    assert float((half.data - (field.on(case.grid).volume().data + whole.data) / 2).abs().max()) < 1e-6


def test_coil_beats_fbp_of_few_views_and_interpolation_is_its_ablation() -> None:
    case, truth = shifted_disc(Geometry.parallel(np.linspace(0, np.pi, 10, endpoint=False), 49, 2.0))
    method = CoIL(net=MLP(Harmonics(6), width=48, depth=3, skips=(2,)), epochs=800, lr=5e-3, rays=250, views=90, every=100)
    run = Run(device="cpu")
    learned, linear = method.solve(case, run), solved(replace(method, network=False), case)
    plain = error(filtered_backprojection(case, method.window)[0], truth)
    assert run.notes["held-out SNR dB"] > 20
    assert error(learned, truth) < 0.95 * plain and error(linear, truth) < 0.9 * plain
    assert float((learned.data - linear.data).abs().max()) > 0.1 * float(truth.data.max())


def test_coil_takes_volumes() -> None:
    case, truth = shifted_disc(Geometry.cone(np.linspace(0, TURN, 12, endpoint=False), (8, 33), 3.0, 120.0, 200.0), (24, 24, 6))
    for method in (CoIL.for_tests(), CoIL(network=False, views=48)):
        assert solved(method, case).data.shape == (1, 24, 24, 6)
    assert error(solved(CoIL(network=False, views=48), case), truth) < 0.25


@pytest.mark.parametrize("rays", [None, 128])
def test_naf_beats_fbp_and_its_levels_matter(rays: int | None) -> None:
    case, truth = shifted_disc(fan(9))
    method = NAF(levels=6, log2_table=12, base=4.0, width=16, depth=2, skip=1, steps=150, lr=1e-2, rays=rays)
    found, coarse = error(solved(method, case), truth), error(solved(replace(method, levels=1, finest=8.0), case), truth)
    assert found < 0.6 * error(filtered_backprojection(case)[0], truth)
    assert found < 0.8 * coarse


def test_naf_takes_a_cone_beam() -> None:
    geometry = Geometry.cone(np.linspace(0, TURN, 10, endpoint=False), (10, 33), 4.0, 120.0, 200.0)
    case, truth = shifted_disc(geometry, (20, 20, 8), 3.0)
    method = NAF(levels=5, log2_table=12, base=4.0, width=16, depth=2, skip=1, steps=150, lr=1e-2, rays=128)
    assert error(solved(method, case), truth) < 0.8 * error(filtered_backprojection(case)[0], truth)
