"""Tensor-product B-splines on a lattice: weights, reading scattered points, and their derivatives.

The value at fractional index x is  f(x) = sum_n c[n] prod_d B(x_d - n_d)  with the centred B-spline B of the given degree.
Indices beyond the lattice take the border coefficient, so constants stay constant up to the edge.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SUPPORT = {0: 1, 1: 2, 2: 3, 3: 4}


def spline_weights(t: Tensor, degree: int, order: int = 0) -> list[Tensor]:
    """The `degree + 1` non-zero values of B, or of its derivative of `order` 0, 1 or 2.

    `t` is the offset of the point from the first supporting lattice node as given by `spline_base`: in [0, 1) for
    degrees 0, 1 and 3, in [-1/2, 1/2) for degree 2.
    """
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    table = {
        (0, 0): lambda: [one], (0, 1): lambda: [zero], (0, 2): lambda: [zero],
        (1, 0): lambda: [1 - t, t], (1, 1): lambda: [-one, one], (1, 2): lambda: [zero, zero],
        (2, 0): lambda: [0.5 * (0.5 - t) ** 2, 0.75 - t**2, 0.5 * (0.5 + t) ** 2],
        (2, 1): lambda: [t - 0.5, -2 * t, t + 0.5],
        (2, 2): lambda: [one, -2 * one, one],
        (3, 0): lambda: [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6],
        (3, 1): lambda: [-((1 - t) ** 2) / 2, (3 * t**2 - 4 * t) / 2, (-3 * t**2 + 2 * t + 1) / 2, t**2 / 2],
        (3, 2): lambda: [1 - t, 3 * t - 2, 1 - 3 * t, t],
    }
    return table[degree, order]()


def spline_base(x: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """First supporting lattice node (integer) and offset t of fractional indices x."""
    if degree == 1:
        low = x.detach().floor()
        return low.long(), x - low
    if degree == 3:
        low = x.detach().floor()
        return low.long() - 1, x - low
    near = (x.detach() + 0.5).floor()
    return near.long() - (1 if degree == 2 else 0), x - near


def spline_values(coefficients: Float[Tensor, "C I J K"], index: Float[Tensor, "N 3"], degree: int,
                  orders: tuple[int, int, int] = (0, 0, 0)) -> Float[Tensor, "N C"]:
    """f at fractional indices, or a mixed derivative of it per index unit; differentiable in both arguments."""
    channels, *shape = coefficients.shape
    flat = coefficients.reshape(channels, -1)
    nodes: list[list[Tensor]] = []
    weights: list[list[Tensor]] = []
    for d in range(3):
        base, t = spline_base(index[:, d], degree)
        weights.append(spline_weights(t, degree, orders[d]))
        nodes.append([(base + n).clamp(0, shape[d] - 1) for n in range(degree + 1)])
    total = torch.zeros(len(index), channels, dtype=coefficients.dtype, device=coefficients.device)
    for i, wi in zip(nodes[0], weights[0], strict=True):
        for j, wj in zip(nodes[1], weights[1], strict=True):
            row, wij = (i * shape[1] + j) * shape[2], wi * wj
            for k, wk in zip(nodes[2], weights[2], strict=True):
                total = total + (wij * wk)[:, None] * flat[:, row + k].T
    return total


def spline_scatter(values: Float[Tensor, "N C"], index: Float[Tensor, "N 3"], shape: tuple[int, int, int], degree: int) -> Float[Tensor, "C I J K"]:
    """The transpose of `spline_values` in its coefficients."""
    out = torch.zeros(values.shape[1], shape[0] * shape[1] * shape[2], dtype=values.dtype, device=values.device)
    nodes: list[list[Tensor]] = []
    weights: list[list[Tensor]] = []
    for d in range(3):
        base, t = spline_base(index[:, d], degree)
        weights.append(spline_weights(t, degree))
        nodes.append([(base + n).clamp(0, shape[d] - 1) for n in range(degree + 1)])
    for i, wi in zip(nodes[0], weights[0], strict=True):
        for j, wj in zip(nodes[1], weights[1], strict=True):
            for k, wk in zip(nodes[2], weights[2], strict=True):
                out.index_add_(1, (i * shape[1] + j) * shape[2] + k, (values * (wi * wj * wk)[:, None]).T)
    return out.reshape(-1, *shape)
