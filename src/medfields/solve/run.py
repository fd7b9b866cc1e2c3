"""Run: the engine that is handed to every method. Stages, budgets, random numbers, checkpoints, reports."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import InputError, OutputError
from ..io import write_volume
from ..kernels import mlp
from ..space import Volume
from . import checkpoint, record
from .events import JsonLines, Listener
from .fit import Fit, Optimiser, make_optimiser, naming_memory, training_only
from .problem import Problem
from .schedule import Schedule, rates
from .stage import Stage, Watch, seed_of

P = TypeVar("P", bound=Problem)


class Run:
    """Everything a computation needs besides its mathematics.

    A run is a sequence of stages, numbered in the order of the calls to `fit` and `steps`. With a folder, each stage is
    kept in `NN-name.ckpt`: start the same program again after it was killed, and finished stages are reloaded, a
    half-done one goes on, and the result has the same bytes. The Python between the stages simply runs again. A stage
    whose inputs, arguments or code have changed starts again, with every later one, and a note says why.
    A stage with a budget in seconds depends on the machine; it resumes, but it cannot give the same bytes twice.

    Creating a run seeds torch's global generator, so that networks made afterwards are the same every time.

    Args:
        folder: where log.jsonl, env.json, config.toml, summary.json and checkpoints go; None keeps everything in memory.
        seed: of all random numbers.
        device: "auto" is CUDA where there is one, else the CPU.
        seconds: budget of the whole run, earlier lives included; None is without end. Schedules follow it.
        listeners: who hears events and notes; a log.jsonl in the folder is always written.
        resume: False forgets what the folder holds.
        config: resolved hyper-parameters, kept in config.toml and part of every stage's fingerprint.
        data: identity of the input files, part of every stage's fingerprint.
        checkpoint_seconds: time between checkpoints of a running stage; 0 is after every step.
        shown: is handed the volumes on the way to the result, with their names.

    Raises:
        InputError: for an unknown device or a budget that is not positive.
        OutputError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path | None = None, *, seed: int = 0, device: str = "auto", seconds: float | None = None,
                 listeners: Sequence[Listener] = (), resume: bool = True, config: Mapping[str, Any] | None = None, data: str = "",
                 checkpoint_seconds: float = 10.0, shown: Callable[[str, Volume], None] | None = None):
        if seconds is not None and not seconds > 0:
            raise InputError(f"a budget must be more than 0 seconds, got {seconds:g}")
        self.folder = None if folder is None else Path(folder)
        self.seed, self.seconds, self.checkpoint_seconds, self.shown = seed, seconds, checkpoint_seconds, shown
        self.device = _device(device)
        self.listeners = list(listeners)
        self.generators: dict[str, torch.Generator] = {}
        self.stages: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self._config, self._data = dict(config or {}), data
        self._born = time.monotonic()
        self._number, self._identity = 0, ""
        self._active: Stage | None = None
        self._reported: dict[str, float | Tensor] = {}
        torch.manual_seed(seed)
        if self.folder is not None:
            self._prepare(self.folder, resume)

    def _prepare(self, folder: Path, resume: bool) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".medfields-*"):  # what a killed run was just writing
                shutil.rmtree(left)
            if not resume:
                (folder / "log.jsonl").unlink(missing_ok=True)
                self._forget_from(1)
        except OSError as error:
            raise OutputError(f"cannot use the run folder {folder}: {error.strerror}", "choose another folder") from error
        self.listeners.append(JsonLines(folder / "log.jsonl"))
        if resume:
            record.keep_precision(folder / "env.json")
        record.write_json(folder / "env.json", record.environment(self.device))
        if self._config:
            record.write_text(folder / "config.toml", record.to_toml(self._config))

    @property
    def used(self) -> float:
        """Seconds since the run was created, plus those of its earlier lives."""
        return time.monotonic() - self._born

    def advance(self, used: float) -> None:
        """Set the clock to what an earlier life had used, unless it is already later."""
        self._born = min(self._born, time.monotonic() - used)

    def fit(self, problem: P, *, steps: int, lr: float | Mapping[str, float], name: str, optimiser: Optimiser = "adam",
            schedule: Schedule = "constant", final: float = 0.1, seconds: float | None = None, patience: int | None = None,
            every: int = 50) -> P:
        """Minimise the sum of the problem's losses; the problem is changed in place and returned.

        Args:
            problem: moved to the run's device.
            steps: of the optimiser, at most.
            lr: learning rate, or rates by prefix of the parameter name (the longest that fits counts; parameters that
                none fits stay as they are).
            name: of the stage.
            optimiser: "adam", "adamw", "adamax", "sgd", or a callable of parameter groups.
            schedule: of the learning rate, down to `final` times `lr` at the end.
            final: see `schedule`; 0 <= final <= 1.
            seconds: budget of this stage; with one, progress is the larger share of steps and of time.
            patience: stop when the problem's `held_out` error has not fallen for so many looks, and go back to its best.
            every: steps between two looks.

        Raises:
            InputError: for arguments that cannot be meant.
            Diverged: if a term or a weight stops being finite; it names stage, step and term.
            OutOfMemory: it names what to lower.
        """
        for what, value in {"steps": steps, "every": every, "patience": patience, "seconds": seconds}.items():
            if value is not None and value <= 0:
                raise InputError(f"stage '{name}': {what} must be positive, got {value:g}")
        if not 0 <= final <= 1 or (schedule == "exponential" and final == 0):
            raise InputError(f"stage '{name}': final must be in [0, 1], and above 0 where the schedule is exponential, got {final:g}")
        problem.to(self.device)
        table = rates(problem, lr)
        engine = make_optimiser(optimiser, problem, table)
        arguments = {"steps": steps, "rates": table, "optimiser": f"{type(engine).__name__} {engine.defaults}", "schedule": schedule,
                     "final": final, "seconds": seconds, "patience": patience, "every": every}
        stage = self._stage(name, steps, problem, arguments, seconds)
        if not stage.done:
            with self._inside(stage), training_only(problem, table), naming_memory(problem, name):
                Fit(stage, problem, engine, schedule, final, patience, every).run()
        return problem

    def steps(self, n: int, name: str, state: nn.Module | None = None) -> Iterator[int]:
        """Count 0 .. n-1 for a loop that finds its own way (conjugate gradients, PDHG), with progress, budget and resume.

        All that the loop carries from step to step must live in parameters and buffers of `state`; without a state the
        loop starts again. Report values with `report`. A loop that leaves with `break` repeats the steps after its last
        checkpoint when it is resumed, and breaks there again.
        """
        if n < 1:
            raise InputError(f"stage '{name}' needs at least one step, got {n}")
        if state is not None:
            state.to(self.device)
        stage = self._stage(name, n, state, {"steps": n}, None)
        if stage.done:
            return
        with self._inside(stage):
            watch, self._reported, step = Watch(), {}, stage.start
            while step < n and stage.progress(step) < 1:
                try:
                    yield step
                except GeneratorExit:  # by a break, or by an error on its way up: not to be told apart, so the stage is not marked as done
                    stage.close(step, "left", watch.values())
                    raise
                step += 1
                if self._reported:
                    values = [torch.as_tensor(v, dtype=torch.float64).detach().reshape(()).cpu() for v in self._reported.values()]
                    watch.see(step - 1, tuple(self._reported), torch.stack(values))
                    self._reported = {}
                if stage.report_due():
                    stage.tell(step, watch.read())
                if stage.checkpoint_due() and step < n:
                    watch.read()
                    stage.save(step)
            stage.finish(step, "steps" if step == n else "time", watch.read())

    def report(self, **terms: float | Tensor) -> None:
        """The values of the current step of `steps`, for the progress bar and the log; they must be finite."""
        self._reported = terms

    def generator(self, name: str) -> torch.Generator:
        """A generator on the run's device that depends on the seed and the name; the same one at every call."""
        if name not in self.generators:
            self.generators[name] = torch.Generator(self.device).manual_seed(seed_of(self.seed, "generator", name))
        return self.generators[name]

    def note(self, **facts: Any) -> None:
        """Facts for the log, the summary and the report, for instance a weight that was chosen; JSON-able, arrays or tensors."""
        facts = {key: value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value for key, value in facts.items()}
        self.notes |= facts
        self._tell(facts)

    def keep(self, name: str, volume: Volume) -> None:
        """A volume on the way to the result, for the report and for who cannot wait: NN-name.nii.gz below `record.STAGES` in the folder.

        NN is the number of the stage that it came out of.
        """
        if self.folder is not None:
            write_volume(volume, self.folder / record.STAGES / f"{self._number:02d}-{name}.nii.gz")
        if self.shown is not None:
            self.shown(name, volume)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """End the run: write summary.json and let the listeners go. Returns the summary: stages, notes, seconds."""
        summary = {"seconds": self.used, "seed": self.seed, "device": str(self.device), "stages": self.stages, "notes": self.notes, **facts}
        if self.folder is not None:
            record.write_json(self.folder / "summary.json", summary)
        self._close()
        return summary

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _stage(self, name: str, steps: int, module: nn.Module | None, arguments: Mapping[str, Any], seconds: float | None) -> Stage:
        """Open the next stage, and take up what an earlier life left of it."""
        if self._active is not None:
            raise InputError(f"stage '{name}' begins inside stage '{self._active.name}'", "stages follow one another")
        self._number += 1
        path = None if self.folder is None else self.folder / f"{self._number:02d}-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.ckpt"
        stage = Stage(self, self._number, name, steps, module, path, seconds)
        if stage.limit == 0:
            self._tell({"message": f"{name}: no time left"})
        if path is None:
            return stage
        arguments = {**arguments, "name": name, "seed": self.seed, "run seconds": self.seconds, "device": self.device.type, "precision": mlp.policy()}
        stage.fingerprint = checkpoint.fingerprint(self._identity, module, arguments, self._config, self._data, __version__)
        self._identity = checkpoint.digest(stage.fingerprint)
        found = checkpoint.read(path) if module is not None else None
        changed = [] if found is None else [key for key, value in stage.fingerprint.items() if found[1]["fingerprint"].get(key) != value]
        if found is not None and not changed:
            stage.load(*found)
            self._tell({"message": f"{name}: reloaded" if stage.done else f"{name}: going on at step {stage.start} of {steps}"})
            if stage.done:
                self.stages.append(found[1]["summary"])
            return stage
        if changed:
            self._tell({"message": f"{name}: starting again, because of other {', '.join(changed)}"})
        # A loop that was left before its first checkpoint has none, and does the same again: what came after it still holds.
        if module is not None and any(path.parent.glob(f"{self._number:02d}-*.ckpt")):
            self._forget_from(self._number)
        return stage

    def _forget_from(self, number: int) -> None:
        """Delete the checkpoints of this and all later stages: none of them can be true any more."""
        assert self.folder is not None
        for path in self.folder.glob("*-*.ckpt"):
            if int(path.name.partition("-")[0]) >= number:
                path.unlink()

    @contextmanager
    def _inside(self, stage: Stage) -> Iterator[None]:
        self._active = stage
        try:
            with stage.active():
                yield
        except Exception:
            self._close()
            raise
        finally:
            self._active = None

    def _tell(self, facts: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.note(facts)

    def _close(self) -> None:
        for listener in self.listeners:
            listener.close()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no device '{name}'", "auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here", "use --device cpu")
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
