"""NIfTI: the standard's rules for orientation, units and scaling, and what damaged files get."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from io_samples import oblique, ramp
from medfields.errors import FileError, GeometryError, InputError, MedfieldsError, OutputError
from medfields.io import check_finite, check_not_constant, read_nifti, read_volume, write_nifti, write_volume
from medfields.space import Grid, Volume

DATA = Path(os.environ.get("MEDFIELDS_DATA", "/work/shared/data"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A good uncompressed file of 5 x 4 x 3 voxels."""
    write_volume(ramp(oblique()), tmp_path / "a.nii")
    return tmp_path / "a.nii"


def patched(path: Path, offset: int, format: str, *values: Any) -> Path:
    """The file with some bytes of its header replaced."""
    content = bytearray(path.read_bytes())
    struct.pack_into(format, content, offset, *values)
    path.write_bytes(content)
    return path


def save_raw(header: nibabel.Nifti1Header, stored: np.ndarray, path: Path) -> None:
    """The header as it is: nibabel's own writer would tidy it up."""
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4) + stored.tobytes())


def refused(path: Path, kind: type[MedfieldsError], words: str, **options: Any) -> None:
    """One line, of that class, naming the file."""
    with pytest.raises(kind, match=words) as caught:
        read_volume(path, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value) and path.name in caught.value.message


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    volume = ramp(oblique())
    write_volume(volume, tmp_path / name)
    found = read_volume(tmp_path / name)
    assert found.grid.same_as(volume.grid, 1e-4) and bool((found.data == volume.data).all())
    assert found.about["kind"] == "nifti" and found.about["source"] == str(tmp_path / name) and len(found.about["sha256"]) == 64


def test_same_bytes_twice(tmp_path: Path) -> None:
    for folder in "ab":
        write_volume(ramp(oblique()), tmp_path / folder / "x.nii.gz")
    assert (tmp_path / "a/x.nii.gz").read_bytes() == (tmp_path / "b/x.nii.gz").read_bytes()


def test_agrees_with_nibabel(tmp_path: Path, plain: Path) -> None:
    image = nibabel.load(plain)
    assert image.header["sform_code"] == 1 and image.header["qform_code"] == 1 and image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine, oblique().affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), oblique().affine, atol=1e-4)
    np.testing.assert_array_equal(image.get_fdata(), np.arange(60).reshape(5, 4, 3))


def test_sheared_grid_has_no_qform(tmp_path: Path) -> None:
    affine = np.array(oblique().affine)
    affine[:3, 2] += 0.3 * affine[:3, 0]
    write_volume(ramp(Grid((5, 4, 3), affine)), tmp_path / "a.nii")
    assert nibabel.load(tmp_path / "a.nii").header["qform_code"] == 0
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").grid.affine, affine, atol=1e-5)


def test_sform_wins_over_qform_which_wins_over_nothing(tmp_path: Path) -> None:
    sform, qform = oblique().affine, np.diag([-2.0, 2.0, 3.0, 1.0])
    for codes, expected in [((1, 1), sform), ((4, 0), sform), ((0, 1), qform), ((0, 4), qform)]:
        header = nibabel.Nifti1Header()
        header.set_data_shape((5, 4, 3))
        header.set_sform(sform, codes[0])
        header.set_qform(qform, codes[1])
        save_raw(header, np.zeros(60, np.float32), tmp_path / "a.nii")
        np.testing.assert_allclose(read_volume(tmp_path / "a.nii").grid.affine, expected, atol=1e-5)


def test_no_orientation_is_said(plain: Path) -> None:
    patched(plain, 252, "<hh", 0, 0)
    refused(plain, GeometryError, "does not state where it lies")
    found = read_volume(plain, assume_upright=True)
    np.testing.assert_allclose(found.grid.affine, np.diag([0.7, 1.1, 4, 1]), atol=1e-6)
    assert "upright" in found.about["geometry"]


@pytest.mark.parametrize(("unit", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 1e-3), (2 | 8, 1.0)])
def test_units_become_mm(plain: Path, unit: int, factor: float) -> None:
    found = read_volume(patched(plain, 123, "<B", unit)).grid
    np.testing.assert_allclose(found.affine[:3], oblique().affine[:3] * factor, rtol=1e-5, atol=1e-5 * factor)


def test_unknown_unit(plain: Path) -> None:
    refused(patched(plain, 123, "<B", 5), GeometryError, "unit of length")


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">u4", "<i8", "<f4", ">f4", "<f8", ">f8"])
def test_types_and_scaling(tmp_path: Path, dtype: str) -> None:
    """Every real type in both byte orders; values = slope * stored + intercept."""
    order = ">" if dtype[0] == ">" else "<"
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape((5, 4, 3))
    header.set_sform(np.eye(4), 1)
    header["scl_slope"], header["scl_inter"] = 2.5, -7
    save_raw(header, np.arange(60).astype(dtype), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data[0].numpy().ravel(order="F"), np.arange(60) * 2.5 - 7)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_slope_means_unscaled(plain: Path, slope: float) -> None:
    found = read_volume(patched(plain, 112, "<ff", slope, 3.0))
    assert float(found.data.max()) == 59


