"""Sums of two-dimensional Gaussians on the pixels of many images: what a thick slice shows of a field of Gaussians.

Each Gaussian is of one image: peak times exp(-|W (p - c)|^2 / 2) at pixel p = (i, j), with W = [[a, b], [0, d]] upper triangular.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .dispatch import backend


def image_sums(centres: Float[Tensor, "Q 2"], whiten: Float[Tensor, "Q 3"], peaks: Float[Tensor, "Q"], starts: Int[Tensor, "N_1"],
               rows: Int[Tensor, "N I 2"], width: int) -> Float[Tensor, "N I J"]:
    """The images; zero outside their rows.

    Numba for float32 on the CPU: it looks at a Gaussian only within `splat_numba.REACH` standard deviations. Elsewhere the twin. The same bytes
    for any number of threads.

    Args:
        centres: in pixels.
        whiten: a, b, d of each, per pixel; a and d positive.
        peaks: of them.
        starts: [N + 1] Gaussians starts[n] to starts[n + 1] are those of image n.
        rows: first and one past the last pixel of each row that is wanted.
        width: J.
    """
    if backend(centres, whiten, peaks) != "numba":
        return image_sums_torch(centres, whiten, peaks, starts, rows, width)
    from . import image_splat_numba  # Numba takes a second to load
    return _ImageSums.apply(centres, whiten, peaks, starts, rows, width, image_splat_numba)


def image_sums_torch(centres: Float[Tensor, "Q 2"], whiten: Float[Tensor, "Q 3"], peaks: Float[Tensor, "Q"], starts: Int[Tensor, "N_1"],
                     rows: Int[Tensor, "N I 2"], width: int) -> Float[Tensor, "N I J"]:
    """The plain twin: any device and float type, all Gaussians at all pixels of their image."""
    i, j = (torch.arange(n, dtype=centres.dtype, device=centres.device) for n in (rows.shape[1], width))
    columns = torch.arange(width, device=centres.device)
    images = []
    for n, (first, last) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        c, (a, b, d), peak = centres[first:last], whiten[first:last].unbind(1), peaks[first:last]
        lines = []
        for row in i:  # one row at a time, for memory's sake
            y, x = (row - c[:, 0])[:, None], j - c[:, 1:]
            m = (a[:, None] * y + b[:, None] * x).square() + (d[:, None] * x).square()
            lines.append(peak @ torch.exp(-0.5 * m))
        inside = (columns >= rows[n, :, :1]) & (columns < rows[n, :, 1:])
        images.append(torch.stack(lines) * inside)
    return torch.stack(images)


class _ImageSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, centres: Tensor, whiten: Tensor, peaks: Tensor, starts: Tensor, rows: Tensor, width: int, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(centres, whiten, peaks, starts, rows)
        ctx.kernels, ctx.width = kernels, width
        return kernels.images(centres, whiten, peaks, starts, rows, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
            *told, starts, rows = ctx.saved_tensors
            y = image_sums_torch(told[0], told[1], told[2], starts, rows, ctx.width)
            return *torch.autograd.grad(y, told, grads[0], create_graph=True), None, None, None, None
        return *ctx.kernels.images_gradient(*ctx.saved_tensors, grads[0]), None, None, None, None
