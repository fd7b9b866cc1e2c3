"""Projections in the files of others: DXchange, MATLAB of FIPS and HTC 2022, stacks with the geometry of ASTRA or TIGRE.

Their axes in ours (RAS+ mm, isocentre at the origin, the object at rest). In all of them the axis of rotation is z, here towards the head, x is
right, y front; what looks from the head turns counter-clockwise as the angle grows. With e = (cos t, sin t, 0) and r = (-sin t, cos t, 0):

* ASTRA (its 2-D and 3-D geometries): at the angle t the source is at -DSO r, rays run along r, columns along e, rows along +z; so is `Geometry`.
* TIGRE: at its angle a the source is at DSO (cos a, sin a, 0), columns run along (-sin a, cos a, 0), rows along +z: t = a + 90 degrees.
  Python's order: nDetector, dDetector, offDetector are (rows, columns), nVoxel, dVoxel, offOrigin are (z, y, x), projections [views, rows, columns].
* FIPS and HTC 2022 describe themselves by ASTRA's `fanflat`.
* DXchange states angles only: they are taken as t. Its rows are those of a picture, from the top, here along -z. A stage that turns the other way
  mirrors the slice.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import FileError, GeometryError, InputError
from ..space import Geometry, Grid
from .matlab import read_mat5
from .nifti import nifti_kind, read_nifti
from .scan import Scan, angle, circular, minus_log, number, real, scalar, size, trusted, turn
from .source import existing_file, first_bytes, unreadable

_BESIDE = (".json", ".toml", ".csv", ".txt", ".npy")
_TABLES = (".csv", ".txt", ".npy")
_TIGRE = ("DSD", "DSO", "dDetector", "angles")


# ---- DXchange, as tomopy reads it


def dxchange(content: Mapping[str, Any], pitch: float | None, centre: float | None, path: Path) -> Scan:
    """The group `exchange`: data [theta, y, x] in counts, data_white, data_dark, theta.

    Raises:
        FileError: without data or theta.
        GeometryError: angles that do not fit, a centre outside the detector.
        InputError: values that are no counts.
    """
    for name in ("data", "theta"):
        if name not in content:
            raise FileError(f"{path} has no 'exchange/{name}'", "DXchange needs data, data_white, data_dark and theta")
    raw, axes = np.asarray(content["data"]), str(content.get("data_axes", "theta:y:x")).split(":")
    if raw.ndim != 3:
        raise InputError(f"'exchange/data' has {raw.ndim} axes where theta, y and x are meant")
    if sorted(axes) == ["theta", "x", "y"]:
        raw = raw.transpose([axes.index(name) for name in ("theta", "y", "x")])
    white, counted = content.get("data_white"), 0
    if white is None:
        data, notes = real(raw, "data", np.float32), ["no data_white: taken as line integrals -log(I / I0)"]
        if np.median(data) > 50:
            raise InputError("there is no 'exchange/data_white' to compare the counts with", "add the frames of the open beam")
    else:
        data, notes = minus_log(raw, white, content.get("data_dark", 0.0))
        counted = int(np.isnan(data).sum() - np.isnan(raw).sum())
    data, good, more = trusted(data, None, counted)
    unit = str(content.get("theta_units", content.get("theta_unit", "degrees")))
    radians, odd = turn(*angle({"angles": content["theta"], "angles_unit": unit}, "angles"), len(data))
    if pitch is None:
        odd.append("DXchange states no pixel size: 1 mm is assumed, give pitch= (--pitch)")
    column = _axis(data, radians, odd) if centre is None else float(centre)
    if not 0 <= column <= data.shape[2] - 1:
        raise GeometryError(f"the axis of rotation cannot fall on column {column:g} of {data.shape[2]}", "centre counts columns from 0")
    mm = 1.0 if pitch is None else float(pitch)
    if not (np.isfinite(mm) and mm > 0):
        raise GeometryError(f"a pitch of {mm:g} mm", "mm from pixel to pixel")
    upright = Geometry.parallel(radians, data.shape[2], mm, rows=data.shape[1], offset=((data.shape[2] - 1) / 2 - column) * mm)
    geometry = Geometry("parallel", upright.source, upright.centre, upright.u, -upright.v, upright.shape)
    return Scan(data, geometry, good=good, notes=(*notes, *more, *odd))


def _axis(data: np.ndarray, angles: np.ndarray, notes: list[str]) -> float:
    """The column of the axis of rotation, where opposite views are each other's mirror image: p(t + 180, c + s) = p(t, c - s).

    Views are compared with what lies between (or just beyond) the two that are nearest to half a turn away.
    """
    found, worst, middle = [], 1.0, (data.shape[2] - 1) / 2
    order = np.argsort(angles)
    step = np.median(np.diff(angles[order])) if len(angles) > 1 else 0.0
    first = [n for n in order if angles[n] + np.pi <= angles.max() + 1.01 * step]
    for n in first[:: max(1, len(first) // 12)] if len(angles) > 2 else []:
        near = order[np.argsort(np.abs(angles[order] - angles[n] - np.pi), kind="stable")[:2]]
        a, b = angles[near]
        if a == b or abs(a - angles[n] - np.pi) > 1.01 * step:
            continue
        share = (angles[n] + np.pi - a) / (b - a)
        rows = slice(None, None, max(1, data.shape[1] // 16))
        column, likeness = _mirror(data[n, rows], (1 - share) * data[near[0], rows] + share * data[near[1], rows])
        found.append(column)
        worst = min(worst, likeness)
    if not found:
        notes.append(f"no views half a turn apart: the axis of rotation is taken as the middle of the detector, column {middle:g}; "
                     "give centre= (--centre)")
        return middle
    column = float(np.median(found))
    notes.append(f"the axis of rotation falls on column {column:.2f} of {data.shape[2]}, found from {len(found)} pairs of opposite views")
    if worst < 0.9 or np.ptp(found) > 2:
        notes.append(f"opposite views do not mirror each other well (correlation {worst:.2f}): check the axis of rotation, give centre= "
                     "(--centre)")
    return column


def _mirror(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The column about which two views [R, C] mirror each other, to a fraction, and their correlation there."""
    n = a.shape[1]
    likeness = np.full(2 * n - 1, -1.0)
    for k in range(n // 2, 2 * n - 1 - n // 2):  # column c of one is column k - c of the other
        lo, hi = max(0, k - n + 1), min(n, k + 1)
        p, q = a[:, lo:hi], b[:, k - hi + 1:k - lo + 1][:, ::-1]
        p, q = p - p.mean(), q - q.mean()
        likeness[k] = (p * q).sum() / max(np.sqrt((p * p).sum() * (q * q).sum()), 1e-12)
    k = int(likeness.argmax())
    below, at, above = likeness[max(k - 1, 0)], likeness[k], likeness[min(k + 1, 2 * n - 2)]
    bend = below - 2 * at + above
    return (k + (0.5 * (below - above) / bend if bend < 0 and below > -1 < above else 0.0)) / 2, float(at)


# ---- MATLAB: FIPS, HTC 2022


def read_matlab(path: Path) -> Scan:
    """A .mat of version 5 (version 7.3 is HDF5 and comes in by that door); no object in it is executed.

    Raises:
        FileError: damaged, or without a struct that has a sinogram.
    """
    return fips(read_mat5(path), path)


def matlab_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """What HDF5 shows of MATLAB 7.3: arrays have their axes back to front, text is numbers."""
    made: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            made[name] = matlab_names(value)
        elif content.get(f"{name}_MATLAB_class") == "char" and isinstance(value, np.ndarray):
            made[name] = "".join(map(chr, value.ravel().astype(np.uint16)))
        else:
            made[name] = value.T if isinstance(value, np.ndarray) else value
    return made


def fips(content: Mapping[str, Any], path: Path) -> Scan:
    """A fan beam on a flat detector as the open data of FIPS and the Helsinki Tomography Challenge 2022 describe it.

    A struct (CtDataFull, CtDataLimited, CtData, ct_data ...) with `sinogram` [views, columns] of line integrals, and `parameters`:
    distanceSourceOrigin, distanceSourceDetector, angles in degrees, and pixelSizePost, or effectivePixelSize(Post), which is that at the
    isocentre, or pixelSize.

    Raises:
        FileError: without such a struct.
        GeometryError: parameters that are missing or of another sinogram.
    """
    scans = {name: value for name, value in content.items() if isinstance(value, Mapping) and "sinogram" in value
             and isinstance(value.get("parameters"), Mapping)}
    if not scans:
        names = str([name for name in content if not name.startswith("__")])[:200]
        raise FileError(f"{path} has no struct with 'sinogram' and 'parameters', only {names}",
                        "a system matrix without a geometry cannot be used: write our layout, see docs/projections.md")
    name = max(scans, key=lambda n: ("full" in n.lower(), n))
    notes = [f"read '{name}'" + (f", not {', '.join(sorted(set(scans) - {name}))}" if len(scans) > 1 else "")]
    sinogram = real(scans[name]["sinogram"], "sinogram", np.float32)
    if sinogram.ndim != 2:
        raise InputError(f"the sinogram has {sinogram.ndim} axes where views and columns are meant")
    stated = scans[name]["parameters"]
    entries = {key: stated[key] for key in stated if np.asarray(stated[key]).dtype.kind in "buif"} | {"unit": str(stated.get("distanceUnit", "mm"))}
    source, detector = number(entries, "distanceSourceOrigin"), number(entries, "distanceSourceDetector")
    if not 0 < source < detector:
        raise GeometryError(f"distanceSourceOrigin {source:g} mm is not between 0 and distanceSourceDetector {detector:g} mm")
    columns = next((scalar(entries, key) for key in ("numDetectorsPost", "numDetectors") if key in entries), sinogram.shape[1])
    if columns != sinogram.shape[1]:
        raise GeometryError(f"the sinogram has {sinogram.shape[1]} columns, its parameters say {columns:g}", "is it binned, or transposed?")
    magnified = scalar(entries, "geometricMagnification", detector / source)
    if abs(magnified * source / detector - 1) > 0.01:
        notes.append(f"geometricMagnification {magnified:.4g} is not the {detector / source:.4g} of the distances, which are used")
    sizes = {key: number(entries, key) * (detector / source if key.startswith("effective") else 1)
             for key in ("pixelSizePost", "effectivePixelSizePost", "effectivePixelSize", "pixelSize") if key in entries}
    for key, value in sizes.items():
        size(np.array(value), key)
    if not sizes:
        raise GeometryError("the parameters say no pixel size", "pixelSizePost, effectivePixelSizePost or pixelSize, mm")
    pitch = next(iter(sizes.values()))
    if "Post" in next(iter(sizes)) and abs(sizes.get("effectivePixelSizePost", pitch) / pitch - 1) > 0.01:
        notes.append(f"pixelSizePost {pitch:.4g} mm and effectivePixelSizePost disagree: the first is used")
    radians, odd = turn(*angle({"angles_degree": entries.get("angles", [])}, "angles"), len(sinogram))
    data, good, more = trusted(sinogram[:, None], None)
    return Scan(data, Geometry.fan(radians, sinogram.shape[1], pitch, source, detector), good=good, notes=(*notes, *more, *odd))


# ---- stacks: NIfTI and .npy, with the geometry in a file beside


def read_stack(path: Path, geometry: Any = None, beam: str | None = None) -> Scan:
    """Line integrals (or `data_unit` = 'counts' with a number `flat`) as NIfTI [columns, views] or [columns, rows, views], or as .npy [views, rows,
    columns], [views, columns], or in ASTRA's order [rows, views, columns].

    The geometry is the circular form or TIGRE's (.json, .toml), or ASTRA's vectors (.npy, .csv, .txt).

    Raises:
        FileError: a stack or a geometry that is missing or damaged.
        GeometryError, InputError: as `read_projections`.
    """
    beside = _beside(path) if geometry is None else existing_file(geometry)
    raw = _values(path)
    if beside.suffix.lower() in _TABLES or first_bytes(beside).startswith(b"\x93NUMPY"):
        vectors = _table(beside)
        raw, notes = _ordered(raw, len(vectors))
        placed = from_astra(vectors, (raw.shape[1], raw.shape[2]), beam)
        data, good, more = trusted(real(raw, "projections", np.float32), None)
        return Scan(data, placed, good=good, notes=(f"ASTRA vectors of {beside.name}, in mm, {placed.beam} beam", *notes, *more))
    if beam is not None:
        raise InputError("beam cannot be given: the geometry file states it", "leave it out")
    entries = _entries(beside)
    water, photons, flat, unit = (entries.pop(key, standard) for key, standard in
                                  (("water_per_mm", 0.0), ("photons", 0.0), ("flat", None), ("data_unit", "1")))
    tigre = "DSD" in entries or "DSO" in entries
    angles = [entries[key] for key in entries if key.startswith("angles") and not isinstance(entries[key], str)]
    raw, notes = _ordered(raw, len(np.atleast_1d(real(angles[0], "angles"))) if angles else 1)
    counted, data = 0, real(raw, "projections", np.float32)
    if unit == "counts":
        if flat is None and not photons:
            raise InputError("counts need the open beam to be compared with", "give the number 'flat' or 'photons'")
        data, log = minus_log(raw, photons if flat is None else flat)
        notes, counted = [*notes, *log], int(np.isnan(data).sum() - np.isnan(raw).sum())
    elif unit != "1":
        raise InputError(f"{str(unit)[:40]!r} is no unit of projections", "data_unit = '1' for line integrals -log(I / I0), or 'counts'")
    data, good, more = trusted(data, None, counted)
    if tigre:
        placed, grid, odd = from_tigre(entries, (data.shape[0], data.shape[1], data.shape[2]))
    else:
        (placed, odd), grid = circular(entries, (data.shape[0], data.shape[1], data.shape[2])), None
    return Scan(data, placed, grid, good, scalar({"water_per_mm": water}, "water_per_mm"), scalar({"photons": photons}, "photons"),
                notes=(f"{'TIGRE' if tigre else 'circular'} geometry of {beside.name}", *notes, *more, *odd))


def from_astra(vectors: Float[np.ndarray, "V N"], shape: tuple[int, int], beam: str | None = None) -> Geometry:
    """ASTRA's parallel3d_vec and cone_vec (12 numbers a view: ray or source, detector centre, u, v) or parallel_vec and fanflat_vec (6: ray or
    source, centre, u, in x and y; the row is as high as a column is wide). Lengths in mm, axes as they are.

    Args:
        shape: rows, columns.
        beam: "parallel" or "cone"; if None, first triples of unit length are directions.

    Raises:
        GeometryError: for another number of columns or a detector of rows in a plane geometry.
    """
    if vectors.ndim != 2 or vectors.shape[1] not in (6, 12):
        raise GeometryError(f"ASTRA's vectors are 12 or 6 numbers a view, got the shape {vectors.shape}", "cone_vec, parallel3d_vec, fanflat_vec")
    if vectors.shape[1] == 6:
        if shape[0] != 1:
            raise GeometryError(f"6 numbers a view describe one row, the projections have {shape[0]}", "cone_vec or parallel3d_vec")
        zero = np.zeros((len(vectors), 1))
        width = np.linalg.norm(vectors[:, 4:6], axis=1, keepdims=True)
        vectors = np.hstack([vectors[:, :2], zero, vectors[:, 2:4], zero, vectors[:, 4:6], zero, zero, zero, width])
    first, centre, u, v = (vectors[:, n:n + 3] for n in (0, 3, 6, 9))
    size = np.linalg.norm(first, axis=1, keepdims=True)
    if beam is None:
        beam = "parallel" if (np.abs(size - 1) < 1e-3).all() else "cone"
    if beam not in ("parallel", "cone"):
        raise GeometryError(f"there is no beam '{beam}'", "parallel or cone")
    if beam == "parallel":
        return Geometry("parallel", first / np.maximum(size, 1e-12), centre, u, v, shape)
    return Geometry("cone", first, centre, u, v, shape)


def from_tigre(entries: Mapping[str, Any], shape: tuple[int, int, int]) -> tuple[Geometry, Grid | None, list[str]]:
    """TIGRE's geometry, in the order of its Python side, lengths in mm, angles in radians unless `angles_unit` says degree.

    Reads DSD, DSO, dDetector, angles [V] (or [V, 3] about z only), and where given mode, nDetector, offDetector, COR, nVoxel with dVoxel or
    sVoxel, offOrigin. DSD, DSO, offDetector and offOrigin may have a row for each view.

    Returns:
        the geometry for projections [V, R, C], the lattice of the image if it is described, and notes.

    Raises:
        GeometryError: what is missing, does not fit, or is not supported: a turned detector, rotations about other axes.
    """
    missing = [name for name in _TIGRE if name not in entries]
    if missing:
        raise GeometryError(f"a TIGRE geometry needs {', '.join(missing)}", "DSD, DSO, dDetector and angles; lengths in mm")
    stated = {name: real(value, name) for name, value in entries.items() if not isinstance(value, str | Mapping) and value is not None}
    mode = str(entries.get("mode", "cone"))
    if mode not in ("cone", "parallel"):
        raise GeometryError(f"there is no mode {mode[:40]!r}", "cone or parallel")
    odd = [name for name, value in stated.items() if not np.isfinite(value).all()]
    if odd:
        raise GeometryError(f"{', '.join(odd)[:80]} of the TIGRE geometry must be finite")
    if np.any(stated.get("rotDetector", 0.0)):
        raise GeometryError("a turned detector (rotDetector) is not read", "write ASTRA vectors or our layout")
    if "nDetector" in stated and tuple(stated["nDetector"].ravel()) != shape[1:]:
        raise GeometryError(f"nDetector is {stated['nDetector'].ravel().tolist()}, the projections have {shape[1]} rows and {shape[2]} columns",
                            "the order is rows, columns")
    turns = stated["angles"]
    if turns.ndim == 2 and turns.shape[1] == 3:
        if np.any(turns[:, 1:]):
            raise GeometryError("rotations about other axes than z are not read", "write ASTRA vectors or our layout")
        turns = turns[:, 0]
    radians, notes = turn(*angle({"angles": turns, "angles_unit": entries.get("angles_unit", "radian")}, "angles"), shape[0])
    views = np.ones((shape[0], 1))
    try:
        away, near, cor = (stated.get(name, np.zeros(1)).reshape(-1, 1) * views for name in ("DSD", "DSO", "COR"))
        rise, shift = (stated.get("offDetector", np.zeros(2)).reshape(-1, 2) * views).T[..., None]
        moved = stated.get("offOrigin", np.zeros(3)).reshape(-1, 3)[:, ::-1] * views
        height, width = np.broadcast_to(size(stated["dDetector"].ravel(), "dDetector"), 2)
    except ValueError as error:
        raise GeometryError("DSD, DSO, COR need one number, dDetector and offDetector two (rows, columns), offOrigin three (z, y, x)",
                            "or a row of them for each view") from error
    if mode == "cone" and not ((near > 0) & (near < away)).all():
        raise GeometryError("DSO must be smaller than DSD, and both positive", "are the two exchanged?")
    along, up = np.stack([-np.sin(radians), np.cos(radians), 0 * radians], 1), np.broadcast_to([0.0, 0.0, 1.0], (shape[0], 3))
    ray = np.cross(up, along)
    fixed = bool((moved == moved[0]).all())  # then the image lies there; an image that moves is a gantry that moves the other way
    hub = cor * along - (0 if fixed else moved)
    centre = hub + (away - near) * ray + shift * along + rise * up
    geometry = Geometry("cone" if mode == "cone" else "parallel", hub - near * ray if mode == "cone" else ray, centre, width * along, height * up,
                        shape[1:])
    return geometry, _voxels(stated, moved[0] if fixed else np.zeros(3)), notes


def _voxels(stated: Mapping[str, np.ndarray], middle: np.ndarray) -> Grid | None:
    """TIGRE's image: nVoxel of dVoxel (or sVoxel / nVoxel) mm, in the order z, y, x, about `middle` (x, y, z)."""
    if "nVoxel" not in stated or not {"dVoxel", "sVoxel"} & set(stated):
        return None
    n, step = (stated[name].ravel()[::-1] for name in ("nVoxel", "dVoxel" if "dVoxel" in stated else "sVoxel"))
    if len(n) != 3 or len(step) != 3 or not ((n >= 1) & (step > 0)).all():
        raise GeometryError("nVoxel and dVoxel or sVoxel need three positive numbers: z, y, x")
    n = n.astype(int)
    step = step if "dVoxel" in stated else step / n
    return Grid.from_spacing(n.tolist(), step.tolist(), (middle - (n - 1) / 2 * step).tolist())


def _beside(path: Path) -> Path:
    """The geometry file with the name of the stack."""
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    for ending in _BESIDE:
        other = path.with_name(stem + ending)
        if other != path and other.is_file():
            return other
    raise GeometryError("there is no geometry beside it", f"give geometry= (--geometry), or write {stem}.json, see docs/projections.md")


def _values(path: Path) -> np.ndarray:
    """Numbers of a stack, as they lie in the file; NIfTI is turned to [views, (rows,) columns]."""
    if nifti_kind(first_bytes(path)) == "single":
        data = read_nifti(path, assume_upright=True).data[0].numpy()
        return data[..., 0].T if data.shape[2] == 1 else data.transpose(2, 1, 0)
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))  # a map is as long as the file, whatever its header promises
    except Exception as error:  # its header is a piece of Python, which numpy parses but never runs
        raise unreadable(path, error) from error


