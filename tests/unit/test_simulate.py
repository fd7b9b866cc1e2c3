"""The acquisition simulator against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

from medfields.errors import GeometryError
from medfields.evaluate.simulate import FWHM_PER_SIGMA, Scene, add_noise, lesion_profile, paint_lesions, stack_grid, thick_stack
from medfields.space import Grid, Volume

GRID = Grid.from_spacing((48, 48, 48), 1.0, (-23.5, -23.5, -23.5))


def indices(grid: Grid) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)


def blob(grid: Grid, centre: tuple[float, float, float], sigma: float) -> Volume:
    r2 = ((grid.world(indices(grid)) - np.array(centre)) ** 2).sum(-1)
    return Volume(100 * np.exp(-0.5 * r2 / sigma**2), grid)


def test_slab_has_the_gaussian_profile_response() -> None:
    """A slab with erf edges of width e, seen through a profile of width s, has erf edges of width sqrt(e^2 + s^2)."""
    z = GRID.world(indices(GRID))[..., 2]
    edge = 1.5

    def slab(width: float) -> np.ndarray:
        return 50 * (erf((z_at + 6) / (np.sqrt(2) * width)) - erf((z_at - 6) / (np.sqrt(2) * width)))

    z_at = z
    truth = Volume(slab(edge), GRID)
    region = GRID.crop((14, 14, 14), (20, 20, 20))
    grid = stack_grid(region, 2, 2.5)
    thickness = 5.0
    stack = thick_stack(Scene(truth), grid, thickness)
    z_at = grid.world(indices(grid))[..., 2]
    expected = slab(np.hypot(edge, thickness / FWHM_PER_SIGMA))
    assert np.abs(stack.volume.data[0].numpy() - expected).max() < 0.05  # of 100
    wrong = slab(np.hypot(edge, 1.1 * thickness / FWHM_PER_SIGMA))
    assert np.abs(stack.volume.data[0].numpy() - wrong).max() > 0.5  # the test can tell a width that is 10 % off


@pytest.mark.parametrize("tilt", [(0, 0, 0), (12, -20, 7)])
@pytest.mark.parametrize("through", [0, 1, 2])
def test_marker_is_found_where_it_is_and_its_intensity_is_kept(through: int, tilt: tuple[float, float, float]) -> None:
    centre = (1.3, -2.1, 0.7)
    truth = blob(GRID, centre, 2.2)
    region = GRID.crop((15, 15, 15), (18, 18, 18))
    grid = stack_grid(region, through, 3.0, tilt=tilt)
    stack = thick_stack(Scene(truth, empty_outside=True), grid, 3.0, name="a")
    assert stack.axis == 2 and stack.volume.grid.spacing == pytest.approx([1, 1, 3])
    data = stack.volume.data[0].double().numpy()
    found = (data[..., None] * grid.world(indices(grid))).sum((0, 1, 2)) / data.sum()
    assert found == pytest.approx(centre, abs=0.05)
    volume = abs(np.linalg.det(grid.affine[:3, :3]))
    assert data.sum() * volume == pytest.approx(100 * (2 * np.pi) ** 1.5 * 2.2**3, rel=0.01)


@pytest.mark.parametrize("flip", [1, -1])
@pytest.mark.parametrize("through", [0, 1, 2])
def test_upright_stacks_are_what_node_by_node_sums_give(through: int, flip: int) -> None:
    """Two ways to the same integral; the second is the one that oblique stacks take."""
    truth = Volume(np.random.default_rng(3).uniform(0, 100, (30, 26, 28)), Grid((30, 26, 28), np.diag([flip * 1.0, 1.2, flip * 0.9, 1.0])))
    grid = stack_grid(truth.grid.crop((9, 9, 10), (10, 8, 7)), through, 2.5, in_plane=0.7)
    scene = Scene(truth)
    tilted = Grid(grid.shape, grid.affine + 1e-7 * np.pad(np.ones((3, 3)), (0, 1)))
    assert scene.slices(grid, 2.5) == pytest.approx(scene.slices(tilted, 2.5), abs=1e-3)


def test_stack_grid_covers_the_region_with_the_asked_spacing() -> None:
    cover = Grid((30, 40, 21), np.array([[0, -0.8, 0, 5], [0.8, 0, 0, 6], [0, 0, 1.5, 7], [0, 0, 0, 1]], float))
    grid = stack_grid(cover, 0, 4.0, tilt=(0, 10, 0))
    assert grid.spacing == pytest.approx([0.8, 1.5, 4.0])
    index = grid.index(cover.corners())
    assert (index > -0.5 - 1e-6).all() and (index < np.array(grid.shape) - 0.5 + 1e-6).all()
    upright = stack_grid(cover, 0, 4.0)
    assert upright.shape == (40, 21, 6) and upright.centre == pytest.approx(cover.centre)
    assert np.cross(upright.directions[:, 0], upright.directions[:, 1]) @ upright.directions[:, 2] == pytest.approx(
        np.linalg.det(cover.directions))


def test_nothing_is_invented_beyond_the_volume() -> None:
    grid = stack_grid(GRID, 2, 5.0)
    with pytest.raises(GeometryError, match="beyond the scanned volume"):
        thick_stack(Scene(blob(GRID, (0, 0, 0), 3)), grid, 5.0)
    thick_stack(Scene(blob(GRID, (0, 0, 0), 3), empty_outside=True), grid, 5.0)


def test_noise_is_seeded_and_of_the_stated_size() -> None:
    grid = stack_grid(GRID.crop((3, 3, 3), (42, 42, 42)), 1, 2.0, in_plane=2.0)
    clean = thick_stack(Scene(blob(GRID, (0, 0, 0), 2.5)), grid, 1.0)
    one, again, other = (add_noise(clean, 1.5, seed).volume.data.numpy() for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert (one - clean.volume.data.numpy()).std() == pytest.approx(1.5, rel=0.03)
    rician = add_noise(clean, 1.5, 1, "rician").volume.data.numpy()
    assert rician.min() >= 0
    air = clean.volume.data.numpy() < 1e-3
    assert rician[air].mean() == pytest.approx(1.5 * np.sqrt(np.pi / 2), rel=0.03)


def test_lesions_have_their_amplitude_and_place() -> None:
    truth = blob(GRID, (0, 0, 0), 6)
    centres = np.array([[4.0, 4.0, 4.0], [-6.0, 2.0, 0.0]])
    added = (paint_lesions(truth, centres, 3.0, -20).data - truth.data)[0].numpy()
    assert added.min() == pytest.approx(-20, rel=0.02)
    assert added.sum() == pytest.approx(-20 * 2 * 4 / 3 * np.pi * (3.0**3 + np.pi**2 * 3.0 * 0.5**2), rel=0.01)  # logistic ball
    one = lesion_profile(GRID, centres[1], 3.0)
    assert (one[..., None] * GRID.world(indices(GRID))).sum((0, 1, 2)) / one.sum() == pytest.approx(centres[1], abs=0.05)
