"""ultrasound from file to file: what it writes and says, and what bad input gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfields.io import read_field, read_volume, write_volume
from medfields.space import Grid, Volume
from sweep_samples import SHAPE, calibration, fields, places, ramp, write

GIVEN = ("ultrasound", "s.igs.mha", "--calibration", "c.xml")
FAST = ("--method", "nearest")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A file of frames that are a ramp, and the calibration of its probe."""
    calibration(tmp_path / "c.xml")
    return write(tmp_path / "s.igs.mha", ramp(places()).round(), fields())


def test_writes_volume_field_and_report(medfields, sweep: Path, tmp_path: Path) -> None:
    said = medfields(*GIVEN, "-o", "v.nii.gz", "--spacing", 1, *FAST)
    assert said.code == 0, said.err
    assert {"v.nii.gz", "v.field", "v.run"} <= {p.name for p in tmp_path.iterdir()}
    volume, field = read_volume("v.nii.gz"), read_field("v.field")
    middle = np.array([-1.0, -1.0, 1.0]) * places()[4, SHAPE[0] // 2, SHAPE[1] // 2]  # RAS
    value = float(volume(torch.tensor(middle, dtype=torch.float32)))
    assert value == pytest.approx(ramp(places())[4, SHAPE[0] // 2, SHAPE[1] // 2], abs=5)
    assert torch.allclose(field.on(volume.grid).volume().data, volume.data, atol=1e-3)
    page = (tmp_path / "v.run/report.html").read_text()
    for word in ("sweep of 9 frames", "Three planes", "Frames and the result", "The path of the probe", "gaps along the sweep"):
        assert word in page
    for word in ("v.nii.gz", "v.field", "nearest:", "1 x 1 x 1 mm"):
        assert word in said.out
    assert "the result lies in the frame 'Reference' of the tracking" in said.err and "are set to 0" in said.err


def test_the_default_method_runs(medfields, sweep: Path) -> None:
    said = medfields(*GIVEN, "-o", "v.nii.gz")
    assert said.code == 0, said.err
    assert "compounding:" in said.out and torch.isfinite(read_volume("v.nii.gz").data).all()


def test_a_field_is_0_where_no_frame_reached_in_the_volume_alone(medfields, sweep: Path) -> None:
    grid = Grid.from_spacing((30, 30, 30), 2.0, (np.array([-1.0, -1.0, 1.0]) * places().reshape(-1, 3).mean(0) - 29).tolist())
    write_volume(Volume(np.zeros(grid.shape), grid), "g.nii.gz")
    said = medfields(*GIVEN, "-o", "v.nii.gz", "--like", "g.nii.gz", "--method", "us-field", "--steps", 5)
    assert said.code == 0, said.err
    volume, field = read_volume("v.nii.gz"), read_field("v.field")
    reach = field.about["reach_mm"]
    x = grid.points().numpy().reshape(-1, 3)
    away = np.full(len(x), np.inf)
    for pixel in np.array([-1.0, -1.0, 1.0]) * places()[:, ::3, ::3].reshape(-1, 3):
        away = np.minimum(away, np.linalg.norm(x - pixel, axis=1))
    values, free = volume.data.numpy().ravel(), field.on(grid).volume().data.numpy().ravel()
    assert (values[away > reach + 3.5] == 0).all() and (away > reach + 3.5).mean() > 0.5 and (free[away > reach + 3.5] != 0).mean() > 0.9
    assert np.allclose(values[away < reach / 2], free[away < reach / 2], atol=1e-2)


def test_the_resolved_configuration_does_the_same_again_and_the_report_too(medfields, sweep: Path, tmp_path: Path) -> None:
    assert medfields(*GIVEN, "-o", "a.nii.gz", "--spacing", 2, *FAST, "--stick", 3).code == 0
    assert medfields("ultrasound", "--config", "a.run/config.toml", "-o", "b.nii.gz").code == 0
    assert torch.equal(read_volume("a.nii.gz").data, read_volume("b.nii.gz").data)
    page = tmp_path / "a.run/report.html"
    before = page.read_text()
    page.unlink()
    assert medfields("report", "a.run").code == 0 and page.read_text() == before
    assert medfields("report", "a.run", "--truth", "a.nii.gz").code == 2


def test_like_takes_the_grid_of_another_image(medfields, sweep: Path) -> None:
    centre = np.array([-1.0, -1.0, 1.0]) * places().reshape(-1, 3).mean(0)
    grid = Grid.from_spacing((7, 8, 9), (1.5, 1.0, 1.2), (centre - [4.5, 3.5, 4.8]).tolist())
    write_volume(Volume(np.zeros(grid.shape), grid), "g.nii.gz")
    said = medfields(*GIVEN, "-o", "v.nii.gz", "--like", "g.nii.gz", *FAST)
    assert said.code == 0, said.err
    assert read_volume("v.nii.gz").grid.same_as(grid)
    assert medfields(*GIVEN, "-o", "v.nii.gz", "--like", "g.nii.gz", "--spacing", 1, *FAST).code == 2


def test_check_says_and_draws_the_frames_and_stops(medfields, sweep: Path, tmp_path: Path) -> None:
    said = medfields(*GIVEN, "--check")
    assert said.code == 0, said.err
    words = " ".join(said.out.split())
    assert f"9 of {SHAPE[0]} x {SHAPE[1]} pixels of 0.804 mm" in words and "'Reference'" in words
    colours = np.asarray(Image.open(tmp_path / "s.igs.mha.check.png")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 50 and not list(tmp_path.glob("*.run"))


@pytest.mark.parametrize(("words", "code", "told"), [
    (("ultrasound", "s.igs.mha", "-o", "v.nii.gz"), 3, "--calibration"),
    (("ultrasound", "-o", "v.nii.gz"), 2, "nothing to work on"),
    (("ultrasound", "c.xml", "-o", "v.nii.gz"), 4, "no tracked sweep"),
    ((*GIVEN, "-o", "v.nii.gz", "--unit", "m"), 3, "would have moved"),
    ((*GIVEN, "-o", "v.nii.gz", "--spacing", "-1"), 3, "spacing must be positive"),
    ((*GIVEN, "-o", "v.nii.gz", "--method", "sirt"), 2, "is for ct"),
    ((*GIVEN, "-o", "s.igs.mha"), 5, "would be overwritten"),
    ((*GIVEN, "-o", "v.png"), 2, "does not say its format"),
])
def test_bad_input_gets_a_line_a_hint_and_no_files(medfields, sweep: Path, tmp_path: Path, words: tuple[str, ...], code: int, told: str) -> None:
    before = sweep.read_bytes()
    said = medfields(*words)
    assert said.code == code and told in said.err and "hint:" in said.err and "Traceback" not in said.err
    assert {p.name for p in tmp_path.iterdir()} == {"s.igs.mha", "c.xml"} and sweep.read_bytes() == before
