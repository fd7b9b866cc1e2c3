"""Scattered interpolation: all pixels where their headers put them, and between them the mean of the nearest ones, weighed by a Gaussian.

Slices count as thin, and nobody asks whether they lie right. `--between linear` cuts the convex hull of the pixels into tetrahedra (Delaunay) and
is linear in each; beyond the hull it takes the nearest pixel. That is sharper where poses are right, and worse where they are not.

Needs: slices, thin ones.
Gives: intensity on the result's grid; in the run's notes the poses, all of them at rest.
Use when: slices were tracked, or to see what poses are worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import cKDTree
from torch import nn

from ..cases import Slices
from ..solve import Method, Run
from ..solve.motion import Found
from ..solve.settle import noted
from ..space import Volume

CHUNK = 1 << 16  # points whose neighbours are held at once


@dataclass(frozen=True)
class Scattered(Method):
    """Both kinds take a pixel for a point.

    Args:
        between: "gauss", the mean of the nearest pixels, or "linear".
        neighbours: how many pixels a mean is of.
        sigma: of the Gaussian, in pixels.
    """

    paper: ClassVar[str] = (
        "C. Bradford Barber and David P. Dobkin and Hannu Huhdanpaa: The Quickhull algorithm for convex hulls. ACM Transactions on Mathematical "
        "Software 1996. doi:10.1145/235815.235821")
    task: ClassVar[str] = "motion"
    tiny: ClassVar[dict[str, Any]] = {"neighbours": 8}
    fidelity: ClassVar[str] = "classical"

    between: Literal["gauss", "linear"] = "gauss"
    neighbours: int = 64
    sigma: float = 2.0

    def solve(self, case: Slices, run: Run, prior: nn.Module | None = None) -> Volume:
        x, value = case.points(), case.pixels()[2].double().numpy()
        at = case.grid.points().double().numpy().reshape(-1, 3)
        if self.between == "linear":
            found = LinearNDInterpolator(x, value)(at)
            beyond = np.isnan(found)
            found[beyond] = value[cKDTree(x).query(at[beyond])[1]]
        else:
            tree = cKDTree(x)
            parts = []
            for some in np.array_split(at, 1 + len(at) // CHUNK):
                far, which = tree.query(some, min(self.neighbours, len(x)))
                parts.append(self._mean(far, which, value, case.pixel))
            found = np.concatenate(parts)
        noted(run, case, Found.at(np.tile(np.eye(4), (len(case.slices), 1, 1))))
        return Volume(torch.from_numpy(found.reshape(case.grid.shape)).float(), case.grid, case.unit)

    def _mean(self, far: Float[np.ndarray, "P K"], which: Int[np.ndarray, "P K"], value: Float[np.ndarray, "N"],
              pixel: float) -> Float[np.ndarray, "P"]:
        """Of the nearest pixels; distances count from the first, or far from all pixels every weight would be zero."""
        weight = np.exp((far[:, :1] ** 2 - far**2) / (2 * (self.sigma * pixel) ** 2))
        return (weight * value[which]).sum(1) / weight.sum(1)
