"""Samples: measured values and where they were measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Values at places, along one shared leading axis.

    Args:
        at: what the operator needs to know, for points a [N, D] tensor of mm; or a dict of tensors with leading axis N.
        value: [N, C] measured values.
        weight: [N] or [N, C] non-negative confidence; None means equal.
    """

    at: Any
    value: Float[Tensor, "N C"]
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Tensor | slice) -> Samples:
        at = {k: v[index] for k, v in self.at.items()} if isinstance(self.at, dict) else self.at[index]
        return Samples(at, self.value[index], None if self.weight is None else self.weight[index])

    def draw(self, n: int, generator: torch.Generator) -> Samples:
        """n random samples, with replacement."""
        return self[torch.randint(len(self), (n,), generator=generator, device=generator.device)]

    def to(self, device: torch.device | str) -> Samples:
        at = {k: v.to(device) for k, v in self.at.items()} if isinstance(self.at, dict) else self.at.to(device)
        return replace(self, at=at, value=self.value.to(device), weight=None if self.weight is None else self.weight.to(device))
