"""`trilinear` in Numba: every point is one thread's."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from .dispatch import jit, use_threads


@jit()
def _cell(x, n):  # type: ignore[no-untyped-def]
    """The two nodes around x on an axis of n, which repeats its ends, and how far x lies between them."""
    low = math.floor(x)
    t = np.float32(x - low)
    return int(max(0, min(low, n - 1))), int(max(0, min(low + 1, n - 1))), t


@jit(parallel=True)
def _values(image, index, out):  # type: ignore[no-untyped-def]
    channels, ni, nj, nk = image.shape
    one = np.float32(1)
    for p in numba.prange(len(index)):
        i, i1, a = _cell(index[p, 0], ni)
        j, j1, b = _cell(index[p, 1], nj)
        k, k1, c = _cell(index[p, 2], nk)
        for m in range(channels):
            v = image[m]
            low = (v[i, j, k] * (one - c) + v[i, j, k1] * c) * (one - b) + (v[i, j1, k] * (one - c) + v[i, j1, k1] * c) * b
            high = (v[i1, j, k] * (one - c) + v[i1, j, k1] * c) * (one - b) + (v[i1, j1, k] * (one - c) + v[i1, j1, k1] * c) * b
            out[p, m] = low * (one - a) + high * a


@jit(parallel=True)
def _slopes(image, index, grads, out):  # type: ignore[no-untyped-def]
    channels, ni, nj, nk = image.shape
    one = np.float32(1)
    for p in numba.prange(len(index)):
        i, i1, a = _cell(index[p, 0], ni)
        j, j1, b = _cell(index[p, 1], nj)
        k, k1, c = _cell(index[p, 2], nk)
        di, dj, dk = np.float32(0), np.float32(0), np.float32(0)
        for m in range(channels):
            v, g = image[m], grads[p, m]
            if g == 0:
                continue
            v000, v001, v010, v011 = v[i, j, k], v[i, j, k1], v[i, j1, k], v[i, j1, k1]
            v100, v101, v110, v111 = v[i1, j, k], v[i1, j, k1], v[i1, j1, k], v[i1, j1, k1]
            w00, w01, w10, w11 = v000 + (v001 - v000) * c, v010 + (v011 - v010) * c, v100 + (v101 - v100) * c, v110 + (v111 - v110) * c
            di += g * ((w10 - w00) * (one - b) + (w11 - w01) * b)
            dj += g * ((w01 - w00) * (one - a) + (w11 - w10) * a)
            dk += g * (((v001 - v000) * (one - b) + (v011 - v010) * b) * (one - a) + ((v101 - v100) * (one - b) + (v111 - v110) * b) * a)
        out[p, 0], out[p, 1], out[p, 2] = di, dj, dk


def values(image: Tensor, index: Tensor) -> Tensor:
    """[N, C] of [C, I, J, K] at [N, 3]."""
    use_threads()
    out = np.empty((len(index), len(image)), np.float32)
    _values(image.detach().contiguous().numpy(), index.detach().contiguous().numpy(), out)
    return torch.from_numpy(out)


def slopes(image: Tensor, index: Tensor, grads: Tensor) -> Tensor:
    """[N, 3]: the gradient with respect to the indices."""
    use_threads()
    out = np.empty((len(index), 3), np.float32)
    _slopes(image.detach().contiguous().numpy(), index.detach().contiguous().numpy(), grads.contiguous().numpy(), out)
    return torch.from_numpy(out)
