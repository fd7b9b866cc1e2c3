"""Sums of Gaussians: at points, and along rays in closed form.

A Gaussian g(x) = exp(-|A (x - c)|^2 / 2) is told by its centre c and its whitening matrix A: A (x - c) is standard normal. With E = A (o - c)
and W = A d, its integral over the line o + t d is

    |d| sqrt(2 pi) / |W|  exp(-|z|^2 / 2),    z = E - W (E . W) / |W|^2,

a Gaussian of the distance z by which the line misses the centre, exact for parallel and diverging rays alike. A flat Gaussian, one that does
not change along the last axis, has a last row and column of zeros in A; rays lie across that axis then. Rays count as whole lines.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .dispatch import backend
from .joseph import RayTable

MOST = 1 << 22  # pairs of a Gaussian and a point or ray that the twins look at together: 16 MB for each number of a pair


def ray_sums(centres: Float[Tensor, "N 3"], whiten: Float[Tensor, "N 3 3"], weights: Float[Tensor, "N"], table: RayTable) -> Float[Tensor, "V R C"]:
    """sum_n weights[n] times the integral of g_n over every ray, in mm.

    Numba for float32 on the CPU: it looks at a Gaussian only within `splat_numba.REACH` standard deviations, so up to 1e-4 of each one's
    peak is left out. Elsewhere the twin. The same bytes for any number of threads.

    Args:
        centres, whiten: see above, in the table's units, which must be the same length in all directions.
        weights: of the Gaussians.
        table: the rays.
    """
    if backend(centres, whiten, weights) != "numba":
        return ray_sums_torch(centres, whiten, weights, table)
    from . import splat_numba  # Numba takes a second to load
    return _RaySums.apply(centres, whiten, weights, table, splat_numba)


def point_sums(x: Float[Tensor, "M 3"], centres: Float[Tensor, "N 3"], whiten: Float[Tensor, "N 3 3"],
               weights: Float[Tensor, "N C"]) -> Float[Tensor, "M C"]:
    """sum_n weights[n] g_n(x) at points; as `ray_sums`. Where a gradient with respect to the points is wanted, the twin answers."""
    if backend(x, centres, whiten, weights) != "numba" or x.requires_grad:
        return point_sums_torch(x, centres, whiten, weights)
    from . import splat_numba
    return _PointSums.apply(x, centres, whiten, weights, splat_numba)


class _RaySums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, centres: Tensor, whiten: Tensor, weights: Tensor, table: RayTable, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(centres, whiten, weights)
        ctx.table, ctx.kernels = table, kernels
        return kernels.rays(centres, whiten, weights, table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
            centres, whiten, weights = ctx.saved_tensors
            y = ray_sums_torch(centres, whiten, weights, ctx.table)
            return *torch.autograd.grad(y, ctx.saved_tensors, grads[0], create_graph=True), None, None
        return *ctx.kernels.rays_gradient(*ctx.saved_tensors, ctx.table, grads[0]), None, None


class _PointSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, centres: Tensor, whiten: Tensor, weights: Tensor, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(x, centres, whiten, weights)
        ctx.kernels = kernels
        return kernels.points(x, centres, whiten, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            y = point_sums_torch(*ctx.saved_tensors)
            return None, *torch.autograd.grad(y, ctx.saved_tensors[1:], grads[0], create_graph=True), None
        return None, *ctx.kernels.points_gradient(*ctx.saved_tensors, grads[0]), None


def apart(x: Float[Tensor, "M 3"], centres: Float[Tensor, "N 3"], whiten: Float[Tensor, "N 3 3"]) -> list[Float[Tensor, "M N"]]:
    """A_n (x_m - c_n), one tensor for each of its three components: products of small matrices, never a tensor [M, N, 3]."""
    shift = torch.einsum("nij,nj->in", whiten, centres)
    return [x @ whiten[:, i].T - shift[i] for i in range(3)]


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Of vectors whose three components are tensors of their own."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def point_sums_torch(x: Float[Tensor, "M 3"], centres: Float[Tensor, "N 3"], whiten: Float[Tensor, "N 3 3"],
                     weights: Float[Tensor, "N C"]) -> Float[Tensor, "M C"]:
    """The plain twin: any device and float type, differentiable any number of times, all Gaussians at all points."""

    def part(x: Tensor) -> Tensor:
        squares = dot(z := apart(x, centres, whiten), z)
        return torch.exp(-0.5 * squares) @ weights

    return _in_parts(part, len(centres), x)


def ray_sums_torch(centres: Float[Tensor, "N 3"], whiten: Float[Tensor, "N 3 3"], weights: Float[Tensor, "N"],
                   table: RayTable) -> Float[Tensor, "V R C"]:
    """The plain twin: any device and float type, differentiable any number of times."""
    origin, direction = (t.reshape(-1, 3) for t in table.rays(centres.device))
    length = torch.einsum("ni,ij,nj->n", direction, torch.as_tensor(table.metric, device=centres.device), direction).sqrt()

    def part(o: Tensor, d: Tensor, length: Tensor) -> Tensor:
        e, w = apart(o, centres, whiten), [d @ whiten[:, i].T for i in range(3)]
        ww = dot(w, w)
        t = dot(e, w) / ww
        squares = dot(z := [a - t * b for a, b in zip(e, w, strict=True)], z)
        return length * ((torch.exp(-0.5 * squares) * (math.sqrt(2 * math.pi) / ww.sqrt())) @ weights)

    return _in_parts(part, len(centres), origin.to(centres), direction.to(centres), length.to(centres)).reshape(table.shape)


def _in_parts(part: Any, count: int, *rows: Tensor) -> Tensor:
    """`part` of the rows, so many at a time that memory stays bounded; for a gradient each part is computed again."""
    size = max(1, MOST // max(count, 1))
    split = zip(*(t.split(size) for t in rows), strict=True)
    if len(rows[0]) <= size or not torch.is_grad_enabled():
        return torch.cat([part(*some) for some in split])
    return torch.cat([checkpoint(part, *some, use_reentrant=False) for some in split])
