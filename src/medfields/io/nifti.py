"""NIfTI-1 and NIfTI-2 single files (.nii, .nii.gz), in and out.

The header is decoded by nibabel but trusted in nothing: sizes are compared with the file before memory is set aside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Header as Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike

from ..errors import FileError, GeometryError, InputError
from ..space import Grid, Volume
from .atomic import atomic
from .source import first_bytes, place, provenance, read_exactly, unreadable

_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
_KINDS = {348: (nibabel.Nifti1Header, 352), 540: (nibabel.Nifti2Header, 544)}


def nifti_kind(head: bytes) -> str:
    """ "single" for a .nii, "pair" for the .hdr of a pair, "analyze" for its ancestor, "" for anything else."""
    size, _ = _size_and_order(head)
    if size == 348:
        magic = head[344:348]
        return {b"n+1\0": "single", b"ni1\0": "pair"}.get(magic, "analyze" if len(head) >= 348 and magic == b"\0\0\0\0" else "")
    if size == 540:
        return {b"n+2\0": "single", b"ni2\0": "pair"}.get(head[4:8], "")
    return ""


def _size_and_order(head: bytes) -> tuple[int, str]:
    """The header length its first number states, and the byte order in which it makes sense; 0 if in neither."""
    for order in "<>":
        size = int(np.frombuffer(head[:4].ljust(4, b"\0"), f"{order}i4")[0])
        if size in _KINDS:
            return size, order
    return 0, "<"


def read_nifti(path: Path, *, assume_upright: bool = False, channels: bool = False) -> Volume:
    """The image with its affine in RAS+ mm and its values scaled by the header's slope and intercept.

    Geometry is the sform if its code is set, else the qform; lengths in metres or microns become mm. A file with
    neither states no orientation and is refused, unless `assume_upright`: then the axes are taken as i = right,
    j = front, k = up, from world 0, with the stated voxel sizes. A 2-D image gets K = 1. `channels` reads a fourth
    axis as channels.

    Raises:
        FileError: not NIfTI, damaged, or shorter than its header says.
        GeometryError: zero or negative voxel sizes, a singular affine, no stated orientation.
        InputError: more than three axes, colour or complex values.
    """
    with quiet(), np.errstate(all="ignore"):  # values beyond float32 become infinite; `check_finite` speaks of them
        header, start = read_header(path)
        shape = _shape(header, path, channels)
        grid, facts = grid_of(header, shape[:3], path, assume_upright)
        data = read_data(header, start, shape, path)
    return Volume(np.moveaxis(data, -1, 0), grid, about=provenance("nifti", path, **facts))


def read_header(path: Path) -> tuple[Header, int]:
    """The decoded header, and the byte at which the voxels start."""
    head = first_bytes(path, 540)
    size, order = _size_and_order(head)
    if nifti_kind(head) != "single" or len(head) < size:
        raise FileError(f"{path} has no NIfTI header", "is it really an image? Convert others to .nii.gz")
    kind, lowest = _KINDS[size]
    header = kind(head[:size], endianness=order, check=False)
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset == int(offset) and lowest <= offset < 2**40):
        raise FileError(f"{path} states an impossible start of its voxels ({offset:g})", "its header is damaged")
    return header, int(offset)


def _shape(header: Header, path: Path, channels: bool) -> tuple[int, int, int, int]:
    """[I, J, K, C] of the file."""
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1:1 + dim[0]]) < 1:
        raise FileError(f"{path} states impossible sizes {dim}", "its header is damaged")
    shape = dim[1:1 + dim[0]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 1:
        raise InputError(f"{path} holds a line of {shape[0]} values, not an image")
    most = 4 if channels else 3
    if len(shape) > most:
        raise InputError(f"{path} has {len(shape)} axes {'x'.join(map(str, shape))} where {most} are meant",
                         "pick one volume of it first, for instance with nibabel: img.slicer[..., 0]")
    i, j, k, c = (*shape, 1, 1)[:4]
    return i, j, k, c


def grid_of(header: Header, shape: tuple[int, ...], path: Path, assume_upright: bool) -> tuple[Grid, dict[str, Any]]:
    """Where the voxels lie, and what had to be assumed."""
    facts: dict[str, Any] = {}
    sizes = header["pixdim"][1:4].astype(float)
    flat = int(header["dim"][0]) == 2
    if flat and sizes[2] == 0:
        sizes[2], facts["geometry"] = 1.0, "slice thickness not stated, taken as 1 unit"
        header["pixdim"][3] = 1.0
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise GeometryError(f"{path} has voxel sizes of {sizes.tolist()}: they must be positive", "repair the header (pixdim)")
    # the standard reads every sign factor but -1 as +1
    header["pixdim"][0] = -1.0 if header["pixdim"][0] < 0 else 1.0
    try:
        coded = header["sform_code"] > 0, header["qform_code"] > 0
        affine = header.get_sform() if coded[0] else header.get_qform() if coded[1] else None
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise GeometryError(f"{path} has an orientation that is no rotation: {error}", "repair the header (qform)") from error
    if affine is None:
        if not assume_upright:
            raise GeometryError(f"{path} does not state where it lies: its sform and qform codes are both 0",
                                "set them (nibabel: img.set_sform(affine, 1)), or read it with assume_upright=True")
        affine, facts["geometry"] = np.diag([*sizes, 1.0]), "orientation not stated, taken as upright"
    elif flat and not np.any(affine[:3, 2]):
        affine[:3, 2] = _normal(affine) * sizes[2]
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        raise GeometryError(f"{path} states an unknown unit of length (xyzt_units {unit})", "repair the header")
    affine = np.array(affine, dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT[unit]
    grid = place(path, shape, affine)
    across = header.get_dim_info()[2]
    # A header may be older than a turn of its voxels: what contradicts the voxel sizes by far is not believed.
    if across is not None and across < 3 and grid.spacing.max() < 2 * grid.spacing[across]:
        facts["slice_axis"] = int(across)
    return grid, facts


def _normal(affine: np.ndarray) -> np.ndarray:
    """The unit vector across the image plane."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return normal / max(float(np.linalg.norm(normal)), 1e-300)


