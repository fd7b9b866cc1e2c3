"""Problem: what is minimised. Inverse: the stock problem, measurements of a field through an operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..losses import mse
from ..space import Samples


class Problem(nn.Module, ABC):
    """A sum of named losses over random batches; its parameters are what is sought.

    Measurements belong in buffers with `persistent=False` (or in `Measured`): they move with the problem to its device
    and stay out of the checkpoints. What changes while training and is not a parameter belongs in a buffer too: a run
    that was killed finds it again there, and nowhere else.
    """

    memory: ClassVar[str] = "the number of samples in a step"  # what to lower when memory runs out

    @abstractmethod
    def batch(self, rng: torch.Generator) -> Any:
        """The measurements, and random choices, of one step. Draw from `rng`, on its device."""

    @abstractmethod
    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Named scalars, already weighted, whose sum is minimised; `progress` runs from 0 to 1."""

    def held_out(self) -> Tensor | None:
        """A scalar error on measurements that are never trained on; None if there are none, then nothing stops early."""
        return None

    def before_step(self, progress: float) -> None:
        """Change what follows a schedule, for instance the level mask of a grid encoding."""


class Measured(nn.Module):
    """Samples inside a module: they move with it and never enter a checkpoint."""

    value: Tensor
    weight: Tensor | None

    def __init__(self, samples: Samples):
        super().__init__()
        self._keys = tuple(samples.at) if isinstance(samples.at, dict) else None
        for name, t in {"value": samples.value, "weight": samples.weight, **self._places(samples.at)}.items():
            self.register_buffer(name, t, persistent=False)

    @staticmethod
    def _places(at: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"at_{key}": t for key, t in at.items()} if isinstance(at, dict) else {"at": at}

    @property
    def samples(self) -> Samples:
        at = self.get_buffer("at") if self._keys is None else {key: self.get_buffer(f"at_{key}") for key in self._keys}
        return Samples(at, self.value, self.weight)

    def __len__(self) -> int:
        return len(self.value)

    def draw(self, n: int, rng: torch.Generator) -> Samples:
        """n random samples, with replacement; all of them, in order, if there are no more than n."""
        return self.samples if n >= len(self) else self.samples.draw(n, rng)


class Inverse(Problem):
    """min over field and operator of the mean of w |A(field) - y|^2.

    Args:
        field: a callable of mm, [*batch, D] -> [*batch, C].
        operator: what the scanner measures, (field, at) -> [n, C]; its own parameters are trained too.
        samples: where and what was measured.
        n: samples in a step; with n >= len(samples), every step takes them all.
        held_out: share of the measurements, in [0, 1), that is kept out of training to tell when to stop; the same ones
            in every run.

    Raises:
        InputError: for values that are not finite, or a share that leaves nothing on one side.
    """

    memory = "n, the number of samples in a step"
    field: Any  # as given: methods get their own type back from `run.fit(...).field`

    def __init__(self, field: nn.Module, operator: Callable[..., Tensor], samples: Samples, n: int, held_out: float = 0.0):
        super().__init__()
        if n < 1 or len(samples) == 0:
            raise InputError(f"a fit needs at least one sample and one in a step, got {len(samples)} samples and n = {n}")
        if not torch.isfinite(samples.value).all():
            raise InputError("the measurements contain NaN or infinite values", "mask or repair them first")
        self.field, self.operator, self.n = field, operator, n
        kept = round(held_out * len(samples))
        if not 0 <= held_out < 1 or (held_out > 0 and not 0 < kept < len(samples)):
            raise InputError(f"cannot hold out {held_out:g} of {len(samples)} measurements")
        order = torch.arange(len(samples))
        if kept:
            order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
        order = order.to(samples.value.device)
        self.train_on = Measured(samples[order[kept:]] if kept else samples)
        self.test_on = Measured(samples[order[:kept]]) if kept else None

    def batch(self, rng: torch.Generator) -> Any:
        return self.train_on.draw(self.n, rng)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        return {"data": mse(self.operator(self.field, batch.at), batch.value, batch.weight)}

    @torch.no_grad()
    def held_out(self) -> Tensor | None:
        if self.test_on is None:
            return None
        whole = self.test_on.samples
        parts = [self.operator(self.field, whole[slice(i, i + self.n)].at) for i in range(0, len(whole), self.n)]
        return mse(torch.cat(parts), whole.value, whole.weight)
