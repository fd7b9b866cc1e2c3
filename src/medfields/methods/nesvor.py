"""NeSVoR: a hash-grid field, and with it pose, gain and variance of each slice and the variance of each pixel, by one likelihood.

A pixel is the average of the field under its slice's profile, where the slice lies. Six numbers of each slice, its gain and its variance are
parameters like the field's; a small network tells from the field's features how far a pixel is to be trusted. Slices that do not fit get a
large variance and fade.

Needs: slices of two or more stacks that moved, with their thickness (mm), and masks of what moved as one.
Gives: intensity at any point; in the run's notes poses, gains, weights and likeness of the slices.
Deviations: slices start from least-squares registration on a coarse lattice, not from SVoRT; profiles are integrated at few nodes that shift at
random, not at 256 random places; the variance is told from the features' mean under the profile; slopes are those between random pairs of
points one voxel apart; rates fall smoothly; a bending slice is displaced as the middle of its profile is. 800 steps, not 6,000, for two cores:
3,000 fitted the noise of a T1 head (30.8 dB, not 33.1).
Fidelity: published (field, likelihood, parameters of the slices and their penalties).
Licence: clean room; no code of the authors was read.
Use when: you want a field whose poses and outliers are one fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..cases import Slices
from ..fields import Field, GridEncoding
from ..solve import Method, Run
from ..solve.optimise import Adam
from ..solve.settle import noted, settled
from ..solve.slice_fit import SliceFit


@dataclass(frozen=True)
class NeSVoR(Method):
    """Xu et al., IEEE TMI 2023.

    Args:
        motion: False leaves the slices where registration laid them.
        bend: weight of the penalty |J^T J - 1|^2 where every slice may also bend (paper: 0.1); None holds the subject rigid.
        robust: False trusts all pixels alike.
        bias: coarse levels of the grid from which a smooth gain within slices is told; None leaves it out.
        alternations: of the registration that slices start from, at each of two coarse resolutions.
        finest, coarsest: mm, cells of the hash grid; each level's are 1.3819 times finer.
        log2_table: rows of one level (paper: 19).
        width: of the networks.
        steps, lr, final: of Adam, and the share of the rate at the end.
        samples, nodes: pixels in a step and points in each one's profile (paper: 4096 and 256).
        in_plane: width of a pixel in its plane, full width at half maximum in pixels (paper: 1.2067).
        edge, pose: weights of the penalties on slopes and on motion from the start.
    """

    paper: ClassVar[str] = (
        "Junshen Xu and Daniel Moyer and Borjan Gagoski and Juan Eugenio Iglesias and P. Ellen Grant and Polina Golland and Elfar Adalsteinsson: "
        "NeSVoR: Implicit Neural Representation for Slice-to-Volume Reconstruction in MRI. IEEE Transactions on Medical Imaging 2023. "
        "doi:10.1109/TMI.2023.3236216")
    task: ClassVar[str] = "motion"
    tiny: ClassVar[dict[str, Any]] = {"alternations": 1, "finest": 3.0, "log2_table": 10, "width": 16, "steps": 12, "samples": 128, "nodes": 4}
    fidelity: ClassVar[str] = "published"

    motion: bool = True
    bend: float | None = None
    robust: bool = True
    bias: int | None = None
    alternations: int = 3
    finest: float = 1.0
    coarsest: float = 16.0
    log2_table: int = 18
    width: int = 64
    steps: int = 800
    lr: float = 1e-2
    final: float = 0.036
    samples: int = 4096
    nodes: int = 8
    in_plane: float = 0.0
    edge: float = 1.0
    pose: float = 0.1

    def solve(self, case: Slices, run: Run, prior: nn.Module | None = None) -> Field:
        start = settled(case, run, levels=(1.0, 0.7), steps=self.alternations)
        encoding = GridEncoding.growing(1.3819, self.finest, self.coarsest, self.log2_table)
        problem = SliceFit(encoding, self.width, 1, case, start, samples=self.samples, nodes=self.nodes, robust=self.robust,
                           bias=self.bias or 0, in_plane=self.in_plane, edge=self.edge, pose=self.pose, bend=self.bend)
        rates = {name: self.lr for name, _ in problem.named_parameters() if self.motion or name != "poses.moves"}
        run.fit(problem, steps=self.steps, lr=rates, name="fit", optimiser=self._adam, schedule="exponential", final=self.final)
        noted(run, case, problem.found())
        return problem.field()

    @staticmethod
    def _adam(groups: list[dict[str, Any]]) -> Adam:
        return Adam(groups, betas=(0.9, 0.99), eps=1e-15, weight_decay=1e-2)
