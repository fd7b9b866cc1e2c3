"""`ray_sums` and `point_sums` in Numba. A Gaussian touches only the pixels inside its ellipse on the detector, and the points in the cells
its box overlaps. Forward loops are shared out by rows of pixels or slabs of points, gradients by Gaussians: no two threads write to one
place and every sum runs in a fixed order."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from .dispatch import jit, use_threads
from .joseph import RayTable

REACH = 4.3
"""Standard deviations; beyond, a Gaussian is below 1e-4 of its peak."""
LIMIT = REACH**2
# exp(m / 2) = q(m)^8, q the polynomial through exp(m / 16) at Chebyshev nodes up to LIMIT: right to 1e-6, and loops of it are vectorised.
_NODES = LIMIT / 2 * (1 + np.cos(np.pi * (np.arange(7) + 0.5) / 7))
Q0, Q1, Q2, Q3, Q4, Q5, Q6 = (np.float32(q) for q in np.polyfit(_NODES, np.exp(_NODES / 16), 6)[::-1])
ROOT = np.float32(math.sqrt(2 * math.pi))


@jit()
def _rise(m):  # type: ignore[no-untyped-def]
    """exp(m / 2) for 0 <= m <= LIMIT; it grows on beyond."""
    q = Q0 + m * (Q1 + m * (Q2 + m * (Q3 + m * (Q4 + m * (Q5 + m * Q6)))))
    q = q * q
    q = q * q
    return q * q


@jit()
def _dot(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@jit()
def _times(a, n, x, y, z):  # type: ignore[no-untyped-def]
    return (a[n, 0, 0] * x + a[n, 0, 1] * y + a[n, 0, 2] * z, a[n, 1, 0] * x + a[n, 1, 1] * y + a[n, 1, 2] * z,
            a[n, 2, 0] * x + a[n, 2, 1] * y + a[n, 2, 2] * z)


@jit()
def _footprint(n, view, centres, whiten, table, parallel):  # type: ignore[no-untyped-def]
    """What Gaussian n is on the detector of a view, whose flat pixel (x, y) lies at C + x u + y v.

    E(x, y) and W(x, y) of `splat` as three vectors each (constant, along x, along y), and the ellipse: six numbers of
    F = f0 + 2 f1 x + 2 f2 y + f11 x^2 + 2 f12 xy + f22 y^2 = (|E|^2 - LIMIT) |W|^2 - (E . W)^2, at most 0 inside.
    """
    source, centre, u, v = table
    o = centre if parallel else source
    e = _times(whiten, n, o[view, 0] - centres[n, 0], o[view, 1] - centres[n, 1], o[view, 2] - centres[n, 2])
    au, av = _times(whiten, n, u[view, 0], u[view, 1], u[view, 2]), _times(whiten, n, v[view, 0], v[view, 1], v[view, 2])
    none = (0.0, 0.0, 0.0)
    if parallel:
        w = _times(whiten, n, source[view, 0], source[view, 1], source[view, 2])
        p, g, f = w, e, _dot(w, w)
    else:
        w = _times(whiten, n, centre[view, 0] - source[view, 0], centre[view, 1] - source[view, 1], centre[view, 2] - source[view, 2])
        p, g, f = e, w, _dot(e, e) - LIMIT
    pg, pu, pv = _dot(p, g), _dot(p, au), _dot(p, av)
    ellipse = (f * _dot(g, g) - pg * pg - (LIMIT * f if parallel else 0.0), f * _dot(g, au) - pg * pu, f * _dot(g, av) - pg * pv,
               f * _dot(au, au) - pu * pu, f * _dot(au, av) - pu * pv, f * _dot(av, av) - pv * pv)
    # Any point of the ray may be its origin: from one near the Gaussian the differences are small enough for float32.
    t = -_dot(e, w) / _dot(w, w)
    e = (e[0] + t * w[0], e[1] + t * w[1], e[2] + t * w[2])
    if parallel:
        return (e, au, av), (w, none, none), ellipse
    return (e, (t * au[0], t * au[1], t * au[2]), (t * av[0], t * av[1], t * av[2])), (w, au, av), ellipse


@jit()
def _extent(f0, f1, f2, f11, f12, f22):  # type: ignore[no-untyped-def]
    """The interval of y that the ellipse covers; everything if it is none, nothing if it is empty."""
    a, b, c = f12 * f12 - f11 * f22, f1 * f12 - f11 * f2, f1 * f1 - f11 * f0
    if not (f11 > 0 and a < -1e-12 * f11 * f22):
        return -1e30, 1e30
    root = b * b - a * c
    if root <= 0:
        return 1.0, -1.0
    root = math.sqrt(root)
    return (b - root) / -a, (b + root) / -a


@jit()
def _first(x, value):  # type: ignore[no-untyped-def]
    """Number of entries of a rising list below a value."""
    low, high = 0, len(x)
    while low < high:
        middle = (low + high) // 2
        if x[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@jit()
def _columns(y, ellipse, x, bend, rows):  # type: ignore[no-untyped-def]
    """First and one past the last column that the ellipse covers in the row at y; in any row where the rows of a curved detector bend."""
    f0, f1, f2, f11, f12, f22 = ellipse
    if bend > 1 and rows > 1:
        low, high = _extent(f0, f2, f1, f22, f12, f11)
    elif f11 <= 0:
        low, high = -1e30, 1e30
    else:
        b = f1 + f12 * y
        root = b * b - f11 * (f0 + 2 * f2 * y + f22 * y * y)
        if root <= 0:
            return 0, 0
        root = math.sqrt(root)
        low, high = (-b - root) / f11, (-b + root) / f11
    if bend == 1:
        middle = (len(x) - 1) / 2
        return math.ceil(max(low + middle, 0.0)), math.floor(min(high + middle, len(x) - 1.0)) + 1
    return _first(x, low), _first(x, high)


@jit()
def _rows(ellipse, rows, bend):  # type: ignore[no-untyped-def]
    """First and one past the last row that the ellipse covers; on a curved detector a row's y is at most `bend` times nearer."""
    f0, f1, f2, f11, f12, f22 = ellipse
    low, high = _extent(f0, f1, f2, f11, f12, f22) if rows > 1 else (-1e30, 1e30)
    if low > high:
        return 0, 0
    low, high = min(low, low / bend), max(high, high / bend)
    middle = (rows - 1) / 2
    return math.ceil(max(low + middle, 0.0)), math.floor(min(high + middle, rows - 1.0)) + 1


