"""The multi-resolution grid on CUDA: three Triton kernels, one program for each block of points and level, 1 to 4 dimensions.

Triton arrives with the CUDA builds of torch and compiles when a kernel is first called. The gradients are summed with atomic additions,
so their last digits differ from run to run. With TRITON_INTERPRET=1 the same code runs in numpy on the CPU, which is how it is tested
where there is no GPU.
"""

from __future__ import annotations

from functools import cache
from inspect import unwrap
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid_layout import GridLayout

BLOCK = 256  # points of one program


def jit(function: Any) -> Any:
    """triton.jit on the bare function: the tests wrap every function in a type checker, which Triton cannot read."""
    return triton.jit(unwrap(function))


@jit
def _axis(u_ptr, n_ptr, step_ptr, point, inside, level, d: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Along axis d: coordinate, position in the cell, cells, and what the near and far side add to the row. Axes beyond D add nothing."""
    u = tl.zeros(point.shape, tl.float32)
    n = 1
    step = tl.full((), 0, tl.uint32)
    if d < D:
        u = tl.load(u_ptr + point * D + d, mask=inside, other=0.0)
        n = tl.load(n_ptr + level * 4 + d)
        step = tl.load(step_ptr + level * 4 + d).to(tl.uint32)
    x = tl.where(u < 0.0, 0.0, tl.where(u > 1.0, 1.0, u)) * n
    cell = tl.where(x == x, x, 0.0).to(tl.int32)
    cell = tl.minimum(cell, n - 1)
    near = cell.to(tl.uint32) * step
    return u, x - cell.to(tl.float32), n, near, near + step


@jit
def _corner(c: tl.constexpr, x0, x1, x2, x3, a0, a1, a2, a3, b0, b1, b2, b3, hash_mask):  # type: ignore[no-untyped-def]
    """The factors of corner c along each axis and its row within the level; bit d of c is set on the far side of axis d."""
    w0 = x0 if c & 1 else 1.0 - x0
    w1 = x1 if c & 2 else 1.0 - x1
    w2 = x2 if c & 4 else 1.0 - x2
    w3 = x3 if c & 8 else 1.0 - x3
    r0 = b0 if c & 1 else a0
    r1 = b1 if c & 2 else a1
    r2 = b2 if c & 4 else a2
    r3 = b3 if c & 8 else a3
    row = tl.where(hash_mask != 0, (r0 ^ r1 ^ r2 ^ r3) & hash_mask, r0 + r1 + r2 + r3)
    return w0, w1, w2, w3, row.to(tl.int64)


@jit
def _forward_kernel(u_ptr, table_ptr, n_ptr, step_ptr, hash_ptr, offset_ptr, level_mask_ptr, out_ptr, points, columns,  # type: ignore[no-untyped-def]
                    D: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    point = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = point < points
    _u0, x0, _n0, a0, b0 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 0, D)
    _u1, x1, _n1, a1, b1 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 1, D)
    _u2, x2, _n2, a2, b2 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 2, D)
    _u3, x3, _n3, a3, b3 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 3, D)
    hash_mask = tl.load(hash_ptr + level).to(tl.uint32)
    offset = tl.load(offset_ptr + level)
    scale = tl.load(level_mask_ptr + level + 0 * point, mask=inside, other=0.0)  # so a point past the end counts as masked
    active = scale != 0.0
    for f in tl.static_range(F):
        total = tl.zeros((BLOCK,), tl.float32)
        for c in tl.static_range(1 << D):
            w0, w1, w2, w3, row = _corner(c, x0, x1, x2, x3, a0, a1, a2, a3, b0, b1, b2, b3, hash_mask)
            total += w0 * w1 * w2 * w3 * tl.load(table_ptr + (offset + row) * F + f, mask=active, other=0.0)
        tl.store(out_ptr + point * columns + level * F + f, scale * total, mask=inside)


@jit
def _table_kernel(u_ptr, grad_ptr, n_ptr, step_ptr, hash_ptr, offset_ptr, level_mask_ptr, out_ptr, points, columns,  # type: ignore[no-untyped-def]
                  D: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    point = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = point < points
    _u0, x0, _n0, a0, b0 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 0, D)
    _u1, x1, _n1, a1, b1 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 1, D)
    _u2, x2, _n2, a2, b2 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 2, D)
    _u3, x3, _n3, a3, b3 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 3, D)
    hash_mask = tl.load(hash_ptr + level).to(tl.uint32)
    offset = tl.load(offset_ptr + level)
    scale = tl.load(level_mask_ptr + level + 0 * point, mask=inside, other=0.0)  # so a point past the end counts as masked
    active = scale != 0.0
    for f in tl.static_range(F):
        grad = scale * tl.load(grad_ptr + point * columns + level * F + f, mask=active, other=0.0)
        for c in tl.static_range(1 << D):
            w0, w1, w2, w3, row = _corner(c, x0, x1, x2, x3, a0, a1, a2, a3, b0, b1, b2, b3, hash_mask)
            tl.atomic_add(out_ptr + (offset + row) * F + f, w0 * w1 * w2 * w3 * grad, mask=active, sem="relaxed")


@jit
def _point_kernel(u_ptr, table_ptr, grad_ptr, n_ptr, step_ptr, hash_ptr, offset_ptr, level_mask_ptr, out_ptr, points, columns,  # type: ignore[no-untyped-def]
                  D: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    point = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = point < points
    u0, x0, n0, a0, b0 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 0, D)
    u1, x1, n1, a1, b1 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 1, D)
    u2, x2, n2, a2, b2 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 2, D)
    u3, x3, n3, a3, b3 = _axis(u_ptr, n_ptr, step_ptr, point, inside, level, 3, D)
    hash_mask = tl.load(hash_ptr + level).to(tl.uint32)
    offset = tl.load(offset_ptr + level)
    scale = tl.load(level_mask_ptr + level + 0 * point, mask=inside, other=0.0)  # so a point past the end counts as masked
    active = scale != 0.0
    d0 = tl.zeros((BLOCK,), tl.float32)
    d1 = tl.zeros((BLOCK,), tl.float32)
    d2 = tl.zeros((BLOCK,), tl.float32)
    d3 = tl.zeros((BLOCK,), tl.float32)
    for c in tl.static_range(1 << D):
        w0, w1, w2, w3, row = _corner(c, x0, x1, x2, x3, a0, a1, a2, a3, b0, b1, b2, b3, hash_mask)
        worth = tl.zeros((BLOCK,), tl.float32)
        for f in tl.static_range(F):
            grad = tl.load(grad_ptr + point * columns + level * F + f, mask=active, other=0.0)
            worth += scale * grad * tl.load(table_ptr + (offset + row) * F + f, mask=active, other=0.0)
        d0 += (worth if c & 1 else -worth) * (w1 * w2 * w3)
        d1 += (worth if c & 2 else -worth) * (w0 * w2 * w3)
        d2 += (worth if c & 4 else -worth) * (w0 * w1 * w3)
        d3 += (worth if c & 8 else -worth) * (w0 * w1 * w2)
    _add(out_ptr, u0, d0, n0, point, active, 0, D)
    _add(out_ptr, u1, d1, n1, point, active, 1, D)
    _add(out_ptr, u2, d2, n2, point, active, 2, D)
    _add(out_ptr, u3, d3, n3, point, active, 3, D)


@jit
def _add(out_ptr, u, slope, n, point, active, d: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    if d < D:
        tl.atomic_add(out_ptr + point * D + d, slope * n, mask=active & (u >= 0.0) & (u <= 1.0), sem="relaxed")


@cache
def _plan(layout: GridLayout, device: torch.device) -> tuple[Tensor, ...]:
    """Cells and steps with four axes to a level, hash masks and offsets; unsigned numbers travel as int64."""
    pad = (0,) * (4 - layout.dim)
    levels = range(layout.levels)
    cells = torch.tensor([layout.resolutions[level] + pad for level in levels], dtype=torch.int32, device=device)
    step = torch.tensor([layout.multipliers(level) + pad for level in levels], dtype=torch.int64, device=device)
    mask = torch.tensor([2**layout.log2_table - 1 if layout.hashed[level] else 0 for level in levels], dtype=torch.int64, device=device)
    return cells, step, mask, torch.tensor(layout.offsets, dtype=torch.int64, device=device)


def _launch(kernel: Any, layout: GridLayout, inputs: tuple[Tensor, ...], level_mask: Tensor, out: Tensor) -> Tensor:
    points = len(inputs[0])
    if points:
        grid = (triton.cdiv(points, BLOCK), layout.levels)
        with torch.cuda.device_of(out):  # Triton launches on the current device, whichever the tensors are on
            kernel[grid](*(t.detach().contiguous() for t in inputs), *_plan(layout, out.device), level_mask, out, points, layout.width,
                         D=layout.dim, F=layout.features, BLOCK=BLOCK)
    return out


def forward(u01: Tensor, table: Tensor, layout: GridLayout, level_mask: Tensor) -> Tensor:
    """The encoding of `grid_encode_torch`, [N, L F]."""
    return _launch(_forward_kernel, layout, (u01, table), level_mask, u01.new_empty(len(u01), layout.width))


def table_gradient(u01: Tensor, grad: Tensor, layout: GridLayout, level_mask: Tensor) -> Tensor:
    """Transpose of the encoding in its table, [rows, F]."""
    return _launch(_table_kernel, layout, (u01, grad), level_mask, u01.new_zeros(layout.rows, layout.features))


def point_gradient(u01: Tensor, table: Tensor, grad: Tensor, layout: GridLayout, level_mask: Tensor) -> Tensor:
    """Gradient of sum(grad * encoding) in the coordinates, [N, D]; zero along axes where u lies outside [0, 1]."""
    return _launch(_point_kernel, layout, (u01, table, grad), level_mask, torch.zeros_like(u01, memory_format=torch.contiguous_format))
