"""The report of a `superres --motion` run: the subject before and after, how its slices moved, which were left out and why."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..cases import Slices
from ..errors import InputError
from ..io import read_volume
from ..solve.motion import LIKENESS, Found, Level, placed
from ..solve.record import STAGES
from ..solve.settle import told
from ..space import Volume
from . import pictures
from .page import Compare, Figure, Page, Picture, duration, number, write_report
from .run_folder import RunFolder

BEFORE, AFTER = "as the headers say", "after"
COMPARED = ("The three planes meet in one point. Move the pointer across a picture, or the slider below: left of the line all slices lie where their "
            "headers put them, each spread over its profile and averaged; right of it is the result.")
PLANES = ("All pictures share one intensity window. Stacks are shown as the blocks they are, where their headers put them. R is the right of the "
          "world, which is the subject's only if it lay as the scanner was told.")
SLICES = ("Acquired, what the slice would measure of the result where it was found to lie, and simulated minus acquired: black is no error, blue too "
          "dark, red too bright, on one scale for all slices. The numbers are those of slices.csv, and how well the slice correlates with the "
          "subject in its place. What lies outside the mask or the result is not simulated.")
MOVED = ("Of each slice in the order of its stack: its turn about the axes of the world and its shift along them, both about the middle of the "
         "result; and its correlation with what the volume shows in its place. Dots mark slices that were left out: where they lie is not believed, "
         "so only their order is shown.")
STEPS = ("Whole stacks are laid on one another first, then every slice for itself, coarse to fine; each picture is the subject as it was rebuilt "
         "for that, with little regard to noise.")
DOUBT = ("One standard deviation, black for none and white for {top} {unit} and more: from what the slices leave over, where few slices look, and "
         "from how rough the subject is.")
TURNS, SHIFTS = ("turn x", "turn y", "turn z"), ("shift x", "shift y", "shift z")
LOST, LIMIT = "left out", "limit"
SHOWN = 4  # left-out slices of each stack that are shown
MARGIN = 2  # pixels shown around a slice's mask
BLOCKS, SIDE = 720, 320  # pixels: acquired blocks and slices are drawn large enough to keep their edges
WIDE, HIGH = 380, 250  # of a chart
COLOURS = ("#63cfc5", "#f0935f", "#93a5ff", "#e0bf62", "#d68ccf", "#9aa2ab")  # on black
Series = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class _Seen:
    """What the page is made of."""

    case: Slices
    result: Volume
    found: Found
    six: Float[np.ndarray, "N 6"]  # turn in degrees and shift in mm about the middle
    before: Volume
    likeness_before: Float[np.ndarray, "N"]
    simulated: list[Tensor]

    @property
    def lost(self) -> np.ndarray:
        return self.found.worth <= 0

    @property
    def sizes(self) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
        """How far each slice turned, degrees, and shifted, mm."""
        return np.linalg.norm(self.six[:, :3], axis=1), np.linalg.norm(self.six[:, 3:], axis=1)

    @property
    def believed(self) -> np.ndarray:
        """Slices whose poses count: those that were kept, if any were."""
        return ~self.lost if not self.lost.all() else np.ones(len(self.lost), bool)

    def stacks(self) -> dict[str, Int[np.ndarray, "M"]]:
        """Name of each stack, and its slices in order."""
        order, stack = np.array([s.order for s in self.case.slices]), self.case.stack
        own = {int(n): np.flatnonzero(stack == n) for n in np.unique(stack)}
        names = {n: self.case.names[n] if n < len(self.case.names) and self.case.names[n] else f"stack {n + 1}" for n in own}
        twice = {name for name in names.values() if list(names.values()).count(name) > 1}
        return {f"{names[n]} ({n + 1})" if names[n] in twice else names[n]: i[np.argsort(order[i], kind="stable")] for n, i in own.items()}

    def reason(self, n: int) -> str:
        """Why a slice was left out; "" if it was not."""
        alike = self.found.likeness[n]
        if not self.lost[n]:
            return ""
        if alike < LIKENESS:
            return f"unlike the subject: correlation {alike:.2f}, below {LIKENESS:g}"
        return f"worth nothing, at a correlation of {alike:.2f}"


def motion_page(case: Slices, result: Volume, folder: Path, motion: Mapping[str, Any], *, doubt: Volume | None = None,
                notes: Sequence[str] = ()) -> Path:
    """Write `report.html` into the run folder.

    Args:
        case: the slices, where their headers put them.
        result: the subject, one channel.
        folder: of the run; configuration, versions, times and curves are read from there.
        motion: what the method noted of the motion, see `solve.settle.noted`.
        doubt: one standard deviation of the result, see `solve.plane_doubt`.
        notes: what was understood, assumed or doubted when the files were read.

    Raises:
        FileError: if there is no such folder.
        InputError: if the motion is not that of these slices.
        OutputError: if the page cannot be written.
    """
    facts, seen = RunFolder.read(folder), _seen(case, result, motion)
    tables = facts.tables()
    facts_told = {name: text for name, text in tables.pop("Found during the run", {}).items() if name != "motion"}  # its numbers are drawn above
    lost = {f"{name}, slice {case.slices[n].order}": seen.reason(n) for name, own in seen.stacks().items() for n in own.tolist() if seen.lost[n]}
    page = Page(
        title=f"One volume from {len(case.slices)} slices that moved",
        kicker=f"medfields superres --motion · {facts.method or 'result'}",
        verdict=_verdict(seen, facts.seconds),
        tiles=_tiles(seen, facts.seconds),
        compare=_compare(seen),
        compare_caption=COMPARED,
        figures=[_planes(seen), *_stages(seen, folder / STAGES), *_doubts(seen, doubt), *_slices(seen), _motion(seen)],
        charts=facts.charts(),
        card=facts.card(),
        config=facts.config,
        facts={
            **({"Slices that were left out": lost} if lost else {}),
            "Stacks": {name: _stack(seen, own) for name, own in seen.stacks().items()},
            **({"Noted when it was read": {str(n + 1): text for n, text in enumerate(notes)}} if notes else {}),
            **({"Found during the run": facts_told} if facts_told else {}),
            **tables,
        },
    )
    return write_report(folder / "report.html", page)


def _seen(case: Slices, result: Volume, motion: Mapping[str, Any]) -> _Seen:
    six = np.array(motion["poses"], dtype=float)
    if len(six) != len(case.slices):
        raise InputError(f"the run tells the motion of {len(six)} slices, and there are {len(case.slices)}", "were files or masks changed since?")
    found = told(motion)
    before = compounded(case, result)
    level = Level(case, before.grid, *case.level())
    alike = level.likeness(level.operator(np.tile(np.eye(4), (len(six), 1, 1))).apply(before.data[0]))
    degrees = np.concatenate([np.degrees(six[:, :3]), six[:, 3:]], 1)
    return _Seen(case, result, found, degrees, before, alike, simulated(case, result, found))


def compounded(case: Slices, result: Volume) -> Volume:
    """All slices where their headers put them, averaged on the result's grid; as dark as the darkest pixel where there is none."""
    operator, (_, _, value) = case.operator(result.grid), case.pixels()
    total, weight = operator.adjoint(value), operator.adjoint(torch.ones_like(value))
    # the far ends of profiles alone are ratios of rounding errors
    return Volume(torch.where(weight > 1e-3 * weight.max(), total / weight.clamp_min(1e-9), value.min()), result.grid, case.unit)


