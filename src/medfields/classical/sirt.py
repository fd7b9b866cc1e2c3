"""SIRT: simultaneous iterative reconstruction with x >= 0, all rays at once.

x <- max(0, x + C A^T W R (y - A x)), with R and C the inverse row and column sums of A: it lowers |y - A x|, weighted by R, in every step.
Low frequencies come first, so the fixed number of steps is its regularisation: it does not stop by itself, and no truth stops it.

Needs: projections, on any orbit.
Gives: attenuation in 1/mm, not negative.
Use when: you want a robust answer with nothing to tune. With noise or very few views, pdhg-tv.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Projections
from ..solve import Method, Run
from ..solve.tomography import RaySystem, Sweeps
from ..space import Volume


@dataclass(frozen=True)
class SIRT(Method):
    """Gregor & Benson, IEEE TMI 2008, after Gilbert 1972.

    Args:
        steps: fixed; fewer for noisier data.
        subrays: rays averaged over each pixel, where pixels are wider than voxels.
    """

    paper: ClassVar[str] = (
        "Jens Gregor and Thomas Benson: Computational Analysis and Improvement of SIRT. IEEE Transactions on Medical Imaging 2008. "
        "doi:10.1109/TMI.2008.923696")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"steps": 10}
    fidelity: ClassVar[str] = "classical"

    steps: int = 500
    subrays: int = 1

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        system = RaySystem(case, self.subrays, run.device)
        state = Sweeps([system])
        for _ in run.steps(self.steps, "SIRT", state):
            state.step()
            run.report(residual=state.residual)
        return Volume(system.level * state.x.cpu(), case.grid, case.unit)
