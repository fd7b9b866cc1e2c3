"""Scan: what a file of projections says, and the checks that every reader of one shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from ..errors import GeometryError, InputError, UnknownName
from ..space import Geometry, Grid
from ..space.orbit import axis_of, field_of_view

MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3}
_RADIANS = {"radian": 1.0, "radians": 1.0, "rad": 1.0, "degree": np.pi / 180, "degrees": np.pi / 180, "deg": np.pi / 180}
_WORDS = ("kind", "beam", "source", "centre", "u", "v", "angles", "rows", "columns", "pitch", "source_isocentre", "source_detector", "offset", "roll",
          "tilt", "rise", "arc", "isocentre", "frame", "frame_of_reference", "unit", "description", "comment")
_SUFFIX = re.compile(r"_(mm|cm|m|um|degree|degrees|deg|radian|radians|rad|unit|units|description|comment|axes)$")


@dataclass(frozen=True, eq=False)
class Scan:
    """Line integrals with their geometry, and what a reader had to assume or repair.

    Args:
        data: [V, R, C] line integrals -log(I / I0), without unit; zero where `good` is False.
        geometry: where the rays run, RAS+ mm.
        grid: the lattice that the file suggests for the result; None if it suggests none.
        good: [V, R, C] which pixels to trust; None is all of them.
        water: attenuation of water, 1/mm, at the energy of the scan; 0 if unknown.
        photons: in a pixel of the open beam; 0 if unknown.
        spectrum: energies keV and their shares of the signal; None if unknown.
        name: how messages call it.
        notes: one line each: what was understood, masked, or is doubtful.

    Raises:
        GeometryError: if data and geometry differ in size.
        InputError: if data and mask do.
    """

    data: Float32[np.ndarray, "V R C"]
    geometry: Geometry
    grid: Grid | None = None
    good: Bool[np.ndarray, "V R C"] | None = None
    water: float = 0.0
    photons: float = 0.0
    spectrum: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    name: str = "projections"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = (self.geometry.views, *self.geometry.shape)
        if self.data.shape != expected:
            raise GeometryError(f"{_times(self.data.shape)} projections do not fit a geometry of {_times(expected)} (views x rows x columns)",
                                "the angles or the detector size are another scan's")
        if self.good is not None and self.good.shape != expected:
            raise InputError(f"the mask is {_times(self.good.shape)}, the projections are {_times(expected)}")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _told(value: np.ndarray) -> str:
    """A few numbers as they are, many by their shape."""
    return " x ".join(map(str, value.shape)) + " numbers" if value.size > 3 else ", ".join(f"{x:g}" for x in value.ravel())


def real(value: Any, name: str, dtype: type[np.floating[Any]] = np.float64) -> np.ndarray:
    """Any numbers as floats.

    Raises:
        InputError: for complex numbers, text, objects or nothing.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal length
        raise InputError(f"'{name}' is no regular array of numbers") from error
    if array.dtype.kind not in "buif" or array.size == 0:
        what = {"c": "complex numbers", "U": "text", "S": "text"}.get(array.dtype.kind, "no numbers") if array.size else "nothing"
        raise InputError(f"'{name}' holds {what} where real numbers are meant")
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite, and are masked as such
        return array.astype(dtype)


def length(entries: Mapping[str, Any], name: str, default: float | None = None) -> np.ndarray:
    """A length in mm, whatever its unit: `name_mm`, `name_cm`, `name_m`, `name_um`, or `name` beside `name_unit` or `unit`.

    Raises:
        GeometryError: if it is missing (without a default) or states no unit; the hint says what to write.
    """
    for unit, factor in MM.items():
        if f"{name}_{unit}" in entries:
            return np.asarray(real(entries[f"{name}_{unit}"], name) * factor)
    if name not in entries:
        if default is None:
            raise GeometryError(f"the geometry does not say '{name}'", f"write {name}_mm")
        return np.asarray(default, dtype=np.float64)
    stated = entries.get(f"{name}_unit", entries.get("unit"))
    if stated is None:
        raise GeometryError(f"the geometry says '{name}' without a unit", f"call it {name}_mm, or add unit = 'mm' (or cm, m, um)")
    if str(stated) not in MM:
        raise GeometryError(f"{str(stated)[:40]!r} is no unit of length", "mm, cm, m or um")
    return np.asarray(real(entries[name], name) * MM[str(stated)])