@jit(parallel=True)
def _rays(centres, whiten, weights, table, x, k, bend, parallel, bands, out):  # type: ignore[no-untyped-def]
    views, rows, _ = out.shape
    for task in numba.prange(views * bands):
        view, band = task // bands, task % bands
        start, stop = band * rows // bands, (band + 1) * rows // bands
        for n in range(len(centres)):
            e, w, ellipse = _footprint(n, view, centres, whiten, table, parallel)
            low, high = _rows(ellipse, rows, bend)
            for row in range(max(start, low), min(stop, high)):
                r = np.float32(row - (rows - 1) / 2)
                first, last = _columns(r, ellipse, x, bend, rows)
                _add_row(e, w, weights[n], r, x, k, first, last, out[view, row])


@jit()
def _single(v):  # type: ignore[no-untyped-def]
    """Three vectors in float32."""
    a, b, c = v
    return (np.float32(a[0]), np.float32(a[1]), np.float32(a[2]), np.float32(b[0]), np.float32(b[1]), np.float32(b[2]),
            np.float32(c[0]), np.float32(c[1]), np.float32(c[2]))


@jit()
def _miss(e, w, x, y):  # type: ignore[no-untyped-def]
    """z, W and |W|^2 of the ray through (x, y)."""
    e0, e1, e2 = e[0] + x * e[3] + y * e[6], e[1] + x * e[4] + y * e[7], e[2] + x * e[5] + y * e[8]
    w0, w1, w2 = w[0] + x * w[3] + y * w[6], w[1] + x * w[4] + y * w[7], w[2] + x * w[5] + y * w[8]
    ww = w0 * w0 + w1 * w1 + w2 * w2
    t = (e0 * w0 + e1 * w1 + e2 * w2) / ww
    return e0 - t * w0, e1 - t * w1, e2 - t * w2, w0, w1, w2, ww


