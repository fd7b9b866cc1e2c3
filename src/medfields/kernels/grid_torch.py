"""The multi-resolution grid in plain torch: the definition that the compiled kernels are tested against."""

from __future__ import annotations

import itertools
import math
from functools import reduce
from operator import xor

import torch
from jaxtyping import Float
from torch import Tensor

from .grid_layout import GridLayout


def grid_encode_torch(u01: Float[Tensor, "N D"], table: Float[Tensor, "rows F"], layout: GridLayout,
                      level_mask: Float[Tensor, "L"] | None = None) -> Float[Tensor, "N LF"]:
    """Column l F + f is  mask_l sum_c w_c(u) table[row_l(c), f]  over the 2^D corners c of the cell that holds u.

    w is d-linear; coordinates outside [0, 1] take the value at the border and have no gradient there. A NaN coordinate gives NaN.
    Any device and float type; differentiable twice. Deterministic on the CPU.
    """
    columns = []
    for level in range(layout.levels):
        cells = torch.tensor(layout.resolutions[level], device=u01.device)
        x = u01.clamp(0, 1) * cells
        # The upper clamp keeps u = 1 in the last cell; the lower one keeps the row of a NaN inside the table.
        base = x.detach().floor().long().clamp(min=0).minimum(cells - 1)
        far = (x - base).unbind(-1)
        near = tuple(1 - w for w in far)
        steps = layout.multipliers(level)
        first = tuple(i * s for i, s in zip(base.unbind(-1), steps, strict=True))
        value: Tensor | None = None
        for corner in itertools.product((False, True), repeat=layout.dim):
            terms = [i + s if up else i for up, i, s in zip(corner, first, steps, strict=True)]
            row = reduce(xor, terms) % 2**layout.log2_table if layout.hashed[level] else sum(terms[1:], terms[0])
            weight = math.prod((f if up else n for up, f, n in zip(corner, far, near, strict=True)), start=torch.ones_like(far[0]))
            share = weight[:, None] * table.index_select(0, row + layout.offsets[level])
            value = share if value is None else value + share
        assert value is not None
        columns.append(value if level_mask is None else value * level_mask[level])
    return torch.cat(columns, dim=-1)
