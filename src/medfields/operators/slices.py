"""Thick slices: a voxel measures the average of the object over its slice profile.

y(x) = integral p(z) f(x + z n) dz, with p a Gaussian whose full width at half maximum is the slice thickness, or a box.
In the plane a voxel is a point sample: the in-plane blur of an MR scanner is part of what its own resolution means.
Two ways lead to y and are tested equal: `SliceAverage` samples any function under the profile; `SliceOperator` is the
exact matrix for a B-spline lattice, with its transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import GeometryError
from ..kernels.dispatch import backend
from ..kernels.spline import spline_base, spline_weights
from ..space import Grid

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
REACH = 3.0  # sigma, where a Gaussian profile is cut


def slice_quadrature(profile: str, thickness: float, nodes: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Offsets z [K] mm and weights [K] (sum 1) with which a slice profile is integrated.

    The midpoints of equal steps over the box, or over three sigma of the Gaussian on either side: there the rule is accurate
    far beyond the voxel noise, and its steps stay below the detail of the object, which those of Gauss-Hermite nodes do not.
    """
    if profile == "none":
        return np.zeros(1), np.ones(1)
    middle = (np.arange(nodes) + 0.5) / nodes - 0.5
    if profile == "box":
        return middle * thickness, np.full(nodes, 1 / nodes)
    z = 2 * REACH * middle
    w = np.exp(-(z**2) / 2)
    return z * thickness / FWHM_PER_SIGMA, w / w.sum()


class SliceAverage(nn.Module):
    """Any function of the world, averaged under the slice profile of each sample.

    Args:
        profile: "gauss", "box" or "none".
        thickness: mm, of each stack.
        normals: [S, 3] unit vectors across the slices of each stack.
        nodes: quadrature points for each sample, at most 64.

    A call takes a function and `at = {"x": [N, 3] mm, "stack": [N], "channel": [N]}` and gives [N, 1]. In training mode
    all nodes of a sample are shifted together by a random part of their step: a function that is rough between fixed
    nodes could otherwise hide there, and over many draws the rule becomes exact.
    """

    offsets: Tensor
    weights: Tensor
    normals: Tensor
    sigma: Tensor
    step: Tensor

    def __init__(self, profile: str, thickness: Sequence[float], normals: np.ndarray, nodes: int = 16):
        super().__init__()
        rules = [slice_quadrature(profile, t, nodes) for t in thickness]
        sigma = [t / FWHM_PER_SIGMA if profile == "gauss" else np.inf for t in thickness]
        step = [0.0 if profile == "none" else (2 * REACH * t / FWHM_PER_SIGMA if profile == "gauss" else t) / nodes for t in thickness]
        for name, values in (("offsets", [z for z, _ in rules]), ("weights", [w for _, w in rules]), ("normals", normals),
                             ("sigma", sigma), ("step", step)):
            self.register_buffer(name, torch.tensor(np.array(values), dtype=torch.float32), persistent=False)

    def forward(self, field: Callable[[Tensor], Tensor], at: dict[str, Tensor]) -> Float[Tensor, "N 1"]:
        stack = at["stack"]
        z, w = self.offsets[stack], self.weights[stack]
        if self.training and z.shape[1] > 1:
            shifted = z + ((torch.rand(len(z), device=z.device) - 0.5) * self.step[stack])[:, None]
            w = w * torch.exp((z.square() - shifted.square()) / (2 * self.sigma[stack].square()[:, None]))
            z = shifted
        x = at["x"][:, None, :] + z[:, :, None] * self.normals[stack][:, None, :]
        values = (w[:, :, None] * field(x)).sum(1)
        return values.gather(1, at["channel"][:, None]) if values.shape[1] > 1 else values