@jit()
def _add_row(e, w, weight, r, x, k, first, last, out):  # type: ignore[no-untyped-def]
    e, w, weight = _single(e), _single(w), np.float32(weight * ROOT)
    xs, ks, part = x[first:last], k[first:last], out[first:last]
    for c in range(len(xs)):
        z0, z1, z2, _, _, _, ww = _miss(e, w, xs[c], r * ks[c])
        m = z0 * z0 + z1 * z1 + z2 * z2
        part[c] += weight / (_rise(m) * np.sqrt(ww))


@jit()
def _sum_row(e, w, g, r, x, k, first, last, sums):  # type: ignore[no-untyped-def]
    """Add up, over the pixels of a row, g v times 1, z, and the upper half of z z' + W W' / |W|^2."""
    e, w = _single(e), _single(w)
    s = a0 = a1 = a2 = b00 = b01 = b02 = b11 = b12 = b22 = np.float32(0)
    xs, ks, gs = x[first:last], k[first:last], g[first:last]
    for c in range(len(xs)):
        z0, z1, z2, w0, w1, w2, ww = _miss(e, w, xs[c], r * ks[c])
        m = z0 * z0 + z1 * z1 + z2 * z2
        v = gs[c] / (_rise(m) * np.sqrt(ww))
        h = v / ww
        s += v
        a0 += v * z0
        a1 += v * z1
        a2 += v * z2
        b00 += v * z0 * z0 + h * w0 * w0
        b01 += v * z0 * z1 + h * w0 * w1
        b02 += v * z0 * z2 + h * w0 * w2
        b11 += v * z1 * z1 + h * w1 * w1
        b12 += v * z1 * z2 + h * w1 * w2
        b22 += v * z2 * z2 + h * w2 * w2
    for i, value in enumerate((s, a0, a1, a2, b00, b01, b02, b11, b12, b22)):
        sums[i] += value


@jit(parallel=True)
def _rays_gradient(centres, whiten, g, table, x, k, bend, parallel, sums):  # type: ignore[no-untyped-def]
    views, rows, _ = g.shape
    for n in numba.prange(len(centres)):
        for view in range(views):
            e, w, ellipse = _footprint(n, view, centres, whiten, table, parallel)
            low, high = _rows(ellipse, rows, bend)
            for row in range(low, high):
                r = np.float32(row - (rows - 1) / 2)
                first, last = _columns(r, ellipse, x, bend, rows)
                if first < last:
                    _sum_row(e, w, g[view, row], r, x, k, first, last, sums[n])


@jit(parallel=True)
def _points(x, starts, cells, low, step, centres, whiten, half, weights, slabs, out):  # type: ignore[no-untyped-def]
    for slab in numba.prange(slabs):
        begin, end = slab * cells[0] // slabs, (slab + 1) * cells[0] // slabs
        first, last = np.empty(3, np.int64), np.empty(3, np.int64)
        for n in range(len(centres)):
            _cells(centres[n], half[n], cells, low, step, first, last)
            for i in range(max(begin, first[0]), min(end, last[0])):
                for j in range(first[1], last[1]):
                    line = (i * cells[1] + j) * cells[2]
                    _add_points(x, centres, whiten, n, starts[line + first[2]], starts[line + last[2]], weights[n], out)


@jit()
def _cells(centre, half, cells, low, step, first, last):  # type: ignore[no-untyped-def]
    """First and one past the last cell, along each axis, that the box of a Gaussian overlaps."""
    for d in range(3):
        a, b = (centre[d] - half[d] - low[d]) / step[d], (centre[d] + half[d] - low[d]) / step[d]
        first[d] = math.floor(min(max(a, 0.0), cells[d]))
        last[d] = max(first[d], math.floor(min(max(b, -1.0), cells[d] - 1.0)) + 1)
        first[d] = min(first[d], last[d])


@jit()
def _place(centres, whiten, n):  # type: ignore[no-untyped-def]
    """Centre and whitening matrix as twelve numbers."""
    return (centres[n, 0], centres[n, 1], centres[n, 2], whiten[n, 0, 0], whiten[n, 0, 1], whiten[n, 0, 2], whiten[n, 1, 0], whiten[n, 1, 1],
            whiten[n, 1, 2], whiten[n, 2, 0], whiten[n, 2, 1], whiten[n, 2, 2])


