"""Detectors: from line integrals to what is read out, and back.

A line integral p has no unit: attenuation in 1/mm times mm. Photons are those of one pixel in one view. An energy-integrating detector is
treated as a counting one whose spectrum is weighted by energy: its noise is a little larger than Poisson's, which is neglected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .materials import attenuation, mass_attenuation
from .spectrum import Spectrum

Values = TypeVar("Values", Tensor, np.ndarray, float)


class Polychromatic(nn.Module):
    """What a detector that cannot tell energies reads: p = -log sum_E eta_E exp(-p_E), Beer's law for each energy.

    Args:
        spectrum: energies and their shares eta of the signal, the detector's own weighting included.
        materials: names that `of_materials` needs; none if line integrals are given by energy.
    """

    log_share: Tensor
    per_gram: Tensor

    def __init__(self, spectrum: Spectrum, materials: Sequence[str] = ()):
        super().__init__()
        self.spectrum, self.materials = spectrum, tuple(materials)
        share = torch.tensor(spectrum.shares, dtype=torch.float64)
        table = np.stack([mass_attenuation(m, spectrum.energies) for m in materials]) if materials else np.zeros((0, len(share)))
        self.register_buffer("log_share", share.log().float(), persistent=False)
        self.register_buffer("per_gram", torch.tensor(table, dtype=torch.float32), persistent=False)

    def forward(self, p: Float[Tensor, "*rays E"]) -> Float[Tensor, "*rays"]:
        """The reading for line integrals p_E by energy; stable for any p, differentiable, at most `linear(p)` and at least the least p_E."""
        return -torch.logsumexp(self.log_share.to(p) - p, -1)

    def linear(self, p: Float[Tensor, "*rays E"]) -> Float[Tensor, "*rays"]:
        """sum_E eta_E p_E: the reading without beam hardening, to which `forward` tends for thin objects."""
        return p @ self.log_share.to(p).exp()

    def by_energy(self, amount: Float[Tensor, "*rays M"]) -> Float[Tensor, "*rays E"]:
        """p_E = sum_m (mu / rho)_m(E) a_m, of line integrals a of the materials' densities, in g / cm^3 times mm."""
        return amount @ self.per_gram.to(amount) / 10  # cm^2 / g * g / cm^3 = 1 / cm, of which a mm is a tenth

    def of_materials(self, amount: Float[Tensor, "*rays M"]) -> Float[Tensor, "*rays"]:
        """The reading for line integrals of the densities of `materials`, in g / cm^3 times mm."""
        return self(self.by_energy(amount))


class WaterPrecorrection:
    """Readings of a polychromatic beam turned into line integrals at one energy, exactly so where everything is water.

    A function of the reading alone, as in Herman, Physics in Medicine and Biology 1979, who fits his to the whole body, while this one is exact
    for water: a table, monotone, through zero, on a straight line below zero and beyond the thickest water. What bone and metal harden stays.

    Args:
        spectrum: of the readings.
        reference_kev: the energy of the result; None is the spectrum's mean.
        thickest: mm of water that the table reaches.
    """

    def __init__(self, spectrum: Spectrum, reference_kev: float | None = None, thickest: float = 1000.0):
        self.reference_kev = float(spectrum.mean if reference_kev is None else reference_kev)
        length = np.linspace(0, thickest, 4001)
        p = length[:, None] * attenuation("water", spectrum.energies)
        weight = np.array(spectrum.shares)
        seen = -np.log((weight * np.exp(-(p - p.min(1, keepdims=True)))).sum(1)) + p.min(1)
        self.seen, self.true = torch.tensor(seen - seen[0]), torch.tensor(length * attenuation("water", self.reference_kev))
        self.slope = self.true.diff() / self.seen.diff()

    @property
    def water(self) -> float:
        """Attenuation of water in 1/mm at the reference energy, which HU count from after the correction."""
        return float(attenuation("water", self.reference_kev))

    def __call__(self, p: Float[Tensor, "*rays"]) -> Float[Tensor, "*rays"]:
        """Corrected line integrals; differentiable."""
        seen, true, slope = self.seen.to(p.device), self.true.to(p.device), self.slope.to(p.device)
        k = (torch.searchsorted(seen, p.detach().double().contiguous(), right=True) - 1).clamp(0, len(slope) - 1)
        return (true[k] + slope[k] * (p - seen[k])).to(p.dtype)


