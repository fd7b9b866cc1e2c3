"""Grid: a lattice of voxels and where it lies in the world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import GeometryError, InputError
from .box import Box


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel centres at world points: x = affine @ (i, j, k, 1), in RAS+ millimetres.

    Args:
        shape: number of voxels along i, j, k; each at least 1. A 2-D image has K = 1, and its third affine column
            states the slice thickness.
        affine: [4, 4] mm per voxel step; may be oblique, anisotropic, flipped or sheared, never singular.
        frame: DICOM frame of reference UID, or "" if unknown.

    Raises:
        GeometryError: if the affine is not finite, is singular, or has a zero spacing.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    frame: str = ""

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"a grid needs three sizes of at least 1, got {tuple(self.shape)}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise GeometryError(f"an affine must be 4x4, got {affine.shape}")
        if not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise GeometryError("an affine must be finite with last row 0 0 0 1", "the file's header is damaged")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if (spacing <= 0).any() or abs(np.linalg.det(affine[:3, :3] / np.maximum(spacing, 1e-300))) < 1e-6:
            raise GeometryError(
                f"the affine is singular (spacing {np.array2string(spacing, precision=4)} mm): its axes do not span space",
                "repair the header, or set the spacing when the file is written",
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(cls, shape: Sequence[int], spacing: float | Sequence[float], origin: Sequence[float] = (0, 0, 0)) -> Grid:
        """An upright grid with the given voxel size in mm, whose first voxel centre is at `origin`."""
        size = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
        affine = np.diag([*size, 1.0])
        affine[:3, 3] = origin
        return cls((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    @property
    def spacing(self) -> np.ndarray:
        """[3] mm, the length of one voxel step along i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def directions(self) -> np.ndarray:
        """[3, 3], columns are the unit vectors of the i, j, k steps."""
        return self.affine[:3, :3] / self.spacing

    def normal(self, axis: int) -> np.ndarray:
        """[3] unit vector across the planes of the other two axes, towards the steps of `axis`; along them unless the grid is sheared."""
        a, b = (self.directions[:, d] for d in range(3) if d != axis)
        across, step = np.cross(a, b) / np.linalg.norm(np.cross(a, b)), self.directions[:, axis]
        return step if abs(across @ step) > 1 - 1e-9 else across * np.sign(across @ step)

    @property
    def is_2d(self) -> bool:
        return self.shape[2] == 1

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def centre(self) -> np.ndarray:
        """[3] mm, the middle of the lattice."""
        return self.world((np.array(self.shape) - 1) / 2)

    def world(self, index: np.ndarray) -> np.ndarray:
        """World points [..., 3] mm of (fractional) voxel indices [..., 3], in double precision."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: np.ndarray) -> np.ndarray:
        """Fractional voxel indices [..., 3] of world points [..., 3] mm, in double precision."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def points(self, device: torch.device | str = "cpu") -> Float[Tensor, "I J K 3"]:
        """World points of all voxel centres, mm, float32."""
        return self.slab(0, self.shape[0], device)

    def slab(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "I J K 3"]:
        """World points, mm, of the voxels with start <= i < stop: a large grid is visited slab by slab."""
        a = torch.as_tensor(self.affine.copy(), dtype=torch.float64, device=device)
        i, j, k = (torch.arange(lo, hi, dtype=torch.float64, device=device) for lo, hi in
                   ((start, stop), (0, self.shape[1]), (0, self.shape[2])))
        x = (i[:, None, None, None] * a[:3, 0] + j[None, :, None, None] * a[:3, 1]
             + k[None, None, :, None] * a[:3, 2] + a[:3, 3])
        return x.to(torch.float32)

    def corners(self, faces: bool = True) -> np.ndarray:
        """[8, 3] mm: the outer corners of the corner voxels (or, without `faces`, their centres)."""
        half = 0.5 if faces else 0.0
        ends = [(-half, n - 1 + half) for n in self.shape]
        return self.world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3))

    def box(self, margin: float = 0.0) -> Box:
        """The upright world box that holds all voxels, widened by `margin` mm on every side."""
        c = self.corners()
        return Box(tuple(c.min(0) - margin), tuple(c.max(0) + margin))

    def crop(self, start: Sequence[int] | np.ndarray, shape: Sequence[int] | np.ndarray) -> Grid:
        """The sub-lattice of `shape` voxels that begins at voxel `start` (which may be negative: then it pads)."""
        affine = self.affine.copy()
        affine[:3, 3] = self.world(np.asarray(start))
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, self.frame)

    def with_spacing(self, mm: float | Sequence[float]) -> Grid:
        """The same field of view, to the outer faces of its voxels, in voxels of `mm`.

        The number of voxels is rounded up so that nothing is lost, and the lattice stays centred. The axis across
        a 2-D image (K = 1) keeps its single voxel and its thickness.
        """
        new = np.array(np.broadcast_to(np.asarray(mm, dtype=np.float64), 3))
        if not (np.isfinite(new).all() and (new > 0).all()):
            raise GeometryError(f"spacing must be positive, got {mm} mm")
        if self.is_2d:
            new[2] = self.spacing[2]
        extent = self.spacing * self.shape
        shape = np.maximum(1, np.ceil(extent / new - 1e-6)).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] = self.directions * new
        affine[:3, 3] = self.centre - affine[:3, :3] @ ((shape - 1) / 2)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, self.frame)

    def same_as(self, other: Grid, tolerance: float = 1e-3) -> bool:
        """Whether both have the same shape and put every corner within `tolerance` mm."""
        return self.shape == other.shape and bool(np.abs(self.corners() - other.corners()).max() <= tolerance)

    def require_same(self, other: Grid, what: str) -> None:
        """Raise unless `other` is this grid; `what` names the pair in the message."""
        if not self.same_as(other):
            raise InputError(f"{what} lie on different grids: {self} and {other}", "resample one onto the other first")

    def __repr__(self) -> str:
        return f"Grid({'x'.join(map(str, self.shape))} at {'x'.join(f'{s:.4g}' for s in self.spacing)} mm)"
