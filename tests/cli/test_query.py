"""query: a field on grids and at points, values and gradients."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from medfields.fields import BSpline, Field
from medfields.io import read_volume, write_field, write_volume
from medfields.space import Grid, Volume

GRID = Grid.from_spacing((9, 8, 7), 2.0, origin=(-5, 3, 10))
SLOPE = np.array([1.5, -2.0, 0.5])  # per mm


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """f(x) = slope . x, exactly, as a .field file."""
    field = Field(BSpline.on(GRID), GRID.box(), unit="HU")
    with torch.no_grad():
        field.net.coefficients.copy_(torch.as_tensor(GRID.points().double() @ torch.as_tensor(SLOPE))[None])
    field.grid = GRID
    write_field(field, tmp_path / "ramp.field")
    return tmp_path / "ramp.field"


def inner(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """World points and values away from the border, where interpolation is exact."""
    return volume.grid.points()[2:-2, 2:-2, 2:-2].numpy(), volume.data[:, 2:-2, 2:-2, 2:-2].numpy()


def test_spacing_covers_the_same_field_of_view(medfields, ramp: Path, tmp_path: Path) -> None:
    said = medfields("query", ramp, "-o", "fine.nii.gz", "--spacing", 1)
    assert said.code == 0 and "18 x 16 x 14" in said.out and "HU" in said.out
    volume = read_volume(tmp_path / "fine.nii.gz")
    x, v = inner(volume)
    assert np.allclose(volume.grid.box().lo, GRID.box().lo) and np.allclose(v[0], x @ SLOPE, atol=1e-3)


def test_own_grid_and_grid_of_another_image(medfields, ramp: Path, tmp_path: Path) -> None:
    assert medfields("query", ramp, "-o", "own.nii.gz").code == 0
    assert read_volume(tmp_path / "own.nii.gz").grid.same_as(GRID)
    other = GRID.crop((2, 2, 2), (3, 4, 2))
    write_volume(Volume(np.zeros((3, 4, 2)), other), tmp_path / "ref.nii.gz")
    assert medfields("query", ramp, "-o", "like.nii.gz", "--like", "ref.nii.gz").code == 0
    volume = read_volume(tmp_path / "like.nii.gz")
    assert volume.grid.same_as(other) and np.allclose(volume.data[0], other.points().numpy() @ SLOPE, atol=1e-3)


def test_a_dicom_series_is_written_again_by_the_same_command(medfields, ramp: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert medfields("query", ramp, "-o", "series/").code == 0
    assert len(list((tmp_path / "series").iterdir())) == GRID.shape[2]


def test_a_field_without_a_grid_needs_a_spacing(medfields, tmp_path: Path) -> None:
    write_field(Field(BSpline.on(GRID), GRID.box()), tmp_path / "x.field")
    said = medfields("query", "x.field", "-o", "x.nii.gz")
    assert said.code == 2 and "--spacing" in said.err
    assert medfields("query", "x.field", "-o", "x.nii.gz", "--spacing", 2).code == 0
    assert read_volume(tmp_path / "x.nii.gz").grid.same_as(GRID)


def test_gradient_is_per_mm(medfields, ramp: Path, tmp_path: Path) -> None:
    assert medfields("query", ramp, "-o", "m.nii.gz", "--gradient", "magnitude", "--spacing", 1).code == 0
    _, magnitude = inner(read_volume(tmp_path / "m.nii.gz"))
    assert np.allclose(magnitude, np.linalg.norm(SLOPE), atol=1e-4)
    assert medfields("query", ramp, "-o", "v.nii.gz", "--gradient", "vector", "--spacing", 1).code == 0
    _, vector = inner(read_volume(tmp_path / "v.nii.gz", channels=True))
    assert np.allclose(np.moveaxis(vector, 0, -1), SLOPE, atol=1e-4)


def test_points_from_a_table(medfields, ramp: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("name, z, x ,y\na,14,0.5,6\nb,15.25,1,7\n")
    assert medfields("query", ramp, "-o", "v.csv", "--points", "p.csv").code == 0
    rows = list(csv.DictReader((tmp_path / "v.csv").open()))
    for row, point in zip(rows, ([0.5, 6, 14], [1, 7, 15.25]), strict=True):
        assert [float(row[a]) for a in "xyz"] == point and float(row["value"]) == pytest.approx(np.dot(point, SLOPE), abs=1e-3)
    assert medfields("query", ramp, "-o", "g.csv", "--points", "p.csv", "--gradient", "vector").code == 0
    row = next(csv.DictReader((tmp_path / "g.csv").open()))
    assert [float(row[f"dvalue/d{a}"]) for a in "xyz"] == pytest.approx(SLOPE, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("-o", "x.nii.gz", "--spacing", "0"), 3, "positive"),
        (("-o", "x.nii.gz", "--spacing=-1"), 3, "positive"),
        (("-o", "x.nii.gz", "--spacing", "nan"), 3, "positive"),
        (("-o", "x.nii.gz", "--spacing", "1e-4"), 7, "GiB"),
        (("-o", "x.nii.gz", "--spacing", "1", "--like", "y.nii.gz"), 2, "exclude"),
        (("-o", "./own.nii.gz", "--like", "missing.nii.gz"), 4, "missing.nii.gz"),  # the result exists already
        (("-o", "x.nii.gz", "--points", "p.csv"), 2, "values.csv"),
        (("-o", "x.csv", "--points", "missing.csv"), 4, "missing.csv"),
        (("-o", "x.csv", "--points", "bad.csv"), 4, "line 3"),
        (("-o", "x.csv", "--points", "noheader.csv"), 4, "x,y,z"),
        (("-o", "x.csv", "--points", "none.csv"), 4, "no points"),
        (("-o", "./p.csv", "--points", "p.csv"), 5, "overwritten"),
        (("-o", "x.xyz"), 5, ".nii.gz"),
        (("-o", "x.nii.gz", "--threads", "0"), 2, "threads"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(medfields, ramp: Path, tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    (tmp_path / "bad.csv").write_text("x,y,z\n0,0,0\n0,zero,0\n")
    (tmp_path / "noheader.csv").write_text("0,0,0\n")
    (tmp_path / "none.csv").write_text("x,y,z\n")
    (tmp_path / "own.nii.gz").write_text("of an earlier call")
    (tmp_path / "p.csv").write_text("x,y,z\n0,0,0\n")
    before = set(tmp_path.iterdir())
    said = medfields("query", ramp, *words)
    assert said.code == code and says in said.err and said.err.startswith("medfields: error: "), said.err
    assert set(tmp_path.iterdir()) == before


def test_points_outside_the_field_are_nan_and_said(medfields, ramp: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y,z\n900,0,0\n" + ",".join(f"{v:g}" for v in GRID.centre) + "\n")
    done = medfields("query", ramp, "-o", "v.csv", "--points", "p.csv")
    rows = (tmp_path / "v.csv").read_text().splitlines()
    assert done.code == 0 and "1 of them outside" in done.out and rows[1].endswith("nan") and not rows[2].endswith("nan")
