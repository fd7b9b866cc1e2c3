"""`joseph` and its transpose in Numba.

The lattice gets a rim of zeros, so that the inner loops have no branches. Where all rows of the detector run along one axis of the lattice
(`_stacked`: a circular or helical cone beam, a stack of parallel slices), the rays of one column cross every plane on one line of voxels:
two lines are blended once and serve all rows. Other rays are followed one by one. The transposes are shared out by slabs of the lattice,
so that no two threads write to one voxel and every sum runs in the order of the rays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from torch import Tensor

from .dispatch import jit, use_threads

if TYPE_CHECKING:
    from .joseph import RayTable, Shape

ONE, NEXT = np.float32(1), np.uintp(1)  # unsigned: an index that may be negative is checked each time
RIM = 2  # voxels of zeros on either side: one for values that fade, one for rounding


@jit()
def _span(o, d, low, high, start, stop):  # type: ignore[no-untyped-def]
    """The part of [start, stop] in which low <= o + t d <= high."""
    if abs(d) < 1e-12:
        return (start, stop) if low <= o <= high else (1.0, 0.0)
    a, b = (low - o) / d, (high - o) / d
    return max(start, min(a, b)), min(stop, max(a, b))


@jit()
def _pixel(view, r, column, table, e):  # type: ignore[no-untyped-def]
    """Where a pixel lies along lattice axis e, r rows from the middle."""
    _source, centre, u, v, w, a, b = table
    return centre[view, e] + a[column] * u[view, e] + b[column] * w[view, e] + r * v[view, e]


@jit()
def _ray(view, r, column, table, parallel):  # type: ignore[no-untyped-def]
    """Origin and direction in voxels."""
    source = table[0]
    x, y, z = _pixel(view, r, column, table, 0), _pixel(view, r, column, table, 1), _pixel(view, r, column, table, 2)
    s0, s1, s2 = source[view, 0], source[view, 1], source[view, 2]
    if parallel:
        return x, y, z, s0, s1, s2
    return s0, s1, s2, x - s0, y - s1, z - s2


@jit()
def _length(d0, d1, d2, metric):  # type: ignore[no-untyped-def]
    """mm of a step in voxels."""
    squared = metric[0, 0] * d0 * d0 + metric[1, 1] * d1 * d1 + metric[2, 2] * d2 * d2
    return math.sqrt(squared + 2 * (metric[0, 1] * d0 * d1 + metric[0, 2] * d0 * d2 + metric[1, 2] * d1 * d2))


@jit()
def _planes(o, d, n, p, dp, low, high, start, stop):  # type: ignore[no-untyped-def]
    """The first and last of n planes along o + t d, t in [start, stop], in which low <= p + t dp <= high; last < first if there is none."""
    start, stop = _span(o, d, 0.0, n - 1.0, start, stop)
    start, stop = _span(p, dp, low, high, start, stop)
    if (start - stop) * abs(d) > 1e-9:  # in voxels, so that a source or a pixel may lie in a plane
        return 0, -1
    first, last = o + start * d, o + stop * d
    return math.ceil(min(first, last) - 1e-9), math.floor(max(first, last) + 1e-9)


@jit()
def _reach(n):  # type: ignore[no-untyped-def]
    """Between which voxel indices an axis of n has values: one voxel beyond the outermost centres, or the thickness of a single one."""
    return (-0.5, 0.5) if n == 1 else (-1.0, float(n))


@jit()
def _through(ray, n, prefer, metric, parallel):  # type: ignore[no-untyped-def]
    """Which axis leads, the first and last plane that the ray crosses inside, where it stands in plane 0 along the two other axes (counted
    from the rim), its steps along them from plane to plane, and mm between two planes."""
    o0, o1, o2, d0, d1, d2 = ray
    a0, a1, a2 = abs(d0) * prefer[0], abs(d1) * prefer[1], abs(d2) * prefer[2]
    if a0 >= a1 and a0 >= a2:
        axis, o, d, p, dp, q, dq, na, nb, nc = 0, o0, d0, o1, d1, o2, d2, n[0], n[1], n[2]
    elif a1 >= a2:
        axis, o, d, p, dp, q, dq, na, nb, nc = 1, o1, d1, o0, d0, o2, d2, n[1], n[0], n[2]
    else:
        axis, o, d, p, dp, q, dq, na, nb, nc = 2, o2, d2, o0, d0, o1, d1, n[2], n[0], n[1]
    low, high = _reach(nc)
    start, stop = _span(q, dq, low, high, -1e30 if parallel else 0.0, 1e30 if parallel else 1.0)
    low, high = _reach(nb)
    first, last = _planes(o, d, na, p, dp, low, high, start, stop)
    sp, sq = dp / d, dq / d
    return axis, first, last, p - o * sp + RIM, sp, q - o * sq + RIM, sq, _length(d0, d1, d2, metric) / abs(d)


@jit(parallel=True)
def _forward(c, n, stride, prefer, table, metric, parallel, out):  # type: ignore[no-untyped-def]
    views, rows, columns = out.shape
    for line in numba.prange(views * rows):
        view, row = line // rows, line % rows
        for column in range(columns):
            ray = _ray(view, row - (rows - 1) / 2, column, table, parallel)
            axis, first, last, p0, sp, q0, sq, step = _through(ray, n, prefer, metric, parallel)
            sa, sb, sc = stride[axis], stride[1 if axis == 0 else 0], stride[1 if axis == 2 else 2]
            total = np.float32(0)
            if sc == 0:
                for i in range(first, last + 1):
                    p = p0 + i * sp
                    j = int(p)
                    f = np.float32(p - j)
                    at = (i + RIM) * sa + j * sb
                    total += (ONE - f) * c[at] + f * c[at + sb]
            else:
                for i in range(first, last + 1):
                    p, q = p0 + i * sp, q0 + i * sq
                    j, k = int(p), int(q)
                    f, g = np.float32(p - j), np.float32(q - k)
                    at = (i + RIM) * sa + j * sb + k * sc
                    total += (ONE - f) * ((ONE - g) * c[at] + g * c[at + sc]) + f * ((ONE - g) * c[at + sb] + g * c[at + sb + sc])
            out[view, row, column] = total * np.float32(step)


@jit(parallel=True)
def _transpose(y, n, stride, prefer, table, metric, parallel, slabs, out):  # type: ignore[no-untyped-def]
    views, rows, columns = y.shape
    for leading in range(3):
        for slab in numba.prange(slabs):
            begin, end = slab * n[leading] // slabs, (slab + 1) * n[leading] // slabs
            sa, sb, sc = stride[leading], stride[1 if leading == 0 else 0], stride[1 if leading == 2 else 2]
            for line in range(views * rows):
                view, row = line // rows, line % rows
                for column in range(columns):
                    ray = _ray(view, row - (rows - 1) / 2, column, table, parallel)
                    axis, first, last, p0, sp, q0, sq, step = _through(ray, n, prefer, metric, parallel)
                    if axis != leading:
                        continue
                    value = y[view, row, column] * np.float32(step)
                    for i in range(max(first, begin), min(last + 1, end)):
                        p = p0 + i * sp
                        j = int(p)
                        f = np.float32(p - j)
                        at = (i + RIM) * sa + j * sb
                        near, far = (ONE - f) * value, f * value
                        if sc == 0:
                            out[at] += near
                            out[at + sb] += far
                        else:
                            q = q0 + i * sq
                            k = int(q)
                            g = np.float32(q - k)
                            at += k * sc
                            out[at] += (ONE - g) * near
                            out[at + sc] += g * near
                            out[at + sb] += (ONE - g) * far
                            out[at + sb + sc] += g * far


@jit()
def _column(view, column, rows, n, prefer, table, parallel):  # type: ignore[no-untyped-def]
    """For the rays of one column: which axis leads, the first and last plane, p0 and sp as in `_through`, and along the rows the position
    q(i, r) = q0 + i sq + r (v0 + i sv) of row r in plane i."""
    o0, o1, o2, d0, d1, d2 = _ray(view, -(rows - 1) / 2, column, table, parallel)
    if abs(d0) * prefer[0] >= abs(d1) * prefer[1]:
        axis, o, d, p, dp, na, nb = 0, o0, d0, o1, d1, n[0], n[1]
    else:
        axis, o, d, p, dp, na, nb = 1, o1, d1, o0, d0, n[1], n[0]
    low, high = _reach(nb)
    first, last = _planes(o, d, na, p, dp, low, high, -1e30 if parallel else 0.0, 1e30 if parallel else 1.0)
    v = table[3][view, 2]
    sp, sq, sv = dp / d, d2 / d, (0.0 if parallel else v / d)
    return axis, first, last, p - o * sp + RIM, sp, o2 - o * sq + RIM, sq, (v if parallel else -o * sv), sv


@jit()
def _step(view, row, rows, column, axis, table, metric, parallel):  # type: ignore[no-untyped-def]
    """mm between two planes."""
    _0, _1, _2, d0, d1, d2 = _ray(view, row - (rows - 1) / 2, column, table, parallel)
    return np.float32(_length(d0, d1, d2, metric) / abs(d0 if axis == 0 else d1))


@jit()
def _between(q, dq, n, rows):  # type: ignore[no-untyped-def]
    """The rows r (begin, end) with q + r dq on an axis of n, and the voxels (begin, end) they touch, all counted from the rim."""
    start, stop = _span(q, dq, RIM - 1.0, RIM + float(n), 0.0, rows - 1.0)
    if start > stop:
        return 0, 0, 0, 0
    begin, end = math.ceil(start), math.floor(stop) + 1
    one, other = q + begin * dq, q + (end - 1) * dq
    return begin, end, int(min(one, other)), int(max(one, other)) + 2


@jit()
def _blend(f, near, far, line):  # type: ignore[no-untyped-def]
    g = ONE - f
    for k in range(len(near)):
        line[k] = g * near[k] + f * far[k]


@jit()
def _spread(f, line, near, far):  # type: ignore[no-untyped-def]
    g = ONE - f
    for k in range(len(near)):
        near[k] += g * line[k]
        far[k] += f * line[k]


@jit()
def _read(line, q, dq, begin, end, total):  # type: ignore[no-untyped-def]
    for r in range(begin, end):
        x = q + r * dq
        k = np.int32(x)
        g, k = np.float32(x - k), np.uintp(np.uint32(k))
        total[r] += (ONE - g) * line[k] + g * line[k + NEXT]


@jit()
def _write(line, q, dq, begin, end, value):  # type: ignore[no-untyped-def]
    for r in range(begin, end):
        x = q + r * dq
        k = np.int32(x)
        g, k = np.float32(x - k), np.uintp(np.uint32(k))
        line[k] += (ONE - g) * value[r]
        line[k + NEXT] += g * value[r]


@jit(parallel=True)
def _forward_stacked(c, n, stride, prefer, table, metric, parallel, out):  # type: ignore[no-untyped-def]
    views, rows, columns = out.shape
    for ray in numba.prange(views * columns):
        view, column = ray // columns, ray % columns
        axis, first, last, p0, sp, q0, sq, v0, sv = _column(view, column, rows, n, prefer, table, parallel)
        sa, sb = stride[axis], stride[1 - axis]
        line, total = np.empty(stride[1], np.float32), np.zeros(rows, np.float32)
        for i in range(first, last + 1):
            p, q, dq = p0 + i * sp, q0 + i * sq, v0 + i * sv
            begin, end, low, high = _between(q, dq, n[2], rows)
            j = int(p)
            at = (i + RIM) * sa + j * sb + low
            _blend(np.float32(p - j), c[at:at + high - low], c[at + sb:at + sb + high - low], line)
            _read(line, q - low, dq, begin, end, total)
        for r in range(rows):
            out[view, r, column] = total[r] * _step(view, r, rows, column, axis, table, metric, parallel)


@jit(parallel=True)
def _transpose_stacked(y, n, stride, prefer, table, metric, parallel, slabs, out):  # type: ignore[no-untyped-def]
    views, rows, columns = y.shape
    for leading in range(2):
        sa, sb = stride[leading], stride[1 - leading]
        for slab in numba.prange(slabs):
            begin_plane, end_plane = slab * n[leading] // slabs, (slab + 1) * n[leading] // slabs
            line, value = np.empty(stride[1], np.float32), np.empty(rows, np.float32)
            for ray in range(views * columns):
                view, column = ray // columns, ray % columns
                axis, first, last, p0, sp, q0, sq, v0, sv = _column(view, column, rows, n, prefer, table, parallel)
                if axis != leading:
                    continue
                for r in range(rows):
                    value[r] = y[view, r, column] * _step(view, r, rows, column, axis, table, metric, parallel)
                for i in range(max(first, begin_plane), min(last + 1, end_plane)):
                    p, q, dq = p0 + i * sp, q0 + i * sq, v0 + i * sv
                    begin, end, low, high = _between(q, dq, n[2], rows)
                    line[:high - low] = 0
                    _write(line, q - low, dq, begin, end, value)
                    j = int(p)
                    at = (i + RIM) * sa + j * sb + low
                    _spread(np.float32(p - j), line, out[at:at + high - low], out[at + sb:at + sb + high - low])


class _Plan:
    """A lattice of some shape with its rim, its axes in the order that suits the kernels: a single voxel, or the rows' axis, comes last."""

    def __init__(self, table: RayTable, shape: tuple[int, ...]):
        along = _rows_axis(table) if min(shape) > 1 else None
        end = shape.index(1) if min(shape) == 1 else 2 if along is None else along
        self.order = [*(d for d in range(3) if d != end), end]
        self.back = np.argsort(self.order).tolist()
        self.stacked = along is not None
        self.shape = [shape[d] for d in self.order]
        self.rimmed = [1 if n == 1 else n + 2 * RIM for n in self.shape]
        self.within = tuple(slice(0 if n == 1 else RIM, (0 if n == 1 else RIM) + n) for n in self.shape)
        strides = (self.rimmed[1] * self.rimmed[2], self.rimmed[2], 1)
        # A single voxel is as good as endless copies of itself: its neighbours lie zero steps away.
        stride = [0 if n == 1 else s for n, s in zip(self.shape, strides, strict=True)]
        vectors = (*(np.ascontiguousarray(x[:, self.order]) for x in (table.source, table.centre, table.u, table.v, table.w)), table.a, table.b)
        metric = np.ascontiguousarray(table.metric[np.ix_(self.order, self.order)])
        self.arguments: Any = (np.array(self.shape), np.array(stride), table.prefer[self.order], vectors, metric, table.parallel)


