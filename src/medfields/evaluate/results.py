"""RESULTS.md from the rows of the bench, and from nothing else: `python -m medfields.evaluate.results [--check]`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import FileError
from .families import FAMILIES, IMAGE_SCORES, PLAIN, Score, asked, scores, tasks
from .rows import CHECKOUT, ROWS, latest, read_rows

PAGE = CHECKOUT / "RESULTS.md"
Rows = list[dict[str, Any]]
AGAIN = "run: .venv/bin/python -m medfields.evaluate.results"

HEAD = """# Results

Written by `medfields bench` from `benchmarks/results/*.jsonl`; do not edit. Every run is a process of its own on real data; methods get the
same measurements, and nothing of the truth. Mean ± standard deviation over seeds; time is the whole solve, memory the peak of the process.
**Bold** is the best of a table; *classical* methods learn nothing. Only rows whose hyper-parameters and scans are today's are shown; the last
column says how many there are.
"""


def page(rows: Path = ROWS) -> str:
    """The text of RESULTS.md: one chapter for each family of tasks that has a `family.jsonl` in the folder."""
    files = {name: rows / f"{name}.jsonl" for name in FAMILIES}
    return "\n".join([HEAD, *(section(name, read_rows(file)) for name, file in files.items() if file.exists())])


def section(name: str, every: Iterable[dict[str, Any]]) -> str:
    """The chapter of a family."""
    told, rows = asked(name), latest(row for row in every if is_current(name, row))
    parts = [f"{told.HEAD.strip()}\n"]
    if not rows:
        parts.append("Nothing has been measured yet.\n")
    else:
        parts.append(_machines(rows))
        parts.append(_lines(told.requirements(rows)))
    for task in tasks(name).TASKS.values():
        measured = [r for r in rows if r["task"] == task.name]
        if measured:
            parts.append(_table(name, task, measured))
    return "\n".join(parts)


def is_current(name: str, row: dict[str, Any]) -> bool:
    """Whether a run with today's hyper-parameters, on today's scan, is what made the row; not if the task or the method is no more."""
    own, task, method = tasks(name), row["task"], row["method"]
    if task not in own.TASKS or (method not in plugins.entries() and not Path(method).is_file()):
        return False
    config = json.loads(json.dumps(own.configured(method, row["variant"]).config()))
    return bool(row["config"] == config and row["scan"] == own.scan_name(own.TASKS[task]))


def _machines(rows: Rows) -> str:
    kinds = sorted({f"{r['machine']['cpu']}, {r['machine']['threads']} threads, torch {r['machine']['torch']}" for r in rows})
    return "Measured on " + "; ".join(kinds) + ".\n"


def groups(rows: Rows, by: Score = IMAGE_SCORES[0]) -> dict[tuple[str, str], Rows]:
    """(method, variant) -> its rows, best mean score first."""
    found: dict[tuple[str, str], Rows] = {}
    for r in rows:
        found.setdefault((r["method"], r["variant"]), []).append(r)
    return dict(sorted(found.items(), key=lambda item: mean(item[1], by.key), reverse=by.larger))


def mean(rows: Rows, key: str) -> float:
    """Of a number that every row has."""
    return statistics.fmean(float(r[key]) for r in rows)


def _spread(rows: Rows, key: str, digits: int) -> str:
    deviation = statistics.stdev(float(r[key]) for r in rows) if len(rows) > 1 else 0.0
    return f"{mean(rows, key):.{digits}f} ± {deviation:.{digits}f}"


def _table(name: str, task: Any, rows: Rows) -> str:
    extra, shown_as = asked(name).columns(task), scores(task)
    head = ["method", *(f"{s.title}, {s.unit}" if s.unit else s.title for s in shown_as), *extra, "time, s", "memory, MB", "seeds"]
    lines = [f"### {task.title} (`{task.name}`)\n", _row(head), _row(["---"] + ["--:"] * (len(head) - 1))]
    ranked = groups(rows, shown_as[0])
    best = next((key for key in ranked if key[1] == PLAIN), None)
    for (method, variant), own in ranked.items():
        shown = f"{method}{f' ({variant})' if variant else ''}"
        if (method, variant) == best:
            shown = f"**{shown}**"
        if own[0]["fidelity"] == "classical":
            shown += " *classical*"
        if method == plugins.DEFAULT.get(name):
            shown += " (the default)"
        cells = [shown, *(_spread(own, s.key, s.digits) for s in shown_as), *(tell(own) for tell in extra.values())]
        lines.append(_row([*cells, f"{mean(own, 'seconds'):.1f}", f"{max(float(r['peak_mb']) for r in own):.0f}", str(len(own))]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(requirements: Sequence[Sequence[str]]) -> str:
    """What was asked for, line by line, beside what was measured."""
    lines = ["### What was asked for\n", _row(["requirement", "asked", "measured", ""]), _row(["---", "--:", "--:", "---"])]
    return "\n".join([*lines, *map(_row, requirements)]) + "\n"


def write(rows: Path = ROWS, path: Path = PAGE) -> None:
    """Write RESULTS.md again."""
    path.write_text(page(rows), encoding="utf-8")


def check(rows: Path = ROWS, path: Path = PAGE) -> None:
    """Raise FileError unless RESULTS.md is what the rows say."""
    if not path.exists() or path.read_text(encoding="utf-8") != page(rows):
        raise FileError(f"{path.name} is not what the rows in {rows} say", AGAIN)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
    else:
        write()
