"""The report of slices that moved says what was found, and shows what slices would measure of the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfields.cases import Slices
from medfields.errors import FileError
from medfields.report.motion import motion_page, simulated
from medfields.solve.motion import Found
from medfields.space import Volume
from medfields.space.rigid import maps_of

CASE = Slices.toy()
N = len(CASE.slices)
POSES = np.c_[np.radians(np.linspace(1, 3, N)), np.zeros((N, 2)), np.zeros((N, 1)), np.linspace(0.5, 2.5, N), np.zeros((N, 1))]
MOTION = {"about": CASE.middle.tolist(), "poses": POSES.tolist(), "gain": [1.5] * N, "worth": [0.0, *[1.0] * (N - 1)],
          "likeness": [0.31, *np.linspace(0.9, 0.99, N - 1)]}


def test_a_simulated_slice_is_the_result_at_its_pose_times_its_gain() -> None:
    x = CASE.grid.points()
    ramp = Volume(100 + 2 * x[..., 0] - 3 * x[..., 1] + x[..., 2], CASE.grid)
    maps = maps_of(POSES, CASE.middle)
    offset = CASE.level()[0]
    shown = simulated(CASE, ramp, Found(maps, np.full(N, 1.5), np.ones(N), np.ones(N)))
    for n in (2, 9, 14):
        s = CASE.slices[n]
        at = s.mask.nonzero().double().numpy()
        affine = maps[n] @ s.image.grid.affine
        x = at @ affine[:3, :2].T + affine[:3, 3]
        inner = np.linalg.norm(x, axis=1) < 5
        wanted = offset + 1.5 * (100 + x @ [2.0, -3.0, 1.0] - offset)
        np.testing.assert_allclose(shown[n][s.mask].numpy()[inner], wanted[inner], atol=0.05)
        assert inner.sum() > 4 and torch.isnan(shown[n][~s.mask]).all()


def test_the_page_says_how_far_slices_moved_and_which_are_left_out(tmp_path: Path) -> None:
    result = Volume(torch.rand(CASE.grid.shape), CASE.grid)
    text = motion_page(CASE, result, tmp_path, MOTION, notes=["two masks were found"]).read_text()
    assert "moved by 2.0 degrees and 1.5 mm in the median, by 3.0 degrees and 2.5 mm at most" in text
    assert "1 was left out" in text and "unlike the subject: correlation 0.31, below 0.5" in text and "two masks were found" in text
    for name in CASE.names:
        assert f"{name}: how slices turned" in text and f"{name}, slice" in text
    assert "Slices that were left out" in text and text.count("<svg") == len(CASE.names) + 1
    kept = motion_page(CASE, result, tmp_path, {**MOTION, "worth": [1.0] * N}).read_text()
    assert "None was left out" in kept and "Slices that were left out" not in kept


def test_a_page_needs_its_run(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no run folder"):
        motion_page(CASE, Volume(torch.rand(CASE.grid.shape), CASE.grid), tmp_path / "none", MOTION)
