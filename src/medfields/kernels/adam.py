"""Adam in one pass over a parameter; lazily, on the entries of a large table that have a gradient, the others untouched."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .dispatch import backend


@torch.no_grad()
def adam_(p: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], m: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"], step: int,
          lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0, lazy: bool = False) -> None:
    """m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  p <- (1 - lr wd) p - lr mhat / (sqrt(vhat) + eps),  in place.

    With mhat = m / (1 - b1^step) and vhat = v / (1 - b2^step), Kingma and Ba 2015, algorithm 1, and decoupled decay as Loshchilov and
    Hutter 2019. If lazy, entries with g = 0 keep value and moments, which is the rule of Müller et al. 2022, section 4, and differs from
    Adam: there the moments of such an entry would decay and the entry would drift on with the old momentum.

    Args:
        p, m, v: contiguous; changed in place.
        grad: the gradient; lazily, a block of 64 entries that is all zero is only read.
        step: number of this step, from 1; it counts all steps, not those of an entry.
    """
    b1, b2 = betas
    rate, root, keep = lr / (1 - b1**step), (1 - b2**step) ** -0.5, 1 - lr * weight_decay
    if backend(p, grad, m, v) == "numba":
        from .adam_numba import update
        update(p, grad, m, v, (rate, b1, 1 - b1, b2, 1 - b2, root, eps, keep), lazy)
        return
    new_m, new_v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
    new_p = keep * p - rate * new_m / (new_v.sqrt() * root + eps)
    for before, after in ((p, new_p), (m, new_m), (v, new_v)):
        before.copy_(torch.where(grad != 0, after, before) if lazy else after)
