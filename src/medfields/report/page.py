"""The report page: one HTML file that holds everything it shows and opens without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..io import atomic
from .pictures import Plane

HIGHER_IS_BETTER = ("psnr", "ssim", "ncc", "dice", "snr")
LOWER_IS_BETTER = ("rmse", "mae", "mse", "residual", "error", "misfit", "tre ", "folds")
COMPARED = ("The three planes meet in one point. Move the pointer across a picture, or the slider below: left of the line are the acquired voxels, "
            "right of it the result.")


@dataclass(frozen=True)
class Picture:
    """One image, with anatomical letters and a scale bar if it shows a plane of the patient."""

    src: str  # data: URL
    alt: str
    plane: Plane | None
    letters: bool = True


@dataclass(frozen=True)
class Compare:
    """Two pictures of the same plane under one slider."""

    before: Picture
    after: Picture
    before_label: str
    after_label: str


@dataclass(frozen=True)
class Figure:
    """Pictures in rows (planes) and columns (volumes); `bar` is the colour bar: data: URL, lowest, highest value, unit."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture]]]
    bar: tuple[str, str, str, str] | None = None


@dataclass(frozen=True)
class Chart:
    """Curves of one stage: SVG and the names of its lines in the order of their colours."""

    title: str
    svg: Markup
    names: Sequence[str]


@dataclass(frozen=True)
class Page:
    """What a report says. Empty parts are left out of the page."""

    title: str
    kicker: str = ""
    verdict: str = ""
    tiles: Sequence[tuple[str, str, str]] = ()  # label, value, note
    compare: Sequence[Compare] = ()
    compare_caption: str = COMPARED
    figures: Sequence[Figure] = ()
    table: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)  # method -> quantity -> value
    ours: str = ""  # the row of the table that this run made
    table_note: str = ""
    charts: Sequence[Chart] = ()
    card: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # heading -> name -> value


def write_report(path: Path, page: Page) -> Path:
    """Render a page to one HTML file, whole or not at all.

    Raises:
        OutputError: if the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("medfields", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("template.html").render(page=page, table=table_cells(page.table))
    with atomic(path) as part:
        Path(part).write_text(text, encoding="utf-8")
    return path


@dataclass(frozen=True)
class Cell:
    """One cell of the table: what it shows, and whether it is the best of its column."""

    text: str
    best: bool


def table_cells(table: Mapping[str, Mapping[str, float | str]]) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Column names and rows of formatted cells; the best value of a column is marked where its name says what is better."""
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    best = {}
    for column in columns:
        numbers = [v for row in table.values() if isinstance(v := row.get(column), (int, float)) and math.isfinite(v)]
        if len(numbers) > 1 and (pick := _better(column)) is not None:
            best[column] = pick(numbers)
    digits = {
        c: _digits([abs(v) for row in table.values() if isinstance(v := row.get(c), (int, float)) and math.isfinite(v)]) for c in columns
    }
    rows = [(name, [_cell(row.get(c, "–"), digits[c], best.get(c)) for c in columns]) for name, row in table.items()]
    return columns, rows


def _digits(sizes: Sequence[float]) -> int:
    """Decimals that suit all numbers of a column."""
    top = max(sizes, default=0.0)
    return 0 if top >= 1000 else 1 if top >= 100 else 2 if top >= 1 else 4


def _cell(value: float | str, digits: int, best: float | None) -> Cell:
    return Cell(value, False) if isinstance(value, str) else Cell(f"{value:.{digits}f}", value == best)


def _better(column: str):  # type: ignore[no-untyped-def]  # max, min or None
    name = column.lower()
    return max if any(k in name for k in HIGHER_IS_BETTER) else min if any(k in name for k in LOWER_IS_BETTER) else None


def number(value: float | str) -> str:
    """A figure with the digits that mean something: 123, 26.58, 0.9312, 1.2e-05."""
    if isinstance(value, str):
        return value
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0 or isinstance(value, int):
        return str(int(value))
    return f"{value:.{_digits([size])}f}" if size >= 1e-3 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 41 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
