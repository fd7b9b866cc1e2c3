"""Penalties on the derivatives of a lattice of values [C, I, J, K], per mm, so that they mean the same at every voxel size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Lattice = Float[Tensor, "C I J K"]


def _differences(x: Lattice, spacing: Sequence[float]) -> list[Lattice]:
    """Forward differences per mm along each axis longer than one voxel; the last voxel repeats the one before it, so that
    a linear function has the same slope everywhere."""
    found = []
    for d in range(3):
        n = x.shape[d + 1]
        if n > 1:
            step = x.narrow(d + 1, 1, n - 1) - x.narrow(d + 1, 0, n - 1)
            found.append(torch.cat([step, step.narrow(d + 1, n - 2, 1)], d + 1) / float(spacing[d]))
    return found


def total_variation(x: Lattice, spacing: Sequence[float], smooth: float = 0.0) -> Float[Tensor, ""]:
    """Mean over voxels and channels of sqrt(|grad x|^2 + smooth^2) - smooth, in units per mm (Rudin, Osher & Fatemi, Physica D 1992).

    Args:
        x: values.
        spacing: mm, voxel step along I, J, K.
        smooth: units per mm; slopes well below it are penalised by their square.
    """
    squares = [d.square() for d in _differences(x, spacing)]
    if not squares:
        return x.sum() * 0
    # The square root has no slope at zero; the smallest normal number gives it one without being seen in the value.
    floor = max(smooth**2, torch.finfo(x.dtype).tiny)
    return (torch.stack(squares).sum(0) + floor).sqrt().mean() - smooth


def squared_gradient(x: Lattice, spacing: Sequence[float]) -> Float[Tensor, ""]:
    """Mean over voxels and channels of |grad x|^2, in squared units per mm^2."""
    squares = [d.square() for d in _differences(x, spacing)]
    return torch.stack(squares).sum(0).mean() if squares else x.sum() * 0
