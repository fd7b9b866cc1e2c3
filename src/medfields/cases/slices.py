"""Slices of one subject that moved while it was scanned: every slice is a thing of its own, with a pose of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import GeometryError, InputError
from ..operators.planes import PlaneOperator
from ..space import Grid, Volume
from .stacks import Profile, Stack, percentiles

FEWEST = 6  # slices
SEEN = 0.15  # of what a usual voxel weighs: one that weighs less is beyond what was measured
LEAST = 16  # pixels of a slice that must lie in its mask: fewer say nothing of its pose


@dataclass(frozen=True)
class Slice:
    """One slice: a picture, where its header puts it, and which of its pixels show the subject.

    Args:
        image: one channel; a grid with one voxel along k, which points across the slice.
        thickness: mm, full width at half maximum of the profile.
        mask: [I, J] pixels that count.
        stack: the number of the acquisition that it is of.
        order: its place in that acquisition.
    """

    image: Volume
    thickness: float
    mask: Bool[Tensor, "I J"]
    stack: int = 0
    order: int = 0

    @property
    def values(self) -> Float[Tensor, "I J"]:
        return self.image.data[0, :, :, 0]


@dataclass(frozen=True)
class Slices:
    """Slices, and the lattice on which the subject is wanted.

    Args:
        slices: of any number of stacks, each slice with `LEAST` pixels or more in its mask.
        grid: the lattice of the result, in the world in which the headers put the slices.
        profile: the shape of the slice profile: "gauss", "box" or "none".
        names: of the stacks.

    Raises:
        InputError: without slices.
    """

    slices: tuple[Slice, ...]
    grid: Grid
    profile: Profile = "gauss"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.slices:
            raise InputError("there are no slices")

    @property
    def stack(self) -> Int[np.ndarray, "N"]:
        """Which acquisition each slice is of."""
        return np.array([s.stack for s in self.slices])

    @property
    def affines(self) -> Float[np.ndarray, "N 4 4"]:
        """Where the headers put the slices."""
        return np.stack([s.image.grid.affine for s in self.slices])

    @property
    def thickness(self) -> Float[np.ndarray, "N"]:
        """mm."""
        return np.array([s.thickness for s in self.slices])

    @property
    def pixel(self) -> float:
        """Spacing of the finest pixels, mm."""
        return min(float(s.image.grid.spacing[:2].min()) for s in self.slices)

    @property
    def unit(self) -> str:
        return self.slices[0].image.unit

    def pixels(self) -> tuple[Float[Tensor, "P 2"], Int[Tensor, "P"], Float[Tensor, "P"]]:
        """All pixels that count: their indices, whose slice they are of, and what was measured; slice after slice."""
        at = [s.mask.nonzero() for s in self.slices]
        plane = torch.cat([torch.full((len(a),), n, dtype=torch.int32) for n, a in enumerate(at)])
        value = torch.cat([s.values[s.mask] for s in self.slices])
        return torch.cat(at).float(), plane, value

    def points(self) -> Float[np.ndarray, "P 3"]:
        """Where the headers put these pixels, mm."""
        return np.concatenate([s.image.grid.world(np.pad(s.mask.nonzero().numpy(), ((0, 0), (0, 1)))) for s in self.slices])

    def centres(self) -> Float[np.ndarray, "N 3"]:
        """The mean of each slice's pixels, where the headers put them, mm."""
        return np.stack([s.image.grid.world(np.append(s.mask.nonzero().double().mean(0).numpy(), 0.0)) for s in self.slices])

    @property
    def middle(self) -> Float[np.ndarray, "3"]:
        """The middle of the result, mm: poses are told about it."""
        return self.grid.centre

    def level(self) -> tuple[float, float]:
        """Offset and scale with which the 1st to the 99th percentile of what was measured become 0 to 1."""
        low, high = percentiles(self.pixels()[2]).tolist()
        return low, max(high - low, 1e-6 * max(1.0, abs(high)))

    def operator(self, lattice: Grid, poses: Float[np.ndarray, "N 4 4"] | None = None, nodes: int = 16) -> PlaneOperator:
        """What these slices measure of a function on a lattice, when slice n lies at poses[n] @ its affine."""
        at, plane, _ = self.pixels()
        affines = self.affines if poses is None else poses @ self.affines
        return PlaneOperator(lattice, at, plane, affines, self.profile, self.thickness.tolist(), nodes)

    def reached(self, poses: Float[np.ndarray, "N 4 4"], worth: Float[np.ndarray, "N"]) -> Bool[Tensor, "I J K"]:
        """Voxels of the result that slices look at from these poses, in their masks; those that are worth nothing do not count."""
        operator = self.operator(self.grid, poses)
        weight = operator.adjoint(torch.from_numpy(worth > 0).float()[operator.plane.long()])
        return weight > SEEN * weight[weight > SEEN * weight.max()].median()

    def moved(self, poses: Float[np.ndarray, "N 4 4"]) -> Slices:
        """The same slices with their poses in their headers."""
        return replace(self, slices=tuple(
            replace(s, image=Volume(s.image.data, Grid(s.image.grid.shape, p @ s.image.grid.affine), s.image.unit, about=s.image.about))
            for s, p in zip(self.slices, poses, strict=True)))

    def only(self, kept: Sequence[bool] | np.ndarray) -> Slices:
        """Without some of the slices."""
        return replace(self, slices=tuple(s for s, k in zip(self.slices, kept, strict=True) if k))

    def coarser(self, times: int) -> Slices:
        """With pixels averaged in squares of `times`, over the masks alone."""
        return self if times == 1 else replace(self, slices=tuple(_coarser(s, times) for s in self.slices))

    def reach(self) -> float:
        """mm from the middle of a slice to the end of the widest profile."""
        return self.operator(self.grid).reach

    def fingerprint(self) -> str:
        """A hash of everything a result depends on."""
        h = hashlib.sha256(repr((self.grid.shape, self.profile, [(s.thickness, s.stack, s.order) for s in self.slices])).encode())
        for array in (self.grid.affine, self.affines, *(s.values.numpy() for s in self.slices), *(s.mask.numpy() for s in self.slices)):
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()

    @classmethod
    def of(cls, stacks: Sequence[Stack], masks: Sequence[Volume | None], *, spacing: float | None = None, grid: Grid | None = None,
           profile: Profile = "gauss") -> Slices:
        """Cut stacks into their slices.

        Args:
            stacks: of one contrast.
            masks: one for each stack, on any grid; None counts every pixel.
            spacing: mm of the isotropic result, which holds all that is in a mask; None takes the finest pixel.
            grid: the lattice of the result, instead.
            profile: of the slices.

        Raises:
            InputError: if a mask is empty on its stack, or too few slices are left.
        """
        cut: list[Slice] = []
        for n, (stack, mask) in enumerate(zip(stacks, masks, strict=True)):
            own = [s for s in _cut(stack, mask, n) if int(s.mask.sum()) >= LEAST]
            if not own:
                raise InputError(f"no slice of stack '{stack.name}' has {LEAST} pixels in its mask", "is it the mask of another stack?")
            cut += own
        return cls.cut(cut, spacing=spacing, grid=grid, profile=profile, names=tuple(s.name for s in stacks))

    @classmethod
    def cut(cls, slices: Sequence[Slice], *, spacing: float | None = None, grid: Grid | None = None, profile: Profile = "gauss",
            names: tuple[str, ...] = ()) -> Slices:
        """Slices as they are, and a lattice that holds them; see `of`."""
        if len(slices) < FEWEST:
            raise InputError(f"{len(slices)} slices show the subject, too few to find how they lie", "give more stacks, or wider masks")
        if grid is None:
            grid = _around(slices, spacing or min(float(s.image.grid.spacing[:2].min()) for s in slices))
        return cls(tuple(slices), grid, profile, names)

    @classmethod
    def toy(cls, seed: int = 0) -> Slices:
        """Three small orthogonal stacks of blobs, each slice moved a little."""
        rng = np.random.default_rng(seed)
        centres, widths, heights = rng.uniform(-9, 9, (14, 3)), rng.uniform(2.0, 4.0, 14), rng.uniform(20, 100, 14)
        stacks = []
        for axis in (2, 0, 1):
            order = [(axis + 1) % 3, (axis + 2) % 3, axis]
            step = np.eye(3)[:, order] * [1.5, 1.5, 4.0]
            index = np.stack(np.meshgrid(np.arange(16), np.arange(16), np.arange(6), indexing="ij"), -1)
            x = (index - [7.5, 7.5, 2.5]) @ step.T + rng.uniform(-0.5, 0.5, (6, 3))
            z = np.linspace(-4, 4, 17)
            weight = np.exp(-4 * np.log(2) * (z / 4) ** 2)
            d2 = ((x[..., None, None, :] + z[:, None, None] * np.eye(3)[axis] - centres) ** 2).sum(-1)
            data = ((heights * np.exp(-d2 / (2 * widths**2))).sum(-1) * weight).sum(-1) / weight.sum() + rng.normal(0, 0.5, x.shape[:3])
            affine = np.eye(4)
            affine[:3, :3], affine[:3, 3] = step, -step @ [7.5, 7.5, 2.5]
            stacks.append(Stack(Volume(data, Grid((16, 16, 6), affine)), 4.0, name=f"toy{axis}", through=2))
        return cls.of(stacks, [None] * 3, grid=Grid.from_spacing((16,) * 3, 1.5, [-11.25] * 3))