def read_data(header: Header, start: int, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """[I, J, K, C] float32, scaled."""
    try:
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, KeyError, ValueError) as error:
        raise unreadable(path, error) from error
    if dtype.kind not in "iufb":
        what = {"c": "complex numbers", "V": "colours"}.get(dtype.kind, f"values of type {dtype}")
        raise InputError(f"{path} holds {what} where one real number per voxel is meant", "save its magnitude or one channel first")
    content = read_exactly(path, start, math.prod(shape) * dtype.itemsize)
    stored = np.frombuffer(content, dtype).reshape(shape, order="F")
    data = np.empty(shape, np.float32)
    for k in range(shape[2]):
        data[:, :, k] = stored[:, :, k] if slope is None else stored[:, :, k] * np.float64(slope) + np.float64(intercept)
    return data


@contextmanager
def quiet() -> Iterator[None]:
    """nibabel logs every oddity it repairs; what matters is raised here as an error."""
    log = getLogger("nibabel.global")
    before, log.level = log.level, CRITICAL
    try:
        yield
    finally:
        log.level = before


_PLACE = ("pixdim", "xyzt_units", "dim_info", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
          "qoffset_z", "srow_x", "srow_y", "srow_z")  # what a header says of where voxels lie


def write_nifti(volume: Volume, path: Path, *, dtype: DTypeLike = np.float32, like: Path | None = None) -> None:
    """Write sform and qform in mm; several channels become a fourth axis. More than 32767 voxels along an axis need NIfTI-2.

    A sheared grid goes into the sform only: the qform cannot hold shear, and its code stays 0.

    Args:
        volume: what is written.
        path: .nii or .nii.gz.
        dtype: of the voxels.
        like: a NIfTI file on the same grid, whose sform, qform, codes and units are taken as they stand.

    Raises:
        InputError: if the values do not fit an integer `dtype`.
        OutputError: if the file cannot be written.
    """
    data = as_dtype(np.moveaxis(volume.data.detach().cpu().numpy(), 0, -1), dtype)
    data = data[..., 0] if volume.channels == 1 else data
    affine = np.array(volume.grid.affine)
    kind = nibabel.Nifti1Image if max(data.shape) < 2**15 else nibabel.Nifti2Image
    image = kind(data, affine, dtype=data.dtype.type)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if not np.allclose(image.get_qform(), affine, rtol=0, atol=1e-4 * float(volume.grid.spacing.min())):
        image.header["qform_code"] = 0
    if like is not None:
        source, _ = read_header(like)
        if int(source["dim"][0]) >= 3:  # a flat one need not say how thick it is
            header = image.header.copy()
            for name in _PLACE:
                header[name] = source[name]
            with quiet():
                image = kind(np.asanyarray(image.dataobj), None, header, dtype=data.dtype.type)  # None: the header says where it lies
    with atomic(path) as temporary:
        nibabel.save(image, temporary)


def as_dtype(data: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Values in another type, rounded for integers, never wrapped round.

    Raises:
        InputError: if they do not fit, or for a type that image formats do not have.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "iuf" or (dtype.itemsize < 4 and dtype.kind == "f"):
        raise InputError(f"images are not written as {dtype}", "write float32 or an integer type")
    if dtype.kind == "f":
        return data.astype(dtype)
    limits = np.iinfo(dtype)
    rounded = np.rint(data)
    if not (np.isfinite(rounded).all() and rounded.min() >= limits.min and rounded.max() <= limits.max):
        raise InputError(f"values from {data.min():g} to {data.max():g} do not fit {dtype}", "write float32")
    return rounded.astype(dtype)
