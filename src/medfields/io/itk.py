"""NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) through SimpleITK, which comes with the extra "io". ITK's world is LPS, ours RAS."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..errors import FileError, GeometryError, InputError, MissingExtra, OutputError
from ..space import Volume
from .atomic import atomic
from .nifti import as_dtype
from .source import LPS_TO_RAS, could_hold, first_bytes, place, provenance, unreadable

_READERS = {"nrrd": "NrrdImageIO", "metaimage": "MetaImageIO"}
_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")  # those that ITK turns
_MM_PER_UNIT = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "m": 1e3, "meter": 1e3, "metre": 1e3, "cm": 10.0, "centimeter": 10.0,
                "centimetre": 10.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3, "nm": 1e-6}


def itk_kind(head: bytes) -> str:
    """ "nrrd", "metaimage" or ""."""
    if head.startswith(b"NRRD000"):
        return "nrrd"
    return "metaimage" if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", head) else ""


def read_itk(path: Path, *, assume_upright: bool = False, channels: bool = False) -> Volume:
    """The image with its affine turned from LPS to RAS+ mm. A 2-D image gets K = 1 and a thickness of 1 mm.

    Raises:
        FileError: damaged, or shorter than its header says.
        GeometryError: impossible spacing or directions, or an unknown unit of length; or no anatomical directions, voxel sizes or
            origin stated, unless `assume_upright`.
        InputError: more than three axes, or several values per voxel without `channels`.
        MissingExtra: without SimpleITK.
    """
    sitk = simpleitk("reading NRRD and MetaImage files")
    kind = itk_kind(first_bytes(path))
    if not kind:
        raise FileError(f"{path} has neither a NRRD nor a MetaImage header")
    header = _header(path, kind)
    turned, placed = _stated(header, kind)
    facts = {}
    if not ((turned and placed) or assume_upright):
        raise GeometryError(f"{path} does not state where it lies: no anatomical directions, no voxel sizes or no origin",
                            "write it again with them, or read it with assume_upright=True")
    _require_size(header, kind, path)
    image = _read(sitk, path, kind)
    size, count = list(image.GetSize()), image.GetNumberOfComponentsPerPixel()
    rank = len(size)
    if any(n != 1 for n in size[3:]):
        raise InputError(f"{path} has {rank} axes {'x'.join(map(str, size))} where 3 are meant", "pick one volume of it first")
    if count > 1 and not channels:
        raise InputError(f"{path} has {count} values per voxel where one is meant", "save one channel of it first")
    data = sitk.GetArrayViewFromImage(image)
    if np.iscomplexobj(data):
        raise InputError(f"{path} holds complex numbers where one real number per voxel is meant", "save its magnitude first")
    i, j, k = [*size, 1][:3]
    data = np.asarray(data, dtype=np.float32).reshape(k, j, i, count).transpose(3, 2, 1, 0)
    affine, n = np.eye(4), min(rank, 3)
    direction = np.reshape(image.GetDirection(), (rank, rank))[:n, :n]
    affine[:n, :n] = direction * image.GetSpacing()[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    affine[:3] *= _mm_per_unit(header, path)
    if rank == 2:
        facts["geometry"] = "slice thickness not stated, taken as 1 mm"
        affine[2, 2] = 1.0
    if turned:
        affine = LPS_TO_RAS @ affine
    if not (turned and placed):
        facts["geometry"] = "origin or voxel size not stated, taken as 0 and 1" if turned else "orientation not stated, taken as upright"
    return Volume(data, place(path, data.shape[1:], affine), about=provenance(kind, path, **facts))


def write_itk(volume: Volume, path: Path, *, dtype: DTypeLike = np.float32) -> None:
    """Write .nrrd, .mha, or .mhd with its .raw beside it; several channels become a vector image.

    Raises:
        OutputError: if the file cannot be written, or its .raw would overwrite another file's.
        MissingExtra: without SimpleITK.
    """
    sitk = simpleitk("writing NRRD and MetaImage files")
    check_raw(path)
    data = as_dtype(volume.data.detach().cpu().numpy(), dtype)
    many = volume.channels > 1
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(3, 2, 1, 0) if many else data[0].transpose(2, 1, 0)), isVector=many)
    affine = LPS_TO_RAS @ volume.grid.affine
    image.SetSpacing(volume.grid.spacing.tolist())
    image.SetDirection((affine[:3, :3] / volume.grid.spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    with atomic(path) as temporary, _quiet(sitk):
        try:
            staged = temporary.with_suffix(path.suffix.lower())  # ITK does not know .MHA
            sitk.WriteImage(image, str(staged), useCompression=staged.suffix != ".mhd")
            staged.rename(temporary)
        except RuntimeError as error:
            raise OutputError(f"cannot write {path}: {_reason(error)}", "is there room on the disk?") from error


def simpleitk(purpose: str) -> ModuleType:
    """The module SimpleITK, which `purpose` needs; raises MissingExtra where it is not installed."""
    try:
        import SimpleITK
    except ImportError as error:
        raise MissingExtra("SimpleITK", "io", purpose) from error
    return SimpleITK


@contextmanager
def _quiet(sitk: Any) -> Iterator[None]:
    """ITK prints warnings to the terminal; what matters is raised as an error."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _read(sitk: Any, path: Path, kind: str) -> Any:
    with _quiet(sitk):
        try:
            return sitk.ReadImage(str(path), imageIO=_READERS[kind])
        except RuntimeError as error:
            reason = _reason(error)
            if re.search("spacing|direction|determinant|origin", reason, re.IGNORECASE):
                raise GeometryError(f"{path} states an impossible geometry: {reason}", "repair the header") from error
            raise unreadable(path, Exception(reason)) from error


