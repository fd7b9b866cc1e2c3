"""How alike two images are that need not share an intensity scale. Large means alike: minimise the negative."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Image = Float[Tensor, "*shape"]


def ncc(a: Image, b: Image) -> Float[Tensor, ""]:
    """Correlation coefficient of all values, in [-1, 1]: <a - mean, b - mean> / (|a - mean| |b - mean|); 0 if one is constant."""
    # What is left of a constant image after its mean is rounding; it gets the norm 1, so that the gradient stays finite.
    flat = [1e-12 * image.square().sum() for image in (a, b)]
    a, b = a - a.mean(), b - b.mean()
    na, nb = a.square().sum(), b.square().sum()
    product = torch.where(na > flat[0], na, 1).sqrt() * torch.where(nb > flat[1], nb, 1).sqrt()
    return (a * b).sum() / product


def joint_histogram(a: Image, b: Image, bins: int = 32) -> Float[Tensor, "bins bins"]:
    """Joint distribution of two images on bins x bins, each value spread over four bins by a cubic B-spline.

    Parzen windows make it differentiable in both images (Thevenaz & Unser, IEEE TIP 2000, eq. 7; Mattes et al., IEEE TMI 2003).
    The bins span each image's own range, which is taken as given.
    """
    wa, wb = _windows(a, bins), _windows(b, bins)
    return wa.T @ wb / len(wa)


def _windows(x: Tensor, bins: int) -> Float[Tensor, "N bins"]:
    """Cubic B-spline weights of each value on the bin centres; rows sum to 1."""
    x = x.reshape(-1)
    lo, hi = x.detach().aminmax()
    # One bin beyond the smallest and two beyond the largest value hold the whole support.
    at = 1 + (x - lo) / (hi - lo).clamp_min(torch.finfo(x.dtype).tiny) * (bins - 3)
    t = (at[:, None] - torch.arange(bins, dtype=x.dtype, device=x.device)).abs()
    return torch.where(t < 1, 2 / 3 - t.square() + t**3 / 2, (2 - t).clamp_min(0) ** 3 / 6)


def _entropy(p: Tensor) -> Float[Tensor, ""]:
    """- sum p log p in nats, with 0 log 0 = 0 and a finite gradient there."""
    return -(p * p.clamp_min(1e-12).log()).sum()


def mutual_information(a: Image, b: Image, bins: int = 32) -> Float[Tensor, ""]:
    """H(a) + H(b) - H(a, b) in nats: 0 for independent images, unchanged when an intensity scale is stretched or turned over.

    Args:
        a, b: values at the same places.
        bins: of the histogram, 8 to 128; more need more samples.
    """
    joint = joint_histogram(a, b, bins)
    return _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint)


def nmi(a: Image, b: Image, bins: int = 32) -> Float[Tensor, ""]:
    """(H(a) + H(b)) / H(a, b), in [1, 2] (Studholme et al., Pattern Recognition 1999): depends less on the overlap than
    mutual information."""
    joint = joint_histogram(a, b, bins)
    return (_entropy(joint.sum(1)) + _entropy(joint.sum(0))) / _entropy(joint)
