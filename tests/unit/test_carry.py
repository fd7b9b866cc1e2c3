"""What a warp carries, against closed forms: affine maps are exact, energy is kept, inverses come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from io_samples import oblique, ramp, rotation
from medfields.errors import InputError
from medfields.fields import Affine, BSpline, Field, displacement
from medfields.io.mesh import read_mesh, write_mesh
from medfields.solve.carry import backwards, carried_dose, carried_image, carried_mesh, carried_points
from medfields.space import Grid, Volume

GRID = oblique((9, 8, 7), (2.0, 3.0, 4.0))


def affine(matrix: np.ndarray, grid: Grid = GRID) -> Field:
    return displacement(Affine.of(matrix), grid.box())


def shift(*mm: float) -> np.ndarray:
    made = np.eye(4)
    made[:3, 3] = mm
    return made


def breath(grid: Grid, size: float = 3.0, degree: int = 3) -> Field:
    """u = size (sin, cos, sin) of the world, some ten mm long, as a spline."""
    x = grid.points()
    warp = displacement(BSpline.on(grid, degree), grid.box())
    u = size * torch.stack([(x[..., 1] / 12).sin(), (x[..., 2] / 11).cos(), (x[..., 0] / 13).sin()])
    with torch.no_grad():
        warp.net.coefficients.copy_(u / float(warp.radius[0]))
    warp.grid = grid
    return warp


# images


def test_a_shift_of_whole_voxels_moves_voxels() -> None:
    """warped(x) = M(x + u): u of two voxels brings the value from two voxels further, by every interpolation; the rest is said to be outside."""
    moving = ramp(GRID)
    moving.fill = -7.0
    warp = affine(shift(*(2 * GRID.affine[:3, 0])))
    for interpolation in ("linear", "cubic", "nearest"):
        made = carried_image(warp, moving, GRID, interpolation)
        np.testing.assert_allclose(made.data[0, :-2].numpy(), moving.data[0, 2:].numpy(), atol=0.05)
        assert (made.data[0, -2:] == -7).all() and made.about["outside"] == pytest.approx(2 / 9)


def test_linear_and_cubic_are_the_volumes_own() -> None:
    grid = Grid.from_spacing((10, 9, 8), 2.0, (-9, -8, -7))
    moving = Volume(np.random.default_rng(0).random((2, 10, 9, 8)), grid)
    warp = breath(grid)
    phi = grid.points() + warp(grid.points()).detach()
    for interpolation in ("linear", "cubic"):
        expected = Volume(moving.data, grid, interpolation=interpolation)(phi)
        made = carried_image(warp, moving, grid, interpolation)
        np.testing.assert_allclose(made.data.movedim(0, -1), expected, atol=1e-4)
    linear = carried_image(warp, moving, grid).data
    assert not torch.allclose(linear, carried_image(warp, moving, grid, "cubic").data, atol=1e-2)


def test_labels_stay_labels() -> None:
    """The label of the voxel in which a point lies, also above what half precision holds, on a grid of another orientation and spacing."""
    labels = np.random.default_rng(0).choice([0, 3, 70001, 16777213], GRID.shape)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((0.1, 0.2, -0.1))
    matrix[:3, 3] = GRID.centre - matrix[:3, :3] @ GRID.centre + (1, 0.5, -1)
    asked = GRID.with_spacing(1.7)
    made = carried_image(affine(matrix), Volume(labels, GRID), asked, "nearest").data[0].numpy()
    index = np.stack(np.meshgrid(*map(np.arange, asked.shape), indexing="ij"), -1)
    there = GRID.index(asked.world(index) @ matrix[:3, :3].T + matrix[:3, 3])
    clear = (np.abs(there - np.floor(there) - 0.5) > 1e-3).all(-1)  # not on a face between two voxels
    inside = ((there > -0.5) & (there < np.array(GRID.shape) - 0.5)).all(-1)
    near = np.clip(np.rint(there).astype(int), 0, np.array(GRID.shape) - 1)
    expected = np.where(inside, labels[tuple(np.moveaxis(near, -1, 0))], 0)
    assert 0.1 < inside.mean() < 1 and clear.mean() > 0.9
    np.testing.assert_array_equal(made[clear], expected[clear])


# doses


@pytest.mark.parametrize("degree", [1, 3])
def test_energy_is_kept(degree: int) -> None:
    """The integral of a blob is that of the blob carried; with the dose kept it is not."""
    grid = Grid.from_spacing((40, 38, 36), 1.5, (-29.25, -27.75, -26.25))
    dose = Volume(60 * torch.exp(-(grid.points() - torch.tensor([3.0, -2.0, 1.0])).square().sum(-1) / 60), grid, "Gy")
    warp = breath(grid, 3.0, degree)
    asked = Grid.from_spacing((50, 50, 50), 1.2, (-29.4, -29.4, -29.4))
    total = float(dose.data.sum()) * 1.5**3
    kept = carried_dose(warp, dose, asked, "energy")
    assert float(kept.data.sum()) * 1.2**3 == pytest.approx(total, rel=0.01)
    assert kept.unit == "Gy" and kept.about["folded"] == 0
    squeezed = affine(np.diag([1.2, 1.1, 1.0, 1.0]))  # det 1.32: the fixed world is the smaller
    assert float(carried_dose(squeezed, dose, asked, "energy").data.sum()) * 1.2**3 == pytest.approx(total, rel=0.01)
    assert float(carried_dose(squeezed, dose, asked).data.sum()) * 1.2**3 == pytest.approx(total / 1.32, rel=0.01)


def test_a_dose_with_densities() -> None:
    """A body that is squeezed by 1.32 and keeps its mass gets the dose it had: D rho_m det J / rho_f = D where rho_f = rho_m det J."""
    grid = Grid.from_spacing((12, 12, 12), 2.0, (-11, -11, -11))
    dose = Volume(np.random.default_rng(0).random(grid.shape) + 1, grid)
    warp = affine(np.diag([1.2, 1.1, 1.0, 1.0]), grid)
    thick = np.full(grid.shape, 1.32)
    thick[0] = 0
    made = carried_dose(warp, dose, grid, "energy", (Volume(thick, grid), Volume(np.ones(grid.shape), grid)))
    plain = carried_dose(warp, dose, grid)
    np.testing.assert_allclose(made.data[:, 2:-2, 2:-2], plain.data[:, 2:-2, 2:-2], rtol=1e-5)
    assert (made.data[0, 0] == 0).all()
    with pytest.raises(InputError, match="for energies"):
        carried_dose(warp, dose, grid, "dose", (dose, dose))
    with pytest.raises(InputError, match="one channel"):
        carried_dose(warp, Volume(np.zeros((2, 12, 12, 12)), grid), grid)


def test_a_mirrored_body_gets_no_energy() -> None:
    grid = Grid.from_spacing((6, 6, 6), 2.0, (-5, -5, -5))
    made = carried_dose(affine(np.diag([-1.0, 1, 1, 1]), grid), Volume(np.ones(grid.shape), grid), grid, "energy")
    assert made.about["folded"] == 1 and (made.data == 0).all()


# points and surfaces


def test_points_go_from_fixed_to_moving_and_back() -> None:
    warp = breath(Grid.from_spacing((20, 20, 20), 3.0, (-28, -28, -28)))
    x = np.random.default_rng(0).uniform(-20, 20, (50, 3))
    y, missed = carried_points(warp, x)
    np.testing.assert_allclose(y - x, warp(torch.tensor(x, dtype=torch.float32)).detach().numpy(), atol=1e-5)
    assert np.abs(y - x).max() > 2 and (missed == 0).all()
    back, missed = carried_points(warp, y, inverse=True)
    assert np.abs(back - x).max() < 5e-3 and missed.max() < 1e-3


def test_the_error_of_an_inverse_is_true_where_the_warp_folds() -> None:
    """What is said to be missed is |phi(x) - y|, and where Newton's method gets lost in the folds it is large."""
    grid = Grid.from_spacing((12, 12, 12), 5.0, (-28, -28, -28))
    warp = breath(grid, 40.0)
    y = np.random.default_rng(0).uniform(-20, 20, (200, 3))
    x, missed = carried_points(warp, y, inverse=True)
    np.testing.assert_allclose(np.linalg.norm(carried_points(warp, x)[0] - y, axis=-1), missed, atol=1e-3)
    assert missed.max() > 1 and (missed < 1e-2).sum() > 20