def _ordered(raw: np.ndarray, views: int) -> tuple[np.ndarray, list[str]]:
    """[V, R, C] from [V, R, C], [V, C] or ASTRA's [R, V, C]."""
    if raw.ndim == 2:
        return (raw[None] if views == 1 != len(raw) else raw[:, None]), []
    if raw.ndim != 3:
        raise InputError(f"the projections have {raw.ndim} axes where views, rows and columns are meant")
    if raw.shape[1] == views != raw.shape[0]:
        return raw.swapaxes(0, 1), ["axes taken as rows, views, columns (ASTRA's order)"]
    return raw, []


def _table(path: Path) -> np.ndarray:
    """[V, 6 or 12] numbers of a .npy or of a text with commas or blanks between them."""
    if first_bytes(path).startswith(b"\x93NUMPY"):
        table = real(_values(path), "vectors")
    else:
        try:
            table = np.loadtxt(path.read_text(encoding="utf-8").replace(",", " ").replace(";", " ").splitlines(), ndmin=2)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
    if table.ndim != 2:
        raise GeometryError(f"{path.name} holds no table of vectors but the shape {table.shape}")
    return table


def _entries(path: Path) -> dict[str, Any]:
    """The entries of a .json or .toml."""
    try:
        text = path.read_text(encoding="utf-8")
        made = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(made, dict):
        raise FileError(f"{path} holds no named entries", "see docs/projections.md")
    return made
