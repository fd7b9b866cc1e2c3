"""Lazy Adam: one step on the entries of a large table that have a gradient, the others untouched."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .dispatch import backend


@torch.no_grad()
def adam_lazy_(p: Float[Tensor, "rows F"], grad: Float[Tensor, "some F"], m: Float[Tensor, "rows F"], v: Float[Tensor, "rows F"],
               step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0,
               rows: Int[Tensor, "some"] | None = None) -> None:
    """Where g != 0:  m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  p <- (1 - lr wd) p - lr mhat / (sqrt(vhat) + eps),  in place.

    With mhat = m / (1 - b1^step) and vhat = v / (1 - b2^step), Kingma and Ba 2015, algorithm 1, and decoupled decay as Loshchilov and
    Hutter 2019. Entries with g = 0 keep value and moments, which is the rule of Müller et al. 2022, section 4, and differs from Adam:
    there the moments of such an entry would decay and the entry would drift on with the old momentum.

    Args:
        p, m, v: contiguous; changed in place.
        grad: the gradient, of all rows or, with `rows`, of these rows only.
        step: number of this step, from 1; it counts all steps, not those of an entry.
        rows: distinct rows that `grad` belongs to.
    """
    b1, b2 = betas
    rate, root, keep = lr / (1 - b1**step), (1 - b2**step) ** -0.5, 1 - lr * weight_decay
    if backend(p, grad, m, v) == "numba":
        from .adam_numba import update
        update(p, grad, m, v, (rate, b1, b2, root, eps, keep), rows)
        return
    moved = grad != 0
    old = (p, m, v) if rows is None else (p[rows], m[rows], v[rows])
    new_m = b1 * old[1] + (1 - b1) * grad
    new_v = b2 * old[2] + (1 - b2) * grad**2
    new_p = keep * old[0] - rate * new_m / (new_v.sqrt() * root + eps)
    for target, before, after in zip((p, m, v), old, (new_p, new_m, new_v), strict=True):
        kept = torch.where(moved, after, before)
        if rows is None:
            target.copy_(kept)
        else:
            target.index_copy_(0, rows, kept)
