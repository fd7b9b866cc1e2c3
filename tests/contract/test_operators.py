"""Every operator keeps the promises of `medfields.testing`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from medfields.operators import SliceAverage, SliceOperator
from medfields.operators.detector import Polychromatic
from medfields.operators.projections import LineIntegral, OnGrid, Projector
from medfields.operators.spectrum import Spectrum
from medfields.space import Geometry, Grid
from medfields.testing.operators import check_matrix, check_operator

ANGLES = np.linspace(0.1, 2 * np.pi, 5, endpoint=False)
GEOMETRIES = {
    "parallel": Geometry.parallel(ANGLES, 15, 1.5, offset=0.4),
    "parallel rows": Geometry.parallel(ANGLES, 15, 1.5, rows=7),
    "fan": Geometry.fan(ANGLES, 17, 1.8, 60, 100),
    "fan arc": Geometry.fan(ANGLES, 17, 1.8, 60, 100, arc=True, offset=2.0),
    "cone": Geometry.cone(ANGLES, (9, 13), 2.2, 60, 100),
    "cone arc": Geometry.cone(ANGLES, (9, 13), 2.2, 60, 100, arc=True, offset=(1.0, 3.0), tilt=0.1),
    "helix, rolled": Geometry.cone(2 * ANGLES, (9, 13), 2.2, 60, 100, rise=5.0, roll=0.1, tilt=0.05),
}
UPRIGHT = np.eye(3)
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]


def lattice(shape: tuple[int, int, int], spacing: float | tuple[float, ...] = 1.0, turn: np.ndarray = UPRIGHT) -> Grid:
    """Centred on the isocentre."""
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


LATTICES = {
    "slice": lattice((16, 14, 1)), "volume": lattice((12, 14, 10)), "turned": lattice((11, 12, 13), turn=TURN),
    "anisotropic, flipped": lattice((10, 14, 9), (-1.6, 1.0, 0.7)), "sagittal": lattice((9, 14, 12), turn=UPRIGHT[:, [2, 0, 1]]),
}


@pytest.mark.parametrize("profile", ["gauss", "box", "none"])
def test_slice_average(profile: str) -> None:
    rng = torch.Generator().manual_seed(0)
    operator = SliceAverage(profile, [4.0, 6.0], np.eye(3)[:2], 8).eval()
    at = {
        "x": torch.randn(50, 3, generator=rng) * 20,
        "stack": torch.randint(2, (50,), generator=rng),
        "channel": torch.zeros(50, dtype=torch.long),
    }
    check_operator(operator, at)


@pytest.mark.parametrize("exact", [True, False], ids=["separable", "walking"])
@pytest.mark.parametrize("profile", ["gauss", "box", "none"])
def test_slice_operator(profile: str, exact: bool) -> None:
    grid = Grid.from_spacing((16, 15, 20), 1.0)
    stack = Grid.from_spacing((12, 11, 4), (1, 1, 4), origin=(2, 2, 4))
    check_matrix(SliceOperator(grid, stack, 2, profile, 4.0, exact=exact), grid.shape)


@pytest.mark.parametrize("subrays", [1, 2])
@pytest.mark.parametrize("grid", LATTICES.values(), ids=LATTICES)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_projector(grid: Grid, geometry: Geometry, subrays: int) -> None:
    check_matrix(Projector(grid, geometry, subrays), grid.shape)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_line_integral(geometry: Geometry) -> None:
    rays = geometry.at(torch.randperm(geometry.size, generator=torch.Generator().manual_seed(0))[:60])
    check_operator(LineIntegral(lattice((24, 24, 16)).box(), 1.0).eval(), rays)


@pytest.mark.parametrize("name", ["slice", "turned"])
def test_on_grid(name: str) -> None:
    check_operator(OnGrid(Projector(LATTICES[name], GEOMETRIES["fan"])), None)


def test_a_polychromatic_reading_of_line_integrals() -> None:
    detector, along = Polychromatic(Spectrum.flat()), LineIntegral(lattice((24, 24, 4)).box(), 1.0).eval()
    falling = torch.linspace(0.03, 0.01, 7)
    rays = GEOMETRIES["fan"].at(torch.arange(40))
    check_operator(lambda f, at: detector(along(lambda x: (1 + 0.5 * f(x)) * falling, at))[:, None], rays, linear=False)


@pytest.mark.parametrize(("part", "broken", "says"), [
    ("apply", lambda p, c: p.apply(c) ** 2, "not linear"),
    ("apply", lambda p, c: p.apply(c)[1:], "the operator says"),
    ("apply", lambda p, c: p.apply(c.mul_(2)) / 2, "changed its input|not linear"),
    ("apply", lambda p, c: 0 * p.apply(c), "nothing is measured"),
    ("adjoint", lambda p, y: 1.0005 * p.adjoint(y), "adjoint does not match"),
    ("__call__", lambda p, c: p(1.001 * c), "gradient is not"),
])
def test_a_broken_matrix_is_caught(part: str, broken: Callable, says: str) -> None:
    projector = Projector(LATTICES["slice"], GEOMETRIES["fan"])

    class Broken:
        shape, apply, adjoint, __call__ = projector.shape, projector.apply, projector.adjoint, projector.__call__

    setattr(Broken, part, staticmethod(lambda x: broken(projector, x)) if part != "__call__" else lambda self, x: broken(projector, x))
    with pytest.raises(AssertionError, match=says):
        check_matrix(Broken(), LATTICES["slice"].shape)
