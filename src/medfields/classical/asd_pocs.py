"""ASD-POCS: sweeps of SART with x >= 0 in turn with steepest descent on the total variation.

Solves min TV(x) with |A x - y| <= epsilon and x >= 0: the descent is kept shorter than the sweep moves the data, and shrinks where it is
not, until both hold each other. The number of rounds is fixed; the answer is that of the last sweep.

Needs: projections, on any orbit.
Gives: attenuation in 1/mm, not negative.
Use when: you compare with cone-beam literature, where it is the usual yardstick. pdhg-tv solves a like problem to its minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cases import Projections
from ..solve import Method, Run
from ..solve.tomography import RaySystem, Slopes, Sweeps, noise
from ..space import Volume


class Descent(Sweeps):
    """A sweep, then `inner` steps down the total variation, of `length` each; `swept` is x between the two."""

    length: Tensor
    swept: Tensor

    def __init__(self, systems: list[RaySystem], whole: RaySystem, tolerance: float, method: ASDPOCS):
        super().__init__(systems, method.relaxation, method.decay)
        self.whole, self.slopes, self.tolerance, self.method = whole, Slopes(whole), tolerance, method
        self.register_buffer("length", torch.tensor(-1.0))
        self.register_buffer("swept", torch.zeros_like(self.x))

    @torch.no_grad()
    def step(self) -> None:
        """One round."""
        m, before = self.method, self.x
        super().step()
        self.swept, by_data = self.x, (self.x - before).norm()
        misfit = self.whole.residual(self.x).norm()
        if self.length < 0:
            self.length = m.alpha * by_data
        for _ in range(m.inner):
            slope = self.slopes.apply(self.x)
            down = self.slopes.adjoint(slope / (slope.square().sum(0) + 1e-8).sqrt())
            self.x = self.x - self.length * down / down.norm().clamp_min(1e-12)
        too_far = ((self.x - self.swept).norm() > m.most * by_data) & (misfit > self.tolerance)
        self.length = torch.where(too_far, m.shrink * self.length, self.length)
        self.residual = misfit / self.size


@dataclass(frozen=True)
class ASDPOCS(Method):
    """Sidky & Pan, Phys. Med. Biol. 2008; the defaults of `relaxation` to `shrink` are theirs, but for alpha: 0.2 asks for
    twice the rounds.

    Args:
        rounds: fixed.
        relaxation, decay: of the sweeps (beta, beta_red).
        inner: descents in a round (ng).
        alpha: length of the first descents, as a share of the first sweep's.
        most: how far the descents may go, as a share of the sweep (r_max).
        shrink: of their length where they go farther (alpha_red).
        epsilon: |A x - y| / |y| at which the descent is no longer shortened; 0 takes 0.7 times the noise as estimated from the data.
        subsets: of the views, in golden order; at most as many as views.
        subrays: rays averaged over each pixel, where pixels are wider than voxels.
    """

    paper: ClassVar[str] = (
        "Emil Y. Sidky and Xiaochuan Pan: Image reconstruction in circular cone-beam computed tomography by constrained, total-variation "
        "minimization. Physics in Medicine and Biology 2008. doi:10.1088/0031-9155/53/17/021")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"rounds": 5, "inner": 5}
    fidelity: ClassVar[str] = "classical"

    rounds: int = 120
    relaxation: float = 1.0
    decay: float = 0.995
    inner: int = 20
    alpha: float = 0.02
    most: float = 0.95
    shrink: float = 0.95
    epsilon: float = 0.0
    subsets: int = 20
    subrays: int = 1

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        system = RaySystem(case, self.subrays, run.device)
        size = float((system.weight * system.y).norm())
        tolerance = self.epsilon * size or 0.7 * noise(system) * float(system.weight.sum()) ** 0.5
        state = Descent(system.subsets(self.subsets, "golden"), system, tolerance, self)
        for _ in run.steps(self.rounds, "ASD-POCS", state):
            state.step()
            run.report(residual=state.residual)
        return Volume(system.level * state.swept.cpu(), case.grid, case.unit)
