"""Free-form deformation: B-splines on nested lattices, fitted to all voxels at once, coarse to fine.

Displacements are c = c_0 + S (c_1 + S (c_2 + ...)): the coefficients of the finest lattice, with S the exact subdivision of cubic B-splines from a
lattice to one twice as fine. All lattices are trained together, the coarse ones first: what is large and smooth then moves in one step of Adam,
which on the finest lattice alone would take hundreds. The result is one B-spline.

On lattices that run along the image's axes, values and derivatives at all voxels are three small matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases import Pair
from ..errors import InputError
from ..fields import BSpline, Field
from ..fields.bspline import LinearBasis
from ..fields.warp import Plane
from ..kernels.trilinear import trilinear
from ..losses import determinant, mse
from ..losses.local import local_ncc, mind_ssc
from ..losses.regularity import barrier
from ..losses.similarity import mutual_information
from ..space import Box, Grid, Volume
from .pairing import displaced, indices
from .problem import Problem
from .run import Run

Lattice = Float[Tensor, "3 I J K"]
RIM = 8  # voxels that a displacement may leave the lattice by before MIND sees the border go on


def nested(grid: Grid, box: Box, spacing: float, levels: int) -> list[Grid]:
    """Lattices along a grid's axes, the finest of `spacing` mm first, each next one twice as wide, that cover a box with one and a half cells to
    spare. Every node of a lattice is one of the next finer. Of slices they have one node across."""
    corners = np.array(np.meshgrid(*zip(box.lo, box.hi, strict=True), indexing="ij")).reshape(3, -1).T @ np.linalg.inv(grid.directions).T
    lo, hi, widest = corners.min(0), corners.max(0), spacing * 2 ** (levels - 1)
    n = np.ceil((hi - lo) / widest).astype(int) + 3
    origin, made = (lo + hi) / 2 - (n - 1) / 2 * widest, []
    if grid.is_2d:
        n[2], origin[2] = 1, (np.linalg.inv(grid.directions) @ grid.centre)[2]
    for level in range(levels):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = grid.directions * spacing * 2**level, grid.directions @ origin
        shape = (n - 1) * 2 ** (levels - 1 - level) + 1
        made.append(Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine))
    return made


def subdivided(c: Float[Tensor, "C i j k"], shape: tuple[int, int, int]) -> Float[Tensor, "C I J K"]:
    """Coefficients of the same cubic spline on the lattice twice as fine: (1, 6, 1) / 8 at the old nodes, (1, 1) / 2 between them."""
    for axis, n in enumerate(c.shape[1:], 1):
        if n > 1:
            wide = torch.cat([c.narrow(axis, 0, 1), c, c.narrow(axis, n - 1, 1)], axis)
            left, here, right = (wide.narrow(axis, k, n) for k in range(3))
            c = torch.stack([(left + 6 * here + right) / 8, (here + right) / 2], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, shape[axis - 1])
    return c


class FreeForm(nn.Module):
    """Displacements in mm on nested lattices; `parts[0]` is the finest."""

    def __init__(self, grid: Grid, box: Box, spacing: float, levels: int):
        super().__init__()
        self.lattices = nested(grid, box, spacing, levels)
        self.parts = nn.ParameterList(torch.zeros(3, *lattice.shape) for lattice in self.lattices)
        self.box = box

    def coefficients(self, finest: int = 0) -> Lattice:
        """mm, on the lattice `finest`; what finer ones add is left out."""
        c = self.parts[-1]
        for level in range(len(self.parts) - 2, finest - 1, -1):
            c = subdivided(c, self.lattices[level].shape) + self.parts[level]
        return c

    def rates(self, lr: float, finest: int = 0) -> dict[str, float]:
        """Learning rates, mm, of the lattices that take part in a `LatticeMatch`."""
        return {f"form.parts.{k}": lr for k in range(finest, len(self.parts))}

    def tables(self, grid: Grid, finest: int = 0, order: int = 0) -> list[Tensor]:
        """The basis of a lattice, or its derivative per mm, at the voxels of a grid, axis by axis: see `LinearBasis.bases`."""
        lattice = self.lattices[finest]
        found = LinearBasis(BSpline.on(lattice, 3), self.box, 1).bases(grid, order)
        if found is None:
            raise InputError("the grid does not run along the lattices of the displacement")
        return [table / float(step) ** order for table, step in zip(found, lattice.spacing, strict=True)]

    def field(self, case: Pair) -> Field:
        """The displacement as a field of one B-spline."""
        warp = case.displacement(BSpline.on(self.lattices[0], 3))
        basis = warp.net.inner if isinstance(warp.net, Plane) else warp.net
        assert isinstance(basis, LinearBasis)
        with torch.no_grad():
            basis.coefficients.copy_(self.coefficients().cpu() / float(warp.radius[0]))
        return warp


class Regularity(nn.Module):
    """Bending and change of volume of a `FreeForm` at the nodes of a lattice, in mm.

    Args:
        form: the displacement.
        finest: the lattice.
        bending: weight, mm^2, of the mean squared second derivatives.
        volume: weight of the mean of det + 1/det - 2: a barrier against folds.
    """

    def __init__(self, form: FreeForm, finest: int, bending: float, volume: float):
        super().__init__()
        self.bending, self.volume = bending, volume
        lattice = form.lattices[finest]
        self.tables = [form.tables(lattice, finest, order) for order in range(3)]
        self.axes = torch.tensor(np.linalg.inv(lattice.directions), dtype=torch.float32)

    def derivative(self, c: Lattice, *axes: int) -> Lattice:
        """The derivative of u along lattice axes, per mm."""
        return LinearBasis.on([self.tables[axes.count(d)][d].to(c.device) for d in range(3)], c)

    def forward(self, c: Lattice) -> dict[str, Tensor]:
        found = {}
        if self.bending:
            pairs = [(a, b) for a in range(3) for b in range(a, 3)]
            squares = [(1 if a == b else 2) * self.derivative(c, a, b).square().sum(0).mean() for a, b in pairs]
            found["bending"] = self.bending * torch.stack(squares).sum()
        if self.volume:
            slope = torch.stack([self.derivative(c, a) for a in range(3)], -1).movedim(0, -2)  # [..., world component, lattice axis]
            f = slope @ self.axes.to(c.device) + torch.eye(3, device=c.device)
            found["volume"] = self.volume * barrier(determinant(f), 0.1).mean()
        return found


class Views(nn.Module):
    """Both images of a pair as one level of a pyramid sees them: blurred, on a lattice around what counts.

    Args:
        case: the images.
        voxel: mm of the lattice at least; the image's own if they are larger.
        blur: Gaussian width (sigma), mm.
    """

    fixed: Tensor
    moving: Tensor
    inside: Tensor
    start: Tensor
    turn: Tensor

    def __init__(self, case: Pair, voxel: float, blur: float):
        super().__init__()
        where = torch.nonzero(case.inside)
        lo = (where.amin(0).numpy() - 2).clip(0)
        own = case.grid.crop(lo, np.minimum(where.amax(0).numpy() + 3, case.grid.shape) - lo)
        self.grid = own.with_spacing(np.maximum(own.spacing, voxel).tolist())
        seen = [image.blurred(blur) for image in (case.fixed, case.aligned)]
        mask = case.mask.on(self.grid).data[0] > 0.5 if case.mask is not None else torch.ones(self.grid.shape, dtype=torch.bool)
        to_index = np.linalg.inv(case.aligned.grid.affine)
        buffers = {"fixed": seen[0].on(self.grid).data[0], "moving": seen[1].data, "inside": mask,
                   "turn": torch.tensor(to_index[:3, :3], dtype=torch.float32),
                   "start": indices(self.grid, seen[1].grid)}
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        self.seen, self.moving_mask = seen, case.aligned_mask

    def warped(self, u: Lattice) -> Float[Tensor, "I J K"]:
        """The moving image at x + u(x), at the lattice's voxels."""
        return trilinear(self.moving, self.start + u.flatten(1).T @ self.turn.T).reshape(self.grid.shape)

    def described(self) -> tuple[Float[Tensor, "12 I J K"], Float[Tensor, "12 i j k"], Float[Tensor, "3"]]:
        """MIND descriptors of the fixed image, and of the moving one with a rim around it, both along the axes of the level's lattice, on which
        they depend; and how many voxels wide the rim is. Beyond an image its border goes on: its end is no edge."""
        rim = [RIM if n > 1 else 0 for n in self.grid.shape]
        wide = self.grid.crop([-r for r in rim], [n + 2 * r for n, r in zip(self.grid.shape, rim, strict=True)])
        fixed, moving = (mind_ssc(trilinear(image.data, indices(wide, image.grid)).T.reshape(wide.shape)) for image in self.seen)
        i, j, k = (slice(r, r + n) for n, r in zip(self.grid.shape, rim, strict=True))
        return fixed[:, i, j, k].contiguous(), moving, torch.tensor(rim, dtype=torch.float32)

    @torch.no_grad()
    def counting(self, u: Lattice) -> Tensor:
        """Voxels that count in both images."""
        if self.moving_mask is None:
            return self.inside
        return self.inside & (trilinear(self.moving_mask.data.to(u), self.start + u.flatten(1).T @ self.turn.T) > 0.5).reshape(self.grid.shape)


