"""Joseph's projector: the twin against its definition, the compiled kernels against the twin, and the same bytes for any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from medfields.kernels.joseph import RayTable, joseph, joseph_torch, joseph_transpose, joseph_transpose_torch
from medfields.kernels.joseph_numba import _Plan
from medfields.operators.projections import Projector
from medfields.space import Geometry, Grid

ANGLES = np.linspace(0, 2 * np.pi, 8, endpoint=False)  # along the axes and the diagonals, where two axes lead equally
GEOMETRIES = {
    "parallel": Geometry.parallel(ANGLES, 20, 1.0),
    "parallel rows": Geometry.parallel(ANGLES, 20, 1.0, rows=13, row_pitch=0.7),
    "fan": Geometry.fan(ANGLES, 20, 1.3, 50, 80),
    "arc": Geometry.fan(ANGLES, 20, 1.3, 50, 80, arc=True),
    "cone": Geometry.cone(ANGLES, (13, 20), 1.3, 50, 80),
    "steep": Geometry.cone(ANGLES, (41, 12), 2.0, 20, 40),
    "helix": Geometry.cone(ANGLES, (9, 20), 1.3, 50, 80, rise=10, arc=True),
    "tilted": Geometry.cone(ANGLES, (9, 20), 1.3, 50, 80, tilt=0.1, roll=0.1),
    "within": Geometry.cone(ANGLES, (13, 20), 1.0, 4, 7),  # source and detector inside the lattice
    "one": Geometry.cone(ANGLES[1:2], (5, 1), 1.3, 50, 80),
    "past": Geometry.cone(ANGLES, (3, 6), 1.3, 50, 80, offset=(0.0, 60.0)),  # every ray misses
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
    "upright": lattice((12, 11, 9)), "sagittal": lattice((9, 12, 11), turn=UPRIGHT[:, [2, 0, 1]]),
    "coronal, flipped": lattice((12, 9, 11), (1, -1, 1), UPRIGHT[:, [0, 2, 1]]), "turned": lattice((12, 11, 9), (1, 0.7, 1.6), TURN),
    "flat voxels": lattice((12, 11, 13), (1, 1.3, 0.4)), "k": lattice((12, 11, 1)), "j": lattice((12, 1, 9)), "i": lattice((1, 11, 9)),
    "row": lattice((1, 11, 1)), "voxel": lattice((1, 1, 1), 3.0), "turned slice": lattice((12, 11, 1), turn=TURN),
}


def table(g: Geometry, grid: Grid) -> RayTable:
    return Projector(grid, g).table


def close(ours: torch.Tensor, twin: torch.Tensor) -> None:
    torch.testing.assert_close(ours, twin.float(), rtol=0, atol=1e-5 * max(1e-3, float(twin.abs().max())))


@pytest.mark.parametrize("grid", LATTICES.values(), ids=LATTICES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_numba_agrees_with_the_twin(name: str, grid: Grid) -> None:
    rays, rng = table(GEOMETRIES[name], grid), torch.Generator().manual_seed(0)
    c, y = torch.randn(grid.shape, generator=rng), torch.randn(rays.shape, generator=rng)
    ours, twin = joseph(c, rays), joseph_torch(c.double(), rays)
    close(ours, twin)
    close(joseph_transpose(y, rays, grid.shape), joseph_transpose_torch(y.double(), rays, grid.shape))
    assert bool(twin.any()) == (name != "past") or min(grid.shape) == 1
    close(joseph_torch(c, rays), twin)


def test_all_ways_through_the_kernels_are_taken() -> None:
    """Lines of voxels for rows along an axis of the lattice, single rays for the rest; the rows' axis, or a single voxel, comes last."""
    plan = _Plan(table(GEOMETRIES["cone"], LATTICES["sagittal"]), (9, 12, 11))
    assert plan.stacked and plan.order == [1, 2, 0]
    for g, grid in (("cone", "turned"), ("tilted", "upright"), ("fan", "upright"), ("steep", "flat voxels"), ("parallel rows", "k")):
        assert not _Plan(table(GEOMETRIES[g], LATTICES[grid]), LATTICES[grid].shape).stacked
    assert _Plan(table(GEOMETRIES["fan"], LATTICES["j"]), (12, 1, 9)).order == [0, 2, 1]


