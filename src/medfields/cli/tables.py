"""Small tables: aligned for people, as .csv for programs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError


def check_table(output: str, inputs: Sequence[str]) -> None:
    """Before anything is computed: a table can be written there, and takes the place of nothing that is read.

    Raises:
        InputError: for another ending than .csv.
        OutputError: if it cannot be written, or is an input.
    """
    from ..io import check_writable
    from .work import spare

    if not output:
        return
    if Path(output).suffix != ".csv":
        raise InputError(f"the table is written as .csv, not as {Path(output).name}", "give -o table.csv")
    spare([Path(output)], inputs)
    check_writable(output)


def write_table(rows: Sequence[Mapping[str, object]], output: Path) -> None:
    """Rows with the same names as .csv, whole or not at all."""
    from ..io import atomic

    with atomic(output) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def aligned(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same names under a header, the first column to the left, the others to the right."""
    names = list(rows[0])
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(names))]
    lines = [[line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in cells]
    return "\n".join("  ".join(line).rstrip() for line in lines)
