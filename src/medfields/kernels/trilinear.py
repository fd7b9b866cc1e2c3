"""Reading an image between its voxels, with the slope that registration needs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .dispatch import backend
from .spline import spline_values


def trilinear(image: Float[Tensor, "C I J K"], index: Float[Tensor, "N 3"]) -> Float[Tensor, "N C"]:
    """Linear interpolation at fractional voxel indices; beyond the lattice the border goes on. Differentiable in the indices.

    Numba for float32 on the CPU: value and slope in one visit. Where the image itself is trained, and elsewhere, the twin, which is
    `spline_values` of degree 1.
    """
    if backend(image, index) != "numba" or image.requires_grad:
        return trilinear_torch(image, index)
    return _Trilinear.apply(image, index)


class _Trilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, index: Tensor) -> Tensor:
        from .trilinear_numba import values  # Numba takes a second to load

        ctx.image, ctx.index = image, index
        return values(image, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
            y = trilinear_torch(ctx.image, ctx.index)
            return None, torch.autograd.grad(y, ctx.index, grads[0], create_graph=True)[0]
        from .trilinear_numba import slopes

        return None, slopes(ctx.image, ctx.index, grads[0])


def trilinear_torch(image: Float[Tensor, "C I J K"], index: Float[Tensor, "N 3"]) -> Float[Tensor, "N C"]:
    """The twin."""
    return spline_values(image, index, 1)
