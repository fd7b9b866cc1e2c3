"""Thick slices of a field of Gaussians, in closed form: no quadrature and no lattice.

Under a Gaussian slice profile of standard deviation s along the normal n, a Gaussian of covariance C measures as one of C + s^2 n n' whose peak is
lower by sqrt(1 + s^2 n' C^-1 n). On the slice's plane that is a Gaussian of two dimensions, and a slice is an image of such: what a splatting
kernel adds up. With A the whitening matrix of C, q = A n and U = A times the steps from pixel to pixel, all of it is told by vectors in which the
part along q is shortened by that root.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels.image_splat import image_sums

REACH = 4.0  # standard deviations from the plane beyond which a Gaussian is not seen: 3e-4 of its peak


@dataclass(frozen=True)
class Laid:
    """Where slices lie: pixel (u, v) of slice n at origin[n] + columns[n] @ (u, v), with the profile `sigma` along `across`, all mm."""

    columns: Float[Tensor, "N 3 2"]
    origin: Float[Tensor, "N 3"]
    across: Float[Tensor, "N 3"]
    sigma: Float[Tensor, "N"]


@dataclass(frozen=True)
class Bodies:
    """Gaussians in mm: centres, principal axes as columns, standard deviations along them, and peaks."""

    centres: Float[Tensor, "G 3"]
    axes: Float[Tensor, "G 3 3"]
    scales: Float[Tensor, "G 3"]
    peaks: Float[Tensor, "G"]


def slice_images(bodies: Bodies, laid: Laid, rows: Int[Tensor, "N I 2"], width: int) -> Float[Tensor, "N I J"]:
    """What slices measure, pixels first to last of each of their rows. Differentiable in the Gaussians and in where slices lie."""
    slices, bells = near(bodies, laid)
    starts = torch.searchsorted(slices, torch.arange(len(rows) + 1, device=slices.device))
    return image_sums(*planar(bodies, laid, slices, bells), starts, rows, width)


@torch.no_grad()
def near(bodies: Bodies, laid: Laid) -> tuple[Int[Tensor, "Q"], Int[Tensor, "Q"]]:
    """Slices and Gaussians of which the one sees the other: within `REACH` along the normal, where its variance is n' C n + s^2."""
    distance = laid.across @ bodies.centres.T - (laid.across * laid.origin).sum(1)[:, None]
    variance = laid.sigma.square()[:, None].expand_as(distance).clone()
    for i in range(3):
        variance += (laid.across @ (bodies.axes[:, :, i] * bodies.scales[:, i:i + 1]).T).square()
    slices, bells = (distance.square() < REACH**2 * variance).nonzero().unbind(1)
    return slices, bells


def planar(bodies: Bodies, laid: Laid, slices: Int[Tensor, "Q"],
           bells: Int[Tensor, "Q"]) -> tuple[Float[Tensor, "Q 2"], Float[Tensor, "Q 3"], Float[Tensor, "Q"]]:
    """Gaussians as slices see them: centres in pixels, upper triangular whitening matrices per pixel, peaks."""
    # Components first, so that each operation runs along the pairs.
    whiten = (bodies.axes / bodies.scales[:, None, :]).permute(2, 1, 0).index_select(2, bells)
    steps = torch.cat([laid.columns, laid.across[..., None]], 2).permute(2, 1, 0).index_select(2, slices)
    u, v, q = ((whiten * step).sum(1) for step in steps)
    e = (whiten * (laid.origin.T.index_select(1, slices) - bodies.centres.T.index_select(1, bells))).sum(1)
    long = (q * q).sum(0)
    lower = (1 + laid.sigma.square().index_select(0, slices) * long).rsqrt()
    shorter = (1 - lower) / long * q
    u, v, e = (t - shorter * (q * t).sum(0) for t in (u, v, e))
    uu = (u * u).sum(0).sqrt()
    u = u / uu
    uv = (u * v).sum(0)
    v = v - uv * u
    vv = (v * v).sum(0).sqrt()
    v = v / vv
    a, b = (u * e).sum(0), (v * e).sum(0)
    rest = e - a * u - b * v
    peaks = bodies.peaks.index_select(0, bells) * lower * torch.exp(-0.5 * (rest * rest).sum(0))
    return torch.stack([(uv * b / vv - a) / uu, -b / vv], 1), torch.stack([uu, uv, vv], 1), peaks
