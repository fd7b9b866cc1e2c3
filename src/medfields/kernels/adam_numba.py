"""Adam in one pass over parameter, gradient and moments, lazily skipping what has no gradient; the CPU kernel of `kernels.adam`."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from .dispatch import jit, use_threads

BLOCK = 64
SHARE = 2**14  # entries of one piece of work


@jit()
def _update_block(p, g, m, v, rate, beta1, gain1, beta2, gain2, root, eps, keep, lazy):  # type: ignore[no-untyped-def]
    for i in range(len(p)):
        moved = g[i] != np.float32(0) or not lazy
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


@jit()
def _update_share(bits, p, g, m, v, rate, beta1, gain1, beta2, gain2, root, eps, keep, lazy):  # type: ignore[no-untyped-def]
    for a in range(0, len(p), BLOCK):
        b = min(a + BLOCK, len(p))
        if not lazy or _any(bits[a:b]):
            _update_block(p[a:b], g[a:b], m[a:b], v[a:b], rate, beta1, gain1, beta2, gain2, root, eps, keep, lazy)


@jit(parallel=True)
def _update(bits, p, g, m, v, rate, beta1, gain1, beta2, gain2, root, eps, keep, lazy):  # type: ignore[no-untyped-def]
    for share in numba.prange((len(p) + SHARE - 1) // SHARE):
        a, b = share * SHARE, min(len(p), (share + 1) * SHARE)
        _update_share(bits[a:b], p[a:b], g[a:b], m[a:b], v[a:b], rate, beta1, gain1, beta2, gain2, root, eps, keep, lazy)


def update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: tuple[float, ...], lazy: bool) -> None:
    """`kernels.adam.adam_`, in place; numbers are rate, b1, 1 - b1, b2, 1 - b2, 1 / sqrt(1 - b2^step), eps and 1 - lr wd.

    What is one share runs where it is: waking a second thread takes longer.
    """
    use_threads()
    flat = [t.view(-1).numpy() for t in (p, g.contiguous(), m, v)]
    run = _update_share if p.numel() <= SHARE else _update
    run(flat[1].view(np.int32), *flat, *(np.float32(x) for x in numbers), lazy)
