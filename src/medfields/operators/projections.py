"""X-ray projections: a pixel measures the integral of the attenuation along its ray.

p = integral of f(o + s d) ds, in units of f times mm. Two ways lead to p and are tested equal: `LineIntegral` samples any function along
rays; `Projector` is the exact matrix of a lattice (Joseph), with its transpose, and `OnGrid` evaluates a function on that lattice first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.joseph import RayTable, joseph, joseph_transpose
from ..space import Box, Geometry, Grid


class LineIntegral(nn.Module):
    """Any function of the world, integrated along rays inside a box.

    Each ray's way through the box is cut into equal parts, and the function is read in the middle of each; in training mode at a random
    place of each (stratified: Mildenhall et al., ECCV 2020). Gradients reach the function and the rays' origins and directions.

    Args:
        box: mm; beyond it the function counts as zero.
        step: mm, the largest part; all rays of a call have as many parts as the longest way through the box needs.
        most: points of a chunk where no gradient is wanted, which bounds the memory; with gradients a call takes all its rays at once.

    A call takes a function and `at = {"origin": [N, 3] mm, "direction": [N, 3] unit vectors}`, as `Geometry.at` gives them, and gives [N, C].
    With "length" [N] mm the rays begin at their origins and end there; without they are whole lines.
    """

    def __init__(self, box: Box, step: float, most: int = 1 << 20):
        super().__init__()
        if not step > 0:
            raise InputError(f"the step along a ray must be more than 0 mm, got {step:g}")
        self.box, self.step, self.most = box, step, most
        self.parts = max(1, int(np.ceil(np.linalg.norm(box.sides[:3]) / step)))

    def forward(self, field: Callable[[Tensor], Tensor], at: dict[str, Tensor]) -> Float[Tensor, "N C"]:
        given = [at[name] for name in ("origin", "direction", "length") if name in at]
        if torch.is_grad_enabled():
            return self._integrate(field, *given)
        rays = max(1, self.most // self.parts)
        return torch.cat([self._integrate(field, *chunk) for chunk in zip(*(t.split(rays) for t in given), strict=True)])

    def _integrate(self, field: Callable[[Tensor], Tensor], origin: Tensor, direction: Tensor, length: Tensor | None = None) -> Tensor:
        near, far = self.clip(origin, direction)
        if length is not None:
            near, far = near.clamp_min(0), torch.minimum(far, length)
        way = (far - near).clamp_min(0)
        share = torch.arange(self.parts, device=origin.device, dtype=origin.dtype).expand(len(origin), -1)
        share = share + (torch.rand_like(share) if self.training else 0.5)
        s = near[:, None] + way[:, None] * share / self.parts
        seen = torch.nonzero(way > 0)[:, 0]
        values = field(origin[seen, None, :] + s[seen, :, None] * direction[seen, None, :])
        out = values.mean(1) * way[seen, None]
        return out.new_zeros(len(origin), out.shape[1]).index_add(0, seen, out)

    def clip(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Distances [N] mm from the origins at which rays enter and leave the box; they leave before they enter if they miss it."""
        lo, hi = (torch.tensor(b[:3], dtype=origin.dtype, device=origin.device) for b in (self.box.lo, self.box.hi))
        away = torch.where(direction.abs() < 1e-9, torch.full_like(direction, 1e-9), direction)
        a, b = (lo - origin) / away, (hi - origin) / away
        return torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)


