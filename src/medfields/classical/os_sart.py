"""OS-SART: simultaneous algebraic reconstruction over ordered subsets of the views, with x >= 0.

SIRT on one subset of the views after the other: a sweep over n subsets costs as much as a step of SIRT and does nearly the work of n. The
subsets are far apart in angle from visit to visit, and the relaxation falls, or the sweeps would circle about the answer.
The number of sweeps is fixed: it does not stop by itself, and no truth stops it.

Needs: projections, on any orbit.
Gives: attenuation in 1/mm, not negative.
Use when: SIRT takes too long, in volumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Projections
from ..solve import Method, Run
from ..solve.tomography import Order, RaySystem, Sweeps
from ..space import Volume


@dataclass(frozen=True)
class OSSART(Method):
    """Wang & Jiang, J. X-Ray Sci. Technol. 2004, after Andersen & Kak 1984.

    Args:
        sweeps: over all views; fixed. Fewer for noisier data.
        subsets: of the views; at most as many as views.
        order: of their visits: "golden", "bit-reversed" or "as measured".
        relaxation: of the first sweep, below 2.
        decay: by which it is multiplied after each sweep.
        subrays: rays averaged over each pixel, where pixels are wider than voxels.
    """

    paper: ClassVar[str] = (
        "Ge Wang and Ming Jiang: Ordered-subset simultaneous algebraic reconstruction techniques (OS-SART). Journal of X-Ray Science and "
        "Technology 2004. https://content.iospress.com/articles/journal-of-x-ray-science-and-technology/xst00110")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"sweeps": 5, "subsets": 4}
    fidelity: ClassVar[str] = "classical"

    sweeps: int = 20
    subsets: int = 20
    order: Order = "golden"
    relaxation: float = 1.0
    decay: float = 0.98
    subrays: int = 1

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        system = RaySystem(case, self.subrays, run.device)
        state = Sweeps(system.subsets(self.subsets, self.order), self.relaxation, self.decay)
        for _ in run.steps(self.sweeps, "OS-SART", state):
            state.step()
            run.report(residual=state.residual)
        return Volume(system.level * state.x.cpu(), case.grid, case.unit)
