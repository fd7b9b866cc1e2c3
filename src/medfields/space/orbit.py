"""What the views of a geometry have in common: the axis they turn about, how far, and what they see."""

from __future__ import annotations

import numpy as np

from .geometry import Geometry


def ahead(geometry: Geometry) -> np.ndarray:
    """[V, 3] unit vectors across the detector, away from the source: where the gantry looks, also if the detector is shifted to one side."""
    if geometry.arc or geometry.beam == "parallel":
        return geometry.towards
    normal = np.cross(geometry.u, geometry.v)
    return normal / np.linalg.norm(normal, axis=1, keepdims=True) * np.sign((normal * geometry.towards).sum(1, keepdims=True))


def axis_of(geometry: Geometry) -> np.ndarray:
    """[3] the unit vector the views turn about; where they do not turn, the mean direction of the detector's columns of pixels (v).
    Within 8 degrees of a world axis it is that axis."""
    size = np.linalg.svd(geometry.towards, compute_uv=False)
    if len(size) > 1 and size[1] > 0.05 * size[0]:
        e1, e2 = geometry.plane
        axis = np.cross(e1, e2)
    else:
        axis = geometry.v.sum(0) / np.linalg.norm(geometry.v.sum(0))
    best = int(np.abs(axis).argmax())
    return np.eye(3)[best] if abs(axis[best]) > np.cos(np.radians(8)) else axis * np.sign(axis[best])


def field_of_view(geometry: Geometry) -> tuple[np.ndarray, float]:
    """Middle [3] mm and radius mm of the disc across the axis that the views see between them: where the gantry turns, and how far it looks.

    With a detector that is shifted to one side (half-fan) the radius is that of the far side: what one view misses, the opposite one sees.
    """
    axis = axis_of(geometry)
    middle = _turns_about(geometry, axis)
    origin, direction = (part[:, :, [0, -1]] for part in geometry.rays())
    off, along = (part - (part @ axis)[..., None] * axis for part in (middle - origin, direction))
    along /= np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-12)
    miss = np.linalg.norm(off - (off * along).sum(-1, keepdims=True) * along, axis=-1)
    return middle, float(miss.min((0, 1)).max())


def _turns_about(geometry: Geometry, axis: np.ndarray) -> np.ndarray:
    """[3] the isocentre: the point nearest to the central rays of all views (least squares); where the detector is shifted to one side and they
    pass it by, the middle of the circle on which the sources (or, parallel, the middles of the detector) lie."""
    n, points = geometry.towards, geometry.centre if geometry.beam == "parallel" else geometry.source
    blind = np.eye(3) - n[:, :, None] * n[:, None, :]
    # Along the normal of a circular orbit the matrix is singular: there the answer stays in the middle of the sources.
    start = points.mean(0)
    middle = start + np.linalg.pinv(blind.sum(0), rcond=1e-9) @ np.einsum("nij,nj->i", blind, points - start)
    flat = points - middle - ((points - middle) @ axis)[:, None] * axis
    if geometry.views < 3 or np.ptp(angles(geometry)) < np.radians(20) or np.ptp(flat, axis=0).max() < 1e-6 * np.abs(geometry.u).max():
        return middle
    e1, e2 = across(axis)
    p = np.stack([flat @ e1, flat @ e2], 1)
    x = np.linalg.lstsq(np.column_stack([2 * p, np.ones(len(p))]), (p**2).sum(1), rcond=None)[0]
    apart = np.linalg.norm(p - x[:2], axis=1)
    return middle if np.ptp(apart) > 0.02 * apart.mean() else middle + x[0] * e1 + x[1] * e2  # only a circle has a middle


def across(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors across another, right-handed."""
    e1 = np.cross(axis, np.eye(3)[int(np.abs(axis).argmin())])
    e1 = e1 / np.linalg.norm(e1)
    return e1, np.cross(axis, e1)


def magnification(geometry: Geometry) -> float:
    """How much larger the isocentre appears on the detector (median of the views); 1 for a parallel beam."""
    near, far = distances(geometry)
    return far / near if geometry.beam == "cone" else 1.0


def distances(geometry: Geometry) -> tuple[float, float]:
    """mm from the source to the isocentre and to the detector, straight ahead (medians of the views); of no use for a parallel beam."""
    middle, _ = field_of_view(geometry)
    near, far = (np.median(((p - geometry.source) * ahead(geometry)).sum(1)) for p in (middle, geometry.centre))
    return float(max(near, 1e-9)), float(far)


def angles(geometry: Geometry) -> np.ndarray:
    """[V] radians, unwrapped: how far the views have turned about their axis; as in `Geometry.parallel`, rays along +y are at 0."""
    axis = axis_of(geometry)
    looks = ahead(geometry)
    flat = looks - (looks @ axis)[:, None] * axis
    e1 = np.eye(3)[(int(np.abs(axis).argmax()) + 2) % 3]
    e1 = e1 - (e1 @ axis) * axis
    e1 /= np.linalg.norm(e1)
    return np.unwrap(np.arctan2(flat @ np.cross(axis, e1), flat @ e1))


def fan_angle(geometry: Geometry) -> float:
    """Radians between the outer columns' rays of a view; 0 for a parallel beam."""
    _, direction = geometry.rays(0)
    return float(np.arccos(np.clip((direction[0, 0] * direction[0, -1]).sum(), -1, 1)))
