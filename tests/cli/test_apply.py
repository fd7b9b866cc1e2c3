"""apply: one warp, every kind of thing it carries, every format it is written in, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfields.cli.apply import apply, read_warp
from medfields.errors import FileError, InputError, MedfieldsError, OutputError
from medfields.fields import BSpline, Field, displacement
from medfields.io import read_volume, write_field, write_volume
from medfields.io.transforms import read_affine, write_affine
from medfields.space import Grid, Volume

GRID = Grid.from_spacing((12, 10, 8), 2.0, (-5, 3, 10))
SHIFT = np.array([4.0, -2.0, 2.0])  # mm: two voxels, minus one, one


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A warp that shifts, an image, labels, points."""
    monkeypatch.chdir(tmp_path)
    warp = displacement(BSpline.on(GRID, 3), GRID.box())
    with torch.no_grad():
        warp.net.coefficients.copy_(torch.tensor(SHIFT, dtype=torch.float32)[:, None, None, None] / float(warp.radius[0]))
    warp.grid = GRID
    write_field(warp, "warp.field")
    values = np.random.default_rng(0).integers(5, 200, GRID.shape)
    write_volume(Volume(values, GRID), "scan.nii.gz")
    write_volume(Volume(values, GRID), "labels.nii.gz", dtype="int16")
    Path("p.csv").write_text("name,x,y,z\na,0,8,16\nb,900,9,17.5\n")
    return tmp_path


