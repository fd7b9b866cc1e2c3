"""Attenuation in the units people use: 1/mm inside, HU or 1/cm at the doors."""

from __future__ import annotations

from typing import Literal

from ..operators.detector import from_hounsfield, hounsfield
from ..space import Volume

Unit = Literal["HU", "mm-1", "cm-1"]
WATER = 0.02  # 1/mm, where nobody says better: that of about 65 keV


def told_in(volume: Volume, unit: Unit, water: float) -> Volume:
    """Attenuation in 1/mm as HU = 1000 (mu / water - 1), or in 1/cm; beyond the volume it is air.

    Raises:
        InputError: for HU if the attenuation of water is unknown (0).
    """
    if unit == "HU":
        return Volume(hounsfield(volume.data, water), volume.grid, "HU", fill=-1000.0, about=volume.about)
    factor, name = (10.0, "1/cm") if unit == "cm-1" else (1.0, "1/mm")
    return Volume(factor * volume.data, volume.grid, name, fill=factor * volume.fill, about=volume.about)


def per_mm(volume: Volume, unit: Unit, water: float) -> Volume:
    """The way back: HU or 1/cm as attenuation in 1/mm, never negative, zero beyond the volume.

    Raises:
        InputError: for HU if the attenuation of water is unknown (0).
    """
    data = from_hounsfield(volume.data, water) if unit == "HU" else volume.data.clamp_min(0) / (10.0 if unit == "cm-1" else 1.0)
    return Volume(data, volume.grid, "1/mm", about=volume.about)


def looks_like(volume: Volume) -> Unit:
    """HU if values reach below -100, else 1/mm."""
    return "HU" if float(volume.data.min()) < -100 else "mm-1"
