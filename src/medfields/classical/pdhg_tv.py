"""Total variation with x >= 0: least squares on all rays plus the isotropic total variation, by the primal-dual hybrid gradient.

min over x >= 0 of  1/2 |A x - y|_W^2 + weight TV(x). x counts in units of case.level and lengths in voxel sides, so a weight means the same
for every subject, unit and voxel size. Without one it follows the data: in proportion to the noise, as second differences along the
detector's rows show it, but never below a floor, which is best where there is none. It starts from 20 steps of SIRT; the number of steps is
fixed.

Needs: projections, on any orbit.
Gives: attenuation in 1/mm, not negative.
Use when: views are few or noisy and you want the strongest answer that is not learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Projections
from ..solve import Method, Run
from ..solve.tomography import PrimalDualTV, RaySystem, Sweeps, noise, tv_weight
from ..space import Volume


@dataclass(frozen=True)
class PDHGTV(Method):
    """Rudin, Osher & Fatemi's prior with the steps of Pock & Chambolle, ICCV 2011.

    Args:
        weight: of the total variation; 0 is by the rule.
        steps: of the primal-dual hybrid gradient; fixed.
        subrays: rays averaged over each pixel, where pixels are wider than voxels.
    """

    paper: ClassVar[str] = (
        "Thomas Pock and Antonin Chambolle: Diagonal preconditioning for first order primal-dual algorithms in convex optimization. "
        "IEEE International Conference on Computer Vision 2011. doi:10.1109/ICCV.2011.6126441")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"steps": 20}
    fidelity: ClassVar[str] = "classical"

    weight: float = 0.0
    steps: int = 300
    subrays: int = 1

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        system = RaySystem(case, self.subrays, run.device)
        weight = self.weight or tv_weight(system)
        run.note(weight=weight, noise=noise(system))
        start = Sweeps([system])
        for _ in run.steps(20, "start", start):
            start.step()
        state = PrimalDualTV(system, weight, x=start.x)
        for _ in run.steps(self.steps, "total variation", state):
            state.step()
            run.report(residual=state.residual, change=state.change)
        return Volume(system.level * state.answer.cpu(), case.grid, case.unit)
