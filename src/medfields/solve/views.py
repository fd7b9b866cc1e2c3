"""More views than were measured: where they lie, between the measured ones or all around, and what an image says they would have seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import expm, logm
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..cases import Projections
from ..errors import GeometryError, InputError
from ..operators.projections import Projector
from ..space import Geometry, Volume
from ..space.orbit import field_of_view
from .fbp import Orbit


@dataclass(frozen=True, eq=False)
class Dense:
    """Measured views in their order about a gantry's axis, and as many as wanted between them.

    Args:
        geometry: of all N views, measured and new, in order.
        angle: [N] radians from the first.
        measured: [V] where among the N each measured view is, in the order of the case.
        closing: angle and geometry of the view that follows the last and repeats the first one (parallel, after half a turn: its mirror
            image); None if the views do not close a turn.
    """

    geometry: Geometry
    angle: np.ndarray
    measured: np.ndarray
    closing: tuple[float, Geometry] | None


def denser(geometry: Geometry, times: int) -> Dense:
    """Views that cut every step of a rigid gantry on a circle into `times` equal parts; also the step that closes the turn, if it is one.

    A view between two measured ones is the earlier, carried by a part of the screw motion M from one to the next: exp(s log M). It lies where
    the gantry was in between, so that views can be interpolated; beyond the first and the last nothing is made (`completed` does).

    Raises:
        InputError: for fewer than two views, or times < 1.
        GeometryError: if the gantry is not on a circle or not rigid, repeats a view, or steps by half a turn or more.
    """
    if times < 1 or geometry.views < 2:
        raise InputError(f"views between {geometry.views} views, {times} times as dense, cannot be placed", "two views or more")
    angle, order = _in_order(Orbit.of(geometry).angle)
    steps = np.diff(angle)
    if steps.min() < 1e-6 or steps.max() > 0.99 * np.pi:
        raise GeometryError(f"steps from view to view of {np.degrees(steps.min()):.3g} to {np.degrees(steps.max()):.3g} degrees leave no way between",
                            "every view once, and less than half a turn apart")
    views = geometry.subset(order)
    motion = np.stack([logm(m).real for m in _motions(views)])
    turn = np.pi if geometry.beam == "parallel" and angle[-1] < np.pi - 1e-6 else 2 * np.pi
    rest = turn - angle[-1]
    closes = 1e-6 < rest < 1.5 * steps.max()
    if closes:
        motion, steps = np.concatenate([motion, motion[-1:] * rest / steps[-1]]), np.append(steps, rest)
    parts = np.arange(times) / times
    base = np.repeat(np.arange(len(steps)), times)
    moves = np.stack([expm(s * m) for m in motion for s in parts])
    dense, at = views.subset(base).moved(moves[:, :3, :3], moves[:, :3, 3]), (angle[:len(steps), None] + parts * steps[:, None]).reshape(-1)
    closing = None
    if closes:
        last = expm(motion[-1])
        closing = (turn, views.subset([-1]).moved(last[:3, :3], last[:3, 3]))
    else:
        dense, at = dense.followed_by(views.subset([-1])), np.append(at, angle[-1])
    measured = np.empty(geometry.views, dtype=int)
    measured[order] = np.arange(geometry.views) * times
    return Dense(dense, at, measured, closing)


def _in_order(angle: Float[np.ndarray, "V"]) -> tuple[np.ndarray, np.ndarray]:
    """Angles from the first view, rising, and the order that makes them so; the first follows the widest gap, of equal gaps that before view 0."""
    order = np.argsort(angle % (2 * np.pi))
    rising = (angle % (2 * np.pi))[order]
    gaps = np.diff(rising, prepend=rising[-1] - 2 * np.pi)
    widest = order[gaps > gaps.max() - 1e-6]
    first = 0 if 0 in widest else widest[0]
    since = np.mod(angle - angle[first], 2 * np.pi)
    since[first] = 0.0
    order = np.argsort(since, kind="stable")
    return since[order], order


def _motions(views: Geometry) -> Float[np.ndarray, "n 4 4"]:
    """The rigid motion from each view to the next."""
    frames = np.tile(np.eye(4), (views.views, 1, 1))
    frames[:, :3, 0], frames[:, :3, 1], frames[:, :3, 2] = views.u, views.v, views.towards * views.pitch[:, :1]
    frames[:, :3, 3] = views.centre
    moves = frames[1:] @ np.linalg.inv(frames[:-1])
    turn = moves[:, :3, :3]
    rigid = np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max() < 1e-3
    if views.beam == "cone":
        carried = np.einsum("nij,nj->ni", turn, views.source[:-1]) + moves[:, :3, 3]
        rigid = rigid and np.abs(carried - views.source[1:]).max() < 1e-2 * views.pitch.max()
    if not rigid:
        raise GeometryError("source and detector do not move as one rigid gantry, so no view between two of them is known")
    return moves


def completed(geometry: Geometry, views: int) -> tuple[Geometry, Bool[np.ndarray, "N"]]:
    """The measured views, and new ones that fill their half turn (parallel) or turn (cone) to about `views` equal steps.

    A new view is the nearest measured one, turned about the axis of the views' directions through the middle of what they see. Unlike
    `denser` it covers what the gantry never reached, and takes any orbit, if only as one that could have been.

    Returns:
        All views, measured first, and which of them were measured.
    """
    e1, e2 = geometry.plane
    axis, turn = np.cross(e1, e2), np.pi if geometry.beam == "parallel" else 2 * np.pi
    have = np.arctan2(geometry.towards @ e2, geometry.towards @ e1)
    step = turn / views
    wanted = have[0] + step * np.arange(views)
    away = np.mod(wanted[:, None] - have + turn / 2, turn) - turn / 2
    nearest = np.abs(away).argmin(1)
    by = away[np.arange(views), nearest]
    new = np.abs(by) > 0.5 * step
    if not new.any():
        return geometry, np.ones(geometry.views, dtype=bool)
    rotation = Rotation.from_rotvec(by[new, None] * axis).as_matrix()
    whole = geometry.followed_by(geometry.subset(nearest[new]).moved(rotation, np.zeros(3), field_of_view(geometry)[0]))
    return whole, np.arange(whole.views) < geometry.views


def closed(case: Projections, path: Dense) -> tuple[Float[Tensor, "V R C"], Float[Tensor, "V R C"], np.ndarray]:
    """The measured views in order, with weights and angles [V]; where they close a turn, the first (or its mirror image) once more at its end."""
    order = np.argsort(path.measured)
    data, weight, angle = case.clean[order], case.weight[order], path.angle[path.measured[order]]
    if path.closing is None:
        return data, weight, angle
    at, view = path.closing
    column, row = (torch.as_tensor(c.reshape(case.geometry.shape)) for c in case.geometry.subset(order[:1]).project(view.pixels(0).reshape(-1, 3)))
    row, low = row.round().long().clamp(0, data.shape[1] - 1), (column + 1e-6).floor()
    share, left = (column - low).clamp_min(0).float(), low.long().clamp(0, data.shape[2] - 1)
    right = (left + 1).clamp_max(data.shape[2] - 1)
    seen = ((column > -0.01) & (column < data.shape[2] - 0.99)).to(weight) * weight[0, row, left] * weight[0, row, right]
    again = (1 - share) * data[0, row, left] + share * data[0, row, right]
    return torch.cat([data, again[None]]), torch.cat([weight, seen[None]]), np.append(angle, at)


@torch.no_grad()
def reprojected(case: Projections, image: Volume, geometry: Geometry, measured: np.ndarray) -> Projections:
    """The case with the views of `geometry`: what they see of the image, and the `measured` among them as they are where they can be trusted."""
    data = Projector(image.grid, geometry).apply(image.data[0].cpu())
    data[measured] = torch.where(case.weight > 0, case.clean, data[measured])
    return replace(case, data=data, geometry=geometry, good=None)
