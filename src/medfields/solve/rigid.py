"""Rigid registration of two images of one subject: coarse to fine, by their correlation."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..losses import ncc
from ..space import Grid, Volume
from ..space.rigid import rotation

FREE = {True: (2, 3, 4), False: (0, 1, 2, 3, 4, 5)}  # of the pose, in the grid's own axes: a slice turns and slides in its plane


def register(moving: Volume, fixed: Volume, levels: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0), points: int = 40_000) -> Float[Tensor, "6"]:
    """The pose that best lays one image on another: `carried(moving, pose, grid)` looks like `fixed`.

    The correlation coefficient of both images, blurred, is maximised by L-BFGS over rotation and translation; the first level starts from
    where the images lie and from where their centres of mass coincide, whichever is alike more.

    Args:
        moving: the image to be carried; a slice is laid on a slice within its plane.
        fixed: the image that stays; zero outside the subject.
        levels: widths (sigma) of the blur, in voxels of `fixed`, from coarse to fine.
        points: of `fixed` that are compared, at most, about evenly spread.

    Returns:
        [rotation vector (radians), translation (mm)], about the centre of `fixed`'s grid: x of `fixed` is found at
        R (x - centre) + centre + t of `moving`.
    """
    grid, moving = fixed.grid, endless(moving, fixed)
    about = torch.tensor(grid.centre, dtype=torch.float32)
    axes = torch.tensor(grid.directions, dtype=torch.float32)
    radius = float(np.linalg.norm(np.ptp(grid.corners(), axis=0)) / 4)  # turns count in mm, as shifts do
    units = torch.tensor([1 / radius] * 3 + [1.0] * 3)
    free = torch.tensor(FREE[grid.is_2d])
    best: Tensor | None = None
    for sigma in levels:
        mm = sigma * float(grid.spacing[:2].min())
        a, b = moving.blurred(mm, "constant"), fixed.blurred(mm, "constant")
        coarse = grid.with_spacing((grid.spacing * max(1.0, 0.7 * sigma, (grid.size / points) ** (1 / (2 if grid.is_2d else 3)))).tolist())
        x = coarse.points().reshape(-1, 3)
        target = b(x)[:, 0]

        def pose(q: Tensor) -> Tensor:
            own = torch.zeros(6).index_put((free,), q) * units
            return torch.cat([axes @ own[:3], axes @ own[3:]])

        def unlike(q: Tensor, a: Volume = a, x: Tensor = x, target: Tensor = target) -> Tensor:
            return -1000 * ncc(a(_moved(pose(q), x, about))[:, 0], target)  # per mm the slope is about 1: L-BFGS likes that

        starts = [torch.zeros(len(free)), _by_mass(moving, fixed, axes, about)[free]] if best is None else [best]
        tried = [descend(unlike, q) for q in starts]
        best = min(tried, key=lambda q: float(unlike(q)))
    assert best is not None
    return pose(best).detach()


@torch.no_grad()
def carried(moving: Volume, pose: Float[Tensor, "6"], grid: Grid) -> Volume:
    """The moving image on another grid, laid where the pose of `register` says, which turns about the centre of that grid."""
    about = torch.tensor(grid.centre, dtype=torch.float32)
    source = endless(moving, Volume(torch.zeros(grid.shape), grid))
    slabs = [source(_moved(pose, grid.slab(i, i + 1), about)) for i in range(grid.shape[0])]
    return Volume(torch.cat(slabs).movedim(-1, 0), grid, moving.unit, fill=moving.fill)


def _moved(pose: Tensor, x: Tensor, about: Tensor) -> Tensor:
    """All points by one pose; as `space.rigid.move`, which takes a pose for each point."""
    return (x - about) @ rotation(pose[:3]).T + about + pose[3:]


def descend(loss, q: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # q -> scalar
    """Where L-BFGS ends that starts at q: at most 40 steps, for losses whose slope is about 1."""
    q = q.clone().requires_grad_(True)
    engine = torch.optim.LBFGS([q], lr=1.0, max_iter=40, tolerance_change=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        engine.zero_grad()
        value = loss(q)
        value.backward()
        return value

    engine.step(closure)
    return q.detach()


def _by_mass(moving: Volume, fixed: Volume, axes: Tensor, about: Tensor) -> Tensor:
    """[6] the shift in the grid's axes that lays the centre of mass of one image on that of the other."""
    centres = []
    for volume in (moving, fixed):
        weight = volume.data[0].clamp_min(0)
        at = [float((weight.sum([b for b in range(3) if b != a]) * torch.arange(n)).sum() / weight.sum().clamp_min(1e-30))
              for a, n in enumerate(weight.shape)]
        centres.append(volume.grid.world(np.array(at)))
    return torch.cat([torch.zeros(3), axes.T @ torch.tensor(centres[0] - centres[1], dtype=torch.float32)])


def endless(moving: Volume, fixed: Volume) -> Volume:
    """A slice that is to be laid on a slice counts as endless across its plane: the two need not lie in one plane."""
    if not (moving.grid.is_2d and fixed.grid.is_2d):
        return moving
    affine = moving.grid.affine.copy()
    affine[:3, 2] *= 1e6 / moving.grid.spacing[2]
    return Volume(moving.data, Grid(moving.grid.shape, affine), moving.unit, fill=moving.fill)
