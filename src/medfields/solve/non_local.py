"""Non-local means: a voxel becomes the mean of those whose surroundings look like its own."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError


def non_local_means(x: Float[Tensor, "I J K"], h: float, search: int = 5, patch: int = 1) -> Float[Tensor, "I J K"]:
    """z_n = sum_m w_nm x_m / sum_m w_nm,  w = exp(-d / h^2), d the mean squared difference of the patches about n and m.

    Buades, Coll & Morel, CVPR 2005. Borders go on by repeating their voxels; axes of one voxel are left alone.

    Args:
        x: the image.
        h: how different patches may be that count as alike, in units of x.
        search, patch: radii in voxels of where patches are looked for, and of the patches.

    Raises:
        InputError: if h is not above 0.
    """
    if not h > 0:
        raise InputError(f"non-local means with h = {h:g} cannot tell patches apart", "h above 0")
    reach = [min(search, n - 1) if n > 1 else 0 for n in x.shape]
    sides = [2 * patch + 1 if n > 1 else 1 for n in x.shape]
    pad: Any = [p for r in reversed(reach) for p in (r, r)]
    wide = nn.functional.pad(x[None, None], pad, mode="replicate")[0, 0]
    edge: Any = [p for s in reversed(sides) for p in (s // 2, s // 2)]
    total, weights = torch.zeros_like(x), torch.zeros_like(x)
    for shift in itertools.product(*(range(2 * r + 1) for r in reach)):
        other = wide[tuple(slice(s, s + n) for s, n in zip(shift, x.shape, strict=True))]
        apart = nn.functional.pad((x - other).square()[None, None], edge, mode="replicate")
        w = torch.exp(-nn.functional.avg_pool3d(apart, sides, 1)[0, 0] / h**2)
        total, weights = total + w * other, weights + w
    return total / weights
