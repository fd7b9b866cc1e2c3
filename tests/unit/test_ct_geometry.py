"""The geometry of X-ray measurements: every constructor against the textbook formula for the pixel in which a point is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfields.errors import GeometryError
from medfields.space import Box, Geometry
from medfields.space.orbit import field_of_view

ANGLES = np.array([0.0, 0.4, 1.9, 3.3, 5.1])
NEAR, FAR = 60.0, 100.0
angles = st.lists(st.floats(-7, 7), min_size=1, max_size=4)
points = st.tuples(*[st.floats(-15, 15)] * 3)
shift = st.floats(-8, 8)
pitches = st.floats(0.2, 3)
ALL = {
    "parallel": Geometry.parallel(ANGLES, 15, 1.5, rows=4, row_pitch=2.0, offset=0.7, isocentre=(3, -4, 5)),
    "fan": Geometry.fan(ANGLES, 17, 1.8, NEAR, FAR, offset=4.0),
    "fan arc": Geometry.fan(ANGLES, 17, 1.8, NEAR, FAR, offset=4.0, arc=True, isocentre=(3, -4, 5)),
    "cone": Geometry.cone(ANGLES, (9, 13), (2.2, 1.4), NEAR, FAR, offset=(1.0, 3.0), roll=0.2, tilt=-0.15, rise=7.0),
    "cone arc": Geometry.cone(ANGLES, (9, 13), (2.2, 1.4), NEAR, FAR, offset=(1.0, 3.0), roll=0.2, tilt=-0.15, rise=7.0, arc=True),
}
every = pytest.mark.parametrize("g", ALL.values(), ids=ALL)


def gantry(angle: np.ndarray, x: np.ndarray, isocentre: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a point in the frame of each view: mm to the side, from the isocentre away from the source, and up."""
    d = x - isocentre
    return d[0] * np.cos(angle) + d[1] * np.sin(angle), d[1] * np.cos(angle) - d[0] * np.sin(angle), d[2] + 0 * angle


@given(angles, points, points, shift, pitches, pitches)
def test_parallel_is_radon(angle, x, isocentre, offset, pitch, row_pitch) -> None:
    g = Geometry.parallel(angle, 20, pitch, rows=7, row_pitch=row_pitch, offset=offset, isocentre=isocentre)
    side, _, up = gantry(np.array(angle), np.array(x), np.array(isocentre))
    column, row = g.project(np.array([x]))
    assert np.allclose(column[:, 0], (side - offset) / pitch + 9.5) and np.allclose(row[:, 0], up / row_pitch + 3)


@given(angles, points, points, shift, shift, pitches, pitches, st.floats(-20, 20), st.booleans())
def test_cone_flat_and_arc(angle, x, isocentre, up_offset, offset, pitch, row_pitch, rise, arc) -> None:
    g = Geometry.cone(angle, (8, 21), (row_pitch, pitch), NEAR, FAR, offset=(up_offset, offset), arc=arc, rise=rise, isocentre=isocentre)
    turn = np.array(angle)
    side, ahead, up = gantry(turn, np.array(x), np.array(isocentre))
    up, depth = up - rise * turn / (2 * np.pi), NEAR + ahead
    column, row = g.project(np.array([x]))
    away = np.hypot(side, depth) if arc else depth
    s = FAR * (np.arctan2(side, depth) if arc else side / depth)
    assert np.allclose(column[:, 0], (s - offset) / pitch + 10)
    assert np.allclose(row[:, 0], (up * FAR / away - up_offset) / row_pitch + 3.5)


