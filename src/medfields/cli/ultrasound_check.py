"""ultrasound --check: what was understood of a sweep, as a table and a drawing, before a long run."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..cases import Sweep
from ..io import atomic
from ..report.probe_path import PAPER, describe, draw


def show(case: Sweep, notes: list[str], path: Path) -> None:
    """Print the table and write the drawing to `path` (.png)."""
    table = Table(title=case.name, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in describe(case).items():
        table.add_row(name, Text(value))
    for text in notes:
        table.add_row("note", Text(text), style="yellow")
    Console().print(table)
    pictures = draw(case)
    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), PAPER)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    with atomic(path) as part:
        sheet.save(part, "PNG")
    print(path)
