"""The report of an `ultrasound` run: planes of the result, frames beside the result at their places, and the path of the probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cases import Sweep
from ..space import Volume
from . import pictures
from .page import Chart, Figure, Page, Picture, duration, number, write_report
from .probe_path import describe, draw
from .run_folder import RunFolder

SHOWN = 4  # frames
PLANES = "Through the middle of what is bright, in the frame of the tracking: x, y and z are its axes, and not the patient's."
FRAMES = ("A frame as it was recorded, the probe above; the result at the same place; and the difference, blue where the result is too dark, red "
          "where it is too bright. Speckle changes from frame to frame: a result that shows tissue alone leaves it in the difference.")
PATH = "Outlines of frames, thick at the probe; green is the first, orange the last. The grey box is that of the result."
# where the axes of the world point in `pictures.planes`
NAMES = {"axial": "across z: x to the left, y up", "coronal": "across y: x to the left, z up", "sagittal": "across x: y to the left, z up"}


@dataclass(frozen=True)
class Likeness:
    """How well a result explains a frame: correlation, and rms of the difference in grey values."""

    correlation: float
    rms: float


def ultrasound_page(case: Sweep, result: Volume, folder: Path, *, notes: Sequence[str] = ()) -> Path:
    """Write `report.html` into the run folder.

    Args:
        case: the sweep.
        result: the volume, one channel.
        folder: of the run; configuration, versions, times and curves are read from there.
        notes: what was understood, assumed or doubted when the file was read.

    Raises:
        FileError: if there is no such folder.
        OutputError: if the page cannot be written.
    """
    facts = RunFolder.read(folder)
    seen = [case.resliced(result, n) for n in range(len(case.frames))]
    alike = [likeness(case.frames[n][case.mask], seen[n]) for n in range(len(seen))]
    page = Page(
        title=f"One volume from a sweep of {len(case.frames)} frames", kicker=f"medfields ultrasound · {facts.method}",
        verdict=_verdict(case, alike, facts.seconds), tiles=_tiles(case, alike, facts.seconds),
        figures=[_planes(result), _frames(case, seen, alike), _path(case)], charts=[*_sweep(case, alike), *facts.charts()],
        card=facts.card(), config=facts.config,
        facts={"Sweep": describe(case), **({"Noted when it was read": {str(n + 1): text for n, text in enumerate(notes)}} if notes else {}),
               **facts.tables()})
    return write_report(folder / "report.html", page)


def likeness(frame: Tensor, shown: Tensor) -> Likeness:
    """Of the counted pixels of a frame and what the result shows there; a constant one is like nothing."""
    both = torch.stack([frame, shown]).double()
    spread = both.std(1)
    correlation = float(torch.corrcoef(both)[0, 1]) if spread.min() > 0 else 0.0
    return Likeness(correlation, float((both[1] - both[0]).square().mean().sqrt()))


def _verdict(case: Sweep, alike: Sequence[Likeness], seconds: float | None) -> str:
    text = f"{len(case.frames)} frames became {_shape(case)} voxels of {case.grid.spacing[0]:.3g} mm"
    text += f" in {duration(seconds)}. " if seconds else ". "
    return text + (f"At the places of the frames the result correlates with them by {np.median([a.correlation for a in alike]):.3f} (median). "
                   "All of them were used, so this says that poses and calibration agree, and nothing of what lies between frames.")


def _tiles(case: Sweep, alike: Sequence[Likeness], seconds: float | None) -> list[tuple[str, str, str]]:
    gaps = case.gaps()
    tiles = [("Frames in", str(len(case.frames)), f"pixels of {case.pixel:.2g} mm"),
             ("Gaps", f"{np.median(gaps):.2g} mm" if len(gaps) else "none", f"{gaps.max():.2g} mm at most" if len(gaps) else ""),
             ("Voxels out", f"{case.grid.spacing[0]:.3g} mm", _shape(case)),
             ("Correlation", f"{np.median([a.correlation for a in alike]):.3f}", "with the frames, median")]
    return [*tiles, ("Time", duration(seconds), "")] if seconds else tiles


def _shape(case: Sweep) -> str:
    return " × ".join(map(str, case.grid.shape))


def _planes(result: Volume) -> Figure:
    window = pictures.window(result)
    shown = pictures.planes(result.grid, pictures.brightness_centre(result))
    row = [Picture(pictures.png(pictures.gray(pictures.read_plane(result, p), *window), 256), NAMES[p.name], p, letters=False) for p in shown]
    return Figure("Three planes", PLANES, [NAMES[p.name] for p in shown], [("", row)])


def _frames(case: Sweep, seen: Sequence[Tensor], alike: Sequence[Likeness]) -> Figure:
    """Frames spread over the sweep."""
    data = case.frames[:, case.mask]
    low, high = float(data.min()), float(data.max())
    at = case.mask.nonzero()
    (u0, v0), (u1, v1) = at.amin(0).tolist(), at.amax(0).tolist()
    rows = []
    for n in np.unique(np.linspace(0, len(seen) - 1, SHOWN).round().astype(int)):
        measured, there = (case.picture(values)[v0 : v1 + 1, u0 : u1 + 1] for values in (case.frames[n][case.mask], seen[n]))
        images = (pictures.gray(measured, low, high), pictures.gray(there, low, high), pictures.diverging(there - measured, 0.5 * (high - low)))
        name = f"frame {n + 1}: {alike[n].correlation:.3f}"
        rows.append((name, [Picture(pictures.png(image, 256), f"{name}, {what}", None, letters=False)
                            for image, what in zip(images, ("recorded", "result", "difference"), strict=True)]))
    top = number(0.5 * (high - low))
    return Figure("Frames and the result", FRAMES, ["recorded", "result", "difference"], rows, (pictures.colour_bar(), f"−{top}", f"+{top}", "grey"))


def _path(case: Sweep) -> Figure:
    drawings = [Picture(pictures.png(np.asarray(image)), f"path of the probe, drawing {n + 1}", None, letters=False) for n, image in
                enumerate(draw(case))]
    return Figure("The path of the probe", PATH, [""] * len(drawings), [("", drawings)])


def _sweep(case: Sweep, alike: Sequence[Likeness]) -> list[Chart]:
    """Gaps and likeness along the sweep."""
    gaps = {"gap to the next frame, mm": [(float(n), float(g)) for n, g in enumerate(case.gaps())]}
    same = {"correlation with the result": [(float(n), a.correlation) for n, a in enumerate(alike)]}
    return [Chart(title, pictures.curves(series, log=False), list(series)) for title, series in (("gaps along the sweep", gaps),
                                                                                               ("likeness along the sweep", same)) if series]
