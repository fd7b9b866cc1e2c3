"""UncertaINR: attenuation with its uncertainty, from many answers: units left out at random, several networks, or a Markov chain.

A network of random Fourier features learns the projections by their Gaussian likelihood, with an anisotropic total variation,
    mean_r (A f - y)_r^2 / (2 s^2) + tv / R sum_n |D f|_1 / level,   R rays, s the noise.
Then it is asked `passes` times with random units left out (Gal & Ghahramani 2016); `members` networks from other starts do the same (deep
ensemble, Lakshminarayanan et al. 2017); `sampler` hmc instead walks from the fit through the posterior of the weights. Mean and standard
deviation of all answers are the result. Views kept out of the fits tell one factor by which the deviation has to be widened.

Needs: projections in a known geometry, and either the photons of the open beam, or the noise, or enough columns to see it.
Gives: two channels, "attenuation" and "std" of it, both in 1/mm, as a linear field on the output grid.
Deviations: a draw leaves out the same units for all pixels, so that it is a function and can be projected; softplus, not sigmoid, ends the
network; the calibration is by kept views where the paper widens against the true image; chains of fixed length, not NUTS; frequencies
are drawn per period of the box (omega 40 = sigma 12.7), and their phase is left out, which only turns each pair of features.
Fidelity: published (network, likelihood, rates, dropout, passes; the total variation is scaled otherwise).
Licence: the authors' code is MIT; none of it is used.
Use when: where the reconstruction may be wrong matters. For the attenuation alone total variation (`pdhg-tv`) is better and quicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from ..cases import Projections
from ..errors import InputError
from ..fields import MLP, BSpline, Dropout, Field, Fourier, LinearBasis, Positive, drawing
from ..solve import Method, Run
from ..solve.hmc import HMC
from ..solve.spread import Posterior, Spread, noise_of


@dataclass(frozen=True)
class UncertaINR(Method):
    """Vasconcelos, He, Singh and Teh, TMLR 2023.

    Args:
        net: before dropout and softplus.
        dropout: share of the units that is left out; 0 with one member and no chain gives a single answer, and one std for all pixels.
        members: networks of the ensemble.
        passes: answers of each member, or draws of its chain.
        steps, lr: of Adam, all rays in a step.
        final: share of the rate at the end, exponentially; 1 keeps it.
        tv: rate of the Laplace prior on differences of neighbours, in typical attenuations.
        noise: sd of a line integral; None finds it.
        held_out: share of the views that calibrate the std; 0 leaves it as it is.
        sampler: "dropout" or "hmc", which is for small cases and networks.
        burn, leaps: of a chain: draws that adapt its step, and leaps to a draw.
    """

    paper: ClassVar[str] = (
        "Francisca Vasconcelos and Bobby He and Nalini Singh and Yee Whye Teh: UncertaINR: Uncertainty Quantification of End-to-End Implicit "
        "Neural Representations for Computed Tomography. TMLR 2023. arXiv:2202.10847")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(Fourier(size=16, sigma=3.0), width=16, depth=2, activation="silu"), "steps": 30, "lr": 1e-2,
                                      "passes": 8, "members": 2, "held_out": 0.2}

    net: MLP = MLP(Fourier(size=363, sigma=12.7), width=256, depth=5, activation="silu")
    dropout: float = 0.2
    members: int = 1
    passes: int = 50
    steps: int = 15000
    lr: float = 3e-4
    final: float = 1.0
    tv: float = 1.0
    noise: float | None = None
    held_out: float = 0.1
    sampler: Literal["dropout", "hmc"] = "dropout"
    burn: int = 500
    leaps: int = 20

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field:
        if self.sampler not in ("dropout", "hmc"):
            raise InputError(f"there is no sampler '{self.sampler}'", "dropout or hmc")
        noise = self.noise or noise_of(case, 0.02 * case.level * float(case.grid.spacing[:2].min()))
        kept = case.split(self.held_out)[1] if self.held_out else None
        spread = Spread(case, kept).to(run.device)
        for n in range(self.members):
            self._member(case, noise, spread, run, f"member {n + 1}")
        std, factor = spread.calibrated(noise)
        run.note(noise=noise, **{"std widened by": factor})
        field = Field(BSpline.on(case.grid), case.box(), 2, unit=case.unit, names=("attenuation", "std"))
        cast(LinearBasis, field.net).coefficients.data = torch.stack([spread.mean, std]).cpu()
        return field

    def _member(self, case: Projections, noise: float, spread: Spread, run: Run, name: str) -> None:
        net = Positive(Dropout(self.net, 0.0 if self.sampler == "hmc" else self.dropout))
        problem = Posterior(net, case, noise, self.tv, self.held_out)
        run.fit(problem, steps=self.steps, lr=self.lr, name=name, schedule="exponential", final=self.final)
        if self.sampler == "hmc":
            chain = HMC(problem, problem.energy, self.burn, self.leaps)
            for n in run.steps(self.burn + self.passes, f"{name} chain", nn.ModuleList([chain, spread])):
                run.report(energy=chain.step())
                if n >= self.burn:
                    spread.add(problem.on_lattice().detach())
            run.note(**{f"{name} acceptance": chain.acceptance})
            return
        for _ in run.steps(self.passes, f"{name} passes", spread):
            with drawing(problem), torch.no_grad():
                spread.add(problem.on_lattice())
