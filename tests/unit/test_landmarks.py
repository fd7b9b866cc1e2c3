"""Landmark files of others: the same point, whoever wrote it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from io_samples import oblique
from medfields.errors import FileError, GeometryError, InputError, MedfieldsError
from medfields.io.landmarks import inside_of, read_landmarks, read_pairs, write_landmarks
from medfields.space import Grid

DATA = Path(os.environ.get("MEDFIELDS_DATA", "/work/shared/data"))
RAS = np.array([[1.5, -2.25, 30.0], [-100.125, 20.0, -1400.5]])
LPS = RAS * [-1, -1, 1]


def rows(points: np.ndarray, separator: str = ",", extra: str = "") -> str:
    return "".join(separator.join(f"{v}" for v in p) + extra + "\n" for p in points)


def markups(points: np.ndarray, **facts: object) -> str:
    controls = [{"id": str(n), "position": list(map(float, p)), "positionStatus": "defined"} for n, p in enumerate(points)]
    return json.dumps({"@schema": "markups", "markups": [{"type": "Fiducial", "controlPoints": controls, **facts}]})


FCSV = "# Markups fiducial file version = 4.11\n# CoordinateSystem = {}\n# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc\n"


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", "x,y,z\n" + rows(RAS)),
    ("a.csv", "\ufeffX, Y, Z\n\n" + rows(RAS)),  # as a spreadsheet writes it
    ("a.csv", "label,r,a,s\n" + "".join(f"p,{p}" for p in rows(RAS).splitlines(True))),
    ("a.csv", "l,p,s\n" + rows(LPS)),
    ("a.csv", "x,y,z,t,label\n" + rows(LPS, extra=",0,3")),
    ("a.txt", "point\n2\n" + rows(LPS, " ")),
    ("A.TXT", "Point\n2\n" + rows(LPS, "  ") + "\n"),
    ("a.fcsv", FCSV.format("LPS") + "".join(f"n1,{p},0,0,0,1,1,1,0,F-1,,\n" for p in rows(LPS).splitlines())),
    ("a.fcsv", FCSV.format("0") + "".join(f"n1,{p},0,0,0,1,1,1,0,F-1,,\n" for p in rows(RAS).splitlines())),
    ("a.fcsv", FCSV.format("1") + "".join(f"n1,{p},0,0,0,1,1,1,0,F-1,,\n" for p in rows(LPS).splitlines())),
    ("a.mrk.json", markups(LPS, coordinateSystem="LPS", coordinateUnits="mm")),
    ("a.mrk.json", markups(RAS, coordinateSystem="RAS", coordinateUnits=["mm", "length"])),
    ("a.mrk.json", markups(LPS))])
def test_every_file_says_the_same_points(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_landmarks(tmp_path / name)
    assert found.dtype == np.float64 and found.shape == (2, 3)
    np.testing.assert_array_equal(found, RAS)


def test_space_overrules_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y,z\n" + rows(LPS))
    np.testing.assert_array_equal(read_landmarks(path, space="LPS"), RAS)
    path.write_text("x,y,z,t,label\n" + rows(RAS, extra=",0,3"))
    np.testing.assert_array_equal(read_landmarks(path, space="RAS"), RAS)
    (tmp_path / "a.txt").write_text("point\n2\n" + rows(LPS, " "))
    with pytest.raises(InputError, match="its own coordinate system"):
        read_landmarks(tmp_path / "a.txt", space="RAS")


def test_round_trip_keeps_every_digit(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(0, 300, (40, 3))
    write_landmarks(points, tmp_path / "new/a.csv")
    np.testing.assert_array_equal(read_landmarks(tmp_path / "new/a.csv"), points)
    assert (tmp_path / "new/a.csv").read_text().startswith("x,y,z\n")


def test_voxels_counted_from_0_and_from_1(tmp_path: Path) -> None:
    grid, index = oblique((9, 8, 7)), np.array([[0, 0, 0], [8, 7, 6], [3, 2, 1]])
    (tmp_path / "a.txt").write_text("index\n3\n" + rows(index, " "))
    (tmp_path / "Case1_300_T00_xyz.txt").write_text(rows(index + 1, "\t"))
    (tmp_path / "copd1_300_iBH_xyz_r1.txt").write_text(rows(index + 1, "\t"))
    for name in ("a.txt", "Case1_300_T00_xyz.txt", "copd1_300_iBH_xyz_r1.txt"):
        np.testing.assert_allclose(read_landmarks(tmp_path / name, grid), grid.world(index), atol=1e-12)
        with pytest.raises(InputError, match="counts voxels"):
            read_landmarks(tmp_path / name)
    (tmp_path / "a_xyz.txt").write_text(rows(index, "\t"))  # from 0 where 1 is meant
    with pytest.raises(InputError, match=r"point 1 is voxel 0, 0, 0, beyond .* counted from 1"):
        read_landmarks(tmp_path / "a_xyz.txt", grid)
    (tmp_path / "a.txt").write_text("index\n1\n9 0 0\n")
    with pytest.raises(InputError, match="point 1 is voxel 9, 0, 0, beyond"):
        read_landmarks(tmp_path / "a.txt", grid)


@pytest.mark.parametrize(("name", "text", "kind", "words"), [
    ("a.csv", "1,2,3\n4,5,6\n", FileError, "no header"),
    ("a.csv", "x,y,z\n1,2,3\n4,5\n", FileError, "point 2 is not three numbers"),
    ("a.csv", "x,y,z\n1,2,three\n", FileError, "point 1 is not three numbers"),
    ("a.csv", "x,y,z\n", FileError, "holds no points"),
    ("a.csv", "x,y,z\n1,2,3\n1,nan,3\n", InputError, "not finite, first in point 2"),
    ("a.txt", "point\n3\n1 2 3\n4 5 6\n", FileError, "states 3 points and holds 2"),
    ("a.txt", "point\n", FileError, "states no points"),
    ("a.txt", "1 2 3\n4 5 6\n", FileError, "neither with 'point' nor with 'index'"),
    ("a.fcsv", FCSV.format("2") + "n,1,2,3\n", GeometryError, "coordinate system '2'"),
    ("a.fcsv", "n,1,2,3\n", GeometryError, "coordinate system 'of none'"),
    ("a.mrk.json", "{", FileError, "no markups file"),
    ("a.mrk.json", '{"markups": [{}]}', FileError, "no markups file"),
    ("a.mrk.json", markups(RAS, coordinateUnits="m"), GeometryError, "lengths in m"),
    ("a.mrk.json", markups(RAS, coordinateSystem="IJK"), GeometryError, "coordinate system 'IJK'"),
    ("a.mrk.json", markups(RAS).replace('"defined"', '"undefined"', 1), FileError, "never placed"),
    ("a.vtk", "x", FileError, "no known kind"),
    ("a.csv", "", FileError, "is empty")])
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str, text: str, kind: type[MedfieldsError], words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(kind, match=words) as caught:
        read_landmarks(tmp_path / name)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_binary_content(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(bytes(range(256)))
    with pytest.raises(FileError, match="cannot read"):
        read_landmarks(tmp_path / "a.csv")


# ---- pairs

GRID = Grid.from_spacing((40, 30, 20), 2.0, (-200.0, 100.0, -1000.0))


def saved(folder: Path, name: str, points: np.ndarray) -> Path:
    write_landmarks(points, folder / name)
    return folder / name


def test_pairs_outside_are_marked(tmp_path: Path) -> None:
    fixed = GRID.world(np.array([[1, 1, 1], [-0.49, 0, 0], [-0.51, 0, 0], [5, 5, 5], [39.4, 29.4, 19.4]]))
    moving = GRID.world(np.array([[2, 2, 2], [1, 1, 1], [1, 1, 1], [5, 5, 19.6], [1, 1, 1]]))
    made = read_pairs(saved(tmp_path, "f.csv", fixed), saved(tmp_path, "m.csv", moving), GRID, GRID)
    assert made.inside.tolist() == [True, True, False, False, True]
    np.testing.assert_array_equal(made.fixed, fixed)
    np.testing.assert_array_equal(inside_of(moving, GRID), [True, True, True, False, True])


def test_counts_must_agree_and_something_must_be_inside(tmp_path: Path) -> None:
    inside = GRID.world(np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]]))
    with pytest.raises(InputError, match=r"holds 3 landmarks, .* 2"):
        read_pairs(saved(tmp_path, "f.csv", inside), saved(tmp_path, "m.csv", inside[:2]), GRID, GRID)
    with pytest.raises(InputError, match="none of the 3 landmark pairs"):
        read_pairs(saved(tmp_path, "f.csv", inside), saved(tmp_path, "m.csv", inside + 500), GRID, GRID)


def test_voxel_indices_are_not_taken_for_mm(tmp_path: Path) -> None:
    index, good = np.array([[1.0, 2, 3], [20, 10, 5], [39, 29, 19]]), GRID.world(np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]]))
    path = saved(tmp_path, "voxels.csv", index)
    for pair in ((path, saved(tmp_path, "g.csv", good)), (tmp_path / "g.csv", path)):
        with pytest.raises(InputError, match="these look like voxel indices"):
            read_pairs(*pair, GRID, GRID)
    (tmp_path / "point.txt").write_text("point\n3\n" + rows(index, " "))  # flipped as LPS on the way
    with pytest.raises(InputError, match="these look like voxel indices"):
        read_pairs(tmp_path / "point.txt", tmp_path / "g.csv", GRID, GRID)
    upright = Grid.from_spacing((40, 30, 20), 1.0)  # here they are mm as well
    assert read_pairs(path, path, upright, upright).inside.all()


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no shared images in {DATA}")
def test_real_lung() -> None:
    """50 expert pairs of both lungs, of which 22 lie inside the images of one."""
    from medfields.io import read_volume

    folder = DATA / "e_registration"
    grids = [read_volume(folder / f"3DCT_lung_{when}.mha").grid for when in ("baseline", "followup")]
    pairs = read_pairs(*[folder / f"3DCT_lung_{when}_landmarks_dev50.txt" for when in ("baseline", "followup")], *grids)
    assert len(pairs.fixed) == 50 and pairs.inside.sum() == 22
    distances = np.linalg.norm(pairs.fixed - pairs.moving, axis=1)[pairs.inside]
    assert distances.mean() == pytest.approx(36.27, abs=0.01)