def test_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What lies two voxels further comes; what was not seen is as the emptiest voxel, and said."""
    scan = read_volume("scan.nii.gz").data[0]
    apply("warp.field", "scan.nii.gz", output="out.nii.gz")
    said = capsys.readouterr().out
    out = read_volume("out.nii.gz")
    assert out.grid.same_as(GRID) and "12 x 10 x 8 voxels" in said and "point outside the image and got 5" in said
    np.testing.assert_allclose(out.data[0, :-2, 1:, :-1], scan[2:, :-1, 1:], atol=1e-3)
    assert (out.data[0, -2:] == 5).all() and f"{100 * (1 - 10 * 9 * 7 / 960):.2g} %" in said
    apply("warp.field", "scan.nii.gz", output="cubic.mha", interpolation="cubic")
    np.testing.assert_allclose(read_volume("cubic.mha").data[0, :-2, 1:, :-1], scan[2:, :-1, 1:], atol=0.01)
    small = GRID.crop((3, 3, 3), (4, 4, 2))
    write_volume(Volume(np.zeros(small.shape), small), "small.nii.gz")
    apply("warp.field", "scan.nii.gz", output="like.nii.gz", like="small.nii.gz")
    np.testing.assert_allclose(read_volume("like.nii.gz").data[0], scan[5:9, 2:6, 4:6], atol=1e-3)
    assert "outside" not in capsys.readouterr().out.splitlines()[-1]
    apply("warp.field", "scan.nii.gz", output="back.nii.gz", like="scan.nii.gz", inverse=True)
    np.testing.assert_allclose(read_volume("back.nii.gz").data[0, 2:, :-1, 1:], scan[:-2, 1:, :-1], atol=0.1)
    assert "the inverse misses by at most" in capsys.readouterr().out


def test_an_image_that_does_not_belong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = Grid.from_spacing((3, 3, 3), 1.0, (500, 500, 500))
    write_volume(Volume(np.arange(27.0).reshape(far.shape), far), "far.nii.gz")
    apply("warp.field", "far.nii.gz", output="out.nii.gz")
    assert "ALL of it points outside" in capsys.readouterr().out


def test_labels_and_doses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import nibabel

    labels = read_volume("labels.nii.gz").data[0]
    apply("warp.field", "labels.nii.gz", output="l.nii.gz", labels=True)
    stored = nibabel.load("l.nii.gz")
    assert stored.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(stored.dataobj)[:-2, 1:, :-1], labels[2:, :-1, 1:])
    assert (np.asarray(stored.dataobj)[-2:] == 0).all()
    for kind in ("dose", "energy"):  # a shift keeps both
        apply("warp.field", "scan.nii.gz", output=f"{kind}.nii.gz", dose=kind)
    np.testing.assert_allclose(read_volume("energy.nii.gz").data, read_volume("dose.nii.gz").data, rtol=1e-4)
    matrix = np.diag([2.0, 1, 1, 1])
    write_affine(matrix, "stretch.tfm")
    for kind in ("dose", "energy"):
        apply("stretch.tfm", "scan.nii.gz", output=f"{kind}.nii.gz", dose=kind, like="scan.nii.gz")
    np.testing.assert_allclose(read_volume("energy.nii.gz").data, 2 * read_volume("dose.nii.gz").data, rtol=1e-4)


def test_points(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apply("warp.field", "p.csv", output="q.csv")
    assert "2 points, 1 of them outside the warp's box" in capsys.readouterr().out
    np.testing.assert_allclose(np.loadtxt("q.csv", delimiter=",", skiprows=1), [[4, 6, 18], [904, 7, 19.5]], atol=1e-3)
    apply("warp.field", "q.csv", output="back.csv", inverse=True)
    assert Path("back.csv").read_text().startswith("x,y,z,missed\n") and "the inverse misses by at most" in capsys.readouterr().out
    np.testing.assert_allclose(np.loadtxt("back.csv", delimiter=",", skiprows=1), [[0, 8, 16, 0], [900, 9, 17.5, 0]], atol=2e-3)


def test_surfaces(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.icosphere(1, 2.0).apply_translation((4, 10, 16)).export("ball.stl")
    apply("warp.field", "ball.stl", output="moved.ply")
    assert "80 triangles" in capsys.readouterr().out
    np.testing.assert_allclose(trimesh.load("moved.ply").centroid, (8, 8, 18), atol=1e-3)


@pytest.mark.parametrize("name", ["w.h5", "w.tfm", "w.txt", "w.nii.gz", "w.mha", "w.field"])
def test_the_warp_in_other_formats(folder: Path, name: str) -> None:
    """Out, in again as a .field, and it still carries points as before."""
    pytest.importorskip("SimpleITK")
    apply("warp.field", output=name)
    apply(name, output="again.field")
    x = torch.tensor([[0.0, 8.0, 16.0], [5.0, 9.5, 18.0]])
    again = read_warp("again.field")
    np.testing.assert_allclose(again(x).detach(), np.tile(SHIFT, (2, 1)), atol=1e-3)
    assert again.grid is not None and again.grid.same_as(GRID)


def test_vectors_and_inverses_of_exports(folder: Path) -> None:
    import nibabel

    apply("warp.field", output="itk.nii.gz")
    apply("warp.field", output="ras.nii.gz", vectors="nifti")
    np.testing.assert_allclose(nibabel.load("itk.nii.gz").get_fdata()[3, 3, 3, 0], SHIFT * [-1, -1, 1], atol=1e-4)
    np.testing.assert_allclose(nibabel.load("ras.nii.gz").get_fdata()[3, 3, 3, 0], SHIFT, atol=1e-4)
    apply("warp.field", output="back.h5", inverse=True, like="scan.nii.gz")
    np.testing.assert_allclose(read_warp("back.h5")(torch.tensor([[4.0, 8, 16]])).detach()[0], -SHIFT, atol=2e-3)
    matrix = np.eye(4)
    matrix[:3, 3] = SHIFT
    write_affine(matrix, "a.mat")
    apply("a.mat", output="inverse.mat", inverse=True, like="scan.nii.gz")
    np.testing.assert_allclose(read_affine("inverse.mat"), np.linalg.inv(matrix), atol=1e-12)


@pytest.mark.parametrize(
    ("warp", "what", "options", "kind", "says"),
    [
        ("one.field", "scan.nii.gz", {"output": "x.nii.gz"}, InputError, "is no warp: it has 1 channel"),
        ("scan.nii.gz", "scan.nii.gz", {"output": "x.nii.gz"}, InputError, "not of displacements"),
        ("p.csv", "scan.nii.gz", {"output": "x.nii.gz"}, FileError, "no transform"),
        ("gone.field", "scan.nii.gz", {"output": "x.nii.gz"}, FileError, "no file"),
        ("warp.field", "gone.nii.gz", {"output": "x.nii.gz"}, FileError, "no file"),
        ("warp.field", "gone.csv", {"output": "x.csv"}, FileError, "gone.csv"),
        ("warp.field", "gone.stl", {"output": "x.stl"}, MedfieldsError, "gone.stl|trimesh"),
        ("warp.field", "bad.stl", {"output": "x.stl"}, MedfieldsError, "bad.stl|trimesh"),
        ("warp.field", "scan.nii.gz", {"output": "x.csv"}, OutputError, ".nii.gz"),
        ("warp.field", "p.csv", {"output": "x.nii.gz"}, InputError, "as a table"),
        ("warp.field", "p.csv", {"output": "x.csv", "labels": True}, InputError, "for images"),
        ("warp.field", "", {"output": "x.h5", "dose": "energy"}, InputError, "for images"),
        ("warp.field", "", {"output": "x.xyz"}, OutputError, "format of warps"),
        ("warp.field", "", {"output": "x.mat"}, OutputError, "bends"),
        ("warp.field", "", {"output": "x.h5", "inverse": True}, InputError, "moving image"),
        ("warp.field", "scan.nii.gz", {"output": "x.nii.gz", "inverse": True}, InputError, "moving image"),
        ("a.mat", "scan.nii.gz", {"output": "x.nii.gz"}, InputError, "grid of its own"),
        ("warp.field", "half.nii.gz", {"output": "x.nii.gz", "labels": True}, InputError, "no labels"),
        ("warp.field", "nan.nii.gz", {"output": "x.nii.gz"}, InputError, "not numbers"),
        ("warp.field", "labels.nii.gz", {"output": "x.nii.gz", "labels": True, "interpolation": "cubic"}, InputError, "nearest voxel"),
        ("warp.field", "scan.nii.gz", {"output": "x.nii.gz", "dose": "dose", "interpolation": "cubic"}, InputError, "doses linearly"),
        ("warp.field", "scan.nii.gz", {"output": "./scan.nii.gz"}, OutputError, "overwritten"),
        ("warp.field", "", {"output": "warp.field"}, OutputError, "overwritten"),
        ("warp.field", "scan.nii.gz", {"output": "x.nii.gz", "threads": 0}, InputError, "threads"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(folder: Path, warp: str, what: str, options: dict, kind: type[MedfieldsError], says: str) -> None:
    write_field(Field(BSpline.on(GRID), GRID.box()), "one.field")
    write_affine(np.diag([1.0, 2, 1, 1]), "a.mat")
    Path("bad.stl").write_bytes(b"solid nothing")
    half = np.full(GRID.shape, 0.5)
    write_volume(Volume(half, GRID), "half.nii.gz")
    half[0, 0, 0] = np.nan
    write_volume(Volume(half, GRID), "nan.nii.gz")
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    with pytest.raises(kind, match=says) as caught:
        apply(warp, what, **options)
    assert "\n" not in str(caught.value)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_on_the_command_line(folder: Path, medfields) -> None:
    said = medfields("apply", "warp.field", "labels.nii.gz", "-o", "l.nii.gz", "--labels")
    assert said.code == 0 and "12 x 10 x 8 voxels" in said.out
    said = medfields("apply", "warp.field", "-o", "w.h5")
    assert said.code == 0 and said.out == "w.h5  a warp\n"
    said = medfields("apply", "scan.nii.gz", "labels.nii.gz", "-o", "x.nii.gz")
    assert said.code == 2 and said.err.startswith("medfields: error: scan.nii.gz is an image") and "hint: give a .field" in said.err
