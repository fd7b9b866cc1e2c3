"""`joseph` and its transpose on CUDA: one program for a block of rays, which are followed from plane to plane side by side.

Where a ray runs is worked out in double precision, the sums in single. The transpose adds atomically, so its last digits differ from run
to run. With TRITON_INTERPRET=1 the same code runs in numpy on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

from inspect import unwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .joseph import RayTable, Shape

BLOCK = 128  # rays of one program


def jit(function: Any) -> Any:
    """triton.jit on the bare function: the tests wrap every function in a type checker, which Triton cannot read."""
    return triton.jit(unwrap(function))


@jit
def _span(o, d, low, high, start, stop):  # type: ignore[no-untyped-def]
    """The part of [start, stop] in which low <= o + t d <= high."""
    still = tl.abs(d) < 1e-12
    a = (low - o) / tl.where(still, 1.0, d)
    b = (high - o) / tl.where(still, 1.0, d)
    start = tl.where(still, start, tl.maximum(start, tl.minimum(a, b)))
    stop = tl.where(still, stop, tl.minimum(stop, tl.maximum(a, b)))
    outside = still & ((o < low) | (o > high))
    return tl.where(outside, 1.0, start), tl.where(outside, 0.0, stop)


@jit
def _reach(n):  # type: ignore[no-untyped-def]
    """Between which voxel indices an axis of n has values: one voxel beyond the outermost centres, or the thickness of a single one."""
    return tl.where(n == 1, -0.5, -1.0), tl.where(n == 1, 0.5, n.to(tl.float64))


@jit
def _axis(view_ptr, view, a, b, r, d: tl.constexpr, parallel: tl.constexpr):  # type: ignore[no-untyped-def]
    """Origin and direction of the rays along lattice axis d, in voxels."""
    source = tl.load(view_ptr + view * 15 + d)
    pixel = tl.load(view_ptr + view * 15 + 3 + d) + a * tl.load(view_ptr + view * 15 + 6 + d)
    pixel += b * tl.load(view_ptr + view * 15 + 12 + d) + r * tl.load(view_ptr + view * 15 + 9 + d)
    origin = pixel if parallel else source
    direction = source if parallel else pixel - source
    return origin, direction


@jit
def _pick(first, second, x0, x1, x2):  # type: ignore[no-untyped-def]
    """x0, x1 or x2, as `first` or else `second` holds or neither."""
    return tl.where(first, x0, tl.where(second, x1, x2))


@jit
def _follow(view_ptr, step_ptr, metric_ptr, n0, n1, n2, ray, rays, rows, columns, parallel: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many planes each ray crosses inside, from which on, where it stands there and what it moves from plane to plane along the two
    other axes, mm between two planes, and sizes and strides of the lattice along the leading and the two other axes."""
    inside = ray < rays
    ray = tl.where(inside, ray, 0)
    view, row, column = ray // (rows * columns), ray // columns % rows, ray % columns
    a, b = tl.load(step_ptr + 2 * column), tl.load(step_ptr + 2 * column + 1)
    r = row.to(tl.float64) - (rows - 1) / 2
    o0, d0 = _axis(view_ptr, view, a, b, r, 0, parallel)
    o1, d1 = _axis(view_ptr, view, a, b, r, 1, parallel)
    o2, d2 = _axis(view_ptr, view, a, b, r, 2, parallel)
    a0, a1, a2 = tl.abs(d0) * tl.load(metric_ptr + 9), tl.abs(d1) * tl.load(metric_ptr + 10), tl.abs(d2) * tl.load(metric_ptr + 11)
    x, y = (a0 >= a1) & (a0 >= a2), a1 >= a2
    o, d, na = _pick(x, y, o0, o1, o2), _pick(x, y, d0, d1, d2), _pick(x, y, n0, n1, n2)
    p, dp, nb = _pick(x, y, o1, o0, o0), _pick(x, y, d1, d0, d0), _pick(x, y, n1, n0, n0)
    q, dq, nc = _pick(x, y, o2, o2, o1), _pick(x, y, d2, d2, d1), _pick(x, y, n2, n2, n1)
    sa, sb, sc = _pick(x, y, n1 * n2, n2, 1), _pick(x, y, n2, n1 * n2, n1 * n2), _pick(x, y, 1, 1, n2)
    start = tl.zeros(o.shape, tl.float64) + (-1e30 if parallel else 0.0)
    stop = tl.zeros(o.shape, tl.float64) + (1e30 if parallel else 1.0)
    start, stop = _span(o, d, 0.0, (na - 1).to(tl.float64), start, stop)
    low, high = _reach(nb)
    start, stop = _span(p, dp, low, high, start, stop)
    low, high = _reach(nc)
    start, stop = _span(q, dq, low, high, start, stop)
    hit = inside & ((start - stop) * tl.abs(d) <= 1e-9)
    one, other = tl.where(hit, o + start * d, 0.0), tl.where(hit, o + stop * d, 0.0)
    first = tl.ceil(tl.minimum(one, other) - 1e-9)
    count = tl.where(hit, tl.floor(tl.maximum(one, other) + 1e-9) - first + 1, 0).to(tl.int32)
    m01, m02, m12 = tl.load(metric_ptr + 1), tl.load(metric_ptr + 2), tl.load(metric_ptr + 5)
    squared = tl.load(metric_ptr) * d0 * d0 + tl.load(metric_ptr + 4) * d1 * d1 + tl.load(metric_ptr + 8) * d2 * d2
    step = tl.sqrt(squared + 2 * (m01 * d0 * d1 + m02 * d0 * d2 + m12 * d1 * d2)) / tl.abs(d)
    sp, sq = dp / d, dq / d
    sa = sa.to(tl.int64)  # a lattice may hold more voxels than 32 bits count
    return (count, first.to(tl.int64) * sa, p + (first - o) * sp, sp, q + (first - o) * sq, sq, step.to(tl.float32), sa, nb, sb, nc, sc)


