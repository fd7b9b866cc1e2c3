"""Line integrals through a lattice after Joseph (IEEE TMI 1982), and their exact transpose.

A ray crosses the planes of the lattice axis along which it advances fastest; in each plane the value is interpolated bilinearly, and the
sum is multiplied by the distance between two crossings. Beyond the outermost voxel centres values fade to zero over one voxel; along an
axis with a single voxel (a slice) they are constant through its thickness. A pixel is a point: a wide one is an average of several rays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .dispatch import backend

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class RayTable:
    """The views of a detector in units of a lattice: pixel (r, c) lies at centre + a[c] u + b[c] w + (r - (R - 1) / 2) v.

    Args:
        source: [V, 3] voxel indices of the focal spot; or, parallel, directions.
        centre, u, v, w: [V, 3] voxel indices, and voxels per step.
        a, b: [C] steps.
        rows: R.
        metric: [3, 3] mm^2 between two voxel steps: |d| mm = sqrt(d' metric d).
        parallel: whether the rays of a view are parallel.
    """

    source: np.ndarray
    centre: np.ndarray
    u: np.ndarray
    v: np.ndarray
    w: np.ndarray
    a: np.ndarray
    b: np.ndarray
    rows: int
    metric: np.ndarray
    parallel: bool

    # Where a ray advances equally fast along two axes, the first of them leads, however rounding falls.
    prefer: ClassVar[np.ndarray] = 1 + 1e-9 * np.array([2.0, 1.0, 0.0])

    @property
    def shape(self) -> Shape:
        """Views, rows, columns."""
        return len(self.source), self.rows, len(self.a)

    def rays(self, device: torch.device | str = "cpu") -> tuple[Float[Tensor, "V R C 3"], Float[Tensor, "V R C 3"]]:
        """Origin o and direction d in voxels: the ray is o + t d, with t from 0 to 1 between source and pixel, or, parallel, any t."""
        r = np.arange(self.rows) - (self.rows - 1) / 2
        centre, u, v, w, source = (x[:, None, None, :] for x in (self.centre, self.u, self.v, self.w, self.source))
        pixel = centre + self.a[:, None] * u + self.b[:, None] * w + r[:, None, None] * v
        origin, direction = (pixel, np.broadcast_to(source, pixel.shape)) if self.parallel else (np.broadcast_to(source, pixel.shape), pixel - source)
        return torch.tensor(origin, device=device), torch.tensor(direction, device=device)


def joseph(lattice: Float[Tensor, "I J K"], table: RayTable) -> Float[Tensor, "V R C"]:
    """Line integrals of a lattice, in its unit times mm.

    Numba for float32 on the CPU, Triton for float32 on CUDA, else the twin; they agree to rounding (relative 1e-5).
    """
    kind = backend(lattice)
    if kind == "torch":
        return joseph_torch(lattice, table)
    return _kernels(kind).forward(lattice.detach(), table)


def joseph_transpose(y: Float[Tensor, "V R C"], table: RayTable, shape: Shape) -> Float[Tensor, "I J K"]:
    """The transpose of `joseph`: values of rays spread onto a lattice of `shape`. On the CPU the same bytes for any number of threads."""
    kind = backend(y)
    if kind == "torch":
        return joseph_transpose_torch(y, table, shape)
    return _kernels(kind).transpose(y.detach(), table, shape)


def _kernels(kind: str):  # type: ignore[no-untyped-def]  # a module
    if kind == "triton":
        from . import joseph_triton
        return joseph_triton
    from . import joseph_numba
    return joseph_numba


def joseph_torch(lattice: Float[Tensor, "I J K"], table: RayTable) -> Float[Tensor, "V R C"]:
    """The plain twin: any device and float type, differentiable in the lattice; it visits one plane of the lattice at a time."""
    origin, direction = (t.reshape(-1, 3).to(torch.float64) for t in table.rays(lattice.device))
    metric = torch.as_tensor(table.metric, device=lattice.device)
    length = torch.einsum("ni,ij,nj->n", direction, metric, direction).sqrt()
    fastest = (direction.abs() * torch.as_tensor(table.prefer, device=lattice.device)).argmax(1)
    flat, total = lattice.reshape(-1), lattice.new_zeros(len(origin))
    strides = (lattice.shape[1] * lattice.shape[2], lattice.shape[2], 1)
    for axis in range(3):
        mine = torch.nonzero(fastest == axis)[:, 0]
        others = [d for d in range(3) if d != axis]
        o, d = origin[mine], direction[mine]
        part = lattice.new_zeros(len(mine))
        for plane in range(lattice.shape[axis] if len(mine) else 0):
            t = (plane - o[:, axis]) / d[:, axis]
            beyond = (t - 0.5).abs() - 0.5
            inside = torch.ones_like(t) if table.parallel else (beyond * d[:, axis].abs() <= 1e-9).to(t)
            nodes = [two_nodes(o[:, e] + t * d[:, e], lattice.shape[e]) for e in others]
            for n, wn in nodes[0]:
                for m, wm in nodes[1]:
                    at = plane * strides[axis] + n * strides[others[0]] + m * strides[others[1]]
                    part = part + (wn * wm * inside).to(flat) * flat[at]
        step = length[mine] / d[:, axis].abs()
        total = total.index_add(0, mine, part * step.to(part))
    return total.reshape(table.shape)


def two_nodes(x: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """The nodes next to x on an axis of n, with their weights: zero for nodes that do not exist."""
    if n == 1:
        return [(torch.zeros_like(x, dtype=torch.long), (x.abs() <= 0.5 + 1e-9).to(x))]
    low = x.floor()
    pairs = [(low.long(), 1 - (x - low)), (low.long() + 1, x - low)]
    return [(k.clamp(0, n - 1), w * ((k >= 0) & (k < n))) for k, w in pairs]


def joseph_transpose_torch(y: Float[Tensor, "V R C"], table: RayTable, shape: Shape) -> Float[Tensor, "I J K"]:
    """The plain twin of the transpose, by automatic differentiation of the forward twin."""
    with torch.enable_grad():
        zero = torch.zeros(shape, dtype=y.dtype, device=y.device, requires_grad=True)
        (out,) = torch.autograd.grad(joseph_torch(zero, table), zero, y.detach())
    return out
