"""DICOM series in: slices are placed by what their headers say of space, never by file name or instance number."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import FileError, GeometryError, InputError, MedfieldsError, MissingExtra
from ..space import Volume
from .source import GZIP, LPS_TO_RAS, first_bytes, place, provenance, unreadable

# in multi-frame files each attribute sits in its own functional group
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence", "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence", "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence", "RescaleIntercept": "PixelValueTransformationSequence",
}
_TAGS = ["SOPClassUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "ConcatenationUID", "ImageType",
         "Modality", "RescaleType", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID",
         "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *_GROUPS]


@dataclass(frozen=True)
class Slice:
    """One image plane: where it is stored, where it lies (LPS mm) and how its values are scaled."""

    path: Path
    frame: int
    position: np.ndarray  # [3] of the first pixel's centre
    orientation: np.ndarray  # [2, 3] unit vectors along a row (column index grows) and down a column
    spacing: np.ndarray  # [2] mm between rows, between columns
    thickness: float  # mm, NaN if not stated
    slope: float
    intercept: float
    size: tuple[int, int]  # (columns, rows)
    header: Dataset

    @property
    def height(self) -> float:
        """mm along the slice normal."""
        return float(self.position @ np.cross(*self.orientation))


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM: with its magic word, or without preamble with an element of group 2 or 8."""
    head = first_bytes(path, 132)
    return head[128:] == b"DICM" or (head[:2] in (b"\x02\0", b"\x08\0") and len(head) == 132 and head[2] <= 0x70 and head[3] == 0)


