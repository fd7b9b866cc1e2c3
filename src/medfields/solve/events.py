"""What a run tells while it works: events and notes, and who listens to them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ..errors import OutputError

REPORT_SECONDS = 0.1  # events are at least this far apart, except the first and the last of a stage


@dataclass(frozen=True)
class Event:
    """Where a stage is.

    Args:
        stage: its name.
        step, steps: steps taken, and asked for.
        seconds: spent in this stage, earlier lives of the run included.
        terms: the named losses of the latest step.
        eta: seconds this stage still needs; NaN if unknown.
        done: whether this is the last event of the stage.
    """

    stage: str
    step: int
    steps: int
    seconds: float
    terms: Mapping[str, float]
    eta: float = math.nan
    done: bool = False


class Listener:
    """Hears everything a run tells. Listeners change nothing about a run."""

    def event(self, event: Event) -> None:
        """A step was reported."""

    def note(self, facts: Mapping[str, Any]) -> None:
        """Something was decided or found."""

    def close(self) -> None:
        """The run is over or was interrupted: clean up. More may follow."""


class JsonLines(Listener):
    """One JSON object a line: events, and notes under "note". A file that exists is continued."""

    def __init__(self, path: Path):
        self.path = path
        with _writing(path):
            _drop_torn_line(path)
            path.touch()

    def event(self, event: Event) -> None:
        row = asdict(event)
        row["terms"] = {name: _number(v) for name, v in event.terms.items()}
        row["seconds"], row["eta"] = round(event.seconds, 3), _number(event.eta)
        self._write(row)

    def note(self, facts: Mapping[str, Any]) -> None:
        self._write({"note": facts})

    def _write(self, row: Mapping[str, Any]) -> None:
        # Opened for each line, at most ten times a second: nothing is buffered when the run is killed.
        with _writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", "make room or choose another run folder") from error


def _number(x: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return x if math.isfinite(x) else None


def _drop_torn_line(path: Path) -> None:
    """A killed run may leave half a line; the next one must not be glued to it."""
    if path.exists():
        text = path.read_bytes()
        if text and not text.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)


@dataclass
class Curve:
    """The history of one stage: `steps[i]`, `seconds[i]` and `terms[name][i]` (NaN where a term was not reported)."""

    stage: str
    total: int
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        # A resumed run repeats the steps after its last checkpoint: the repetition replaces what was there.
        while self.steps and self.steps[-1] >= row["step"]:
            del self.steps[-1], self.seconds[-1]
            for values in self.terms.values():
                del values[-1]
        n = len(self.steps)
        self.steps.append(row["step"])
        self.seconds.append(row["seconds"])
        for name in {**self.terms, **row["terms"]}:
            value = row["terms"].get(name)
            self.terms.setdefault(name, [math.nan] * n).append(math.nan if value is None else value)


@dataclass
class Curves:
    """A `log.jsonl` read back."""

    stages: dict[str, Curve] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> Curves:
        """Read a log, also one that is being written; a torn last line is skipped. A missing file gives no curves."""
        curves = cls()
        text = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
        for line in text.split("\n")[:-1]:
            row = json.loads(line)
            if "note" in row:
                curves.notes.append(row["note"])
            else:
                curves.stages.setdefault(row["stage"], Curve(row["stage"], row["steps"])).add(row)
        return curves


class Terminal(Listener):
    """A progress bar with the time left and the value of every term, for stages that last longer than two seconds.

    Where nobody watches (a log file, a batch job) it prints a line now and then instead.
    """

    def __init__(self, console: Console | None = None, *, patience: float = 2.0, every: float = 10.0):
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._patience, self._every = patience, every
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._printed = -math.inf

    def event(self, event: Event) -> None:
        if event.done:
            self._clear()
            if event.seconds > self._patience:
                self._console.print(f"{event.stage}: {event.step} steps in {_clock(event.seconds)}  {_terms(event.terms)}", markup=False)
        elif event.seconds > self._patience:
            if self._console.is_terminal:
                self._draw(event)
            elif time.monotonic() - self._printed >= self._every:
                self._printed = time.monotonic()
                left = "" if math.isnan(event.eta) else f", {_clock(event.eta)} left"
                self._console.print(f"{event.stage}: step {event.step}/{event.steps}{left}  {_terms(event.terms)}", markup=False)

    def _draw(self, event: Event) -> None:
        if self._progress is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                       TextColumn("{task.fields[left]} left"), TextColumn("{task.fields[terms]}", markup=False))
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task(event.stage, total=event.steps, left="", terms="")
            self._progress.start()
        self._progress.update(self._task, completed=event.step, left=_clock(event.eta), terms=_terms(event.terms))

    def note(self, facts: Mapping[str, Any]) -> None:
        if "message" in facts:
            self._console.print(str(facts["message"]), markup=False)

    def _clear(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._printed = None, -math.inf

    def close(self) -> None:
        self._clear()


def _clock(seconds: float) -> str:
    """4.2 s, 3:07 or 1:02:09."""
    if math.isnan(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def _terms(terms: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in terms.items())


def emit(listeners: Sequence[Listener], event: Event) -> None:
    """Tell everyone."""
    for listener in listeners:
        listener.event(event)
