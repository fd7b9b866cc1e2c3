"""Structural similarity of pictures, differentiable."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

K1, K2 = 0.01, 0.03  # of the range: what keeps the quotients of dark and of flat windows finite
Pictures = Float[Tensor, "B I J"]


def ssim(a: Pictures, b: Pictures, window: int = 11, sigma: float = 1.5, mask: Bool[Tensor, "B I J"] | None = None,
         span: float = 1.0) -> Float[Tensor, ""]:
    """Mean structural similarity (Wang et al., IEEE TIP 2004), in [-1, 1].

    Args:
        a, b: pictures that are compared one by one.
        window: odd, pixels, the side of the Gaussian window.
        sigma: of the window, pixels.
        mask: pixels that count: windows around them are taken, and what is outside is alike in both. Without it, windows within the picture count.
        span: the range of the values.
    """
    if mask is not None:
        a, b = (pad(torch.where(mask, t, 0.0), [window // 2] * 4) for t in (a, b))
    near = torch.arange(window, dtype=a.dtype, device=a.device) - window // 2
    weight = torch.exp(-0.5 * (near / sigma).square())
    weight = weight / weight.sum()
    moments = torch.stack([a, b, a * a, b * b, a * b], 1).flatten(0, 1)[:, None]
    moments = conv2d(conv2d(moments, weight[None, None, :, None]), weight[None, None, None, :])
    ma, mb, aa, bb, ab = moments.unflatten(0, (-1, 5))[:, :, 0].unbind(1)
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    likeness = (2 * ma * mb + c1) * (2 * (ab - ma * mb) + c2) / ((ma * ma + mb * mb + c1) * (aa - ma * ma + bb - mb * mb + c2))
    return likeness.mean() if mask is None else (likeness * mask).sum() / mask.sum().clamp_min(1)
