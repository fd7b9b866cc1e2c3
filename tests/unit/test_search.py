"""Trying every displacement: known shifts and smooth motions are found, in world directions, on any lattice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from io_samples import rotation
from medfields.solve.search import consistent, search
from medfields.space import Grid, Volume

CENTRES = np.random.default_rng(0).uniform(-80, 80, (500, 3))
SIGNS = np.random.default_rng(1).choice([-1.0, 1.0], 500)


def body(x: np.ndarray) -> np.ndarray:
    """Blobs of both signs, 6 mm wide, wherever one looks."""
    square = ((x[..., None, :] - CENTRES) ** 2).sum(-1)
    return np.einsum("...n,n->...", np.exp(-square / (2 * 6.0**2)), SIGNS)


def grid(shape: tuple[int, int, int] = (16, 15, 14), spacing: tuple[float, ...] = (4, 4, 4), turn: np.ndarray | None = None) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def image(of: Grid, shift: np.ndarray | None = None) -> Volume:
    x = of.points().double().numpy()
    return Volume(body(x if shift is None else x + shift), of)


def everywhere(of: Grid) -> torch.Tensor:
    return torch.ones(of.shape, dtype=torch.bool)


def wide(of: Grid, by: int = 6) -> Grid:
    """A lattice for the moving image beyond every displacement."""
    more = [by if n > 1 else 0 for n in of.shape]
    return of.crop([-m for m in more], [n + 2 * m for n, m in zip(of.shape, more, strict=True)])


TURNED = rotation((0.3, -0.2, 0.5))
GRIDS = {"upright": grid(), "anisotropic": grid(spacing=(3, 4, 5)), "flipped": grid(spacing=(-4, 4, -4)), "oblique": grid(turn=TURNED),
         "oblique, anisotropic, flipped": grid(spacing=(3, -4, 5), turn=TURNED[:, [1, 2, 0]])}


@pytest.mark.parametrize("name", GRIDS)
def test_a_shift_of_whole_voxels(name: str) -> None:
    """fixed(x) = moving(x + shift), with the shift in the world."""
    at = GRIDS[name]
    shift = at.affine[:3, :3] @ np.array([2.0, -1, 1])
    u = search(image(at, shift), image(wide(at)), everywhere(at), steps=2, radius=2)
    assert u.unit == "mm" and u.grid.same_as(at)
    torch.testing.assert_close(u.data, torch.tensor(shift, dtype=torch.float32)[:, None, None, None].expand(3, *at.shape), rtol=0, atol=0.05)


def test_the_moving_lattice_may_be_any() -> None:
    at, shift = grid(), np.array([4.0, 8, -4])
    moving = image(wide(grid(spacing=(3, 3.5, 4.5), turn=TURNED), 12))
    error = search(image(at, shift), moving, everywhere(at), steps=2).data - torch.tensor(shift, dtype=torch.float32)[:, None, None, None]
    assert float(error.norm(dim=0).median()) < 0.5


def test_a_smooth_displacement() -> None:
    """Up to two voxels, to better than half a voxel for nearly all voxels."""
    at = grid((18, 17, 16))
    x = at.points().double().numpy()
    true = 8.0 * np.stack([np.sin(x[..., 1] / 40), np.cos(x[..., 0] / 35), -np.exp(-(x**2).sum(-1) / 30**2)], -1)
    u = search(image(at, true), image(wide(at)), everywhere(at), steps=3, radius=2)
    error = np.linalg.norm(u.data.movedim(0, -1).numpy() - true, axis=-1)
    before = np.linalg.norm(true, axis=-1)
    assert np.median(error) < 1.6 < 0.25 * np.median(before) + 2 and np.quantile(error, 0.9) < 3 and error.mean() < 0.3 * before.mean()


def test_gain_and_offset_do_not_matter() -> None:
    at = grid((12, 12, 12))
    shift = np.array([4.0, -8, 0])
    fixed, moving = image(at, shift), image(wide(at))
    plain = search(fixed, moving, everywhere(at), steps=2)
    for gain, offset in ((300.0, -1024.0), (0.01, 0.0), (0.01, 5.0)):
        other = search(fixed, moving.with_data(gain * moving.data + offset), everywhere(at), steps=2)
        torch.testing.assert_close(other.data, plain.data, rtol=0, atol=0.05)


def test_slices_stay_in_their_plane() -> None:
    flat = Grid((24, 22, 1), grid((24, 22, 1), (3, 3, 6), TURNED).affine)
    shift = flat.affine[:3, :3] @ np.array([2.0, -3, 0])
    u = search(image(flat, shift), image(wide(flat)), everywhere(flat), steps=4, radius=3)
    normal = torch.tensor(flat.normal(2), dtype=torch.float32)
    assert float(torch.einsum("a,aijk->ijk", normal, u.data).abs().max()) < 1e-5
    error = (u.data - torch.tensor(shift, dtype=torch.float32)[:, None, None, None]).norm(dim=0)
    assert float(error.quantile(0.7)) < 0.1 and float(error.mean()) < 0.4  # few blobs cross the plane at its rim


def test_masks() -> None:
    """Where the moving image does not count its content, here a bright block, tells nothing; beyond the fixed mask nothing is sought."""
    at, shift = grid((14, 13, 12)), np.array([4.0, 0, -4])
    fixed, moving = image(at, shift), image(wide(at))
    wanted = torch.tensor(shift, dtype=torch.float32)[:, None, None, None]
    mask = everywhere(at)
    mask[:2] = False
    spoilt, counts = moving.data.clone(), torch.ones(moving.grid.shape)
    spoilt[0, 8:14, 8:14, 8:14] = -6 * spoilt[0, 8:14, 8:14, 8:14].roll(2, 0) + 5  # the same pattern, elsewhere and stronger
    counts[8:14, 8:14, 8:14] = 0
    moving = moving.with_data(spoilt)
    blind = search(fixed, moving, mask, steps=2)
    seeing = search(fixed, moving, mask, steps=2, moving_mask=moving.with_data(counts))
    wrong = [(u.data - wanted).norm(dim=0)[mask] for u in (blind, seeing)]
    assert float((wrong[1] > 2).float().mean()) < 0.02 < float((wrong[0] > 2).float().mean())
    assert not seeing.data[:, :2].any()


@pytest.mark.parametrize("name", GRIDS)
def test_both_ways_agree_afterwards(name: str) -> None:
    """A shift and its exact inverse stay as they are; of a forward one that is wrong in one place, the other way takes a half at once."""
    at = GRIDS[name]
    shift = torch.tensor(at.affine[:3, :3] @ np.array([1.0, -1, 2]), dtype=torch.float32)[:, None, None, None].expand(3, *at.shape).contiguous()
    torch.testing.assert_close(consistent(shift, -shift, at), shift, rtol=0, atol=1e-4)
    wrong = shift.clone()
    wrong[:, 7, 7, 7] += 8.0
    off = (consistent(wrong, -shift, at, rounds=1) - shift)[:, 7, 7, 7]
    torch.testing.assert_close(off, torch.full((3,), 4.0), rtol=0, atol=1e-4)


def test_consistent_steps_follow_the_displacement() -> None:
    """Stretches: u = s x and its inverse v = -s / (1 + s) x, which sampling at x instead of x + u would not leave alone."""
    at = grid((17, 17, 17))
    x = at.points().movedim(-1, 0)
    u, v = 0.25 * x, -0.2 * x
    kept = consistent(u, v, at, rounds=3)
    inside = (slice(None), *(slice(4, 13),) * 3)
    torch.testing.assert_close(kept[inside], u[inside], rtol=0, atol=1e-3)
