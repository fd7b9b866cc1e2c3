"""BSpline: coefficients on a lattice; a field that is linear in its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.spline import spline_base, spline_scatter, spline_values, spline_weights
from ..space import Box, Grid
from .spec import Spec, spec


@spec
class BSpline(Spec):
    """f(x) = sum_n c[n] prod_d B((A^-1 x)_d - n_d): tensor-product B-splines of one degree on any lattice.

    Degree 1 is the voxel grid with trilinear interpolation; 2 and 3 are smooth.

    Args:
        shape: number of coefficients along the lattice axes.
        affine: the lattice's 4x4 affine, row by row, mm per step: oblique and anisotropic spacings are allowed.
        degree: 1, 2 or 3.
    """

    shape: tuple[int, int, int]
    affine: tuple[float, ...]
    degree: int = 1

    def __post_init__(self) -> None:
        if self.degree not in (1, 2, 3) or len(self.shape) != 3 or len(self.affine) != 16:
            raise InputError("a B-spline needs three sizes, a 4x4 affine and a degree of 1, 2 or 3")
        if not all(1 <= n <= 1 << 14 for n in self.shape) or int(np.prod([int(n) for n in self.shape])) > 1 << 31:
            raise InputError(f"a lattice of {self.shape} coefficients is out of bounds")
        _ = self.lattice

    @classmethod
    def on(cls, grid: Grid, degree: int = 1) -> BSpline:
        """One coefficient at every voxel centre."""
        return cls(grid.shape, tuple(float(v) for v in grid.affine.ravel()), degree)

    @classmethod
    def example(cls, box: Box) -> BSpline | None:
        return cls.on(Grid.from_spacing([int(side / 9) + 3 for side in box.sides], 10.0, box.lo), 3) if box.ndim == 3 else None

    @property
    def lattice(self) -> Grid:
        return Grid(self.shape, np.array(self.affine).reshape(4, 4))

    def build(self, box: Box, channels: int) -> LinearBasis:
        if box.ndim != 3:
            raise InputError(f"a B-spline lattice lies in three dimensions, the box has {box.ndim}")
        return LinearBasis(self, box, channels)


class LinearBasis(nn.Module):
    """The coefficients [C, I, J, K] of a `BSpline`, and the matrix-free map from them to values.

    Because values are linear in the coefficients, `apply` and `adjoint` are all that conjugate gradients need.
    """

    to_index: Tensor
    shift: Tensor

    def __init__(self, spec: BSpline, box: Box, channels: int):
        super().__init__()
        self.spec = spec
        self.coefficients = nn.Parameter(torch.zeros(channels, *spec.shape))
        inverse = np.linalg.inv(spec.lattice.affine)
        self.register_buffer("to_index", torch.tensor(inverse[:3, :3] * box.radius, dtype=torch.float32), persistent=False)
        self.register_buffer("shift", torch.tensor(inverse[:3, :3] @ box.centre + inverse[:3, 3], dtype=torch.float32), persistent=False)

    def index(self, u: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Fractional lattice indices of unit coordinates."""
        return u @ self.to_index.T + self.shift

    def apply_at(self, u: Float[Tensor, "N 3"], coefficients: Float[Tensor, "C I J K"]) -> Float[Tensor, "N C"]:
        """The basis at points u, applied to any coefficients."""
        return spline_values(coefficients, self.index(u), self.spec.degree)

    def adjoint_at(self, u: Float[Tensor, "N 3"], values: Float[Tensor, "N C"]) -> Float[Tensor, "C I J K"]:
        """The transpose of `apply_at`: values spread onto the coefficients."""
        return spline_scatter(values, self.index(u), self.spec.shape, self.spec.degree)

    def bases(self, grid: Grid, order: int = 0) -> list[Tensor] | None:
        """For each axis the matrix [voxels, coefficients] of the basis (or its derivative of `order`, per lattice step) at the voxel centres of a
        grid whose axes run along the lattice's, whatever the spacings; None for a turned grid."""
        m = np.linalg.inv(self.spec.lattice.affine) @ grid.affine
        if np.abs(m[:3, :3] - np.diag(np.diag(m[:3, :3]))).max() > 1e-6:
            return None
        made = []
        for d, (n, size) in enumerate(zip(grid.shape, self.spec.shape, strict=True)):
            base, t = spline_base(torch.arange(n, dtype=torch.float64) * m[d, d] + m[d, 3], self.spec.degree)
            basis = torch.zeros(n, size, dtype=torch.float64)
            for node, weight in enumerate(spline_weights(t, self.spec.degree, order)):
                basis.scatter_add_(1, (base + node).clamp(0, size - 1)[:, None], weight[:, None])
            made.append(basis.float().to(self.coefficients.device))
        return made

    @staticmethod
    def on(bases: Sequence[Tensor], coefficients: Float[Tensor, "C I J K"]) -> Float[Tensor, "C i j k"]:
        """Values on the grid of `bases`: three products of small matrices instead of (degree + 1)^3 reads for each voxel."""
        x = torch.matmul(bases[1], coefficients @ bases[2].T)
        return torch.matmul(bases[0], x.flatten(2)).unflatten(2, x.shape[2:])

    def forward(self, u: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch C"]:
        return self.apply_at(u.reshape(-1, 3), self.coefficients).reshape(*u.shape[:-1], self.coefficients.shape[0])

    def jet(self, u: Float[Tensor, "*batch 3"], order: int) -> tuple[Tensor, ...]:
        """Value, Jacobian and (order 2) Hessian with respect to u; a degree below 2 has no curvature inside a cell."""
        index, batch = self.index(u).reshape(-1, 3), (*u.shape[:-1], self.coefficients.shape[0])
        unit = [tuple(int(a == d) for a in range(3)) for d in range(3)]

        def read(*axes: int) -> Tensor:
            orders = tuple(sum(unit[a][d] for a in axes) for d in range(3))
            if max(orders) > self.spec.degree:
                return torch.zeros(len(index), self.coefficients.shape[0], dtype=index.dtype, device=index.device)
            return spline_values(self.coefficients, index, self.spec.degree, (orders[0], orders[1], orders[2]))

        value = read().reshape(batch)
        gradient = torch.stack([read(d) for d in range(3)], -1)
        jacobian = (gradient @ self.to_index).reshape(*batch, 3)
        if order == 1:
            return value, jacobian
        second = torch.stack([torch.stack([read(a, b) for b in range(3)], -1) for a in range(3)], -2)
        return value, jacobian, (self.to_index.T @ second @ self.to_index).reshape(*batch, 3, 3)
