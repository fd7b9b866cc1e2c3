"""Averages of a lattice under the profiles of pixels of many planes, each plane with a pose of its own; in Numba.

y[p] = sum_q w[q] f(M_n (u, v) + t_n + z[q] d_n) for pixel p at (u, v) of plane n, in lattice units; f interpolates linearly and goes on
with the border value. Beside the value, the derivative by the position, from which a pose is found; and the transpose.
`planes_gather_torch` is the plain twin that defines the answer.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .dispatch import jit, use_threads
from .spline import spline_values

BLOCK = 1024  # pixels that a thread takes at a time


@jit()
def _start(at, m, t):  # type: ignore[no-untyped-def]
    """Where a pixel lies."""
    return (m[0, 0] * at[0] + m[0, 1] * at[1] + t[0], m[1, 0] * at[0] + m[1, 1] * at[1] + t[1], m[2, 0] * at[0] + m[2, 1] * at[1] + t[2])


@jit()
def _cell(x, n):  # type: ignore[no-untyped-def]
    """The first node of the lattice cell of x on an axis of n nodes, and how far x lies from it; x is pushed into the lattice."""
    x = min(max(x, np.float32(0)), np.float32(n - 1))
    low = min(np.int32(x), n - 2)
    return low, x - np.float32(low)


@jit(parallel=True)
def _gather(c, at, plane, m, t, d, z, wz, out):  # type: ignore[no-untyped-def]
    ni, nj, nk = c.shape
    f = c.ravel()
    for block in numba.prange((len(at) + BLOCK - 1) // BLOCK):
        for p in range(block * BLOCK, min(len(at), block * BLOCK + BLOCK)):
            n = plane[p]
            x, y, e = _start(at[p], m[n], t[n])
            total = np.float32(0)
            for q in range(len(z)):
                i, a = _cell(x + z[q] * d[n, 0], ni)
                j, b = _cell(y + z[q] * d[n, 1], nj)
                k, g = _cell(e + z[q] * d[n, 2], nk)
                o = (i * nj + j) * nk + k
                v00, v01 = f[o] + g * (f[o + 1] - f[o]), f[o + nk] + g * (f[o + nk + 1] - f[o + nk])
                o += nj * nk
                v10, v11 = f[o] + g * (f[o + 1] - f[o]), f[o + nk] + g * (f[o + nk + 1] - f[o + nk])
                v0, v1 = v00 + b * (v01 - v00), v10 + b * (v11 - v10)
                total += wz[q] * (v0 + a * (v1 - v0))
            out[p] = total


@jit(parallel=True)
def _slope(c, at, plane, m, t, d, z, wz, out, slope):  # type: ignore[no-untyped-def]
    ni, nj, nk = c.shape
    f = c.ravel()
    for block in numba.prange((len(at) + BLOCK - 1) // BLOCK):
        for p in range(block * BLOCK, min(len(at), block * BLOCK + BLOCK)):
            n = plane[p]
            x, y, e = _start(at[p], m[n], t[n])
            total, along, beside, up = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for q in range(len(z)):
                i, a = _cell(x + z[q] * d[n, 0], ni)
                j, b = _cell(y + z[q] * d[n, 1], nj)
                k, g = _cell(e + z[q] * d[n, 2], nk)
                o = (i * nj + j) * nk + k
                s00, s01 = f[o + 1] - f[o], f[o + nk + 1] - f[o + nk]
                v00, v01 = f[o] + g * s00, f[o + nk] + g * s01
                o += nj * nk
                s10, s11 = f[o + 1] - f[o], f[o + nk + 1] - f[o + nk]
                v10, v11 = f[o] + g * s10, f[o + nk] + g * s11
                v0, v1 = v00 + b * (v01 - v00), v10 + b * (v11 - v10)
                s0, s1 = s00 + b * (s01 - s00), s10 + b * (s11 - s10)
                total += wz[q] * (v0 + a * (v1 - v0))
                if 0 <= x + z[q] * d[n, 0] < ni - 1:
                    along += wz[q] * (v1 - v0)
                if 0 <= y + z[q] * d[n, 1] < nj - 1:
                    beside += wz[q] * ((v01 - v00) + a * ((v11 - v10) - (v01 - v00)))
                if 0 <= e + z[q] * d[n, 2] < nk - 1:
                    up += wz[q] * (s0 + a * (s1 - s0))
            out[p] = total
            slope[p, 0], slope[p, 1], slope[p, 2] = along, beside, up


@jit(parallel=True)
def _scatter(y, at, plane, m, t, d, z, wz, out):  # type: ignore[no-untyped-def]
    # Each part has its own copy of the lattice: no races, and the same sum on every run with as many threads.
    parts, ni, nj, nk = out.shape
    for part in numba.prange(parts):
        f = out[part].ravel()
        for p in range(part * len(at) // parts, (part + 1) * len(at) // parts):
            n = plane[p]
            x, v, e = _start(at[p], m[n], t[n])
            for q in range(len(z)):
                i, a = _cell(x + z[q] * d[n, 0], ni)
                j, b = _cell(v + z[q] * d[n, 1], nj)
                k, g = _cell(e + z[q] * d[n, 2], nk)
                o, w = (i * nj + j) * nk + k, wz[q] * y[p]
                w0, w1 = w * (1 - a), w * a
                f[o] += w0 * (1 - b) * (1 - g)
                f[o + 1] += w0 * (1 - b) * g
                f[o + nk] += w0 * b * (1 - g)
                f[o + nk + 1] += w0 * b * g
                o += nj * nk
                f[o] += w1 * (1 - b) * (1 - g)
                f[o + 1] += w1 * (1 - b) * g
                f[o + nk] += w1 * b * (1 - g)
                f[o + nk + 1] += w1 * b * g


Lattice = Float[Tensor, "I J K"]
Pixels = Float[Tensor, "P 2"]
Planes = Int[Tensor, "P"]
Array = np.ndarray


def _arrays(at: Tensor, plane: Tensor, *rest: Array) -> list[Array]:
    """What the loops read: pixels and planes as they are, the rest in single precision, as lattice indices are small."""
    return [at.contiguous().numpy(), plane.contiguous().numpy(), *(np.ascontiguousarray(a, np.float32) for a in rest)]


def planes_gather(c: Lattice, at: Pixels, plane: Planes, m: Array, t: Array, d: Array, z: Array, wz: Array) -> Float[Tensor, "P"]:
    """y of the module docstring, on the CPU.

    Args:
        c: lattice values; at least two along each axis.
        at, plane: pixel indices, and whose plane a pixel is of.
        m, t, d: [N, 3, 2], [N, 3] and [N, 3]: lattice units per pixel step, at pixel (0, 0), and per unit of z.
        z, wz: [Q] nodes of the profile and their weights.
    """
    use_threads()
    out = np.empty(len(at), np.float32)
    _gather(c.detach().contiguous().numpy(), *_arrays(at, plane, m, t, d, z, wz), out)
    return torch.from_numpy(out)


def planes_slope(c: Lattice, at: Pixels, plane: Planes, m: Array, t: Array, d: Array, z: Array,
                 wz: Array) -> tuple[Float[Tensor, "P"], Float[Tensor, "P 3"]]:
    """y, and how it changes when a pixel with its profile is shifted, per lattice unit."""
    use_threads()
    out, slope = np.empty(len(at), np.float32), np.empty((len(at), 3), np.float32)
    _slope(c.detach().contiguous().numpy(), *_arrays(at, plane, m, t, d, z, wz), out, slope)
    return torch.from_numpy(out), torch.from_numpy(slope)


def planes_scatter(y: Float[Tensor, "P"], at: Pixels, plane: Planes, m: Array, t: Array, d: Array, z: Array, wz: Array,
                   shape: tuple[int, int, int]) -> Lattice:
    """The transpose of `planes_gather`: y spread onto a lattice of `shape`."""
    parts = max(1, min(use_threads(), 2**28 // math.prod(shape)))
    out = np.zeros((parts, *shape), np.float32)
    _scatter(y.detach().contiguous().numpy(), *_arrays(at, plane, m, t, d, z, wz), out)
    return torch.from_numpy(out.sum(0) if len(out) > 1 else out[0])


def planes_gather_torch(c: Lattice, at: Pixels, plane: Planes, m: Array, t: Array, d: Array, z: Array, wz: Array,
                        shift: Float[Tensor, "P 3"] | None = None) -> Float[Tensor, "P"]:
    """The plain twin of `planes_gather`, any device, differentiable in c and in a shift of the pixels (lattice units)."""
    turn, origin, across = (torch.as_tensor(a).to(c) for a in (m, t, d))
    index = torch.einsum("pij,pj->pi", turn[plane], at.to(c)) + origin[plane]
    index = index if shift is None else index + shift
    total = torch.zeros_like(index[:, 0])
    for zq, wq in zip(z, wz, strict=True):
        total = total + float(wq) * spline_values(c[None], index + float(zq) * across[plane], 1)[:, 0]
    return total