def test_roll_turns_the_image_and_tilt_leans_the_rows_away() -> None:
    flat, rolled, tilted = (Geometry.cone([0.0], (41, 41), 1.0, NEAR, FAR, roll=r, tilt=t) for r, t in ((0, 0), (0.3, 0), (0, 0.2)))
    x = np.array([[4.0, 5.0, -6.0]])
    (s,), (z,) = (np.array(a)[0] - 20 for a in flat.project(x))
    column, row = (a[0, 0] - 20 for a in rolled.project(x))
    assert np.allclose([column, row], [np.cos(0.3) * s + np.sin(0.3) * z, np.cos(0.3) * z - np.sin(0.3) * s])
    top = tilted.pixels(0)[40, 20] - tilted.pixels(0)[20, 20]
    assert np.allclose(top, [0, 20 * np.sin(0.2), 20 * np.cos(0.2)])  # the source is at -y


def test_a_fan_is_one_row_of_a_cone() -> None:
    fan, cone = Geometry.fan(ANGLES, 17, 1.8, NEAR, FAR, offset=4.0), Geometry.cone(ANGLES, (1, 17), 1.8, NEAR, FAR, offset=(0.0, 4.0))
    assert np.array_equal(fan.pixels(), cone.pixels()) and np.array_equal(fan.source, cone.source)
    assert fan.size == 5 * 17 and repr(fan) == "Geometry(fan, 5 views of 1 x 17 pixels of 1.8 x 1.8 mm)"


@every
def test_project_inverts_pixels(g: Geometry) -> None:
    pixels = g.pixels()
    column, row = g.project(pixels.reshape(-1, 3))
    rows, columns = g.shape
    for n in range(g.views):
        own = slice(n * rows * columns, (n + 1) * rows * columns)
        assert np.allclose(column[n, own].reshape(g.shape), np.arange(columns)[None])
        assert np.allclose(row[n, own].reshape(g.shape), np.arange(rows)[:, None])
    assert np.allclose(g.pixels(2), pixels[2])


@every
def test_rays_and_at_agree_and_lead_to_the_pixels(g: Geometry) -> None:
    origin, direction = g.rays()
    assert np.allclose(np.linalg.norm(direction, axis=-1), 1)
    at = g.at(torch.arange(g.size))
    assert np.allclose(at["origin"], origin.reshape(-1, 3), atol=1e-4) and np.allclose(at["direction"], direction.reshape(-1, 3), atol=1e-6)
    assert np.array_equal(at["view"], np.repeat(np.arange(g.views), g.shape[0] * g.shape[1]))
    if g.beam == "cone":
        assert np.allclose(at["origin"] + at["length"][:, None] * at["direction"], g.pixels().reshape(-1, 3), atol=1e-4)
    else:
        assert np.allclose(origin, g.pixels()) and "length" not in at
        assert np.allclose(direction, np.stack([-np.sin(ANGLES), np.cos(ANGLES), 0 * ANGLES], 1)[:, None, None])
    mixed = torch.tensor([5, 2, 2])
    assert torch.equal(g.at(mixed)["origin"], at["origin"][mixed])


def test_the_columns_of_an_arc_are_equally_far_and_equally_spaced() -> None:
    g = ALL["fan arc"]
    d = g.pixels() - g.source[:, None, None]
    assert np.allclose(np.linalg.norm(d, axis=-1), FAR)
    turn = np.einsum("vrcj,vrcj->vrc", d[:, :, 1:], d[:, :, :-1]) / FAR**2
    assert np.allclose(np.arccos(turn), 1.8 / FAR)
    assert np.allclose(g.radius, FAR) and np.allclose(g.facing, g.towards)


def test_a_curved_detector_shifted_along_its_rows_stays_the_same_cylinder() -> None:
    plain, moved = (Geometry.cone(ANGLES, (9, 13), 2.0, NEAR, FAR, offset=(up, 3.0), arc=True, tilt=0.1) for up in (0.0, 4.0))
    assert np.allclose(moved.pixels()[:, :-2], plain.pixels()[:, 2:])


