"""NRRD and MetaImage: LPS turned to RAS, geometry demanded, and SimpleITK's own reading as the reference."""

from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from io_samples import FLIP, oblique, ramp
from medfields.errors import FileError, GeometryError, InputError, MedfieldsError, MissingExtra, OutputError
from medfields.io import check_image_path, read_volume, write_volume
from medfields.space import Grid, Volume

sitk = pytest.importorskip("SimpleITK")
DATA = Path(os.environ.get("MEDFIELDS_DATA", "/work/shared/data"))
META = "ObjectType = Image\nNDims = 3\n{}DimSize = 5 4 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
NRRD = "NRRD0005\ntype: uint8\ndimension: 3\n{}sizes: 5 4 3\nencoding: raw\n\n"
PLACED_META = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nElementSpacing = 0.7 1.1 4\n"
PLACED_NRRD = "space: left-posterior-superior\nspace directions: (0.7,0,0) (0,1.1,0) (0,0,4)\nspace origin: (1,2,3)\n"


def refused(path: Path, kind: type[MedfieldsError], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words) as caught:
        read_volume(path, **options)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def save(path: Path, header: str, extra: str, size: int = 60) -> Path:
    path.write_bytes(header.format(extra).encode() + bytes(range(size)))
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd", "A.MHA"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    volume = ramp(oblique())
    write_volume(volume, tmp_path / name)
    found = read_volume(tmp_path / name)
    assert found.grid.same_as(volume.grid, 1e-4) and bool((found.data == volume.data).all())
    assert found.about["kind"] in ("nrrd", "metaimage") and len(found.about["sha256"]) == 64


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_agrees_with_itk(tmp_path: Path, name: str) -> None:
    """The same voxel at the same LPS point, in files written by either side."""
    write_volume(ramp(oblique()), tmp_path / name)
    image = sitk.ReadImage(str(tmp_path / name))
    assert image.GetSize() == (5, 4, 3) and image[2, 1, 0] == 2 * 12 + 1 * 3
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((4, 2, 1)), (FLIP @ [*oblique().world(np.array([4, 2, 1])), 1])[:3],
                               atol=1e-5)
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    image.SetSpacing((0.7, 1.1, 4.0))
    image.SetOrigin((-5.0, 6.0, 7.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    sitk.WriteImage(image, str(tmp_path / f"itk-{name}"))
    found = read_volume(tmp_path / f"itk-{name}")
    np.testing.assert_array_equal(found.data[0].numpy(), np.arange(60).reshape(3, 4, 5).T)
    np.testing.assert_allclose(found.grid.world(np.array([1, 2, 2])) * [-1, -1, 1], image.TransformIndexToPhysicalPoint((1, 2, 2)))


@pytest.mark.parametrize(("name", "header", "extra"), [("a.mha", META, PLACED_META), ("a.nrrd", NRRD, PLACED_NRRD)])
def test_headers_written_by_hand(tmp_path: Path, name: str, header: str, extra: str) -> None:
    found = read_volume(save(tmp_path / name, header, extra))
    np.testing.assert_allclose(found.grid.affine, [[-0.7, 0, 0, -1], [0, -1.1, 0, -2], [0, 0, 4, 3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(found.data[0].numpy().ravel(order="F"), np.arange(60))


def test_nrrd_spaces_and_units(tmp_path: Path) -> None:
    """RAS is not flipped; microns become mm."""
    ras = PLACED_NRRD.replace("left-posterior", "right-anterior")
    expected = np.array([[0.7, 0, 0, 1], [0, 1.1, 0, 2], [0, 0, 4, 3]])
    np.testing.assert_allclose(read_volume(save(tmp_path / "a.nrrd", NRRD, ras)).grid.affine[:3], expected)
    las = read_volume(save(tmp_path / "las.nrrd", NRRD, ras.replace("right", "left")))
    np.testing.assert_allclose(las.grid.affine[:3], np.diag([-1, 1, 1]) @ expected)
    microns = read_volume(save(tmp_path / "b.nrrd", NRRD, ras + 'space units: "um" "um" "um"\n'))
    np.testing.assert_allclose(microns.grid.affine[:3], expected / 1000)
    metres = read_volume(save(tmp_path / "c.nrrd", NRRD, ras + 'space units: "Meters" "meter" "m"\n'))
    np.testing.assert_allclose(metres.grid.affine[:3], expected * 1000)
    microns = read_volume(save(tmp_path / "a.mha", META, PLACED_META + "DistanceUnits = um\n"))
    np.testing.assert_allclose(microns.grid.spacing, [0.0007, 0.0011, 0.004])
    for said in ('"mm" "um" "um"', '"furlong" "furlong" "furlong"'):
        refused(save(tmp_path / "d.nrrd", NRRD, ras + f"space units: {said}\n"), GeometryError, "states its lengths in")


@pytest.mark.parametrize("space", ["space: scanner-xyz", "space: 3D-right-handed", "space: 3D-left-handed", "space dimension: 3"])
def test_a_space_that_is_not_the_patient_is_not_taken_for_it(tmp_path: Path, space: str) -> None:
    path = save(tmp_path / "a.nrrd", NRRD, PLACED_NRRD.replace("space: left-posterior-superior", space))
    refused(path, GeometryError, "does not state where it lies")
    np.testing.assert_allclose(read_volume(path, assume_upright=True).grid.affine[:3], [[0.7, 0, 0, 1], [0, 1.1, 0, 2], [0, 0, 4, 3]])


@pytest.mark.parametrize(("name", "header", "extra"), [
    ("a.mha", META, ""), ("a.mha", META, "ElementSpacing = 1 2 3\n"), ("a.mha", META, "Offset = 1 2 3\n"),
    ("a.mha", META, "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 2 3\n"), ("a.nrrd", NRRD, ""),
    ("a.nrrd", NRRD, "spacings: 1 2 3\n"), ("a.nrrd", NRRD, "space: RAS\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n")])
def test_unstated_geometry_is_said(tmp_path: Path, name: str, header: str, extra: str) -> None:
    path = save(tmp_path / name, header, extra)
    refused(path, GeometryError, "does not state where it lies")
    found = read_volume(path, assume_upright=True)
    turned = "TransformMatrix" in extra or "RAS" in extra  # then only its place is assumed
    assert ("not stated, taken as 0 and 1" if turned else "upright") in found.about["geometry"]
    assert (np.diag(found.grid.affine)[:3] > 0).all() == (name == "a.nrrd" or not turned)
    if "1 2 3" in extra and "pacing" in extra:
        np.testing.assert_allclose(found.grid.spacing, [1, 2, 3])


def test_two_dimensions_and_four(tmp_path: Path) -> None:
    flat = sitk.GetImageFromArray(np.arange(20, dtype=np.float32).reshape(4, 5))
    flat.SetSpacing((0.7, 1.1))
    sitk.WriteImage(flat, str(tmp_path / "flat.mha"))
    found = read_volume(tmp_path / "flat.mha")
    assert found.grid.shape == (5, 4, 1) and "thickness" in found.about["geometry"]
    np.testing.assert_allclose(found.grid.spacing, [0.7, 1.1, 1])
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.float32), isVector=False), str(tmp_path / "four.mha"))
    refused(tmp_path / "four.mha", InputError, "4 axes 5x4x3x2 where 3 are meant")
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((1, 3, 4, 5), np.float32), isVector=False), str(tmp_path / "one.mha"))
    assert read_volume(tmp_path / "one.mha").grid.shape == (5, 4, 3)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_several_values_per_voxel(tmp_path: Path, name: str) -> None:
    volume = Volume(np.random.default_rng(0).random((3, 5, 4, 2), np.float32), oblique((5, 4, 2)))
    write_volume(volume, tmp_path / name)
    refused(tmp_path / name, InputError, "3 values per voxel")
    assert bool((read_volume(tmp_path / name, channels=True).data == volume.data).all())


