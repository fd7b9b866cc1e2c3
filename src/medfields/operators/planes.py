"""Thick slices, each with a pose of its own: a pixel measures the average of the object under its slice's profile.

y(p) = integral w(z) f(T_n (u, v) + z n_n) dz for a pixel at (u, v) of slice n, with T_n its affine and n_n its normal: `SliceOperator` for
slices that are not parallel. It also tells how y changes when a slice moves, which is what poses are found from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels.dispatch import backend
from ..kernels.planes import planes_gather_torch
from ..space import Grid
from .slices import FWHM_PER_SIGMA, REACH, slice_quadrature


class PlaneOperator:
    """The matrix A from values on a lattice, between which it interpolates linearly, to the pixels of slices in space.

    Args:
        lattice: at least two points along each axis; beyond its border the values go on.
        at: pixel indices (u, v) along the first two axes of a slice.
        plane: whose slice a pixel is of.
        affines: [N, 4, 4] of the slices: pixel (u, v) lies at affine @ (u, v, 0, 1) mm, and the third column points across.
        profile: "gauss", "box" or "none".
        thickness: [N] mm.
        nodes: of the profile's quadrature.
    """

    def __init__(self, lattice: Grid, at: Float[Tensor, "P 2"], plane: Int[Tensor, "P"], affines: Float[np.ndarray, "N 4 4"], profile: str,
                 thickness: Sequence[float], nodes: int = 16):
        self.lattice, self.at, self.plane = lattice, at, plane
        back = np.linalg.inv(lattice.affine)
        across = np.cross(affines[:, :3, 0], affines[:, :3, 1])
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        z, w = slice_quadrature(profile, 1.0, nodes)
        local = back @ affines
        self.to_index = back[:3, :3]
        self.arrays = (local[:, :3, :2], local[:, :3, 3], across * np.asarray(thickness)[:, None] @ back[:3, :3].T, z, w)
        self.reach = float(max(thickness)) * (0.0 if profile == "none" else 0.5 if profile == "box" else REACH / FWHM_PER_SIGMA)

    def apply(self, c: Float[Tensor, "I J K"]) -> Float[Tensor, "P"]:
        """A c."""
        if backend(c) == "numba":
            from ..kernels.planes import planes_gather

            return planes_gather(c, self.at, self.plane, *self.arrays)
        return planes_gather_torch(c, self.at, self.plane, *self.arrays)

    def slope(self, c: Float[Tensor, "I J K"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P 3"]]:
        """A c, and its derivative by a shift of the pixel, per mm of the world."""
        turn = torch.as_tensor(self.to_index).to(c)
        if backend(c) == "numba":
            from ..kernels.planes import planes_slope

            value, slope = planes_slope(c, self.at, self.plane, *self.arrays)
        else:
            value, slope = self._slope(c)
        return value, slope @ turn

    def adjoint(self, y: Float[Tensor, "P"]) -> Float[Tensor, "I J K"]:
        """A^T y."""
        if backend(y) == "numba":
            from ..kernels.planes import planes_scatter

            return planes_scatter(y, self.at, self.plane, *self.arrays, self.lattice.shape)
        with torch.enable_grad():
            c = torch.zeros(self.lattice.shape, dtype=y.dtype, device=y.device, requires_grad=True)
            return torch.autograd.grad(planes_gather_torch(c, self.at, self.plane, *self.arrays), c, y)[0]

    def _slope(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The twin of `planes_slope`."""
        with torch.enable_grad():
            shift = torch.zeros(len(self.at), 3, dtype=c.dtype, device=c.device, requires_grad=True)
            value = partial(planes_gather_torch, c.detach(), self.at, self.plane, *self.arrays)(shift)
            return value.detach(), torch.autograd.grad(value.sum(), shift)[0]
