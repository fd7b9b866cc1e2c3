"""DICOM series: placed by what the headers say of space, refused where they do not add up, and written back the same."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import JPEG2000Lossless, JPEGLossless, generate_uid

from io_samples import oblique, ramp, same_values_in_the_world, save_slices
from medfields.errors import FileError, GeometryError, InputError, MedfieldsError, MissingExtra, OutputError
from medfields.io import dicom, read_dicom, read_volume, write_dicom, write_volume
from medfields.io.dicom_write import is_own_series
from medfields.space import Grid, Volume

DATA = Path(os.environ.get("MEDFIELDS_DATA", "/work/shared/data")) / "j_radiotherapy/dicompyler/ct.0.dcm.gz"
SHAPE = (6, 5, 4)  # columns, rows, slices: all different, so that a swap shows


@pytest.fixture
def volume() -> Volume:
    return ramp(oblique(SHAPE, (0.7, 1.1, 3.0)))


def refused(path: Path, kind: type[MedfieldsError], words: str, **options: Any) -> str:
    """One line, of that class."""
    with pytest.raises(kind, match=words) as caught:
        read_volume(path, **options)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


def test_slices_are_sorted_by_position(tmp_path: Path, volume: Volume) -> None:
    """Names and instance numbers are shuffled, pixels are anisotropic, the image is oblique."""
    save_slices(tmp_path, volume, order=[2, 0, 3, 1])
    found = read_volume(tmp_path)
    assert found.grid.shape == SHAPE and found.grid.same_as(volume.grid, 1e-4)
    assert bool((found.data == volume.data).all())
    assert found.grid.frame == "1.2.3.4" and found.unit == ""
    assert {k: found.about[k] for k in ("kind", "modality", "thickness_mm", "source")} == {
        "kind": "dicom", "modality": "MR", "thickness_mm": 2.5, "source": str(tmp_path)}
    assert "gantry_tilt_deg" not in found.about


def test_slices_stored_downwards(tmp_path: Path) -> None:
    """A left-handed grid: the slices come out the other way round, at the same places in the world."""
    affine = np.array(oblique(SHAPE).affine)
    affine[:3, 2] *= -1
    volume = ramp(Grid(SHAPE, affine))
    save_slices(tmp_path, volume)
    same_values_in_the_world(read_volume(tmp_path), volume, 1e-4)


def test_upright_axial_points_to_left_and_back(tmp_path: Path) -> None:
    """The textbook case: row direction (1,0,0) and column direction (0,1,0) in LPS are left and back."""
    save_slices(tmp_path, ramp(oblique(SHAPE)), ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[3, 2],
                ImagePositionPatient=lambda k: [10, 20, 30 + 5 * k])
    expected = [[-2, 0, 0, -10], [0, -3, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]]  # 3 mm between rows, 2 mm between columns
    np.testing.assert_allclose(read_volume(tmp_path).grid.affine, expected, atol=1e-9)


def test_one_file_stands_for_its_series(tmp_path: Path, volume: Volume) -> None:
    paths = save_slices(tmp_path, volume)
    save_slices(tmp_path / "deeper", volume)
    assert read_volume(paths[1]).grid.same_as(volume.grid, 1e-4)


def test_rescale_of_each_slice_and_units(tmp_path: Path, volume: Volume) -> None:
    save_slices(tmp_path, volume, Modality="CT", RescaleSlope=lambda k: 1 + k, RescaleIntercept=-1024)
    found = read_volume(tmp_path)
    np.testing.assert_array_equal(found.data[0].numpy(), volume.data[0].numpy() * np.arange(1, 5) - 1024)
    assert found.unit == "HU"


def test_other_files_are_passed_over(tmp_path: Path, volume: Volume) -> None:
    save_slices(tmp_path / "study" / "series", volume)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.dcm").write_text("hello")
    plan = Dataset()
    plan.SOPClassUID, plan.SOPInstanceUID, plan.SeriesInstanceUID = pydicom.uid.RTPlanStorage, generate_uid(), generate_uid()
    plan.file_meta = FileMetaDataset()
    plan.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "plan.dcm", plan, enforce_file_format=True)
    assert read_volume(tmp_path).grid.same_as(volume.grid, 1e-4)


def test_files_without_preamble(tmp_path: Path, volume: Volume) -> None:
    for path in save_slices(tmp_path, volume):
        ds = pydicom.dcmread(path)
        bare = Dataset()
        bare.update(ds)
        bare.save_as(path, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[:4] == b"\x08\0\x16\0"
    assert read_volume(tmp_path).grid.same_as(volume.grid, 1e-4)


def test_gantry_tilt_is_a_shear(tmp_path: Path) -> None:
    """Axial slices whose positions also move back as they go up: 15 degrees of tilt."""
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    affine[1, 2] = -5 * np.tan(np.radians(15))
    volume = ramp(Grid(SHAPE, affine))
    save_slices(tmp_path, volume, SliceThickness=4)
    found = read_volume(tmp_path)
    np.testing.assert_allclose(found.grid.affine[:3, 2], [0, affine[1, 2], 5], atol=1e-6)
    assert found.about["gantry_tilt_deg"] == pytest.approx(15, abs=0.01) and found.about["thickness_mm"] == 4
    same_values_in_the_world(found, volume, 1e-6)


@pytest.mark.parametrize("lost", [(3,), (3, 4)])
def test_missing_slices_are_named(tmp_path: Path, lost: tuple[int, ...]) -> None:
    paths = save_slices(tmp_path, ramp(oblique((6, 5, 9), (0.7, 1.1, 3.0))))
    for k in lost:
        paths[k].unlink()
    said = refused(tmp_path, GeometryError, f"{len(lost)} slices? (is|are) missing between im002.dcm .* and im00{lost[-1] + 1}.dcm")
    assert f"{3 * (1 + len(lost)):.2f} mm where slices are 3.00 mm apart" in said


def test_uneven_slices(tmp_path: Path, volume: Volume) -> None:
    def position(k: int) -> list[float]:
        return [0, 0, [0, 3, 7, 9][k]]

    save_slices(tmp_path, volume, ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=position)
    refused(tmp_path, GeometryError, "not evenly spaced")


def test_wandering_slices(tmp_path: Path, volume: Volume) -> None:
    save_slices(tmp_path, volume, ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=lambda k: [k * k, 0, 3 * k])
    refused(tmp_path, GeometryError, "not evenly spaced")


def test_two_images_at_one_place(tmp_path: Path, volume: Volume) -> None:
    paths = save_slices(tmp_path, volume)
    shutil.copy(paths[2], tmp_path / "copy.dcm")
    refused(tmp_path, InputError, "at the same position")


def test_two_series_are_listed(tmp_path: Path, volume: Volume) -> None:
    save_slices(tmp_path / "a", volume)
    save_slices(tmp_path / "b", volume.with_data(volume.data + 100), SeriesNumber=7, SeriesDescription="flair")
    said = refused(tmp_path, InputError, "holds 2 series")
    assert "number 3 't2 axial', 4 files" in said and "number 7 'flair', 4 files" in said and "series=" in said
    for name in ("7", "flair", str(pydicom.dcmread(tmp_path / "b/im000.dcm").SeriesInstanceUID)):
        assert float(read_volume(tmp_path, series=name).data.min()) == 100
    refused(tmp_path, InputError, "no series 'dwi'", series="dwi")


CHANGES: list[tuple[str, Callable[[int], Any], type[MedfieldsError], str]] = [
    ("ImageOrientationPatient", lambda k: [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, 1], GeometryError, "different orientations"),
    ("PixelSpacing", lambda k: [1, 1 + k], GeometryError, "different pixel spacings"),
    ("FrameOfReferenceUID", lambda k: f"1.2.{k}", GeometryError, "different frames"),
    ("PixelSpacing", lambda k: [1, 0], GeometryError, "impossible"),
    ("ImageOrientationPatient", lambda k: [1, 0, 0, 1, 0, 0], GeometryError, "impossible"),
    ("ImageOrientationPatient", lambda k: [1, 0, 0], FileError, "ImageOrientationPatient is"),
    ("ImageType", lambda k: ["ORIGINAL", "PRIMARY", "M", "MOSAIC"], InputError, "mosaic"),
    ("NumberOfFrames", lambda k: 2, GeometryError, "2 frames but no functional groups"),
]


@pytest.mark.parametrize(("name", "change", "kind", "words"), CHANGES, ids=[f"{c[0]}-{c[3].split()[-1]}" for c in CHANGES])
def test_contradictions(tmp_path: Path, volume: Volume, name: str, change: Callable[[int], Any], kind: type[MedfieldsError],
                        words: str) -> None:
    save_slices(tmp_path, volume, **{name: change})
    refused(tmp_path, kind, words)


@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_unstated_geometry_is_said(tmp_path: Path, volume: Volume, name: str) -> None:
    save_slices(tmp_path, volume, **{name: None})
    refused(tmp_path, GeometryError, "does not state its")


def test_sizes_that_differ(tmp_path: Path, volume: Volume) -> None:
    first = save_slices(tmp_path / "a", volume)[0]
    uid = str(pydicom.dcmread(first).SeriesInstanceUID)
    save_slices(tmp_path / "b", ramp(oblique((7, 5, 1))), SeriesInstanceUID=uid)
    refused(tmp_path, InputError, "differ in size")


def test_colours(tmp_path: Path, volume: Volume) -> None:
    save_slices(tmp_path, volume, SamplesPerPixel=3)
    refused(tmp_path, InputError, "colour")


def test_damaged_files(tmp_path: Path, volume: Volume) -> None:
    path = save_slices(tmp_path, volume)[0]
    content = path.read_bytes()
    for left in (len(content) - 20, 600, 400, 300, 140, 132):
        path.write_bytes(content[:left])
        for meant in (tmp_path, path):
            with pytest.raises(FileError):
                read_volume(meant)


def test_one_slice(tmp_path: Path, volume: Volume) -> None:
    path = save_slices(tmp_path, volume, order=[1])[0]
    found = read_volume(path)
    assert found.grid.shape == (6, 5, 1) and found.grid.spacing[2] == pytest.approx(2.5)
    np.testing.assert_allclose(found.grid.world(np.zeros(3)), volume.grid.world(np.array([0, 0, 1])), atol=1e-5)


def multiframe(path: Path, volume: Volume, order: list[int]) -> None:
    """One enhanced file; orientation and spacing shared, positions and rescale frame by frame."""
    slices = [pydicom.dcmread(p) for p in save_slices(path.parent / "slices", volume, order)]
    ds, shared = slices[0], Dataset()

    def group(name: str, source: Dataset, *keys: str) -> list[Dataset]:
        inner = Dataset()
        for key in keys:
            setattr(inner, key, source.get(key, name))
        return [inner]

    shared.PlaneOrientationSequence = group("", ds, "ImageOrientationPatient")
    shared.PixelMeasuresSequence = group("", ds, "PixelSpacing", "SliceThickness")
    frames = []
    for n, s in enumerate(slices):
        s.RescaleSlope, s.RescaleIntercept = 2, n
        frame = Dataset()
        frame.PlanePositionSequence = group("", s, "ImagePositionPatient")
        frame.PixelValueTransformationSequence = group("", s, "RescaleSlope", "RescaleIntercept")
        frames.append(frame)
    ds.PixelData = b"".join(s.PixelData for s in slices)
    ds.NumberOfFrames, ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = len(slices), [shared], frames
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, name)
    ds.save_as(path)
    shutil.rmtree(path.parent / "slices")


def test_enhanced_multiframe(tmp_path: Path, volume: Volume) -> None:
    order = [2, 0, 3, 1]
    multiframe(tmp_path / "all.dcm", volume, order)
    for path in (tmp_path, tmp_path / "all.dcm"):
        found = read_volume(path)
        assert found.grid.same_as(volume.grid, 1e-4)
        np.testing.assert_array_equal(found.data[0].numpy(), volume.data[0].numpy() * 2 + np.argsort(order))


def test_enhanced_files_of_one_frame_are_slices_like_others(tmp_path: Path, volume: Volume) -> None:
    for k in range(4):
        multiframe(tmp_path / f"part{k}" / "one.dcm", volume, [k])
        ds = pydicom.dcmread(tmp_path / f"part{k}" / "one.dcm")
        ds.SeriesInstanceUID = "1.2.3"
        ds.save_as(tmp_path / f"one{k}.dcm")
        shutil.rmtree(tmp_path / f"part{k}")
    for path in (tmp_path, tmp_path / "one2.dcm"):
        assert read_volume(path).grid.same_as(volume.grid, 1e-4)


def test_parts_of_a_concatenation_belong_together(tmp_path: Path, volume: Volume) -> None:
    for n, frames in enumerate(([0, 1], [2, 3])):
        multiframe(tmp_path / f"part{n}" / "one.dcm", volume, frames)
        ds = pydicom.dcmread(tmp_path / f"part{n}" / "one.dcm")
        ds.SeriesInstanceUID, ds.ConcatenationUID = "1.2.3", "1.2.3.4.5"
        ds.save_as(tmp_path / f"two{n}.dcm")
        shutil.rmtree(tmp_path / f"part{n}")
    for path in (tmp_path, tmp_path / "two1.dcm"):
        assert read_volume(path).grid.same_as(volume.grid, 1e-4)


def test_enhanced_multiframe_with_missing_descriptions(tmp_path: Path, volume: Volume) -> None:
    multiframe(tmp_path / "all.dcm", volume, [0, 1, 2, 3])
    ds = pydicom.dcmread(tmp_path / "all.dcm")
    ds.PerFrameFunctionalGroupsSequence = list(ds.PerFrameFunctionalGroupsSequence)[:3]
    ds.save_as(tmp_path / "all.dcm")
    refused(tmp_path, FileError, "has 4 frames but describes 3")


def test_rounded_cosines_become_a_right_angle(tmp_path: Path, volume: Volume) -> None:
    """Three decimals would put the far corner of a large image off, and the grid would be sheared."""
    save_slices(tmp_path, volume, ImageOrientationPatient=[f"{v:.3f}" for v in (0.70710678, 0.70710678, 0, -0.70710678, 0.70710678, 0)],
                ImagePositionPatient=lambda k: [0, 0, 3 * k])
    found = read_volume(tmp_path)
    np.testing.assert_allclose(found.grid.spacing, [0.7, 1.1, 3.0], rtol=1e-9)
    np.testing.assert_allclose(found.grid.directions.T @ found.grid.directions, np.eye(3), atol=1e-9)
    write_volume(found, tmp_path / "again")
    assert read_volume(tmp_path / "again").grid.same_as(found.grid, 1e-4)


def test_pictures_that_are_no_measurements(tmp_path: Path, volume: Volume) -> None:
    save_slices(tmp_path / "palette", volume, PhotometricInterpretation="PALETTE COLOR")
    refused(tmp_path / "palette", InputError, "colour image")
    save_slices(tmp_path / "inverted", volume, PhotometricInterpretation="MONOCHROME1")
    assert bool((read_volume(tmp_path / "inverted").data == volume.data).all())
    save_slices(tmp_path / "empty", volume)
    for path in (tmp_path / "empty").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\x28\x00\x10\x00US\x02\x00\x05\x00", b"\x28\x00\x10\x00US\x00\x00"))
    refused(tmp_path / "empty", FileError, "cannot read")


def test_packed_files_are_named_and_hidden_folders_left_out(tmp_path: Path, volume: Volume) -> None:
    paths = save_slices(tmp_path, volume)
    save_slices(tmp_path / ".medfields-abc" / "series", volume)  # what a killed run left
    assert read_volume(tmp_path).grid.same_as(volume.grid, 1e-4)
    (tmp_path / "im000.dcm.gz").write_bytes(gzip.compress(paths[0].read_bytes()))
    refused(tmp_path, FileError, "packed with gzip")


@pytest.mark.parametrize(("syntax", "kind", "words"), [
    (JPEG2000Lossless, MissingExtra, "pylibjpeg-openjpeg"), (JPEGLossless, FileError, "no decoder is installed")])
def test_compression_without_decoder(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, syntax: pydicom.uid.UID,
                                     kind: type[MedfieldsError], words: str) -> None:
    monkeypatch.setattr(dicom, "get_decoder", lambda uid: type("Absent", (), {"is_available": False}))
    for path in save_slices(tmp_path, volume):
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = pydicom.encaps.encapsulate([ds.PixelData])
        ds.save_as(path, implicit_vr=False, little_endian=True)
    with pytest.raises(kind, match=words):
        read_volume(tmp_path)


def test_unknown_transfer_syntax(tmp_path: Path, volume: Volume) -> None:
    for path in save_slices(tmp_path, volume):
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    refused(tmp_path, FileError, "cannot read|nothing here can read")


def test_run_length_compression(tmp_path: Path, volume: Volume) -> None:
    for path in save_slices(tmp_path, volume):
        ds = pydicom.dcmread(path)
        ds.compress(pydicom.uid.RLELossless)
        ds.save_as(path)
    assert bool((read_volume(tmp_path).data == volume.data).all())


def test_written_series_comes_back(tmp_path: Path) -> None:
    grid = oblique(SHAPE, frame="1.2.840.77")
    volume = Volume(np.random.default_rng(0).normal(40, 300, SHAPE).astype(np.float32), grid, "HU", about={"thickness_mm": 6.5})
    write_volume(volume, tmp_path / "out")
    found = read_volume(tmp_path / "out")
    assert found.grid.same_as(grid, 1e-4) and found.grid.frame == grid.frame and found.unit == "HU" and found.about["thickness_mm"] == 6.5
    np.testing.assert_allclose(found.data, volume.data, atol=float(volume.data.max() - volume.data.min()) / 65000)


@pytest.mark.parametrize("data", [np.arange(-60, 60), np.full(120, 3.25), np.arange(120) * 1e5, np.arange(120) * 1e-7 + 1])
def test_values_within_rescale_precision(tmp_path: Path, data: np.ndarray) -> None:
    volume = Volume(data.reshape(SHAPE).astype(np.float32), oblique(SHAPE))
    write_volume(volume, tmp_path / "out")
    found = read_volume(tmp_path / "out").data
    exact = data.min() == -60
    np.testing.assert_allclose(found, volume.data, rtol=1e-6, atol=0 if exact else float(np.ptp(data)) / 65000)


def test_written_files_are_proper_and_anonymous(tmp_path: Path) -> None:
    write_volume(ramp(oblique(SHAPE)), tmp_path / "one")
    write_dicom(ramp(oblique(SHAPE)), tmp_path / "two", modality="CT", patient_id="P7", patient_name="Doe^J", description="iso")
    files = [pydicom.dcmread(p) for folder in ("one", "two") for p in sorted((tmp_path / folder).iterdir())]
    assert len({f.SOPInstanceUID for f in files}) == 8 and len({f.SeriesInstanceUID for f in files}) == 2
    first, last = files[0], files[-1]
    assert (first.PatientID, str(first.PatientName), first.Modality, first.SOPClassUID.name) == ("", "", "MR", "MR Image Storage")
    assert (last.PatientID, str(last.PatientName), last.SeriesDescription) == ("P7", "Doe^J", "iso")
    assert last.SOPClassUID.name == "CT Image Storage"
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID and list(first.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert [f.InstanceNumber for f in files[:4]] == [1, 2, 3, 4] and first.Rows == 5 and first.Columns == 6
    np.testing.assert_array_equal(first.pixel_array, np.arange(120).reshape(SHAPE)[:, :, 0].T)


def test_only_an_own_series_is_replaced(tmp_path: Path) -> None:
    ours, theirs, few = tmp_path / "ours", tmp_path / "theirs", ramp(oblique((5, 4, 2)))
    write_volume(ramp(oblique()), ours)
    assert is_own_series(ours) and not is_own_series(tmp_path) and not is_own_series(tmp_path / "nothing")
    write_volume(few, ours)
    same_values_in_the_world(read_dicom(ours), few, 1e-4)
    theirs.mkdir()
    save_slices(theirs, few)
    for n, file in enumerate(sorted(theirs.iterdir())):
        file.rename(theirs / f"{n + 1:04d}.dcm")
    shutil.copytree(ours, tmp_path / "mixed")
    (tmp_path / "mixed" / "notes.txt").write_text("precious")
    for folder in (theirs, tmp_path / "mixed"):
        before = sorted(p.read_bytes() for p in folder.iterdir())
        assert not is_own_series(folder)
        with pytest.raises(OutputError, match="already holds files"):
            write_volume(few, folder)
        assert sorted(p.read_bytes() for p in folder.iterdir()) == before


def test_itk_reads_the_written_series_the_same(tmp_path: Path) -> None:
    """An independent reader finds every voxel at the same LPS point with the same value."""
    sitk = pytest.importorskip("SimpleITK")
    volume = ramp(oblique(SHAPE))
    write_volume(volume, tmp_path / "out")
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    for index in np.ndindex(*SHAPE):
        x, y, z = volume.grid.world(np.array(index))
        at = image.TransformPhysicalPointToContinuousIndex((-x, -y, z))
        np.testing.assert_allclose(at, np.rint(at), atol=1e-4)
        assert image[tuple(int(v) for v in np.rint(at))] == float(volume.data[0][index])


def test_what_dicom_cannot_hold(tmp_path: Path) -> None:
    volume = ramp(oblique(SHAPE))
    affine = np.array(volume.grid.affine)
    affine[:3, 2] += affine[:3, 0] / 5
    cases: list[tuple[Volume, str, type[MedfieldsError], str]] = [
        (ramp(Grid(SHAPE, affine)), "MR", GeometryError, "sheared"), (volume, "US", InputError, "MR or CT"),
        (Volume(np.zeros((2, *SHAPE), np.float32), volume.grid), "MR", InputError, "one channel"),
        (volume.with_data(volume.data * np.nan), "MR", InputError, "not numbers")]
    for bad, modality, kind, words in cases:
        with pytest.raises(kind, match=words):
            write_dicom(bad, tmp_path / "out", modality=modality)
    assert os.listdir(tmp_path) == []


def test_reader_is_the_same_through_both_doors(tmp_path: Path, volume: Volume) -> None:
    save_slices(tmp_path, volume)
    assert bool((read_dicom(tmp_path).data == read_volume(tmp_path).data).all())


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_file(), reason=f"no shared images at {DATA}")
def test_real_slice(tmp_path: Path) -> None:
    (tmp_path / "ct.dcm").write_bytes(gzip.decompress(DATA.read_bytes()))
    found = read_volume(tmp_path)
    assert found.grid.shape == (512, 512, 1) and found.unit == "HU" and found.about["thickness_mm"] == 3
    np.testing.assert_allclose(found.grid.world(np.zeros(3)), [275, 524, 168.5593], atol=1e-6)
    assert -1100 < float(found.data.min()) < -900 and 200 < float(found.data.max()) < 4000