class Factor:
    """The part of a separable slice operator along one lattice axis: a small matrix [stack, lattice].

    Where the stack's pixels are the lattice points, the matrix only cuts out a range, and that is what is done.

    Args:
        axis: the stack axis that lies along it.
        matrix: the weights.
    """

    def __init__(self, axis: int, matrix: Float[Tensor, "a n"]):
        self.axis, self.matrix = axis, matrix
        rows, columns = matrix.shape
        start = int(matrix[0].argmax())
        cut = torch.zeros_like(matrix)
        if start + rows <= columns:
            cut[torch.arange(rows), start + torch.arange(rows)] = 1
        self.cut = start if float((matrix - cut).abs().max()) < 1e-4 else None

    def apply(self, c: Tensor, d: int) -> Tensor:
        """The matrix along dimension d."""
        if self.cut is not None:
            return c.narrow(d, self.cut, len(self.matrix))
        return torch.tensordot(self.matrix.to(c), c, dims=([1], [d])).movedim(0, d)

    def adjoint(self, y: Tensor, d: int) -> Tensor:
        """Its transpose along dimension d."""
        rows, columns = self.matrix.shape
        if self.cut is not None:
            ends = [0] * (2 * (y.ndim - 1 - d)) + [self.cut, columns - rows - self.cut]
            return torch.nn.functional.pad(y, ends)
        return torch.tensordot(self.matrix.to(y).T, y, dims=([1], [d])).movedim(0, d)


