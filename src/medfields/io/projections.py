"""Files of X-ray projections: our HDF5 layout, in and out, and one door to all the others.

The layout is described in `docs/projections.md`. Nothing is unpickled; lengths and angles without a unit are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import FileError, GeometryError, InputError, OutputError
from ..space import Geometry, Grid
from . import projections_foreign as foreign
from .atomic import atomic
from .hdf5 import open_hdf5, tree
from .nifti import nifti_kind
from .scan import Scan, check_scale, circular, flag, length, minus_log, real, scalar, trusted
from .source import existing_file, first_bytes

VERSION = 1
KNOWN = "our HDF5 layout, DXchange HDF5, FIPS or HTC .mat, NIfTI or .npy with a geometry beside it (.json, .toml, .npy, .csv, .txt)"
_FLIP = {"RAS": np.ones(3), "LPS": np.array([-1.0, -1.0, 1.0])}


def read_projections(path: str | os.PathLike[str], *, geometry: str | os.PathLike[str] | None = None, pitch: float | None = None,
                     centre: float | None = None, beam: str | None = None) -> Scan:
    """Any file of projections as line integrals with their rays in RAS+ mm. The format is found by content.

    Args:
        path: our HDF5 layout, DXchange HDF5, a MATLAB file of FIPS or of HTC 2022, or a stack of projections as NIfTI or .npy.
        geometry: for a stack, the file of its geometry: the circular form or TIGRE's as .json or .toml, ASTRA's vectors as .npy, .csv or
            .txt. By default the file beside the stack with the same name and one of these endings.
        pitch: DXchange states none: mm from pixel to pixel (1 if None, with a note).
        centre: DXchange states none: the column, counted from 0, on which the axis of rotation falls; found from opposite views if None.
        beam: of ASTRA's vectors, "parallel" or "cone"; if None a first triple of unit length is a direction.

    Raises:
        FileError: missing, damaged, a pickle, or of no known format.
        GeometryError: a geometry that is missing, without units, impossible, or of another size than the data.
        InputError: values that are no line integrals, or options that the format has no use for.
    """
    path = existing_file(path)
    head = first_bytes(path)
    _refuse_pickle(path, head)
    options = {"geometry": geometry, "pitch": pitch, "centre": centre, "beam": beam}
    with _naming(path):
        scan = _open(path, head, options)
        unused = [name for name, value in options.items() if value is not None]
        if unused:
            raise InputError(f"{' and '.join(unused)} cannot be given: the file states it, or has no use for it", "leave it out")
        return replace(scan, name=path.name, notes=(*scan.notes, *check_scale(scan.geometry, scan.data, scan.water)))


def _open(path: Path, head: bytes, options: dict[str, Any]) -> Scan:
    """The scan by the reader of its format, which takes its options out of the dict."""
    if head.startswith(b"MATLAB 5.0") or (path.suffix.lower() == ".mat" and not h5py.is_hdf5(path)):
        return foreign.read_matlab(path)
    if nifti_kind(head) == "single" or head.startswith(b"\x93NUMPY"):
        return foreign.read_stack(path, options.pop("geometry"), options.pop("beam"))
    if not h5py.is_hdf5(path):
        what = "a folder of them" if path.is_dir() else "text" if head.isascii() and b"\0" not in head else "of no known format"
        raise FileError(f"{path} holds no projections: its content is {what}", f"known: {KNOWN}")
    with open_hdf5(path) as file:
        names = sorted(file)
        if "projections" in file:
            content = tree(file, path)
        elif "exchange" in file:
            content = tree(file["exchange"], path)
        else:
            content = {name: tree(item, path) for name, item in file.items() if isinstance(item, h5py.Group) and "sinogram" in item}
    if "projections" in names:
        return _own(content, path)
    if "exchange" in names:
        return foreign.dxchange(content, options.pop("pitch"), options.pop("centre"), path)
    if content:
        return foreign.fips(foreign.matlab_names(content), path)
    raise FileError(f"{path} holds no projections, only {str(names)[:200]}",
                    "expected: 'projections' (ours), 'exchange/data' (DXchange), or a struct with 'sinogram' (FIPS)")


def _refuse_pickle(path: Path, head: bytes) -> None:
    """Pickles are programs: NAF and SAX-NeRF data, .npz and .pt files, and arrays of objects are not opened."""
    objects = head.startswith(b"\x93NUMPY") and b"'|O'" in head[:256]
    if objects or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or path.suffix.lower() in (".pickle", ".pkl"):
        raise FileError(f"{path} is a pickle, and reading one would run the program in it",
                        "convert it yourself, if you trust it: a few lines of Python in docs/projections.md")
    if head.startswith(b"PK\x03\x04"):
        raise FileError(f"{path} is an archive (.npz, .pt, .zip)",
                        "save the projections as .npy and their geometry as .json, see docs/projections.md")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about the content name the file."""
    try:
        yield
    except InputError as error:
        if type(error) not in (InputError, GeometryError):
            raise
        raise type(error)(f"{path}: {error.message}", error.hint or "what a file must say: docs/projections.md") from error


