"""Tracked ultrasound: a MetaImage sequence of frames with the poses of probe and reference (.igs.mha, .mha), and the calibration of its probe.

A pixel (u, v) lies at inverse(ReferenceToTracker) ProbeToTracker ImageToProbe (u, v, 0, 1) mm: a chain of transforms, of which the file states
some for each frame and the calibration the others. Pixel centres have whole numbers. What the file calls its world is LPS, as in all
files of ITK and PLUS, and is turned to RAS+ here. Facts of the formats: MetaIO, and the user manual of PLUS (sequence metafile, coordinate systems,
ultrasound image orientation).
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, Shaped

from ..errors import FileError, GeometryError, InputError
from .itk import itk_kind
from .source import LPS_TO_RAS, could_hold, existing_file, first_bytes, read_exactly, unreadable

UNITS = {"": 1.0, "mm": 1.0, "m": 1e3}
WORLDS = ("Reference", "World", "Tracker")  # where the result lies, the first that the chain of transforms reaches
STILL, LARGE, FAR = 1.0, 10.0, 5e3  # mm: a probe that moves less does not sweep, a frame is larger, no arm reaches so far
_LONGEST = 1 << 26  # bytes of a header
_FIELD = re.compile(r"Seq_Frame(\d+)_(?:(ImageStatus)|([A-Z]\w*?)To([A-Z]\w*)Transform(Status)?)")
_TYPES = {"MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_UINT": "u4", "MET_INT": "i4", "MET_FLOAT": "f4",
          "MET_DOUBLE": "f8"}
_CALIBRATE = "--calibration with the configuration of PLUS (.xml), or a text file with the 4 x 4 matrix from pixels to the probe, in mm"
_COPY = "copy or record it again"

Edge = tuple[str, str]
Matrix = Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class TrackedFrames:
    """What a file of a sweep holds.

    Args:
        frames: [F, I, J] grey values as stored; I runs along the probe's face from its marked side, J away from it.
        affines: pixel (u, v) of a frame lies at affine @ (u, v, 0, 1), RAS+ mm; the third column is the unit normal.
        clip: of the frames: first pixel (u, v) and size; None is all.
        world: what the file calls the frame of reference in which the frames lie.
        name: of the file.
        notes: what was understood, assumed or doubted.
    """

    frames: Shaped[np.ndarray, "F I J"]
    affines: Float[np.ndarray, "F 4 4"]
    clip: tuple[int, int, int, int] | None = None
    world: str = ""
    name: str = "sweep"
    notes: tuple[str, ...] = ()


@dataclass
class _Stated:
    """What a header says of one frame."""

    transforms: dict[Edge, str] = field(default_factory=dict)
    status: dict[Edge, str] = field(default_factory=dict)
    image: str = "OK"


def read_sweep(path: str | os.PathLike[str], *, calibration: str | os.PathLike[str] | None = None, unit: str = "") -> TrackedFrames:
    """The frames of a sweep that have a valid image and pose, each with its place in the world.

    Args:
        path: a MetaImage sequence with Seq_Frame fields.
        calibration: see `read_calibration`; not needed where each frame states an ImageTo... transform.
        unit: of the tracking, "mm" or "m"; "" takes mm and refuses what does not look like it. A calibration is in mm.

    Raises:
        FileError: missing, damaged, cut off, or no sequence.
        GeometryError: no calibration, no tracking, a singular matrix, positions in another unit, or no frame that is valid.
        InputError: colours, or an unknown unit.
    """
    if unit not in UNITS:
        raise InputError(f"the unit of the tracking cannot be '{unit}'", "mm or m")
    path = existing_file(path)
    if itk_kind(first_bytes(path)) != "metaimage":
        raise FileError(f"{path} is no tracked sweep: it has no MetaImage header", "known: .igs.mha and .mha files of PLUS, with Seq_Frame fields")
    header, start = _header(path)
    stated = _stated(header)
    fixed, clip = read_calibration(calibration) if calibration else ({}, None)
    if not any(s.transforms for s in stated.values()):
        raise GeometryError(f"{path} holds no tracking: no frame states a transform", "a sweep needs Seq_FrameNNNN_ProbeToTrackerTransform fields")
    chain = _chain(path, {edge for s in stated.values() for edge in s.transforms}, fixed)
    frames, notes = _upright(header, _frames(path, header, start))
    affines, kept, positions = _places(path, stated, len(frames), chain, fixed, UNITS[unit])
    if len(kept) < len(frames):
        notes.append(f"{len(frames) - len(kept)} of {len(frames)} frames have no valid image or pose and are left out")
    _check_unit(path, affines, positions, frames.shape[1:], unit)
    return TrackedFrames(frames[kept], affines, clip, chain[-1], path.name, (*notes, f"the result lies in the frame '{chain[-1]}' of the tracking"))


def read_calibration(path: str | os.PathLike[str]) -> tuple[dict[Edge, Matrix], tuple[int, int, int, int] | None]:
    """Fixed transforms by the names that they lead from and to, in mm (from Image: mm per pixel), and the clip rectangle, if there is one.

    Args:
        path: a configuration of PLUS (XML with <Transform From="Image" To="Probe" Matrix=.../>), or 16 numbers as text: Image to Probe.

    Raises:
        FileError: missing, or neither of the two.
        GeometryError: a matrix that is singular or no affine map.
    """
    path = existing_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    if not text.lstrip().startswith("<"):
        return {("Image", "Probe"): _matrix(text.replace(",", " "), f"{path}")}, None
    if "<!ENTITY" in text:
        raise FileError(f"{path} defines entities, which no configuration of PLUS does", "is it the right file?")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise unreadable(path, error) from error
    found = {(e.get("From", ""), e.get("To", "")): _matrix(e.get("Matrix", ""), f"{path}: {e.get('From')} to {e.get('To')}")
             for e in tree.iter("Transform")}
    if not found:
        raise FileError(f"{path} states no transform", 'expected: <Transform From="Image" To="Probe" Matrix="..."/>')
    settings = next(tree.iter("VolumeReconstruction"), None)
    corner, size = ((settings.get(f"ClipRectangle{name}", "") if settings is not None else "") for name in ("Origin", "Size"))
    try:
        numbers = [int(float(n)) for n in f"{corner} {size}".split()]
    except (ValueError, OverflowError) as error:
        raise FileError(f"{path}: the clip rectangle cannot be '{corner} {size}'"[:200], "four whole numbers of pixels") from error
    return found, (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Names and values up to ElementDataFile, and the byte at which the data begin."""
    entries, size = {}, 0
    with path.open("rb") as file:
        while size < _LONGEST and (line := file.readline(1 << 16)):
            size += len(line)
            name, found, value = line.decode("latin-1").partition("=")
            if found:
                entries[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":
                return entries, size
    raise FileError(f"{path} is cut off: its header does not end", _COPY)


def _stated(header: Mapping[str, str]) -> dict[int, _Stated]:
    """What each frame says, by its number."""
    frames: dict[int, _Stated] = {}
    for name, value in header.items():
        found = _FIELD.fullmatch(name)
        if not found:
            continue
        frame = frames.setdefault(int(found[1]), _Stated())
        if found[2]:
            frame.image = value
        elif found[5]:
            frame.status[found[3], found[4]] = value
        else:
            frame.transforms[found[3], found[4]] = value
    return frames


def _frames(path: Path, header: Mapping[str, str], start: int) -> Shaped[np.ndarray, "F I J"]:
    """The grey values."""
    try:
        shape = [int(n) for n in header.get("DimSize", "").split()]
        dtype = np.dtype(_TYPES[header.get("ElementType", "")])
    except (ValueError, KeyError):
        raise FileError(f"{path} does not say what its frames are: DimSize = {header.get('DimSize', '')[:40]}, "
                        f"ElementType = {header.get('ElementType', '')[:40]}", _COPY) from None
    if header.get("ElementNumberOfChannels", "1") != "1":
        raise InputError(f"{path} holds colours where grey values are meant", "save its brightness (B-mode) alone")
    if len(shape) != 3 or min(shape) < 1:
        raise FileError(f"{path} is no sequence of frames: DimSize = {header['DimSize'][:40]}", "columns, rows and frames are meant")
    if "True" in (header.get("BinaryDataByteOrderMSB"), header.get("ElementByteOrderMSB")):
        dtype = dtype.newbyteorder(">")
    name = header["ElementDataFile"]
    source, at = (path, start) if name.upper() == "LOCAL" else (existing_file(path.parent / Path(name).name), 0)
    size = math.prod(shape) * dtype.itemsize
    content = _inflated(source, at, size) if header.get("CompressedData") == "True" else bytes(read_exactly(source, at, size))
    return np.frombuffer(content, dtype).reshape(shape[::-1]).transpose(0, 2, 1)


def _inflated(path: Path, start: int, size: int) -> bytes:
    """`size` bytes from the zlib stream at byte `start`."""
    short = FileError(f"{path} is cut off: its header promises {size} bytes of frames", _COPY)
    if not could_hold(path, size):
        raise short
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = zlib.decompressobj().decompress(file.read(), size)
    except (OSError, zlib.error) as error:
        raise unreadable(path, error) from error
    if len(content) < size:
        raise short
    return content


def _upright(header: Mapping[str, str], frames: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Frames whose first axis runs from the marked side of the probe and whose second runs away from it, which a calibration counts on."""
    stated = header.get("UltrasoundImageOrientation", "")[:2].upper()
    if set(stated) not in ({"M", "F"}, {"M", "N"}, {"U", "F"}, {"U", "N"}):
        return frames, ["the file does not say how its frames lie on the probe: taken as marked side first, far side last (MF)"]
    if stated[0] in "FN":
        frames, stated = frames.transpose(0, 2, 1), stated[::-1]
    return frames[:, :: -1 if stated[0] == "U" else 1, :: -1 if stated[1] == "N" else 1], []


def _chain(path: Path, tracked: Iterable[Edge], fixed: Iterable[Edge]) -> list[str]:
    """The names from Image to the world, each of which has a transform to the next, or from it."""
    edges = sorted({*tracked, *fixed})
    reached, waiting = {"Image": ["Image"]}, ["Image"]
    for here in waiting:
        for a, b in edges:
            there = b if a == here else a if b == here else here
            if there not in reached:
                reached[there] = [*reached[here], there]
                waiting.append(there)
    if len(reached) == 1:
        raise GeometryError(f"{path} does not say where the pixels lie on the probe, and no calibration is given", _CALIBRATE)
    moving = {name for edge in tracked for name in edge}
    if not moving & set(reached):
        raise GeometryError(f"the calibration leads from the image to {waiting[-1]}, of which {path} tracks nothing, only "
                            f"{', '.join(sorted(moving))}"[:300], "is it the configuration of this probe?")
    return reached[next((name for name in WORLDS if name in reached), waiting[-1])]


def _places(path: Path, stated: Mapping[int, _Stated], count: int, chain: list[str], fixed: Mapping[Edge, Matrix],
            scale: float) -> tuple[Float[np.ndarray, "F 4 4"], list[int], Float[np.ndarray, "F 3"]]:
    """Affines of the frames that are valid, their numbers, and where the part that is tracked was, mm."""
    affines, kept, positions = [], [], []
    for n in range(count):
        steps = _steps(path, n, stated.get(n, _Stated(image="INVALID")), chain, fixed, scale)
        if steps is None:
            continue
        whole, place = np.eye(4), np.array([0.0, 0.0, 0.0, 1.0])
        for step, is_tracked in steps:
            whole = step @ whole
            place = step @ place if is_tracked or place[:3].any() else place  # the calibration alone moves no probe
        affines.append(_with_normal(LPS_TO_RAS @ whole))
        kept.append(n)
        positions.append(place[:3])
    if not kept:
        raise GeometryError(f"none of the {count} frames of {path} has a valid image and pose", "was the tracker in view? record it again")
    return np.stack(affines), kept, np.stack(positions)


def _steps(path: Path, n: int, says: _Stated, chain: list[str], fixed: Mapping[Edge, Matrix], scale: float) -> list[tuple[Matrix, bool]] | None:
    """The transforms along the chain in mm, and whether each is tracked; None if the frame lacks one, or says that it is not valid."""
    if says.image != "OK":
        return None
    steps = []
    for ends in pairwise(chain):
        edge = next((e for e in (ends, ends[::-1]) if e in says.transforms or e in fixed), ends)
        is_tracked = edge in says.transforms
        if says.status.get(edge, "OK") != "OK" or not (is_tracked or edge in fixed):
            return None
        step = _matrix(says.transforms[edge], f"{path}: {edge[0]} to {edge[1]} of frame {n}") if is_tracked else fixed[edge].copy()
        step = step if edge == ends else np.linalg.inv(step)
        if is_tracked:
            step[:3, slice(None) if ends[0] == "Image" else 3] *= scale  # from pixels: lengths in all columns
        steps.append((step, is_tracked))
    return steps


def _with_normal(affine: Matrix) -> Matrix:
    """The affine of a plane with the unit normal as its third column; a pixel's place does not depend on it."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    out = affine.copy()
    out[:3, 2] = normal / np.linalg.norm(normal)
    return out


def _check_unit(path: Path, affines: np.ndarray, positions: np.ndarray, shape: tuple[int, ...], unit: str) -> None:
    """Refuse lengths that are no mm: tracking in metres under frames in mm, or the other way round."""
    across = float(np.median(np.linalg.norm(affines[:, :3, :2], axis=1) @ np.array(shape)))
    moved = float(np.linalg.norm(np.ptp(positions, axis=0)))
    if across < STILL:
        raise GeometryError(f"the frames of {path} would be {across:.2g} mm across", "if the file is in metres: --unit m")
    if moved > FAR:
        raise GeometryError(f"the probe of {path} would have moved by {moved / 1e3:.3g} m", "is the tracking in mm? then leave --unit m out")
    if unit == "" and len(positions) > 1 and moved < STILL and across > LARGE:
        raise GeometryError(f"the probe of {path} moved by {moved:.2g} mm, its frames are {across:.3g} mm across: the tracking is in metres, or it "
                            "did not move", "--unit m, or --unit mm if it hardly moved")


def _matrix(text: str, what: str) -> Matrix:
    """An affine map from 16 numbers, row after row."""
    try:
        found = np.array([float(n) for n in text.split()])
    except ValueError as error:
        raise FileError(f"{what} is no matrix: '{' '.join(text.split())[:60]}'", "16 numbers are meant, row after row") from error
    if len(found) != 16:
        raise FileError(f"{what} has {len(found)} numbers", "16 are meant, row after row")
    found = found.reshape(4, 4)
    if not np.isfinite(found).all() or not np.allclose(found[3], [0, 0, 0, 1], atol=1e-6):
        raise GeometryError(f"{what} is no affine map: its last row is {found[3].tolist()}", "0 0 0 1 is meant; is it transposed?")
    if abs(np.linalg.det(found[:3, :3])) <= 1e-9 * np.prod(np.linalg.norm(found[:3, :3], axis=0)):
        raise GeometryError(f"{what} is singular: it maps space onto a plane", "repair the calibration, or record it again")
    return found