class LatticeMatch(Problem):
    """How unlike the fixed and the warped moving image are over all voxels of a level, and how irregular the displacement is.

    Args:
        form: the displacement; trained in place.
        views: of the images.
        finest: the finest lattice that takes part, 0 for all.
        similarity: "ncc" in windows, "mi" (mutual information of all voxels, in nats), "mind" (mean squared difference of the descriptors of
            `mind_ssc`, taken on the level's lattice) or "mse" in units of the fixed image's variance.
        radius: of the windows, voxels of the level.
        bending, volume: see `Regularity`.
        base: displacements in mm that come after those of the form, which is then a small step more.
    """

    memory = "the number of voxels: choose a larger --voxel"
    at: Tensor
    turn: Tensor
    fixed_mind: Tensor
    moving_mind: Tensor
    rim: Tensor

    def __init__(self, form: FreeForm, views: Views, finest: int, similarity: str, radius: int, bending: float, volume: float,
                 base: Volume | None = None):
        super().__init__()
        self.form, self.views, self.finest, self.similarity, self.base = form, views, finest, similarity, base
        self.regularity = Regularity(form, finest, bending, volume)
        self.radius = radius
        if similarity == "mind":
            for name, value in zip(("fixed_mind", "moving_mind", "rim"), views.described(), strict=True):
                self.register_buffer(name, value, persistent=False)
        self.tables = form.tables(views.grid, finest)
        if base is not None:
            self.register_buffer("at", indices(views.grid, base.grid), persistent=False)
            self.register_buffer("turn", torch.tensor(np.linalg.inv(base.grid.affine)[:3, :3], dtype=torch.float32), persistent=False)

    def batch(self, rng: torch.Generator) -> Any:
        return None

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        c = self.form.coefficients(self.finest)
        u = LinearBasis.on([table.to(c.device) for table in self.tables], c)
        return {"unlike": self.unlike(self.carried(u)), **self.regularity(c)}

    def carried(self, u: Lattice) -> Lattice:
        """All displacements together: u(x) + base(x + u(x))."""
        if self.base is None:
            return u
        return u + trilinear(self.base.data.to(u.device), self.at + u.flatten(1).T @ self.turn.T).T.reshape(u.shape)

    def unlike(self, u: Lattice) -> Float[Tensor, ""]:
        """What is left of the likeness: 0 for images that are the same."""
        counts = self.views.counting(u)
        if self.similarity == "mind":
            warped = trilinear(self.moving_mind, displaced(self.views.grid, u) + self.rim).T.reshape(self.fixed_mind.shape)
            return (self.fixed_mind - warped).square().mean(0)[counts].mean()
        fixed, warped = self.views.fixed, self.views.warped(u)
        if self.similarity == "ncc":
            return 1 - local_ncc(fixed, warped, self.radius, counts)
        if self.similarity == "mi":
            return -mutual_information(fixed[counts], warped[counts])
        return mse(warped[counts][:, None], fixed[counts][:, None]) / fixed[self.views.inside].var()


