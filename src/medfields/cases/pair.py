"""Two images of one body, or of two bodies that are alike: the case of the task `register`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import GeometryError, InputError
from ..fields import Field
from ..fields.spec import Spec
from ..fields.warp import Affine, composed, displacement
from ..space import Box, Grid, Volume


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving image; asked is where each point x of the fixed image lies in the moving one: phi(x) = start(x + u(x)).

    Methods look for u alone. They compare `fixed` with `aligned`, the moving image seen through `start`: its affine changes, no voxel is
    interpolated.

    Args:
        fixed, moving: one channel each, in any orientation.
        mask: on the fixed grid, above 0.5 where the images are to be alike; None is everywhere.
        moving_mask: on the moving grid, where the moving image counts.
        start: [4, 4], mm to mm, from the fixed to the moving world: a rigid or affine pre-alignment.
        first: a displacement of another method in the aligned world, from which cascaded methods start.
        centreline: [N, 3] mm in the fixed world, of a tube of `tube_radius` mm that methods of tubes follow.
        name: of the pair.

    Raises:
        InputError: for images of several channels, values that are not finite, or an empty mask.
        GeometryError: if the images, as started, do not overlap, or a mask lies on another grid than its image.
    """

    fixed: Volume
    moving: Volume
    mask: Volume | None = None
    moving_mask: Volume | None = None
    start: np.ndarray = field(default_factory=lambda: np.eye(4))
    first: Field | None = None
    centreline: np.ndarray | None = None
    tube_radius: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        for what, image in (("fixed", self.fixed), ("moving", self.moving)):
            if image.channels != 1:
                raise InputError(f"the {what} image has {image.channels} channels, registration compares one", "pick one of them")
            if not torch.isfinite(image.data).all():
                raise InputError(f"the {what} image contains NaN or infinite values", "mask or repair them first")
        for what, mask, image in (("mask", self.mask, self.fixed), ("moving mask", self.moving_mask, self.moving)):
            if mask is not None:
                mask.grid.require_same(image.grid, f"the {what} and its image")
                if not (mask.data > 0.5).any():
                    raise InputError(f"the {what} is empty: no voxel is above 0.5", "a mask is 1 where the images are to be alike, else 0")
        if self.fixed.grid.is_2d != self.moving.grid.is_2d:
            raise GeometryError("one image is a slice, the other a volume", "cut the slice out of the volume first")
        apart = self.fixed.grid.box().overlap(self.aligned.grid.box()) is None
        if apart:
            gap = self.aligned.grid.centre - self.fixed.grid.centre
            raise GeometryError(f"the images do not overlap in the world: their centres are {np.linalg.norm(gap):.0f} mm apart "
                                f"({', '.join(f'{v:.0f}' for v in gap)})", "--start centres lays the centres on one another first")

    @property
    def grid(self) -> Grid:
        """Of the fixed image: where the displacement is asked for."""
        return self.fixed.grid

    @property
    def unit(self) -> str:
        return "mm"

    @cached_property
    def aligned(self) -> Volume:
        """The moving image in the fixed world, as `start` lays it."""
        return _seen_through(self.moving, self.start)

    @cached_property
    def aligned_mask(self) -> Volume | None:
        """The moving mask in the fixed world."""
        return None if self.moving_mask is None else _seen_through(self.moving_mask, self.start)

    @cached_property
    def inside(self) -> Bool[Tensor, "I J K"]:
        """Voxels of the fixed image that count."""
        return torch.ones(self.grid.shape, dtype=torch.bool) if self.mask is None else self.mask.data[0] > 0.5

    def points(self) -> Float[Tensor, "N 3"]:
        """World mm of the voxels that count."""
        return self.grid.points()[self.inside]

    def box(self) -> Box:
        """The part of the world the displacement lives in: the voxels that count, with a margin of two voxels."""
        if self.mask is None:
            return self.grid.box()
        where = torch.nonzero(self.inside)
        lo, hi = where.amin(0).numpy() - 2, where.amax(0).numpy() + 3
        lo, hi = np.maximum(lo, 0), np.minimum(hi, self.grid.shape)
        return self.grid.crop(lo, hi - lo).box()

    def displacement(self, spec: Spec, seed: int | None = None, zero: bool = False) -> Field:
        """A fresh displacement in mm over `box`; of slices it stays in their plane. `zero` starts from no displacement."""
        return displacement(spec, self.box(), flat=self.grid.normal(2) if self.grid.is_2d else None, seed=seed, zero=zero)

    def whole(self, warp: Field) -> Field:
        """The displacement from the fixed to the moving world as they are: first `warp`, then `start`."""
        if np.allclose(self.start, np.eye(4), atol=1e-12):
            return warp
        made = composed(warp, displacement(Affine.of(self.start), warp.box))
        made.grid = self.grid
        return made

    def fingerprint(self) -> str:
        """A digest of everything that is compared."""
        digest = hashlib.sha256()
        for volume in (self.fixed, self.moving, self.mask, self.moving_mask):
            if volume is not None:
                digest.update(volume.data.contiguous().numpy().tobytes())
                digest.update(volume.grid.affine.tobytes())
        digest.update(np.ascontiguousarray(self.start).tobytes())
        if self.first is not None:
            for p in self.first.parameters():
                digest.update(p.detach().contiguous().numpy().tobytes())
        if self.centreline is not None:
            digest.update(np.ascontiguousarray(self.centreline).tobytes())
        return digest.hexdigest()

    @classmethod
    def toy(cls, seed: int = 0, size: int = 20) -> Pair:
        """Blobs in a ball, 2 mm voxels, and the same blobs breathed: the moving image is exact, F(x) = M(x + u(x)) with `toy_motion`."""
        rng = np.random.default_rng(seed)
        grid = Grid.from_spacing((size, size, size), 2.0, [-(size - 1.0)] * 3)
        centres = rng.normal(0, 0.4 * size, (60, 3))
        widths = rng.uniform(2.0, 4.5, 60)

        def image(x: np.ndarray) -> np.ndarray:
            square = ((x[..., None, :] - centres) ** 2).sum(-1)
            return np.exp(-square / (2 * widths**2)).sum(-1)

        points = grid.points().numpy().astype(np.float64)
        fixed = Volume(image(points + toy_motion(points, size)), grid)
        moving = Volume(image(points), grid)
        mask = Volume((np.linalg.norm(points, axis=-1) < 0.9 * size).astype(np.float32), grid)
        line = np.stack([np.zeros(9), np.zeros(9), np.linspace(-0.6 * size, 0.6 * size, 9)], 1)
        return cls(fixed, moving, mask, centreline=line, tube_radius=0.5 * size, name="toy")

    def replaced(self, **parts: object) -> Pair:
        """The same pair with other parts."""
        return replace(self, **parts)  # type: ignore[arg-type]


def toy_motion(x: np.ndarray, size: float = 20) -> np.ndarray:
    """[..., 3] mm: the displacement of `Pair.toy`, a smooth breath of at most 2.5 mm."""
    fade = np.exp(-((x / (1.2 * size)) ** 2).sum(-1, keepdims=True))
    return fade * np.stack([0.8 * np.sin(x[..., 1] / size), -1.2 * np.cos(x[..., 0] / size), 2.0 + 0.5 * np.sin(x[..., 2] / size)], -1)


def _seen_through(volume: Volume, start: np.ndarray) -> Volume:
    """The volume at start^-1 of its place."""
    if np.array_equal(start, np.eye(4)):
        return volume
    grid = Grid(volume.grid.shape, np.linalg.inv(start) @ volume.grid.affine, volume.grid.frame)
    return Volume(volume.data, grid, volume.unit, interpolation=volume.interpolation, fill=volume.fill, about=volume.about)