@jit()
def _away(p, x, y, z):  # type: ignore[no-untyped-def]
    """A (x - c)."""
    x, y, z = x - p[0], y - p[1], z - p[2]
    return p[3] * x + p[4] * y + p[5] * z, p[6] * x + p[7] * y + p[8] * z, p[9] * x + p[10] * y + p[11] * z


@jit()
def _add_points(x, centres, whiten, n, first, last, weights, out):  # type: ignore[no-untyped-def]
    p = _place(centres, whiten, n)
    for channel in range(len(weights)):
        weight, row = weights[channel], out[channel]
        for i in range(first, last):
            z0, z1, z2 = _away(p, x[0, i], x[1, i], x[2, i])
            m = z0 * z0 + z1 * z1 + z2 * z2
            row[i] += weight / _rise(m) if m < np.float32(LIMIT) else np.float32(0)


@jit()
def _sum_points(x, p, g, weight, first, last, sums):  # type: ignore[no-untyped-def]
    """Add up g v times weight, z and z z', and return the sum of g v."""
    s = a0 = a1 = a2 = b00 = b01 = b02 = b11 = b12 = b22 = np.float32(0)
    for i in range(first, last):
        z0, z1, z2 = _away(p, x[0, i], x[1, i], x[2, i])
        m = z0 * z0 + z1 * z1 + z2 * z2
        v = g[i] / _rise(m) if m < np.float32(LIMIT) else np.float32(0)
        s += v
        a0 += v * z0
        a1 += v * z1
        a2 += v * z2
        b00 += v * z0 * z0
        b01 += v * z0 * z1
        b02 += v * z0 * z2
        b11 += v * z1 * z1
        b12 += v * z1 * z2
        b22 += v * z2 * z2
    for i, value in enumerate((a0, a1, a2, b00, b01, b02, b11, b12, b22)):
        sums[i + 1] += weight * value
    return s


@jit(parallel=True)
def _points_gradient(x, starts, cells, low, step, centres, whiten, half, weights, g, to_weights, sums):  # type: ignore[no-untyped-def]
    for n in numba.prange(len(centres)):
        first, last = np.empty(3, np.int64), np.empty(3, np.int64)
        _cells(centres[n], half[n], cells, low, step, first, last)
        p = _place(centres, whiten, n)
        for i in range(first[0], last[0]):
            for j in range(first[1], last[1]):
                line = (i * cells[1] + j) * cells[2]
                begin, end = starts[line + first[2]], starts[line + last[2]]
                if begin < end:
                    for channel in range(weights.shape[1]):
                        to_weights[n, channel] += _sum_points(x, p, g[channel], weights[n, channel], begin, end, sums[n])


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


def _detector(table: RayTable) -> tuple[Any, ...]:
    """The table with a flat detector in the place of a curved one: column c at x[c], its row r at r k[c]; and the length of the rays."""
    away = 1.0 if table.parallel else float(np.linalg.norm(table.centre[0] - table.source[0]) / np.linalg.norm(table.w[0]))
    k = away / (away + table.b)
    length = np.einsum("vrci,ij,vrcj->vrc", (d := table.rays()[1].numpy()), table.metric, d) ** 0.5
    # A curved detector's pixel is nearer than the flat one's by k, and the sums are taken along the way to the flat one.
    vectors = tuple(np.ascontiguousarray(t, dtype=np.float64) for t in (table.source, table.centre, table.u, table.v))
    return vectors, (table.a * k).astype(np.float32), k.astype(np.float32), float(k.max()), (length * k).astype(np.float32)


