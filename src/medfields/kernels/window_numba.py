"""`window_sums` in Numba: a running sum along each axis, in double precision; planes are shared out among threads."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from .dispatch import jit, use_threads


@jit(parallel=True)
def _along_last_two(x, out, radius):  # type: ignore[no-untyped-def]
    """Sums along J and K of each plane [J, K]."""
    planes, nj, nk = x.shape
    for p in numba.prange(planes):
        rows = np.empty((nj, nk), np.float32)
        for j in range(nj):
            total = 0.0
            for k in range(min(radius, nk)):
                total += x[p, j, k]
            for k in range(nk):
                if k + radius < nk:
                    total += x[p, j, k + radius]
                if k - radius - 1 >= 0:
                    total -= x[p, j, k - radius - 1]
                rows[j, k] = total
        column = np.zeros(nk, np.float64)
        for j in range(min(radius, nj)):
            for k in range(nk):
                column[k] += rows[j, k]
        for j in range(nj):
            if j + radius < nj:
                for k in range(nk):
                    column[k] += rows[j + radius, k]
            if j - radius - 1 >= 0:
                for k in range(nk):
                    column[k] -= rows[j - radius - 1, k]
            for k in range(nk):
                out[p, j, k] = column[k]


@jit(parallel=True)
def _along_first(x, out, radius):  # type: ignore[no-untyped-def]
    """Sums along I of each [I, J, K]; rows of K are shared out."""
    batch, ni, nj, nk = x.shape
    for task in numba.prange(batch * nj):
        b, j = task // nj, task % nj
        column = np.zeros(nk, np.float64)
        for i in range(min(radius, ni)):
            for k in range(nk):
                column[k] += x[b, i, j, k]
        for i in range(ni):
            if i + radius < ni:
                for k in range(nk):
                    column[k] += x[b, i + radius, j, k]
            if i - radius - 1 >= 0:
                for k in range(nk):
                    column[k] -= x[b, i - radius - 1, j, k]
            for k in range(nk):
                out[b, i, j, k] = column[k]


def sums(x: Tensor, radius: int) -> Tensor:
    """[*batch, I, J, K] float32 on the CPU."""
    use_threads()
    shape = x.shape
    flat = x.detach().contiguous().reshape(-1, *shape[-3:]).numpy()
    first, out = np.empty_like(flat), np.empty_like(flat)
    _along_last_two(flat.reshape(-1, *shape[-2:]), first.reshape(-1, *shape[-2:]), radius)
    _along_first(first, out, radius)
    return torch.from_numpy(out).reshape(shape)
