"""The report of a `superres --motion` run: the subject before and after, how its slices moved, which were left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..cases import Slices
from ..solve.motion import LIKENESS, Found, Level, covering, placed
from ..space import Volume
from ..space.rigid import maps_of
from . import pictures
from .page import Chart, Compare, Figure, Page, Picture, duration, write_report
from .run_folder import RunFolder

BEFORE = "as the headers say"
PLANES = ("Left: all slices put where their headers say, each spread over its thickness and averaged. Right: the result. Both have one window; "
          "R is the right of the world, which is the subject's only if it lay as the scanner was told.")
SLICES = ("What a slice measured, what it would measure of the result in the pose that was found, and the difference, on one scale for all: black is "
          "none, blue too dark, red too bright. The caption says how alike the two are.")
MOVED = "how slices turned, in degrees, and shifted, in mm, in the order in which they lie"
WIDE = 300  # pixels: the least along a slice's longer side


@dataclass(frozen=True)
class _Seen:
    """What the page is made of."""

    case: Slices
    result: Volume
    found: Found
    poses: Float[np.ndarray, "N 6"]
    before: Volume
    shown: list[torch.Tensor]  # of each slice what it would measure of the result, in its mask, else NaN
    alike_before: Float[np.ndarray, "N"]


def motion_page(case: Slices, result: Volume, folder: Path, motion: Mapping[str, Any], *, notes: Sequence[str] = ()) -> Path:
    """Write `report.html` into the run folder.

    Args:
        case: the slices, where their headers put them.
        result: the subject, one channel.
        folder: of the run; configuration, versions, times and curves are read from there.
        motion: what the method noted of the motion, see `solve.settle.noted`.
        notes: what was understood, assumed or doubted when the files were read.

    Raises:
        FileError: if there is no such folder.
        OutputError: if the page cannot be written.
    """
    facts, seen = RunFolder.read(folder), _seen(case, result, motion)
    tables = facts.tables()
    tables.get("Found during the run", {}).pop("motion", None)
    stacks = {name or f"stack {n + 1}": _input(case, n) for n, name in enumerate(case.names)}
    page = Page(
        title=f"One volume from {len(case.slices)} slices that moved", kicker=f"medfields superres --motion · {facts.method}",
        verdict=_verdict(seen, facts.seconds), tiles=_tiles(seen, facts.seconds), compare=_compare(seen), figures=[_planes(seen), *_slices(seen)],
        table=_stacks(seen), charts=[*_motion(seen), *facts.charts()], card=facts.card(), config=facts.config,
        facts={"Input": stacks, **({"Notes": {str(n + 1): text for n, text in enumerate(notes)}} if notes else {}), **_left_out(seen), **tables})
    return write_report(folder / "report.html", page)


def _seen(case: Slices, result: Volume, motion: Mapping[str, Any]) -> _Seen:
    poses = np.array(motion["poses"])
    found = Found(maps_of(poses, np.array(motion["about"])), *(np.array(motion[name]) for name in ("gain", "worth", "likeness")))
    before = _compounded(case)
    rest = np.tile(np.eye(4), (len(poses), 1, 1))
    return _Seen(case, result, found, poses, before, simulated(case, result, found), _alike(case, before, rest))


def _compounded(case: Slices) -> Volume:
    """All slices where their headers put them, averaged; as dark as the darkest pixel where there is none."""
    operator, (_, _, value) = case.operator(case.grid), case.pixels()
    total, weight = operator.adjoint(value), operator.adjoint(torch.ones_like(value))
    return Volume(torch.where(weight > 0.02 * weight.max(), total / weight.clamp_min(1e-6), value.min()), case.grid)


def _alike(case: Slices, volume: Volume, poses: np.ndarray) -> Float[np.ndarray, "N"]:
    """The correlation of each slice with what a volume shows in its place."""
    level = Level(case, volume.grid, *case.level())
    return level.likeness(level.operator(poses).apply(volume.data[0]))


def simulated(case: Slices, result: Volume, found: Found) -> list[torch.Tensor]:
    """What each slice would measure of the result where it was found to lie, times its gain; [I, J], NaN outside its mask."""
    lattice, _ = covering(result.grid, placed(case, found.poses), case.reach() + float(result.grid.spacing.max()))
    edge = Volume(result.data, result.grid, fill=float(case.pixels()[2].min()))
    shown = case.operator(lattice, found.poses).apply(edge.on(lattice).data[0])
    offset, _ = case.level()
    out = []
    for s, values, gain in zip(case.slices, shown.split([int(s.mask.sum()) for s in case.slices]), found.gain, strict=True):
        image = torch.full(s.values.shape, float("nan"))
        image[s.mask] = offset + float(gain) * (values - offset)
        out.append(image)
    return out


def _verdict(seen: _Seen, seconds: float | None) -> str:
    case, lost = seen.case, int((seen.found.worth == 0).sum())
    turn, shift = _sizes(seen)
    spacing = f"{seen.result.grid.spacing[0]:.3g}"
    text = f"{len(case.slices)} slices of {len(case.names)} stacks became one volume of {spacing} mm voxels"
    text += f" in {duration(seconds)}. " if seconds else ". "
    text += f"Slices moved by {np.median(turn):.1f} degrees and {np.median(shift):.1f} mm in the median, by {turn.max():.1f} degrees and "
    text += f"{shift.max():.1f} mm at most. "
    text += "None was left out." if lost == 0 else f"{lost} {'was' if lost == 1 else 'were'} left out."
    return text + " No truth is known for these data: judge it against the acquired slices below."


def _sizes(seen: _Seen) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """How far each slice turned, in degrees, and shifted, in mm."""
    return np.degrees(np.linalg.norm(seen.poses[:, :3], axis=1)), np.linalg.norm(seen.poses[:, 3:], axis=1)


def _tiles(seen: _Seen, seconds: float | None) -> list[tuple[str, str, str]]:
    case, (turn, shift) = seen.case, _sizes(seen)
    thick = sorted({round(float(t), 2) for t in case.thickness})
    tiles = [("Slices in", str(len(case.slices)), f"{' and '.join(f'{t:g}' for t in thick)} mm thick"),
             ("Voxels out", f"{seen.result.grid.spacing[0]:.3g} mm", " × ".join(map(str, seen.result.grid.shape))),
             ("Motion", f"{np.median(turn):.1f}°, {np.median(shift):.1f} mm", "median of the slices"),
             ("Correlation", f"{np.median(seen.found.likeness):.3f}", f"{np.median(seen.alike_before):.3f} {BEFORE}"),
             ("Left out", str(int((seen.found.worth == 0).sum())), f"correlation below {LIKENESS:g}")]
    return [*tiles, ("Time", duration(seconds), "")] if seconds else tiles


def _picture(volume: Volume, plane: pictures.Plane, window: tuple[float, float], what: str) -> Picture:
    return Picture(pictures.png(pictures.gray(pictures.read_plane(volume, plane), *window)), f"{plane.name} plane, {what}", plane)


def _pairs(seen: _Seen) -> list[tuple[str, Picture, Picture]]:
    window = pictures.window(seen.result)
    return [(p.name, _picture(seen.before, p, window, BEFORE), _picture(seen.result, p, window, "result"))
            for p in pictures.planes(seen.result.grid, pictures.brightness_centre(seen.result))]


def _compare(seen: _Seen) -> list[Compare]:
    return [Compare(a, b, BEFORE, "result") for _, a, b in _pairs(seen)]


def _planes(seen: _Seen) -> Figure:
    return Figure("Three planes", PLANES, [BEFORE, "result"], [(name, [a, b]) for name, a, b in _pairs(seen)])


def _slices(seen: _Seen) -> list[Figure]:
    """Of each stack the slice that is most alike, the one in the middle and the one that is least; and up to four that were left out."""
    chosen: list[int] = []
    for n in range(len(seen.case.names)):
        kept = np.flatnonzero((seen.case.stack == n) & (seen.found.worth > 0))
        kept = kept[np.argsort(-seen.found.likeness[kept])]
        chosen += dict.fromkeys(int(kept[i]) for i in (0, len(kept) // 2, -1)) if len(kept) else []
    lost = [int(n) for n in np.flatnonzero(seen.found.worth == 0)[:4]]
    figures = [Figure("Slices, measured and simulated", SLICES, ["measured", "simulated", "difference"], [_row(seen, n) for n in chosen])]
    if lost:
        figures.append(Figure("Slices that were left out", SLICES, ["measured", "simulated", "difference"], [_row(seen, n) for n in lost]))
    return figures


def _row(seen: _Seen, n: int) -> tuple[str, list[Picture]]:
    s, low = seen.case.slices[n], seen.case.level()[0]
    high = low + seen.case.level()[1]
    measured = np.where(s.mask.numpy(), s.values.numpy(), np.nan)
    rows, columns = (np.flatnonzero(s.mask.numpy().any(d)) for d in (1, 0))
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    shown = seen.shown[n].numpy()
    images = (pictures.gray(measured[cut].T, low, high), pictures.gray(shown[cut].T, low, high),
              pictures.diverging((shown - measured)[cut].T, 0.3 * (high - low)))
    name = f"{seen.case.names[s.stack] or f'stack {s.stack + 1}'}, slice {s.order}: {seen.found.likeness[n]:.3f}"
    return name, [Picture(pictures.png(image, WIDE), f"{name}, {what}", None, letters=False) for image, what in
                  zip(images, ("measured", "simulated", "difference"), strict=True)]


def _motion(seen: _Seen) -> list[Chart]:
    """Six numbers of each stack's slices, and how alike they are."""
    charts, order = [], np.array([s.order for s in seen.case.slices])
    for n, name in enumerate(seen.case.names):
        own = np.flatnonzero(seen.case.stack == n)
        own = own[np.argsort(order[own])]
        numbers = np.concatenate([np.degrees(seen.poses[own, :3]), seen.poses[own, 3:]], 1)
        series = {what: list(zip(order[own].astype(float).tolist(), numbers[:, d].tolist(), strict=True)) for d, what in
                  enumerate(("turn x, °", "turn y, °", "turn z, °", "shift x, mm", "shift y, mm", "shift z, mm"))}
        charts.append(Chart(f"{name}: {MOVED}", pictures.curves(series, log=False), list(series)))
    alike = {name: [(float(order[i]), float(seen.found.likeness[i])) for i in np.flatnonzero(seen.case.stack == n)]
             for n, name in enumerate(seen.case.names)}
    return [*charts, Chart("correlation of slices with the result", pictures.curves(alike, log=False), list(alike))]


