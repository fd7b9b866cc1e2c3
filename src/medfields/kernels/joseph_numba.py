"""`joseph` and its transpose in Numba. The forward loop is shared out by rays; the transpose by slabs of the lattice, so that no two
threads write to one voxel and every sum runs in the order of the rays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from torch import Tensor

from .dispatch import jit, use_threads

if TYPE_CHECKING:
    from .joseph import RayTable


@jit()
def _span(o, d, low, high, start, stop):  # type: ignore[no-untyped-def]
    """The part of [start, stop] in which low <= o + t d <= high."""
    if abs(d) < 1e-12:
        return (start, stop) if low <= o <= high else (1.0, 0.0)
    a, b = (low - o) / d, (high - o) / d
    return max(start, min(a, b)), min(stop, max(a, b))


@jit()
def _line(view, row, column, table, parallel, rows):  # type: ignore[no-untyped-def]
    """Origin and direction of a ray in voxels."""
    source, centre, u, v, w, a, b = table
    r = row - (rows - 1) / 2
    x = centre[view, 0] + a[column] * u[view, 0] + b[column] * w[view, 0] + r * v[view, 0]
    y = centre[view, 1] + a[column] * u[view, 1] + b[column] * w[view, 1] + r * v[view, 1]
    z = centre[view, 2] + a[column] * u[view, 2] + b[column] * w[view, 2] + r * v[view, 2]
    s0, s1, s2 = source[view, 0], source[view, 1], source[view, 2]
    if parallel:
        return x, y, z, s0, s1, s2
    return s0, s1, s2, x - s0, y - s1, z - s2


@jit()
def _through(ray, n, metric, parallel):  # type: ignore[no-untyped-def]
    """Which axis leads, the first and last plane that the ray crosses inside, where it stands in plane 0 along the two other axes, its
    steps along them from plane to plane, and mm between two planes."""
    o0, o1, o2, d0, d1, d2 = ray
    a0, a1, a2 = abs(d0), abs(d1), abs(d2)
    squared = metric[0, 0] * d0 * d0 + metric[1, 1] * d1 * d1 + metric[2, 2] * d2 * d2
    length = math.sqrt(squared + 2 * (metric[0, 1] * d0 * d1 + metric[0, 2] * d0 * d2 + metric[1, 2] * d1 * d2))
    if a0 >= a1 and a0 >= a2:
        axis, o, d, p, dp, q, dq, na, nb, nc = 0, o0, d0, o1, d1, o2, d2, n[0], n[1], n[2]
    elif a1 >= a2:
        axis, o, d, p, dp, q, dq, na, nb, nc = 1, o1, d1, o0, d0, o2, d2, n[1], n[0], n[2]
    else:
        axis, o, d, p, dp, q, dq, na, nb, nc = 2, o2, d2, o0, d0, o1, d1, n[2], n[0], n[1]
    start, stop = (-1e30, 1e30) if parallel else (0.0, 1.0)
    start, stop = _span(o, d, 0.0, na - 1.0, start, stop)
    start, stop = _span(p, dp, -0.5 if nb == 1 else -1.0, 0.5 if nb == 1 else float(nb), start, stop)
    start, stop = _span(q, dq, -0.5 if nc == 1 else -1.0, 0.5 if nc == 1 else float(nc), start, stop)
    if start > stop:
        return axis, 0, -1, 0.0, 0.0, 0.0, 0.0, 0.0
    first, last = o + start * d, o + stop * d
    if d < 0:
        first, last = last, first
    sp, sq = dp / d, dq / d
    return axis, math.ceil(first - 1e-9), math.floor(last + 1e-9), p - o * sp, sp, q - o * sq, sq, length / abs(d)


@jit(parallel=True)
def _forward(c, n, stride, table, rows, metric, parallel, out):  # type: ignore[no-untyped-def]
    views, columns = out.shape[0], out.shape[2]
    for line in numba.prange(views * rows):
        view, row = line // rows, line % rows
        for column in range(columns):
            axis, first, last, p0, sp, q0, sq, step = _through(_line(view, row, column, table, parallel, rows), n, metric, parallel)
            b, e = (1 if axis == 0 else 0), (1 if axis == 2 else 2)
            sa, sb, sc, nb, nc = stride[axis], stride[b], stride[e], n[b], n[e]
            total = np.float32(0)
            for i in range(first, last + 1):
                at, p, q = i * sa, p0 + i * sp, q0 + i * sq
                if nc == 1:
                    j = math.floor(p)
                    f = np.float32(p - j)
                    if j >= 0:
                        total += (1 - f) * c[at + j * sb] if j < nb else np.float32(0)
                    if j + 1 < nb:
                        total += f * c[at + (j + 1) * sb]
                    continue
                if nb == 1:
                    k = math.floor(q)
                    g = np.float32(q - k)
                    if k >= 0:
                        total += (1 - g) * c[at + k * sc] if k < nc else np.float32(0)
                    if k + 1 < nc:
                        total += g * c[at + (k + 1) * sc]
                    continue
                j, k = math.floor(p), math.floor(q)
                f, g = np.float32(p - j), np.float32(q - k)
                if 0 <= j < nb - 1 and 0 <= k < nc - 1:
                    at += j * sb + k * sc
                    total += (1 - f) * ((1 - g) * c[at] + g * c[at + sc]) + f * ((1 - g) * c[at + sb] + g * c[at + sb + sc])
                else:
                    for dj in range(2):
                        for dk in range(2):
                            if 0 <= j + dj < nb and 0 <= k + dk < nc:
                                total += (f if dj else 1 - f) * (g if dk else 1 - g) * c[at + (j + dj) * sb + (k + dk) * sc]
            out[view, row, column] = total * np.float32(step)


@jit(parallel=True)
def _transpose(y, n, stride, table, rows, metric, parallel, slabs, out):  # type: ignore[no-untyped-def]
    views, columns = y.shape[0], y.shape[2]
    for leading in range(3):
        for slab in numba.prange(slabs):
            begin, end = slab * n[leading] // slabs, (slab + 1) * n[leading] // slabs
            b, e = (1 if leading == 0 else 0), (1 if leading == 2 else 2)
            sa, sb, sc, nb, nc = stride[leading], stride[b], stride[e], n[b], n[e]
            for view in range(views):
                for row in range(rows):
                    for column in range(columns):
                        axis, first, last, p0, sp, q0, sq, step = _through(_line(view, row, column, table, parallel, rows), n, metric, parallel)
                        if axis != leading:
                            continue
                        value = y[view, row, column] * np.float32(step)
                        for i in range(max(first, begin), min(last + 1, end)):
                            at, p, q = i * sa, p0 + i * sp, q0 + i * sq
                            if nc == 1:
                                j = math.floor(p)
                                f = np.float32(p - j)
                                if 0 <= j < nb:
                                    out[at + j * sb] += (1 - f) * value
                                if j + 1 < nb:
                                    out[at + (j + 1) * sb] += f * value
                                continue
                            if nb == 1:
                                k = math.floor(q)
                                g = np.float32(q - k)
                                if 0 <= k < nc:
                                    out[at + k * sc] += (1 - g) * value
                                if k + 1 < nc:
                                    out[at + (k + 1) * sc] += g * value
                                continue
                            j, k = math.floor(p), math.floor(q)
                            f, g = np.float32(p - j), np.float32(q - k)
                            if 0 <= j < nb - 1 and 0 <= k < nc - 1:
                                at += j * sb + k * sc
                                near, far = (1 - f) * value, f * value
                                out[at] += (1 - g) * near
                                out[at + sc] += g * near
                                out[at + sb] += (1 - g) * far
                                out[at + sb + sc] += g * far
                            else:
                                for dj in range(2):
                                    for dk in range(2):
                                        if 0 <= j + dj < nb and 0 <= k + dk < nc:
                                            out[at + (j + dj) * sb + (k + dk) * sc] += (f if dj else 1 - f) * (g if dk else 1 - g) * value


def _arguments(table: RayTable, shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
    vectors = (table.source, table.centre, table.u, table.v, table.w, table.a, table.b)
    return (np.array(shape), np.array([shape[1] * shape[2], shape[2], 1]), vectors, table.rows, table.metric, table.parallel)


def forward(lattice: Tensor, table: RayTable) -> Tensor:
    """See `joseph`."""
    use_threads()
    out = np.empty(table.shape, np.float32)
    _forward(lattice.contiguous().numpy().reshape(-1), *_arguments(table, tuple(lattice.shape)), out)
    return torch.from_numpy(out)


def transpose(y: Tensor, table: RayTable, shape: tuple[int, int, int]) -> Tensor:
    """See `joseph_transpose`."""
    slabs = use_threads()
    out = np.zeros(math.prod(shape), np.float32)
    _transpose(y.contiguous().numpy(), *_arguments(table, shape), slabs, out)
    return torch.from_numpy(out.reshape(shape))
