"""SCOPE: a hash grid that explains a few views is asked for hundreds; the measured ones are put back, and all are filtered and backprojected.

Needs: projections of a slice or a volume from a parallel, fan or circular cone beam, with two views or more.
Gives: attenuation in 1/mm on the grid of the case; with `--no-reproject`, the field itself.
Deviations: the field is evaluated on the result's grid and all rays count in every step (`--rays 30` is the published way, for 150,000 steps
instead of two thousand); the grid's levels grow to cells of 1.2 voxels, which is where the published factor of 1.95 ends for 256 voxels a side;
the sigmoid ends at `top` times a typical attenuation of the subject, not at 1 per pixel; the rate falls exponentially. Cone
beams are ours, as is a total variation (0 = as published).
Fidelity: published (network, loss, number of rendered views).
Licence: the authors' code is for non-commercial use; this file is written from the paper's description.
Use when: you compare with the paper, or want an image that looks as if reconstructed from many views. Part of the published gain is the
reference, itself a filtered backprojection; against the true object the field before re-projection (`--no-reproject`) is the better answer
once it has converged. Total variation (`pdhg-tv`) is quicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..cases import Projections
from ..fields import MLP, Field, GridEncoding, Positive
from ..solve import Method, Run
from ..solve.fbp import Window, filtered_backprojection
from ..solve.projections import ProjectionFit
from ..solve.views import denser, reprojected
from ..space import Grid, Volume


@dataclass(frozen=True)
class SCOPE(Method):
    """Wu et al., IEEE TCI 2023.

    Args:
        levels, features, log2_table: of the hash grid.
        base: cells of the first level along the longest side.
        finest: side of the cells of the last level, in voxels of the result.
        width, depth: of the network.
        top: largest value of the sigmoid, in typical attenuations of the subject.
        steps, lr: of Adam, exponential to a tenth.
        rays: in a step; None takes all of them, through the grid.
        tv: weight of the total variation.
        reproject: False returns the field.
        views: about as many are rendered, the measured ones among them.
        window: of the ramp filter.
    """

    paper: ClassVar[str] = (
        "Qing Wu and others: Self-Supervised Coordinate Projection Network for Sparse-View Computed Tomography. IEEE Transactions on "
        "Computational Imaging 2023. doi:10.1109/TCI.2023.3281196")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"levels": 3, "features": 2, "log2_table": 10, "width": 16, "steps": 15, "views": 60}

    levels: int = 8
    features: int = 8
    log2_table: int = 24
    base: float = 2.0
    finest: float = 1.2
    width: int = 64
    depth: int = 2
    top: float = 3.0
    steps: int = 2000
    lr: float = 1e-3
    rays: int | None = None
    tv: float = 0.0
    reproject: bool = True
    views: int = 720
    window: Window = "ramp"

    def net(self, grid: Grid) -> Positive:
        """The hash grid, its network, and the sigmoid."""
        finest = self.finest * float(grid.spacing[:2].min() if grid.is_2d else grid.spacing.min())
        coarsest = max(finest, float(grid.box().sides.max()) / self.base)
        encoding = GridEncoding(self.levels, finest, coarsest, self.log2_table, self.features)
        return Positive(MLP(encoding, self.width, self.depth), "sigmoid", shift=3.0)

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field | Volume:
        # Before the fit: a gantry between whose views nothing is known is better refused early.
        path = denser(case.geometry, max(1, round(self.views / case.geometry.views))) if self.reproject else None
        problem = ProjectionFit(self.net(case.grid), case, rays=self.rays or 0, tv=self.tv, top=self.top)
        field = run.fit(problem, steps=self.steps, lr=self.lr, name="fit", schedule="exponential").field.cpu()
        if path is None:
            return field
        whole = reprojected(case, field.on(case.grid).volume(), path.geometry, path.measured)
        return Volume(filtered_backprojection(whole, self.window)[0], case.grid, case.unit)
