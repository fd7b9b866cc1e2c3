"""Volume: values on a grid, and a function of the world."""

from __future__ import annotations

from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.dispatch import backend
from ..kernels.spline import spline_values
from .grid import Grid

Interpolation = Literal["linear", "cubic"]


# Cubic coefficients of volumes that were read so. Not an attribute: a volume that has been read is still the same to a checkpoint.
_CUBIC: WeakKeyDictionary[Volume, Tensor] = WeakKeyDictionary()


class Volume(nn.Module):
    """Values at the voxel centres of a grid; calling it interpolates: [*batch, 3] mm -> [*batch, C].

    Inside the outer faces of the border voxels the border value continues; beyond, the answer is `fill`.

    Args:
        data: [C, I, J, K] values; a [I, J, K] tensor or array gets one channel. Kept as float32.
        grid: where the voxels lie.
        unit: of the values, for instance "HU"; "" if arbitrary.
        interpolation: "linear", or "cubic" (interpolating cubic B-spline, exact at the voxel centres).
        about: facts from the file: source, thickness_mm, ... Never used as geometry.

    Raises:
        InputError: if data and grid disagree in shape.
    """

    data: Tensor

    def __init__(self, data: Num[Tensor, "..."] | np.ndarray, grid: Grid, unit: str = "", *, interpolation: Interpolation = "linear",
                 fill: float = 0.0, about: dict[str, Any] | None = None):
        super().__init__()
        data = torch.as_tensor(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data).to(torch.float32)
        data = data[None] if data.ndim == 3 else data
        if data.ndim != 4 or tuple(data.shape[1:]) != grid.shape:
            raise InputError(f"data of shape {tuple(data.shape)} does not fit {grid}")
        self.register_buffer("data", data, persistent=False)
        self.grid, self.unit, self.interpolation, self.fill, self.about = grid, unit, interpolation, fill, dict(about or {})

    @property
    def channels(self) -> int:
        return int(self.data.shape[0])

    def with_data(self, data: Num[Tensor, "..."] | np.ndarray) -> Volume:
        """Other values on the same grid."""
        return Volume(data, self.grid, self.unit, interpolation=self.interpolation, fill=self.fill, about=self.about)

    def blurred(self, mm: float, beyond: Literal["nearest", "constant"] = "nearest") -> Volume:
        """A volume of its own, convolved with a Gaussian of sigma `mm`; 0 leaves the values as they are, and a slice stays in its plane.

        Args:
            mm: sigma.
            beyond: what lies outside: the border values ("nearest"), or 0 ("constant").
        """
        if mm == 0:
            return self.with_data(self.data)
        sigma = [mm / s if n > 1 else 0.0 for s, n in zip(self.grid.spacing, self.grid.shape, strict=True)]
        return self.with_data(scipy.ndimage.gaussian_filter(self.data.cpu().numpy(), (0.0, *sigma), mode=beyond))

    def forward(self, x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch C"]:
        inverse = torch.as_tensor(np.linalg.inv(self.grid.affine), dtype=x.dtype, device=x.device)
        index = x @ inverse[:3, :3].T + inverse[:3, 3]
        coefficients, pad, degree = self._spline()
        values = spline_values(coefficients, (index + pad.to(index)).reshape(-1, 3), degree).reshape(*x.shape[:-1], -1)
        return torch.where(self._inside(index), values, self.fill)

    def _inside(self, index: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch 1"]:
        """Whether voxel indices lie within the outer faces."""
        top = torch.tensor(self.grid.shape, dtype=index.dtype, device=index.device) - 0.5
        return ((index >= -0.5 - 1e-4) & (index <= top + 1e-4)).all(-1, keepdim=True)

    def _spline(self) -> tuple[Tensor, Tensor, int]:
        """B-spline coefficients that give back the data, how many were added before the first voxel [3], and the degree."""
        if self.interpolation == "linear":
            return self.data, torch.zeros(3), 1
        pad = [2 if n > 1 else 0 for n in self.grid.shape]
        if self not in _CUBIC:
            lattice = self.data.detach().cpu().numpy().astype(np.float64)
            for axis in (1, 2, 3):
                if lattice.shape[axis] > 1:
                    lattice = scipy.ndimage.spline_filter1d(lattice, order=3, axis=axis, mode="mirror")
            # The kernel continues with the border coefficient, the prefilter assumes a mirror: two mirrored
            # coefficients on each side make both agree everywhere inside.
            _CUBIC[self] = torch.as_tensor(np.pad(lattice, [(0, 0), *((p, p) for p in pad)], mode="reflect"), dtype=torch.float32)
        return _CUBIC[self].to(self.data.device), torch.tensor(pad, dtype=torch.float32), 3

    @torch.no_grad()
    def on(self, grid: Grid) -> Volume:
        """This function read at the voxel centres of another grid; by the compiled kernel on the CPU, elsewhere slab by slab."""
        if backend(self.data) == "numba":
            data = self._walk(grid)
        else:
            step = max(1, 1_000_000 // (grid.shape[1] * grid.shape[2]))
            slabs = [self(grid.slab(i, min(i + step, grid.shape[0]), self.data.device)) for i in range(0, grid.shape[0], step)]
            data = torch.cat(slabs).movedim(-1, 0)
        return Volume(data, grid, self.unit, interpolation=self.interpolation, fill=self.fill, about=self.about)

    def _walk(self, grid: Grid) -> Tensor:
        """The same values as `forward` at all voxels of a grid, without storing where they lie."""
        from ..kernels.slices import slice_gather  # Numba takes a second to load

        coefficients, pad, degree = self._spline()
        m = np.linalg.inv(self.grid.affine) @ grid.affine
        turn, shift = np.ascontiguousarray(m[:3, :3]), m[:3, 3] + pad.double().numpy()
        point = (np.zeros(3), np.zeros(1), np.ones(1))  # one node: no profile
        data = torch.stack([slice_gather(c, turn, shift, *point, degree, grid.shape) for c in coefficients])
        to_index = torch.as_tensor(m, dtype=torch.float32)
        for i in range(grid.shape[0]):
            v = torch.cartesian_prod(torch.tensor([float(i)]), torch.arange(float(grid.shape[1])), torch.arange(float(grid.shape[2])))
            outside = ~self._inside(v @ to_index[:3, :3].T + to_index[:3, 3])
            data[:, i].masked_fill_(outside.reshape(grid.shape[1:]), self.fill)
        return data

    def __repr__(self) -> str:
        return f"Volume({self.channels} channel{'s' * (self.channels != 1)}, {self.grid}{', ' + self.unit if self.unit else ''})"
