"""The rows of the bench: one line of JSON for each run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import FileError

_HERE = Path(__file__).resolve().parents[3]
CHECKOUT = _HERE if (_HERE / "pyproject.toml").exists() else Path.cwd()  # a wheel has no checkout: results go where the user is
ROWS = CHECKOUT / "benchmarks/results"  # one file of rows for each family of tasks


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a results file, oldest first; none if there is no file.

    Raises:
        FileError: if a line is not JSON.
    """
    if not path.exists():
        return []
    rows = []
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise FileError(f"line {n} of {path} is not a row: {error}", "remove the line") from error
    return rows


def latest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest row of each task, method, variant and seed."""
    return list({(r["task"], r["method"], r["variant"], r["seed"]): r for r in rows}.values())


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one line, in one write, so that a killed bench leaves whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(row) + "\n").encode())