def test_a_ray_along_an_axis_sums_its_row() -> None:
    c = torch.arange(4 * 5 * 3, dtype=torch.float32).reshape(4, 5, 3)
    grid = Grid.from_spacing((4, 5, 3), (2.0, 0.5, 1.5))
    along_y = joseph(c, table(Geometry.parallel([0.0], 4, 2.0, rows=3, row_pitch=1.5, isocentre=(3, 0, 1.5)), grid))
    torch.testing.assert_close(along_y[0], 0.5 * c.sum(1).T)
    along_x = joseph(c, table(Geometry.parallel([np.pi / 2], 5, 0.5, rows=3, row_pitch=1.5, isocentre=(0, 1, 1.5)), grid))
    torch.testing.assert_close(along_x[0], 2.0 * c.sum(0).T)


def test_values_fade_over_one_voxel_and_a_slice_is_as_thick_as_it_says() -> None:
    grid, one = Grid.from_spacing((1, 3, 2), 2.0), torch.ones(1, 3, 2)
    rows = joseph(one, table(Geometry.parallel([np.pi / 2], 1, 1.0, rows=13, row_pitch=0.5, isocentre=(0, 2, 1)), grid))[0, :, 0]
    heights = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(rows, 2 * (1 - ((heights.abs() - 1) / 2).clamp(0, 1)))  # centres at -1 and 1, spacing 2
    across = joseph(one, table(Geometry.parallel([0.0], 5, 0.6, isocentre=(0, 0, 1)), grid))[0, 0]
    torch.testing.assert_close(across, torch.tensor([0.0, 6.0, 6.0, 6.0, 0.0]))  # 1.2 mm aside is outside a slice of 2 mm


def test_a_cone_counts_only_what_lies_between_source_and_pixel() -> None:
    grid, one = Grid.from_spacing((1, 20, 1), 1.0, (0, -9.5, 0)), torch.ones(1, 20, 1)
    whole, part = (float(joseph(one, table(Geometry.fan([0.0], 1, 1.0, near, near + far), grid))[0, 0, 0]) for near, far in ((60, 40), (4, 3)))
    assert whole == 20 and part == 7  # the planes -3.5 to 2.5


def test_double_precision_and_odd_layouts_go_through() -> None:
    rays, c = table(GEOMETRIES["cone"], LATTICES["upright"]), torch.randn(12, 11, 9)
    assert joseph(c.double(), rays).dtype == torch.float64
    close(joseph(c.mT.contiguous().mT, rays), joseph(c, rays))
    y = torch.randn(rays.shape)
    back = joseph_transpose(y.mT.contiguous().mT, rays, (12, 11, 9))
    close(back, joseph_transpose(y, rays, (12, 11, 9)))
    assert back.is_contiguous()


