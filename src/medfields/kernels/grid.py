"""grid_encode: features of a multi-resolution grid at points, by the quickest implementation that the tensors allow."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .dispatch import backend
from .grid_layout import GridLayout
from .grid_torch import grid_encode_torch


def grid_encode(u01: Float[Tensor, "N D"], table: Float[Tensor, "rows F"], layout: GridLayout,
                level_mask: Float[Tensor, "L"] | None = None) -> Float[Tensor, "N LF"]:
    """Column l F + f is  mask_l sum_c w_c(u) table[row_l(c), f],  see `grid_encode_torch`, which defines it.

    Runs in Numba for float32 on the CPU and in Triton for float32 on CUDA; both agree with the twin to rounding (relative 1e-5). A gradient
    that is itself to be differentiated (`create_graph=True`) is computed by the twin. The same input gives the same bytes on the CPU,
    whatever the number of threads; on CUDA the gradient to the table is summed in no fixed order.

    Args:
        u01: coordinates; outside [0, 1] the value at the border, without a gradient.
        table: the rows of all levels, see `GridLayout`.
        layout: levels, sizes and features.
        level_mask: weight of each level, no gradient; levels of weight zero cost nothing. None means all one.

    Raises:
        InputError: if the shapes do not belong together.
    """
    if u01.shape[1] != layout.dim or tuple(table.shape) != (layout.rows, layout.features):
        raise InputError(f"coordinates {tuple(u01.shape)} and table {tuple(table.shape)} do not fit a grid of {layout.dim} dimensions "
                         f"and [{layout.rows}, {layout.features}] rows")
    if level_mask is not None and level_mask.shape != (layout.levels,):
        raise InputError(f"the level mask has {tuple(level_mask.shape)} entries for {layout.levels} levels")
    kind = backend(u01, table)
    if kind == "torch":
        return grid_encode_torch(u01, table, layout, level_mask)
    mask = u01.new_ones(layout.levels) if level_mask is None else level_mask.detach().to(u01)
    return _GridEncode.apply(u01, table, mask, layout, _kernels(kind))


def _kernels(kind: str) -> ModuleType:
    """Imported when first used: Numba takes half a second and Triton is not everywhere."""
    if kind == "triton":
        from . import grid_triton
        return grid_triton
    from . import grid_numba
    return grid_numba


class _GridEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u01: Tensor, table: Tensor, mask: Tensor, layout: GridLayout, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(u01, table, mask)
        ctx.layout, ctx.kernels = layout, kernels
        return kernels.forward(u01, table, layout, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u01, table, mask = ctx.saved_tensors
        to_points, to_table = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
            wanted = [t for t, needed in ((u01, to_points), (table, to_table)) if needed]
            found = list(torch.autograd.grad(grid_encode_torch(u01, table, ctx.layout, mask), wanted, grads[0], create_graph=True))
            return found.pop(0) if to_points else None, found.pop(0) if to_table else None, None, None, None
        grad = grads[0]
        points = ctx.kernels.point_gradient(u01, table, grad, ctx.layout, mask) if to_points else None
        rows = ctx.kernels.table_gradient(u01, grad, ctx.layout, mask) if to_table else None
        return points, rows, None, None, None
