"""Spectrum: how many photons of which energy a tube sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import InputError
from .materials import LOWEST, attenuation

# Tungsten: the edge of its K shell, and lines by keV with their shares of K radiation (Elam, Ravel and Sieber, Radiation Physics and
# Chemistry 2002: K alpha 2 and 1, K beta 3 and 1, K beta 2).
_EDGE = 69.525
_LINES = {57.981: 0.288, 59.318: 0.501, 66.950: 0.057, 67.244: 0.109, 69.05: 0.045}

# Two numbers that Kramers' law lacks, by comparison with SpekPy 2.5 (Poludniowski and Others, Medical Physics 2021), a tube at 12 degrees,
# 80 to 140 kV behind 2.5 to 10 mm of aluminium: mm of tungsten that the radiation crosses before it leaves the anode, and K photons
# against those of the continuum. So fitted, the mean energy agrees to 0.6 keV, the attenuation of 200 mm of water to 0.5 %, and the
# half-value layer to 4 %, but for 9 % at 80 kV behind 2.5 mm.
_ANODE, _YIELD = 0.009, 11.0
_FINE = 0.25  # keV, the step in which the model is evaluated


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

    @classmethod
    def tube(cls, kvp: float = 120.0, filtration: Mapping[str, float] | None = None, step_kev: float = 5.0, *,
             detector: Literal["integrating", "counting"] = "integrating") -> Spectrum:
        """A tungsten tube: Kramers' law (Philosophical Magazine 1923), N(E) ~ kvp / E - 1, and the K lines, whose photons grow like
        (kvp / 69.5 keV - 1)^1.63 (Green and Cosslett, J. Phys. D 1968), filtered by the anode itself and by metals.

        Args:
            kvp: peak voltage, kV.
            filtration: mm by material, between anode and patient; None is 6 mm of aluminium, as in a typical CT tube.
            step_kev: width of a bin; its energy is the mean of its photons, so that the spectrum's mean does not depend on the width.
            detector: "integrating" weighs a photon by its energy, as the scintillators of CT do; "counting" counts it.

        Raises:
            InputError: for a voltage outside 30 to 150 kV, a bin or a filter that is not thicker than zero.
            UnknownName: for a filter of an unknown material.
        """
        filtration = {"aluminium": 6.0} if filtration is None else filtration
        if not 30 <= kvp <= 150:
            raise InputError(f"a tube of {kvp:g} kV is not one of CT", "30 to 150 kV")
        if not step_kev > 0 or min(filtration.values(), default=1.0) < 0 or detector not in ("integrating", "counting"):
            raise InputError(f"no spectrum has bins of {step_kev:g} keV, filters {dict(filtration)} and a detector '{detector}'",
                             "bins above 0 keV, filters of at least 0 mm, integrating or counting")
        continuum = np.arange(LOWEST + _FINE / 2, kvp, _FINE)
        energies = np.concatenate([continuum, list(_LINES)])
        photons = np.concatenate([(kvp / continuum - 1) * _FINE, np.array([*_LINES.values()]) * _YIELD * max(kvp / _EDGE - 1, 0) ** 1.63])
        for material, mm in {"tungsten": _ANODE}.items() | filtration.items():
            photons = photons * np.exp(-attenuation(material, energies) * mm)
        if detector == "integrating":
            photons = photons * energies
        place = np.floor((energies - LOWEST) / step_kev).astype(int)
        signal, first = np.bincount(place, photons), np.bincount(place, photons * energies)
        seen = signal > 1e-6 * signal.sum()
        return cls(tuple(first[seen] / signal[seen]), tuple(signal[seen]))
