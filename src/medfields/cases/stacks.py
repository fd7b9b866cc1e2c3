"""Thick-slice stacks of one subject: the case of the task `superres`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import GeometryError, InputError
from ..io import read_volume
from ..operators.slices import FWHM_PER_SIGMA, SliceAverage
from ..space import Box, Grid, Samples, Volume

Profile = Literal["gauss", "box", "none"]


@dataclass(frozen=True)
class Stack:
    """Parallel slices of one acquisition.

    Args:
        volume: one channel; its grid holds the slice distance, so a gap is distance minus thickness.
        thickness: mm, the full width at half maximum of the slice profile; 0 < thickness <= 100.
        contrast: what was weighted, for instance "t1"; stacks with the same name share one output channel.
        name: how messages and reports call this stack.
        through: the voxel axis across the slices; None takes `slice_axis` of the grid.
    """

    volume: Volume
    thickness: float
    contrast: str = ""
    name: str = ""
    through: int | None = None

    def __post_init__(self) -> None:
        if self.volume.channels != 1:
            raise InputError(f"stack '{self.name}' has {self.volume.channels} channels, expected one", "give each contrast as its own stack")
        if not 0 < self.thickness <= 100:
            raise GeometryError(f"the slice thickness of stack '{self.name}' must be in (0, 100] mm, got {self.thickness}")
        if self.through is None:
            object.__setattr__(self, "through", slice_axis(self.volume.grid))
        data = self.volume.data
        if not torch.isfinite(data).all():
            raise InputError(f"stack '{self.name}' contains NaN or infinite values", "mask or repair them first")
        if float(data.max()) == float(data.min()):
            raise InputError(f"stack '{self.name}' is constant ({float(data.min()):g} everywhere)", "is this the right file?")

    @classmethod
    def read(cls, path: str | Path, thickness: float | None = None, contrast: str = "") -> Stack:
        """A stack from a file or a DICOM folder; without a thickness (mm) it is the header's, else the slice distance."""
        volume = read_volume(path)
        through = volume.about.get("slice_axis", slice_axis(volume.grid))
        given = volume.about.get("thickness_mm") if thickness is None else thickness
        fwhm = float(volume.grid.normal(through) @ volume.grid.affine[:3, through] if given is None else given)
        return cls(volume, fwhm, contrast, Path(path).name, through)

    @property
    def axis(self) -> int:
        """The voxel axis across the slices."""
        assert self.through is not None
        return self.through

    @property
    def normal(self) -> np.ndarray:
        """[3] unit vector across the slices, RAS+."""
        return self.volume.grid.normal(self.axis)