def read_dicom(path: Path, *, series: str = "") -> Volume:
    """One series as a Volume: i along the rows, j down the columns, k from slice to slice, LPS turned to RAS+ mm.

    Values are rescaled. The slice distance is that of the stated positions; the slice thickness is another thing
    and stands in `about["thickness_mm"]`. Slices shifted against one another (a tilted gantry) give a sheared affine
    and `about["gantry_tilt_deg"]`. The frame of reference is kept in `Grid.frame`. Enhanced multi-frame files are
    read through their functional groups; other multi-frame files state no positions and are refused.

    Args:
        path: a folder, searched with its subfolders, or one file: then all slices of its series in its folder.
        series: which one of several, by UID, number or description.

    Raises:
        FileError: no DICOM images, or damaged ones.
        InputError: several series, slices of different sizes, several images at one position, colours.
        GeometryError: no stated position, orientations that differ, missing slices.
        MissingExtra: a compression without decoder.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's remarks on values that bend the standard
        slices = _of_one_series(path, series)
        slices, affine, facts = _in_order(slices)
        data = _values(slices)
    header = slices[0].header
    modality = str(header.get("Modality", ""))
    unit = "HU" if modality == "CT" and str(header.get("RescaleType", "HU")) in ("HU", "") else ""
    grid = place(path, data.shape, LPS_TO_RAS @ affine, str(header.get("FrameOfReferenceUID", "")))
    paths = sorted({s.path for s in slices})
    return Volume(data, grid, unit, about=provenance("dicom", *paths, modality=modality, **facts))


def _of_one_series(path: Path, series: str) -> list[Slice]:
    """The slices of the series that is meant."""
    if path.is_file():
        header = _header(path)
        if int(header.get("NumberOfFrames") or 1) > 1 and "ConcatenationUID" not in header:  # else it is a part of its series, like any slice
            return _slices(path, header)
        series, path, candidates = str(header.get("SeriesInstanceUID", "")), path.parent, sorted(path.parent.iterdir())
    else:
        candidates = sorted(p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
    found: dict[str, list[tuple[Path, Dataset]]] = {}
    for file in candidates:
        if file.is_file() and not file.name.startswith(".") and is_dicom(file):
            header = _header(file)
            if _is_image(file, header):
                found.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    if not found:
        raise FileError(f"there are no DICOM images in {path}", "a folder is read as a DICOM series: for other formats give the file")
    return [s for file, header in _chosen(found, series, path) for s in _slices(file, header)]


def _chosen(found: dict[str, list[tuple[Path, Dataset]]], series: str, path: Path) -> list[tuple[Path, Dataset]]:
    names = {uid: (uid, str(members[0][1].get("SeriesNumber", "")), str(members[0][1].get("SeriesDescription", "")))
             for uid, members in found.items()}
    meant = [uid for uid in found if not series or series in names[uid]]
    listing = "; ".join(f"number {number or '?'} '{text}', {len(found[uid])} files, {uid}" for uid, number, text in names.values())
    if not meant:
        raise InputError(f"there is no series '{series}' in {path}", f"it holds {listing}")
    if len(meant) > 1:
        hint = "give one file of the series you mean (in Python: series= its number, description or UID)"
        raise InputError(f"{path} holds {len(meant)} series: {listing}", hint)
    return found[meant[0]]


def _header(path: Path) -> Dataset:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
        if packed:
            raise FileError(f"{path} is packed with gzip", "unpack DICOM files first: gunzip")
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=_TAGS)
        for _ in header.iterall():
            pass  # values are decoded when they are looked at: look now, where an error can be told from damage
        return header
    except MedfieldsError:
        raise
    except Exception as error:  # pydicom meets damage with errors of many kinds
        raise unreadable(path, error) from error


def _is_image(path: Path, header: Dataset) -> bool:
    """Whether a DICOM file is a picture and no plan, report or directory.

    One cut off before it says so must not pass for something else: its slice would be missing unnoticed.
    """
    if "Rows" in header and "Columns" in header:
        return True
    kind = UID(str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")).name
    if first_bytes(path, 132)[128:] == b"DICM" and (not kind or "Image Storage" in kind):
        raise FileError(f"{path} is cut off in its header", "copy or export it again")
    return False


def _slices(path: Path, header: Dataset) -> list[Slice]:
    """The planes of one file."""
    try:
        if "MOSAIC" in (header.get("ImageType") or ()):
            raise InputError(f"{path} is a mosaic: many slices tiled into one picture", "convert it with dcm2niix first")
        if int(header.get("SamplesPerPixel") or 1) != 1 or str(header.get("PhotometricInterpretation") or "MONOCHROME2")[:10] != "MONOCHROME":
            raise InputError(f"{path} is a colour image where one value per pixel is meant")
        frames = list(header.get("PerFrameFunctionalGroupsSequence") or [])
        shared = list(header.get("SharedFunctionalGroupsSequence") or [])
        count = int(header.get("NumberOfFrames") or 1)
        if count > 1 and not frames:
            raise GeometryError(f"{path} has {count} frames but no functional groups that say where they lie", "convert it to NIfTI first")
        if frames and len(frames) != count:
            raise FileError(f"{path} has {count} frames but describes {len(frames)}", "copy or export it again")
        return [_slice(path, n, header, [frame, *shared, header]) for n, frame in enumerate(frames or [header])]
    except MedfieldsError:
        raise
    except Exception as error:  # a value that is no number, found only when it is looked at
        raise unreadable(path, error) from error


def _slice(path: Path, frame: int, header: Dataset, places: Sequence[Dataset]) -> Slice:
    position, orientation, spacing = (_numbers(places, name, n) for name, n in (
        ("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)))
    if position is None or orientation is None or spacing is None:
        missing = "position" if position is None else "orientation" if orientation is None else "pixel spacing"
        raise GeometryError(f"{path} does not state its {missing} in the patient", "it is no plane of a volume: leave it out of the folder")
    axes = orientation.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3 or (spacing <= 0).any():
        raise GeometryError(f"{path} states an impossible orientation {orientation.tolist()} or pixel spacing {spacing.tolist()}")
    turn, _, back = np.linalg.svd(axes, full_matrices=False)
    axes = turn @ back  # headers round their cosines, which at pixel 511 is a third of a millimetre: the nearest right angle
    thickness, slope, intercept = (_numbers(places, name, 1) for name in ("SliceThickness", "RescaleSlope", "RescaleIntercept"))
    size = int(header.Columns), int(header.Rows)
    return Slice(path, frame, position, axes, spacing, np.nan if thickness is None or thickness[0] <= 0 else float(thickness[0]),
                 1.0 if slope is None else float(slope[0]), 0.0 if intercept is None else float(intercept[0]), size, header)


def _numbers(places: Iterable[Dataset], name: str, n: int) -> np.ndarray | None:
    """The attribute as `n` finite numbers, from the first place that has it: in its functional group, or directly."""
    for at in places:
        group = list(at.get(_GROUPS[name]) or [])
        value = (group[0] if group else at).get(name)
        if value is not None and value != "":
            numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
            if numbers.shape != (n,) or not np.isfinite(numbers).all():
                raise ValueError(f"{name} is {value}")
            return numbers
    return None


def _in_order(slices: list[Slice]) -> tuple[list[Slice], np.ndarray, dict[str, Any]]:
    """Slices sorted along their normal, the LPS affine of (column, row, slice), and what there is to know about them."""
    first = slices[0]
    for s in slices:
        if s.size != first.size:
            raise InputError(f"slices differ in size: {first.path.name} has {first.size}, {s.path.name} has {s.size} pixels")
        if not np.allclose(s.orientation, first.orientation, atol=1e-4):
            raise GeometryError(f"{first.path.name} and {s.path.name} have different orientations", "is there a scout image in the series?")
        if not np.allclose(s.spacing, first.spacing, rtol=1e-4):
            raise GeometryError(f"{first.path.name} and {s.path.name} have different pixel spacings")
        if s.header.get("FrameOfReferenceUID") != first.header.get("FrameOfReferenceUID"):
            raise GeometryError(f"{first.path.name} and {s.path.name} lie in different frames of reference")
    slices = sorted(slices, key=lambda s: s.height)
    first = slices[0]
    stated = [s.thickness for s in slices if np.isfinite(s.thickness)]
    facts: dict[str, Any] = {"slice_axis": 2} | ({"thickness_mm": float(np.median(stated))} if stated else {})
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 3] = first.position
    normal = np.cross(*first.orientation)
    if len(slices) == 1:
        if not stated:
            facts["geometry"] = "slice thickness not stated, taken as 1 mm"
        affine[:3, 2] = normal * facts.get("thickness_mm", 1.0)
    else:
        _require_even(slices)
        affine[:3, 2] = (slices[-1].position - first.position) / (len(slices) - 1)
        tilt = np.degrees(np.arctan2(np.linalg.norm(np.cross(affine[:3, 2], normal)), affine[:3, 2] @ normal))
        if tilt > 0.05:
            facts["gantry_tilt_deg"] = round(float(tilt), 3)
    return slices, affine, facts


def _require_even(slices: list[Slice]) -> None:
    """Raise unless the slices follow one another in equal steps, to a tenth of a step."""
    heights = np.array([s.height for s in slices])
    steps = np.diff(heights)
    usual = float(np.median(steps))
    n = int(np.argmin(steps))
    if steps[n] < 1e-3:
        raise InputError(f"{slices[n].path.name} and {slices[n + 1].path.name} lie at the same position ({heights[n]:.2f} mm)",
                         "the series holds copies, or several echoes, phases or directions: put one of them into a folder of its own")
    n = int(np.argmax(steps))
    if steps[n] > 1.5 * usual:
        missing = round(steps[n] / usual) - 1
        raise GeometryError(
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing between {slices[n].path.name} ({heights[n]:.2f} mm) and "
            f"{slices[n + 1].path.name} ({heights[n + 1]:.2f} mm): a gap of {steps[n]:.2f} mm where slices are {usual:.2f} mm apart",
            "find the missing files, or split the series there")
    positions = np.stack([s.position for s in slices])
    even = np.linspace(positions[0], positions[-1], len(slices))
    off = np.linalg.norm(positions - even, axis=1)
    n = int(np.argmax(off))
    if off[n] > max(0.01, 0.1 * usual):
        raise GeometryError(f"slices are not evenly spaced: {slices[n].path.name} lies {off[n]:.2f} mm from where it should (slices are "
                            f"{steps.min():.2f} to {steps.max():.2f} mm apart)", "resample the series to even slices first")


def _values(slices: list[Slice]) -> np.ndarray:
    """[columns, rows, slices] float32, rescaled."""
    data = None
    for path, members in groupby(sorted(enumerate(slices), key=lambda m: str(m[1].path)), key=lambda m: m[1].path):
        stored = _pixels(path, slices[0].size)
        data = np.empty((*slices[0].size, len(slices)), np.float32) if data is None else data
        for k, s in members:
            if s.frame >= len(stored):
                raise FileError(f"{path} is cut off: frame {s.frame + 1} is missing", "copy or export it again")
            data[:, :, k] = stored[s.frame].T * s.slope + s.intercept
    assert data is not None  # a series has at least one slice
    return data


def _pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """[frames, rows, columns] as stored."""
    try:
        dataset = pydicom.dcmread(path, force=True)
        if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
            raise FileError(f"{path} holds no pixels", "copy or export it again")
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
        _require_decoder(path, dataset.file_meta.TransferSyntaxUID)
        return dataset.pixel_array.reshape(-1, size[1], size[0])
    except MedfieldsError:
        raise
    except Exception as error:  # pydicom and its decoders meet damage with errors of many kinds
        raise unreadable(path, error) from error


def _require_decoder(path: Path, syntax: UID) -> None:
    if not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        known = get_decoder(syntax)
    except NotImplementedError as error:
        raise FileError(f"{path} is compressed in a way nothing here can read ({syntax.name})", "decompress it first") from error
    if known.is_available:
        return
    if "JPEG 2000" in syntax.name or "High-Throughput" in syntax.name:
        raise MissingExtra("pylibjpeg-openjpeg", "dicom", f"reading {path.name}, compressed as {syntax.name},")
    raise FileError(f"{path} is compressed as {syntax.name}, for which no decoder is installed",
                    "decompress it first (dcmdjpeg or gdcmconv --raw), or install a pydicom decoder plug-in")
