"""Nearest-voxel compounding: every pixel goes into the voxel that it lies in, a voxel is the mean of its pixels, and holes are bridged.

What tracking software makes of a sweep (PLUS, 3D Slicer). A voxel that no pixel hits is looked for along 13 lines; on the shortest stick that
has hits at both ends it is their mean, weighted by nearness. What no stick reaches stays 0.

Needs: frames with their poses.
Gives: grey values on the output grid.
Use when: you want the pixels as they are, at once. compounding predicts what lies between frames better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn

from ..cases import Sweep
from ..solve import Method, Run
from ..space import Volume

# One of each pair of opposite steps to the 26 neighbours.
LINES = [d for d in np.ndindex(3, 3, 3) if d > (1, 1, 1)]


@dataclass(frozen=True)
class Nearest(Method):
    """Lasso et al. 2014; Gobbi and Peters, MICCAI 2002.

    Args:
        stick: voxels from a hole to each end of the sticks that may bridge it.
    """

    paper: ClassVar[str] = (
        "Andras Lasso and Tamas Heffter and Adam Rankin and Csaba Pinter and Tamas Ungi and Gabor Fichtinger: PLUS: Open-Source Toolkit for "
        "Ultrasound-Guided Intervention Systems. IEEE Transactions on Biomedical Engineering 2014. doi:10.1109/TBME.2014.2322864")
    task: ClassVar[str] = "ultrasound"
    tiny: ClassVar[dict[str, Any]] = {}
    fidelity: ClassVar[str] = "classical"

    stick: int = 9

    @torch.no_grad()
    def solve(self, case: Sweep, run: Run, prior: nn.Module | None = None) -> Volume:
        shape, size = case.grid.shape, case.grid.size
        total, hits = np.zeros(size), np.zeros(size)
        for n in range(len(case.frames)):
            index = np.floor(case.grid.index(case.points(n).double().numpy()) + 0.5).astype(int)
            inside = ((index >= 0) & (index < shape)).all(1)
            at = np.ravel_multi_index(tuple(index[inside].T), shape)
            total += np.bincount(at, case.frames[n][case.mask].numpy()[inside], size)
            hits += np.bincount(at, minlength=size)
        mean = (total / np.maximum(hits, 1)).reshape(shape).astype(np.float32)
        seen = (hits > 0).reshape(shape)
        run.note(voxels_hit=float(seen.mean()))
        return Volume(bridged(mean, seen, self.stick), case.grid, case.unit)


def bridged(values: Float[np.ndarray, "I J K"], seen: Bool[np.ndarray, "I J K"], reach: int) -> Float[np.ndarray, "I J K"]:
    """Values with holes filled along the shortest stick that has seen voxels at both ends, at most `reach` steps away; 0 where there is none."""
    best, out = np.full(values.shape, np.inf), np.where(seen, values, 0)
    for line in LINES:
        step = np.array(line) - 1
        (near, a), (far, b) = (_first_seen(values, seen, sign * step, reach) for sign in (1, -1))
        length = (near + far) * np.linalg.norm(step)
        better = ~seen & (length < best)
        out[better] = (a[better] * far[better] + b[better] * near[better]) / (near + far)[better]
        best[better] = length[better]
    return out


def _first_seen(values: np.ndarray, seen: np.ndarray, step: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each voxel, how many steps it is to the next seen voxel (infinite beyond `reach`), and the value there."""
    away, found = np.full(values.shape, np.inf), np.zeros_like(values)
    for n in range(1, reach + 1):
        shift = n * step
        if (np.abs(shift) >= values.shape).any():
            break
        here = tuple(slice(max(0, -s), min(m, m - s)) for s, m in zip(shift, values.shape, strict=True))
        there = tuple(slice(max(0, s), min(m, m + s)) for s, m in zip(shift, values.shape, strict=True))
        new = seen[there] & (away[here] == np.inf)
        away[here][new], found[here][new] = n, values[there][new]
    return away, found
