"""Deformations put together from small steps, and where they start from."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases import Pair
from ..fields import BSpline, Field
from ..fields.bspline import LinearBasis
from ..fields.warp import Plane
from ..kernels.trilinear import trilinear
from ..losses.local import lines, local_ncc, standard
from ..space import Grid, Volume
from .freeform import FreeForm, Lattice, LatticeMatch, Views, nested
from .pairing import displaced, indices
from .run import Run
from .search import consistent, search

SEARCHED = 40_000  # voxels of the lattice that is searched, at most
REACH = 4  # of its voxels


class Steps(nn.Module):
    """The composition of steps so far, as displacements in mm on a fine lattice around what counts; kept in a checkpoint.

    Args:
        case: the images.
        spacing: of the lattice, mm.
    """

    u: Tensor

    def __init__(self, case: Pair, spacing: float):
        super().__init__()
        self.grid = nested(case.grid, case.box(), spacing, 1)[0]
        self.register_buffer("u", torch.zeros(3, *self.grid.shape))

    @property
    def whole(self) -> Volume:
        return Volume(self.u, self.grid, "mm")

    def start_from(self, u: Volume) -> None:
        """Begin with displacements in mm; beyond their lattice they go on."""
        self.u.copy_(_read(u.with_data(u.data.cpu()), self.grid))

    @torch.no_grad()
    def add(self, form: FreeForm) -> None:
        """Put a step before all others: u(x) + whole(x + u(x))."""
        u = LinearBasis.on([table.to(self.u) for table in form.tables(self.grid)], form.coefficients().to(self.u))
        self.u.copy_(u + trilinear(self.u, displaced(self.grid, u)).T.reshape(u.shape))

    @torch.no_grad()
    def smooth(self, variance: float) -> None:
        """Smooth the whole by (v, 1 - 2 v, v) along each axis with v half the variance, in squared nodes."""
        for axis, n in enumerate(self.u.shape[1:], 1):
            if n > 1:
                wide = torch.cat([self.u.narrow(axis, 0, 1), self.u, self.u.narrow(axis, n - 1, 1)], axis)
                self.u.lerp_((wide.narrow(axis, 0, n) + wide.narrow(axis, 2, n)) / 2, variance)

    def field(self, case: Pair) -> Field:
        """The whole as one cubic B-spline that takes its values at the nodes of the lattice."""
        warp = case.displacement(BSpline.on(self.grid, 3))
        basis = warp.net.inner if isinstance(warp.net, Plane) else warp.net
        assert isinstance(basis, LinearBasis)
        c = self.u.cpu().double().numpy()
        for axis in (1, 2, 3):
            if c.shape[axis] > 1:
                c = scipy.ndimage.spline_filter1d(c, order=3, axis=axis, mode="nearest")
        with torch.no_grad():
            basis.coefficients.copy_(torch.as_tensor(c, dtype=torch.float32) / float(warp.radius[0]))
        return warp


class Likeness(LatticeMatch):
    """Of a flow: squared correlations in small windows, and squared differences of values once lines in wide windows have made them comparable.

    Small windows alone forgive what is grey where it should be white; all values by one line would make motion of a coil's bias.

    Args:
        form, views, similarity, radius, base: see `LatticeMatch`.
        noise: of the small windows, see `local_ncc`.
        values: weight of the squared differences, as a share of the variance in wide windows.
        reach: mm to each side, of the wide windows.
    """

    slope: Tensor
    offset: Tensor
    variance: Tensor

    def __init__(self, form: FreeForm, views: Views, similarity: str, radius: int, base: Volume, noise: float, values: float, reach: float):
        super().__init__(form, views, 0, similarity, radius, 0.0, 0.0, base)
        self.noise, self.values, self.wide = noise, values, max(radius, round(reach / float(views.grid.spacing[:2].min())))
        for name in ("slope", "offset"):
            self.register_buffer(name, torch.zeros_like(views.fixed))
        self.register_buffer("variance", torch.ones(()))

    @torch.no_grad()
    def draw_lines(self) -> None:
        """From the values of the moving image to those of the fixed one, as both lie now."""
        if self.similarity != "ncc":
            return
        fixed, warped, counts = self._seen(self.carried(torch.zeros_like(self.views.fixed).expand(3, -1, -1, -1)))
        if counts.any():
            for buffer, found in zip((self.slope, self.offset, self.variance), lines(fixed, warped, self.wide, counts), strict=True):
                buffer.copy_(found)

    def _seen(self, u: Lattice) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.views.counting(u)
        fixed, warped = self.views.fixed, self.views.warped(u)
        return (standard(fixed, counts), standard(warped, counts), counts) if counts.any() else (fixed, warped, counts)

    def unlike(self, u: Lattice) -> Float[Tensor, ""]:
        if self.similarity != "ncc":
            return super().unlike(u)
        fixed, warped, counts = self._seen(u)
        windows = 1 - local_ncc(fixed, warped, self.radius, counts, noise=self.noise, squared=True)
        rest = (fixed - self.slope * warped - self.offset).square() * counts
        return windows + self.values * rest.sum() / (counts.sum().clamp_min(1) * self.variance)


def flow(whole: Steps, match: Likeness, run: Run, steps: int, step: float, stiff: float, name: str) -> None:
    """Follow the slope of the likeness in small steps, each put before all others (Yushkevich's greedy, Avants' SyN, with B-splines for Gaussians).

    A step is the slope by the coefficients of a cubic B-spline, so smooth however the slope is; where little is to be gained little moves.

    Args:
        whole: changed in place.
        match: of a step, which is the one lattice of its form; at most a fifth of that lattice's spacing is a step that does not fold.
        run: keeps its progress.
        steps: how many.
        step: mm of each, where it is longest; it falls to a tenth.
        stiff: variance by which the whole is smoothed after each, squared nodes: it holds the whole together, where a step only itself is smooth.
        name: of the stage.
    """
    state, c = nn.ModuleList([whole, match]).to(run.device), match.form.parts[0]
    for k in run.steps(steps, name, state):
        match.base = whole.whole
        if k == 0:
            match.draw_lines()
        unlike = match.losses(None, 0.0)["unlike"]
        slope = torch.autograd.grad(unlike, c)[0]
        with torch.no_grad():
            longest = LinearBasis.on([table.to(slope.device) for table in match.tables], slope).norm(dim=0).max()
            length = step * (0.55 + 0.45 * math.cos(math.pi * k / steps))  # as long as at first, they would tremble about the answer
            c.copy_(-slope * (length / longest.clamp_min(1e-30)))
            whole.add(match.form)
            whole.smooth(stiff)
            c.zero_()
        run.report(unlike=unlike)


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
