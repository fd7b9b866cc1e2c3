"""Backprojection voxel by voxel: the kernel against its twin, and both against places that are known."""

import numpy as np
import pytest
import torch

from medfields.kernels.backproject import backproject, backproject_torch
from medfields.operators.projections import Projector
from medfields.space import Geometry, Grid

ANGLES = np.linspace(0, 2 * np.pi, 7, endpoint=False)
GRID = Grid.from_spacing((9, 8, 6), (2.0, 2.2, 1.8), (-8, -7, -4))
SLICE = Grid.from_spacing((9, 8, 1), 2.0, (-8, -7, 0))
UPRIGHT = {
    "parallel": Geometry.parallel(ANGLES, 21, 1.1, rows=5, offset=0.7),
    "flat": Geometry.cone(ANGLES, (5, 15), 2.0, 50.0, 90.0, offset=(1.0, 3.0)),
    "arc": Geometry.cone(ANGLES, (5, 15), 2.0, 50.0, 90.0, offset=(2.5, 3.0), arc=True),
}
TILTED = Geometry.cone(ANGLES, (5, 15), 2.0, 50.0, 90.0, roll=0.2, tilt=0.1, rise=6.0)
ONE_ROW = Geometry.fan(ANGLES, 15, 2.0, 50.0, 90.0)
CASES = [*((g, GRID) for g in UPRIGHT.values()), *((g, SLICE) for g in UPRIGHT.values()), (TILTED, GRID), (ONE_ROW, SLICE), (ONE_ROW, GRID)]


@pytest.mark.parametrize(("geometry", "grid"), CASES)
def test_kernel_and_twin_agree(geometry, grid):
    q = torch.randn(geometry.views, *geometry.shape, generator=torch.Generator().manual_seed(0))
    table = Projector(grid, geometry).table
    fast, exact = backproject(q, table, grid.shape), backproject_torch(q.double(), table, grid.shape)
    assert fast.dtype == torch.float32 and exact.abs().max() > 0.5
    assert (fast - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("name", UPRIGHT)
def test_a_voxel_reads_where_the_geometry_projects_it(name):
    """q linear in the pixel's place: interpolation reads it exactly, so the sum is that of the projected places over the depths squared."""
    geometry = UPRIGHT[name]
    rows, columns = geometry.shape
    q = (torch.arange(columns)[None] + 10.0 * torch.arange(rows)[:, None]).expand(geometry.views, -1, -1)
    x = GRID.points().reshape(-1, 3).double().numpy()
    column, row = geometry.project(x)
    depth = np.ones_like(column)
    if name != "parallel":
        middle = np.array([[-np.sin(a), np.cos(a), 0] for a in ANGLES])
        away = x[None] - geometry.source[:, None]
        depth = (np.hypot(away[..., 0], away[..., 1]) if name == "arc" else np.einsum("vnj,vj->vn", away, middle)) / 90.0
    inside = ((column >= 0) & (column <= columns - 1) & (row >= 0) & (row <= rows - 1)).all(0)
    assert inside.sum() > 50
    got = backproject(q, Projector(GRID, geometry).table, GRID.shape).reshape(-1).double().numpy()
    assert np.allclose(got[inside], ((column + 10 * row) / depth**2).sum(0)[inside], rtol=1e-5)


def test_what_lies_behind_the_source_or_beside_the_detector_gets_nothing():
    geometry = Geometry.fan([0.0], 5, 1.0, 4.0, 10.0)  # the source is at y = -4, the detector 5 mm wide at y = 6
    grid = Grid.from_spacing((21, 21, 1), 1.0, (-10, -10, 0))
    seen = backproject(torch.ones(1, 1, 5), Projector(grid, geometry).table, grid.shape)[:, :, 0]
    assert (seen[:, :7] == 0).all() and seen[0, 12] == 0
    assert abs(float(seen[10, 10]) - (10 / 4) ** 2) < 1e-4


def test_any_number_of_threads_gives_the_same_bytes():
    q = torch.randn(7, 5, 15, generator=torch.Generator().manual_seed(0))
    table = Projector(GRID, TILTED).table
    one = backproject(q, table, GRID.shape)
    torch.set_num_threads(2)
    try:
        assert torch.equal(backproject(q, table, GRID.shape), one)
    finally:
        torch.set_num_threads(1)