def _own(content: dict[str, Any], path: Path) -> Scan:
    """Our layout."""
    if "projections" not in content:  # a name that leads nowhere, or to a type of data
        raise FileError(f"{path} has a name 'projections', but no data there", "copy or download it again")
    if scalar(content, "version", VERSION) > VERSION:
        raise FileError(f"{path} is of version {scalar(content, 'version'):g} of the layout, newer than this medfields", "update medfields")
    raw = np.asarray(content["projections"])
    raw = raw[:, None] if raw.ndim == 2 else raw
    if raw.ndim != 3:
        raise InputError(f"'projections' has {raw.ndim} axes where views, rows and columns are meant")
    if not isinstance(content.get("geometry"), dict):
        raise GeometryError("there is no group 'geometry'", "see docs/projections.md")
    shape = (raw.shape[0], raw.shape[1], raw.shape[2])
    data, photons, counted, notes = _measured(content, raw)
    data, good, more = trusted(data, _mask(content.get("mask"), shape), counted)
    geometry, odd = _geometry(content["geometry"], shape)
    grid = _grid(content["grid"], geometry.frame) if isinstance(content.get("grid"), dict) else None
    return Scan(data, geometry, grid, good, scalar(content, "water_per_mm"), photons, _spectrum(content.get("spectrum")),
                notes=(*notes, *more, *odd))


def _mask(value: Any, shape: tuple[int, int, int]) -> np.ndarray | None:
    """[V, R, C] from a mask of every pixel, of the detector [R, C], or of the views of one row [V, C]."""
    if value is None:
        return None
    mask = real(value, "mask", np.float32) > 0
    if mask.shape == (shape[0], shape[2]) and shape[1] == 1:
        mask = mask[:, None]
    if mask.shape not in (shape, shape[1:]):
        raise InputError(f"the mask is {' x '.join(map(str, mask.shape))}, the projections are {' x '.join(map(str, shape))}")
    return np.broadcast_to(mask, shape)


def _measured(content: dict[str, Any], raw: np.ndarray) -> tuple[np.ndarray, float, int, list[str]]:
    """Line integrals with NaN where there are none, photons in the open beam, number of such NaN that the notes tell of, and the notes."""
    unit, photons = content.get("projections_unit"), scalar(content, "photons")
    if unit is None:
        raise InputError("'projections' states no unit", "give it the attribute unit: '1' for line integrals -log(I / I0), or 'counts'")
    if unit in ("1", "", "none", "dimensionless"):
        return real(raw, "projections", np.float32), photons, 0, []
    if unit != "counts":
        raise InputError(f"{str(unit)[:40]!r} is no unit of projections", "'1' for line integrals -log(I / I0), or 'counts'")
    flat = real(content.get("flat", photons), "flat")
    if flat.ndim == 0 and not flat > 0:
        raise InputError("counts need the open beam to be compared with", "add a dataset 'flat', or the attribute photons")
    made, notes = minus_log(raw, flat, content.get("dark", 0.0), scalar(content, "saturation"))
    before = int((~np.isfinite(real(raw, "projections", np.float32))).sum())
    return made, photons, int(np.isnan(made).sum()) - before, notes