def _stacks(seen: _Seen) -> dict[str, dict[str, float | str]]:
    """A row for each stack."""
    turn, shift = _sizes(seen)
    rows: dict[str, dict[str, float | str]] = {}
    for n, name in enumerate(seen.case.names):
        own = seen.case.stack == n
        rows[name] = {"slices": float(own.sum()), "left out": float((seen.found.worth[own] == 0).sum()), "turn, °": float(np.median(turn[own])),
                      "shift, mm": float(np.median(shift[own])), "correlation before": float(np.median(seen.alike_before[own])),
                      "correlation": float(np.median(seen.found.likeness[own]))}
    return rows


def _left_out(seen: _Seen) -> dict[str, dict[str, str]]:
    """Which slices, and why."""
    reasons = {f"{seen.case.names[s.stack]}, slice {s.order}": f"unlike the subject: correlation {seen.found.likeness[n]:.2f}, below {LIKENESS:g}"
               for n, s in enumerate(seen.case.slices) if seen.found.worth[n] == 0}
    return {"Slices that were left out": reasons} if reasons else {}


def _input(case: Slices, n: int) -> str:
    own = [s for s in case.slices if s.stack == n]
    mm = own[0].image.grid.spacing
    return f"{len(own)} slices of {own[0].thickness:.3g} mm, pixels of {mm[0]:.3g} × {mm[1]:.3g} mm"
