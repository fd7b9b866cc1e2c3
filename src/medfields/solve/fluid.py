"""Deformations put together from small steps, and where they start from."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
import torch
from torch import nn

from ..cases import Pair
from ..fields import BSpline, Field
from ..fields.bspline import LinearBasis
from ..fields.warp import Plane
from ..kernels.trilinear import trilinear
from ..space import Grid, Volume
from .freeform import FreeForm, LatticeMatch, Views, nested
from .run import Run
from .search import search

SEARCHED = 40_000  # voxels of the lattice that is searched, at most
REACH = 4  # of its voxels


class Step(LatticeMatch):
    """One more free-form step, from no displacement."""

    def rates(self, lr: float) -> dict[str, float]:
        """Learning rates, mm, of the lattices that take part."""
        return {f"form.parts.{k}": lr for k in range(self.finest, len(self.form.parts))}


class Steps(nn.Module):
    """The composition of steps so far, as displacements in mm on a fine lattice around what counts.

    Args:
        case: the images.
        spacing: of the finest lattice of a step, mm.
        fine: of the lattice of the whole, mm.
    """

    def __init__(self, case: Pair, spacing: float, fine: float):
        super().__init__()
        self.case, self.spacing, self.levels = case, spacing, 3
        lattice = nested(case.grid, case.box(), fine, 1)[0]
        self.whole = Volume(torch.zeros(3, *lattice.shape), lattice, "mm")

    def start_from(self, u: Volume) -> None:
        """Begin with displacements in mm; beyond their lattice they go on."""
        self.whole = self.whole.with_data(_read(u, self.whole.grid))

    def step(self, views: Views, coarser: int, radius: int, bending: float, volume: float) -> Step:
        """The problem of the next step, on lattices that are 2^coarser times as wide as the finest, and wider."""
        form = FreeForm(self.case.grid, self.case.box(), self.spacing, self.levels)
        return Step(form, views, min(coarser, self.levels - 1), "ncc", radius, bending, volume, self.whole)

    @torch.no_grad()
    def add(self, step: Step) -> None:
        """Put a step before all others: u(x) + whole(x + u(x))."""
        grid, c = self.whole.grid, step.form.coefficients(step.finest).cpu()
        u = LinearBasis.on(step.form.tables(grid, step.finest), c)
        to_index = torch.tensor(np.linalg.inv(grid.affine)[:3, :3], dtype=torch.float32)
        at = torch.cartesian_prod(*(torch.arange(float(n)) for n in grid.shape)) + u.flatten(1).T @ to_index.T
        self.whole = self.whole.with_data(u + trilinear(self.whole.data, at).T.reshape(u.shape))

    def field(self, case: Pair) -> Field:
        """The whole as one cubic B-spline that takes its values at the nodes of the lattice."""
        warp = case.displacement(BSpline.on(self.whole.grid, 3))
        basis = warp.net.inner if isinstance(warp.net, Plane) else warp.net
        assert isinstance(basis, LinearBasis)
        c = self.whole.data.double().numpy()
        for axis in (1, 2, 3):
            if c.shape[axis] > 1:
                c = scipy.ndimage.spline_filter1d(c, order=3, axis=axis, mode="nearest")
        with torch.no_grad():
            basis.coefficients.copy_(torch.as_tensor(c, dtype=torch.float32) / float(warp.radius[0]))
        return warp


class Found(nn.Module):
    """What a search found: kept in a checkpoint."""

    u: torch.Tensor

    def __init__(self, grid: Grid):
        super().__init__()
        self.register_buffer("u", torch.zeros(3, *grid.shape))


def searched(case: Pair, run: Run, reach: float) -> Volume:
    """Displacements in mm within `reach` mm, by `search` on a lattice on which that is four voxels; beyond what counts the nearest goes on."""
    voxel = reach / REACH
    while int(case.inside.sum()) * float(np.prod(np.minimum(1, case.grid.spacing / voxel))) > SEARCHED:
        voxel *= 1.1
    views = Views(case, voxel, 0.4 * voxel)
    fixed, inside = Volume(views.fixed, views.grid), views.inside
    found = Found(views.grid)
    for _ in run.steps(1, "search", found):
        moving = Volume(views.moving, case.aligned.grid)
        v = search(fixed, moving, inside, REACH, 2, 1.5, moving_mask=case.aligned_mask)
        nearest = scipy.ndimage.distance_transform_edt(~inside.numpy(), return_distances=False, return_indices=True)
        found.u.copy_(v.data[:, nearest[0], nearest[1], nearest[2]])
    return Volume(found.u.cpu(), views.grid, "mm")


def _read(u: Volume, grid: Grid) -> torch.Tensor:
    """A volume of displacements at the voxels of another grid; its border goes on."""
    index = torch.tensor(u.grid.index(grid.points().reshape(-1, 3).double().numpy()), dtype=torch.float32)
    return trilinear(u.data, index).T.reshape(u.channels, *grid.shape)
