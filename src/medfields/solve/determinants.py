"""det grad phi of a warp on a lattice, slab by slab: by products of small matrices where the warp is a B-spline along the lattice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..fields import Field, LinearBasis, jacobian
from ..fields.warp import AffineMap, Chain
from ..losses import determinant
from ..space import Grid

_CHUNK = 1 << 15  # points at a time: with their slopes 130 MB in a layer of 256 units
_SLAB = 1 << 19  # voxels at a time


class Determinants:
    """det grad phi of one warp at the voxel centres of one grid.

    Of a B-spline whose axes run along the grid's, with A the mm of a step of its own lattice and c the slopes of u per step,
    grad phi = 1 + c A^-1. So its determinant is det(A + c) / det A, and c on a slab needs only the coefficients that the slab sees. An affine map
    that follows multiplies it. All other warps are asked point by point.

    Args:
        warp: a displacement in mm.
        grid: in the world the warp starts from.
    """

    def __init__(self, warp: Field, grid: Grid):
        self.warp, self.grid, self.times, net = warp, grid, 1.0, warp.net
        while isinstance(net, Chain) and isinstance(net.then, AffineMap):
            self.times *= float(torch.linalg.det(net.then.slope.double() + torch.eye(3, dtype=torch.float64, device=net.then.slope.device)))
            net = net.first
        bases = (net.bases(grid), net.bases(grid, 1)) if isinstance(net, LinearBasis) else (None, None)
        self.spline = net if isinstance(net, LinearBasis) and bases[0] is not None else None
        self.plain, self.slope = (b or [] for b in bases)

    def slabs(self) -> Iterator[tuple[int, int]]:
        """From and to which i the voxels are best asked for at a time."""
        step = max(1, _SLAB // (self.grid.shape[1] * self.grid.shape[2]))
        yield from ((i, min(i + step, self.grid.shape[0])) for i in range(0, self.grid.shape[0], step))

    @torch.no_grad()
    def at(self, start: int, stop: int, where: Bool[Tensor, "i J K"] | None = None) -> Float[Tensor, "n"]:
        """At the voxels with start <= i < stop, in their order; only `where` if given."""
        device = self.warp.centre.device
        if self.spline is not None:
            d = self.times * self._slab(self.spline, start, stop)
            return d.flatten() if where is None else d[where.to(device)]
        x = self.grid.slab(start, stop, device)
        parts = (x.reshape(-1, 3) if where is None else x[where.to(device)]).split(_CHUNK)
        return torch.cat([determinant(jacobian(self.warp, part)) for part in parts])

    def _slab(self, net: LinearBasis, start: int, stop: int) -> Float[Tensor, "i J K"]:
        step = torch.tensor(net.spec.lattice.affine[:3, :3].copy(), dtype=torch.float32, device=net.coefficients.device)
        seen = torch.nonzero(((self.plain[0][start:stop] != 0) | (self.slope[0][start:stop] != 0)).any(0))
        lo, hi = int(seen.min()), int(seen.max()) + 1
        coefficients = self.warp.scale[:, None, None, None] * net.coefficients[:, lo:hi]
        columns = []
        for axis in range(3):
            bases = [(self.slope if d == axis else self.plain)[d] for d in range(3)]
            slopes = net.on([bases[0][start:stop, lo:hi], *bases[1:]], coefficients)
            columns.append(slopes.add_(step[:, axis, None, None, None]))
        return determinant(torch.stack(columns).movedim((0, 1), (-2, -1))) / torch.det(step)
