"""The report of a `superres` run: thick slices before, the sharp volume after, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..cases import Stack, Stacks
from ..errors import InputError
from ..space import Volume
from . import pictures
from .page import Compare, Figure, Page, Picture, duration, number, write_report
from .run_folder import RunFolder

if TYPE_CHECKING:
    from ..solve import Run

COLUMNS = {"psnr": "PSNR, dB", "ssim": "SSIM", "nrmse": "NRMSE", "seconds": "time, s"}
THREE_PLANES = "All pictures share one intensity window. Acquired slices are shown as the blocks they are; R is the patient's right."
ERRORS = "Result minus truth, all on one scale: black is no error, blue too dark, red too bright."
BLOCKS = 720  # pixels: acquired voxels are drawn large enough to keep their edges
Metrics = Mapping[str, Mapping[str, float]]
WORDS = ("no", "one", "two", "three", "four", "five", "six")


def superres_page(
    case: Stacks,
    result: Volume,
    run: Run | Path,
    truth: Volume | None = None,
    rivals: Mapping[str, Volume] | None = None,
    metrics: Metrics | None = None,
) -> Path:
    """Write `report.html` into the run folder.

    Args:
        case: the stacks that went in.
        result: the volume that came out, one channel for each contrast, in the order of `case.contrasts`.
        run: the run, or its folder; configuration, versions, times and curves are read from there.
        truth: the sharp volume, where it is known: adds a column and the error maps.
        rivals: results of other methods by name: add columns, and rows of error maps.
        metrics: method -> quantity ("psnr", "ssim", "seconds", ...) -> value, the run's own method among them.

    Raises:
        InputError: if the run has no folder, or a volume has other channels than the result.
        OutputError: if the page cannot be written.
    """
    folder = run if isinstance(run, Path) else run.folder
    if folder is None:
        raise InputError("a run without a folder has no place for a report", "give the run a folder: Run('my.run')")
    rivals, metrics = dict(rivals or {}), dict(metrics or {})
    for name, volume in {**rivals, **({"truth": truth} if truth else {})}.items():
        if volume.channels != result.channels:
            raise InputError(f"'{name}' has {volume.channels} channels, the result has {result.channels}")
    facts = RunFolder.read(folder)
    ours = facts.method or "result"
    figures = []
    for channel, contrast in enumerate(case.contrasts):
        figures += _figures(case.only(contrast), contrast, channel, ours, result, truth, rivals)
    page = Page(
        title=f"One sharp volume from {_count(len(case.stacks), 'thick stack')}",
        kicker=f"medfields superres · {ours}",
        verdict=_verdict(case, ours, result, facts.seconds, metrics, truth is not None),
        tiles=_tiles(case, ours, result, facts.seconds, metrics),
        compare=_compare(case.only(case.contrasts[0]), ours, result),
        figures=figures,
        table={name: {COLUMNS.get(k, k): v for k, v in row.items()} for name, row in metrics.items()},
        ours=ours,
        table_note="All methods had the same stacks and the same acquisition model." if metrics else "",
        charts=facts.charts(),
        card=facts.card(),
        config=facts.config,
        facts={
            "Input": {s.name or f"stack {n + 1}": f"{_size(s.volume)}, {s.thickness:.3g} mm slices" for n, s in enumerate(case.stacks)},
            **facts.tables(),
        },
    )
    return write_report(folder / "report.html", page)


def _count(n: int, noun: str) -> str:
    return f"{WORDS[n] if n < len(WORDS) else n} {noun}{'s' * (n != 1)}"


def _size(volume: Volume) -> str:
    grid = volume.grid
    return f"{' × '.join(map(str, grid.shape))} voxels of {_spacing(volume)} mm"


def _spacing(volume: Volume) -> str:
    """The voxel size in mm: one number if it is the same along all axes."""
    mm = volume.grid.spacing
    return f"{mm[0]:.3g}" if np.ptp(mm) < 1e-3 * mm.max() else " × ".join(f"{s:.3g}" for s in mm)


def _thickness(case: Stacks) -> str:
    values = sorted({round(s.thickness, 2) for s in case.stacks})
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g}–{values[-1]:g}"


def _best_other(ours: str, metrics: Metrics) -> tuple[str, float] | None:
    others = {name: row["psnr"] for name, row in metrics.items() if name != ours and "psnr" in row}
    return max(others.items(), key=lambda item: item[1]) if others else None


def _verdict(case: Stacks, ours: str, result: Volume, seconds: float | None, metrics: Metrics, truth: bool) -> str:
    stacks = _count(len(case.stacks), "stack").capitalize()
    text = f"{stacks} of {_thickness(case)} mm slices became one volume of {_spacing(result)} mm voxels"
    text += f" in {duration(seconds)}." if seconds else "."
    score, other = metrics.get(ours, {}).get("psnr"), _best_other(ours, metrics)
    if score is not None and other is not None:
        gain = score - other[1]
        against = f"{abs(gain):.2f} dB {'above' if gain >= 0 else 'below'} {other[0]}, the best of the others here"
        text += f" Against the truth it reaches {score:.2f} dB, {against}."
    elif not truth:
        text += " No truth is known for these data: judge it against the acquired slices."
    return text


def _tiles(case: Stacks, ours: str, result: Volume, seconds: float | None, metrics: Metrics) -> list[tuple[str, str, str]]:
    row, other = metrics.get(ours, {}), _best_other(ours, metrics)
    tiles = [
        ("Slices in", f"{_thickness(case)} mm", _count(len(case.stacks), "stack")),
        ("Voxels out", f"{_spacing(result)} mm", " × ".join(map(str, result.grid.shape))),
    ]
    if "psnr" in row:
        gain = f"{row['psnr'] - other[1]:+.2f} dB".replace("-", "−") + f" against {other[0]}" if other else ""
        tiles.append(("PSNR", f"{row['psnr']:.2f} dB", gain))
    if "ssim" in row:
        tiles.append(("SSIM", number(row["ssim"]), ""))
    return [*tiles, ("Time", duration(seconds), "")] if seconds else tiles


def _compare(case: Stacks, ours: str, result: Volume) -> list[Compare]:
    """For each plane the stack that shows it worst, against the result, in the first contrast."""
    low, high = pictures.window(result)
    pairs = []
    for plane in pictures.planes(result.grid, pictures.brightness_centre(result)):
        stack = max(case.stacks, key=lambda s: _step_seen(s, plane))
        before = _picture(stack.volume, plane, 0, low, high, stack.name, nearest=True)
        pairs.append(Compare(before, _picture(result, plane, 0, low, high, ours), stack.name or "as acquired", ours))
    return pairs


def _step_seen(stack: Stack, plane: pictures.Plane) -> float:
    """mm between slices as seen in a plane; 0 where the plane is the slice plane itself."""
    edges = [plane.points[-1, 0] - plane.points[0, 0], plane.points[0, -1] - plane.points[0, 0]]
    unit = [e / max(float(np.linalg.norm(e)), 1e-9) for e in edges]
    return float(np.linalg.norm([stack.normal @ e for e in unit])) * float(stack.volume.grid.spacing[stack.axis])


def _picture(volume: Volume, plane: pictures.Plane, channel: int, low: float, high: float, what: str, nearest: bool = False) -> Picture:
    values = pictures.read_plane(volume, plane, channel, nearest)
    least = BLOCKS if nearest else 1  # the browser smooths what it enlarges, and must not smooth acquired blocks
    return Picture(pictures.png(pictures.gray(values, low, high), least), f"{plane.name} plane of {what}", plane)


def _figures(
    case: Stacks, contrast: str, channel: int, ours: str, result: Volume, truth: Volume | None, rivals: Mapping[str, Volume]
) -> list[Figure]:
    """The planes of every volume side by side, and, where the truth is known, of every error."""
    reference = truth or result
    low, high = pictures.window(reference, channel)
    planes = pictures.planes(result.grid, pictures.brightness_centre(reference, channel))
    solved = {**rivals, ours: result}
    shown = {**solved, **({"truth": truth} if truth else {})}
    rows = [
        (
            plane.name,
            [
                *(_picture(s.volume, plane, 0, low, high, s.name, nearest=True) for s in case.stacks),
                *(_picture(v, plane, channel, low, high, name) for name, v in shown.items()),
            ],
        )
        for plane in planes
    ]
    of = f" of {contrast}" if contrast else ""
    inputs = [f"{s.name or f'stack {n + 1}'}, as acquired" for n, s in enumerate(case.stacks)]
    figures = [Figure(f"Three planes{of}", THREE_PLANES, [*inputs, *shown], rows)]
    if truth is not None:
        errors = {
            name: [pictures.read_plane(v, p, channel) - pictures.read_plane(truth, p, channel) for p in planes]
            for name, v in solved.items()
        }
        top = float(np.nanpercentile(np.abs(np.concatenate([e.ravel() for maps in errors.values() for e in maps])), 99.5)) or 1.0
        error_rows = [
            (
                plane.name,
                [
                    Picture(
                        pictures.png(pictures.diverging(maps[n], top), BLOCKS // 2), f"{plane.name} error of {name}", plane, letters=False
                    )
                    for name, maps in errors.items()
                ],
            )
            for n, plane in enumerate(planes)
        ]
        figures.append(
            Figure(
                f"Error against the truth{of}",
                ERRORS,
                list(errors),
                error_rows,
                (pictures.colour_bar(), f"−{number(top)}", f"+{number(top)}", result.unit or "(image intensity)"),
            )
        )
    return figures