@every
def test_finer_pixels_average_to_where_the_pixel_was(g: Geometry) -> None:
    fine = g.finer(3, 2)
    rows, columns = g.shape
    assert fine.shape == (2 * rows, 3 * columns)
    parts = fine.pixels().reshape(g.views, rows, 2, columns, 3, 3)
    assert np.allclose(parts[..., 1, :].mean(2), g.pixels())  # the middle column of three
    x = g.pixels(1).reshape(-1, 3)
    (column, row), (c, r) = g.project(x), fine.project(x)
    assert np.allclose(c, 3 * column + 1) and np.allclose(r, 2 * row + 0.5)


def test_half_a_pixel_belongs_to_the_border_of_the_detector() -> None:
    g = Geometry.parallel([0.0], 4, 2.0)
    assert np.allclose(g.pixels(0)[0, :, 0], [-3, -1, 1, 3])
    assert np.allclose(g.finer(2).pixels(0)[0, :, 0], [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])


@every
@settings(max_examples=20)
@given(x=points, turn=st.floats(-3, 3), t=points, about=points)
def test_moving_views_and_points_together_changes_nothing(g: Geometry, x, turn, t, about) -> None:
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.stack([np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) if n % 2 else np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
                         for n in range(g.views)])
    shift = np.array(t) * np.arange(g.views)[:, None]
    moved = g.moved(rotation, shift, about)
    before = g.project(np.array([x]))
    for n in range(g.views):
        y = rotation[n] @ (np.array(x) - about) + about + shift[n]
        after = moved.subset([n]).project(y[None])
        assert np.allclose(after[0][0, 0], before[0][n, 0]) and np.allclose(after[1][0, 0], before[1][n, 0])
    back = moved.moved(rotation.transpose(0, 2, 1), -np.einsum("nji,nj->ni", rotation, shift), about)
    assert np.allclose(back.pixels(), g.pixels())


@every
def test_subset_keeps_order_and_takes_slices_and_masks(g: Geometry) -> None:
    assert np.array_equal(g.subset([3, 1]).centre, g.centre[[3, 1]])
    assert np.array_equal(g.subset(slice(None, None, 2)).source, g.source[::2])
    assert np.array_equal(g.subset(ANGLES > 1).u, g.u[ANGLES > 1]) and g.subset([0]).shape == g.shape


def test_field_of_view() -> None:
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    middle, radius = field_of_view(Geometry.parallel(turn, 21, 2.0, isocentre=(5, 6, 7)))
    assert np.allclose(middle, (5, 6, 7)) and np.isclose(radius, 20)
    middle, radius = field_of_view(Geometry.parallel(turn, 21, 2.0, offset=8, isocentre=(5, 6, 7)))
    assert np.allclose(middle, (5, 6, 7)) and np.isclose(radius, 28)
    half = np.sin(np.arctan((10 * 2.0 + 8) / FAR)) * NEAR  # the far side of a half-fan
    for arc, expected in ((False, half), (True, np.sin(28 / FAR) * NEAR)):
        middle, radius = field_of_view(Geometry.fan(turn, 21, 2.0, NEAR, FAR, offset=8, arc=arc, isocentre=(5, 6, 7)))
        assert np.allclose(middle, (5, 6, 7)) and np.isclose(radius, expected)
    middle, radius = field_of_view(Geometry.cone(turn, (5, 21), 2.0, NEAR, FAR, isocentre=(5, 6, 7)))
    assert np.allclose(middle, (5, 6, 7)) and np.isclose(radius, np.sin(np.arctan(20 / FAR)) * NEAR)


def test_span_and_plane() -> None:
    for n, end in ((90, np.pi), (180, 2 * np.pi), (300, 5 * np.pi)):
        g = Geometry.fan(np.linspace(0, end, n, endpoint=False), 8, 1.0, NEAR, FAR)
        assert np.isclose(g.span, end * (n - 1) / n)
        assert np.allclose(np.abs(np.cross(*g.plane)), [0, 0, 1], atol=1e-9)
    assert Geometry.fan([1.0], 8, 1.0, NEAR, FAR).span == 0
    # Of a helix the directions still turn in the plane, though the sources climb.
    assert np.isclose(Geometry.cone(np.linspace(0, 12, 100), (4, 8), 1.0, NEAR, FAR, rise=30).span, 12)


