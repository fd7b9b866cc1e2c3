"""Spectrum: how many photons of which energy a tube sends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Spectrum:
    """Energies and the share of the detected signal that each contributes.

    Args:
        energies: keV, rising.
        shares: not negative; they are divided by their sum.

    Raises:
        InputError: for lists that do not fit one another, or shares without a positive sum.
    """

    energies: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        energies, shares = np.asarray(self.energies, dtype=np.float64), np.asarray(self.shares, dtype=np.float64)
        if energies.shape != shares.shape or energies.ndim != 1 or len(energies) == 0:
            raise InputError(f"a spectrum needs one share for each energy, got {energies.shape} and {shares.shape}")
        finite = np.isfinite(energies).all() and np.isfinite(shares).all()
        if not (finite and (np.diff(energies) > 0).all() and (shares >= 0).all() and shares.sum() > 0):
            raise InputError("the energies of a spectrum rise, and its shares are not negative and not all zero")
        object.__setattr__(self, "energies", tuple(map(float, energies)))
        object.__setattr__(self, "shares", tuple(map(float, shares / shares.sum())))

    @property
    def mean(self) -> float:
        """keV."""
        return float(np.dot(self.energies, self.shares))

    @classmethod
    def flat(cls, low: float = 40.0, high: float = 100.0, n: int = 7) -> Spectrum:
        """Equal shares from `low` to `high` keV, for tests."""
        return cls(tuple(np.linspace(low, high, n)), (1.0,) * n)
