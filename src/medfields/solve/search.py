"""Where to start: every displacement of a window is tried, and smoothness and likeness agree on one for each voxel.

Descent finds the nearest optimum, and where tissue moved further than its detail is wide that is the wrong vessel. Trying all displacements within
a reach is cheap on a coarse lattice, since the windowed correlation of one displacement costs one window sum.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..kernels.trilinear import trilinear
from ..kernels.window import window_sums
from ..space import Grid, Volume
from .pairing import displaced

Lattice = Float[Tensor, "I J K"]
COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def search(fixed: Volume, moving: Volume, mask: Bool[Tensor, "I J K"], steps: int = 4, radius: int = 2, smooth: float = 1.0,
           couplings: tuple[float, ...] = COUPLINGS, moving_mask: Volume | None = None) -> Volume:
    """The displacements [3, I, J, K] in mm, voxel by voxel of the fixed image, by coupled convex optimisation (Heinrich et al., MICCAI 2014).

    cost(x, d) = 1 - windowed correlation of fixed(x) and moving(x + d). In turn every voxel takes the d with the least
    cost + c |d - v|^2 in voxels, and v becomes those d smoothed inside the mask, while the coupling c grows.

    Args:
        fixed: on a coarse lattice, 3 to 6 mm for a lung.
        moving: any lattice, in the same world.
        mask: voxels that count.
        steps: voxels that a displacement reaches, to each side of each axis; slices do not leave their plane.
        radius: voxels of the windows.
        smooth: sigma, voxels, of the smoothing.
        couplings: c, from weak to strong.
        moving_mask: where the moving image counts.
    """
    grid = fixed.grid
    reach = [steps if n > 1 else 0 for n in grid.shape]
    shifts = torch.tensor(list(itertools.product(*(range(-r, r + 1) for r in reach))))
    costs = _costs(fixed, moving, mask, shifts, reach, radius, moving_mask)
    inside = torch.nonzero(mask.flatten())[:, 0]
    d = shifts.float()
    v = torch.zeros(3, *grid.shape)
    for coupling in couplings:
        near = v.flatten(1)[:, inside]
        # |d - v|^2 without the term that all displacements share
        total = costs + coupling * (d.square().sum(1)[:, None] - 2 * d @ near)
        u = torch.zeros(3, grid.size)
        u[:, inside] = d[total.argmin(0)].T
        v = _smoothed(u.reshape(3, *grid.shape), mask, smooth, grid)
    to_mm = torch.tensor(grid.affine[:3, :3], dtype=torch.float32)
    return Volume(torch.einsum("ab,bijk->aijk", to_mm, v), grid, "mm")


def consistent(forward: Float[Tensor, "3 I J K"], back: Float[Tensor, "3 I J K"], grid: Grid, rounds: int = 15) -> Float[Tensor, "3 I J K"]:
    """The forward displacements, in mm on one lattice, after both ways were drawn towards the inverse of the other (Heinrich et al., MICCAI 2014):
    u <- (u - v o (x + u)) / 2 and v <- (v - u o (x + v)) / 2 at once, over and over. Where they disagree, what is left is smoother and folds less."""
    def through(a: Tensor, u: Tensor) -> Tensor:
        return trilinear(a.contiguous(), displaced(grid, u)).T.reshape(u.shape)

    for _ in range(rounds):
        forward, back = (forward - through(back, forward)) / 2, (back - through(forward, back)) / 2
    return forward


def _costs(fixed: Volume, moving: Volume, mask: Tensor, shifts: Tensor, reach: list[int], radius: int,
           moving_mask: Volume | None) -> Float[Tensor, "D N"]:
    """1 - the windowed correlation, of every displacement at every voxel inside the mask."""
    grid = fixed.grid
    wide = grid.crop([-r for r in reach], [n + 2 * r for n, r in zip(grid.shape, reach, strict=True)])
    b, m = moving.on(wide).data[0], mask.float()
    mb = torch.ones_like(b) if moving_mask is None else (moving_mask.on(wide).data[0] > 0.5).float()
    a, middle = fixed.data[0], tuple(slice(r, r + n) for r, n in zip(reach, grid.shape, strict=True))
    seen = mask & (mb[middle] > 0)
    a, b = (_standard(image, own) for image, own in ((a, a[mask]), (b, b[middle][seen if seen.any() else mask])))
    inside = torch.nonzero(mask.flatten())[:, 0]
    costs = torch.empty(len(shifts), len(inside))
    for row, shift in enumerate(shifts.tolist()):
        at = tuple(slice(r + s, r + s + n) for r, s, n in zip(reach, shift, grid.shape, strict=True))
        w, bs = m * mb[at], b[at]
        wa, wb = w * a, w * bs
        n, sa, sb, saa, sbb, sab = window_sums(torch.stack([w, wa, wb, wa * a, wb * bs, wa * bs]), radius).flatten(1)[:, inside].unbind(0)
        n = n.clamp_min(1)
        cov = sab / n - sa * sb / n**2
        va, vb = (saa / n - (sa / n) ** 2).clamp_min(0) + 1e-3, (sbb / n - (sb / n) ** 2).clamp_min(0) + 1e-3
        costs[row] = 1 - cov / (va * vb).sqrt()
    return costs


def _standard(image: Lattice, own: Float[Tensor, "N"]) -> Lattice:
    """With the mean and deviation of `own` as 0 and 1: the images may have other units."""
    return (image - own.mean()) / own.std(correction=0).clamp_min(1e-12)


def _smoothed(u: Float[Tensor, "3 I J K"], mask: Tensor, sigma: float, grid: Grid) -> Float[Tensor, "3 I J K"]:
    """Gaussian means of the values inside the mask; nothing beyond it."""
    import scipy.ndimage

    width = [sigma if n > 1 else 0.0 for n in grid.shape]
    weight = mask.numpy().astype(np.float32)
    total = scipy.ndimage.gaussian_filter(weight, width, mode="constant")
    parts = [scipy.ndimage.gaussian_filter(part.numpy() * weight, width, mode="constant") / np.maximum(total, 1e-6) for part in u]
    return torch.from_numpy(np.stack(parts)) * mask
