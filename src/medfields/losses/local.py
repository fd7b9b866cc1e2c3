"""Similarities of neighbourhoods: they forgive what changes slowly over an image, a coil's sensitivity or breath in a lung."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.window import window_sums

Lattices = Float[Tensor, "*batch I J K"]


def local_ncc(a: Lattices, b: Lattices, radius: int = 4, mask: Bool[Tensor, "*batch I J K"] | None = None, margin: int = 0,
              noise: float = 1e-4, squared: bool = False) -> Float[Tensor, ""]:
    """Mean over windows of the correlation coefficient r in each window, in [-1, 1].

    Args:
        a, b: images on one lattice.
        radius: voxels; a window has (2 radius + 1)^3 of them.
        mask: voxels that count, in the windows and as their centres.
        margin: voxels at the border of the lattice whose windows do not count: the halo of a block.
        noise: variance, as a share of each image's own, that is added to that of a window: flat windows then say nothing.
        squared: of r |r| instead, whose slope is that of Avants et al. (Med. Image Anal. 2008) where r > 0: windows that are alike count for more
            than those that may have no counterpart.
    """
    whole = torch.ones_like(a) if mask is None else mask.to(a)
    centres = whole
    if margin:
        centres = torch.zeros_like(whole)
        i, j, k = (slice(margin, n - margin) for n in a.shape[-3:])
        centres[..., i, j, k] = whole[..., i, j, k]
    if not centres.any():
        return (a * b).sum() * 0
    a, b = (standard(image, whole) for image in (a, b))
    if a.requires_grad:
        return (_open(a, b, radius, whole, centres, noise, squared) if b.requires_grad
                else _LocalNCC.apply(b, a, radius, whole, centres, noise, squared))
    return _LocalNCC.apply(a, b, radius, whole, centres, noise, squared)


def standard(image: Lattices, mask: Bool[Tensor, "*batch I J K"] | Lattices) -> Lattices:
    """Mean 0 and standard deviation 1 inside the mask, as numbers, not as functions: rounding is then the same for every unit."""
    inside = image.detach()[mask > 0]
    return (image - inside.mean()) / inside.std(correction=0).clamp_min(1e-12)


def lines(a: Lattices, b: Lattices, radius: int, mask: Bool[Tensor, "*batch I J K"],
          noise: float = 0.01) -> tuple[Lattices, Lattices, Float[Tensor, ""]]:
    """Around every voxel the line slope * b + offset that is nearest to a in its window, and the mean variance of a in windows.

    Args:
        a, b: images on one lattice, of mean 0 and variance 1.
        radius: voxels; a window has (2 radius + 1)^3 of them.
        mask: voxels that count, in the windows and in the mean.
        noise: variance that is added to that of b: a flat window then has no slope.
    """
    whole = mask.to(a)
    _, ma, mb, va, vb, cov = _moments(a, b, radius, whole, 0.0)
    slope = cov / (vb + noise)
    return slope, ma - slope * mb, (whole * va).sum() / whole.sum().clamp_min(1)


def _moments(a: Tensor, b: Tensor, radius: int, mask: Tensor, noise: float) -> tuple[Tensor, ...]:
    """Count, means, variances and covariance of every window."""
    n, sa, sb, saa, sbb, sab = window_sums(torch.stack([mask, mask * a, mask * b, mask * a * a, mask * b * b, mask * a * b]), radius).unbind(0)
    n = n.clamp_min(1)
    ma, mb = sa / n, sb / n
    # a variance that rounding makes negative, where values are many deviations from the mean, is none
    return n, ma, mb, (saa / n - ma * ma).clamp_min(0) + noise, (sbb / n - mb * mb).clamp_min(0) + noise, sab / n - ma * mb


def _open(a: Tensor, b: Tensor, radius: int, mask: Tensor, centres: Tensor, noise: float, squared: bool) -> Float[Tensor, ""]:
    """By autograd, in both images."""
    _, _, _, va, vb, cov = _moments(a, b, radius, mask, noise)
    r = cov / (va * vb).sqrt()
    return (centres * (r * r.abs() if squared else r)).sum() / centres.sum()


class _LocalNCC(torch.autograd.Function):
    """The gradient in b in closed form: four more window sums instead of a graph of forty lattices.

    With p = w / (n sqrt(va vb)), q = w cc / (n vb), w = 1 / number of windows (times 2 |cc| for squares), and S the window sum:
    d/db(y) = m(y) [a(y) S p - S(p mean_a) - b(y) S q + S(q mean_b)](y).
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, radius: int, mask: Tensor, centres: Tensor, noise: float, squared: bool) -> Tensor:
        n, ma, mb, va, vb, cov = _moments(a.detach(), b.detach(), radius, mask, noise)
        weight = centres / centres.sum()
        cc = cov / (va * vb).sqrt()
        value = (weight * (cc * cc.abs() if squared else cc)).sum()
        weight = 2 * weight * cc.abs() if squared else weight
        p = weight / (n * (va * vb).sqrt())
        q = weight * cc / (n * vb)
        ctx.save_for_backward(a, b, mask, p, p * ma, q, q * mb)
        ctx.radius = radius
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, mask, *rest = ctx.saved_tensors
        p, pa, q, qb = window_sums(torch.stack(rest), ctx.radius).unbind(0)
        return None, grads[0] * mask * (a * p - pa - b * q + qb), None, None, None, None, None


def mind_ssc(image: Lattices, radius: int = 1, dilation: int = 2) -> Float[Tensor, "*batch 12 I J K"]:
    """The modality independent neighbourhood descriptor with self-similarity context, twelve numbers in (0, 1] per voxel
    (Heinrich et al., MICCAI 2013): exp(-D / V) of the patch distances D between pairs of the six neighbours that touch at 90 degrees.

    Args:
        image: one image.
        radius: of the patches, voxels.
        dilation: distance of the neighbours, voxels.
    """
    six = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    pairs = [(p, q) for n, p in enumerate(six) for q in six[n + 1:] if sum(abs(s - t) for s, t in zip(p, q, strict=True)) == 2 and
             any(s * t == 0 and (s or t) for s, t in zip(p, q, strict=True)) and tuple(-s for s in p) != q]
    distances = []
    for p, q in pairs:
        gap = _shifted(image, p, dilation) - _shifted(image, q, dilation)
        distances.append(window_sums(gap.square().contiguous(), radius) / (2 * radius + 1) ** 3)
    d = torch.stack(distances, -4)
    d = d - d.amin(-4, keepdim=True)
    variance = d.mean(-4, keepdim=True)
    typical = float(variance.detach().mean())
    return torch.exp(-d / variance.clamp(1e-3 * typical + 1e-12, 1e3 * typical + 1e-12))


def _shifted(image: Lattices, step: tuple[int, int, int], times: int) -> Lattices:
    """image(x + times * step), the border repeated."""
    for axis, s in zip((-3, -2, -1), step, strict=True):
        if s:
            n = image.shape[axis]
            image = image.index_select(axis, (torch.arange(n, device=image.device) + times * s).clamp(0, n - 1))
    return image
