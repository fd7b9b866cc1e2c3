"""Rigid registration finds the pose that moved an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfields.cases import Projections
from medfields.solve.rigid import carried, register
from medfields.space import Grid, Volume
from medfields.space.rigid import move

BLOBS = (((0, 0, 0), (30, 25, 30), 0.02), ((10, 5, 5), (8, 6, 9), 0.01), ((-12, -4, -10), (5, 9, 7), 0.02), ((0, 10, 12), (6, 4, 8), -0.01))


def apart(a: torch.Tensor, b: torch.Tensor, grid: Grid) -> float:
    """The largest distance between where two poses take the grid's points, in voxels."""
    x, about = grid.points().reshape(-1, 3), torch.tensor(grid.centre, dtype=torch.float32)
    both = [move(p.expand(len(x), 6), x, about) for p in (a, b)]
    return float((both[0] - both[1]).norm(dim=1).max() / grid.spacing[0])


@pytest.mark.parametrize(("degrees", "mm"), [(5, 8), (-12, 15), (0, 25), (20, 0)])
def test_slice(degrees: float, mm: float) -> None:
    case = Projections.toy(0, size=48)
    pose = torch.tensor([0, 0, np.radians(degrees), mm, -mm / 2, 0], dtype=torch.float32)
    assert case.prior is not None
    found = register(case.prior, carried(case.prior, pose, case.grid))
    assert apart(found, pose, case.grid) < 0.3


def test_slices_of_two_heights_are_laid_in_their_plane() -> None:
    case = Projections.toy(0, size=48)
    affine = case.grid.affine.copy()
    affine[:3, 3] += (6, -4, 300)
    assert case.prior is not None
    found = register(Volume(case.prior.data, Grid(case.grid.shape, affine)), case.rough(48, 60, 30))
    assert torch.allclose(found[3:5], torch.tensor([6.0, -4.0]), atol=0.6) and found[[0, 1, 5]].abs().max() == 0 and abs(found[2]) < 0.04


def test_volume_with_oblique_axes() -> None:
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (2, 2, 2.5)
    affine[:3, 3] = -affine[:3, :3] @ (19.5, 17.5, 14.5) + (100, 0, -50)
    grid = Grid((40, 36, 30), affine)
    local = torch.as_tensor((grid.points().numpy() - grid.centre) @ turn)
    data = sum(value * ((((local - torch.tensor(c)) / torch.tensor(r)) ** 2).sum(-1) < 1).float() for c, r, value in BLOBS)
    volume = Volume(data, grid)
    pose = torch.tensor([*np.radians([3, -4, 5]), 5, -4, 4], dtype=torch.float32)
    assert apart(register(volume, carried(volume, pose, grid)), pose, grid) < 0.3


def test_the_zero_pose_reads_the_image_where_it_lies() -> None:
    case = Projections.toy(0)
    assert case.prior is not None
    assert torch.allclose(carried(case.prior, torch.zeros(6), case.grid).data, case.prior.data, atol=1e-6)