def test_the_inverse_warp_carries_images_back() -> None:
    grid = Grid.from_spacing((24, 24, 24), 2.5, (-28.75, -28.75, -28.75))
    image = Volume(torch.exp(-grid.points().square().sum(-1) / 150), grid)
    warp = breath(grid)
    inverse, missed = backwards(warp, grid)
    x = torch.tensor(np.random.default_rng(0).uniform(-15, 15, (40, 3)), dtype=torch.float32)
    there = x + warp(x)
    np.testing.assert_allclose((there + inverse(there)).detach(), x, atol=0.15)  # linear between voxels
    assert float(missed.data.max()) < 1e-2 and inverse.grid is grid
    away = carried_image(warp, image, grid, "cubic")
    back = carried_image(inverse, away, grid, "cubic")
    far, near = (float((made.data - image.data)[:, 6:-6, 6:-6, 6:-6].abs().max()) for made in (away, back))
    assert far > 0.2 and near < 0.02
    turned = np.eye(4)
    turned[:3, :3], turned[:3, 3] = rotation((0.3, 0.1, 0.2)) * 1.1, (5, 6, 7)
    exact, _ = backwards(affine(turned), grid)
    assert isinstance(exact.spec, Affine)
    np.testing.assert_allclose(np.reshape(exact.spec.matrix, (3, 4)), np.linalg.inv(turned)[:3], atol=1e-12)


@pytest.mark.parametrize("ending", [".stl", ".ply", ".obj", ".off"])
def test_surfaces(tmp_path, ending: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(2, 10.0)
    write_mesh(ball, tmp_path / f"ball{ending}")
    mesh = read_mesh(tmp_path / f"ball{ending}")
    matrix = np.diag([1.2, 1.1, 1.0, 1.0])
    matrix[:3, 3] = 5, 6, 7
    moved, missed = carried_mesh(affine(matrix), mesh)
    assert moved.volume == pytest.approx(ball.volume * 1.32, rel=1e-4) and (missed == 0).all()
    np.testing.assert_allclose(np.sort(moved.vertices, 0), np.sort(mesh.vertices @ matrix[:3, :3].T + (5, 6, 7), 0), atol=1e-4)
    back, missed = carried_mesh(affine(matrix), moved, inverse=True)
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=2e-3)
    assert missed.max() < 1e-3 and mesh.volume == pytest.approx(ball.volume, rel=1e-4)
