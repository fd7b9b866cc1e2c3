"""Adam in one pass over parameter, gradient and moments, skipping what has no gradient; the CPU kernel of `kernels.adam`."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from .dispatch import jit, use_threads

BLOCK = 64
SHARE = 2**14  # entries of one piece of work


@jit()
def _update_block(p, g, m, v, rate, beta1, gain1, beta2, gain2, root, eps, keep):  # type: ignore[no-untyped-def]
    for i in range(len(p)):
        moved = g[i] != np.float32(0)
        a = beta1 * m[i] + gain1 * g[i]
        b = beta2 * v[i] + gain2 * (g[i] * g[i])
        q = keep * p[i] - rate * a / (np.sqrt(b) * root + eps)
        m[i] = a if moved else m[i]
        v[i] = b if moved else v[i]
        p[i] = q if moved else p[i]


@jit()
def _any(bits):  # type: ignore[no-untyped-def]
    found = np.int32(0)
    for i in range(len(bits)):
        found |= bits[i]
    return found != 0


@jit(parallel=True)
def _update(bits, p, g, m, v, rate, beta1, gain1, beta2, gain2, root, eps, keep):  # type: ignore[no-untyped-def]
    size = len(p)
    for share in numba.prange((size + SHARE - 1) // SHARE):
        for a in range(share * SHARE, min(size, (share + 1) * SHARE), BLOCK):
            b = min(a + BLOCK, size)
            if _any(bits[a:b]):
                _update_block(p[a:b], g[a:b], m[a:b], v[a:b], rate, beta1, gain1, beta2, gain2, root, eps, keep)


def update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: tuple[float, ...]) -> None:
    """`kernels.adam.adam_lazy_`, in place; numbers are rate, b1, 1 - b1, b2, 1 - b2, 1 / sqrt(1 - b2^step), eps and 1 - lr wd."""
    use_threads()
    flat = [t.view(-1).numpy() for t in (p, g.contiguous(), m, v)]
    _update(flat[1].view(np.int32), *flat, *(np.float32(x) for x in numbers))