class SliceOperator:
    """The exact matrix A from B-spline coefficients on a lattice to the voxels of a stack.

    Only stack voxels whose whole profile lies inside the lattice count: `block` cuts the part of the stack that holds
    them, and rows of A for other voxels of the block are zero (`inside` tells). Where stack and lattice axes are parallel, A
    is a product of three small matrices, one an axis, with the profile integrated at 32 points a lattice step; otherwise the
    kernel walks the voxels with 16 nodes each.

    Args:
        lattice: where the coefficients lie.
        stack: the voxels of the stack.
        axis: the stack axis across the slices.
        profile, thickness: of the slices, mm.
        degree: of the B-spline, 1 to 3.
        exact: False forces the walking kernel (for the test that both agree).

    Raises:
        GeometryError: if no voxel of the stack lies inside the lattice.
    """

    def __init__(self, lattice: Grid, stack: Grid, axis: int, profile: str, thickness: float, degree: int = 1, exact: bool = True):
        self.lattice, self.axis, self.degree = lattice, axis, degree
        z, w = slice_quadrature(profile, thickness)
        self.block, inside = _inside(lattice, stack, axis, float(np.abs(z).max()))
        self.inside = torch.from_numpy(inside)
        grid = stack.crop([s.start for s in self.block], [s.stop - s.start for s in self.block])
        self.shape = grid.shape
        m = np.linalg.inv(lattice.affine) @ grid.affine
        self._m, self._t = np.ascontiguousarray(m[:3, :3]), m[:3, 3].copy()
        self._d, self._z, self._w = np.linalg.inv(lattice.affine)[:3, :3] @ grid.normal(axis), z, w
        self.factors = self._factors(profile, thickness, grid.spacing[axis]) if exact else None

    def _factors(self, profile: str, thickness: float, distance: float) -> list[Factor] | None:
        """For each lattice axis the map along it, or None if stack and lattice are oblique to each other."""
        source = np.abs(self._m).argmax(1)
        rest = self._m.copy()
        rest[np.arange(3), source] = 0
        sideways = np.where(source == self.axis, 0.0, self._d)  # across the slices, along other axes: a sheared lattice has such
        if len(set(source.tolist())) < 3 or max(np.abs(rest).max() * max(self.shape), np.abs(sideways).max() * np.abs(self._z).max()) > 1e-3:
            return None
        factors = []
        for d in range(3):
            n, step = int(source[d]), self._m[d, source[d]]
            z, w = np.zeros(1), np.ones(1)
            if n == self.axis:
                fine = int(np.clip(32 * 2 * REACH * thickness / distance * abs(step) / FWHM_PER_SIGMA, 33, 2000))
                z, w = slice_quadrature(profile, thickness, fine)
            at = step * np.arange(self.shape[n])[:, None] + self._t[d] + z * self._d[d]
            base, t = spline_base(torch.as_tensor(at), self.degree)
            values = torch.stack(spline_weights(t, self.degree), -1).numpy() * w[:, None]
            columns = np.clip(base.numpy()[..., None] + np.arange(self.degree + 1), 0, self.lattice.shape[d] - 1)
            rows = np.broadcast_to(np.arange(self.shape[n])[:, None, None], columns.shape)
            matrix = scipy.sparse.coo_array((values.ravel(), (rows.ravel(), columns.ravel())), (self.shape[n], self.lattice.shape[d]))
            factors.append(Factor(n, torch.tensor(matrix.toarray(), dtype=torch.float32)))
        return factors

    def apply(self, c: Float[Tensor, "I J K"]) -> Float[Tensor, "a b c"]:
        """A c."""
        if self.factors is None:
            from ..kernels.slices import slice_gather, slice_gather_torch  # Numba takes a second to load; parallel stacks do without

            walk = slice_gather if backend(c) == "numba" else slice_gather_torch
            return walk(c, self._m, self._t, self._d, self._z, self._w, self.degree, self.shape) * self.inside.to(c.device)
        for d in self._order():
            c = self.factors[d].apply(c, d)
        return c.permute(*np.argsort([f.axis for f in self.factors]).tolist()) * self.inside.to(c.device)

    def adjoint(self, y: Float[Tensor, "a b c"]) -> Float[Tensor, "I J K"]:
        """A^T y."""
        y = y * self.inside.to(y.device)
        if self.factors is None:
            from ..kernels.slices import slice_scatter

            if backend(y) == "numba":
                return slice_scatter(y, self._m, self._t, self._d, self._z, self._w, self.degree, self.lattice.shape)
            return self._transposed(y)
        y = y.permute(*[f.axis for f in self.factors])
        for d in reversed(self._order()):
            y = self.factors[d].adjoint(y, d)
        return y

    @torch.enable_grad()
    def _transposed(self, y: Tensor) -> Tensor:
        """A^T y of the walk in plain torch, by differentiating it; one node of the profile at a time, for memory's sake."""
        from ..kernels.slices import slice_gather_torch

        c = torch.zeros(self.lattice.shape, dtype=y.dtype, device=y.device, requires_grad=True)
        total = torch.zeros_like(c)
        for z, w in zip(self._z[:, None], self._w[:, None], strict=True):
            seen = slice_gather_torch(c, self._m, self._t, self._d, z, w, self.degree, self.shape)
            total += torch.autograd.grad(seen, c, y)[0]
        return total

    def _order(self) -> list[int]:
        """Lattice axes, the slice profile first: it leaves the least to do for the others."""
        assert self.factors is not None
        return sorted(range(3), key=lambda d: self.factors[d].axis != self.axis)  # type: ignore[index]

    def __call__(self, c: Float[Tensor, "I J K"]) -> Float[Tensor, "a b c"]:
        """A c, differentiable: its backward pass is the adjoint."""
        return _Linear.apply(c, self)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor, operator: SliceOperator) -> Tensor:
        ctx.operator = operator
        return operator.apply(c)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.adjoint(grads[0]), None


def _inside(lattice: Grid, stack: Grid, axis: int, reach: float) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """The smallest block of the stack that holds every voxel whose profile stays inside the lattice, and which those are."""
    end = reach * stack.normal(axis)
    inside: np.ndarray = np.empty(stack.shape, bool)
    top = np.array(lattice.shape) - 0.5 + 1e-3
    for a in range(stack.shape[0]):
        x = stack.world(np.stack(np.meshgrid(a, np.arange(stack.shape[1]), np.arange(stack.shape[2]), indexing="ij"), -1))
        ends = lattice.index(np.stack([x - end, x + end]))
        inside[a] = np.all((ends >= -0.5 - 1e-3) & (ends <= top), axis=(0, -1))[0]
    if not inside.any():
        raise GeometryError("no voxel of a stack lies inside the output grid with its whole slice thickness",
                            "widen the output grid, or check the headers")
    spans = [np.flatnonzero(inside.any(tuple(o for o in range(3) if o != n))) for n in range(3)]
    block = tuple(slice(int(s[0]), int(s[-1]) + 1) for s in spans)
    return (block[0], block[1], block[2]), inside[block]
