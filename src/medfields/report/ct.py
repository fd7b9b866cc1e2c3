"""The report of a `ct` run: the reconstruction, how well it explains the projections it saw and those it did not, and where the rays ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..cases import Projections
from ..cases.attenuation import told_in
from ..errors import InputError
from ..space import Grid, Volume
from . import pictures
from .geometry import describe, draw
from .page import Figure, Page, Picture, duration, number, write_report
from .run_folder import RunFolder

COLUMNS = {"psnr": "PSNR, dB", "ssim": "SSIM", "nrmse": "NRMSE", "seconds": "time, s"}
PLACES = "All pictures share one window, {}: black to white. Letters name the sides of the patient."
ERRORS = "Result minus truth, all on one scale: black is no error, blue too low, red too high."
SINOGRAM = "One row of the picture is one view. Right: measured minus predicted; what is left there should look like noise."
HELD = "These views were not used: how well they are predicted says how good the reconstruction is where nobody knows the truth."
DRAWING = "Green is the first view, orange the last, with source, detector and outer rays; the square is the box of the result."
Rivals = Mapping[str, Volume]
Metrics = Mapping[str, Mapping[str, float]]


def ct_page(case: Projections, volume: Volume, folder: Path, *, held_out: Projections | None = None, truth: Volume | None = None,
            rivals: Rivals | None = None, metrics: Metrics | None = None, uncertainty: Volume | None = None,
            notes: Sequence[str] = ()) -> Path:
    """Write `report.html` into the run folder.

    Args:
        case: the projections that were used.
        volume: what came out, in 1/mm, on the case's grid.
        folder: of the run; configuration, versions, times and curves are read from there.
        held_out: views that were not used.
        truth: the attenuation in 1/mm, where it is known: adds a column and the error maps.
        rivals: results of other methods by name, in 1/mm on the case's grid: add columns, and rows of the table.
        metrics: method -> quantity ("psnr", "seconds", ...) -> value, the run's own method among them.
        uncertainty: standard deviation in 1/mm, if the method has it.
        notes: what was understood, assumed or doubted when the file was read.

    Raises:
        InputError: if a volume does not lie on the case's grid.
        OutputError: if the page cannot be written.
    """
    rivals, metrics = dict(rivals or {}), dict(metrics or {})
    for name, other in {"the result": volume, **rivals, **({"the truth": truth} if truth else {})}.items():
        if other.data.shape[1:] != case.grid.shape:
            raise InputError(f"{name} is {tuple(other.data.shape[1:])}, the grid of the case {case.grid.shape}", "put it on the case's grid first")
    facts = RunFolder.read(folder)
    ours = facts.method or "result"
    solved = {**rivals, ours: volume}
    table = _table(case, held_out, solved, metrics)
    page = Page(
        title=_title(case),
        kicker=f"medfields ct · {ours}",
        verdict=_verdict(case, held_out, ours, facts.seconds, table, metrics),
        tiles=_tiles(case, held_out, ours, facts.seconds, table, metrics),
        figures=_figures(case, held_out, ours, solved, truth, uncertainty),
        table=table,
        ours=ours,
        table_note="Errors of projections are rms; the relative ones are in % of the rms of the measured projections.",
        charts=facts.charts(),
        card=facts.card(),
        config=facts.config,
        facts={
            "Geometry": describe(case.geometry, case.grid),
            **({"Noted when it was read": {str(n + 1): text for n, text in enumerate(notes)}} if notes else {}),
            **facts.tables(),
        },
    )
    return write_report(folder / "report.html", page)


def _title(case: Projections) -> str:
    n, kind = case.geometry.views, "slice" if case.grid.is_2d else "volume"
    beam = "parallel-beam" if case.geometry.beam == "parallel" else "fan-beam" if case.geometry.shape[0] == 1 else "cone-beam"
    return f"A {kind} from {n} {beam} view{'s' * (n != 1)}"


def _table(case: Projections, held_out: Projections | None, solved: Rivals, metrics: Metrics) -> dict[str, dict[str, float | str]]:
    rows: dict[str, dict[str, float | str]] = {}
    for name, volume in solved.items():
        row: dict[str, float | str] = {COLUMNS.get(k, k): v for k, v in metrics.get(name, {}).items()}
        row["misfit of the views used, %"] = 100 * case.misfit(volume)[1]
        if held_out is not None:
            rms, share = held_out.misfit(volume)
            row |= {"held-out error": rms, "held-out error, %": 100 * share}
        rows[name] = row
    return rows


def _best_other(ours: str, quantity: str, rows: Mapping[str, Mapping[str, float | str]], pick=min) -> tuple[str, float] | None:  # type: ignore[no-untyped-def]
    others = {name: float(row[quantity]) for name, row in rows.items() if name != ours and quantity in row}
    return pick(others.items(), key=lambda item: item[1]) if others else None


def _verdict(case: Projections, held_out: Projections | None, ours: str, seconds: float | None, table: Mapping[str, Mapping[str, float | str]],
             metrics: Metrics) -> str:
    arc = describe(case.geometry, case.grid)["angles"].partition("arc of ")[2].partition(",")[0]
    text = f"{case.geometry.views} views over {arc} degrees became {_shape(case.grid)} voxels of {_spacing(case.grid)} mm"
    text += f" in {duration(seconds)}." if seconds else "."
    if held_out is not None:
        error, other = float(table[ours]["held-out error, %"]), _best_other(ours, "held-out error, %", table)
        text += f" The {held_out.geometry.views} views that were held out are predicted to {error:.2g} %"
        text += f", by {other[0]} to {other[1]:.2g} %." if other else "."
    score, rival = metrics.get(ours, {}).get("psnr"), _best_other(ours, "psnr", metrics, max)
    if score is not None:
        text += f" Against the truth it reaches {score:.2f} dB" + (f", {rival[0]} {rival[1]:.2f} dB." if rival else ".")
    elif held_out is None:
        text += " Neither truth nor held-out views: a small misfit alone says little. Hold some out: --use ::2."
    return text


def _tiles(case: Projections, held_out: Projections | None, ours: str, seconds: float | None, table: Mapping[str, Mapping[str, float | str]],
           metrics: Metrics) -> list[tuple[str, str, str]]:
    said = describe(case.geometry, case.grid)
    tiles = [("Views in", str(case.geometry.views), said["beam"]), ("Voxels out", f"{_spacing(case.grid)} mm", _shape(case.grid))]
    tiles.append(("Misfit", f"{float(table[ours]['misfit of the views used, %']):.2g} %", "of the views used"))
    if held_out is not None:
        tiles.append(("Held-out error", f"{float(table[ours]['held-out error, %']):.2g} %", f"of {held_out.geometry.views} views not used"))
    if "psnr" in metrics.get(ours, {}):
        tiles.append(("PSNR", f"{metrics[ours]['psnr']:.2f} dB", "against the truth"))
    return [*tiles, ("Time", duration(seconds), "")] if seconds else tiles


def _shape(grid: Grid) -> str:
    return " × ".join(map(str, grid.shape[: 2 if grid.is_2d else 3]))


def _spacing(grid: Grid) -> str:
    mm = grid.spacing[: 2 if grid.is_2d else 3]
    return f"{mm[0]:.3g}" if np.ptp(mm) < 1e-3 * mm.max() else " × ".join(f"{s:.3g}" for s in mm)


def _planes(grid: Grid, centre: np.ndarray) -> list[pictures.Plane]:
    """Three planes of a volume; the one plane of a slice."""
    planes = pictures.planes(grid, centre)
    return [max(planes, key=lambda p: p.points.shape[0] * p.points.shape[1])] if grid.is_2d else planes


def _figures(case: Projections, held_out: Projections | None, ours: str, solved: Rivals, truth: Volume | None,
             uncertainty: Volume | None) -> list[Figure]:
    result = solved[ours]
    planes = _planes(case.grid, pictures.brightness_centre(truth or result))
    figures = [_reconstruction(case, planes, {**solved, **({"truth": truth} if truth else {})}, truth or result)]
    if truth is not None:
        figures.append(_errors(case, planes, solved, truth))
    if uncertainty is not None:
        figures.append(_uncertainty(case, planes, uncertainty))
    figures.append(_explained("Projections: measured and explained", SINOGRAM, case, result))
    if held_out is not None:
        figures.append(_explained("Views that were held out", HELD, held_out, result))
    drawings = [(im, pictures.png(np.asarray(im))) for im in draw(case.geometry, case.grid)]
    rows = [("", [Picture(src, f"geometry, drawing {n + 1}", None, letters=False) for n, (_, src) in enumerate(drawings)])]
    return [*figures, Figure("Where the rays ran", DRAWING, [""] * len(drawings), rows)]


def _shown(case: Projections, volume: Volume) -> Volume:
    return told_in(volume, "HU" if case.water else "mm-1", case.water)


def _reconstruction(case: Projections, planes: Sequence[pictures.Plane], volumes: Rivals, reference: Volume) -> Figure:
    told = {name: _shown(case, v) for name, v in volumes.items()}
    low, high = pictures.window(_shown(case, reference))
    low = max(low, -1000.0) if case.water else low
    unit = "HU" if case.water else "1/mm"
    shown = f"{number(round(low))} to {number(round(high))} HU".replace("-", "−") if case.water else f"{number(low)} to {number(high)} 1/mm"
    rows = [(p.name, [_gray(pictures.read_plane(v, p), low, high, f"{p.name} plane of {name}", p) for name, v in told.items()]) for p in planes]
    return Figure(f"Reconstruction, in {unit}", PLACES.format(shown), list(told), rows)


def _errors(case: Projections, planes: Sequence[pictures.Plane], solved: Rivals, truth: Volume) -> Figure:
    factor, unit = (1000 / case.water, "HU") if case.water else (1.0, "1/mm")
    maps = {name: [factor * (pictures.read_plane(v, p) - pictures.read_plane(truth, p)) for p in planes] for name, v in solved.items()}
    top = _top(np.concatenate([m.ravel() for several in maps.values() for m in several]))
    rows = [(p.name, [_signed(several[n], top, f"{p.name} error of {name}") for name, several in maps.items()]) for n, p in enumerate(planes)]
    return Figure("Error against the truth", ERRORS, list(maps), rows, _bar(top, unit))


def _uncertainty(case: Projections, planes: Sequence[pictures.Plane], uncertainty: Volume) -> Figure:
    factor, unit = (1000 / case.water, "HU") if case.water else (1.0, "1/mm")
    maps = [factor * pictures.read_plane(uncertainty, p) for p in planes]
    top = _top(np.concatenate([m.ravel() for m in maps]))
    rows = [("", [_gray(m, 0.0, top, f"{p.name} plane of the standard deviation", p) for m, p in zip(maps, planes, strict=True)])]
    caption = f"Standard deviation that the method states for each voxel: black is 0, white {number(top)} {unit} and more."
    return Figure("Uncertainty", caption, [p.name for p in planes], rows)


def _explained(title: str, caption: str, case: Projections, volume: Volume) -> Figure:
    """Sinogram of the middle row, and of several rows one view as well: measured, predicted, difference."""
    predicted = case.projector().apply(volume.data[0].contiguous())
    measured = torch.where(case.weight > 0, case.data, torch.full_like(case.data, float("nan"))).numpy()
    views, rows, _ = measured.shape
    cuts = {f"row {rows // 2 + 1}" if rows > 1 else "sinogram": (slice(None), rows // 2)}
    if rows > 1:
        cuts[f"view {views // 2 + 1}"] = (views // 2, slice(None, None, -1))  # the detector's upper end above
    top = float(np.nanpercentile(measured, 99.8)) or 1.0
    errors = _top(measured - predicted.numpy())
    lines = []
    for name, cut in cuts.items():
        y, p = measured[cut], predicted.numpy()[cut]
        wide = max(1, round(y.shape[1] / (8 if name.startswith("view") else 2) / y.shape[0]))  # few rows would be a hair
        y, p = (np.repeat(part, wide, 0) for part in (y, p))
        lines.append((name, [_gray(y, 0, top, f"measured, {name}"), _gray(p, 0, top, f"predicted, {name}"),
                             _signed(y - p, errors, f"residual, {name}")]))
    share = 100 * case.misfit(volume)[1]
    return Figure(f"{title} ({share:.2g} %)", caption, ["measured", "predicted", "measured minus predicted"], lines, _bar(errors, "(line integral)"))


def _top(values: np.ndarray) -> float:
    return float(np.nanpercentile(np.abs(values), 99.5)) or 1e-12


def _bar(top: float, unit: str) -> tuple[str, str, str, str]:
    return pictures.colour_bar(), f"−{number(top)}", f"+{number(top)}", unit


def _gray(values: np.ndarray, low: float, high: float, alt: str, plane: pictures.Plane | None = None) -> Picture:
    return Picture(pictures.png(pictures.gray(values, low, high), 256), alt, plane, letters=plane is not None)


def _signed(values: np.ndarray, top: float, alt: str) -> Picture:
    return Picture(pictures.png(pictures.diverging(values, top), 256), alt, None, letters=False)