def simulated(case: Slices, result: Volume, found: Found) -> list[Tensor]:
    """What each slice would measure of the result where it was found to lie, times its gain; [I, J], NaN outside its mask or the result.

    Gains are told of values from which the case's offset was taken, as methods see them.
    """
    shown, (offset, _) = case.operator(result.grid, found.poses).apply(result.data[0].contiguous()), case.level()
    index = result.grid.index(placed(case, found.poses))
    inside = ((index >= -0.5) & (index <= np.array(result.grid.shape) - 0.5)).all(1)
    shown = torch.where(torch.from_numpy(inside), shown, float("nan"))
    out = []
    for s, values, gain in zip(case.slices, shown.split([int(s.mask.sum()) for s in case.slices]), found.gain, strict=True):
        image = torch.full(s.values.shape, float("nan"))
        image[s.mask] = offset + float(gain) * (values - offset)
        out.append(image)
    return out


def _spacing(volume: Volume) -> str:
    mm = volume.grid.spacing
    return f"{mm[0]:.3g}" if np.ptp(mm) < 1e-3 * mm.max() else " × ".join(f"{s:.3g}" for s in mm)


def _verdict(seen: _Seen, seconds: float | None) -> str:
    (turn, shift), lost, stacks = (s[seen.believed] for s in seen.sizes), int(seen.lost.sum()), len(seen.stacks())
    text = f"{len(seen.case.slices)} slices of {stacks} stack{'s' * (stacks != 1)} became one volume of {_spacing(seen.result)} mm voxels"
    text += f" in {duration(seconds)}. " if seconds else ". "
    text += f"Slices moved by {np.median(turn):.1f} degrees and {np.median(shift):.1f} mm in the median, by {turn.max():.1f} degrees and "
    text += f"{shift.max():.1f} mm at most. "
    text += "None was left out." if not lost else f"{lost} {'was' if lost == 1 else 'were'} left out, and not counted in this."
    return text + " No truth is known for these data: judge it against the acquired slices."