def test_the_twin_is_differentiable_twice() -> None:
    """Linear: the gradient is the transpose, and the gradient of that the matrix again."""
    grid = lattice((3, 4, 2))
    projector = Projector(grid, Geometry.cone(ANGLES[:2] + 0.1, (2, 2), 1.3, 50, 80))
    c = torch.randn(grid.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(projector, (c,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda c: projector(c).square(), (c,), fast_mode=True)
    (slope,) = torch.autograd.grad(projector(c).square().sum(), c, create_graph=True)
    (again,) = torch.autograd.grad((slope * c).sum(), c)
    torch.testing.assert_close(again, 4 * projector.adjoint(projector.apply(c.detach())))


def test_nan_is_seen_by_the_rays_that_meet_it_and_no_other() -> None:
    c = torch.ones(12, 11, 9)
    c[6, 5, 4] = float("nan")
    found = joseph(c, table(GEOMETRIES["cone"], LATTICES["upright"])).isnan()
    assert found.any((1, 2)).all() and not found[:, :, :4].any()


THREADS = """
import numpy as np, torch
from medfields.kernels.dispatch import use_threads
from medfields.operators.projections import Projector
from medfields.space import Geometry, Grid
angles = np.linspace(0.1, 6, 7)
for grid, geometry in ((Grid.from_spacing((23, 21, 1), 1.0, (-11, -10, 0)), Geometry.fan(angles, 30, 1.0, 50, 80)),
                       (Grid.from_spacing((13, 11, 9), 1.0, (-6, -5, -4)), Geometry.cone(angles, (7, 14), 1.5, 50, 80)),
                       (Grid.from_spacing((13, 11, 9), 1.0, (-6, -5, -4)), Geometry.cone(angles, (7, 14), 1.5, 50, 80, tilt=0.2)),
                       (Grid.from_spacing((2, 11, 9), 1.0, (-1, -5, -4)), Geometry.cone(angles, (7, 14), 1.5, 50, 80))):
    projector = Projector(grid, geometry)
    c, y, found = torch.randn(grid.shape), torch.randn(projector.shape), []
    for n in (1, 2, 3, 3):
        torch.set_num_threads(n)
        assert use_threads() == n
        found.append((projector.apply(c), projector.adjoint(y)))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
"""


def run(code: str, **environment: str) -> None:
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


def test_as_with_one_thread() -> None:
    """In a process of its own: Numba never gets more threads than it starts with."""
    run(THREADS, NUMBA_NUM_THREADS="3")


TRITON = """
import numpy as np, torch
from medfields.kernels import joseph_triton
from medfields.kernels.joseph import joseph_torch, joseph_transpose_torch
from medfields.operators.projections import Projector
from medfields.space import Geometry, Grid
angles = np.array([0.0, np.pi / 4, 2.2])
turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
for shape in ((6, 5, 4), (6, 5, 1), (6, 1, 4), (1, 5, 4)):
    for axes in (np.eye(3), turn * [1, 0.7, 1.6]):
        affine = np.eye(4)
        affine[:3, :3] = axes
        affine[:3, 3] = -axes @ (np.array(shape) - 1) / 2
        for geometry in (Geometry.parallel(angles, 9, 1.0), Geometry.cone(angles, (3, 9), 1.5, 50, 80, arc=True),
                         Geometry.cone(angles, (3, 7), 1.0, 2, 4)):
            table = Projector(Grid(shape, affine), geometry).table
            c, y = torch.randn(shape), torch.randn(table.shape)
            for ours, twin in ((joseph_triton.forward(c, table), joseph_torch(c.double(), table)),
                               (joseph_triton.transpose(y, table, shape), joseph_transpose_torch(y.double(), table, shape))):
                torch.testing.assert_close(ours, twin.float(), rtol=0, atol=1e-5 * max(1e-3, float(twin.abs().max())))
"""


def test_triton_agrees_with_the_twin() -> None:
    """In Triton's interpreter, in a process of its own, as the interpreter is chosen when Triton is imported."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; it comes with the CUDA builds of torch")
    run(TRITON, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.parametrize("grid", LATTICES.values(), ids=LATTICES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_cuda_agrees_with_the_twin(name: str, grid: Grid) -> None:
    rays = table(GEOMETRIES[name], grid)
    c, y = torch.randn(grid.shape), torch.randn(rays.shape)
    close(joseph(c.cuda(), rays).cpu(), joseph_torch(c.double(), rays))
    close(joseph_transpose(y.cuda(), rays, grid.shape).cpu(), joseph_transpose_torch(y.double(), rays, grid.shape))
