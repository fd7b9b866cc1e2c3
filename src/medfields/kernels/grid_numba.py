"""The multi-resolution grid on the CPU: loops that Numba compiles, one code for 1 to 4 dimensions.

Points are taken in blocks that stay in the first cache. `_corners` writes rows and weights of the 2^D corners of a block, a loop over
points that vectorises because every buffer is flat and every stride a constant; the loops over corners then only gather or scatter.
D and F are known to the compiler as lengths of the tuples `axes` and `features`, so the short loops are unrolled.

Features and their gradients lie column by column in memory: a pass over one level streams what it writes or reads, where rows would bring
in a cache line for each point of each level.

Sums run in a fixed order whatever the number of threads, so the same input gives the same bytes: the gradient to the coordinates shares
out the points, the gradient to the table the levels, each level's rows belonging to one thread, and the forward pass levels too as long
as they divide evenly, so that a level's rows are brought into one core's cache only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from torch import Tensor

from . import memory
from .dispatch import jit, use_threads
from .grid_layout import GridLayout

BLOCK = 128  # points whose corners are held at once: 8 KB in 3-D
TILE = 2**16  # points one thread takes at a time, at most: each level's rows are brought into the cache once for as many points
ZERO, ONE = np.float32(0), np.float32(1)


@jit()
def _cell(u, n):  # type: ignore[no-untyped-def]
    """Cell number and position inside it. The tests are written so that NaN stays NaN and its cell number stays in the grid."""
    x = (ZERO if u < ZERO else ONE if u > ONE else u) * np.float32(n)
    i = np.int32(x)
    i = i if i < n else np.int32(n - 1)
    i = i if i > 0 else np.int32(0)
    return np.uint32(i), x - np.float32(i)


@jit()
def _corners(axes, u, count, n, step, mask, rows, weights):  # type: ignore[no-untyped-def]
    """Rows (within the level) and weights of all corners; corner c is on the far side along axis d where bit d of c is set."""
    dim = len(axes)
    n0, n1, n2, n3 = n[0], n[1], n[2], n[3]
    s0, s1, s2, s3 = step[0], step[1], step[2], step[3]
    none = np.uint32(0)
    for q in range(count):
        i0, x0 = _cell(u[dim * q], n0)
        i1, x1 = _cell(u[dim * q + 1], n1) if dim > 1 else (none, ZERO)
        i2, x2 = _cell(u[dim * q + 2], n2) if dim > 2 else (none, ZERO)
        i3, x3 = _cell(u[dim * q + 3], n3) if dim > 3 else (none, ZERO)
        a0, a1, a2, a3 = i0 * s0, i1 * s1, i2 * s2, i3 * s3
        for c in range(1 << dim):
            w = x0 if c & 1 else ONE - x0
            if dim > 1:
                w *= x1 if c & 2 else ONE - x1
            if dim > 2:
                w *= x2 if c & 4 else ONE - x2
            if dim > 3:
                w *= x3 if c & 8 else ONE - x3
            b0, b1 = a0 + s0 if c & 1 else a0, a1 + s1 if c & 2 else a1
            b2, b3 = a2 + s2 if c & 4 else a2, a3 + s3 if c & 8 else a3
            weights[c * BLOCK + q] = w
            rows[c * BLOCK + q] = (b0 ^ b1 ^ b2 ^ b3) & mask if mask else b0 + b1 + b2 + b3


@jit()
def _sweep(rows):  # type: ignore[no-untyped-def]
    """Read one number of each cache line in order, so that the gathers that follow, in no order, find them near. Saves a fifth."""
    total = ZERO
    for i in range(0, len(rows), 16):
        total += rows[i]
    return total


@jit()
def _forward_level(axes, features, u, values, n, step, mask, scale, stride, out):  # type: ignore[no-untyped-def]
    corners, width, points = 1 << len(axes), len(features), len(u) // len(axes)
    rows, weights = np.empty(corners * BLOCK, np.uint32), np.empty(corners * BLOCK, np.float32)
    if scale == ZERO:
        for f in range(width):
            out[f * stride : f * stride + points] = ZERO
        return
    if points * corners * width > len(values):
        out[0] = _sweep(values)  # overwritten below; a result nobody keeps would not be computed
    for start in range(0, points, BLOCK):
        count = min(BLOCK, points - start)
        block = out[start:]
        _corners(axes, u[start * len(axes) :], count, n, step, mask, rows, weights)
        for q in range(count):
            if width % 2:
                for f in range(width):
                    total = ZERO
                    for c in range(corners):
                        total += weights[c * BLOCK + q] * values[np.int64(rows[c * BLOCK + q]) * width + f]
                    block[f * stride + q] = scale * total
            else:  # two sums at a time, as they lie side by side in the table
                for f in range(0, width, 2):
                    even, odd = ZERO, ZERO
                    for c in range(corners):
                        at = np.int64(rows[c * BLOCK + q]) * width + f
                        even += weights[c * BLOCK + q] * values[at]
                        odd += weights[c * BLOCK + q] * values[at + 1]
                    block[f * stride + q] = scale * even
                    block[(f + 1) * stride + q] = scale * odd


@jit(parallel=True)
def _forward(axes, features, u, table, n, step, mask, offset, level_mask, threads, tile, out):  # type: ignore[no-untyped-def]
    dim, width, points = len(axes), len(features), len(u) // len(axes)
    tiles = (points + tile - 1) // tile
    for thread in numba.prange(threads):
        for part in range(thread, tiles * len(mask), threads):
            level, a = part // tiles, part % tiles * tile
            b = min(points, a + tile)
            values = table[offset[level] * width : offset[level + 1] * width]
            _forward_level(axes, features, u[a * dim : b * dim], values, n[4 * level :], step[4 * level :], mask[level], level_mask[level],
                           points, out[level * width * points + a :])


@jit()
def _scatter_level(axes, features, u, grad, level, n, step, mask, scale, out):  # type: ignore[no-untyped-def]
    corners, width, points = 1 << len(axes), len(features), len(u) // len(axes)
    rows, weights = np.empty(corners * BLOCK, np.uint32), np.empty(corners * BLOCK, np.float32)
    out[:] = ZERO
    if scale == ZERO:
        return
    for start in range(0, points, BLOCK):
        count = min(BLOCK, points - start)
        block = grad[level * width * points + start :]
        _corners(axes, u[start * len(axes) :], count, n, step, mask, rows, weights)
        for q in range(count):
            if width % 2:
                for c in range(corners):
                    at = np.int64(rows[c * BLOCK + q]) * width
                    for f in range(width):
                        out[at + f] += weights[c * BLOCK + q] * (scale * block[f * points + q])
            else:
                for f in range(0, width, 2):
                    even, odd = scale * block[f * points + q], scale * block[(f + 1) * points + q]
                    for c in range(corners):
                        at = np.int64(rows[c * BLOCK + q]) * width + f
                        w = weights[c * BLOCK + q]
                        first, second = out[at] + w * even, out[at + 1] + w * odd
                        out[at] = first  # after both are known: the compiler can then move them as one
                        out[at + 1] = second


@jit(parallel=True)
def _table_gradient(axes, features, u, grad, n, step, mask, offset, level_mask, threads, out):  # type: ignore[no-untyped-def]
    for thread in numba.prange(threads):
        for level in range(thread, len(mask), threads):  # dealt out like cards: the coarse levels are the quick ones
            part = out[offset[level] * len(features) : offset[level + 1] * len(features)]
            _scatter_level(axes, features, u, grad, level, n[4 * level :], step[4 * level :], mask[level], level_mask[level], part)


@jit()
def _point_tile(axes, features, u, table, grad, stride, n, step, mask, offset, level_mask, out):  # type: ignore[no-untyped-def]
    dim, corners, width = len(axes), 1 << len(axes), len(features)
    rows, weights = np.empty(corners * BLOCK, np.uint32), np.empty(corners * BLOCK, np.float32)
    points = len(u) // dim
    out[:] = ZERO
    for level in range(len(mask)):
        values = table[offset[level] * width :]
        scale, cells = level_mask[level], n[4 * level :]
        if scale == ZERO:
            continue
        for start in range(0, points, BLOCK):
            count = min(BLOCK, points - start)
            _corners(axes, u[start * dim :], count, cells, step[4 * level :], mask[level], rows, weights)
            block = grad[level * width * stride + start :]
            for q in range(count):  # the weights are not needed: their place takes what one unit of weight would add to the loss
                for c in range(corners):
                    total = ZERO
                    for f in range(width):
                        total += block[f * stride + q] * values[np.int64(rows[c * BLOCK + q]) * width + f]
                    weights[c * BLOCK + q] = scale * total
            _contract(axes, u[start * dim :], count, cells, weights, out[start * dim :])


@jit()
def _contract(axes, u, count, n, worth, out):  # type: ignore[no-untyped-def]
    """Add  du_d = N_d sum_c worth_c dw_c/dx_d,  where the derivative of w_c along d is w_c without its factor of d, signed."""
    dim = len(axes)
    n0, n1, n2, n3 = n[0], n[1], n[2], n[3]
    for q in range(count):
        x0 = _cell(u[dim * q], n0)[1]
        x1 = _cell(u[dim * q + 1], n1)[1] if dim > 1 else ZERO
        x2 = _cell(u[dim * q + 2], n2)[1] if dim > 2 else ZERO
        x3 = _cell(u[dim * q + 3], n3)[1] if dim > 3 else ZERO
        d0, d1, d2, d3 = ZERO, ZERO, ZERO, ZERO
        for c in range(1 << dim):
            w0 = x0 if c & 1 else ONE - x0
            w1 = (x1 if c & 2 else ONE - x1) if dim > 1 else ONE
            w2 = (x2 if c & 4 else ONE - x2) if dim > 2 else ONE
            w3 = (x3 if c & 8 else ONE - x3) if dim > 3 else ONE
            s = worth[c * BLOCK + q]
            d0 += (s if c & 1 else -s) * (w1 * w2 * w3)
            d1 += (s if c & 2 else -s) * (w0 * w2 * w3)
            d2 += (s if c & 4 else -s) * (w0 * w1 * w3)
            d3 += (s if c & 8 else -s) * (w0 * w1 * w2)
        out[dim * q] += np.float32(n0) * d0
        if dim > 1:
            out[dim * q + 1] += np.float32(n1) * d1
        if dim > 2:
            out[dim * q + 2] += np.float32(n2) * d2
        if dim > 3:
            out[dim * q + 3] += np.float32(n3) * d3


@jit(parallel=True)
def _point_gradient(axes, features, u, table, grad, n, step, mask, offset, level_mask, tile, out):  # type: ignore[no-untyped-def]
    dim, points = len(axes), len(u) // len(axes)
    for part in numba.prange((points + tile - 1) // tile):
        a, b = part * tile, min(points, (part + 1) * tile)
        _point_tile(axes, features, u[a * dim : b * dim], table, grad[a:], points, n, step, mask, offset, level_mask, out[a * dim : b * dim])
        for i in range(a * dim, b * dim):
            if u[i] < ZERO or u[i] > ONE:
                out[i] = ZERO


@cache
def _plan(layout: GridLayout) -> tuple[Any, ...]:
    """What the loops need to know of a layout: axes and features as tuples, then flat arrays with four axes to a level."""
    levels = range(layout.levels)
    pad = (0,) * (4 - layout.dim)
    cells = np.array([layout.resolutions[level] + pad for level in levels], np.int32).ravel()
    step = np.array([layout.multipliers(level) + pad for level in levels], np.uint32).ravel()
    mask = np.array([2**layout.log2_table - 1 if layout.hashed[level] else 0 for level in levels], np.uint32)
    return (0,) * layout.dim, (0,) * layout.features, cells, step, mask, np.array(layout.offsets, np.int64)


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().view(-1).numpy()


def _tile(points: int, tiles: int) -> int:
    """Points of one of so many tiles, in whole blocks."""
    return min(TILE, max(1, -(-points // (tiles * BLOCK))) * BLOCK)


def forward(u01: Tensor, table: Tensor, layout: GridLayout, level_mask: Tensor) -> Tensor:
    """The encoding of `grid_encode_torch`, [N, L F], column by column in memory."""
    axes, features, *plan = _plan(layout)
    out, threads = memory.empty((layout.width, len(u01))), use_threads()
    tile = _tile(len(u01), 1 if layout.levels % threads == 0 else -(-4 * threads // layout.levels))
    _forward(axes, features, _flat(u01), _flat(table), *plan, _flat(level_mask), threads, tile, _flat(out))
    return out.t()


def table_gradient(u01: Tensor, grad: Tensor, layout: GridLayout, level_mask: Tensor) -> Tensor:
    """Transpose of the encoding in its table, [rows, F]."""
    axes, features, *plan = _plan(layout)
    out = memory.empty((layout.rows, layout.features))
    _table_gradient(axes, features, _flat(u01), _flat(grad.t()), *plan, _flat(level_mask), use_threads(), _flat(out))
    return out


def point_gradient(u01: Tensor, table: Tensor, grad: Tensor, layout: GridLayout, level_mask: Tensor) -> Tensor:
    """Gradient of sum(grad * encoding) in the coordinates, [N, D]; zero along axes where u lies outside [0, 1]."""
    axes, features, *plan = _plan(layout)
    out = memory.empty(u01.shape)
    _point_gradient(axes, features, _flat(u01), _flat(table), _flat(grad.t()), *plan, _flat(level_mask), _tile(len(u01), use_threads()), _flat(out))
    return out