def _geometry(entries: dict[str, Any], shape: tuple[int, int, int]) -> tuple[Geometry, list[str]]:
    """A pose for every view, or the circular form."""
    uid = str(entries.get("frame_of_reference", ""))
    if "source" not in entries:
        made, notes = circular(entries, shape)
        return replace(made, frame=uid), notes
    frame = str(entries.get("frame", ""))
    if frame not in _FLIP:
        raise GeometryError("the geometry does not say in which frame its vectors are" if not frame else f"there is no frame {frame[:40]!r}",
                            "frame = 'RAS': x to the right, y to the front, z to the head; or 'LPS'")
    beam = str(entries.get("beam", ""))
    if beam not in ("parallel", "cone"):
        raise GeometryError(f"there is no beam {beam[:40]!r}" if beam else "the geometry does not say its beam", "beam = parallel or cone")
    vectors = {name: length(entries, name) for name in ("centre", "u", "v")}
    source = real(entries["source"], "source") if beam == "parallel" else length(entries, "source")
    if source.shape != (shape[0], 3):
        raise GeometryError(f"'source' has the shape {source.shape}, {shape[0]} projections need one vector each", "[views, 3]")
    if any((np.abs(array) > 1e9).any() for array in (source, *vectors.values())):
        raise GeometryError("vectors of the geometry are longer than 1000 km", "the file is damaged, or the unit is another")
    flipped = {name: array * _FLIP[frame] for name, array in {"source": source, **vectors}.items()}
    return Geometry("cone" if beam == "cone" else "parallel", **flipped, shape=shape[1:], arc=flag(entries, "arc"),
                    frame=uid), []


def _grid(entries: dict[str, Any], uid: str) -> Grid:
    """The lattice that a file suggests."""
    frame = str(entries.get("frame", "RAS"))
    if "shape" not in entries or "affine" not in entries or frame not in _FLIP:
        raise GeometryError("the group 'grid' needs 'shape', 'affine', a unit and frame = 'RAS' or 'LPS'")
    shape, affine = real(entries["shape"], "shape").ravel(), length(entries, "affine").copy()
    if len(shape) != 3 or affine.shape != (4, 4) or not np.isfinite(shape).all():
        raise GeometryError(f"the grid's shape must be 3 numbers and its affine 4 x 4, got {len(shape)} and {affine.shape}")
    if not (np.abs(affine) < 1e9).all():
        raise GeometryError("the grid's affine is not finite, or its steps are longer than 1000 km", "the file is damaged, or the unit is another")
    affine[3] = 0, 0, 0, 1  # the last row has no unit
    affine[:3] *= _FLIP[frame][:, None]
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, uid)


def _spectrum(value: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if value is None:
        return None
    table = real(value, "spectrum")
    if table.ndim != 2 or table.shape[1] != 2 or not np.isfinite(table).all():
        raise InputError(f"'spectrum' must hold a row (keV, share) for each energy, got the shape {table.shape}")
    return tuple(table[:, 0].tolist()), tuple(table[:, 1].tolist())


def write_projections(scan: Scan, path: str | os.PathLike[str]) -> None:
    """Write our HDF5 layout; the file appears whole or not at all.

    Raises:
        OutputError: no permission, no space.
    """
    g = scan.geometry
    with atomic(path) as temporary:
        try:
            with h5py.File(temporary, "w") as file:
                _state(file, format="medfields projections", version=VERSION, water_per_mm=scan.water, photons=scan.photons)
                data = file.create_dataset("projections", data=scan.data)
                _state(data, unit="1", axes="view row column", quantity="line integral -log(I / I0)")
                if scan.good is not None:
                    _state(file.create_dataset("mask", data=scan.good.astype(np.uint8), compression="gzip"), meaning="1: to be trusted")
                if scan.spectrum is not None:
                    _state(file.create_dataset("spectrum", data=np.transpose(scan.spectrum)), unit="keV, share")
                group = file.create_group("geometry")
                _state(group, beam=g.beam, unit="mm", frame="RAS", arc=g.arc, **({"frame_of_reference": g.frame} if g.frame else {}))
                for name in ("source", "centre", "u", "v"):
                    unit = "1" if g.beam == "parallel" and name == "source" else "mm"
                    _state(group.create_dataset(name, data=getattr(g, name)), unit=unit)
                if scan.grid is not None:
                    group = file.create_group("grid")
                    _state(group, unit="mm", frame="RAS")
                    group["shape"], group["affine"] = scan.grid.shape, scan.grid.affine
        except RuntimeError as error:  # what h5py makes of a full disk while it closes
            raise OutputError(f"cannot write {path}: {str(error).splitlines()[0][:200]}", "is there room on the disk?") from error


def _state(item: h5py.Group | h5py.Dataset, **attributes: str | float) -> None:
    """Attributes with text of fixed length: it lies in the attribute itself, where text of any length is kept in a heap of the file."""
    for name, value in attributes.items():
        item.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