class Projector:
    """The exact matrix from a lattice of values to all pixels of a geometry, after Joseph.

    Args:
        grid: the lattice; of a slice (K = 1), which the rays of a fan or of one detector row lie in, or of a volume.
        geometry: the views.
        subrays: rays averaged over each pixel, along columns, and along rows too in a volume, unless a parallel beam's rows lie each within a
            slice: then a slice counts as constant through its thickness.

    `apply` and `adjoint` are linear and exact transposes of one another; a call is `apply` with a gradient.
    """

    def __init__(self, grid: Grid, geometry: Geometry, subrays: int = 1):
        if subrays < 1:
            raise InputError(f"a pixel needs at least one ray, got {subrays}")
        self.grid, self.geometry = grid, geometry
        self.cut = (1 if grid.is_2d or _by_slices(grid, geometry) else subrays, subrays)
        self.table = ray_table(grid, geometry if subrays == 1 else geometry.finer(self.cut[1], self.cut[0]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Views, rows, columns."""
        return self.geometry.views, *self.geometry.shape

    def apply(self, c: Float[Tensor, "I J K"]) -> Float[Tensor, "V R C"]:
        """A c: line integrals, in the unit of c times mm."""
        fine = joseph(c, self.table)
        if self.cut == (1, 1):
            return fine
        v, r, k = self.shape
        return fine.reshape(v, r, self.cut[0], k, self.cut[1]).mean((2, 4))

    def adjoint(self, y: Float[Tensor, "V R C"]) -> Float[Tensor, "I J K"]:
        """A^T y."""
        if self.cut != (1, 1):
            y = (y / (self.cut[0] * self.cut[1])).repeat_interleave(self.cut[0], 1).repeat_interleave(self.cut[1], 2)
        return joseph_transpose(y, self.table, self.grid.shape)

    def __call__(self, c: Float[Tensor, "I J K"]) -> Float[Tensor, "V R C"]:
        return _Apply.apply(c, self)

    def subset(self, views: np.ndarray | slice) -> Projector:
        """The same for some of the views."""
        return Projector(self.grid, self.geometry.subset(views), self.cut[1])

    def norm(self, steps: int = 12) -> float:
        """The largest singular value of A, by the power method: A does not amplify more than this."""
        x = self.adjoint(torch.ones(self.shape))
        size = torch.ones(())
        for _ in range(steps):
            x = x / x.norm().clamp_min(1e-30)
            x = self.adjoint(self.apply(x))
            size = x.norm()
        return float(size.sqrt())


class OnGrid(nn.Module):
    """Any function, evaluated on a lattice and then projected: the way to all rays at once, with the exact transpose as its gradient."""

    points: Tensor

    def __init__(self, projector: Projector):
        super().__init__()
        self.projector = projector
        self.register_buffer("points", projector.grid.points().reshape(-1, 3), persistent=False)

    def forward(self, field: Callable[[Tensor], Tensor], at: Any = None) -> Float[Tensor, "N 1"]:
        lattice = field(self.points).reshape(self.projector.grid.shape)
        return self.projector(lattice).reshape(-1, 1)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor, projector: Projector) -> Tensor:
        ctx.projector = projector
        return projector.apply(c)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _ApplyTransposed.apply(grads[0].contiguous(), ctx.projector), None


class _ApplyTransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, projector: Projector) -> Tensor:
        ctx.projector = projector
        return projector.adjoint(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Apply.apply(grads[0].contiguous(), ctx.projector), None


def _by_slices(grid: Grid, geometry: Geometry) -> bool:
    """Do the rays of a parallel beam run within slices of the lattice, in rows no taller than these?"""
    to_index = np.linalg.inv(grid.affine[:3, :3]).T
    up, along = geometry.v @ to_index, geometry.facing @ to_index
    axis = int(np.abs(up).sum(0).argmax())
    level = np.abs(np.delete(up, axis, 1)).max() < 1e-6 and np.abs(along[:, axis]).max() < 1e-6
    return geometry.beam == "parallel" and bool(level) and float(np.abs(up[:, axis]).max()) < 1.001


def ray_table(grid: Grid, geometry: Geometry) -> RayTable:
    """The geometry in units of the lattice."""
    turn = np.linalg.inv(grid.affine[:3, :3]).T
    a, b = geometry.offsets()
    directions = [geometry.u, geometry.v, geometry.facing]
    source = geometry.source @ turn if geometry.beam == "parallel" else grid.index(geometry.source)
    u, v, w = (d @ turn for d in directions)
    metric = grid.affine[:3, :3].T @ grid.affine[:3, :3]
    return RayTable(source, grid.index(geometry.centre), u, v, w, a, b, geometry.shape[0], metric, geometry.beam == "parallel")
