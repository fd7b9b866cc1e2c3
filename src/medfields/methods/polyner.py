"""Polyner: a field with one attenuation for each energy, seen through the tube's whole spectrum, so metal hardens the beam as in the scanner.

A detector that cannot tell energies reads p = -log sum_E eta_E exp(-int mu_E): behind metal only hard photons are left, and a reconstruction
that knows one energy alone turns the difference into streaks. Here the field answers with mu at every energy of the spectrum, its rays are
made polychromatic, and outside the metal neighbouring energies are held together, lambda mean |mu_(E+1) - mu_E|, without which energies
and places are confused. The result is the channel next to the spectrum's mean energy.

Needs: projections -log(I / I0) without beam-hardening correction; the spectrum (energies in keV, shares of the signal); where metal is, as a mask.
Gives: attenuation in 1/mm at the energy next to the spectrum's mean; in the metal, too.
Deviations: energies are those of the case's spectrum instead of 101 from 20 to 120 keV, all rays at once through the lattice, or random
ones; the mask is as wide as it is given. The smoothness counts in units of water's attenuation;
its weight is ours. The finest level has cells of 1 mm. Without a mask every place counts
as free of metal; without a spectrum the case is refused unless `monochromatic`.
Fidelity: published (forward model, loss, size of the network; levels, smoothness weight and schedule are ours).
Licence: written from the paper; the authors' code is for non-commercial research and was not read.
Use when: metal spoils a scan whose spectrum is known, and beam hardening is what spoils it: where starved rays or partly filled voxels at the
metal's edge do, its monochromatic twin was as good or better (measured). Where the photons are stated, `pdhg-tv`, which then hardly trusts
rays through metal, was better by 4 dB. Where the scanner has corrected for beam hardening, use li-mar or a fit without spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cases import Projections
from ..errors import InputError
from ..fields import MLP, Field, GridEncoding, Positive, Spec
from ..operators.detector import Polychromatic
from ..operators.spectrum import Spectrum
from ..solve import Method, Run
from ..solve.optimise import Adam
from ..solve.projections import ProjectionFit


class SpectralFit(ProjectionFit):
    """A field of one channel for each energy that explains polychromatic projections."""

    free: Tensor

    def __init__(self, spec: Spec, case: Projections, spectrum: Spectrum, smooth: float, rays: int):
        super().__init__(spec, case, rays=rays, channels=len(spectrum.energies))
        # Metal may decide the level; how far energies lie apart is told by tissue.
        self.smooth, self.detector = smooth / (case.water or case.level), Polychromatic(spectrum)
        free = torch.ones(len(self.points)) if case.metal is None else case.metal.on(case.grid).data[0].reshape(-1) <= 0.5
        self.register_buffer("free", free.float(), persistent=False)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        if batch is None:
            values, free, chosen = self.field(self.points), self.free, slice(None)
            integrals = torch.stack([self.projector(c.reshape(self.grid.shape)).reshape(-1) for c in values.T], -1)
        else:
            chosen, *_ = batch
            place = chosen % len(self.points)  # voxels as random as the rays
            values, free = self.field(self.points[place]), self.free[place]
            integrals = self.along(self.field, self.case.geometry.at(chosen))
        predicted = self.detector(integrals)[:, None]
        out = {"data": self.misfit(predicted / self.unit, self.data[chosen] / self.unit, self.weight[chosen])}
        if self.smooth and values.shape[1] > 1:
            out["smoothness"] = self.smooth * (free * values.diff(dim=1).abs().sum(1)).mean()
        return out


@dataclass(frozen=True)
class Polyner(Method):
    """Wu et al., NeurIPS 2023.

    Args:
        net: from places to one attenuation for each energy; squareplus keeps it above zero.
        smooth: weight lambda of the energies' differences outside the metal (0.2 in the paper's units, 1/cm); 0 leaves them alone.
        monochromatic: one energy, whatever the spectrum: the same field without the paper's idea.
        steps, lr: of Adam, to a tenth at half the steps (published: 1e-3, 36,000 steps of 80 rays).
        rays: in a step; None takes all through the lattice, which suits slices.
    """

    paper: ClassVar[str] = ("Qing Wu and Lixuan Chen and Ce Wang and Hongjiang Wei and S. Kevin Zhou and Jingyi Yu and Yuyao Zhang: Unsupervised "
                            "Polychromatic Neural Representation for CT Metal Artifact Reduction. NeurIPS 2023. arXiv:2306.15203")
    task: ClassVar[str] = "ct"
    uses: ClassVar[tuple[str, ...]] = ("metal",)
    tiny: ClassVar[dict[str, Any]] = {"net": Positive(MLP(GridEncoding(4, 2.0, 16.0, log2_table=10), width=16, depth=1), "squareplus", 3.0),
                                      "steps": 30}

    net: Spec = Positive(MLP(GridEncoding(16, 1.0, 128.0, 19, 8), width=128, depth=2), "squareplus", 3.0)
    smooth: float = 0.5
    monochromatic: bool = False
    steps: int = 1000
    lr: float = 1e-3
    rays: int | None = None

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field:
        if case.spectrum is None and not self.monochromatic:
            raise InputError(f"'{case.name}' says no spectrum, which polyner models", "give one, or monochromatic = true")
        spectrum = Spectrum((70.0,), (1.0,)) if self.monochromatic or case.spectrum is None else case.spectrum
        problem = SpectralFit(self.net, case, spectrum, self.smooth, self.rays or 0)
        run.fit(problem, steps=self.steps, lr=self.lr, name="fit", schedule="exponential", final=0.1,
                optimiser=lambda groups: Adam(groups, betas=(0.9, 0.99), eps=1e-15))
        nearest = min(range(len(spectrum.energies)), key=lambda e: abs(spectrum.energies[e] - spectrum.mean))
        run.note(energy=spectrum.energies[nearest])
        return only(problem.field, nearest)


def only(field: Field, channel: int) -> Field:
    """One channel of a field of several: the same network with the rest of its last layer left out."""
    one = Field(field.spec, field.box, unit=field.unit)
    wanted = one.state_dict()
    one.load_state_dict({k: v if v.shape == wanted[k].shape else v[channel:channel + 1] for k, v in field.state_dict().items()})
    return one