def coarse_to_fine(form: FreeForm, case: Pair, run: Run, voxels: Sequence[float], blur: Sequence[float], steps: Sequence[int], lr: float = 0.4,
                   similarity: str = "ncc", radius: int = 3, bending: float = 100.0, volume: float = 0.01, base: Volume | None = None) -> None:
    """Fit one displacement from blurred images and wide lattices to sharp images and all lattices; the last two stages see all of them.

    Args:
        form: trained in place.
        case: the images.
        run: keeps its progress.
        voxels: mm, of the images in each stage; never finer than the images' own.
        blur: Gaussian sigma in each stage, mm.
        steps: of Adam in each.
        lr: of Adam, mm, in the first stage; it falls to a twentieth in each, and starts a third lower in the next.
        similarity, radius, bending, volume, base: as in `LatticeMatch`.

    Raises:
        InputError: if voxels, blur and steps are not equally many.
    """
    if not len(voxels) == len(blur) == len(steps):
        raise InputError("voxels, blur and steps must be given for the same number of stages")
    for stage, (voxel, sigma, n) in enumerate(zip(voxels, blur, steps, strict=True)):
        finest = min(max(0, len(voxels) - 2 - stage), len(form.parts) - 1)
        match = LatticeMatch(form, Views(case, voxel, sigma), finest, similarity, radius, bending, volume, base)
        run.fit(match, steps=n, lr=form.rates(lr * 0.7**stage, finest), name=f"level {stage + 1}", schedule="cosine", final=0.05)
