"""NAF: attenuation as a hash grid and a narrow network, fitted to random rays of a cone beam.

Points are drawn along each ray at a random place of equal parts (stratified), so no lattice is needed and a volume costs no more memory than
a slice.

Needs: projections of a slice or a volume, any geometry.
Gives: attenuation in 1/mm at any point.
Deviations: the published levels double from 16 cells a side, so that most of sixteen would be finer than any voxel; here the finest has cells of
`finest` voxels. ReLU instead of leaky ReLU; the sigmoid ends at `top` times a typical attenuation; rays come from all views, not from one in
turn; published are 150,000 steps on a GPU, the default is what a laptop does in minutes. `--rays None` evaluates the field on the result's grid
and takes all rays in every step, which for slices is much the quicker way.
Fidelity: published.
Licence: the authors' code is MIT; this file is written from the description.
Use when: you have a cone beam and want the usual neural baseline. An L1 misfit (`--misfit l1`) is about 2 dB better on clean data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..cases import Projections
from ..fields import MLP, Field, GridEncoding, Positive
from ..solve import Method, Run
from ..solve.projections import Misfit, ProjectionFit
from ..space import Grid


@dataclass(frozen=True)
class NAF(Method):
    """Zha, Zhang & Li, MICCAI 2022.

    Args:
        levels, features, log2_table: of the hash grid; one level is a plain grid of voxels with a network behind it.
        base: cells of the first level along the longest side.
        finest: side of the cells of the last level, in voxels of the result.
        width, depth, skip: of the network; layer `skip` reads the encoding again.
        top: largest value of the sigmoid, in typical attenuations of the subject.
        steps, lr: of Adam, a tenth at the end.
        rays: in a step; None takes all of them, through the grid.
        step: mm between points on a ray; None is the voxel side.
        misfit: "l2" as published, or "l1".
        tv: weight of the total variation; published is 0.
    """

    paper: ClassVar[str] = (
        "Ruyi Zha and Yanhao Zhang and Hongdong Li: NAF: Neural Attenuation Fields for Sparse-View CBCT Reconstruction. MICCAI 2022. "
        "doi:10.1007/978-3-031-16446-0_42")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"levels": 3, "log2_table": 10, "base": 4.0, "width": 16, "steps": 15, "rays": 64}

    levels: int = 16
    features: int = 2
    log2_table: int = 19
    base: float = 16.0
    finest: float = 1.0
    width: int = 32
    depth: int = 4
    skip: int = 2
    top: float = 3.0
    steps: int = 1500
    lr: float = 1e-3
    rays: int | None = 1024
    step: float | None = None
    misfit: Misfit = "l2"
    tv: float = 0.0

    def net(self, grid: Grid) -> Positive:
        """The hash grid, its network, and the sigmoid."""
        box = grid.box()
        finest = self.finest * float(grid.spacing[:2].min() if grid.is_2d else grid.spacing.min())
        coarsest = max(finest, float(box.sides.max()) / self.base) if self.levels > 1 else finest
        encoding = GridEncoding(self.levels, finest, coarsest, self.log2_table, self.features)
        skips = (self.skip,) if self.skip < self.depth else ()
        return Positive(MLP(encoding, self.width, self.depth, skips=skips), "sigmoid", shift=3.0)

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field:
        problem = ProjectionFit(self.net(case.grid), case, rays=self.rays or 0, step=self.step, misfit=self.misfit, tv=self.tv, top=self.top)
        return run.fit(problem, steps=self.steps, lr=self.lr, name="fit", schedule="exponential").field
