"""The one loop: descend the gradient of a problem's losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, OutOfMemory, UnknownName, says_memory
from . import checkpoint
from .optimise import Adam
from .problem import Problem
from .schedule import Schedule, factor
from .stage import NotFinite, Stage, Watch

Optimiser = str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
OPTIMISERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adam": Adam,
    # Fused: one pass over the weights. On a CPU with 3 million of them 5 ms instead of 18 ms (foreach) or 41 ms.
    "adamw": lambda groups: torch.optim.AdamW(groups, fused=True),
    "adamax": torch.optim.Adamax,
    "sgd": lambda groups: torch.optim.SGD(groups, fused=True),
}


def make_optimiser(optimiser: Optimiser, problem: nn.Module, rates: Mapping[str, float]) -> torch.optim.Optimizer:
    """An optimiser by name, or by a callable of parameter groups, with one group for each learning rate.

    Raises:
        UnknownName: if there is no optimiser of that name.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in problem.named_parameters():
        if name in rates:
            groups.setdefault(rates[name], []).append(p)
    if isinstance(optimiser, str) and optimiser not in OPTIMISERS:
        raise UnknownName("optimiser", optimiser, OPTIMISERS)
    make = OPTIMISERS[optimiser] if isinstance(optimiser, str) else optimiser
    return make([{"params": members, "lr": rate, "initial_lr": rate} for rate, members in groups.items()])


@contextmanager
def training_only(problem: nn.Module, names: Mapping[str, float]) -> Iterator[None]:
    """Inside, gradients are computed for the named parameters alone."""
    others = [p for name, p in problem.named_parameters() if p.requires_grad and name not in names]
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


@contextmanager
def naming_memory(problem: Problem, stage: str) -> Iterator[None]:
    """Inside, running out of memory becomes an error that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if says_memory(error):
            raise OutOfMemory(f"stage '{stage}' ran out of memory", f"lower {problem.memory}") from error
        raise


class HeldOut:
    """Watches the error on the measurements that are kept aside, and remembers the best state."""

    def __init__(self, problem: Problem, stage: Stage, patience: int, every: int):
        self.problem, self.stage, self.patience, self.every = problem, stage, patience, every
        facts = stage.header.get("held_out") or {}
        self.best: float = facts.get("best", math.inf)
        self.best_step: int = facts.get("best_step", 0)
        self.seen: int = facts.get("seen", -1)
        self.bad: int = facts.get("bad", 0)
        self.latest: float = facts.get("latest", math.nan)
        self.state = {name: t.to(stage.run.device) for name, t in checkpoint.under(stage.kept, "best.").items()}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps; empty before the first look, since JSON has no infinity."""
        if self.seen < 0:
            return {}
        return {"best": self.best, "best_step": self.best_step, "seen": self.seen, "bad": self.bad, "latest": self.latest}

    @torch.no_grad()
    def look(self, step: int) -> bool:
        """Measure the error after `step` steps; True once it has not fallen for `patience` looks in a row."""
        if step == self.seen:
            return False
        modes = {module: module.training for module in self.problem.modules()}
        self.problem.eval()  # no jitter or dropout: two looks at one state give one number
        value = self.problem.held_out()
        for module, mode in modes.items():
            module.training = mode
        if value is None:
            return False
        self.seen, self.latest = step, float(value)
        if not math.isfinite(self.latest):
            raise NotFinite(step - 1, "the error on the held-out measurements")
        if self.latest < self.best:
            assert self.stage.tracked is not None
            self.best, self.best_step, self.bad, self.state = self.latest, step, 0, self.stage.tracked.clone()
        else:
            self.bad += 1
        return self.bad >= self.patience


class Fit:
    """One stage of training, from wherever its checkpoint stands to its end."""

    def __init__(self, stage: Stage, problem: Problem, optimiser: torch.optim.Optimizer, schedule: Schedule, final: float,
                 patience: int | None, every: int):
        self.stage, self.problem, self.optimiser, self.schedule, self.final = stage, problem, optimiser, schedule, final
        self.watch = Watch()
        self.held_out = HeldOut(problem, stage, patience, every) if patience else None
        numbers = stage.header.get("optimiser") or {}
        checkpoint.load_optimiser_state(optimiser, checkpoint.under(stage.kept, "optimiser."), numbers)

    def run(self) -> None:
        stage, held_out = self.stage, self.held_out
        step, stopped = stage.start, "steps"
        while step < stage.steps:
            progress = stage.progress(step)
            if progress >= 1:
                stopped = "time"
                break
            self._step(step, progress)
            step += 1
            if held_out and step % held_out.every == 0 and held_out.look(step):
                stopped = "held out"
                break
            if stage.report_due():
                stage.tell(step, self._terms())
            if stage.checkpoint_due() and step < stage.steps:
                self._save(step)
        self._finish(step, stopped)

    def _step(self, step: int, progress: float) -> None:
        scale = factor(self.schedule, self.final, progress)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * scale
        self.problem.before_step(progress)
        self.optimiser.zero_grad(set_to_none=True)
        terms = self.problem.losses(self.problem.batch(self.stage.rng), progress)
        values = torch.stack([self._scalar(name, value) for name, value in terms.items()])
        values.sum().backward()
        self.optimiser.step()
        self.watch.see(step, tuple(terms), values.detach())

    def _scalar(self, name: str, value: Tensor) -> Tensor:
        if value.numel() != 1:
            raise InputError(f"the loss '{name}' of {type(self.problem).__name__} must be one number, got shape {tuple(value.shape)}")
        return value.reshape(())

    def _terms(self) -> dict[str, float]:
        held = {"held out": self.held_out.latest} if self.held_out and self.held_out.seen >= 0 else {}
        return {**self.watch.read(), **held}

    def _check(self, step: int) -> dict[str, float]:
        """Values of the terms, once they and all weights are known to be finite: nothing else may enter a checkpoint."""
        terms = self._terms()
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        if not torch.stack([torch.isfinite(p.detach()).all() for p in trained]).all():
            names = {id(p): name for name, p in self.problem.named_parameters()}
            bad = next(names[id(p)] for p in trained if not torch.isfinite(p.detach()).all())
            raise NotFinite(step - 1, f"the parameter '{bad}'")
        return terms

    def _save(self, step: int) -> None:
        self._check(step)
        tensors, numbers = checkpoint.optimiser_state(self.optimiser)
        tensors = checkpoint.named(tensors, "optimiser.")
        facts: dict[str, Any] = {"optimiser": numbers}
        if self.held_out:
            tensors |= checkpoint.named(self.held_out.state, "best.")
            facts["held_out"] = self.held_out.facts()
        self.stage.save(step, tensors, facts)

    def _finish(self, step: int, stopped: str) -> None:
        terms, facts = self._check(step), {}
        if self.held_out and step > 0:
            self.held_out.look(step)
            terms = self._terms()
            if self.held_out.state:
                assert self.stage.tracked is not None
                self.stage.tracked.load(self.held_out.state)
                facts = {"held_out": self.held_out.best, "best_step": self.held_out.best_step}
        self.optimiser.zero_grad(set_to_none=True)
        self.stage.finish(step, stopped, terms, facts)
