"""CGLS: conjugate gradients for the least-squares problem of the projections.

Each step minimises |A x - y| over a space with one more direction, so few suffice; noise and the limits of the model come in with the late
ones. The fixed number of steps is its regularisation: it does not stop by itself, and no truth stops it.

Needs: projections, on any orbit.
Gives: attenuation in 1/mm; it may be negative.
Use when: views are many and rays cost much, in volumes for instance. SIRT with x >= 0 is better where they are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Projections
from ..solve import Method, Run
from ..solve.tomography import LeastSquares, RaySystem
from ..space import Volume


@dataclass(frozen=True)
class CGLS(Method):
    """Hestenes & Stiefel 1952; Paige & Saunders 1982.

    Args:
        steps: fixed; fewer for noisier data.
        subrays: rays averaged over each pixel, where pixels are wider than voxels.
    """

    paper: ClassVar[str] = (
        "Magnus R. Hestenes and Eduard Stiefel: Methods of Conjugate Gradients for Solving Linear Systems. Journal of Research of the "
        "National Bureau of Standards 1952. doi:10.6028/jres.049.044")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"steps": 6}
    fidelity: ClassVar[str] = "classical"

    steps: int = 12
    subrays: int = 1

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        system = RaySystem(case, self.subrays, run.device)
        state = LeastSquares(system)
        for _ in run.steps(self.steps, "CGLS", state):
            state.step()
            run.report(residual=state.residual)
        return Volume(system.level * state.x.cpu(), case.grid, case.unit)
