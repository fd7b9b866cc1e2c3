"""Sums over the cubic window around every voxel: what windowed similarities are made of."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .dispatch import backend

Lattices = Float[Tensor, "*batch I J K"]


def window_sums(x: Lattices, radius: int) -> Lattices:
    """At every voxel the sum of x over the (2 radius + 1)^3 voxels around it; beyond the lattice x is zero.

    Numba for float32 on the CPU, by running sums in double precision, so the cost does not depend on the radius; else the twin. The map is
    symmetric, so it is its own transpose, which is its gradient.
    """
    if backend(x) != "numba":
        return window_sums_torch(x, radius)
    return _WindowSums.apply(x, radius)


class _WindowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, radius: int) -> Tensor:
        from .window_numba import sums  # Numba takes a second to load

        ctx.radius = radius
        return sums(x, radius)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return window_sums(grads[0].contiguous(), ctx.radius), None


def window_sums_torch(x: Lattices, radius: int) -> Lattices:
    """The twin: differences of cumulative sums along one axis after the other."""
    for axis in (-3, -2, -1):
        n = x.shape[axis]
        total = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), x.double().cumsum(axis)], axis)
        at = torch.arange(n, device=x.device)
        upper, lower = (at + radius + 1).clamp_max(n), (at - radius).clamp_min(0)
        x = (total.index_select(axis, upper) - total.index_select(axis, lower)).to(x.dtype)
    return x
