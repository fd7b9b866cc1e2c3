"""Data terms: how far predictions [N, C] are from measurements [N, C].

Each is a mean over all values, or with weights sum(w e) / sum(w), so that only the ratios of the weights matter.
Weights are [N] or [N, C] and not negative.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Values = Float[Tensor, "N C"]
Weight = Float[Tensor, "N"] | Float[Tensor, "N C"] | None


def _mean(error: Tensor, weight: Weight) -> Float[Tensor, ""]:
    if weight is None:
        return error.mean()
    w = (weight[:, None] if weight.ndim == 1 else weight).expand_as(error)
    return (w * error).sum() / w.sum().clamp_min(torch.finfo(error.dtype).tiny)


def mse(predicted: Values, measured: Values, weight: Weight = None) -> Float[Tensor, ""]:
    """Mean of (p - y)^2, in squared units of the measurement."""
    return _mean((predicted - measured).square(), weight)


def l1(predicted: Values, measured: Values, weight: Weight = None) -> Float[Tensor, ""]:
    """Mean of |p - y|."""
    return _mean((predicted - measured).abs(), weight)


def huber(predicted: Values, measured: Values, delta: float, weight: Weight = None) -> Float[Tensor, ""]:
    """Mean of r^2 / 2 where |r| <= delta and delta (|r| - delta / 2) beyond (Huber, Ann. Math. Stat. 1964)."""
    r = (predicted - measured).abs()
    return _mean(torch.where(r <= delta, r.square() / 2, delta * (r - delta / 2)), weight)


def gaussian_nll(predicted: Values, measured: Values, variance: Float[Tensor, "N C"] | Float[Tensor, "N 1"],
                 weight: Weight = None) -> Float[Tensor, ""]:
    """Mean of (p - y)^2 / (2 v) + log(v) / 2: minus the log of a normal density, without its constant.

    Args:
        predicted, measured: in the same unit.
        variance: v > 0, squared units; it may be learned.
        weight: see above.
    """
    return _mean((predicted - measured).square() / (2 * variance) + variance.log() / 2, weight)


def poisson_nll(predicted: Values, counts: Values, weight: Weight = None) -> Float[Tensor, ""]:
    """Mean of p - y log(p): minus the log of a Poisson probability, without its constant.

    Args:
        predicted: expected counts; values below 1e-8 count as that.
        counts: measured, not negative.
        weight: see above.
    """
    p = predicted.clamp_min(1e-8)
    return _mean(p - torch.xlogy(counts, p), weight)