def scalar(entries: Mapping[str, Any], name: str, default: float = 0.0) -> float:
    """A single number without a unit, zero or more.

    Raises:
        InputError: for anything else.
    """
    value = real(entries.get(name, default), name)
    if value.size != 1 or not np.isfinite(value).all() or (value < 0).any():
        raise InputError(f"'{name}' must be one number, zero or more")
    return float(value.ravel()[0])


def number(entries: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A single length in mm; see `length`."""
    value = length(entries, name, default)
    if value.size != 1 or not np.isfinite(value).all():
        raise GeometryError(f"'{name}' must be one finite number, got {_told(value)}")
    return float(value.ravel()[0])


def size(value: np.ndarray, name: str) -> np.ndarray:
    """Sizes of pixels, mm: below zero they would mirror the image, and nobody would know.

    Raises:
        GeometryError: unless all are above zero.
    """
    if not (value > 0).all():
        raise GeometryError(f"'{name}' must be above 0, got {_told(value)}", "mm from pixel to pixel; a mirrored detector is given by its vectors")
    return value


def flag(entries: Mapping[str, Any], name: str) -> bool:
    """A yes or no, as a truth value or as 1 and 0; False if missing.

    Raises:
        GeometryError: for anything else: the text "false" is no False.
    """
    value = np.asarray(entries.get(name, False))
    if value.size != 1 or value.dtype.kind not in "bui" or int(value.ravel()[0]) not in (0, 1):
        raise GeometryError(f"'{name}' is neither true nor false: {str(entries[name])[:40]!r}", "1 or 0, or a truth value")
    return bool(value.ravel()[0])


def angle(entries: Mapping[str, Any], name: str, default: float | None = None) -> tuple[np.ndarray, str]:
    """Numbers of an angle and their unit, "radian" or "degree": `name_degree`, `name_radian`, or `name` beside `name_unit`.

    Raises:
        GeometryError: if it is missing (without a default) or states no unit.
    """
    found = [(key, unit) for unit in _RADIANS if (key := f"{name}_{unit}") in entries]
    if not found and name in entries:
        found = [(name, str(entries.get(f"{name}_unit", entries.get(f"{name}_units", entries.get("angles_unit", "")))))]
    if not found:
        if default is None:
            raise GeometryError(f"the geometry does not say '{name}'", f"write {name}_degree or {name}_radian")
        return np.asarray(default, dtype=np.float64), "radian"
    key, unit = found[0]
    if not unit:
        raise GeometryError(f"'{name}' states no unit", f"give {name} the unit 'degree' or 'radian', or call it {name}_degree")
    if unit not in _RADIANS:
        raise GeometryError(f"{unit[:40]!r} is no unit of an angle", "degree or radian")
    return real(entries[key], name), "radian" if _RADIANS[unit] == 1 else "degree"


def turn(angles: np.ndarray, unit: str, views: int, helix: bool = False) -> tuple[np.ndarray, list[str]]:
    """The views' angles [V] in radians, in the order of the file, and notes on what is odd about them.

    Raises:
        GeometryError: not one finite angle for each view, or degrees that are declared as radians.
    """
    angles = angles.reshape(-1) if angles.ndim < 2 or max(angles.shape) == angles.size else angles
    if angles.ndim != 1 or not np.isfinite(angles).all():
        raise GeometryError(f"the angles must be one finite number for each view, got {_times(angles.shape)}")
    if len(angles) != views:
        raise GeometryError(f"{len(angles)} angles for {views} projections", "are the axes in the order views, rows, columns?")
    if unit == "radian" and not helix and np.abs(angles).max() > 4 * np.pi:
        raise GeometryError(f"the angles reach {angles[np.abs(angles).argmax()]:g} and are declared as radians: they look like degrees",
                            "declare the unit 'degree'; if they are radians, take them modulo 2 pi")
    notes = []
    if unit == "degree" and views > 8 and np.ptp(angles) < 2 * np.pi * 1.01:
        notes.append(f"the {views} angles span only {np.ptp(angles):.3g} degrees: are they radians?")
    made = angles * _RADIANS[unit]
    steps = np.diff(made)
    if (steps > 0).any() and (steps < 0).any():
        notes.append("angles are not sorted: views kept in the order of the file")
    repeated = 0 if helix else views - len(np.unique(np.round(np.mod(made, 2 * np.pi) * 1e6) % round(2e6 * np.pi)))
    if repeated:
        notes.append(f"{repeated} angles are repeated (a full turn counts as none)")
    return made, notes


def circular(entries: Mapping[str, Any], shape: tuple[int, int, int]) -> tuple[Geometry, list[str]]:
    """The geometry of a gantry that turns about z, from named entries, for projections [V, R, C]; see `docs/projections.md`.

    Needs `kind` ("parallel", "fan", "cone"), `angles`, `pitch`, and but for a parallel beam `source_isocentre` and `source_detector`. May have
    `offset`, `roll`, `tilt`, `rise`, `arc`, `isocentre`. Zero angle, signs and axes are those of `Geometry.parallel` and `Geometry.cone`.

    Raises:
        GeometryError: for what is missing, has no unit, or does not fit the projections.
        UnknownName: for an entry of another name: a misspelt offset must not be lost.
    """
    for key in entries:
        if _SUFFIX.sub("", key) not in _WORDS and key not in _WORDS:
            raise UnknownName("entry of a geometry", key, _WORDS)
    kind = str(entries.get("kind", ""))
    if kind not in ("parallel", "fan", "cone"):
        raise GeometryError(f"there is no kind of geometry {kind[:40]!r}" if kind else "the geometry does not say its kind",
                            "kind = parallel, fan or cone")
    if entries.get("frame", "RAS") != "RAS":
        raise GeometryError("a gantry that turns about z is described in the frame RAS", "give every view's pose: source, centre, u, v")
    views, rows, columns = shape
    for name, n in (("rows", rows), ("columns", columns)):
        if scalar(entries, name, n) != n:
            raise GeometryError(f"the geometry says {scalar(entries, name):g} {name}, the projections have {n}")
    if kind == "fan" and rows != 1:
        raise GeometryError(f"a fan has one row, the projections have {rows}", "kind = cone")
    rise = number(entries, "rise", 0.0)
    radians, notes = turn(*angle(entries, "angles"), views, helix=rise != 0)
    height, width = np.broadcast_to(size(_few(length(entries, "pitch"), "pitch", 2), "pitch"), 2).tolist()
    shift = _few(length(entries, "offset", 0.0), "offset", 2)
    across, along = (0.0, float(shift[0])) if len(shift) == 1 else (float(shift[0]), float(shift[1]))
    isocentre = np.broadcast_to(_few(length(entries, "isocentre", 0.0), "isocentre", 3), 3).tolist()
    if kind == "parallel":
        if across or rise or flag(entries, "arc"):
            raise GeometryError("a parallel beam has no rise, no curved detector and one offset, along the columns",
                                "give every view's pose: source, centre, u, v")
        return Geometry.parallel(radians, columns, width, rows=rows, row_pitch=height, offset=along, isocentre=isocentre), notes
    roll, tilt = (float(value.ravel()[0]) * _RADIANS[unit] for value, unit in (angle(entries, "roll", 0.0), angle(entries, "tilt", 0.0)))
    made = Geometry.cone(radians, (rows, columns), (height, width), number(entries, "source_isocentre"), number(entries, "source_detector"),
                         offset=(across, along), roll=roll, tilt=tilt, arc=flag(entries, "arc"), rise=rise, isocentre=isocentre)
    return made, notes


def _few(value: np.ndarray, name: str, most: int) -> np.ndarray:
    """One number or `most` of them."""
    if value.size not in (1, most) or not np.isfinite(value).all():
        raise GeometryError(f"'{name}' must be one finite number or {most}, got {_told(value)}")
    return value.ravel()


def minus_log(counts: np.ndarray, flat: np.ndarray | float, dark: np.ndarray | float = 0.0, full: float = 0.0) -> tuple[np.ndarray, list[str]]:
    """-log((counts - dark) / (flat - dark)), NaN where that has no meaning, and how many pixels that are.

    Args:
        counts: [V, R, C], of any real dtype.
        flat, dark: of the open and the closed beam, [R, C] or [F, R, C] frames, which are averaged, or a number.
        full: the count at which the detector saturates; 0 takes the largest of an integer dtype.

    Raises:
        InputError: if no flat field is above the dark, or the frames do not fit.
    """
    frames = []
    for frame, name in ((flat, "flat"), (dark, "dark")):
        made = real(frame, name)
        with np.errstate(all="ignore"):  # what is not finite makes dead pixels
            made = made.mean(0) if made.ndim == 3 else made
        if made.ndim and made.shape != counts.shape[1:]:
            raise InputError(f"the {name} frame is {_times(made.shape)}, the projections are {_times(counts.shape[1:])}")
        frames.append(made)
    with np.errstate(all="ignore"):
        beam, signal = frames[0] - frames[1], real(counts, "projections", np.float32) - frames[1].astype(np.float32)
    full = full or (float(np.iinfo(counts.dtype).max) if counts.dtype.kind in "iu" else np.inf)
    saturated = np.isfinite(signal) & (counts >= full)
    dead = np.broadcast_to(~(beam > 0), counts.shape[1:])
    if dead.all():
        raise InputError("the flat field is nowhere brighter than the dark frame", "are the two exchanged?")
    starved = (signal <= 0) & ~dead
    with np.errstate(all="ignore"):
        made = -np.log(signal / beam)
    made[saturated | starved | np.broadcast_to(dead, counts.shape)] = np.nan
    notes = ["minus the logarithm of counts over flat field"]
    for bad, what in ((saturated, f"saturated pixels (counts of {full:g})"), (starved, "pixels without counts above the dark frame"),
                      (dead, "detector pixels without a flat field, in every view,")):
        if bad.any():
            notes.append(f"{int(bad.sum())} {what} masked")
    return made, notes


def trusted(data: np.ndarray, good: np.ndarray | None, counted: int = 0) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Line integrals [V, R, C] as float32 without NaN, the mask of pixels to trust, and notes.

    Args:
        data: NaN or infinite where there is no measurement.
        good: which pixels the file trusts; None for all.
        counted: how many pixels were marked as NaN here and are in the notes already.

    Raises:
        InputError: if nothing can be trusted, or the values are no line integrals.
    """
    finite = np.isfinite(data) & (np.abs(data) < 1e30)
    bad, notes = int((~finite).sum()) - counted, []
    if bad > 0:
        notes.append(f"{bad} NaN or infinite pixels masked")
    if good is not None:
        good = np.broadcast_to(good.astype(bool), data.shape)
        notes.append(f"{int((~good).sum())} pixels masked by the file")
    keep = finite if good is None else finite & good
    if not keep.any():
        raise InputError("no pixel can be trusted: all are NaN, saturated, without counts or masked")
    middle = float(np.median(data[keep]))
    if middle < 0 and data[keep].mean(dtype=np.float64) < 0:  # air alone is noise about zero
        raise InputError(f"the attenuation is negative: the median of the line integrals is {middle:.4g}",
                         "was the sign of -log(I / I0) forgotten, or is the open beam (I0) that of another exposure?")
    if middle > 50:
        raise InputError(f"the median of the line integrals is {middle:.4g}: these look like counts",
                         "declare unit = 'counts' and give the flat field")
    edge, half = max(1, data.shape[2] // 50), data.shape[2] // 2
    border, core = np.r_[:edge, -edge:0], slice(half - edge, half + edge)
    clear, shaded = (data[..., part][keep[..., part]] for part in (border, core))
    if half > 4 and len(clear) and len(shaded) and np.median(clear) > np.median(shaded) + 0.05:
        notes.append("the borders of the detector attenuate more than its middle: was -log(I / I0) forgotten, or is the object cut off?")
    return np.where(keep, data, 0).astype(np.float32), None if keep.all() else keep, notes


def _blind(geometry: Geometry, middle: np.ndarray) -> float:
    """mm about the axis that no view sees; 0 where the axis is seen."""
    axis, row = axis_of(geometry), geometry.shape[0] // 2
    origin, direction = (part[:, row, [0, -1]] for part in geometry.subset(slice(None, None, max(1, geometry.views // 60))).rays())
    side = np.cross(direction, middle - origin) @ axis
    return float(np.abs(side).min()) if geometry.shape[1] > 1 and (side[:, 0] * side[:, 1] > 0).all() else 0.0


def check_scale(geometry: Geometry, data: np.ndarray, water: float) -> list[str]:
    """Notes on lengths that look as if they had another unit.

    Raises:
        GeometryError: where no scanner has such lengths.
    """
    asked = "all lengths must be of one unit: is one of them in cm or m instead of mm?"
    pitch = geometry.pitch.mean(0)
    if not ((pitch > 1e-6) & (pitch < 50)).all():
        raise GeometryError(f"detector pixels of {pitch[1]:.4g} x {pitch[0]:.4g} mm", asked)
    middle, radius = field_of_view(geometry)
    notes = []
    blind = _blind(geometry, middle)
    if blind > 0.05 * radius:
        notes.append(f"no ray comes nearer than {blind:.4g} mm to the axis that the views turn about, so its surroundings are not measured: is the "
                     "detector's offset too large?")
    if geometry.beam == "cone":
        distance = np.linalg.norm(geometry.centre - geometry.source, axis=1).mean()
        width = geometry.shape[1] * pitch[0] / 2 / distance
        opening = np.degrees(width if geometry.arc else np.arctan(width))
        if opening > 60:
            raise GeometryError(f"the rays fan out by {2 * opening:.0f} degrees: a detector {2 * width * distance:.4g} mm wide, "
                                f"{distance:.4g} mm from its source", asked)
        if opening < 0.1 and geometry.shape[1] > 16:
            notes.append(f"the rays fan out by only {2 * opening:.2g} degrees: {asked}")
        magnification = distance / max(np.linalg.norm(middle - geometry.source, axis=1).mean(), 1e-9)
        if magnification > 200:
            raise GeometryError(f"the geometry magnifies {magnification:.4g} times", asked)
        if magnification > 40:
            notes.append(f"the geometry magnifies {magnification:.3g} times: {asked}")
    mean = float(np.quantile(data, 0.99)) / max(2 * radius, 1e-9)
    if radius > 2000 or (data.max() > 0 and not 1e-5 < mean < 10):
        notes.append(f"a field of view of {2 * radius:.4g} mm would attenuate {mean:.2g}/mm on average: are the lengths in mm?")
    if water < 0 or not np.isfinite(water):
        raise InputError(f"water cannot attenuate {water:g}/mm")
    if water and not 0.008 < water < 0.12:
        notes.append(f"water is said to attenuate {water:g}/mm; at 60 to 120 keV it is about 0.02/mm (0.2/cm)")
    return notes
