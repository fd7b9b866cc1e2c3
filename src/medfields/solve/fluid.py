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
from .freeform import FreeForm, Views, nested
from .pairing import displaced, indices
from .run import Run
from .search import consistent, search

SEARCHED = 40_000  # voxels of the lattice that is searched, at most
REACH = 4  # of its voxels


class Steps:
    """The composition of steps so far, as displacements in mm on a fine lattice around what counts.

    Args:
        case: the images.
        spacing: of the lattice, mm.
    """

    def __init__(self, case: Pair, spacing: float):
        lattice = nested(case.grid, case.box(), spacing, 1)[0]
        self.whole = Volume(torch.zeros(3, *lattice.shape), lattice, "mm")

    def start_from(self, u: Volume) -> None:
        """Begin with displacements in mm; beyond their lattice they go on."""
        self.whole = self.whole.with_data(_read(u, self.whole.grid))

    @torch.no_grad()
    def add(self, form: FreeForm, finest: int = 0) -> None:
        """Put a step before all others: u(x) + whole(x + u(x)). What lattices finer than `finest` add is left out."""
        grid, c = self.whole.grid, form.coefficients(finest).cpu()
        u = LinearBasis.on(form.tables(grid, finest), c)
        self.whole = self.whole.with_data(u + trilinear(self.whole.data, displaced(grid, u)).T.reshape(u.shape))

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
    """Displacements in mm within `reach` mm, by `search` on a lattice on which that is four voxels, made consistent with a search the other way;
    beyond what counts the nearest goes on."""
    voxel = reach / REACH
    while int(case.inside.sum()) * float(np.prod(np.minimum(1, case.grid.spacing / voxel))) > SEARCHED:
        voxel *= 1.1
    views = Views(case, voxel, 0.4 * voxel)
    found = Found(views.grid)
    for _ in run.steps(1, "search", found):
        found.u.copy_(consistent(*(_ways(case, views)), views.grid))
    return Volume(found.u.cpu(), views.grid, "mm")


def _read(u: Volume, grid: Grid) -> torch.Tensor:
    """A volume of displacements at the voxels of another grid; its border goes on."""
    return trilinear(u.data, indices(grid, u.grid)).T.reshape(u.channels, *grid.shape)


def _ways(case: Pair, views: Views) -> tuple[torch.Tensor, torch.Tensor]:
    """What is found from the fixed to the moving image, and from the moving one, on the same lattice, to the fixed."""
    grid, seen = views.grid, case.aligned_mask
    fixed, moving, inside = Volume(views.fixed, grid), Volume(views.moving, case.aligned.grid), views.inside
    there = inside if seen is None else seen.on(grid).data[0] > 0.5
    there = there if there.any() else inside  # masks that meet on no voxel of this lattice
    mask = None if case.mask is None or seen is None else Volume(inside.float(), grid)
    return (_filled(search(fixed, moving, inside, REACH, 2, 1.5, moving_mask=seen), inside),
            _filled(search(moving.on(grid), fixed, there, REACH, 2, 1.5, moving_mask=mask), there))


def _filled(u: Volume, inside: torch.Tensor) -> torch.Tensor:
    """Displacements whose values inside a mask go on beyond it."""
    nearest = scipy.ndimage.distance_transform_edt(~inside.numpy(), return_distances=False, return_indices=True)
    return u.data[:, nearest[0], nearest[1], nearest[2]]
