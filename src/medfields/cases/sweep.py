"""A tracked freehand sweep, planes in space whose places are known: the case of the task `ultrasound`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import GeometryError, InputError
from ..io.sweep import TrackedFrames
from ..space import Box, Grid
from .stacks import percentiles

SPACING = 0.5  # mm of the result's voxels where pixels are smaller than half of it
MOST_VOXELS = 512**3  # of a lattice that nobody asked for
READ = 1 << 18  # points in one call of a function
FARTHEST = 5.0  # mm from its pixels beyond which a sweep says nothing, however far apart its frames are


@dataclass(frozen=True, eq=False)
class Sweep:
    """Frames of one sweep, where each lies, and the lattice on which the subject is wanted.

    Args:
        frames: [F, I, J] grey values.
        affines: pixel (u, v) of a frame lies at affine @ (u, v, 0, 1) mm; the third column is the unit normal.
        mask: [I, J] pixels that count: those that the probe can see.
        grid: the lattice of the result.
        name: how messages and reports call it.

    Raises:
        InputError: for frames, affines and mask that do not fit one another, no pixel that counts, or values that are not finite or constant.
    """

    frames: Float[Tensor, "F I J"]
    affines: Float[np.ndarray, "F 4 4"]
    mask: Bool[Tensor, "I J"]
    grid: Grid
    name: str = "sweep"

    def __post_init__(self) -> None:
        if len(self.frames) != len(self.affines) or self.frames.shape[1:] != self.mask.shape:
            raise InputError(f"'{self.name}' has {len(self.affines)} poses and a mask of {tuple(self.mask.shape)} for frames of "
                             f"{tuple(self.frames.shape)}")
        if not len(self.frames) or not self.mask.any():
            raise InputError(f"'{self.name}' has no pixel that counts", "are all frames black, or the clip rectangle beside them?")
        low, high = torch.aminmax(self.frames)
        if not torch.isfinite(high - low):
            raise InputError(f"'{self.name}' contains NaN or infinite values")
        if low == high:
            raise InputError(f"'{self.name}' is constant: every pixel is {float(low):g}", "is it the right file?")

    @property
    def unit(self) -> str:
        """Grey values have none."""
        return ""

    @property
    def pixel(self) -> float:
        """The median distance of neighbouring pixels, mm."""
        return float(np.median(np.linalg.norm(self.affines[:, :3, :2], axis=1)))

    def box(self) -> Box:
        """The part of the world that the wanted voxels fill."""
        return self.grid.box()

    def level(self) -> tuple[float, float]:
        """Offset and scale with which the 1st to the 99th percentile of the grey values become -1 to 1."""
        low, high = percentiles(self.frames[:, self.mask].flatten()).tolist()
        return (low + high) / 2, max(high - low, 1e-6) / 2

    def points(self, frame: int) -> Float[Tensor, "P 3"]:
        """Where the counted pixels of a frame lie, mm."""
        return torch.as_tensor(_places(self.mask, self.affines[frame]), dtype=torch.float32)

    def pixels(self) -> tuple[Float[Tensor, "N 2"], Int[Tensor, "N"], Float[Tensor, "N"]]:
        """All pixels that count: their indices, the numbers of their frames, and their grey values; frame after frame."""
        at = self.mask.nonzero().float().repeat(len(self.frames), 1)
        plane = torch.arange(len(self.frames), dtype=torch.int32).repeat_interleave(int(self.mask.sum()))
        return at, plane, self.frames[:, self.mask].flatten()

    @torch.no_grad()
    def resliced(self, result: Callable[[Tensor], Tensor], frame: int) -> Float[Tensor, "P"]:
        """What a function of the world shows in the counted pixels of a frame."""
        return torch.cat([result(part)[..., 0] for part in self.points(frame).split(READ)])

    def misfit(self, result: Callable[[Tensor], Tensor]) -> float:
        """The mean over the frames of the mean squared difference to what a function shows in their counted pixels."""
        errors = [self.resliced(result, n) - self.frames[n][self.mask] for n in range(len(self.frames))]
        return float(np.mean([float(e.square().mean()) for e in errors]))

    def picture(self, values: Float[Tensor, "P"]) -> Float[np.ndarray, "J I"]:
        """Values of the counted pixels as an image with the probe above, NaN around."""
        image = torch.full(self.mask.shape, float("nan"))
        image[self.mask] = values
        return image.numpy().T

    def gaps(self) -> Float[np.ndarray, "G"]:
        """From each frame to the next: how far the middles of what they show are apart, mm."""
        u, v = self.mask.nonzero().double().mean(0).tolist()
        return np.linalg.norm(np.diff(self.affines @ [u, v, 0, 1], axis=0)[:, :3], axis=1)

    def outlines(self) -> Float[np.ndarray, "F 4 3"]:
        """The corners of what each frame shows, mm: both ends of the probe's face, then the far side, back to where it began."""
        at = self.mask.nonzero()
        (u0, v0), (u1, v1) = at.amin(0).tolist(), at.amax(0).tolist()
        corners = np.array([[u0, v0, 0, 1], [u1, v0, 0, 1], [u1, v1, 0, 1], [u0, v1, 0, 1]], dtype=float)
        return np.einsum("fij,cj->fci", self.affines, corners)[..., :3]

    def reach(self) -> float:
        """How far from its pixels a sweep says something, mm: half of the widest gap between frames and a voxel, and no more than 5."""
        widest = np.linalg.norm(np.diff(self.outlines(), axis=0), axis=2).max(initial=0.0)
        return min(float(widest / 2 + self.grid.spacing.max()), FARTHEST)

    def reached(self) -> Bool[np.ndarray, "I J K"]:
        """Voxels within `reach` of a counted pixel, to half a voxel; the others are no part of what was measured."""
        reach, spacing = self.reach(), self.grid.spacing
        rim = np.ceil(reach / spacing).astype(int)  # frames beside the lattice reach into it
        far = np.ones(self.grid.shape + 2 * rim, dtype=bool)
        for n in range(len(self.frames)):
            index = np.floor(self.grid.index(_places(self.mask, self.affines[n])) + 0.5).astype(int) + rim
            far[tuple(index[((index >= 0) & (index < far.shape)).all(1)].T)] = False
        inner = tuple(slice(r, r + n) for r, n in zip(rim, self.grid.shape, strict=True))
        if far.all():
            return ~far[inner]
        return scipy.ndimage.distance_transform_edt(far, sampling=spacing)[inner] <= reach

    def only(self, kept: Sequence[int] | np.ndarray) -> Sweep:
        """The frames of these numbers, on the same lattice."""
        index = np.asarray(kept, dtype=int)
        return replace(self, frames=self.frames[torch.as_tensor(index)], affines=self.affines[index])

    def without(self, every: int, first: int) -> tuple[Sweep, Sweep]:
        """Frames to use and frames to judge by: each `every`-th from number `first` on, never the last.

        Raises:
            InputError: if there are none to judge by.
        """
        held = np.arange(max(first, 1), len(self.frames) - 1, every)
        if not len(held):
            raise InputError(f"{len(self.frames)} frames are too few to hold some of them out")
        return self.only(np.setdiff1d(np.arange(len(self.frames)), held)), self.only(held)

    def coarser(self, times: int) -> Sweep:
        """With pixels averaged in squares of `times`; a square counts if more than half of it does."""
        if times == 1:
            return self
        rows, columns = (n // times for n in self.mask.shape)
        cut = (slice(rows * times), slice(columns * times))
        weight = self.mask.float()[cut].reshape(rows, times, columns, times)
        blocks = self.frames[:, *cut].reshape(-1, rows, times, columns, times)
        share = weight.mean((1, 3))
        affines = self.affines.copy()
        affines[:, :3, 3] += (times - 1) / 2 * (affines[:, :3, 0] + affines[:, :3, 1])
        affines[:, :3, :2] *= times
        return replace(self, frames=(blocks * weight).mean((2, 4)) / share.clamp_min(1e-6), affines=affines, mask=share > 0.5)

    def path(self, step: float) -> Float[np.ndarray, "M"]:
        """Places along the path of the probe, at most `step` mm apart at every corner of a frame, as numbers of frames: 2.5 is midway between
        frames 2 and 3. All frames are among them; a gap of more than twice FARTHEST is a jump, with nothing in it. A step of 0 is the frames."""
        wide = np.linalg.norm(np.diff(self.outlines(), axis=0), axis=2).max(1)
        parts = np.ones(len(wide), int) if step == 0 else np.where(wide <= 2 * FARTHEST, np.ceil(wide / step), 1).clip(1).astype(int)
        return np.concatenate([*(n + np.arange(k) / k for n, k in enumerate(parts)), [len(self.frames) - 1.0]])

    def filled(self, step: float) -> Sweep:
        """With frames at all places of `path`: poses and grey values lie on the straight line from each frame to the next, pixel by pixel."""
        at = self.path(step)
        here = at.astype(int)
        share, after = at - here, self.only(np.minimum(here + 1, len(self.frames) - 1))
        before, w = self.only(here), torch.as_tensor(share, dtype=torch.float32)[:, None, None]
        return replace(self, frames=torch.lerp(before.frames, after.frames, w),
                       affines=before.affines + share[:, None, None] * (after.affines - before.affines))

    def fingerprint(self) -> str:
        """A hash of everything a result depends on."""
        h = hashlib.sha256(repr((self.grid.shape, tuple(self.frames.shape))).encode())
        for array in (self.grid.affine, self.affines, self.frames.numpy(), self.mask.numpy()):
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()

    @classmethod
    def of(cls, tracked: TrackedFrames, *, spacing: float | None = None, grid: Grid | None = None) -> Sweep:
        """What a file holds (`io.read_sweep`) as a case.

        Args:
            tracked: frames and poses.
            spacing: mm of an isotropic lattice upright in the world that holds all pixels that count; None takes 0.5 mm, or twice the pixel
                where that is more.
            grid: the lattice of the result, instead.

        Raises:
            GeometryError: a clip rectangle that leaves nothing, a spacing that is not positive, or a grid that is no volume or that no frame meets.
            InputError: for a lattice that nobody asked for of more than 512^3 voxels.
        """
        frames = torch.as_tensor(np.ascontiguousarray(tracked.frames)).float()
        mask = _seen(frames, tracked.clip)
        case = cls(frames, tracked.affines, mask, grid or Grid.from_spacing((1, 1, 1), 1.0), tracked.name)
        if grid is None:
            return replace(case, grid=_around(case, spacing))
        if min(grid.shape) < 2:
            raise GeometryError(f"the {grid} is no volume", "two voxels or more along each axis are meant")
        if not any(grid.box().contains(case.points(f)).any() for f in range(len(frames))):
            raise GeometryError(f"no frame of '{tracked.name}' meets the {grid}", f"the sweep lies in {_box(case)}")
        return case

    @classmethod
    def toy(cls, seed: int = 0) -> Sweep:
        """Nine frames of blobs with a little speckle, by a probe that was moved and turned."""
        rng = np.random.default_rng(seed)
        centres, widths, heights = rng.uniform(-7, 7, (12, 3)), rng.uniform(2.0, 4.0, 12), rng.uniform(20, 100, 12)
        affines, mask = [], torch.ones(20, 16, dtype=torch.bool)
        for n in range(9):
            turn = np.linalg.qr(np.eye(3)[:, [0, 2, 1]] + 0.05 * rng.normal(size=(3, 3)))[0]
            turn = turn * np.sign(np.diag(turn[[0, 2, 1]]))
            affine = np.eye(4)
            affine[:3, :3] = turn * [0.8, 0.8, 1.0]
            affine[:3, 3] = [0, 1.7 * (n - 4), 0] - affine[:3, :2] @ [9.5, 7.5]
            affines.append(affine)
        mask[:3, :3] = False
        x = np.stack([_places(torch.ones_like(mask), a) for a in affines])
        data = (heights * np.exp(-((x[..., None, :] - centres) ** 2).sum(-1) / (2 * widths**2))).sum(-1) * rng.gamma(20, 1 / 20, x.shape[:2])
        frames = torch.tensor(data.reshape(9, 20, 16), dtype=torch.float32) * mask
        return cls(frames, np.stack(affines), mask, Grid.from_spacing((16, 14, 12), 1.0, [-7.5, -6.5, -5.5]), "toy")


def _places(mask: Tensor, affine: np.ndarray) -> Float[np.ndarray, "P 3"]:
    return mask.nonzero().double().numpy() @ affine[:3, :2].T + affine[:3, 3]


def _seen(frames: Float[Tensor, "F I J"], clip: tuple[int, int, int, int] | None) -> Bool[Tensor, "I J"]:
    """Pixels that the probe can see: in the clip rectangle, and in its row as in its column between pixels that are not black in every frame.

    Beyond the sector or rectangle that a probe sees, all frames are black; within, black is dark tissue.
    """
    lit = (frames != 0).any(0).numpy()
    if clip is not None:
        u, v, width, height = clip
        inside = np.zeros_like(lit)
        inside[max(u, 0) : max(u + width, 0), max(v, 0) : max(v + height, 0)] = True
        lit &= inside
        if not inside.any():
            raise GeometryError(f"the clip rectangle {clip} lies beside the frames of {lit.shape[0]} x {lit.shape[1]} pixels",
                                "is the calibration another probe's?")
    spans = [np.maximum.accumulate(lit, d) & np.flip(np.maximum.accumulate(np.flip(lit, d), d), d) for d in (0, 1)]
    return torch.as_tensor(np.ascontiguousarray(spans[0] & spans[1]))


def _ends(case: Sweep) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest coordinates of the counted pixels, mm."""
    ends = np.array([(x.min(0), x.max(0)) for x in (_places(case.mask, a) for a in case.affines)])
    return ends[:, 0].min(0), ends[:, 1].max(0)


def _box(case: Sweep) -> str:
    return ", ".join(f"{name} {a:.4g} to {b:.4g}" for name, a, b in zip("xyz", *_ends(case), strict=True)) + " mm"


def _around(case: Sweep, spacing: float | None) -> Grid:
    """An isotropic lattice, upright in the world, that holds all counted pixels."""
    mm = max(SPACING, 2 * case.pixel) if spacing is None else spacing
    if not (np.isfinite(mm) and mm > 0):
        raise GeometryError(f"spacing must be positive, got {mm} mm", "mm of a voxel, for instance --spacing 0.5")
    low, high = _ends(case)
    shape = np.maximum(2, np.ceil((high - low) / mm + 1 - 1e-6)).astype(int)
    if spacing is None and np.prod(shape, dtype=float) > MOST_VOXELS:
        raise InputError(f"voxels of {mm:.3g} mm make {' x '.join(map(str, shape))} of them", "say what is wanted: --spacing MM or --like FILE")
    first = (low + high - mm * (shape - 1)) / 2
    return Grid.from_spacing(shape.tolist(), mm, first.tolist())
