"""Plug and play: total variation first, then the data and a denoiser learned from other people's images, by turns.

z = D(x, sigma) is the image without noise of a falling level sigma, and x is what explains the data best near z:
min over x >= 0 of  1/2 |A x - y|_W^2 + mu/2 |x - z|^2,  mu = trust s^2 / sigma^2, where s is what z leaves of the data, and so follows their noise.
W trusts rays by the photons that passed, where those of the open beam are stated.
The denoiser knows images, not scanners: one serves any orbit, number of views and noise. Slices are solved for on a lattice twice as fine as
the answer, and a slice's neighbours help to denoise it; volumes are denoised along their three axes in turn.

Needs: projections, on any orbit.
Gives: attenuation in 1/mm, not negative.
Deviations: the noise levels of DPIR (Zhang et al., IEEE TPAMI 2022), which is told the noise and starts from more of it; here it is found as above,
and total variation leaves less. The network is smaller, and was taught CT and MR of 14 people, none of whom the bench scores.
Fidelity: ours (the method is published; network, weights and schedule are not).
Use when: views are few. It draws what people usually look like: for what must not be inferred from others, use pdhg-tv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cases import Projections
from ..errors import InputError
from ..solve import Method, Run
from ..solve.denoiser import Denoiser, denoised, shipped
from ..solve.non_local import non_local_means
from ..solve.plug_and_play import PlugAndPlay
from ..solve.tomography import FINEST, RaySystem, coarser, finer, lattice, total_variation, worth
from ..space import Volume


@dataclass(frozen=True)
class PnP(Method):
    """Venkatakrishnan, Bouman & Wohlberg's splitting with a learned denoiser.

    Args:
        start: steps of total variation.
        steps: of plug and play.
        first, last: noise levels of the first and the last step, in typical attenuations.
        trust: in the denoised image against the data, as the noise goes.
        gradients: conjugate ones in a step.
        finer: voxels of the lattice that is solved for in one of the answer, see `pdhg-tv`; 0 is by the same rule.
        learned: False puts non-local means in the place of the learned denoiser.
    """

    paper: ClassVar[str] = (
        "Singanallur Venkatakrishnan and Charles Bouman and Brendt Wohlberg: Plug-and-Play priors for model based reconstruction. IEEE Global "
        "Conference on Signal and Information Processing 2013. doi:10.1109/GlobalSIP.2013.6737048")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"start": 10, "steps": 4}
    fidelity: ClassVar[str] = "ours"

    start: int = 150
    steps: int = 60
    first: float = 0.05
    last: float = 0.01
    trust: float = 0.15
    gradients: int = 6
    finer: int = 0
    learned: bool = True

    def __post_init__(self) -> None:
        if self.finer > FINEST:
            raise InputError(f"a lattice {self.finer} times as fine as the answer", f"finer at most {FINEST}; 0 is by the rule")
        if min(self.start, self.steps, self.gradients) < 1 or self.finer < 0 or self.trust < 0 or not 0 < self.last <= self.first:
            raise InputError("a count is below 1, or the noise levels do not fall", "0 < last <= first; finer 0 is by the rule")

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        times, subrays = lattice(case, self.finer)
        system = RaySystem(finer(case, times), subrays, run.device, weight=worth(case))
        image = total_variation(system, run, self.start)
        state = PlugAndPlay(system, self._denoiser(prior, run), image, self.steps, self.first, self.last, self.trust, self.gradients)
        for _ in run.steps(self.steps, "plug and play", state):
            state.step()
            run.report(residual=state.residual)
        return Volume(coarser(system.level * state.x.cpu(), case, times), case.grid, case.unit)

    def _denoiser(self, prior: nn.Module | None, run: Run) -> Callable[[Tensor, float, int], Tensor]:
        if not self.learned:
            return lambda image, sigma, axis: non_local_means(image, 1.5 * sigma)
        if not isinstance(prior, Denoiser | None):
            raise InputError(f"the prior is a {type(prior).__name__}, not a Denoiser", "see medfields.solve.denoiser")
        return partial(denoised, (prior or shipped()).to(run.device))