def water_precorrection(spectrum: Spectrum, reference_kev: float | None = None) -> WaterPrecorrection:
    """The beam-hardening precorrection for water as an explicit step, see `WaterPrecorrection`."""
    return WaterPrecorrection(spectrum, reference_kev)


def hounsfield(mu: Values, water: float) -> Values:
    """HU = 1000 (mu / water - 1), both attenuations in 1/mm.

    Raises:
        InputError: if water is not above 0.
    """
    return 1000 * (mu / _checked(water) - 1)


def from_hounsfield(hu: Values, water: float) -> Values:
    """Attenuation in 1/mm, not below zero, of HU and the attenuation of water; errors as in `hounsfield`."""
    mu = _checked(water) * (1 + hu / 1000)
    if isinstance(mu, Tensor):
        return mu.clamp_min(0)
    return np.maximum(mu, 0) if isinstance(mu, np.ndarray) else max(mu, 0.0)


def _checked(water: float) -> float:
    if not water > 0:
        raise InputError(f"HU need the attenuation of water above 0 per mm, got {water:g}", "about 0.0193 at 70 keV")
    return float(water)


def poisson(p: np.ndarray, photons: float, rng: np.random.Generator, *, scatter: float = 0.0, electronic: float = 0.0,
            floor: float = 1.0) -> np.ndarray:
    """Noisy line integrals -log(max(n, floor) / photons), where n is Poisson of photons exp(-p) + scatter, plus electronic noise.

    Args:
        p: any shape, without noise.
        photons: in the open beam.
        scatter: photons that reach every pixel besides; nobody corrects for them.
        electronic: standard deviation, in photons.
        floor: photons; readings below it, among them zero and negative ones, count as it.

    Raises:
        InputError: for photons or a floor that are not positive, or negative scatter or electronic noise.
    """
    if not (photons > 0 and floor > 0 and scatter >= 0 and electronic >= 0):
        raise InputError(f"{photons:g} photons with {scatter:g} scattered, electronic noise {electronic:g} and floor {floor:g} cannot be meant",
                         "photons and floor above 0, the others at least 0")
    counts = rng.poisson(photons * np.exp(-np.asarray(p, dtype=np.float64)) + scatter).astype(np.float64)
    if electronic:
        counts += electronic * rng.standard_normal(counts.shape)
    return (-np.log(np.maximum(counts, floor) / photons)).astype(np.asarray(p).dtype)


def gaussian(p: np.ndarray, decibel: float, rng: np.random.Generator) -> np.ndarray:
    """Line integrals with white noise of a signal-to-noise ratio 20 log10(|p| / |noise|), both root mean squares."""
    sigma = np.sqrt(np.mean(np.square(p, dtype=np.float64))) * 10 ** (-decibel / 20)
    return (p + sigma * rng.standard_normal(np.shape(p))).astype(np.asarray(p).dtype)


def variance(p: Float[Tensor, "*rays"], photons: float, *, scatter: float = 0.0, electronic: float = 0.0) -> Float[Tensor, "*rays"]:
    """Variance of noisy line integrals, to first order: (m + electronic^2) / m^2 for m = photons exp(-p) + scatter; arguments as in `poisson`.

    Its inverse is the weight of penalised weighted least squares (Sauer and Bouman, IEEE TSP 1993).
    """
    mean = photons * torch.exp(-p) + scatter
    return (mean + electronic**2) / mean.square()