def _reason(error: RuntimeError) -> str:
    """The line in which ITK says what is wrong, without its addresses in memory."""
    lines = str(error).strip().splitlines()
    line = next((n for n in lines if "ITK ERROR" in n), lines[-1])
    return re.sub(r"(ITK ERROR: )?(\w+\(0x[0-9a-f]+\): *)?", "", line).strip()


def _header(path: Path, kind: str) -> dict[str, str]:
    """The text header as lower-case names and values: `name: value` (NRRD) or `name = value` (MetaImage)."""
    entries = {}
    sign = ":" if kind == "nrrd" else "="
    for line in first_bytes(path, 1 << 16).decode("latin-1").splitlines():
        if kind == "nrrd" and not line.strip():
            break
        name, found, value = line.partition(sign)
        if found and not line.startswith("#"):
            entries[name.strip().lower()] = value.strip().lstrip("=").strip()
        if kind == "metaimage" and name.strip().lower() == "elementdatafile":
            break
    return entries


def _stated(header: dict[str, str], kind: str) -> tuple[bool, bool]:
    """Whether a header says how its axes lie in the patient, and where they start and how long their steps are.

    ITK would silently take identity and 0, and leave the axes of any other space ("scanner-xyz") as they are.
    """
    names = set(header)
    if kind == "nrrd":
        return "space directions" in names and header.get("space", "").lower() in _SPACES, {"space directions", "space origin"} <= names
    placed = bool({"offset", "origin", "position"} & names) and bool({"elementspacing", "elementsize"} & names)
    return bool({"transformmatrix", "orientation", "rotation"} & names), placed


def _require_size(header: dict[str, str], kind: str, path: Path) -> None:
    """Refuse a header that promises more than the file holds, before ITK sets the memory aside."""
    names = ("sizes", "data file", "datafile") if kind == "nrrd" else ("dimsize", "elementdatafile", "elementdatafile")
    data_name = header.get(names[1]) or header.get(names[2]) or "LOCAL"
    if data_name.upper().startswith("LIST") or "%" in data_name:
        return  # one file for each slice: ITK reads them one by one
    data_path = path if data_name.upper() == "LOCAL" else path.parent / data_name
    try:
        size = math.prod(int(float(n)) for n in header.get(names[0], "").split())
        enough = data_path.is_file() and could_hold(data_path, size)
    except (ValueError, OverflowError, OSError) as error:
        raise unreadable(path, error) from error
    if not enough:
        raise FileError(f"{path} promises {size} voxels, more than {data_path.name} can hold", "copy or download it again")


def _mm_per_unit(header: dict[str, str], path: Path) -> float:
    """NRRD and MetaImage may state lengths in other units than mm; ITK does not look."""
    stated = [*re.findall(r'"([^"]*)"', header.get("space units", "")), header.get("distanceunits", "")]
    units = {unit.strip().lower().rstrip("s") for unit in stated} - {"", "?", "none"}  # microns is micron
    scales = {_MM_PER_UNIT.get(unit) for unit in units} or {1.0}
    if len(scales) > 1 or None in scales:
        raise GeometryError(f"{path} states its lengths in {' and '.join(sorted(units))}", "write it again in mm")
    return float(scales.pop() or 1.0)


def check_raw(path: Path) -> None:
    """Raise OutputError if the .raw that an .mhd needs beside it would take the place of another file's voxels."""
    raw = path.with_suffix(".raw")
    if path.suffix.lower() == ".mhd" and raw.exists() and not (path.is_file() and _header(path, "metaimage").get("elementdatafile") == raw.name):
        raise OutputError(f"{path.name} would overwrite {raw}, which belongs to something else", "choose another name, or .mha, which is one file")
