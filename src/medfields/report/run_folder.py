"""What a run folder says, read back for its report."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import plugins
from ..card import Card
from ..errors import FileError
from ..solve.events import Curves
from .page import Chart, duration, number
from .pictures import curves


@dataclass(frozen=True)
class RunFolder:
    """config.toml, env.json, summary.json and log.jsonl; what is missing is empty."""

    config: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    log: Curves = field(default_factory=Curves)

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        """Read a run folder.

        Raises:
            FileError: if there is no such folder, or one of its files is damaged.
        """
        if not folder.is_dir():
            raise FileError(f"there is no run folder {folder}", "it lies beside the result and ends in .run")
        try:
            text = _text(folder / "config.toml")
            return cls(
                text,
                tomllib.loads(text),
                json.loads(_text(folder / "env.json") or "{}"),
                json.loads(_text(folder / "summary.json") or "{}"),
                Curves.read(folder / "log.jsonl"),
            )
        except (OSError, ValueError) as error:  # both TOML and JSON report damage as a ValueError
            raise FileError(f"the run folder {folder} is damaged: {error}") from error

    @property
    def method(self) -> str:
        """Its command-line name, also where the configuration gives a path."""
        given = str(self.settings.get("method", ""))
        return plugins.public_name(Path(given)) if given.endswith(".py") else given

    @property
    def seconds(self) -> float | None:
        """Seconds the stages took, all lives of the run together."""
        last = [curve.seconds[-1] for curve in self.log.stages.values() if curve.seconds]
        return float(self.summary.get("seconds", sum(last))) if last or "seconds" in self.summary else None

    def card(self) -> dict[str, str]:
        """The labelled parts of the method's card."""
        given = str(self.settings.get("method", ""))
        if not (given in plugins.entries() or (given.endswith(".py") and Path(given).is_file())):
            return {}
        entry = plugins.find(given)
        card = Card.parse(entry.doc)
        parts = {
            "Method": f"{entry.name}: {card.line}",
            "About": card.body,
            "Paper": entry.paper,
            "Fidelity": card.fidelity or entry.fidelity,
            "Deviations": card.deviations,
            "Licence": card.licence,
            "Use when": card.use_when,
        }
        return {name: text for name, text in parts.items() if text}

    def charts(self) -> list[Chart]:
        """One chart for each stage that reported at least two values."""
        charts = []
        for curve in self.log.stages.values():
            series = {name: list(zip(map(float, curve.steps), values, strict=True)) for name, values in curve.terms.items()}
            series = {name: points for name, points in series.items() if sum(y > 0 for _, y in points) > 1}
            if series:
                charts.append(Chart(f"{curve.stage}: {curve.steps[-1]} steps, {duration(curve.seconds[-1])}", curves(series), list(series)))
        return charts

    def tables(self) -> dict[str, dict[str, str]]:
        """Times, findings and versions, each as name -> text."""
        times = {
            curve.stage: f"{duration(curve.seconds[-1])}, {curve.steps[-1]} steps" for curve in self.log.stages.values() if curve.seconds
        }
        notes = {key: _say(value) for note in self.log.notes for key, value in note.items() if key != "message"}
        tables = {
            "Time": times,
            "Found during the run": notes,
            "Versions and machine": {k: _say(v) for k, v in self.env.items() if v != ""},
        }
        return {heading: rows for heading, rows in tables.items() if rows}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _say(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_say, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_say(v)}" for k, v in value.items())
    return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
