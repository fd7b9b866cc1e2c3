"""Total variation with x >= 0: least squares on all rays plus the isotropic total variation, by the primal-dual hybrid gradient.

min over x >= 0 of  1/2 |A x - y|_W^2 + weight TV(x). x counts in units of case.level and lengths in voxel sides, so a weight means the same
for every subject, unit and voxel size. Without one it follows the data: in proportion to the noise, as fourth differences along the
detector's rows show it, but never below a floor, which is best where there is none. Slices are solved for on a lattice twice as fine as the
answer. It starts from 20 steps of SIRT; the number of steps is fixed.

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
from ..errors import InputError
from ..solve import Method, Run
from ..solve.tomography import FINEST, RaySystem, coarser, finer, lattice, total_variation, worth
from ..space import Volume


@dataclass(frozen=True)
class PDHGTV(Method):
    """Rudin, Osher & Fatemi's prior with the steps of Pock & Chambolle, ICCV 2011.

    Args:
        weight: of the total variation; 0 is by the rule.
        steps: of the primal-dual hybrid gradient; fixed.
        finer: voxels of the lattice that is solved for in one of the answer, along each axis across the detector's rows; the answer is their
            mean. 0 is 2 for slices and thin stacks, 1 for volumes.
        subrays: rays averaged over each pixel; 0 is 1, with `finer` 4 in slices, 2 x 2 in volumes.
    """

    paper: ClassVar[str] = (
        "Thomas Pock and Antonin Chambolle: Diagonal preconditioning for first order primal-dual algorithms in convex optimization. "
        "IEEE International Conference on Computer Vision 2011. doi:10.1109/ICCV.2011.6126441")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"steps": 20}
    fidelity: ClassVar[str] = "classical"

    weight: float = 0.0
    steps: int = 400
    finer: int = 0
    subrays: int = 0

    def __post_init__(self) -> None:
        if self.finer > FINEST:
            raise InputError(f"a lattice {self.finer} times as fine as the answer", f"finer at most {FINEST}; 0 is by the rule")
        if min(self.finer, self.subrays) < 0 or self.steps < 1 or not 0 <= self.weight < float("inf"):
            raise InputError("weight, finer and subrays cannot be negative, and one step is the least", "0 is by the rule")

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        times, subrays = lattice(case, self.finer, self.subrays)
        system = RaySystem(finer(case, times), subrays, run.device, weight=worth(case))
        image = total_variation(system, run, self.steps, self.weight)
        return Volume(coarser(system.level * image.cpu(), case, times), case.grid, case.unit)
