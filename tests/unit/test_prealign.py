"""Pre-alignment: known rigid and affine maps between oblique, anisotropic images are found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfields.cases import Pair
from medfields.errors import GeometryError, InputError, UnknownName
from medfields.solve.prealign import start_of
from medfields.space import Grid, Volume
from medfields.space.rigid import rotation

BLOBS = np.random.default_rng(3).normal(0, 22, (40, 3)), np.random.default_rng(4).uniform(4, 9, 40)


def turned(degrees: tuple[float, float, float]) -> np.ndarray:
    return rotation(torch.tensor(np.radians(degrees), dtype=torch.float64)).numpy()


def oblique(shape: tuple[int, int, int], spacing: tuple[float, float, float], degrees: tuple[float, float, float], centre: np.ndarray) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = turned(degrees) * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def body(x: np.ndarray, flat: bool = False) -> np.ndarray:
    centres = BLOBS[0] * [1, 1, 0] if flat else BLOBS[0]
    return np.exp(-((x[..., None, :] - centres) ** 2).sum(-1) / (2 * BLOBS[1] ** 2)).sum(-1)


def image(grid: Grid, to_body: np.ndarray, invert: bool = False) -> Volume:
    """The body at to_body(x), in a volume or through its plane z = 0."""
    x = grid.points().double().numpy() @ to_body[:3, :3].T + to_body[:3, 3]
    values = body(x * [1, 1, 0], flat=True) if grid.is_2d else body(x)
    return Volume(1 / (0.3 + values) if invert else values, grid)


def known(linear: np.ndarray, shift: tuple[float, float, float], about: np.ndarray) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3] = linear
    made[:3, 3] = about - linear @ about + shift
    return made


ABOUT = np.array([5.0, -8.0, 12.0])
TO_BODY = known(np.eye(3), tuple(-ABOUT), np.zeros(3))
FIXED = oblique((40, 36, 26), (2.0, 2.5, 3.5), (8, -12, 20), ABOUT)
RIGID = known(turned((6, -9, 12)), (30, -12, 8), ABOUT)
AFFINE = known(turned((6, -9, 12)) @ np.array([[1.08, 0.05, 0], [0, 0.94, 0.04], [-0.03, 0, 1.1]]), (-20, 22, 10), ABOUT)


def pair(truth: np.ndarray, invert: bool = False) -> tuple[Volume, Volume]:
    """Both see the same body; the moving one through the inverse of the truth, on a lattice of its own."""
    grid = oblique((34, 44, 30), (2.6, 1.9, 3.0), (-15, 5, -10), truth[:3, :3] @ ABOUT + truth[:3, 3] + [4, -3, 5])
    return image(FIXED, TO_BODY), image(grid, TO_BODY @ np.linalg.inv(truth), invert)


def error(found: np.ndarray, truth: np.ndarray, grid: Grid = FIXED) -> float:
    """The largest distance in mm over the inner half of the image."""
    x = grid.centre + (grid.corners() - grid.centre) / 2
    return float(np.linalg.norm((x @ (found - truth)[:3, :3].T) + (found - truth)[:3, 3], axis=1).max())


@pytest.mark.parametrize(("kind", "truth", "similarity"), [("rigid", RIGID, "ncc"), ("rigid", RIGID, "mi"), ("affine", AFFINE, "mi")])
def test_finds_a_known_map_between_oblique_images(kind: str, truth: np.ndarray, similarity: str) -> None:
    fixed, moving = pair(truth)
    found = start_of(fixed, moving, kind, similarity=similarity, points=3000)  # type: ignore[arg-type]
    assert error(np.eye(4), truth) > 25
    assert error(found, truth) < 0.5
    if kind == "rigid":
        assert np.allclose(found[:3, :3].T @ found[:3, :3], np.eye(3), atol=1e-6)


def test_mutual_information_sees_through_an_inverted_contrast() -> None:
    fixed, moving = pair(RIGID, invert=True)
    assert error(start_of(fixed, moving, "rigid", points=3000), RIGID) < 0.7
    assert error(start_of(fixed, moving, "rigid", similarity="ncc", points=3000), RIGID) > 3


def test_masks_lead_to_their_organ() -> None:
    """Beside the organ something else moved the other way; inside the mask it does not count."""
    fixed, moving = pair(RIGID)
    aside = np.array([40, 0, 0])
    lump = [ABOUT + aside, RIGID[:3, :3] @ (ABOUT - aside) + RIGID[:3, 3]]
    images, masks = [], []
    for volume, at, to_body in zip((fixed, moving), lump, (TO_BODY, TO_BODY @ np.linalg.inv(RIGID)), strict=True):
        x = volume.grid.points().double().numpy()
        images.append(volume.with_data(volume.data + torch.tensor(6 * np.exp(-((x - at) ** 2).sum(-1) / 200)).float()))
        organ = np.linalg.norm(x @ to_body[:3, :3].T + to_body[:3, 3], axis=-1) < 22
        masks.append(Volume(organ.astype(np.float32), volume.grid))
    moments = start_of(*images, "moments", *masks)
    assert error(moments, known(np.eye(3), (30, -12, 8), ABOUT)) < 3 and np.array_equal(moments[:3, :3], np.eye(3))
    led, misled = (error(start_of(*images, "rigid", *given, points=3000), RIGID) for given in (masks, (None, None)))
    assert led < 4 and misled > 6


def test_centres_and_moments_are_closed_forms() -> None:
    fixed, moving = pair(RIGID)
    assert np.allclose(start_of(fixed, moving, "centres")[:3, 3], moving.grid.centre - fixed.grid.centre)
    grid = Grid.from_spacing((30, 30, 30), 2.0)
    spots = [Volume(np.exp(-((grid.points().numpy() - at) ** 2).sum(-1) / 32), grid) for at in ([20, 30, 28], [35, 24, 30])]
    assert np.allclose(start_of(*spots, "moments")[:3, 3], [15, -6, 2], atol=0.1)
    assert np.array_equal(start_of(fixed, moving, "header"), np.eye(4))


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_slice_stays_in_its_plane(kind: str) -> None:
    truth = np.eye(4)
    angle = np.radians(11)
    truth[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    if kind == "affine":
        truth[:2, :2] @= np.array([[1.07, 0.04], [0.0, 0.95]])
    truth[:3, 3] = [14, -9, 40]  # the moving slice lies in another plane
    fixed_grid = Grid.from_spacing((60, 52, 1), (1.6, 2.0, 1.0), [-48, -52, 0])
    moving_grid = Grid.from_spacing((56, 64, 1), (2.0, 1.7, 1.0), [-42, -60, 40])
    moving = image(moving_grid, np.linalg.inv(truth))
    found = start_of(image(fixed_grid, np.eye(4)), moving, kind, points=4000)
    assert error(found, truth, fixed_grid) < 0.4
    assert np.allclose(found[2], [0, 0, 1, 40], atol=1e-6)
    sagittal = Grid(moving_grid.shape, moving_grid.affine[[2, 1, 0, 3]])
    with pytest.raises(GeometryError, match="not parallel"):
        start_of(image(fixed_grid, np.eye(4)), Volume(moving.data, sagittal), kind)


def test_a_good_header_is_left_as_good() -> None:
    case = Pair.toy(0)
    found = start_of(case.fixed, case.fixed, "rigid", points=4000)
    assert error(found, np.eye(4), case.grid) < 0.05


def test_what_cannot_be_meant() -> None:
    case = Pair.toy(0)
    with pytest.raises(UnknownName, match="start"):
        start_of(case.fixed, case.moving, "centers")
    with pytest.raises(InputError, match="the moving mask is empty"):
        start_of(case.fixed, case.moving, "moments", case.mask, case.moving.with_data(0 * case.moving.data))
    flat = Volume(case.moving.data[..., :1], case.moving.grid.crop((0, 0, 0), (20, 20, 1)))
    with pytest.raises(GeometryError, match="a slice"):
        start_of(case.fixed, flat, "centres")
