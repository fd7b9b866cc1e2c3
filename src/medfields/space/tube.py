"""TubeChart: coordinates along and across a curve, in which a bent tube is straight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.interpolate import make_smoothing_spline
from torch import Tensor, nn

from ..errors import GeometryError, InputError

Smoothing = Literal["polynomial", "spline"]
Points = Float[Tensor, "*batch 3"]
Rows = Float[np.ndarray, "N 3"]
PIECES = 512  # cubics that the curve is made of
DEGREE = 8  # of the polynomial, as published
SPARE = 1.1  # the chart must reach so many radii, for the tube's surroundings
CHUNK = 8192  # points whose distances to all knots are held at once


class TubeChart(nn.Module):
    """q = (s, u, v) in [-1, 1]^3 and back: x = p(s) + 2 R (u U(s) + v V(s)) in mm, p the centreline and R the radius of the tube.

    So the tube is u^2 + v^2 < 1/4. The curve is smoothed, cut at equal arc lengths, and goes on straight at both ends: s is proportional to arc
    length, and -1 and 1 are the ends of what was added. U and V are normals that turn about the curve as little as they can (parallel
    transport, by the double reflections of Wang et al., ACM TOG 2008): U' and V' are along the tangent.

    Args:
        points: of the centreline, mm, in order; at least two.
        radius: mm, of the tube.
        smooth: "polynomial" of degree 8 in each coordinate (van Harten et al., MIDL 2023; of a lower one where there are fewer than 17 points,
            whose ends may bend where the curve does not), or "spline": the cubic of least curvature that is as near the points as `slack` says.
        slack: of a spline: its rms distance from the points, as a share of the radius.
        extend: what is added at each end, as a share of the length.

    Attributes:
        span: mm per unit of s.
        length: mm of the smoothed curve, without what was added.
        reach: mm: from every point that is nearer the curve there is one nearest place on it, and the chart can be inverted.
        rim: the largest sqrt(u^2 + v^2) to which the chart serves: the plane's border, or 95 % of the reach.

    Raises:
        InputError: for points that are too few or not finite, or a radius or extension that is not positive.
        GeometryError: where the curve bends, or comes near itself, so much that the tube would overlap itself.
    """

    pieces: Tensor  # [PIECES, 4, 9]: cubics in the share of the piece that is passed, of p, U and V
    knots: Tensor
    arcs: Tensor

    def __init__(self, points: Rows, radius: float, smooth: Smoothing = "spline", slack: float = 0.05, extend: float = 0.2):
        super().__init__()
        points = np.asarray(points, dtype=np.float64)
        if not (0 < radius < np.inf and 0 < extend <= 10 and 0 < slack <= 10):
            raise InputError(f"a tube needs a radius, a slack and an extension above 0, got {radius:g} mm, {slack:g} and {extend:g}")
        p, tangent, bend, self.length = _by_length(_smoothed(points, smooth, slack * radius))
        normals = _transported(p, tangent)
        slopes = [tangent, *(-(bend * n).sum(-1, keepdims=True) * tangent for n in normals)]
        self.radius, self.step, self.added = float(radius), self.length / PIECES, extend * self.length
        self.span = self.length / 2 + self.added
        more = np.arange(1, int(np.ceil(self.added / self.step)) + 1)[:, None] * self.step
        knots = np.concatenate([p[0] - more[::-1] * tangent[0], p, p[-1] + more * tangent[-1]])
        along = np.concatenate([np.broadcast_to(tangent[0], (len(more), 3)), tangent, np.broadcast_to(tangent[-1], (len(more), 3))])
        self.reach = self._checked(knots, along)
        self.rim = min(1.0, 0.95 * self.reach / (2 * radius))
        arcs = self.step * np.arange(-len(more), PIECES + len(more) + 1)
        pieces = _hermite(np.concatenate([p, *normals], -1), self.step * np.concatenate(slopes, -1))
        for name, value in (("pieces", pieces), ("knots", knots), ("arcs", arcs)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)
        edge = 2 * radius * self.rim + self.step
        self.lo, self.hi = (tuple((f(knots, axis=0) + sign * edge).tolist()) for f, sign in ((np.min, -1), (np.max, 1)))

    def _checked(self, knots: Rows, tangent: Rows) -> float:
        """The reach, if the tube fits into it: the least radius of a circle that touches the curve somewhere and meets it elsewhere (Gonzalez &
        Maddocks, PNAS 1999); it is at most the radius of curvature, and half the distance between two strands."""
        apart = knots[None] - knots[:, None]
        across = np.linalg.norm(np.cross(apart, tangent[:, None]), axis=-1)
        circle = (apart**2).sum(-1) / np.maximum(2 * across, 1e-12)
        np.fill_diagonal(circle, np.inf)
        reach = float(circle.min())
        if reach < SPARE * self.radius:
            i = int(circle.min(1).argmin())
            raise GeometryError(f"the tube of radius {self.radius:g} mm overlaps itself: at ({', '.join(f'{v:.0f}' for v in knots[i])}) mm the "
                                f"centreline bends, or comes near itself, within a radius of {reach:.1f} mm",
                                f"a --tube-radius below {reach / SPARE:.1f} mm, a smoother curve (spline, more --slack), or a shorter --extend")
        return reach

    def to_world(self, q: Points) -> Points:
        """World mm of tube coordinates; differentiable."""
        value, _ = self._along(self.span * (q[..., :1] + 1) - self.added)
        p, u, v = value.split(3, -1)
        return p + 2 * self.radius * (q[..., 1:2] * u + q[..., 2:] * v)

    def from_world(self, x: Points) -> Points:
        """Tube coordinates of world points: the nearest point on the curve, and where x lies in its normal plane. Differentiable; it means
        nothing beyond `rim`."""
        parts = [self._nearest(part) for part in x.reshape(-1, 3).split(CHUNK)]
        return torch.cat(parts).reshape(x.shape) if parts else x

    def jacobian(self, q: Points) -> Float[Tensor, "*batch 3 3"]:
        """d x / d q, mm per unit: its columns are orthogonal, and its determinant vanishes where planes meet."""
        value, slope = self._along(self.span * (q[..., :1] + 1) - self.added)
        (_, u, v), (dp, du, dv) = value.split(3, -1), slope.split(3, -1)
        wide = 2 * self.radius
        return torch.stack([self.span * (dp + wide * (q[..., 1:2] * du + q[..., 2:] * dv)), wide * u, wide * v], -1)

    def holds(self, q: Points) -> Bool[Tensor, "*batch"]:
        """Whether tube coordinates lie inside the tube, what was added included."""
        return (q[..., 1:].square().sum(-1) < 0.25) & (q[..., 0].abs() < 1)

    def near(self, x: Points) -> Bool[Tensor, "*batch"]:
        """Whether world points lie in the upright box around all that the chart serves: a cheap first look."""
        return ((x > x.new_tensor(self.lo)) & (x < x.new_tensor(self.hi))).all(-1)

    def fade(self, q: Points) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 3"]]:
        """1 in the tube, smoothly 0 towards `rim` and over what was added at the ends; and its gradient."""
        end = self.length / (2 * self.span)
        over = torch.stack([(q[..., 0].square() - end**2) / (1 - end**2), (q[..., 1:].square().sum(-1) - 0.25) / (self.rim**2 - 0.25)], -1)
        t = over.clamp(0, 1)
        (a, b), (da, db) = (1 - t * t * (3 - 2 * t)).split(1, -1), (-12 * t * (1 - t)).split(1, -1)
        slope = torch.cat([b * da * q[..., :1] / (1 - end**2), a * db * q[..., 1:] / (self.rim**2 - 0.25)], -1)
        return a * b, slope

    def _along(self, arc: Float[Tensor, "*batch 1"]) -> tuple[Float[Tensor, "*batch 9"], Float[Tensor, "*batch 9"]]:
        """p, U and V at an arc length, and their derivatives by it; beyond the ends the curve is straight and the frame stays."""
        on = arc.clamp(0, self.length)
        index = (on.detach() / self.step).floor().clamp(0, PIECES - 1)
        t = on / self.step - index
        c0, c1, c2, c3 = self.pieces[index[..., 0].long()].to(arc.dtype).unbind(-2)
        value, slope = c0 + t * (c1 + t * (c2 + t * c3)), (c1 + t * (2 * c2 + 3 * t * c3)) / self.step
        beyond = arc - on
        moved = torch.cat([beyond * slope[..., :3], torch.zeros_like(slope[..., 3:])], -1)
        still = torch.cat([slope[..., :3], torch.where(beyond == 0, slope[..., 3:], 0)], -1)
        return value + moved, still

    def _nearest(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Newton's method from the nearest knot. The last step alone is differentiated: at the solution that gives the true slope."""
        with torch.no_grad():
            start = self.arcs.to(x.dtype)[torch.cdist(x, self.knots.to(x.dtype)).argmin(-1)][:, None]
            arc = start
            for _ in range(3):
                arc = self._newton(arc, x)
                # Knots are near enough for no more than one piece; only beyond the last ones anything is possible.
                free = (start <= self.arcs[0]) | (start >= self.arcs[-1])
                arc = torch.where(free, arc, arc.clamp(start - self.step, start + self.step))
        arc = self._newton(arc, x)
        p, u, v = self._along(arc)[0].split(3, -1)
        d = (x - p) / (2 * self.radius)
        return torch.cat([(arc + self.added) / self.span - 1, (d * u).sum(-1, keepdim=True), (d * v).sum(-1, keepdim=True)], -1)

    def _newton(self, arc: Float[Tensor, "N 1"], x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 1"]:
        """A step towards (x - p) . p' = 0."""
        value, slope = self._along(arc)
        (p, u, v), (dp, du, dv) = value.split(3, -1), slope.split(3, -1)
        d = x - p
        sheet = dp + (d * u).sum(-1, keepdim=True) * du + (d * v).sum(-1, keepdim=True) * dv
        return arc + (d * dp).sum(-1, keepdim=True) / (dp * sheet).sum(-1, keepdim=True).clamp_min(0.02)


Curve = Callable[[np.ndarray, int], np.ndarray]


def _smoothed(points: Rows, smooth: Smoothing, slack: float) -> Curve:
    """(t, order) -> [*, 3]: the smoothed curve or a derivative of it, t from 0 to 1 along the chords; `slack` in mm."""
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise InputError("a centreline is a list of points with three finite numbers each, in mm")
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    points = points[np.concatenate([[True], steps > 1e-6 * steps.sum()])] if len(points) > 1 else points
    least = 5 if smooth == "spline" else 2
    if len(points) < least:
        raise InputError(f"a {smooth} needs at least {least} different points of the centreline, got {len(points)}",
                         "--smooth polynomial does with two" if smooth == "spline" else "")
    chords = np.cumsum(np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1)]))
    t = chords / chords[-1]
    if smooth == "spline":
        return _nearest_spline(t, points, slack)
    degree = max(1, min(DEGREE, (len(points) - 1) // 2))
    return _curve([np.polynomial.Chebyshev.fit(t, column, degree, domain=[0, 1]) for column in points.T], "deriv")


def _nearest_spline(t: np.ndarray, points: Rows, slack: float) -> Curve:
    """The natural cubic of least integral of f''^2 among those that leave the points by no more than `slack` mm, rms (Reinsch, 1967)."""
    low, high = -14.0, 4.0  # of log10 of the weight of f''^2
    for _ in range(24):
        middle = (low + high) / 2
        curve = _curve([make_smoothing_spline(t, column, lam=10**middle) for column in points.T], "derivative")
        off = np.sqrt(((curve(t, 0) - points) ** 2).sum(-1).mean())
        low, high = (middle, high) if off <= slack else (low, middle)
    return _curve([make_smoothing_spline(t, column, lam=10**low) for column in points.T], "derivative")


def _curve(parts: list[Any], derivative: str) -> Curve:
    return lambda at, order: np.stack([getattr(f, derivative)(order)(at) if order else f(at) for f in parts], -1)


def _by_length(curve: Curve) -> tuple[Rows, Rows, Rows, float]:
    """Points at equal arc lengths, the unit tangent and the curvature vector (1/mm) there, and the length in mm."""
    fine = np.linspace(0, 1, 32 * PIECES + 1)
    speed = np.linalg.norm(curve(fine, 1), axis=-1)
    if speed.min() < 1e-3 * speed.mean():
        raise GeometryError("the smoothed centreline stops or turns back", "give its points in order, from one end to the other")
    arc = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2)]) * fine[1]
    t = np.interp(np.linspace(0, arc[-1], PIECES + 1), arc, fine)
    d1, d2 = curve(t, 1), curve(t, 2)
    rate = np.linalg.norm(d1, axis=-1, keepdims=True)
    tangent = d1 / rate
    return curve(t, 0), tangent, (d2 - (d2 * tangent).sum(-1, keepdims=True) * tangent) / rate**2, float(arc[-1])


def _transported(p: Rows, tangent: Rows) -> tuple[Rows, Rows]:
    """Two normals at every point, carried along without twist: each step reflects the frame twice."""
    first = np.cross(tangent[0], np.eye(3)[np.abs(tangent[0]).argmin()])
    normal = [first / np.linalg.norm(first)]
    for k in range(len(p) - 1):
        chord = p[k + 1] - p[k]
        r, t = (w - 2 * (w @ chord) / (chord @ chord) * chord for w in (normal[-1], tangent[k]))
        turn = tangent[k + 1] - t
        r = r - 2 * (r @ turn) / (turn @ turn) * turn if turn @ turn > 1e-24 else r
        r = r - (r @ tangent[k + 1]) * tangent[k + 1]
        normal.append(r / np.linalg.norm(r))
    u = np.stack(normal)
    return u, np.cross(tangent, u)


def _hermite(value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """[M + 1, C] values and slopes per piece at the knots -> [M, 4, C] coefficients of the cubics between them, lowest power first."""
    a, b, da, db = value[:-1], value[1:], slope[:-1], slope[1:]
    return np.stack([a, da, 3 * (b - a) - 2 * da - db, 2 * (a - b) + da + db], 1)
