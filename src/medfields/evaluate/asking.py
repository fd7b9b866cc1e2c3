"""How requirements are judged from rows."""

from __future__ import annotations

import statistics
from typing import Any

from .families import PLAIN

Rows = list[dict[str, Any]]


def measured(rows: Rows, task: str, method: str, variant: str = PLAIN) -> Rows:
    """The rows of a method on a task."""
    return [r for r in rows if (r["task"], r["method"], r["variant"]) == (task, method, variant)]


def mean_of(rows: Rows, key: str, task: str, method: str, variant: str = PLAIN) -> float | None:
    """The mean over seeds of a number in the rows; None if nothing was measured."""
    own = measured(rows, task, method, variant)
    return statistics.fmean(float(r[key]) for r in own) if own else None


def mean_psnr(rows: Rows, task: str, method: str, variant: str = PLAIN) -> float | None:
    """dB."""
    return mean_of(rows, "psnr", task, method, variant)


def best_classical(rows: Rows, task: str) -> tuple[float | None, str]:
    """The highest mean PSNR of a classical method on a task, however it was configured, and its name."""
    rivals = {(r["method"], r["variant"]) for r in rows if r["task"] == task and r["fidelity"] == "classical"}
    return max(((mean_psnr(rows, task, m, v) or 0.0, f"{m} {v}".strip()) for m, v in rivals), default=(None, ""))


def gained(what: str, asked: float, ours: float | None, theirs: float | None) -> list[str]:
    """[what, asked, measured, verdict] of a difference in dB."""
    gain = None if ours is None or theirs is None else ours - theirs
    told = "not measured" if gain is None else f"{gain:+.2f} dB"
    return [what, f">= {asked:+g} dB", told, verdict(gain is not None and gain >= asked)]


def in_time(rows: Rows, task: str, method: str, most: float) -> list[str]:
    """The same of the slowest run's seconds."""
    seconds = [float(r["seconds"]) for r in measured(rows, task, method)]
    told = f"{max(seconds):.1f} s" if seconds else "not measured"
    return [f"time of {method}, `{task}`, slowest seed", f"<= {most:g} s", told, verdict(bool(seconds) and max(seconds) <= most)]


def verdict(held: bool) -> str:
    """In bold if not."""
    return "yes" if held else "**no**"
