"""Box: the part of the world a field lives in, and the unit coordinates inside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import GeometryError


@dataclass(frozen=True)
class Box:
    """lo <= x <= hi. The first three axes are millimetres (RAS+); further ones are time, energy, ...

    Unit coordinates are u = (x - centre) / radius. The spatial axes share one radius, the half of the longest side,
    so that bandwidths and gradients mean the same in every direction; every further axis has its own.
    """

    lo: tuple[float, ...]
    hi: tuple[float, ...]

    def __post_init__(self) -> None:
        lo, hi = tuple(float(v) for v in self.lo), tuple(float(v) for v in self.hi)
        if len(lo) != len(hi) or not 1 <= len(lo) <= 8:
            raise GeometryError(f"a box needs as many lower as upper bounds, got {len(lo)} and {len(hi)}")
        if not np.isfinite([*lo, *hi]).all() or any(h <= a for a, h in zip(lo, hi, strict=True)):
            raise GeometryError(f"a box must have finite bounds and positive sides, got lo={lo} hi={hi}")
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    @property
    def ndim(self) -> int:
        return len(self.lo)

    @property
    def centre(self) -> np.ndarray:
        """[D] world units."""
        return (np.array(self.lo) + np.array(self.hi)) / 2

    @property
    def sides(self) -> np.ndarray:
        """[D] world units."""
        return np.array(self.hi) - np.array(self.lo)

    @property
    def radius(self) -> np.ndarray:
        """[D] world units per unit coordinate; equal on the spatial axes."""
        half = self.sides / 2
        half[:3] = half[:3].max()
        return half

    def contains(self, x: Float[Tensor, "*batch D"]) -> Bool[Tensor, "*batch"]:
        """Whether points lie inside or on the border."""
        lo, hi = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (self.lo, self.hi))
        return ((x >= lo) & (x <= hi)).all(-1)

    def random(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Uniform points, on the generator's device."""
        device = generator.device if generator is not None else "cpu"
        u = torch.rand(n, self.ndim, generator=generator, device=device)
        lo, side = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in (self.lo, self.sides))
        return lo + u * side

    def union(self, other: Box) -> Box:
        """The smallest box that holds both."""
        return Box(tuple(map(min, self.lo, other.lo)), tuple(map(max, self.hi, other.hi)))

    def overlap(self, other: Box) -> Box | None:
        """The box both share, or None."""
        lo, hi = tuple(map(max, self.lo, other.lo)), tuple(map(min, self.hi, other.hi))
        return Box(lo, hi) if all(a < b for a, b in zip(lo, hi, strict=True)) else None

    def extended(self, lo: float, hi: float) -> Box:
        """The box with one more axis, for instance time."""
        return Box((*self.lo, lo), (*self.hi, hi))
