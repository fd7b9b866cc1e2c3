"""The voxels that views see, and what looks wrong about projections."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from medfields.cases import Projections
from medfields.cases.attenuation import looks_like, per_mm, told_in
from medfields.cases.lattice import doubts, lattice
from medfields.errors import InputError
from medfields.space import Geometry, Grid, Volume
from medfields.space.orbit import angles, axis_of, distances, fan_angle, field_of_view, magnification

TURN = np.linspace(0, 2 * np.pi, 40, endpoint=False)


def test_parallel_slice_has_a_voxel_for_each_column() -> None:
    grid = lattice(Geometry.parallel(TURN / 2, 64, 1.5, isocentre=(10, 20, 30)))
    assert grid.shape == (64, 64, 1) and np.allclose(grid.spacing, 1.5) and np.allclose(grid.centre, (10, 20, 30))
    assert np.allclose(grid.directions, np.eye(3))


def test_cone_is_a_cylinder_with_voxels_of_the_demagnified_pixels() -> None:
    geometry = Geometry.cone(TURN, (10, 40), (6.0, 4.0), 500, 1000)
    grid = lattice(geometry)
    assert np.allclose(grid.spacing, (2, 2, 3)) and grid.shape == (40, 40, 10)
    assert distances(geometry) == pytest.approx((500, 1000)) and magnification(geometry) == pytest.approx(2)
    assert fan_angle(geometry) == pytest.approx(2 * np.arctan(78 / 1000), rel=0.01)


@pytest.mark.parametrize("arc", [np.pi * 200 / 180, 2 * np.pi])
def test_half_fan_keeps_its_isocentre_and_sees_more(arc: float) -> None:
    turn = np.linspace(0, arc, 50, endpoint=False)
    plain, shifted = (Geometry.cone(turn, (4, 60), 4.0, 1000, 1500, offset=(0, s), isocentre=(5, 6, 7)) for s in (0.0, 60.0))
    assert np.allclose(field_of_view(plain)[0], (5, 6, 7)) and np.allclose(field_of_view(shifted)[0], (5, 6, 7), atol=1e-6)
    assert field_of_view(shifted)[1] > field_of_view(plain)[1] + 30
    assert np.degrees(angles(shifted))[[0, 1]] == pytest.approx(np.degrees(turn[:2]), abs=1e-6)


def test_shifted_parallel_detector_of_half_a_turn() -> None:
    middle, radius = field_of_view(Geometry.parallel(TURN / 2, 50, 1.0, offset=8.0, isocentre=(1, 2, 3)))
    assert np.allclose(middle, (1, 2, 3)) and radius == pytest.approx(24.5 + 8)


def test_a_helix_is_covered_along_its_way() -> None:
    grid = lattice(Geometry.cone(np.linspace(0, 6 * np.pi, 90), (8, 40), 4.0, 500, 1000, rise=30.0))
    assert grid.box().lo[2] == pytest.approx(-8, abs=2) and grid.box().hi[2] == pytest.approx(98, abs=2)


@pytest.mark.parametrize("axis", [(1.0, 0, 0), (0, 1.0, 0), (0.6, 0, 0.8)])
def test_other_axes_of_rotation(axis: tuple[float, float, float]) -> None:
    up = np.array(axis)
    side = np.array([-up[2], 0, up[0]]) if up[1] == 0 else np.array([0, 0, 1.0])
    turn = np.stack([np.cross(side, up), side, up], 1) if np.linalg.det(np.stack([np.cross(side, up), side, up], 1)) > 0 else \
        np.stack([side, np.cross(up, side), up], 1)
    one = Geometry.parallel(TURN / 2, 32, 2.0).moved(turn, np.array([3.0, 4, 5]))
    assert abs(axis_of(one) @ up) == pytest.approx(1)
    grid = lattice(one)
    assert grid.is_2d and abs(grid.directions[:, 2] @ up) == pytest.approx(1) and np.allclose(grid.centre, (3, 4, 5))
    assert one.sees(grid.box()).min() > 0.9 and np.linalg.det(grid.directions) > 0
    many = Geometry.parallel(TURN / 2, 32, 2.0, rows=6).moved(turn, np.zeros(3))
    extent = lattice(many).spacing * lattice(many).shape
    expected = 64 * np.sqrt(1 - up**2) + 12 * np.abs(up)
    assert np.allclose(extent, expected, atol=2.1)


def test_size_spacing_and_what_nobody_asked_for() -> None:
    geometry = Geometry.parallel(TURN, 64, 1.0)
    assert lattice(geometry, size=100).shape == (100, 100, 1) and lattice(geometry, spacing=4.0).shape == (16, 16, 1)
    with pytest.raises(InputError, match="--spacing MM"):
        lattice(Geometry.parallel(TURN, 1100, 0.1))
    assert lattice(Geometry.parallel(TURN, 1100, 0.1), size=1100).shape == (1100, 1100, 1)
    for wrong in ({"spacing": 0.0}, {"spacing": float("nan")}, {"size": 1}):
        with pytest.raises(InputError, match="positive"):
            lattice(geometry, **wrong)


def test_a_sound_case_raises_no_doubt() -> None:
    for seed in range(3):
        assert doubts(Projections.toy(seed)) == []


def doubt(**changes: object) -> str:
    return " / ".join(doubts(dataclasses.replace(Projections.toy(0), **changes)))


def test_doubts_name_what_looks_wrong() -> None:
    toy = Projections.toy(0)
    g = toy.geometry
    assert "degrees taken for radians" in doubt(geometry=Geometry.parallel(np.arange(12.0), 36, 2.0))
    assert "cover only 3.1 degrees" in doubt(geometry=Geometry.parallel(np.radians(np.linspace(0, np.pi, 12)), 36, 2.0))
    assert "1 of 12 views repeat" in doubt(geometry=g.subset([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 3]))
    assert "clearly negative" in doubt(data=torch.where(toy.data > 0.3, toy.data, toy.data - 0.2))
    assert "border of the detector in 12 of 12" in doubt(data=toy.data + 1)
    small = Grid.from_spacing((3, 3, 1), 2.0, (-2, -2, 0))
    assert "% of the rays meet the grid" in doubt(grid=small)
    assert "lengths in cm" in doubt(data=10 * toy.data, metal=None) and "micrometres" in doubt(data=0.02 * toy.data, metal=None)


def test_units_there_and_back() -> None:
    volume = Volume(torch.tensor([0.0, 0.02, 0.05]).reshape(3, 1, 1), Grid.from_spacing((3, 1, 1), 1.0), "1/mm")
    hu = told_in(volume, "HU", 0.02)
    assert torch.allclose(hu.data.ravel(), torch.tensor([-1000.0, 0, 1500])) and hu.fill == -1000 and looks_like(hu) == "HU"
    assert torch.allclose(told_in(volume, "cm-1", 0.0).data, 10 * volume.data) and looks_like(volume) == "mm-1"
    for unit in ("HU", "mm-1", "cm-1"):
        assert torch.allclose(per_mm(told_in(volume, unit, 0.02), unit, 0.02).data, volume.data, atol=1e-8)
    with pytest.raises(InputError, match="water"):
        told_in(volume, "HU", 0.0)
