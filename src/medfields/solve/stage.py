"""Stage: one numbered, named, replayable part of a run, with its own random numbers, clock and file."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import Diverged
from . import checkpoint
from .events import REPORT_SECONDS, Event

if TYPE_CHECKING:
    from .run import Run


def seed_of(*facts: object) -> int:
    """A 63-bit seed that depends on every fact, the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, facts)).encode()).digest()[:8], "little") >> 1


class Watch:
    """The latest value of each loss term, and the first step at which it was not finite, kept on the device.

    Looking at a number makes the host wait for the device, so nothing is looked at until somebody asks.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._values = self._first = torch.zeros(0)

    def see(self, step: int, names: tuple[str, ...], values: Tensor) -> None:
        """Remember the terms of a step. `first` holds steps as floats, exact up to 16 million in float32."""
        if names != self._names:
            self.read()
            self._names, self._first = names, torch.full_like(values, math.inf)
        self._values = values
        self._first = torch.where(torch.isfinite(values), self._first, self._first.clamp(max=step))

    def read(self) -> dict[str, float]:
        """The latest values. One transfer from the device.

        Raises:
            NotFinite: if any term was not, at any step seen so far.
        """
        values, first = torch.stack([self._values, self._first]).tolist()
        if min(first, default=math.inf) < math.inf:
            worst = min(range(len(first)), key=first.__getitem__)
            raise NotFinite(int(first[worst]), f"the term '{self._names[worst]}'")
        return dict(zip(self._names, values, strict=True))

    def values(self) -> dict[str, float]:
        """The latest values, finite or not."""
        return dict(zip(self._names, self._values.tolist(), strict=True))


class NotFinite(Exception):
    """Something stopped being finite; a stage turns it into `Diverged`, which also knows where and what to do."""

    def __init__(self, step: int, what: str):
        super().__init__(step, what)
        self.step, self.what = step, what


class Stage:
    """Made by `Run`; holds what `fit` and `steps` share.

    Attributes:
        rng: the stage's generator, on the run's device.
        start: the step to go on with.
        done: whether the stage was finished in an earlier life; then its result has been loaded.
        kept, header: tensors and facts of the checkpoint it goes on from; empty if it starts.
    """

    def __init__(self, run: Run, number: int, name: str, steps: int, module: nn.Module | None, path: Path | None, seconds: float | None):
        self.run, self.number, self.name, self.steps, self.path = run, number, name, steps, path
        self.tracked = None if module is None else checkpoint.Tracked(module)
        self.seed = seed_of(run.seed, number, name)
        self.rng = torch.Generator(run.device).manual_seed(self.seed)
        self.fingerprint: dict[str, str] = {}
        self.kept: dict[str, Tensor] = {}
        self.header: dict[str, Any] = {}
        self.start, self.done, self._earlier = 0, False, 0.0
        left = math.inf if run.seconds is None else run.seconds - run.used
        self.limit = max(0.0, min(math.inf if seconds is None else seconds, left))
        self._begin = self._saved = time.monotonic()
        self._reported, self._first = -math.inf, 0.0
        self._interval = run.checkpoint_seconds
        self._last_good = "none"

    def load(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Take up the state of an earlier life."""
        self.kept, self.header = tensors, header
        self.start, self.done, self._earlier = header["step"], header["done"], header["seconds"]
        self.limit = math.inf if header["limit"] is None else header["limit"]
        self.run.advance(header["used"])
        if self.tracked is not None:
            self.tracked.load(checkpoint.under(tensors, "model."))
        self.rng.set_state(tensors["rng.stage"])
        for name, state in checkpoint.under(tensors, "generator.").items():
            self.run.generator(name).set_state(state)
        self._last_good = f"{self.path} at step {self.start}"

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, torch's global generators belong to the stage; outside they are as if the stage had never run.

        So it makes no difference to the code after a stage whether it was computed or reloaded.
        """
        cuda = self.run.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.run.device] if cuda else []):
            torch.manual_seed(self.seed)
            if "rng.cpu" in self.kept:
                torch.set_rng_state(self.kept["rng.cpu"])
            if cuda and "rng.cuda" in self.kept:
                torch.cuda.set_rng_state(self.kept["rng.cuda"], self.run.device)
            self._begin = self._saved = time.monotonic()
            self._first = self.progress(self.start)
            try:
                yield
            except NotFinite as found:
                hint = f"lower the learning rate; last good checkpoint: {self._last_good}"
                raise Diverged(f"stage '{self.name}' diverged at step {found.step}: {found.what} is not finite", hint) from None

    @property
    def seconds(self) -> float:
        """Spent in this stage, earlier lives included."""
        return self._earlier + time.monotonic() - self._begin

    def progress(self, step: int) -> float:
        """The larger of the shares of steps and of time that are used up, in [0, 1]."""
        share = step / self.steps
        return share if self.limit == math.inf else min(1.0, max(share, self.seconds / self.limit if self.limit else 1.0))

    def report_due(self) -> bool:
        return time.monotonic() - self._reported >= REPORT_SECONDS

    def checkpoint_due(self) -> bool:
        return self.path is not None and self.tracked is not None and time.monotonic() - self._saved >= self._interval

    def tell(self, step: int, terms: Mapping[str, float], done: bool = False) -> None:
        """Report the state after `step` steps."""
        self._reported = time.monotonic()
        share, first, spent = self.progress(step), self._first, time.monotonic() - self._begin
        eta = 0.0 if done else spent * (1 - share) / (share - first) if share > first else math.nan
        for listener in self.run.listeners:
            listener.event(Event(self.name, step, self.steps, self.seconds, dict(terms), eta, done))

    def save(self, step: int, tensors: Mapping[str, Tensor] = {}, facts: Mapping[str, Any] = {}, done: bool = False) -> None:
        """Write the state after `step` steps, with what the caller adds. Nothing without a run folder."""
        if self.path is None or self.tracked is None:
            return
        begin = time.monotonic()
        rng = {"rng.stage": self.rng.get_state(), "rng.cpu": torch.get_rng_state()}
        if self.run.device.type == "cuda":
            rng["rng.cuda"] = torch.cuda.get_rng_state(self.run.device)
        rng |= {f"generator.{name}": g.get_state() for name, g in self.run.generators.items()}
        header = {"stage": self.name, "step": step, "done": done, "seconds": self.seconds, "used": self.run.used,
                  "limit": None if self.limit == math.inf else self.limit, "fingerprint": self.fingerprint, **facts}
        checkpoint.write(self.path, {**checkpoint.named(self.tracked.tensors(), "model."), **rng, **tensors}, header)
        self._saved = time.monotonic()
        # A slow disk or a large model must not cost more than a twentieth of the time.
        self._interval = max(self.run.checkpoint_seconds, 20 * (self._saved - begin)) if self.run.checkpoint_seconds else 0.0
        self._last_good = f"{self.path} at step {step}"

    def finish(self, step: int, stopped: str, terms: Mapping[str, float], facts: Mapping[str, Any] = {}) -> None:
        """Write the result of the stage and report it. `stopped` says why it ended: "steps", "time", "held out" or "left"."""
        self.save(step, facts={"summary": self.close(step, stopped, terms, facts)}, done=True)

    def close(self, step: int, stopped: str, terms: Mapping[str, float], facts: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Report the end of the stage, and return its summary."""
        summary = {"stage": self.name, "step": step, "steps": self.steps, "seconds": self.seconds, "stopped": stopped,
                   "terms": dict(terms), **facts}
        self.run.stages.append(summary)
        self.tell(step, terms, done=True)
        return summary
