"""Materials: how strongly matter attenuates photons of each energy, and what a CT volume is made of.

The table holds mass attenuation coefficients mu / rho in cm^2 / g and densities in g / cm^3 of Hubbell and Seltzer: Tables of X-Ray Mass
Attenuation Coefficients and Mass Energy-Absorption Coefficients, NISTIR 5632 (1995), NIST Standard Reference Database 126; tissues are
those of ICRU Report 44. Between its energies log(mu / rho) is a cubic spline of log(energy) from one absorption edge to the next. Against
the independent parameterisation of Elam, Ravel and Sieber (Radiation Physics and Chemistry 2002) the entries are within 0.1 % (gold between
its L edges 0.2 %), and all in between from 15 to 150 keV is within 0.2 % (tungsten and gold 0.4 %). Two rows of NISTIR 5632 that this
comparison shows 4 and 5 % too high, tungsten at 11.8186 and gold at 14.0398 keV, interpolated between L edges, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from ..errors import InputError, UnknownName
from ..space import Volume

LOWEST, HIGHEST = 10.0, 200.0  # keV, the range of the table

_ENERGIES = (10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0, 200.0)
_SMOOTH: dict[str, tuple[float, ...]] = {  # cm^2 / g at these energies, for materials without an edge among them
    "water": (5.329, 1.673, 0.8096, 0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505, 0.1370),
    "soft tissue": (5.379, 1.699, 0.8230, 0.3790, 0.2688, 0.2264, 0.2048, 0.1823, 0.1693, 0.1492, 0.1358),
    "bone": (28.51, 9.032, 4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480, 0.1309),
    "adipose": (3.268, 1.083, 0.5677, 0.3063, 0.2396, 0.2123, 0.1974, 0.1800, 0.1688, 0.1500, 0.1368),
    "lung": (5.459, 1.721, 0.8316, 0.3815, 0.2699, 0.2270, 0.2053, 0.1826, 0.1695, 0.1493, 0.1359),
    "air": (5.120, 1.614, 0.7779, 0.3538, 0.2485, 0.2080, 0.1875, 0.1662, 0.1541, 0.1356, 0.1233),
    "aluminium": (26.23, 7.955, 3.441, 1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378, 0.1223),
    "titanium": (110.7, 35.87, 15.85, 4.972, 2.214, 1.213, 0.7661, 0.4052, 0.2721, 0.1649, 0.1314),
    "iron": (170.6, 57.08, 25.68, 8.176, 3.629, 1.958, 1.205, 0.5952, 0.3717, 0.1964, 0.1460),
    "copper": (215.9, 74.05, 33.79, 10.92, 4.862, 2.613, 1.593, 0.7630, 0.4584, 0.2217, 0.1559),
}
_EDGED: dict[str, tuple[dict[float, float], ...]] = {  # {keV: cm^2 / g} from edge to edge, both ends included
    "tungsten": (
        {10: 96.91, 10.2068: 92.01},
        {10.2068: 233.4, 10.8548: 198.3, 11.5440: 168.9},
        {11.5440: 231.2, 12.0998: 206.5},
        {12.0998: 238.2, 15: 138.9, 20: 65.73, 30: 22.73, 40: 10.67, 50: 5.949, 60: 3.713, 69.525: 2.552},
        {69.525: 11.23, 80: 7.810, 100: 4.438, 150: 1.581, 200: 0.7844},
    ),
    "gold": (
        {10: 118.1, 11.9187: 75.82},
        {11.9187: 187.0, 12.7940: 154.6, 13.7336: 128.3},
        {13.7336: 176.4, 14.3528: 158.8},
        {14.3528: 183.0, 15: 163.7, 20: 78.83, 30: 27.52, 40: 12.98, 50: 7.256, 60: 4.528, 80: 2.185, 80.7249: 2.137},
        {80.7249: 8.904, 100: 5.158, 150: 1.860, 200: 0.9214},
    ),
}

# g / cm^3. "lung" is lung tissue without its air; "bone" is cortical, "air" dry at sea level, "iron" stands for steel.
DENSITY: dict[str, float] = {
    "water": 1.0, "soft tissue": 1.06, "bone": 1.92, "adipose": 0.95, "lung": 1.05, "air": 1.205e-3, "aluminium": 2.699, "titanium": 4.54,
    "iron": 7.874, "copper": 8.96, "tungsten": 19.3, "gold": 19.32,
}


@cache
def _pieces(material: str) -> tuple[tuple[float, CubicSpline], ...]:
    """For each stretch between two edges, the energy where it begins, and log(mu / rho) as a spline of log(energy)."""
    if material not in DENSITY:
        raise UnknownName("material", material, DENSITY)
    parts = _EDGED[material] if material in _EDGED else (dict(zip(_ENERGIES, _SMOOTH[material], strict=True)),)
    return tuple((next(iter(part)), CubicSpline(np.log([*part]), np.log([*part.values()]))) for part in parts)


def mass_attenuation(material: str, energies: float | Sequence[float] | np.ndarray) -> Float[np.ndarray, "*E"]:
    """mu / rho in cm^2 / g at energies in keV (one number gives a 0-dimensional array); at an edge itself, the value above it.

    Raises:
        UnknownName: for a material that is not in `DENSITY`.
        InputError: for energies outside 10 to 200 keV.
    """
    pieces, e = _pieces(material), np.asarray(energies, dtype=np.float64)
    if not ((e >= LOWEST) & (e <= HIGHEST)).all():
        raise InputError(f"attenuation is known from {LOWEST:g} to {HIGHEST:g} keV, not at {e[~((e >= LOWEST) & (e <= HIGHEST))].flat[0]:g} keV",
                         "energies are keV")
    out = np.empty_like(e)
    for begin, spline in pieces:
        above = e >= begin
        out[above] = np.exp(spline(np.log(e[above])))
    return np.asarray(out)


def attenuation(material: str, energies: float | Sequence[float] | np.ndarray, density: float | None = None) -> Float[np.ndarray, "*E"]:
    """mu in 1/mm at energies in keV, at a density in g / cm^3 (None: that of `DENSITY`); errors as in `mass_attenuation`."""
    per_gram = mass_attenuation(material, energies)
    return np.asarray(per_gram * (DENSITY[material] if density is None else density) / 10)  # 1/cm to 1/mm


def decompose(volume: Volume, reference_kev: float = 70.0, *, metal: Mapping[str, Volume] | None = None,
              between: tuple[float, float] = (100.0, 1500.0)) -> dict[str, Volume]:
    """What a CT volume is made of: densities of water, bone and metals that attenuate as the volume does at the reference energy.

    A voxel's attenuation is water's up to one HU value, bone's from another on, and in between the bone's share rises linearly (the soft
    threshold of Zhang and Yu, IEEE TMI 2018, who begin and end it at 100 and 1500 HU). What is below zero counts as empty.

    Args:
        volume: attenuation in 1/mm, one channel.
        reference_kev: the energy that this attenuation belongs to.
        metal: by name of the material, where it replaces the tissue: masks, whose values from 0 to 1 are shares of a voxel.
        between: HU, where bone begins and where everything is bone.

    Returns:
        By name of the material, volumes of its density in g / cm^3, on the grid of `volume`.

    Raises:
        InputError: for several channels, a transition that does not rise, or metals that overlap.
        UnknownName: for a metal that is not in `DENSITY`.
    """
    if volume.channels != 1:
        raise InputError(f"a volume of one channel can be decomposed, this one has {volume.channels}")
    low, high = between
    if not low < high:
        raise InputError(f"bone must begin below where it ends, got {low:g} to {high:g} HU")
    for name in metal or {}:
        _pieces(name)
    mu, water = volume.data.clamp_min(0), float(attenuation("water", reference_kev))
    bone = ((1000 * (mu / water - 1) - low) / (high - low)).clamp(0, 1)
    shares = {name: mask.on(volume.grid).data.clamp(0, 1) for name, mask in (metal or {}).items()}
    tissue = 1 - sum(shares.values(), start=mu.new_zeros(mu.shape))
    if float(tissue.min()) < -1e-4:
        raise InputError("metals overlap: their shares of a voxel exceed 1")
    parts = {"water": mu * (1 - bone), "bone": mu * bone}
    densities = {name: part * tissue.clamp_min(0) / float(attenuation(name, reference_kev, 1.0)) for name, part in parts.items()}
    densities |= {name: share * DENSITY[name] for name, share in shares.items()}
    return {name: Volume(d, volume.grid, "g/cm^3", interpolation=volume.interpolation) for name, d in densities.items()}