def test_sheared_grids(tmp_path: Path) -> None:
    affine = np.array(oblique().affine)
    affine[:3, 2] += 0.3 * affine[:3, 0]
    for name in ("a.nrrd", "a.mha"):
        write_volume(ramp(Grid((5, 4, 3), affine)), tmp_path / name)
        np.testing.assert_allclose(read_volume(tmp_path / name).grid.affine, affine, atol=1e-5)


@pytest.mark.parametrize(("name", "header", "extra"), [("a.mha", META, PLACED_META), ("a.nrrd", NRRD, PLACED_NRRD)])
def test_damage(tmp_path: Path, name: str, header: str, extra: str) -> None:
    tracemalloc.start()
    refused(save(tmp_path / name, header.replace("5 4 3", "50000 50000 50000"), extra), FileError, "promises")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    refused(save(tmp_path / name, header, extra, size=20), FileError, "cannot read|promises")
    refused(save(tmp_path / name, header.replace("5 4 3", "5 -4 3"), extra), FileError, "promises|cannot read")
    refused(save(tmp_path / name, header.replace("5 4 3", "five 4 3"), extra), FileError, "cannot read")


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_lost_data_file(tmp_path: Path, name: str) -> None:
    header = META.format(PLACED_META).replace("LOCAL", "gone.raw") if name == "a.mhd" else (
        NRRD.format(PLACED_NRRD).replace("\n\n", "\ndata file: gone.raw\n\n"))
    (tmp_path / name).write_text(header)
    refused(tmp_path / name, FileError, r"gone\.raw")


def test_impossible_geometry(tmp_path: Path) -> None:
    flat = PLACED_META.replace("1 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1")
    refused(save(tmp_path / "a.mha", META, flat), GeometryError, "singular|impossible")
    refused(save(tmp_path / "a.mha", META, PLACED_META.replace("0.7", "0")), GeometryError, "singular|impossible")
    refused(save(tmp_path / "a.nrrd", NRRD, PLACED_NRRD.replace("0.7", "0")), GeometryError, "singular|impossible")


def test_voxels_of_another_file_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "scan.raw").write_bytes(b"the only copy")
    for act in (lambda path: write_volume(ramp(oblique()), path), check_image_path):
        with pytest.raises(OutputError, match="belongs to something else"):
            act(tmp_path / "scan.mhd")
    assert (tmp_path / "scan.raw").read_bytes() == b"the only copy"
    write_volume(ramp(oblique()), tmp_path / "own.mhd")
    write_volume(ramp(oblique()), tmp_path / "own.mhd")  # its own voxels
    assert read_volume(tmp_path / "own.mhd").grid.same_as(oblique(), 1e-4)


def test_without_simpleitk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_volume(ramp(oblique()), tmp_path / "a.mha")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    refused(tmp_path / "a.mha", MissingExtra, r"medfields\[io\]")
    with pytest.raises(MissingExtra):
        write_volume(ramp(oblique()), tmp_path / "b.nrrd")


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no shared images in {DATA}")
def test_real_image() -> None:
    found = read_volume(DATA / "e_registration/3DCT_lung_baseline.mha")
    np.testing.assert_allclose(found.grid.world(np.zeros(3)), [153.827, 150.352, -1434.5])
    assert found.grid.shape == (115, 157, 129) and float(found.data.min()) == -1137