def test_sees() -> None:
    g = Geometry.fan([0.0, np.pi / 2], 11, 2.0, NEAR, FAR)
    box = Box((-5, -5, -1), (5, 5, 1))
    whole = g.sees(box)
    assert ((whole > 0.5) & (whole < 1)).all() and np.allclose(whole[0], whole[1])
    assert (g.sees(Box((-5, -5, 4), (5, 5, 6))) == 0).all()
    behind = g.sees(Box((-5, -90, -1), (5, -80, 1)))  # the source of the first view is at y = -60
    beyond = g.sees(Box((-5, 50, -1), (5, 60, 1)))
    assert behind[0] == 0 and beyond[0] == 0
    # Parallel rays have no ends: far away is seen as well.
    assert Geometry.parallel([0.0], 3, 1.0).sees(Box((-5, -990, -1), (5, -980, 1)))[0] == 1


def good(**other: object) -> dict:
    one = {"source": [[0.0, -60, 0]], "centre": [[0.0, 40, 0]], "u": [[1.0, 0, 0]], "v": [[0, 0, 1.0]]}
    return {"beam": "cone", "shape": (2, 3)} | {k: np.array(v) for k, v in one.items()} | other


@pytest.mark.parametrize(("wrong", "says"), [
    ({"shape": (0, 3)}, "one row and one column"),
    ({"u": np.zeros((2, 3))}, "'u' of a geometry"),
    ({"centre": np.array([[0, np.nan, 0]])}, "'centre' of a geometry"),
    ({"source": np.zeros((0, 3))}, "'source' of a geometry"),
    ({"u": np.zeros((1, 3))}, "no size"),
    ({"u": np.array([[0.0, 1, 0]])}, "along the detector"),
    ({"source": np.array([[0.0, 40, 0]])}, "along the detector"),
    ({"beam": "parallel"}, "unit vectors"),
    ({"beam": "parallel", "source": np.array([[0.0, 1, 0]]), "arc": True}, "needs a source point"),
    ({"arc": True, "u": np.array([[1.0, 0.2, 0]])}, "touch the circle"),
    ({"arc": True, "v": np.array([[0.2, 0, 1.0]])}, "touch the circle"),
    ({"arc": True, "source": np.array([[0.0, -60, 0], [0, -70, 0]]), **{k: np.repeat(good()[k], 2, 0) for k in ("centre", "u", "v")}}, "distance"),
])
def test_what_cannot_be_meant_is_refused(wrong: dict, says: str) -> None:
    Geometry(**good())
    with pytest.raises(GeometryError, match=says):
        Geometry(**good(**wrong))


def test_constructors_refuse_what_cannot_be_meant() -> None:
    for near, far in ((100, 60), (0, 60), (-5, 60)):
        with pytest.raises(GeometryError, match=r"swapped|between"):
            Geometry.fan(ANGLES, 5, 1.0, near, far)
    for wrong in ([], [np.nan], np.zeros((1, 2))):
        with pytest.raises(GeometryError, match="angles"):
            Geometry.parallel(wrong, 5, 1.0)
    with pytest.raises(GeometryError, match="no size"):
        Geometry.parallel(ANGLES, 5, 1.0, rows=2, row_pitch=0.0)
    assert not ALL["fan"].source.flags.writeable


def test_views_follow_views():
    first, second = Geometry.parallel([0.0, 1.0], 5, 1.0), Geometry.parallel([0.5], 5, 1.0, isocentre=(1.0, 2.0, 3.0))
    both = first.followed_by(second)
    assert both.views == 3
    for part, where in ((first, slice(0, 2)), (second, slice(2, 3))):
        assert np.array_equal(both.pixels(where), part.pixels())
    with pytest.raises(GeometryError, match="cannot follow"):
        first.followed_by(Geometry.parallel([0.5], 6, 1.0))