def _cut(stack: Stack, mask: Volume | None, number: int) -> list[Slice]:
    """All slices of a stack, in order; the first two axes of each are the stack's others."""
    source, axes = stack.volume.grid, [*(d for d in range(3) if d != stack.axis), stack.axis]
    inside = torch.ones(source.shape, dtype=torch.bool) if mask is None else mask.on(source).data[0] > 0.5
    affine = source.affine[:, [*axes, 3]]
    data, inside = stack.volume.data[0].permute(axes), inside.permute(axes)
    whole = Grid((data.shape[0], data.shape[1], data.shape[2]), affine, source.frame)
    return [Slice(Volume(data[:, :, k : k + 1].contiguous(), whole.crop((0, 0, k), (*data.shape[:2], 1)), stack.volume.unit), stack.thickness,
                  inside[:, :, k].contiguous(), number, k) for k in range(data.shape[2])]


def _coarser(s: Slice, times: int) -> Slice:
    """Pixels averaged in squares, those in the mask alone; squares count that are half in it, or all that touch it where those are few."""
    shape = [-(-n // times) for n in s.values.shape]
    rim = (0, shape[1] * times - s.values.shape[1], 0, shape[0] * times - s.values.shape[0])
    blocks = [torch.nn.functional.pad(t, rim).reshape(shape[0], times, shape[1], times) for t in (s.values, s.mask.float())]
    share = blocks[1].mean((1, 3))
    mask = share >= 0.5 if int((share >= 0.5).sum()) >= LEAST else share > 0
    mean = (blocks[0] * blocks[1]).mean((1, 3)) / share.clamp_min(1e-6)
    affine = s.image.grid.affine.copy()
    affine[:3, 3] = s.image.grid.world(np.array([(times - 1) / 2, (times - 1) / 2, 0.0]))
    affine[:3, :2] *= times
    return replace(s, image=Volume(mean[:, :, None], Grid((shape[0], shape[1], 1), affine), s.image.unit), mask=mask)


def _around(cut: Sequence[Slice], mm: float) -> Grid:
    """An isotropic lattice along the first slice's axes that holds everything in the masks, and half a slice around it."""
    if not (np.isfinite(mm) and mm > 0):
        raise GeometryError(f"spacing must be positive, got {mm} mm")
    like = cut[0].image.grid
    frame = np.linalg.qr(like.directions)[0]
    frame = frame * np.sign(np.einsum("ij,ij->j", frame, like.directions))
    points = np.concatenate([s.image.grid.world(np.pad(s.mask.nonzero().numpy(), ((0, 0), (0, 1)))) for s in cut]) @ frame
    half = max(s.thickness for s in cut) / 2
    low, high = points.min(0) - half, points.max(0) + half
    shape = np.maximum(1, np.ceil((high - low) / mm)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = frame * mm
    affine[:3, 3] = frame @ ((low + high) / 2 - mm * (shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, like.frame)
