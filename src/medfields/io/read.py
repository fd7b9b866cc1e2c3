"""One door in, one door out: the format of an image is found by its content first, by its name second."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from ..errors import FileError, OutputError
from ..space import Volume
from .atomic import check_writable
from .dicom import is_dicom, read_dicom
from .dicom_write import is_own_series, write_dicom
from .itk import check_raw, itk_kind, read_itk, write_itk
from .nifti import nifti_kind, read_nifti, write_nifti
from .source import existing_file, first_bytes

KNOWN = "NIfTI (.nii, .nii.gz), DICOM (a folder or one of its files), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd)"
_ITK_NAMES = (".nrrd", ".mha", ".mhd")


def read_volume(path: str | os.PathLike[str], *, series: str = "", assume_upright: bool = False, channels: bool = False) -> Volume:
    """Any image file or DICOM folder as a Volume in RAS+ mm.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a DICOM folder (searched through its subfolders) or one file of it.
        series: which DICOM series, by its UID, number or description, where a folder holds several.
        assume_upright: read a file that does not state its orientation as if its axes were right, front, up.
        channels: read a fourth axis, or several values per voxel, as channels.

    Raises:
        FileError: missing, empty, damaged, or of no known format.
        GeometryError: a file that does not state where it lies, or states the impossible.
        InputError: more axes than meant, several series, colours.
        MissingExtra: NRRD and MetaImage need SimpleITK; some compressed DICOM needs a decoder.
    """
    path = Path(path)
    if path.is_dir():
        return read_dicom(path, series=series)
    head = first_bytes(existing_file(path))
    if nifti_kind(head) == "single":
        return read_nifti(path, assume_upright=assume_upright, channels=channels)
    if itk_kind(head):
        return read_itk(path, assume_upright=assume_upright, channels=channels)
    if is_dicom(path):
        return read_dicom(path, series=series)
    raise _unknown(path, head)


def write_volume(volume: Volume, path: str | os.PathLike[str], *, dtype: DTypeLike = np.float32,
                 like: str | os.PathLike[str] | None = None) -> None:
    """Write an image in the format its name asks for; a name without an ending becomes a folder with a DICOM series.

    The file appears whole or not at all. For DICOM details (modality, patient) see `write_dicom`.

    Args:
        volume: what is written.
        path: where to.
        dtype: of the voxels.
        like: an image on the same grid; if both are NIfTI, its sform, qform and their codes are kept as they stand.

    Raises:
        OutputError: unknown ending, no permission, no space.
        InputError: values that do not fit an integer `dtype`.
        GeometryError: a sheared grid as DICOM.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "nifti":
        source = None if like is None or Path(like).is_dir() else Path(like)
        same = source is not None and nifti_kind(first_bytes(source)) == "single" and read_volume(source).grid.same_as(volume.grid)
        write_nifti(volume, path, dtype=dtype, like=source if same else None)
    elif kind == "itk":
        write_itk(volume, path, dtype=dtype)
    else:
        write_dicom(volume, path)


def check_image_path(path: str | os.PathLike[str]) -> None:
    """Find out now, before hours of computing, whether `write_volume` can write there.

    Raises:
        OutputError: as `write_volume` and `check_writable` would.
    """
    if _kind(Path(path)) == "itk":
        check_raw(Path(path))
    check_writable(path, replace=is_own_series(path))


def image_ending(path: str | os.PathLike[str]) -> str:
    """The ending by which a file name says that it is an image (".nii.gz", ...); "" for any other name, as of a folder."""
    name = Path(path).name
    return next((name[-len(e):] for e in (".nii.gz", ".nii", *_ITK_NAMES) if name.lower().endswith(e)), "")


def _kind(path: Path) -> str:
    """The format that a name asks for: "nifti", "itk" or "dicom"."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith(_ITK_NAMES):
        return "itk"
    if path.is_dir() or not path.suffix:
        return "dicom"
    raise OutputError(f"no known image format ends in '{path.suffix}'",
                      "use .nii.gz, .nii, .nrrd, .mha or .mhd, or a folder name for a DICOM series")


def _unknown(path: Path, head: bytes) -> FileError:
    """Say what the file is, where that can be guessed."""
    if not head:
        return FileError(f"{path} is a gzip file cut off in its first bytes", "copy or download it again")
    if nifti_kind(head) == "pair":
        return FileError(f"{path} is the header of a NIfTI pair (.hdr with .img)", "convert it to one .nii.gz")
    if nifti_kind(head) == "analyze":
        return FileError(f"{path} is an Analyze 7.5 header, which states no orientation", "convert it to .nii.gz")
    if path.name.lower().endswith(".field"):
        return FileError(f"{path} is a field, not an image", "sample it first: medfields query")
    what = "text" if head.isascii() and b"\0" not in head else "of no known format"
    return FileError(f"{path} is no image: its content is {what}", f"known: {KNOWN}")
