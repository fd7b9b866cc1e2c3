"""Scattered interpolation: all pixels where their headers put them, and linear between them.

The convex hull of the pixels is cut into tetrahedra (Delaunay), and inside each the value is the linear one of its four corners; beyond the hull
it is that of the nearest pixel. Slices count as thin, and nobody asks whether they lie right.

Needs: slices, thin ones.
Gives: intensity on the result's grid; in the run's notes the poses, all of them at rest.
Use when: slices were tracked, or to see what poses are worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import cKDTree
from torch import nn

from ..cases import Slices
from ..solve import Method, Run
from ..solve.motion import Found
from ..solve.settle import noted
from ..space import Volume


@dataclass(frozen=True)
class Scattered(Method):
    """Delaunay and linear."""

    paper: ClassVar[str] = (
        "C. Bradford Barber and David P. Dobkin and Hannu Huhdanpaa: The Quickhull algorithm for convex hulls. ACM Transactions on Mathematical "
        "Software 1996. doi:10.1145/235815.235821")
    task: ClassVar[str] = "motion"
    tiny: ClassVar[dict[str, Any]] = {}
    fidelity: ClassVar[str] = "classical"

    def solve(self, case: Slices, run: Run, prior: nn.Module | None = None) -> Volume:
        x, value = case.points(), case.pixels()[2].double().numpy()
        at = case.grid.points().double().numpy().reshape(-1, 3)
        found = LinearNDInterpolator(x, value)(at)
        beyond = np.isnan(found)
        found[beyond] = value[cKDTree(x).query(at[beyond])[1]]
        noted(run, case, Found.at(np.tile(np.eye(4), (len(case.slices), 1, 1))))
        return Volume(torch.from_numpy(found.reshape(case.grid.shape)).float(), case.grid, case.unit)
