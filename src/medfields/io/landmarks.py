"""Landmarks: points that an expert found, read from the files of elastix, ANTs, 3D Slicer and DIR-Lab into RAS+ mm.

| file | coordinates |
| --- | --- |
| .csv with a header | columns x, y, z or r, a, s: RAS mm; l, p, s: LPS mm; x, y, z, t as ANTs writes them: LPS mm |
| .txt of elastix | first line "point": LPS mm; "index": voxels counted from 0; the second line is their number |
| .fcsv, .mrk.json of 3D Slicer | as they state, LPS or RAS mm |
| .txt of DIR-Lab, `..._xyz...txt` | voxels counted from 1 |
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from ..errors import FileError, GeometryError, InputError
from ..space import Grid
from .atomic import atomic
from .source import LPS_TO_RAS, existing_file, unreadable

Points = Float[np.ndarray, "N 3"]
Space = Literal["", "RAS", "LPS"]
KNOWN = ".csv (x,y,z in RAS mm), elastix .txt, 3D Slicer .fcsv and .mrk.json, DIR-Lab *_xyz*.txt"
_FLIP = np.diag(LPS_TO_RAS)[:3]
_SLICER = {"0": "RAS", "RAS": "RAS", "1": "LPS", "LPS": "LPS"}  # numbers until Slicer 4.10


@dataclass(frozen=True)
class Pairs:
    """Landmarks of two images, row by row the same place of the body.

    Attributes:
        fixed, moving: RAS mm.
        inside: whether both ends lie within their images; the others cannot be scored.
    """

    fixed: Points
    moving: Points
    inside: Bool[np.ndarray, "N"]


def read_landmarks(path: str | os.PathLike[str], grid: Grid | None = None, space: Space = "") -> Points:
    """Points in RAS mm, in the file's order.

    Args:
        path: see the table above.
        grid: of the image, for files that count voxels.
        space: of a .csv, in place of what its header says.

    Raises:
        FileError: missing, of no known kind, damaged, or with another number of points than it states.
        GeometryError: a 3D Slicer file that states no known coordinate system.
        InputError: voxel indices without a grid or beyond it, values that are not finite, `space` for another kind of file.
    """
    path = existing_file(path)
    name = path.name.lower()
    if space and not name.endswith(".csv"):
        raise InputError(f"{path.name} states its own coordinate system", "space= is for .csv files")
    if name.endswith(".mrk.json"):
        points = _markups(path)
    elif name.endswith(".fcsv"):
        points = _fcsv(_lines(path), path)
    elif name.endswith(".csv"):
        points = _csv(_lines(path), path, space)
    elif name.endswith(".txt"):
        points = _text(_lines(path), path, grid)
    else:
        raise FileError(f"{path} is no known kind of landmark file", f"known: {KNOWN}")
    if not len(points):
        raise FileError(f"{path} holds no points", "is it the right file?")
    if not np.isfinite(points).all():
        raise InputError(f"{path} holds coordinates that are not finite, first in point {int(np.argwhere(~np.isfinite(points))[0, 0]) + 1}")
    return points


def write_landmarks(points: Points, path: str | os.PathLike[str]) -> None:
    """A .csv with the header x,y,z in RAS mm, every digit kept.

    Raises:
        OutputError: if it cannot be written.
    """
    rows = ["x,y,z", *(",".join(repr(float(v)) for v in point) for point in points)]
    with atomic(path) as temporary:
        temporary.write_text("\n".join(rows) + "\n", encoding="ascii")


def read_pairs(fixed_path: str | os.PathLike[str], moving_path: str | os.PathLike[str], fixed_grid: Grid, moving_grid: Grid,
               space: Space = "") -> Pairs:
    """The landmarks of a fixed and of a moving image.

    Raises:
        InputError: different counts, no pair that lies inside both images, or points that look like voxel indices.
        and whatever `read_landmarks` raises.
    """
    fixed, moving = read_landmarks(fixed_path, fixed_grid, space), read_landmarks(moving_path, moving_grid, space)
    if len(fixed) != len(moving):
        raise InputError(f"{fixed_path} holds {len(fixed)} landmarks, {moving_path} {len(moving)}", "landmarks are pairs, row by row")
    for points, grid, path in ((fixed, fixed_grid, fixed_path), (moving, moving_grid, moving_path)):
        if _look_like_indices(points, grid):
            raise InputError(f"most points of {path} lie outside its image, but all within its {'x'.join(map(str, grid.shape))} voxels",
                             "these look like voxel indices: give world mm, or an elastix file that begins with 'index'")
    inside = inside_of(fixed, fixed_grid) & inside_of(moving, moving_grid)
    if not inside.any():
        raise InputError(f"none of the {len(fixed)} landmark pairs lies inside both images", "are they of these images, in RAS mm?")
    return Pairs(fixed, moving, inside)


def inside_of(points: Points, grid: Grid) -> Bool[np.ndarray, "N"]:
    """Whether points lie within the outer faces of the voxels of an image."""
    index = grid.index(points)
    return np.asarray(((index >= -0.5) & (index <= np.array(grid.shape) - 0.5)).all(1))


def _look_like_indices(points: Points, grid: Grid) -> bool:
    """All numbers, as the file wrote them, within the voxel counts, yet most places outside the image."""
    outside = ~inside_of(points, grid)
    written = (points, points * _FLIP)  # a file in LPS was flipped on the way
    return bool(outside.mean() > 0.5) and any(((p >= 0) & (p <= grid.shape)).all() for p in written)


# ---- the kinds of files


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def _numbers(rows: Sequence[Sequence[str]], path: Path) -> Points:
    """The first three words of each row."""
    points = np.empty((len(rows), 3))
    for n, row in enumerate(rows):
        try:
            points[n] = [float(word) for word in row[:3]]  # fewer than three do not fit either
            if len(row) < 3:
                raise ValueError
        except ValueError:
            raise FileError(f"{path}: point {n + 1} is not three numbers but {' '.join(row)[:60]!r}", "repair or remove that line") from None
    return points


def _text(lines: list[str], path: Path, grid: Grid | None) -> Points:
    """elastix, which says what it holds, or DIR-Lab, which is known by its name."""
    kind = lines[0].lower()
    rows = [line.split() for line in lines if line]
    if kind not in ("point", "index"):
        if not re.search(r"_xyz", path.name, re.IGNORECASE):
            raise FileError(f"{path} begins neither with 'point' nor with 'index', and is not called ..._xyz.txt as DIR-Lab's are", f"known: {KNOWN}")
        return _voxels(_numbers(rows, path) - 1, path, grid, first=1)
    points = _numbers(rows[2:], path)
    if len(rows) < 2 or rows[1] != [str(len(points))]:
        raise FileError(f"{path} states {' '.join(rows[1]) if len(rows) > 1 else 'no'} points and holds {len(points)}", "copy it again")
    return points * _FLIP if kind == "point" else _voxels(points, path, grid, first=0)


def _voxels(index: Points, path: Path, grid: Grid | None, first: int) -> Points:
    """World mm of voxel indices from 0; `first` is where the file counts from."""
    if grid is None:
        raise InputError(f"{path} counts voxels, which lie nowhere without their image", "give grid=, or the image")
    outside = ~((index >= 0) & (index <= np.array(grid.shape) - 1)).all(1)
    if outside.any():
        n = int(outside.argmax())
        raise InputError(f"{path}: point {n + 1} is voxel {', '.join(f'{v:g}' for v in index[n] + first)}, beyond {grid}, counted from {first}",
                         "is it the landmarks' own image?")
    return grid.world(index)


def _csv(lines: list[str], path: Path, space: Space) -> Points:
    rows = [[word.strip().strip('"') for word in line.split(",")] for line in lines if line and not line.startswith("#")]
    header = [name.lower() for name in rows[0]] if rows else []
    for names, default in (("xyz", "LPS" if "t" in header else "RAS"), ("ras", "RAS"), ("lps", "LPS")):
        if set(names) <= set(header):
            columns, said = [header.index(name) for name in names], space or default
            points = _numbers([[row[c] for c in columns if c < len(row)] for row in rows[1:]], path)
            return points * _FLIP if said == "LPS" else points
    raise FileError(f"{path} has no header that names its columns", "begin with the line x,y,z (RAS mm) or l,p,s (LPS mm)")


def _fcsv(lines: list[str], path: Path) -> Points:
    facts = {name.strip().lower(): value.strip() for name, _, value in (line[1:].partition("=") for line in lines if line.startswith("#"))}
    columns = [name.strip() for name in facts.get("columns", "id,x,y,z").split(",")]
    if not {"x", "y", "z"} <= set(columns):
        raise FileError(f"{path} has no columns x, y and z", "save it again from 3D Slicer")
    where = [columns.index(name) for name in "xyz"]
    rows = [line.split(",") for line in lines if line and not line.startswith("#")]
    return _from_slicer(_numbers([[row[c] for c in where if c < len(row)] for row in rows], path), facts.get("coordinatesystem", ""), path)


def _markups(path: Path) -> Points:
    try:
        content = json.loads("\n".join(_lines(path)))
        lists = [(str(m.get("coordinateSystem", "LPS")), m.get("coordinateUnits", "mm"), m["controlPoints"]) for m in content["markups"]]
        made = []
        for system, unit, controls in lists:
            if unit not in ("mm", ["mm", "length"]):
                raise GeometryError(f"{path} states its lengths in {unit}", "save it again in mm")
            if any(c.get("positionStatus", "defined") != "defined" for c in controls):
                raise FileError(f"{path} names points that were never placed", "place or delete them in 3D Slicer: rows must stay pairs")
            made.append(_from_slicer(_numbers([[str(v) for v in c["position"]] for c in controls], path), system, path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is no markups file of 3D Slicer: {type(error).__name__} {error}", "save it again from 3D Slicer") from error
    return np.concatenate(made) if made else np.empty((0, 3))


def _from_slicer(points: Points, system: str, path: Path) -> Points:
    if system not in _SLICER:
        raise GeometryError(f"{path} states the coordinate system {system or 'of none'!r}, neither LPS nor RAS", "save it again from 3D Slicer")
    return points * _FLIP if _SLICER[system] == "LPS" else points
