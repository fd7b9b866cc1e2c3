"""Geometry: where the rays of an X-ray measurement run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import GeometryError
from .box import Box

Beam = Literal["parallel", "cone"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Views of a source and a detector of R rows and C columns, in RAS+ millimetres; every view has a pose of its own.

    Pixel (r, c) of view n is centred at  centre[n] + (c - (C - 1) / 2) u[n] + (r - (R - 1) / 2) v[n],  and its ray runs through it from
    source[n] ("cone", which a fan is one row of) or in the direction source[n] ("parallel"). Circular, helical and wobbling gantries are
    different numbers, not different code. The constructors `parallel`, `fan` and `cone` make the usual ones.

    Args:
        beam: "cone", rays leave one point, or "parallel".
        source: [V, 3] mm, the focal spot; or, parallel, unit vectors from the source to the detector.
        centre: [V, 3] mm, the middle of the detector.
        u, v: [V, 3] mm from column to column and from row to row.
        shape: rows R and columns C.
        arc: the detector is curved about the line through the source along v: the columns of a row lie at equal angles |u| / radius on a
            circle, which u touches in the middle.
        frame: DICOM frame of reference UID, or "".

    Raises:
        GeometryError: for arrays that do not fit one another, are not finite, or whose rays run along the detector.
    """

    beam: Beam
    source: np.ndarray
    centre: np.ndarray
    u: np.ndarray
    v: np.ndarray
    shape: tuple[int, int]
    arc: bool = False
    frame: str = ""

    def __post_init__(self) -> None:
        if self.beam not in ("parallel", "cone"):
            raise GeometryError(f"there is no beam '{self.beam}'", "parallel or cone; a fan is a cone of one row")
        rows, columns = (int(n) for n in self.shape)
        if rows < 1 or columns < 1:
            raise GeometryError(f"a detector needs at least one row and one column, got {rows} x {columns}")
        object.__setattr__(self, "shape", (rows, columns))
        views = len(np.atleast_2d(self.source))
        for name in ("source", "centre", "u", "v"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.shape != (views, 3) or views == 0 or not np.isfinite(array).all():
                raise GeometryError(f"'{name}' of a geometry must be finite, one vector of three numbers for each of the {views} views, got "
                                    f"shape {array.shape}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.arc and self.beam != "cone":
            raise GeometryError("a curved detector needs a source point", "beam = cone")
        towards = self.source if self.beam == "parallel" else self.centre - self.source
        length = np.linalg.norm(towards, axis=1)
        if self.beam == "parallel" and (abs(length - 1) > 1e-6).any():
            raise GeometryError("the ray directions of a parallel beam must be unit vectors")
        area = np.linalg.norm(self.u, axis=1) * np.linalg.norm(self.v, axis=1)
        volume = np.abs((np.cross(self.u, self.v) * towards).sum(1))
        if (volume < 1e-6 * area * length).any() or (length <= 0).any() or (area <= 0).any():
            raise GeometryError("the rays run along the detector, or its pixels have no size", "u and v span the detector; source faces it")
        if not self.arc:
            return
        if (np.ptp(self.radius) > 1e-3 * self.radius.mean()) or np.ptp(self.pitch[:, 0]) > 1e-3 * self.pitch[0, 0]:
            raise GeometryError("a curved detector must keep its distance to the source and its pitch in all views")
        askew = np.abs(np.stack([(self.u * towards).sum(1) / length, (self.u * self.v).sum(1) / self.pitch[:, 1]])) / self.pitch[:, 0]
        if askew.max() > 1e-3:
            raise GeometryError("u of a curved detector must touch the circle about the source, and be at right angles to v",
                                "centre lies where the ray along the radius meets the detector")

    @classmethod
    def parallel(cls, angles: Sequence[float] | np.ndarray, columns: int, pitch: float, *, rows: int = 1, row_pitch: float | None = None,
                 offset: float = 0.0, isocentre: Sequence[float] = (0.0, 0.0, 0.0)) -> Geometry:
        """A parallel beam that turns about the z axis (towards the head) through the isocentre.

        p(angle, s) is the integral over the line x cos(angle) + y sin(angle) = s of the slice: Radon's convention, x to the right and y
        to the front of the patient. Rays run along (-sin, cos, 0), columns along (cos, sin, 0), rows along +z.

        Args:
            angles: radians, one for each view.
            columns, rows: of the detector.
            pitch, row_pitch: mm from pixel to pixel; rows take that of the columns if None.
            offset: mm by which the detector's middle is shifted along its columns.
            isocentre: mm, the point the gantry turns about.
        """
        along, ray, up = _frames(angles)
        centre = np.asarray(isocentre, dtype=np.float64) + offset * along
        return cls("parallel", ray, centre, pitch * along, (pitch if row_pitch is None else row_pitch) * up, (rows, columns))

    @classmethod
    def cone(cls, angles: Sequence[float] | np.ndarray, shape: tuple[int, int], pitch: float | tuple[float, float], source_isocentre: float,
             source_detector: float, *, offset: tuple[float, float] = (0.0, 0.0), roll: float = 0.0, tilt: float = 0.0, arc: bool = False,
             rise: float = 0.0, isocentre: Sequence[float] = (0.0, 0.0, 0.0)) -> Geometry:
        """A source and a detector that turn together about the z axis through the isocentre; the frame is that of `parallel`.

        Args:
            angles: radians, one for each view; may exceed a turn.
            shape: rows, columns.
            pitch: mm between rows and between columns at the detector, or one number for both.
            source_isocentre, source_detector: mm.
            offset: mm by which the detector's middle is shifted, along v and along u (half-fan: the second; along the arc of a curved one).
            roll: radians by which the detector is turned in its own plane, from u to v.
            tilt: radians by which it is turned about u, its rows leaning away from the source.
            arc: columns on a circle about the source.
            rise: mm the gantry climbs in a turn (helix).
            isocentre: mm, at angle 0.

        Raises:
            GeometryError: if the detector lies before the isocentre.
        """
        if not 0 < source_isocentre < source_detector:
            raise GeometryError(f"the isocentre lies between source and detector: {source_isocentre:g} mm from the source is not between 0 and "
                                f"{source_detector:g} mm", "are the two distances swapped?")
        along, ray, up = _frames(angles)
        row_pitch, column_pitch = np.broadcast_to(np.asarray(pitch, dtype=np.float64), 2)
        hub = np.asarray(isocentre, dtype=np.float64) + np.asarray(angles, dtype=np.float64)[:, None] / (2 * np.pi) * rise * up
        source = hub - source_isocentre * ray
        u = np.cos(roll) * along + np.sin(roll) * up
        centre = source + source_detector * ray + (0 if arc else offset[1]) * u
        if arc:
            turn = offset[1] / source_detector
            ray, u = np.cos(turn) * ray + np.sin(turn) * u, np.cos(turn) * u - np.sin(turn) * ray
            centre = source + source_detector * ray
        v = np.cos(tilt) * (np.cos(roll) * up - np.sin(roll) * along) + np.sin(tilt) * ray
        return cls("cone", source, centre + offset[0] * v, column_pitch * u, row_pitch * v, shape, arc)

    @classmethod
    def fan(cls, angles: Sequence[float] | np.ndarray, columns: int, pitch: float, source_isocentre: float, source_detector: float, *,
            offset: float = 0.0, arc: bool = False, isocentre: Sequence[float] = (0.0, 0.0, 0.0)) -> Geometry:
        """A cone beam of one row: a fan, on a flat or curved detector; arguments as in `cone`."""
        return cls.cone(angles, (1, columns), pitch, source_isocentre, source_detector, offset=(0.0, offset), arc=arc, isocentre=isocentre)

    @property
    def views(self) -> int:
        return len(self.source)

    @property
    def size(self) -> int:
        """Number of rays."""
        return self.views * self.shape[0] * self.shape[1]

    @property
    def pitch(self) -> np.ndarray:
        """[V, 2] mm between columns (along u) and between rows (along v)."""
        return np.stack([np.linalg.norm(self.u, axis=1), np.linalg.norm(self.v, axis=1)], 1)

    @property
    def towards(self) -> np.ndarray:
        """[V, 3] unit vectors from the source to the middle of the detector, or along the parallel rays."""
        d = self.source if self.beam == "parallel" else self.centre - self.source
        return d / np.linalg.norm(d, axis=1, keepdims=True)

    @property
    def facing(self) -> np.ndarray:
        """[V, 3] unit vectors from the source to the detector, at right angles to v: the middle radius of a curved detector."""
        v = self.v / self.pitch[:, 1:]
        n = self.towards - (self.towards * v).sum(1, keepdims=True) * v
        return n / np.linalg.norm(n, axis=1, keepdims=True)

    @property
    def radius(self) -> np.ndarray:
        """[V] mm from the source to the detector along `facing`: of a curved detector, its radius."""
        return ((self.centre - self.source) * self.facing).sum(1)

    @property
    def span(self) -> float:
        """Radians that the views cover, from the smallest to the largest angle of their path about its axis, unwrapped."""
        e1, e2 = self.plane
        angle = np.unwrap(np.arctan2(self.towards @ e2, self.towards @ e1))
        return float(np.ptp(angle)) if self.views > 1 else 0.0

    @property
    def plane(self) -> np.ndarray:
        """[2, 3] orthonormal vectors of the plane in which the views' directions turn."""
        return np.linalg.svd(self.towards.T @ self.towards)[2][:2]

    def offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Where column c lies, as A[c] u + B[c] n from the middle: A in steps, B in mm along n = `facing`; B is 0 if flat."""
        steps = np.arange(self.shape[1]) - (self.shape[1] - 1) / 2
        if not self.arc:
            return steps, np.zeros_like(steps)
        radius, pitch = self.radius[0], self.pitch[0, 0]
        angle = steps * pitch / radius
        return np.sin(angle) * radius / pitch, (np.cos(angle) - 1) * radius

    def pixels(self, view: int | slice = slice(None)) -> np.ndarray:
        """World points [V, R, C, 3] mm of the pixel centres of some views (or [R, C, 3] of one)."""
        a, b = self.offsets()
        r = np.arange(self.shape[0]) - (self.shape[0] - 1) / 2
        centre, u, v, n = (array[view][..., None, None, :] for array in (self.centre, self.u, self.v, self.facing))
        return centre + a[:, None] * u + b[:, None] * n + r[:, None, None] * v

    def rays(self, view: int | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Origins and unit directions [V, R, C, 3] of some views: from the focal spot, or, parallel, from the pixel against the beam.

        A parallel ray is a whole line; its origin is the pixel's centre.
        """
        pixels = self.pixels(view)
        source = np.broadcast_to(self.source[view][..., None, None, :], pixels.shape)
        if self.beam == "parallel":
            return pixels, source
        d = pixels - source
        return source, d / np.linalg.norm(d, axis=-1, keepdims=True)

    def at(self, index: Tensor) -> dict[str, Float[Tensor, "N ..."]]:
        """What `LineIntegral` needs of rays by their flat number (view * R + row) * C + column: origin and direction [N, 3], view [N], and
        of a cone, whose rays begin and end, their length [N] mm from the focal spot to the pixel."""
        rows, columns = self.shape
        view, row, column = index // (rows * columns), index // columns % rows, index % columns
        tables = (*self.offsets(), self.centre, self.u, self.v, self.facing, self.source)
        a, b, centre, u, v, n, source = (torch.as_tensor(t.copy(), device=index.device) for t in tables)
        pixel = centre[view] + a[column, None] * u[view] + b[column, None] * n[view] + (row - (rows - 1) / 2)[:, None] * v[view]
        if self.beam == "parallel":
            return {"origin": pixel.float(), "direction": source[view].float(), "view": view}
        way = pixel - source[view]
        length = way.norm(dim=-1)
        return {"origin": source[view].float(), "direction": (way / length[:, None]).float(), "view": view, "length": length.float()}

    def subset(self, views: Sequence[int] | np.ndarray | slice) -> Geometry:
        """Some of the views, in the order given."""
        index = views if isinstance(views, slice) else np.asarray(views)
        return replace(self, **{name: getattr(self, name)[index] for name in ("source", "centre", "u", "v")})

    def followed_by(self, *others: Geometry) -> Geometry:
        """These views, then those of the others, on the same detector.

        Raises:
            GeometryError: if a beam or a detector is another.
        """
        if any((g.beam, g.shape, g.arc, g.frame) != (self.beam, self.shape, self.arc, self.frame) for g in others):
            raise GeometryError("views of different beams, detectors or frames cannot follow one another")
        source, centre, u, v = (np.concatenate([getattr(g, name) for g in (self, *others)]) for name in ("source", "centre", "u", "v"))
        return replace(self, source=source, centre=centre, u=u, v=v)

    def finer(self, columns: int, rows: int = 1) -> Geometry:
        """The same detector with every pixel cut into `columns` x `rows` sub-pixels."""
        return replace(self, u=self.u / columns, v=self.v / rows, shape=(self.shape[0] * rows, self.shape[1] * columns))

    def moved(self, rotation: np.ndarray, shift: np.ndarray, about: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0)) -> Geometry:
        """Views carried by rigid motions: x -> R (x - about) + about + t.

        Args:
            rotation: [3, 3] for all or [V, 3, 3] for each view.
            shift: [3] or [V, 3] mm.
            about: mm.
        """
        turn = np.broadcast_to(rotation, (self.views, 3, 3))
        c = np.asarray(about, dtype=np.float64)

        def point(x: np.ndarray) -> np.ndarray:
            return np.einsum("nij,nj->ni", turn, x - c) + c + shift

        def vector(x: np.ndarray) -> np.ndarray:
            return np.einsum("nij,nj->ni", turn, x)

        source = vector(self.source) if self.beam == "parallel" else point(self.source)
        return replace(self, source=source, centre=point(self.centre), u=vector(self.u), v=vector(self.v))

    def project(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fractional column and row [V, N] at which world points x [N, 3] mm are seen."""
        away = x[None] - (self.centre if self.beam == "parallel" else self.source)[:, None]
        if self.arc:
            radius, f = self.radius[:, None], self.v / self.pitch[:, 1:]
            across, ahead, up = (np.einsum("vnj,vj->vn", away, axis) for axis in (self.u / self.pitch[:, :1], self.facing, f))
            shifted = ((self.centre - self.source) * f).sum(1)[:, None]
            column = np.arctan2(across, ahead) * radius / self.pitch[:, :1]
            row = (up * radius / np.hypot(across, ahead) - shifted) / self.pitch[:, 1:]
        else:
            third = self.source if self.beam == "parallel" else self.centre - self.source
            local = np.einsum("vij,vnj->vni", np.linalg.inv(np.stack([self.u, self.v, third], -1)), away)
            depth = 1.0 if self.beam == "parallel" else local[..., 2]
            column, row = local[..., 0] / depth, local[..., 1] / depth
        return column + (self.shape[1] - 1) / 2, row + (self.shape[0] - 1) / 2

    def sees(self, box: Box) -> np.ndarray:
        """[V] the share of each view's rays that meet the box: 0 where a view looks past it."""
        origin, direction = self.rays()
        lo, hi = np.array(box.lo[:3]), np.array(box.hi[:3])
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (lo - origin) / direction, (hi - origin) / direction
        near, far = np.nanmax(np.minimum(a, b), -1), np.nanmin(np.maximum(a, b), -1)
        if self.beam == "cone":  # nothing is seen behind the source or behind the detector
            near, far = np.maximum(near, 0), np.minimum(far, np.linalg.norm(self.pixels() - origin, axis=-1))
        return (far > near).mean((1, 2))

    def __repr__(self) -> str:
        kind = ("fan" if self.shape[0] == 1 else "cone") if self.beam == "cone" else "parallel"
        pitch = self.pitch[0]
        return f"Geometry({kind}{', arc' if self.arc else ''}, {self.views} views of {self.shape[0]} x {self.shape[1]} pixels of " \
               f"{pitch[1]:.4g} x {pitch[0]:.4g} mm)"


def _frames(angles: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors [V, 3] along the columns, along the central ray, and up, of a gantry at these angles (radians)."""
    angle = np.asarray(angles, dtype=np.float64)
    if angle.ndim != 1 or len(angle) == 0 or not np.isfinite(angle).all():
        raise GeometryError("angles must be finite numbers, one for each view")
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    return np.stack([cos, sin, zero], 1), np.stack([-sin, cos, zero], 1), np.stack([zero, zero, zero + 1], 1)
