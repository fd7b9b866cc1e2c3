"""ct --check: what was understood of projections, as a table and a drawing, before a long run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..cases import Projections
from ..io import atomic
from ..report.geometry import PAPER, describe, draw


def show(case: Projections, held_out: Projections | None, notes: list[str], path: Path) -> None:
    """Print the table and write the drawing to `path` (.png)."""
    table = Table(title=case.name, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(case, held_out).items():
        table.add_row(name, Text(value))
    for text in notes:
        table.add_row("note", Text(text), style="yellow")
    Console().print(table)
    pictures = draw(case.geometry, case.grid)
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    with atomic(path) as part:
        sheet.save(part, "PNG")
    print(path)


def rows(case: Projections, held_out: Projections | None) -> dict[str, str]:
    """Geometry and data, in words."""
    data = case.clean[case.weight > 0]
    low, middle, high = np.quantile(data.numpy()[:: max(1, len(data) // 1_000_000)], [0.01, 0.5, 0.999])
    table = describe(case.geometry, case.grid)
    if held_out is not None:
        table["views"] += f"; {held_out.geometry.views} more are held out"
    table["line integrals"] = f"{low:.3g} to {high:.3g}, median {middle:.3g}"
    bad = int((case.weight == 0).sum())
    table["masked pixels"] = f"{bad} of {case.weight.numel()}"
    table["attenuation"] = f"typically {case.level:.3g}/mm; water {f'{case.water:g}/mm' if case.water else 'unknown (no HU)'}"
    if case.photons:
        table["photons"] = f"{case.photons:.3g} in a pixel of the open beam"
    if case.spectrum is not None:
        table["spectrum"] = f"{case.spectrum.energies[0]:g} to {case.spectrum.energies[-1]:g} keV, mean {case.spectrum.mean:.3g} keV"
    if case.metal is not None:
        table["metal"] = f"{int((case.metal.data > 0.5).sum())} voxels"
    return table