def _rows_axis(table: RayTable) -> int | None:
    """The lattice axis along which the rows of all views run, if there are several and that axis leads no ray."""
    axis = int(np.abs(table.v[0]).argmax())
    aside = np.delete(np.abs(table.v), axis, 1).max() * table.rows
    if table.rows == 1 or aside > 1e-6:
        return None
    for r in (-(table.rows - 1) / 2, (table.rows - 1) / 2):
        d = table.source[:, None] if table.parallel else (table.centre - table.source + r * table.v)[:, None] + (
            table.a[:, None] * table.u[:, None] + table.b[:, None] * table.w[:, None])
        if (np.abs(d[..., axis]) > 0.999 * np.delete(np.abs(d), axis, -1).max(-1)).any():
            return None
    return axis


def forward(lattice: Tensor, table: RayTable) -> Tensor:
    """See `joseph`."""
    use_threads()
    plan = _Plan(table, tuple(lattice.shape))
    c, out = np.zeros(plan.rimmed, np.float32), np.empty(table.shape, np.float32)
    c[plan.within] = lattice.permute(plan.order).numpy()
    (_forward_stacked if plan.stacked else _forward)(c.reshape(-1), *plan.arguments, out)
    return torch.from_numpy(out)


def transpose(y: Tensor, table: RayTable, shape: Shape) -> Tensor:
    """See `joseph_transpose`."""
    slabs, plan = use_threads(), _Plan(table, shape)
    out = np.zeros(plan.rimmed, np.float32)
    (_transpose_stacked if plan.stacked else _transpose)(y.contiguous().numpy(), *plan.arguments, slabs, out.reshape(-1))
    return torch.from_numpy(out[plan.within]).permute(plan.back).contiguous()
