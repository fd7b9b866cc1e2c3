"""What a deformation should not do. Everything is a mean over points; lengths are mm, so weights mean the same at every voxel size.

With phi(x) = x + u(x): `f` is grad phi = 1 + grad u, `slope` is grad u (both without units), `h` the second derivatives of u in 1/mm. They come
exact from `value_and_jacobian` and `value_jacobian_hessian`, never from differences of autograd.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Slopes = Float[Tensor, "*points 3 3"]
Determinants = Float[Tensor, "*points"]
LEAST = 1e-3  # of a determinant: below it barriers go on as straight lines, so that a folded start can be left again


def determinant(f: Slopes) -> Determinants:
    """det f: the volume to which a small volume of the fixed image is carried; at or below zero space is folded."""
    a, b, c = f.unbind(-2)
    return (a * torch.linalg.cross(b, c, dim=-1)).sum(-1)


def volume_change(f: Slopes) -> Float[Tensor, ""]:
    """Mean |det f - 1| (Wolterink et al. 2022, eq. 5)."""
    return (determinant(f) - 1).abs().mean()


def symmetric_volume_change(f: Slopes, low: float = 0.1) -> Float[Tensor, ""]:
    """Mean d + 1/d - 2, d = det f: halving costs as doubling does (van Harten et al., IEEE TMI 2024). Below `low` it goes on as its tangent."""
    return barrier(determinant(f), low).mean()


def fold(f: Slopes) -> Float[Tensor, ""]:
    """Mean max(0, -det f)."""
    return torch.relu(-determinant(f)).mean()


def diffusion(slope: Slopes) -> Float[Tensor, ""]:
    """Mean |grad u|^2."""
    return slope.square().sum((-2, -1)).mean()


def bending(h: Float[Tensor, "*points 3 3 3"]) -> Float[Tensor, ""]:
    """Mean of all squared second derivatives, mixed ones twice, in 1/mm^2 (Rueckert et al., IEEE TMI 1999, eq. 5)."""
    return h.square().sum((-3, -2, -1)).mean()


def variation(slope: Slopes, smooth: float = 1e-3) -> Float[Tensor, ""]:
    """Mean of sqrt(|grad u|^2 + smooth^2) - smooth: total variation of all three components together; organs may slide."""
    return (slope.square().sum((-2, -1)) + smooth**2).sqrt().mean() - smooth


def cofactor(f: Slopes) -> Slopes:
    """det(f) f^-T, whose columns say how areas change; defined where f is singular too."""
    a, b, c = f.unbind(-2)
    return torch.stack([torch.linalg.cross(b, c, dim=-1), torch.linalg.cross(c, a, dim=-1), torch.linalg.cross(a, b, dim=-1)], -2)


def hyperelastic(f: Slopes, length: float = 1.0, area: float = 1.0, volume: float = 1.0) -> Float[Tensor, ""]:
    """Mean of length/2 |grad u|^2 + area sum max(|cof column|^2 - 1, 0)^2 + volume (det - 1)^4 / det^2 (Burger et al., SISC 2013).

    Below det = 1e-3 the last term goes on as its tangent.
    """
    one = torch.eye(3, dtype=f.dtype, device=f.device)
    grown = torch.relu(cofactor(f).square().sum(-2) - 1).square().sum(-1)
    d = determinant(f)
    safe = d.clamp_min(LEAST)
    at, slope = _burger(safe)
    squeezed = at + slope * (d - safe)
    return (length / 2 * (f - one).square().sum((-2, -1)) + area * grown + volume * squeezed).mean()


def orthogonality(f: Slopes) -> Float[Tensor, ""]:
    """Mean |f^T f - 1|^2, the squared Frobenius norm: 0 for any rotation (Xu et al., IEEE TMI 2023)."""
    return (f.mT @ f - torch.eye(3, dtype=f.dtype, device=f.device)).square().sum((-2, -1)).mean()


def conformal(f: Slopes, shape: float = 0.1, volume: float = 0.05, power: float = 1.0) -> Float[Tensor, ""]:
    """Mean of shape ((|f|^2 / 3)^(3/2) / det f - 1)^power + volume (det f + 1/det f - 2) (after Zou et al., arXiv 2303.08113).

    The first part is zero for similarities, whatever their scale, and only for them; the second keeps the volume. Both grow without end towards a
    fold, up to det f = 1e-3, below which they go on as tangents: a soft penalty at points is no guarantee, so count folds afterwards.
    """
    d = determinant(f)
    safe = d.clamp_min(LEAST)
    size = (f.square().sum((-2, -1)) / 3).pow(1.5)
    inverse = 1 / safe - (d - safe) / safe.square()
    distorted = (size * inverse - 1).clamp_min(0)
    return (shape * distorted.pow(power) + volume * barrier(d, LEAST)).mean()


def barrier(d: Determinants, low: float) -> Determinants:
    """d + 1/d - 2; below `low` it goes on as its tangent."""
    safe = d.clamp_min(low)
    return safe + 1 / safe - 2 + (1 - 1 / safe.square()) * (d - safe)


def _burger(d: Determinants) -> tuple[Determinants, Determinants]:
    """(d - 1)^4 / d^2 and its slope."""
    e = d - 1
    return e**4 / d**2, 2 * e**3 * (d + 1) / d**3
