"""Scores of a subject rebuilt from slices that moved.

Slices tell how they lie against one another, not where the subject lies in the world: a result may be turned and shifted as a whole. So the
rigid map G is found that carries true poses best to the poses that were found, and the truth, not the result, is read where G puts it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from ..cases import Slices
from ..solve.motion import Level, covering, laid, placed, rigid_between
from ..space import Grid, Volume

Poses = Float[np.ndarray, "N 4 4"]
PAD = 16  # voxels of mirrored border, so that the spline's own boundary condition is not felt
EVERY = 7  # pixels: of each slice, one in so many tells how far it is off


def frame(case: Slices, found: Poses, true: Poses) -> Float[np.ndarray, "4 4"]:
    """G: the rigid map for which G @ true is most like found, as told by the median: least absolute distances, by reweighting."""
    a, b = placed(case, true, EVERY), placed(case, found, EVERY)
    weight = np.ones(len(a))
    g = np.eye(4)
    for _ in range(20):
        g = rigid_between(a, b, weight)
        weight = 1 / np.maximum(np.linalg.norm(a @ g[:3, :3].T + g[:3, 3] - b, axis=1), 0.05)
    return g


def errors(case: Slices, found: Poses, true: Poses) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Of every slice: the mean distance of its pixels from where they are in truth (mm), and the angle it is turned by (degrees)."""
    g = frame(case, found, true)
    of = np.concatenate([np.full(int(s.mask.sum()), n) for n, s in enumerate(case.slices)])[::EVERY]
    far = np.linalg.norm(placed(case, g @ true, EVERY) - placed(case, found, EVERY), axis=1)
    apart = found[:, :3, :3] @ np.swapaxes((g @ true)[:, :3, :3], 1, 2)
    turned = np.degrees(np.linalg.norm(Rotation.from_matrix(apart).as_rotvec(), axis=1))
    return np.bincount(of, far) / np.maximum(np.bincount(of), 1), turned


def truth_at(truth: Volume, grid: Grid, g: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "I J K"]:
    """The truth carried by g, by quintic splines."""
    spline = scipy.ndimage.spline_filter(np.pad(truth.data[0].numpy().astype(np.float64), PAD, mode="reflect"), order=5, mode="mirror")
    back = np.linalg.inv(g)
    index = truth.grid.index(grid.points().double().numpy().reshape(-1, 3) @ back[:3, :3].T + back[:3, 3]) + PAD
    return scipy.ndimage.map_coordinates(spline, index.T, order=5, prefilter=False).reshape(grid.shape)


def pose_scores(case: Slices, found: Poses, true: Poses, worth: Float[np.ndarray, "N"], bad: np.ndarray) -> dict[str, Any]:
    """Errors of the poses of good slices, as they were and as they were found; which slices were left out, rightly and wrongly."""
    rest = np.tile(np.eye(4), (len(true), 1, 1))
    (mm, degrees), (mm_before, degrees_before) = errors(case, found, true), errors(case, rest, true)
    good = ~bad
    return {"mm": float(np.median(mm[good])), "degrees": float(np.median(degrees[good])), "mm_p90": float(np.quantile(mm[good], 0.9)),
            "mm_before": float(np.median(mm_before[good])), "degrees_before": float(np.median(degrees_before[good])),
            "caught": int((worth[bad] == 0).sum()), "corrupted": int(bad.sum()), "lost": int((worth[good] == 0).sum())}


def predicted(shown: Slices, poses: Poses, hidden: Slices, result: Volume) -> dict[str, float]:
    """How well slices that a method never saw are foretold by its result: the means of their correlation and of their PSNR (dB).

    Where a hidden slice lay is found by laying it on the result, from the poses of its neighbours in its stack: nobody else knows it. Its gain is
    fitted, its range is that of its pixels.
    """
    offset, scale = shown.level()
    lattice, _ = covering(result.grid, placed(shown, poses), hidden.reach() + 5)
    edge = Volume((result.data - offset) / scale, result.grid).on(lattice).data[0]
    level = Level(hidden, lattice, offset, scale)
    order, stack = np.array([s.order for s in shown.slices]), shown.stack
    best = np.full(len(hidden.slices), -np.inf)
    psnr = np.zeros(len(best))
    for side in (-1, 1):
        near = [_neighbour(order, stack, s.order, s.stack, side) for s in hidden.slices]
        start = poses[near]
        found, gain, _ = laid(level, edge, start, torch.ones_like(level.y), start, np.arange(len(near)), np.full(len(near), 0.1), 0.05, 15)
        shows = level.operator(found).apply(edge)
        alike, error = level.likeness(shows), level.sums((level.y - level.spread(gain) * shows).square()) / level.count
        span = np.array([float(s.values[s.mask].max() - s.values[s.mask].min()) / scale for s in hidden.slices])
        psnr, best = np.where(alike > best, -10 * np.log10(error / span**2), psnr), np.maximum(alike, best)
    return {"ncc": float(best.mean()), "psnr": float(psnr.mean()), "held_out": len(best)}


def _neighbour(orders: np.ndarray, stacks: np.ndarray, order: int, stack: int, side: int) -> int:
    """The next slice of a stack on one side; on the other where there is none."""
    own = np.flatnonzero(stacks == stack)
    beyond = own[side * (orders[own] - order) > 0]
    own = beyond if len(beyond) else own
    return int(own[np.argmin(np.abs(orders[own] - order))])