def rays(centres: Tensor, whiten: Tensor, weights: Tensor, table: RayTable) -> Tensor:
    """See `splat.ray_sums`."""
    threads = use_threads()
    vectors, x, k, bend, length = _detector(table)
    out = np.zeros(table.shape, np.float32)
    bands = min(table.rows, max(1, -(-2 * threads // len(out))))
    _rays(*_numpy(centres, whiten, weights), vectors, x, k, bend, table.parallel, bands, out)
    return torch.from_numpy(out * length)


def rays_gradient(centres: Tensor, whiten: Tensor, weights: Tensor, table: RayTable, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to centres, whitening matrices and weights."""
    use_threads()
    vectors, x, k, bend, length = _detector(table)
    sums = np.zeros((len(centres), 10), np.float32)
    _rays_gradient(*_numpy(centres, whiten), g.contiguous().numpy() * length, vectors, x, k, bend, table.parallel, sums)
    sums *= ROOT
    (weight,) = _numpy(weights)
    to_weights = sums[:, 0].copy()
    return *_chain(sums * weight[:, None], *_numpy(whiten)), torch.from_numpy(to_weights)


def _chain(sums: np.ndarray, whiten: np.ndarray) -> tuple[Tensor, Tensor]:
    """From sums of g v z and g v (z z' + W W' / |W|^2) to the gradients: A' (the former), and minus the latter times the inverse of A'."""
    square = sums[:, [4, 5, 6, 5, 7, 8, 6, 8, 9]].reshape(-1, 3, 3)
    to_centres = np.einsum("nij,ni->nj", whiten, sums[:, 1:4])
    return torch.from_numpy(to_centres), torch.from_numpy(-square @ _inverse_transposed(whiten)[0])


def _inverse_transposed(whiten: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A^-1)' by cross products, of flat ones as if they were one unit thick; and which are flat."""
    a, b, c = whiten[:, 0], whiten[:, 1], whiten[:, 2]
    flat = np.logical_not(np.any(c != 0, axis=1))
    c = np.where(flat[:, None], np.array([0, 0, 1], np.float32), c)
    cross = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1)
    return cross / (a * cross[:, 0]).sum(1)[:, None, None], flat


def _sorted(x: np.ndarray, centres: np.ndarray, whiten: np.ndarray) -> tuple[np.ndarray, tuple[Any, ...], np.ndarray]:
    """The order of points by cells of about eight; the cells, and the half sides of the Gaussians' boxes."""
    low, high = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    side = np.maximum(high - low, 1e-9)
    wide = side > 1e-6 * side.max()
    step = (np.prod(side[wide]) * 8 / len(x)) ** (1 / wide.sum())
    cells = np.where(wide, np.clip(np.ceil(side / step), 1, 512), 1).astype(np.int64)
    step = side / cells * (1 + 1e-6)
    at = np.minimum(((x - low) / step).astype(np.int64), cells - 1)
    cell = (at[:, 0] * cells[1] + at[:, 1]) * cells[2] + at[:, 2]
    order = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[order], np.arange(np.prod(cells) + 1))
    inverse, flat = _inverse_transposed(whiten)
    half = REACH * np.linalg.norm(inverse, axis=1)
    half[flat, 2] = 1e30
    return order, (starts, cells, low, step), half


def points(x: Tensor, centres: Tensor, whiten: Tensor, weights: Tensor) -> Tensor:
    """See `splat.point_sums`."""
    xs, c, a, w = _numpy(x, centres, whiten, weights)
    out = np.zeros((w.shape[1], len(xs)), np.float32)
    if len(xs) and len(c):
        threads = use_threads()
        order, grid, half = _sorted(xs, c, a)
        _points(np.ascontiguousarray(xs[order].T), *grid, c, a, half, w, min(4 * threads, int(grid[1][0])), summed := np.zeros_like(out))
        out[:, order] = summed
    return torch.from_numpy(out).T


def points_gradient(x: Tensor, centres: Tensor, whiten: Tensor, weights: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to centres, whitening matrices and weights."""
    xs, c, a, w, gs = _numpy(x, centres, whiten, weights, g)
    to_weights, sums = np.zeros_like(w), np.zeros((len(c), 10), np.float32)
    if len(xs) and len(c):
        use_threads()
        order, grid, half = _sorted(xs, c, a)
        _points_gradient(np.ascontiguousarray(xs[order].T), *grid, c, a, half, w, np.ascontiguousarray(gs[order].T), to_weights, sums)
    return *_chain(sums, a), torch.from_numpy(to_weights)
