"""Filtered backprojection: parallel beams, fans and circular cone beams, from full, short and half-fan scans with even or uneven angles.

What a geometry is, it says by its poses: `Orbit.of` finds the axis, the radius and the fan angles, or says why there is no such orbit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..cases import Projections
from ..errors import GeometryError
from ..kernels.backproject import backproject
from ..operators.projections import Projector
from ..space import Geometry
from ..space.orbit import field_of_view

Window = Literal["ramp", "hann", "cosine"]
HINT = "sirt, cgls, os-sart, asd-pocs and pdhg-tv take any geometry"
GAP = 3.0  # a gap between views of more than so many usual ones is a part of the circle that was not scanned


@dataclass(frozen=True, eq=False)
class Orbit:
    """A scan whose views turn in a plane about an axis.

    Args:
        angle: [V] radians, the direction of the ray through the axis; the direction of any ray is angle + fan.
        fan: [C] radians from the ray through the axis; in a parallel beam mm from the axis.
        cosine: [R, C] by which a ray's value is multiplied before the filter.
        pitch: of the filter: mm between columns, or radians on a curved detector.
        scale: of the backprojection (distances enter here).
        parallel, arc: kind of beam and detector.
    """

    angle: np.ndarray
    fan: np.ndarray
    cosine: np.ndarray
    pitch: float
    scale: float
    parallel: bool
    arc: bool

    @classmethod
    def of(cls, g: Geometry, tolerance: float = 2e-3) -> Orbit:
        """Find the orbit in the poses.

        Raises:
            GeometryError: if the views do not turn in a plane about an axis along the detector's columns of pixels (v), or, of a cone
                beam, not on a circle with the detector facing the axis. Lengths may be off by `tolerance` times the radius.
        """
        e, f = g.u / g.pitch[:, :1], g.v / g.pitch[:, 1:]
        axis = f.mean(0) / max(np.linalg.norm(f.mean(0)), 1e-12)
        facing = np.cross(e, f) * np.sign((np.cross(e, f) * g.towards).sum(1))[:, None]
        _require((f @ axis > 1 - tolerance**2).all(), "its detector is tilted or rolled, or turns about another axis than along its rows' step")
        _require((abs(e @ axis) < tolerance).all(), "the rows of its detector are not square to the axis")
        _require(np.ptp(g.pitch, 0).max() < tolerance * g.pitch.min(), "its pitch changes from view to view")
        steps, heights = g.offsets()[0], (np.arange(g.shape[0]) - (g.shape[0] - 1) / 2) * g.pitch[0, 1]
        if g.beam == "parallel":
            _require((abs(g.source @ axis) < tolerance).all(), "its rays are not square to the axis")
            shift = ((g.centre - field_of_view(g)[0]) * e).sum(1).mean()
            pitch = float(g.pitch[0, 0])
            return cls(_angle(g.source, axis), steps * pitch + shift, np.ones(g.shape), pitch, 1.0, True, False)
        hub, radius = _circle(g.source, axis, tolerance)
        inward = (hub - g.source) / radius
        level = ((g.centre - g.source) @ axis).mean()
        if g.arc:
            reach = float(np.linalg.norm(g.centre - g.source - level * axis, axis=1).mean())
            turn = np.arctan2(-(inward * e).sum(1), (inward * g.towards).sum(1))
            fan, pitch = (np.arange(g.shape[1]) - (g.shape[1] - 1) / 2) * g.pitch[0, 0] / reach + turn.mean(), float(g.pitch[0, 0]) / reach
            _require(np.ptp(turn) < tolerance, "its detector is shifted from view to view")
            cosine, scale = radius * np.cos(fan) * (reach / np.hypot(reach, heights + level))[:, None], reach**-2
        else:
            reach, shift = ((g.centre - g.source) * facing).sum(1).mean(), ((g.centre - g.source) * e).sum(1)
            _require((np.linalg.norm(np.cross(facing, inward), axis=1) < tolerance).all(), "its detector does not face the axis")
            _require(np.ptp(shift) < tolerance * radius, "its detector is shifted from view to view")
            across, pitch = steps * g.pitch[0, 0] + shift.mean(), float(g.pitch[0, 0])
            fan = np.arctan(across / reach)
            cosine, scale = reach / np.sqrt(reach**2 + across**2 + (heights + level)[:, None] ** 2), radius / reach
        sense = np.sign((np.cross(inward, e) @ axis).mean())
        return cls(_angle(inward, axis), sense * fan, cosine, pitch, float(scale), False, g.arc)

    def weights(self) -> tuple[Float[np.ndarray, "V C"], str]:
        """Radians that each view stands for, times the share of each ray in the line it measures; and the kind of scan.

        Full turn: a half each. Full turn with the detector on one side (half-fan): Wang, Med. Phys. 2002. Less than a turn of a fan:
        Parker, Med. Phys. 1982, with the fan angle widened to what was scanned (Silver, Med. Phys. 2000). Parallel: all count alike.
        """
        start, gap, usual = scanned(self.angle)
        full, one_sided = gap <= GAP * usual, self._one_sided()
        if full and one_sided:
            return angular_weights(self.angle, 2 * np.pi)[:, None] * self._wang(), "half-fan"
        if self.parallel:
            _, gap, usual = scanned(self.angle, np.pi)
            kind = "half turn" if gap <= GAP * usual else "limited angle"
            return np.broadcast_to(angular_weights(self.angle, np.pi)[:, None], (len(self.angle), len(self.fan))), kind
        share = angular_weights(self.angle, 2 * np.pi)[:, None]
        if full:
            return 0.5 * np.broadcast_to(share, (len(self.angle), len(self.fan))), "full turn"
        span = 2 * np.pi - gap + usual  # a view stands for half a step on both sides
        kind = "short scan" if span >= np.pi + 2 * abs(self.fan).max() - 1e-6 else "limited angle"
        return share * parker((self.angle - start) % (2 * np.pi) + usual / 2, self.fan, span), kind

    def _one_sided(self) -> bool:
        near, far = sorted((-self.fan.min(), self.fan.max()))
        return bool(near < 0.9 * far)

    def _wang(self) -> np.ndarray:
        """[C] shares that rise from 0 to 1 over the part of the detector that sees both sides of the axis."""
        far = 1.0 if self.fan.max() > -self.fan.min() else -1.0
        both = (far * -self.fan).max()
        return np.where(far * self.fan > 0, 1.0, 0.0) if both <= 0 else 0.5 * (1 + np.sin(np.pi / 2 * np.clip(far * self.fan / both, -1, 1)))


def parker(angle: Float[np.ndarray, "V"], fan: Float[np.ndarray, "C"], span: float) -> Float[np.ndarray, "V C"]:
    """Shares of rays in a scan over `span` radians that begins at angle 0; those of a line that is measured twice add up to 1.

    Parker, Med. Phys. 1982, with (span - pi) / 2 for the half fan angle; a ray of direction angle + fan.
    """
    b, g, delta = angle[:, None], fan[None, :], (span - np.pi) / 2
    rise = np.sin(np.pi / 4 * np.clip(b / np.maximum(delta - g, 1e-9), 0, 2)) ** 2
    fall = np.sin(np.pi / 4 * np.clip((span - b) / np.maximum(delta + g, 1e-9), 0, 2)) ** 2
    return np.where(b < 2 * (delta - g), rise, np.where(b > np.pi - 2 * g, fall, 1.0))


def angular_weights(angle: Float[np.ndarray, "V"], turn: float) -> Float[np.ndarray, "V"]:
    """Radians that each view stands for on a circle of circumference `turn`: half the gaps to its neighbours; a part that was not scanned
    counts as a usual gap. Angles in any order, repeated ones share."""
    order = np.argsort(angle % turn, kind="stable")
    _, largest, usual = scanned(angle, turn)
    gaps = np.diff((angle % turn)[order], append=np.min(angle % turn) + turn)
    if largest > GAP * usual:
        gaps[gaps.argmax()] = usual
    out = np.empty(len(angle))
    out[order] = (gaps + np.roll(gaps, 1)) / 2
    return out


def scanned(angle: Float[np.ndarray, "V"], turn: float = 2 * np.pi) -> tuple[float, float, float]:
    """Where on the circle the views begin, behind the largest gap; its size, and the mean of the others that are not 0."""
    a = np.sort(angle % turn)
    gaps = np.diff(a, append=a[0] + turn)
    k = int(gaps.argmax())
    others = np.delete(gaps, k)
    others = others[others > 1e-6]
    return float(a[(k + 1) % len(a)]), float(gaps[k]), float(others.mean()) if len(others) else float(gaps[k])


def _require(fulfilled: bool | np.bool_, what: str) -> None:
    if not fulfilled:
        raise GeometryError(f"filtered backprojection needs views that turn in a plane about an axis; of this scan, {what}", HINT)


def _angle(direction: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """[V] radians of directions about an axis."""
    first = direction[0] - (direction[0] @ axis) * axis
    first = first / np.linalg.norm(first)
    return np.arctan2(direction @ np.cross(axis, first), direction @ first)


def _circle(points: np.ndarray, axis: np.ndarray, tolerance: float) -> tuple[np.ndarray, float]:
    """Centre and radius of the circle about `axis` through points [V, 3], by linear least squares."""
    plane = np.linalg.svd(axis[None])[2][1:]
    x = (points - points.mean(0)) @ plane.T
    _require(len(points) > 2 and np.linalg.matrix_rank(x, 1e-9 * max(1.0, abs(x).max())) == 2, "the source does not turn")
    c = np.linalg.lstsq(np.concatenate([2 * x, np.ones((len(x), 1))], 1), (x * x).sum(1), rcond=None)[0]
    radius = float(np.sqrt(c[2] + c[:2] @ c[:2]))
    off = np.concatenate([np.linalg.norm(x - c[:2], axis=1) - radius, (points - points.mean(0)) @ axis])
    _require((abs(off) < tolerance * radius).all(), "the source does not stay on a circle")
    # Every source looks at the axis from its own height, so that `inward` is square to it.
    return points.mean(0) + c[:2] @ plane + ((points - points.mean(0)) @ axis)[:, None] * axis, radius


def filtered(rows: Float[Tensor, "V R C"], pitch: float, window: Window, arc: bool = False) -> Float[Tensor, "V R C"]:
    """Rows convolved with the ramp filter, band-limited to the pitch (Kak & Slaney 1988, chapter 3, eq. 61; on an arc times (angle / sin angle)^2).

    Args:
        rows: values at columns one pitch apart.
        pitch: mm, or radians on an arc.
        window: of the frequencies: "ramp" (none), "hann" or "cosine"; the latter two are 0 and smooth at the highest one.
        arc: columns at equal angles.
    """
    n = 2 ** int(np.ceil(np.log2(max(2 * rows.shape[-1], 4))))
    k = np.minimum(np.arange(n), n - np.arange(n))
    h = np.where(k % 2 == 1, -1 / (np.pi * np.maximum(k, 1)) ** 2, 0.0) / pitch
    h[0] = 0.25 / pitch
    if arc:
        t = np.where(k < rows.shape[-1], k, 0) * pitch
        h = h / np.sinc(t / np.pi) ** 2
    share = np.arange(n // 2 + 1) / (n // 2)
    response = np.fft.rfft(h).real * {"ramp": 1 + 0 * share, "hann": 0.5 + 0.5 * np.cos(np.pi * share), "cosine": np.cos(np.pi / 2 * share)}[window]
    spectrum = torch.fft.rfft(rows, n) * torch.as_tensor(response, dtype=rows.dtype, device=rows.device)
    return torch.fft.irfft(spectrum, n)[..., : rows.shape[-1]]


def filled(case: Projections) -> Float[Tensor, "V R C"]:
    """The data, with pixels that are not to be trusted filled in linearly along the row; rows without a trusted one take the nearest that has."""
    if case.good is None:
        return case.data
    data, good = case.clean.cpu().numpy().astype(np.float64), case.good.cpu().numpy()
    columns = np.arange(data.shape[2])
    for rows, trusted in zip(data, good, strict=True):
        useful = np.flatnonzero(trusted.any(1))
        for r in useful:
            rows[r] = np.interp(columns, columns[trusted[r]], rows[r, trusted[r]])
        for r in np.flatnonzero(~trusted.any(1)) if len(useful) else []:
            rows[r] = rows[useful[abs(useful - r).argmin()]]
    return torch.as_tensor(data, dtype=case.data.dtype)


def filtered_backprojection(case: Projections, window: Window = "hann", device: torch.device | str = "cpu") -> tuple[Float[Tensor, "I J K"], str]:
    """The attenuation on the case's grid, 1/mm, and the kind of scan. Views without a trusted pixel are left out.

    Raises:
        GeometryError: if the views do not follow a circular orbit.
    """
    if case.good is not None:
        case = case.subset(np.flatnonzero(case.good.any(2).any(1).cpu().numpy()))
    geometry, orbit = case.geometry, Orbit.of(case.geometry)
    share, kind = orbit.weights()
    q = filled(case) * torch.as_tensor(share[:, None, :] * orbit.cosine, dtype=torch.float32)
    if kind == "half-fan":  # what the filter spreads beyond the near edge of the detector is needed there
        more = int(np.ceil(abs(orbit.fan.min() + orbit.fan.max()) / abs(np.diff(orbit.fan)).min()))
        q, geometry = torch.nn.functional.pad(q, (more, more)), replace(geometry, shape=(geometry.shape[0], geometry.shape[1] + 2 * more))
    q = filtered(q.to(device), orbit.pitch, window, orbit.arc)
    return orbit.scale * backproject(q, Projector(case.grid, geometry).table, case.grid.shape), kind
