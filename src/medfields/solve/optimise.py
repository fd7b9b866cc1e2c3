"""Adam for fields: dense for the weights of networks, lazy for tables with more rows than a step touches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ..errors import InputError
from ..kernels.adam import adam_
from ..kernels.dispatch import backend

LAZY_ROWS = 2**14  # a parameter [rows, F] with at least as many rows is a table


class Adam(torch.optim.Optimizer):
    """p <- p - lr mhat / (sqrt(vhat) + eps), Kingma and Ba 2015, with decoupled weight decay.

    Tables, that is parameters [rows, F] with at least `LAZY_ROWS` rows such as those of a multi-resolution grid, are updated lazily:
    an entry whose gradient is exactly zero keeps its value and moments, see `kernels.adam`. Where every entry has a gradient this is
    Adam; where few have, a step costs what these few cost. `lazy=False` makes all parameters dense.

    The state of a parameter is `step`, `exp_avg` and `exp_avg_sq`, as in torch.optim.Adam, and complete: a fit that loads it goes on to
    the same bytes.

    Raises:
        InputError: if a rate, a beta, eps or the decay is out of range.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0, lazy: bool = True):
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= b < 1 for b in betas):
            raise InputError(f"Adam with lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}",
                             "rates, eps and decay are not negative, betas are at least 0 and below 1")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "lazy": lazy})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, if given, is called first with gradients on and its value returned."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            dense: list[Tensor] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                lazy = group["lazy"] and p.ndim == 2 and len(p) >= LAZY_ROWS
                if p.is_contiguous() and (lazy or backend(p) == "numba"):
                    state["step"] += 1
                    adam_(p, p.grad, state["exp_avg"], state["exp_avg_sq"], int(state["step"]), group["lr"], group["betas"], group["eps"],
                          group["weight_decay"], lazy)
                else:
                    dense.append(p)
            self._dense(dense, group)
        return loss

    def _dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """What our kernel does not know, by torch: all parameters at once, which a GPU wants."""
        if not params:
            return
        states = [self.state[p] for p in params]
        adamw(params, [p.grad for p in params if p.grad is not None], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [],
              [s["step"] for s in states], amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
              weight_decay=group["weight_decay"], eps=group["eps"], maximize=False)