@dataclass(frozen=True)
class Stacks:
    """One or more stacks of a subject and the lattice on which the answer is wanted.

    Args:
        stacks: any number, any orientation, of one or several contrasts; already aligned with one another.
        grid: the lattice of the result.
        profile: the shape of the slice profile: "gauss" (FWHM = thickness), "box" (width = thickness), or "none" (point samples).

    Raises:
        GeometryError: if a stack does not overlap the grid, two stacks of a case share no part of space, or DICOM headers say that they
            were placed in different frames of reference.
        InputError: without a stack, for an unknown profile, or for stacks of one contrast in different units.
    """

    stacks: tuple[Stack, ...]
    grid: Grid
    profile: Profile = "gauss"

    def __post_init__(self) -> None:
        if not self.stacks:
            raise InputError("superres needs at least one stack", "medfields superres a.nii.gz b.nii.gz -o iso.nii.gz")
        if self.profile not in ("gauss", "box", "none"):
            raise InputError(f"there is no slice profile '{self.profile}'", "use gauss, box or none")
        for contrast in self.contrasts:
            units = sorted({s.volume.unit for s in self.stacks if s.contrast == contrast})
            if len(units) > 1:
                raise InputError(f"stacks of one contrast are in different units: {', '.join(u or 'none' for u in units)}",
                                 "convert them to one, or name them as contrasts of their own")
        frames = {g.frame: name for g, name in [(self.grid, "the output grid"), *((s.volume.grid, f"stack '{s.name}'") for s in self.stacks)]}
        frames.pop("", None)
        if len(frames) > 1:
            first, second, *_ = frames.values()
            raise GeometryError(f"{first} and {second} state different DICOM frames of reference: their coordinates have nothing to do with "
                                "each other", "register them first; if you know that they are aligned, convert them to NIfTI")
        boxes = [s.volume.grid.box() for s in self.stacks]
        for s, box in zip(self.stacks, boxes, strict=True):
            if box.overlap(self.grid.box()) is None:
                raise GeometryError(f"stack '{s.name}' does not overlap the output grid", "check the headers, or choose another --like")
            for t, other in zip(self.stacks, boxes, strict=True):
                if box.overlap(other) is None:
                    raise GeometryError(f"stacks '{s.name}' and '{t.name}' do not overlap in space",
                                        "were they acquired in one session? register them first, or check their headers")

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Names of the output channels, in order of first appearance."""
        return tuple(dict.fromkeys(s.contrast for s in self.stacks))

    @property
    def unit(self) -> str:
        """Of the values, where all contrasts have the same one."""
        units = {s.volume.unit for s in self.stacks}
        return units.pop() if len(units) == 1 else ""

    def channel(self, stack: Stack) -> int:
        """The output channel a stack contributes to."""
        return self.contrasts.index(stack.contrast)

    def only(self, contrast: str) -> Stacks:
        """The case without the other contrasts."""
        return replace(self, stacks=tuple(s for s in self.stacks if s.contrast == contrast))

    def reach(self) -> float:
        """mm from a voxel centre to the end of the widest slice profile."""
        return 0.0 if self.profile == "none" else max(3 * s.thickness / FWHM_PER_SIGMA for s in self.stacks)

    def box(self) -> Box:
        """The part of the world that the wanted voxels, and the slices through them, can see."""
        return self.grid.box(self.reach() + float(self.grid.spacing.max()))

    def intensities(self) -> tuple[Tensor, Tensor]:
        """Offset and scale [C] with which the 1st to the 99th percentile of each contrast become -1 to 1."""
        ends = []
        for contrast in self.contrasts:
            seen = torch.cat([s.volume.data.flatten() for s in self.stacks if s.contrast == contrast])
            ends.append(percentiles(seen))
        low, high = torch.stack(ends).T
        return (low + high) / 2, ((high - low) / 2).clamp_min(1e-6)

    def samples(self) -> Samples:
        """Every stack voxel in the box: where it lies, whose slice it is, and what was measured.

        Contrasts weigh the same whatever their units: weight = 1 / scale^2.
        """
        box, scale = self.box(), self.intensities()[1]
        x, value, stack, channel = [], [], [], []
        for n, s in enumerate(self.stacks):
            points = s.volume.grid.points().reshape(-1, 3)
            near = box.contains(points)
            x.append(points[near])
            value.append(s.volume.data.reshape(-1, 1)[near])
            stack.append(torch.full((len(x[-1]),), n))
            channel.append(torch.full((len(x[-1]),), self.channel(s)))
        at = {"x": torch.cat(x), "stack": torch.cat(stack), "channel": torch.cat(channel)}
        return Samples(at, torch.cat(value), scale[at["channel"]] ** -2)

    def operator(self, nodes: int = 16) -> SliceAverage:
        """What these stacks measure of a function."""
        return SliceAverage(self.profile, [s.thickness for s in self.stacks], np.stack([s.normal for s in self.stacks]), nodes)

    def fingerprint(self) -> str:
        """A hash of everything a result depends on."""
        h = hashlib.sha256(repr((self.grid.shape, self.profile, [(s.thickness, s.contrast, s.axis) for s in self.stacks])).encode())
        h.update(self.grid.affine.tobytes())
        for s in self.stacks:
            h.update(s.volume.grid.affine.tobytes())
            h.update(s.volume.data.cpu().numpy().tobytes())
        return h.hexdigest()

    @classmethod
    def read(cls, paths: Sequence[str | Path], *, spacing: float | None = None, like: str | Path | None = None, profile: Profile = "gauss",
             thickness: Sequence[float] = (), contrasts: Sequence[str] = ()) -> Stacks:
        """Read stacks from files.

        Args:
            paths: image files or DICOM folders.
            spacing: mm of the isotropic output; None takes the finest in-plane voxel size.
            like: an image whose grid the output takes, instead of a spacing.
            thickness: mm, one for all or one for each; empty takes the header's slice thickness, else the slice distance.
            contrasts: one name for each path, or none.
        """
        if len(thickness) not in (0, 1, len(paths)):
            raise InputError(f"{len(thickness)} thicknesses for {len(paths)} stacks", "give one for all, or one for each")
        if len(contrasts) not in (0, len(paths)):
            raise InputError(f"{len(contrasts)} contrasts for {len(paths)} stacks", "give one for each, or none")
        if spacing is not None and like:
            raise InputError("both a spacing and an image with the wanted grid are given", "give one of the two: --spacing or --like")
        if spacing is not None and not (np.isfinite(spacing) and spacing > 0):
            raise GeometryError(f"spacing must be positive, got {spacing} mm")
        stacks = []
        for n, path in enumerate(paths):
            given = thickness[n if len(thickness) > 1 else 0] if thickness else None
            stacks.append(Stack.read(path, given, contrasts[n] if contrasts else ""))
        grid = read_volume(like).grid if like else _common_grid(stacks, spacing)
        return cls(tuple(stacks), grid, profile)

    @classmethod
    def toy(cls, seed: int = 0, contrasts: int = 1, size: int = 20) -> Stacks:
        """Two small orthogonal stacks of a smooth generated head, made by averaging sub-slices of the exact function."""
        rng = np.random.default_rng(seed)
        centres, widths = rng.uniform(-0.5, 0.5, (12, 3)) * size, rng.uniform(0.08, 0.25, 12) * size
        heights = rng.uniform(20, 100, (contrasts, 12))
        fine = Grid.from_spacing((size,) * 3, 1.0, origin=[-(size - 1) / 2] * 3)

        def head(x: np.ndarray, c: int) -> np.ndarray:
            d2 = ((x[..., None, :] - centres) ** 2).sum(-1)
            return 100 * (np.linalg.norm(x, axis=-1) < 0.45 * size) + (heights[c] * np.exp(-d2 / (2 * widths**2))).sum(-1)

        stacks = []
        for n in range(2 * contrasts if contrasts == 1 else contrasts):
            axis, c = (2, 0)[n % 2], (n if contrasts > 1 else 0)
            shape, step = [size] * 3, [1.0] * 3
            shape[axis], step[axis] = size // 4, 4.0
            origin = [-(n_ - 1) / 2 * s for n_, s in zip(shape, step, strict=True)]
            grid = Grid.from_spacing(shape, step, origin)
            z = np.linspace(-4, 4, 33)
            weight = np.exp(-4 * np.log(2) * (z / 4.0) ** 2)
            x = grid.world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))[..., None, :] + z[:, None] * np.eye(3)[axis]
            data = (head(x, c) * weight).sum(-1) / weight.sum() + rng.normal(0, 1.0, shape)
            stacks.append(Stack(Volume(data, grid), 4.0, f"c{c}" if contrasts > 1 else "", f"toy{n}", axis))
        return cls(tuple(stacks), fine)


def slice_axis(grid: Grid) -> int:
    """The voxel axis across the slices: the one along which there is a single slice, else the one with the largest voxel step.

    Of equal steps the last counts, because scanners stack their slices along k; headers round, so equal is within a thousandth.
    """
    steps = np.where(np.array(grid.shape) == 1, grid.spacing, 0.0) if 1 in grid.shape else grid.spacing
    return int(np.flatnonzero(steps > 0.999 * steps.max())[-1])


def percentiles(values: Tensor) -> Tensor:
    """[2] the 1st and the 99th percentile; of two million values or more, those of a million that are drawn the same way every time.

    Every n-th value would not do: where n is the number of slices, all would come from one slice. Where nearly all values are the same,
    as in a stack masked to a small organ, the percentiles say nothing, and the extremes take their place.
    """
    ends = torch.stack(torch.aminmax(values))
    if len(values) >= 2_000_000:
        values = values[torch.randint(len(values), (1_000_000,), generator=torch.Generator().manual_seed(0)).to(values.device)]
    found = torch.quantile(values, torch.tensor([0.01, 0.99], device=values.device))
    return found if found[1] - found[0] > 1e-3 * (ends[1] - ends[0]) else ends


def _common_grid(stacks: Sequence[Stack], spacing: float | None) -> Grid:
    """An isotropic lattice along the first stack's axes that holds the space seen by every stack (one contrast or several)."""
    first = stacks[0].volume.grid
    mm = float(spacing or min(s.volume.grid.spacing.min() for s in stacks))
    frame = np.linalg.qr(first.directions)[0]
    frame = frame * np.sign(np.einsum("ij,ij->j", frame, first.directions))
    lo, hi = np.full(3, -np.inf), np.full(3, np.inf)
    for s in stacks:
        c = s.volume.grid.corners() @ frame
        lo, hi = np.maximum(lo, c.min(0)), np.minimum(hi, c.max(0))
    if (hi - lo < mm * (1 - 1e-6)).any():
        a, b = stacks[0].name, stacks[-1].name
        if len(stacks) == 1:
            raise GeometryError(f"stack '{a}' is smaller than one output voxel of {mm:g} mm", "choose a smaller --spacing")
        raise GeometryError(f"stacks '{a}' and '{b}' do not overlap in space", "were they acquired in one session? register them first")
    shape = np.maximum(1, np.ceil((hi - lo) / mm - 1e-6)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = frame * mm
    affine[:3, 3] = frame @ ((lo + hi) / 2 - mm * (shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, first.frame)