@jit
def _near(p0, sp, i, n, stride):  # type: ignore[no-untyped-def]
    """In plane i: offsets of the two nodes along an axis, weights, and which are there. A single voxel is its own neighbour."""
    x = p0 + i * sp
    low = tl.floor(x)
    far = (x - low).to(tl.float32)
    j = tl.where(n == 1, 0, low).to(tl.int64)
    return j * stride, tl.where(n == 1, 0.0, far), (j >= 0) & (j < n), (j >= -1) & (j < n - 1)


@jit
def _forward_kernel(c_ptr, view_ptr, step_ptr, metric_ptr, out_ptr, n0, n1, n2, rays, rows, columns, parallel: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    count, start, p0, sp, q0, sq, step, sa, nb, sb, nc, sc = _follow(view_ptr, step_ptr, metric_ptr, n0, n1, n2, ray, rays, rows, columns, parallel)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.max(count, 0)):
        live = i < count
        j, f, j0, j1 = _near(p0, sp, i, nb, sb)
        k, g, k0, k1 = _near(q0, sq, i, nc, sc)
        at = c_ptr + start + i * sa + j + k
        total += (1 - f) * (1 - g) * tl.load(at, mask=live & j0 & k0, other=0.0)
        total += (1 - f) * g * tl.load(at + sc, mask=live & j0 & k1, other=0.0)
        total += f * (1 - g) * tl.load(at + sb, mask=live & j1 & k0, other=0.0)
        total += f * g * tl.load(at + sb + sc, mask=live & j1 & k1, other=0.0)
    tl.store(out_ptr + ray, total * step, mask=ray < rays)


@jit
def _transpose_kernel(y_ptr, view_ptr, step_ptr, metric_ptr, out_ptr, n0, n1, n2, rays, rows, columns, parallel: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    count, start, p0, sp, q0, sq, step, sa, nb, sb, nc, sc = _follow(view_ptr, step_ptr, metric_ptr, n0, n1, n2, ray, rays, rows, columns, parallel)
    value = step * tl.load(y_ptr + ray, mask=ray < rays, other=0.0)
    for i in range(tl.max(count, 0)):
        live = i < count
        j, f, j0, j1 = _near(p0, sp, i, nb, sb)
        k, g, k0, k1 = _near(q0, sq, i, nc, sc)
        at = out_ptr + start + i * sa + j + k
        tl.atomic_add(at, (1 - f) * (1 - g) * value, mask=live & j0 & k0, sem="relaxed")
        tl.atomic_add(at + sc, (1 - f) * g * value, mask=live & j0 & k1, sem="relaxed")
        tl.atomic_add(at + sb, f * (1 - g) * value, mask=live & j1 & k0, sem="relaxed")
        tl.atomic_add(at + sb + sc, f * g * value, mask=live & j1 & k1, sem="relaxed")


def _launch(kernel: Any, values: Tensor, table: RayTable, shape: Shape, out: Tensor) -> Tensor:
    views, rows, columns = table.shape
    values = values.detach().contiguous()
    vectors = np.concatenate([table.source, table.centre, table.u, table.v, table.w], 1), np.stack([table.a, table.b], 1)
    tables = (torch.as_tensor(x, device=out.device) for x in (*vectors, np.concatenate([table.metric.reshape(-1), table.prefer])))
    rays = views * rows * columns
    with torch.cuda.device_of(out):  # Triton launches on the current device, whichever the tensors are on
        kernel[(triton.cdiv(rays, BLOCK),)](values, *tables, out, *shape, rays, rows, columns, parallel=table.parallel, BLOCK=BLOCK)
    return out


def forward(lattice: Tensor, table: RayTable) -> Tensor:
    """See `joseph`."""
    shape = (lattice.shape[0], lattice.shape[1], lattice.shape[2])
    return _launch(_forward_kernel, lattice, table, shape, lattice.new_empty(table.shape))


def transpose(y: Tensor, table: RayTable, shape: Shape) -> Tensor:
    """See `joseph_transpose`."""
    return _launch(_transpose_kernel, y, table, shape, y.new_zeros(shape))