def _tiles(seen: _Seen, seconds: float | None) -> list[tuple[str, str, str]]:
    turn, shift = (np.median(s[seen.believed]) for s in seen.sizes)
    thick = sorted({round(float(t), 2) for t in seen.case.thickness})
    mm = f"{thick[0]:g}" if len(thick) == 1 else f"{thick[0]:g}–{thick[-1]:g}"
    count = len(seen.case.slices)
    tiles = [("Slices in", str(count), f"{mm} mm thick"),
             ("Voxels out", f"{_spacing(seen.result)} mm", " × ".join(map(str, seen.result.grid.shape))),
             ("Motion", f"{turn:.1f}°, {shift:.1f} mm", "median of the slices"),
             ("Left out", str(int(seen.lost.sum())), f"of {count} slices"),
             ("Correlation", f"{np.median(seen.found.likeness):.3f}", f"median of the slices; {np.median(seen.likeness_before):.3f} before")]
    return [*tiles, ("Time", duration(seconds), "")] if seconds else tiles


def _picture(values: np.ndarray, plane: pictures.Plane, window: tuple[float, float], what: str, least: int = 1) -> Picture:
    return Picture(pictures.png(pictures.gray(values, *window), least), f"{plane.name} plane, {what}", plane)


def _cuts(result: Volume) -> list[pictures.Plane]:
    return pictures.planes(result.grid, pictures.brightness_centre(result))


def _compare(seen: _Seen) -> list[Compare]:
    window = pictures.window(seen.result)
    before, after = ([_picture(pictures.read_plane(v, p), p, window, what) for p in _cuts(seen.result)]
                     for v, what in ((seen.before, BEFORE), (seen.result, AFTER)))
    return [Compare(a, b, BEFORE, "result") for a, b in zip(before, after, strict=True)]


def _planes(seen: _Seen) -> Figure:
    window, rows = pictures.window(seen.result), []
    for p in _cuts(seen.result):
        blocks = [_picture(acquired(seen.case, own, p.points), p, window, f"{name} as acquired", BLOCKS) for name, own in seen.stacks().items()]
        first, last = (_picture(pictures.read_plane(v, p), p, window, what) for v, what in ((seen.before, BEFORE), (seen.result, AFTER)))
        rows.append((p.name, [first, *blocks, last]))
    return Figure("Three planes", PLANES, ["before", *(f"{name}, as acquired" for name in seen.stacks()), "after"], rows)


def _stages(seen: _Seen, folder: Path) -> list[Figure]:
    """The subject as it was rebuilt on the way."""
    kept = {path.name.removesuffix(".nii.gz").partition("-")[2]: read_volume(path) for path in sorted(folder.glob("*.nii.gz"))}
    if not kept:
        return []
    window, shown = pictures.window(seen.result), {**kept, AFTER: seen.result}
    rows = [(p.name, [_picture(pictures.read_plane(v, p), p, window, name) for name, v in shown.items()]) for p in _cuts(seen.result)]
    return [Figure("Stage by stage", STEPS, list(shown), rows)]


def _doubts(seen: _Seen, doubt: Volume | None) -> list[Figure]:
    """Where the result is sure of itself and where it is not."""
    if doubt is None:
        return []
    top = float(np.quantile(doubt.data.numpy(), 0.99)) or 1.0
    pairs = (("result", seen.result, pictures.window(seen.result)), ("standard deviation", doubt, (0.0, top)))
    rows = [(p.name, [_picture(pictures.read_plane(v, p), p, window, name) for name, v, window in pairs]) for p in _cuts(seen.result)]
    caption = DOUBT.format(top=number(top), unit=seen.case.unit or "of the image intensity")
    return [Figure("How sure it is", caption, [name for name, *_ in pairs], rows)]


