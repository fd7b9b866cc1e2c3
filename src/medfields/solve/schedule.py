"""Learning rates over the progress of a stage, by name of the parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import nn

from ..errors import InputError

Schedule = Literal["constant", "cosine", "exponential"]


def factor(schedule: Schedule, final: float, progress: float) -> float:
    """What the learning rate is multiplied with at `progress` in [0, 1]; both falling schedules end at `final`.

    cosine: final + (1 - final) (1 + cos(pi p)) / 2;   exponential: final^p.
    """
    if schedule == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    return final**progress if schedule == "exponential" else 1.0


def rates(module: nn.Module, lr: float | Mapping[str, float]) -> dict[str, float]:
    """The learning rate of each trainable parameter by its name.

    Args:
        module: whose parameters are meant.
        lr: one rate for all, or rates by prefix of the parameter's name: the longest prefix that fits counts, "" fits
            every name. Parameters that no prefix fits are left out: they stay as they are.

    Raises:
        InputError: for a rate that is not a positive number, a prefix that fits no parameter, or nothing to train.
    """
    table = dict(lr) if isinstance(lr, Mapping) else {"": lr}
    for prefix, rate in table.items():
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"a learning rate must be a positive number, got {rate}{f' for {prefix!r}' if prefix else ''}")
    names = [name for name, _ in module.named_parameters()]
    for prefix in table:
        if not any(name.startswith(prefix) for name in names):
            raise InputError(f"the learning rate for '{prefix}' fits no parameter", "parameters: " + ", ".join(names))
    found = {}
    for name, p in module.named_parameters():
        fitting = [prefix for prefix in table if name.startswith(prefix)]
        if p.requires_grad and fitting:
            found[name] = table[max(fitting, key=len)]
    if not found:
        raise InputError(f"{type(module).__name__} has nothing to train", "every parameter is frozen or has no learning rate")
    return found