def test_integers_out_are_rounded_never_wrapped(tmp_path: Path) -> None:
    volume = Volume(np.full((2, 2, 2), 99.6, np.float32), oblique((2, 2, 2)))
    write_volume(volume, tmp_path / "a.nii", dtype=np.uint8)
    assert nibabel.load(tmp_path / "a.nii").get_data_dtype() == np.uint8 and float(read_volume(tmp_path / "a.nii").data.max()) == 100
    with pytest.raises(InputError, match="do not fit"):
        write_volume(volume.with_data(volume.data * 3), tmp_path / "b.nii", dtype=np.uint8)
    assert os.listdir(tmp_path) == ["a.nii"]


def test_fourth_axis(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((5, 4, 3, 6), np.float32)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "four.nii.gz")
    refused(tmp_path / "four.nii.gz", InputError, "4 axes 5x4x3x6 where 3 are meant")
    found = read_volume(tmp_path / "four.nii.gz", channels=True)
    np.testing.assert_array_equal(found.data.numpy(), np.moveaxis(data, -1, 0))
    write_volume(found, tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(nibabel.load(tmp_path / "again.nii.gz").get_fdata(dtype=np.float32), data)
    nibabel.save(nibabel.Nifti1Image(data[..., :1, None], np.eye(4)), tmp_path / "one.nii.gz")
    assert read_volume(tmp_path / "one.nii.gz").data.shape == (1, 5, 4, 3)
    nibabel.save(nibabel.Nifti1Image(data[..., None, :], np.eye(4)), tmp_path / "five.nii.gz")
    refused(tmp_path / "five.nii.gz", InputError, "5 axes", channels=True)


def test_two_dimensions_become_one_slice(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(20, dtype=np.float32).reshape(5, 4), None)
    image.header["pixdim"][1:4] = 0.7, 1.1, 0
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = (0, 1.1, 0, 5), (0.7, 0, 0, 6), (0, 0, 0, 7)
    nibabel.save(image, tmp_path / "a.nii")
    found = read_volume(tmp_path / "a.nii")
    assert found.data.shape == (1, 5, 4, 1) and "thickness" in found.about["geometry"]
    np.testing.assert_allclose(found.grid.spacing, [0.7, 1.1, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.grid.world(np.array([1, 2, 0])), [5 + 2.2, 6.7, 7], rtol=1e-6)


def test_nifti_2(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(np.arange(60, dtype=np.float32).reshape(5, 4, 3), oblique().affine), tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").grid.same_as(oblique(), 1e-6)
    long = Volume(np.ones((2**15, 1, 1), np.float32), oblique((2**15, 1, 1)))
    write_volume(long, tmp_path / "long.nii.gz")
    assert read_volume(tmp_path / "long.nii.gz").grid.same_as(long.grid)


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
def test_impossible_voxel_sizes(plain: Path, size: float) -> None:
    refused(patched(plain, 80, "<f", size), GeometryError, "must be positive")


def test_singular_affine(plain: Path) -> None:
    refused(patched(plain, 280, "<12f", 1, 2, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0), GeometryError, "singular")
    refused(patched(plain, 280, "<12f", *[np.nan] * 12), GeometryError, "finite")


def test_impossible_quaternion(plain: Path) -> None:
    patched(plain, 252, "<hh", 1, 0)
    refused(patched(plain, 256, "<3f", 3.0, 3.0, 3.0), GeometryError, "no rotation")


@pytest.mark.parametrize(("name", "content", "words"), [
    ("text.nii.gz", b"hello, this is no image\n" * 9, "its content is text"), ("empty.nii.gz", b"", "is empty"),
    ("binary.nii", bytes(range(256)) * 4, "no known format"), ("packed.nii.gz", gzip.compress(b"text", mtime=0), "its content is text"),
    ("short.nii.gz", gzip.compress(bytes(range(99)), mtime=0)[:12], "cut off"), ("a.field", b"\1\2\3", "is a field"),
], ids=["text", "empty", "binary", "packed", "short", "field"])
def test_no_images(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, FileError, words)


def test_missing_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii.gz", FileError, "there is no file")
    refused(tmp_path / "none\0.nii.gz", FileError, "there is no file|cannot read")
    refused(tmp_path, FileError, "no DICOM images")


def test_pair_and_analyze(plain: Path) -> None:
    refused(patched(plain, 344, "4s", b"ni1\0"), FileError, "pair")
    refused(patched(plain, 344, "4s", b"\0\0\0\0"), FileError, "Analyze")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("lost", [1, 100])
def test_cut_off(tmp_path: Path, name: str, lost: int) -> None:
    write_volume(Volume(np.random.default_rng(0).random((8, 8, 8), np.float32), oblique((8, 8, 8))), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-lost - 8])
    refused(tmp_path / name, FileError, "cut off")


def test_broken_gzip(tmp_path: Path) -> None:
    write_volume(Volume(np.random.default_rng(0).random((8, 8, 8), np.float32), oblique((8, 8, 8))), tmp_path / "a.nii.gz")
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[1000:1100] = bytes(100)
    (tmp_path / "a.nii.gz").write_bytes(content)
    refused(tmp_path / "a.nii.gz", FileError, "cannot read|cut off")


@pytest.mark.parametrize("packed", [False, True])
def test_promised_memory_is_not_set_aside(plain: Path, packed: bool) -> None:
    """A header of 32767^3 voxels on a file of 600 bytes."""
    patched(plain, 42, "<3h", 32767, 32767, 32767)
    if packed:
        plain.write_bytes(gzip.compress(plain.read_bytes()))
    tracemalloc.start()
    refused(plain, FileError, "promises")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("offset", [0.0, -1e9, 100.0, 352.5, 1e30, np.nan])
def test_impossible_start(plain: Path, offset: float) -> None:
    refused(patched(plain, 108, "<f", offset), FileError, "start|promises")


@pytest.mark.parametrize(("code", "bits", "words"), [(32, 64, "complex"), (128, 24, "colours")])
def test_other_values(tmp_path: Path, plain: Path, code: int, bits: int, words: str) -> None:
    refused(patched(plain, 70, "<hh", code, bits), InputError, words)


def test_unknown_type_and_sizes(plain: Path) -> None:
    content = plain.read_bytes()
    refused(patched(plain, 70, "<h", 777), FileError, "cannot read")
    plain.write_bytes(content)
    for dim in ([3, 5, 0, 3], [3, 5, -4, 3], [0, 5, 4, 3], [9, 5, 4, 3]):
        refused(patched(plain, 40, "<4h", *dim), FileError, "impossible sizes")


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.nii\.gz"):
        write_volume(ramp(oblique()), tmp_path / "a.jpg")


def test_checks_of_values() -> None:
    volume = ramp(oblique())
    check_finite(volume)
    check_not_constant(volume)
    volume.data[0, 1, 1, 1] = np.nan
    with pytest.raises(InputError, match=r"a\.nii holds 1 voxels that are not numbers"):
        check_finite(volume, "a.nii")
    with pytest.raises(InputError, match="constant: every voxel is 2"):
        check_not_constant(volume.with_data(np.full((5, 4, 3), 2.0, np.float32)))


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no shared images in {DATA}")
@pytest.mark.parametrize("name", ["a_mri/fernando_T2FLAIR_thick", "d_fetal/mialsrtk/sub-01_run-3_T2w", "a_mri/spinal/t2_t2",
                                  "b_ct/totalseg_abdomen_ct_sm"])
def test_real_images_agree_with_nibabel(name: str) -> None:
    image, found = nibabel.load(DATA / f"{name}.nii.gz"), read_volume(DATA / f"{name}.nii.gz")
    np.testing.assert_allclose(found.grid.affine, image.affine, atol=1e-9)
    np.testing.assert_array_equal(found.data[0].numpy(), image.get_fdata(dtype=np.float32))


@pytest.mark.parametrize("dtype", [np.float16, bool, np.complex64])
def test_types_that_images_do_not_have(tmp_path: Path, dtype: type) -> None:
    with pytest.raises(InputError, match="images are not written as"):
        write_volume(Volume(np.zeros((3, 3, 3)), Grid.from_spacing((3, 3, 3), 1.0)), tmp_path / "a.nii", dtype=dtype)
    assert not (tmp_path / "a.nii").exists()


def test_a_header_is_kept_where_it_can_be(tmp_path: Path) -> None:
    data, affine = np.arange(24, dtype=np.float32).reshape(4, 3, 2), np.diag([0.001, 0.002, 0.003, 1])  # metres
    image = nibabel.Nifti2Image(data, affine)
    image.header.set_xyzt_units("meter")
    image.set_qform(None, 0)
    image.set_sform(affine, 3)
    nibabel.save(image, tmp_path / "metres.nii")
    nibabel.save(nibabel.Nifti1Image(data[:, :, 0], np.diag([1, 2, 1, 1])), tmp_path / "flat.nii")
    patched(tmp_path / "flat.nii", 88, "<f", 0.0)  # a thickness that is not stated
    for name, codes in (("metres.nii", (3, 0)), ("flat.nii", (1, 1))):
        volume = read_nifti(tmp_path / name)
        write_nifti(volume.with_data(volume.data + 1), tmp_path / "kept.nii", like=tmp_path / name)
        again = read_nifti(tmp_path / "kept.nii")
        header = nibabel.load(tmp_path / "kept.nii").header
        assert again.grid.same_as(volume.grid, 1e-5) and torch.equal(again.data, volume.data + 1)
        assert (int(header["sform_code"]), int(header["qform_code"])) == codes
