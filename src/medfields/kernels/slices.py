"""Slice averages of a B-spline lattice under an affine: the forward loop and its exact transpose, in Numba.

y[v] = sum_q w[q] f(M v + t + z[q] d): for every stack voxel v, nodes z along d in lattice units, f the spline of
`kernels.spline` (which, through `slice_gather_torch`, defines the answer). Positions are stepped, never stored: a
clinical stack times 16 nodes would not fit in memory.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from .dispatch import jit, use_threads
from .spline import spline_values


@jit()
def _weights(x, degree, w):  # type: ignore[no-untyped-def]
    """Write the weights of `spline.spline_weights` for one point; returns the first supporting node."""
    if degree == 1:
        low = int(np.floor(x))
        t = x - low
        w[0], w[1] = 1 - t, t
        return low
    if degree == 2:
        near = int(np.floor(x + 0.5))
        t = x - near
        w[0], w[1], w[2] = 0.5 * (0.5 - t) ** 2, 0.75 - t * t, 0.5 * (0.5 + t) ** 2
        return near - 1
    low = int(np.floor(x))
    t = x - low
    s = 1 - t
    w[0], w[1] = s * s * s / 6, (3 * t * t * t - 6 * t * t + 4) / 6
    w[2], w[3] = (3 * s * s * s - 6 * s * s + 4) / 6, t * t * t / 6
    return low - 1


@jit()
def _clip(n, size):  # type: ignore[no-untyped-def]
    return 0 if n < 0 else (size - 1 if n >= size else n)


@jit(parallel=True)
def _gather(c, m, t, d, z, wz, degree, out):  # type: ignore[no-untyped-def]
    ni, nj, nk = c.shape
    for a in numba.prange(out.shape[0]):
        wx, wy, ww = np.empty(4, np.float32), np.empty(4, np.float32), np.empty(4, np.float32)
        for b in range(out.shape[1]):
            for e in range(out.shape[2]):
                x0 = m[0, 0] * a + m[0, 1] * b + m[0, 2] * e + t[0]
                y0 = m[1, 0] * a + m[1, 1] * b + m[1, 2] * e + t[1]
                z0 = m[2, 0] * a + m[2, 1] * b + m[2, 2] * e + t[2]
                total = np.float32(0)
                for q in range(len(z)):
                    i0 = _weights(x0 + z[q] * d[0], degree, wx)
                    j0 = _weights(y0 + z[q] * d[1], degree, wy)
                    k0 = _weights(z0 + z[q] * d[2], degree, ww)
                    for i in range(degree + 1):
                        ii = _clip(i0 + i, ni)
                        for j in range(degree + 1):
                            jj = _clip(j0 + j, nj)
                            wij = wx[i] * wy[j] * wz[q]
                            for k in range(degree + 1):
                                total += wij * ww[k] * c[ii, jj, _clip(k0 + k, nk)]
                out[a, b, e] = total


@jit(parallel=True)
def _scatter(y, m, t, d, z, wz, degree, out):  # type: ignore[no-untyped-def]
    # Each part has its own copy of the lattice: no races, and the same sum on every run with as many threads.
    parts, ni, nj, nk = out.shape
    for p in numba.prange(parts):
        wx, wy, ww = np.empty(4, np.float32), np.empty(4, np.float32), np.empty(4, np.float32)
        for a in range(p * y.shape[0] // parts, (p + 1) * y.shape[0] // parts):
            for b in range(y.shape[1]):
                for e in range(y.shape[2]):
                    x0 = m[0, 0] * a + m[0, 1] * b + m[0, 2] * e + t[0]
                    y0 = m[1, 0] * a + m[1, 1] * b + m[1, 2] * e + t[1]
                    z0 = m[2, 0] * a + m[2, 1] * b + m[2, 2] * e + t[2]
                    for q in range(len(z)):
                        i0 = _weights(x0 + z[q] * d[0], degree, wx)
                        j0 = _weights(y0 + z[q] * d[1], degree, wy)
                        k0 = _weights(z0 + z[q] * d[2], degree, ww)
                        v = y[a, b, e] * wz[q]
                        for i in range(degree + 1):
                            ii = _clip(i0 + i, ni)
                            for j in range(degree + 1):
                                jj = _clip(j0 + j, nj)
                                wij = wx[i] * wy[j] * v
                                for k in range(degree + 1):
                                    out[p, ii, jj, _clip(k0 + k, nk)] += wij * ww[k]


def slice_gather(c: Tensor, m: np.ndarray, t: np.ndarray, d: np.ndarray, z: np.ndarray, wz: np.ndarray, degree: int,
                 shape: tuple[int, int, int]) -> Tensor:
    """y of the module docstring, [*shape] float32, from a lattice c [I, J, K] on the CPU."""
    use_threads()
    out = np.empty(shape, np.float32)
    _gather(c.detach().contiguous().numpy(), m, t, d, z, wz.astype(np.float32), degree, out)
    return torch.from_numpy(out)


def slice_scatter(y: Tensor, m: np.ndarray, t: np.ndarray, d: np.ndarray, z: np.ndarray, wz: np.ndarray, degree: int,
                  shape: tuple[int, int, int]) -> Tensor:
    """The transpose of `slice_gather`: y spread onto a lattice of `shape`."""
    parts = min(use_threads(), y.shape[0], max(1, 2**28 // math.prod(shape)))  # on many cores the copies would not fit: 1 GB of them is enough
    out = np.zeros((parts, *shape), np.float32)
    _scatter(y.detach().contiguous().numpy(), m, t, d, z, wz.astype(np.float32), degree, out)
    return torch.from_numpy(out.sum(0) if len(out) > 1 else out[0])


def slice_gather_torch(c: Tensor, m: np.ndarray, t: np.ndarray, d: np.ndarray, z: np.ndarray, wz: np.ndarray, degree: int,
                       shape: tuple[int, int, int]) -> Tensor:
    """The plain twin of `slice_gather`, any device, differentiable in c; it visits one node of the profile at a time."""
    turn, shift, across = (torch.as_tensor(a).to(c) for a in (m, t, d))
    axes = [torch.arange(n, dtype=c.dtype, device=c.device) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) @ turn.T + shift
    total = torch.zeros_like(index[:, 0])
    for zq, wq in zip(z, wz, strict=True):
        total = total + float(wq) * spline_values(c[None], index + float(zq) * across, degree)[:, 0]
    return total.reshape(shape)
