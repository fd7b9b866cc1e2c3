"""SCNF: the image as a hash-grid field, and with it where the subject lay in every view; one loss finds both.

A subject that moves from view to view is at rest in a frame of its own; in that frame it is the views that move. So every view has a rigid
pose, zero at first, by which its rays are carried into the field, and the misfit's gradient reaches field and poses alike. That the whole
frame may turn and shift with its contents is no property of the data: poses are counted from their mean (or from view 0), and the field is in
that frame. Compare with a reference only after rigid alignment.

Needs: projections of a subject that moved rigidly, in a known geometry; motion within a slice for a slice, in space for a volume.
Gives: attenuation in 1/mm, at the mean position (or that of view 0); `poses` in the run's notes: of each view, the rotation vector in radians and
the shift in mm by which x -> R (x - c) + c + t moved the subject away from there, c the middle of the box.
Deviations: the field learns alone at first: poses that move while it is empty never come back (measured: 19.5 dB instead of 30.2 after 300
steps). Angles learn at a fifth of the rate of shifts. Rays are drawn one by one from all views and, in slices, read from the field on the
result's grid. The gauge is fixed, the field positive. Opening the levels in turn is an option that did not help here.
Fidelity: interpreted (figures of the authors' MRI sibling Moner; the CT paper's details were not read).
Licence: clean room; no code of the authors was read.
Use when: the patient moved during the scan. If not, a fit without motion is quicker and as good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from ..cases import Projections
from ..errors import InputError
from ..fields import MLP, Field, GridEncoding, Positive
from ..solve import Method, Run
from ..solve.moving import MovingFit
from ..solve.optimise import Adam
from ..space import Grid


@dataclass(frozen=True)
class SCNF(Method):
    """Wu et al. 2022.

    Args:
        levels, features, log2_table: of the hash grid, from 4 cells on the longest side to one for each voxel (Moner: 16, 8, 18).
        width, depth: of its network.
        motion: False leaves every view where it is: the same fit without the paper's idea.
        anchor: poses count from their "mean" or from the "first" view.
        steps, rays: of Adam, and rays in a step (Moner: 4,000 epochs of 80 rays at a time).
        lattice: evaluate the field on the result's grid and read rays from there, quick for slices; else along the rays, for volumes.
        lr, pose_lr: of field and poses, halved `halvings` times on the way, smoothly; poses in radii of the box, and fifths of a radian.
        still: share of the steps before the poses may move; from an empty field they only learn noise, and never come back (measured).
        halvings: see lr.
        tv: weight of the total variation.
        coarse: share of the steps after which all levels of the grid are open (Moner: 0.75); 0 opens all at once.
    """

    paper: ClassVar[str] = ("Qing Wu and Xin Li and Hongjiang Wei and Jingyi Yu and Yuyao Zhang: Joint Rigid Motion Correction and Sparse-View "
                            "CT via Self-Calibrating Neural Field. arXiv preprint 2022. arXiv:2210.12731")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"levels": 3, "log2_table": 10, "width": 16, "steps": 20, "rays": 64}
    fidelity: ClassVar[str] = "interpreted"

    levels: int = 8
    features: int = 4
    log2_table: int = 18
    width: int = 64
    depth: int = 2
    motion: bool = True
    anchor: Literal["mean", "first"] = "mean"
    steps: int = 1500
    rays: int = 2048
    lattice: bool = True
    lr: float = 1e-2
    pose_lr: float = 5e-3
    still: float = 0.1
    halvings: float = 3.0
    tv: float = 0.0
    coarse: float = 0.0

    def net(self, grid: Grid) -> Positive:
        """The hash grid, its network and the softplus."""
        finest = float((grid.spacing[:2] if grid.is_2d else grid.spacing).min())
        encoding = GridEncoding(self.levels, finest, max(finest, float(grid.box().sides.max()) / 4), self.log2_table, self.features)
        return Positive(MLP(encoding, self.width, self.depth), "softplus", 3.0)

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field:
        if max(self.coarse, self.still) > 1 or self.anchor not in ("mean", "first"):
            raise InputError("coarse and still are shares of the steps, 0 to 1, and the anchor is 'mean' or 'first'")
        problem = MovingFit(self.net(case.grid), case, self.rays, self.lattice, self.anchor, self.coarse, self.tv)
        rates = {"field.net": self.lr} | ({"moves": self.pose_lr} if self.motion else {})
        if still := round(self.still * self.steps) if self.motion else 0:
            run.fit(problem, steps=still, lr={"field.net": self.lr}, name="still", optimiser=self._adam)
        run.fit(problem, steps=max(1, self.steps - still), lr=rates, name="fit", schedule="exponential", final=0.5**self.halvings,
                optimiser=self._adam)
        if self.motion:
            run.note(poses=problem.poses())
        return problem.field

    @staticmethod
    def _adam(groups: list[dict[str, Any]]) -> Adam:
        return Adam(groups, betas=(0.9, 0.99), eps=1e-15)