def acquired(case: Slices, own: Int[np.ndarray, "M"], x: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """The pixel of the nearest slice of a stack, where the headers put it; NaN where no slice is that near."""
    values, near = np.full(x.shape[:2], np.nan), np.full(x.shape[:2], np.inf)
    for s in (case.slices[n] for n in own):
        grid = s.image.grid
        index = grid.index(x)
        away = np.abs(index[..., 2]) * grid.spacing[2]
        i, j = (np.floor(index[..., d] + 0.5).astype(int) for d in (0, 1))
        inside = (i >= 0) & (i < grid.shape[0]) & (j >= 0) & (j < grid.shape[1])
        better = inside & (away < near) & (away <= max(s.thickness, float(grid.spacing[2])) / 2 + 1e-3)
        values[better], near[better] = s.values.numpy()[i[better], j[better]], away[better]
    return values


def chosen(likeness: Float[np.ndarray, "N"], lost: np.ndarray, own: Int[np.ndarray, "M"]) -> dict[int, str]:
    """Slices of a stack worth looking at: the best, the median and the worst that were kept, and the first that were not."""
    kept = own[~lost[own]]
    kept = kept[np.argsort(-likeness[kept], kind="stable")]
    named: dict[int, str] = {}
    for at, what in ((0, "best"), (-1, "worst"), (len(kept) // 2, "median")) if len(kept) else ():
        named.setdefault(int(kept[at]), what)
    shown = dict(sorted(named.items(), key=lambda item: ("best", "median", "worst").index(item[1])))
    return shown | {int(n): LOST for n in own[lost[own]][:SHOWN]}


def _slices(seen: _Seen) -> list[Figure]:
    """For each stack, with one scale of differences for all."""
    picked = {name: chosen(seen.found.likeness, seen.lost, own) for name, own in seen.stacks().items()}
    kept = [n for several in picked.values() for n, what in several.items() if what != LOST] or [n for several in picked.values() for n in several]
    errors = np.concatenate([(seen.simulated[n] - seen.case.slices[n].values).numpy().ravel() for n in kept])
    top = float(np.nanpercentile(np.abs(errors), 99)) if np.isfinite(errors).any() else 0.0
    bar = (pictures.colour_bar(), f"−{number(top)}", f"+{number(top)}", seen.case.unit or "(image intensity)")
    figures: list[Figure] = []
    for name, several in picked.items():
        lost = int(seen.lost[seen.stacks()[name]].sum())
        caption = "" if figures else SLICES
        caption += f" {lost} left out, {min(lost, SHOWN)} of them shown." if lost > SHOWN else ""
        rows = [_row(seen, name, n, what, top or 1.0) for n, what in several.items()]
        figures.append(Figure(f"Slices of {name}", caption, ["acquired", "simulated", "difference"], rows, bar))
    return figures


def _row(seen: _Seen, stack: str, n: int, what: str, top: float) -> tuple[str, list[Picture]]:
    """One slice as anatomy is shown, cut to its mask."""
    s, (low, scale) = seen.case.slices[n], seen.case.level()
    at = s.mask.nonzero().numpy()
    first = np.maximum(at.min(0) - MARGIN, 0)
    last = np.minimum(at.max(0) + MARGIN + 1, s.mask.shape)
    cut = (slice(first[0], last[0]), slice(first[1], last[1]))
    grid = s.image.grid.crop(np.append(first, 0), np.append(last - first, 1))
    axes, _ = pictures.nearest_axes(grid)
    plane = pictures.planes(grid, np.zeros(3))[2 - axes.index(2)]  # the one whose normal runs across the slice
    measured, shown = s.values[cut], seen.simulated[n][cut]
    read = [pictures.read_plane(Volume(v[..., None], grid), plane, nearest=True) for v in (measured, shown, shown - measured)]
    about = f"{stack}, slice {s.order}, correlation {seen.found.likeness[n]:.3f}" + (f", left out, {seen.reason(n)}" if seen.lost[n] else "")
    images = [pictures.gray(read[0], low, low + scale), pictures.gray(read[1], low, low + scale), pictures.diverging(read[2], top)]
    side = f"slice {s.order} · left out: {seen.reason(n)}" if seen.lost[n] else f"slice {s.order} · {what}: {seen.found.likeness[n]:.3f}"
    return side, [Picture(pictures.png(image, SIDE), f"{about}: {kind}", plane, letters=kind == "acquired")
                  for image, kind in zip(images, ("acquired", "simulated", "difference"), strict=True)]


def _motion(seen: _Seen) -> Figure:
    rows = []
    for name, own in seen.stacks().items():
        drawn = [(_drawing(series, (LOST,)), f"{what} of the slices of {name}") for series, what in
                 ((_numbers(seen, own, TURNS, 0), "turns in degrees"), (_numbers(seen, own, SHIFTS, 3), "shifts in mm"),
                  (_likenesses(seen, own), "correlations"))]
        rows.append((name, [Picture(src, alt, None, letters=False) for src, alt in drawn]))
    return Figure("How the slices moved", MOVED, ["turn, degrees", "shift, mm", "correlation"], rows)


def _numbers(seen: _Seen, own: Int[np.ndarray, "M"], names: Sequence[str], first: int) -> Series:
    """Three numbers of the poses of a stack's slices, over their order; of those that were left out only that they were."""
    at = [(float(seen.case.slices[n].order), n) for n in own]
    lines: Series = {name: [(k, float(seen.six[n, first + d])) for k, n in at if not seen.lost[n]] for d, name in enumerate(names)}
    foot = min((v for points in lines.values() for _, v in points), default=0.0)
    return lines | {LOST: [(k, foot) for k, n in at if seen.lost[n]]}


def _likenesses(seen: _Seen, own: Int[np.ndarray, "M"]) -> Series:
    """How alike a stack's slices are to the subject, over their order, and what they must be to be kept."""
    at = [(float(seen.case.slices[n].order), n) for n in own]
    return {AFTER: [(k, float(seen.found.likeness[n])) for k, n in at if not seen.lost[n]],
            "before": [(k, float(seen.likeness_before[n])) for k, n in at],
            LIMIT: [(at[0][0], LIKENESS), (at[-1][0], LIKENESS)],
            LOST: [(k, float(seen.found.likeness[n])) for k, n in at if seen.lost[n]]}


def _drawing(series: Series, dots: Sequence[str]) -> str:
    """Curves with their names as a data: URL of an SVG on black, for a picture has no share in the page's styles."""
    series = {name: points for name, points in series.items() if points}
    svg = str(pictures.curves(series, WIDE, HIGH, log=False, dots=dots))
    # what was left out is gray whatever comes before it
    shades = [COLOURS[-1] if name in (LOST, LIMIT) else COLOURS[n] for n, name in enumerate(series)]
    style = "".join(f".c{n}{{color:{c}}}" for n, c in enumerate(shades)) + (
        "svg{font:11px sans-serif}.rule{stroke:#333}.tick{fill:#9aa2ab}circle{fill:currentColor}"
        "polyline{fill:none;stroke:currentColor;stroke-width:1.6}")
    keys, x = [], 62
    for (name, _), shade in zip(series.items(), shades, strict=True):
        keys.append(f'<text x="{x}" y="{HIGH + 14}" fill="{shade}">{"●" if name in dots else "—"} {name}</text>')
        x += 22 + 7 * len(name)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{HIGH + 24}" viewBox="0 0 {WIDE} {HIGH + 24}"><style>{style}</style>'
    text = f'{head}<rect width="100%" height="100%"/>{svg.partition(">")[2].removesuffix("</svg>")}{"".join(keys)}</svg>'
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def _stack(seen: _Seen, own: Int[np.ndarray, "M"]) -> str:
    """What went in, how far it moved, how alike it is."""
    s, kept = seen.case.slices[own[0]], own[seen.believed[own]]
    mm = s.image.grid.spacing
    text = f"{len(own)} slices of {s.thickness:.3g} mm, pixels of {mm[0]:.3g} × {mm[1]:.3g} mm; "
    if len(kept):
        turn, shift = (np.median(v[kept]) for v in seen.sizes)
        text += f"moved by {turn:.1f} degrees and {shift:.1f} mm (median); "
    text += f"correlation {np.median(seen.found.likeness[own]):.3f} (median), {np.median(seen.likeness_before[own]):.3f} before"
    return text + f"; {int(seen.lost[own].sum())} left out"
