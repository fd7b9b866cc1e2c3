"""How good stacks are before anything is rebuilt of them, and how well what was rebuilt explains each slice."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..cases.slices import LEAST, Slice, Slices
from ..cases.stacks import Profile, percentiles
from ..errors import GeometryError, InputError
from ..space import Volume
from .settle import SPREAD, steadiness

ENERGY = 0.99  # of a stack, that its leading singular values hold
LEAST_DROP = 0.2  # of correlation below the usual one, for a slice to be called outlying


@dataclass(frozen=True)
class Quality:
    """What the slices of one stack say of its motion, in its mask alone.

    Args:
        slices: that show the subject.
        alike: mean correlation of neighbouring slices, weighted by pixels; motion lowers it.
        rank: share of singular values that hold 99 % of the energy of the matrix whose columns are the slices; motion raises it
            (Kainz et al. 2015).
        outlying: indices in the stack, from 0, of slices that are far less like either neighbour than neighbours usually are.
    """

    slices: int
    alike: float
    rank: float
    outlying: tuple[int, ...]


def qualities(case: Slices) -> list[Quality]:
    """The quality of each stack of a case, in the order of its names."""
    return [_quality(case, n) for n in range(len(case.names))]


def first(found: list[Quality]) -> list[int]:
    """The numbers of stacks, best first: by how alike neighbouring slices are, as `settled` chooses the stack on which the others are laid."""
    return sorted(range(len(found)), key=lambda n: -found[n].alike)


def _quality(case: Slices, stack: int) -> Quality:
    own = sorted((s for s in case.slices if s.stack == stack), key=lambda s: s.order)
    return Quality(len(own), steadiness(case, stack), rank_share(own), outlying(own))


def rank_share(own: list[Slice], energy: float = ENERGY) -> float:
    """Number of singular values that hold `energy` (of their squares' sum) of the matrix of masked slices, over the number of slices."""
    columns = torch.stack([torch.where(s.mask, s.values, 0.0).flatten() for s in own]).double()
    held = np.cumsum(np.linalg.eigvalsh((columns @ columns.T).numpy())[::-1].clip(0))
    return float(np.searchsorted(held, energy * held[-1] * (1 - 1e-12)) + 1) / len(own)


def outlying(own: list[Slice]) -> tuple[int, ...]:
    """Slices whose better correlation with a neighbour is below the stack's median of it by three standard deviations, and by `LEAST_DROP`.

    Slices at the ends have one neighbour, so nothing tells which of the two is at fault: they are not judged.
    """
    pairs = np.array([_alike(a, b) for a, b in itertools.pairwise(own)])
    best = np.fmax(pairs[:-1], pairs[1:])
    judged = np.isfinite(best)
    if judged.sum() < 3:
        return ()
    usual = float(np.median(best[judged]))
    low = usual - max(SPREAD * 1.4826 * float(np.median(np.abs(best[judged] - usual))), LEAST_DROP)
    return tuple(s.order for s, r in zip(own[1:-1], best, strict=True) if r < low)


@dataclass(frozen=True)
class Fit:
    """How well a volume explains one slice, in its mask where the volume reaches.

    Args:
        pixels: that are compared; with fewer than `LEAST` the rest is NaN.
        alike: correlation of what was measured with what was simulated.
        psnr: dB, of the simulated slice times the gain; the peak is the range of what was measured, 1st to 99th percentile.
        gain: the factor by which the simulated slice comes closest to what was measured.
    """

    pixels: int
    alike: float
    psnr: float
    gain: float


def simulated(of: Slice, volume: Volume, profile: Profile = "gauss") -> tuple[Float[Tensor, "I J"], Bool[Tensor, "I J"]]:
    """What a slice measures of a volume, through its profile, and which of its pixels lie in the volume; 0 beyond.

    Args:
        of: the slice; its header is its pose.
        volume: one channel, at least two voxels along each axis.
        profile: of the slice.

    Raises:
        InputError: for more channels.
        GeometryError: for a flat volume.
    """
    if volume.channels != 1:
        raise InputError(f"the volume has {volume.channels} channels, a slice measures one", "give them one by one")
    if min(volume.grid.shape) < 2:
        raise GeometryError(f"the volume is flat ({'x'.join(map(str, volume.grid.shape))} voxels)", "give what superres --motion wrote")
    whole = replace(of, mask=torch.ones_like(of.mask))
    case = Slices((whole,), volume.grid, profile)
    shown = case.operator(volume.grid).apply(volume.data[0]).reshape(of.mask.shape)
    index = volume.grid.index(case.points())
    inside = torch.from_numpy(((index >= -0.5) & (index <= np.array(volume.grid.shape) - 0.5)).all(-1)).reshape(of.mask.shape)
    return torch.where(inside, shown, 0.0), inside


def fit(of: Slice, shown: Float[Tensor, "I J"], inside: Bool[Tensor, "I J"]) -> Fit:
    """A slice compared with what `simulated` gives for it."""
    both = of.mask & inside
    y, x, count = of.values[both].double(), shown[both].double(), int(both.sum())
    if count < LEAST or float(x.std()) == 0 or float(y.std()) == 0:
        return Fit(count, np.nan, np.nan, np.nan)
    gain = float(x @ y / (x @ x))
    low, high = percentiles(y.float()).tolist()
    psnr = 20 * np.log10((high - low) / max(float((y - gain * x).square().mean().sqrt()), 1e-12))
    return Fit(count, float(torch.corrcoef(torch.stack([x, y]))[0, 1]), float(psnr), gain)


def _alike(a: Slice, b: Slice) -> float:
    """Correlation of two slices where both show the subject; NaN unless they are neighbours that overlap."""
    both = a.mask & b.mask
    if b.order - a.order != 1 or int(both.sum()) < 2:
        return np.nan
    return float(torch.corrcoef(torch.stack([a.values[both], b.values[both]]))[0, 1])
