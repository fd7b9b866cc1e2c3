"""Which voxels projections can tell of, and what looks wrong about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..space import Geometry, Grid
from ..space.orbit import angles, axis_of, fan_angle, field_of_view, magnification

if TYPE_CHECKING:
    from .projections import Projections

MOST_PIXELS, MOST_VOXELS = 1024**2, 512**3  # of a lattice that nobody asked for


def lattice(geometry: Geometry, *, spacing: float | None = None, size: int | None = None) -> Grid:
    """The voxels that all views see between them: a cylinder about the axis of the views, with voxels as large as the pixels are at the
    isocentre; a slice (K = 1) across the axis for a detector of one row, else a volume upright in the world.

    Args:
        geometry: the views.
        spacing: mm of isotropic voxels instead.
        size: voxels across the field of view instead.

    Raises:
        InputError: if the lattice nobody asked for would have more than 1024^2 or 512^3 voxels, or for a size or spacing that is not positive.
    """
    if (spacing is not None and not (np.isfinite(spacing) and spacing > 0)) or (size is not None and size < 2):
        raise InputError("voxels need a positive --spacing in mm, or a --size of at least 2 across the field of view", "for instance --size 256")
    axis, scale = axis_of(geometry), magnification(geometry)
    middle, radius = field_of_view(geometry)
    column, row = np.median(geometry.pitch, axis=0) / scale
    radius += column / 2  # the outer edge of the outer pixels
    if size is not None:
        column, row = 2 * radius / size, (2 * radius / size if geometry.shape[0] > 1 else row)
    if spacing is not None:
        column, row = spacing, (spacing if geometry.shape[0] > 1 else row)
    low, high = _reach(geometry, middle, axis, scale)
    if geometry.shape[0] == 1:
        grid = _slice(middle, radius, axis, column, row)
    else:
        half = radius * np.sqrt(np.maximum(0, 1 - axis**2)) + (high - low) / 2 * np.abs(axis)
        steps = np.where(np.abs(axis) > 1 - 1e-9, row, column) if np.abs(axis).max() > 1 - 1e-9 else np.full(3, min(row, column))
        shape = np.maximum(1, np.ceil(2 * half / steps - 1e-3)).astype(int)
        centre = middle + (low + high) / 2 * axis
        grid = Grid.from_spacing(shape.tolist(), steps.tolist(), (centre - (shape - 1) / 2 * steps).tolist())
    if spacing is None and size is None and grid.size > (MOST_PIXELS if grid.is_2d else MOST_VOXELS):
        shown = " x ".join(map(str, grid.shape))
        raise InputError(f"voxels as small as the pixels make {shown} of {grid.spacing[0]:.3g} mm",
                         "say what is wanted: --spacing MM, --size N or --like FILE")
    return grid


def _reach(geometry: Geometry, middle: np.ndarray, axis: np.ndarray, scale: float) -> tuple[float, float]:
    """How far along the axis the detector's rows reach at the isocentre, over all views: a helix climbs."""
    edge = geometry.shape[0] / 2 * geometry.v
    points = [geometry.centre + side * edge for side in (-1, 1)]
    if geometry.beam == "cone":
        points = [geometry.source + (p - geometry.source) / scale for p in points]
    along = np.stack([(p - middle) @ axis for p in points])
    return float(along.min()), float(along.max())


def _slice(middle: np.ndarray, radius: float, axis: np.ndarray, side: float, thickness: float) -> Grid:
    """One layer of square voxels across an axis; its in-plane axes are the world's where the axis is one of the world's."""
    k = int(np.abs(axis).argmax())
    first = np.roll(np.eye(3)[0], k + 1)  # the next world axis: x for z, y for x, z for y
    first = first - (first @ axis) * axis
    first /= np.linalg.norm(first)
    n = max(2, int(np.ceil(2 * radius / side - 1e-3)))
    affine = np.eye(4)
    affine[:3, :3] = np.stack([side * first, side * np.cross(axis, first), thickness * axis], 1)
    affine[:3, 3] = middle - affine[:3, :2].sum(1) * (n - 1) / 2
    return Grid((n, n, 1), affine)


def doubts(case: Projections) -> list[str]:
    """What is possible but looks like a mistake of units, order or normalisation; one sentence each, none for a sound case."""
    g, found = case.geometry, []
    turned = angles(g)
    step = float(np.median(np.abs(np.diff(turned)))) if g.views > 1 else 0.0
    if g.views >= 8 and abs(step - 1.0) < 0.02:
        found.append("the views are one radian apart: were degrees taken for radians?")
    if g.views >= 8 and np.ptp(turned) < np.radians(8):
        found.append(f"{g.views} views cover only {np.degrees(np.ptp(turned)):.2g} degrees: were radians taken for degrees?")
    poses = np.round(np.concatenate([g.source, g.centre, g.u], 1) / np.abs(g.u).max(), 4)
    repeated = g.views - len(np.unique(poses, axis=0))
    if repeated:
        found.append(f"{repeated} of {g.views} views repeat another one")
    if fan_angle(g) > np.radians(100):
        found.append(f"the beam opens by {np.degrees(fan_angle(g)):.0f} degrees: are all lengths in mm?")
    seen = float(g.sees(case.box()).mean())
    if seen < 0.25:
        found.append(f"only {100 * seen:.0f} % of the rays meet the grid: are all lengths in mm, and is the grid where the object is?")
    data, high = case.clean[case.weight > 0], float(case.clean.max())
    negative = float((data < -0.05 * high).float().mean())
    if negative > 0.02:
        found.append(f"{100 * negative:.0f} % of the line integrals are clearly negative: is the open beam (I0) too low, or the sign wrong?")
    edges = case.clean[:, :, [0, -1]].amax((1, 2)) > 0.2 * high
    if edges.float().mean() > 0.5:
        found.append(f"the object reaches the border of the detector in {int(edges.sum())} of {g.views} views: what lies beyond is not modelled")
    return found + _level_doubts(case)


def _level_doubts(case: Projections) -> list[str]:
    """Whether the attenuation is that of a body."""
    water = case.water or 0.02
    ratio, known = case.level / water, "" if case.water else " (water taken as 0.02/mm)"
    if case.metal is not None or 0.2 <= ratio <= 5:
        return []
    what = f"a typical attenuation is {case.level:.2g}/mm, {ratio:.2g} times that of water{known}"
    if ratio > 5:
        return [f"{what}: lengths in cm where mm are meant, metal, or soft radiation?"]
    return [f"{what}: lengths in micrometres where mm are meant, or data that are not -log(I / I0)?"]
