"""What stands before and after superres --motion: assess, segment-mask, n4, slices, and fields read as thick slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfields.fields import BSpline, Field
from medfields.io import read_volume, write_field, write_volume
from medfields.space import Grid, Volume

THICK = 6.0  # mm
SIGMA = THICK / 2.3548


@pytest.fixture
def wave(tmp_path: Path) -> tuple[Path, float]:
    """f(x) = cos(k z), nearly exactly, as a .field file; and k."""
    k = 0.7 / SIGMA
    grid = Grid.from_spacing((8, 8, 120), (4.0, 4.0, 0.5), origin=(-14, -14, -30))
    field = Field(BSpline.on(grid), grid.box(), unit="a.u.")
    # The cubic spline with samples of a wave as coefficients is that wave, damped by a known factor.
    damping = (4 + 2 * np.cos(k * 0.5)) / 6
    with torch.no_grad():
        field.net.coefficients.copy_(torch.cos(k * grid.points()[..., 2])[None] / damping)
    field.grid = grid
    write_field(field, tmp_path / "wave.field")
    return tmp_path / "wave.field", k


def test_a_thick_slice_damps_a_wave_across_it(medfields, wave: tuple[Path, float], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, k = wave
    # The slices of `like` are its first axis, which points down the wave.
    affine = np.array([[0, 0, 2.0, -3], [0, 2.0, 0, -3], [THICK, 0, 0, -12], [0, 0, 0, 1]])
    like = Grid((5, 4, 4), affine)
    write_volume(Volume(np.random.default_rng(0).normal(size=like.shape), like), tmp_path / "like.nii.gz")
    said = medfields("query", path, "-o", "out.nii.gz", "--like", "like.nii.gz", "--thickness", THICK)
    assert said.code == 0 and "a.u." in said.out, said.err
    out = read_volume(tmp_path / "out.nii.gz")
    assert out.grid.same_as(like)
    wanted = torch.cos(k * like.points()[..., 2]) * float(np.exp(-((k * SIGMA) ** 2) / 2))
    assert float((out.data[0] - wanted).abs().max()) < 0.01
    assert medfields("query", path, "-o", "axial.nii.gz", "--orientation", "axial", "--thickness", THICK).code == 0
    axial = read_volume(tmp_path / "axial.nii.gz")
    assert np.allclose(axial.grid.spacing, [4, 4, THICK]) and axial.grid.shape == (8, 8, 10)
    wanted = torch.cos(k * axial.grid.points()[..., 2]) * float(np.exp(-((k * SIGMA) ** 2) / 2))
    assert float((axial.data[0] - wanted)[:, :, 2:-2].abs().max()) < 0.01
    assert medfields("query", path, "-o", "sagittal.nii.gz", "--orientation", "sagittal", "--thickness", THICK, "--spacing", 2).code == 0
    side = read_volume(tmp_path / "sagittal.nii.gz")  # the wave runs within these slices, which leave it as it is
    assert np.allclose(side.grid.spacing, [2, 2, THICK]) and abs(side.grid.directions[0, 2]) == 1
    assert float((side.data[0] - torch.cos(k * side.grid.points()[..., 2]))[:, 2:-2].abs().max()) < 0.01


def test_slices_are_asked_for_in_one_way(medfields, wave: tuple[Path, float], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, _ = wave
    for words, told in ((("--thickness", "5"), "--orientation axial"), (("--orientation", "axial"), "--thickness MM"),
                        (("--thickness", "-1", "--orientation", "axial"), "must be in (0, 100]"),
                        (("--thickness", "5", "--orientation", "axial", "--gradient", "vector"), "exclude one another")):
        said = medfields("query", path, "-o", "x.nii.gz", *words)
        assert said.code in (2, 3) and told in said.err, said.err
    assert not (tmp_path / "x.nii.gz").exists()
