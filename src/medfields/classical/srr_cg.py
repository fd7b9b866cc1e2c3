"""Super-resolution reconstruction: least squares through the slice profile with a gradient penalty, by conjugate gradients.

min over c of  sum_s |A_s c - y_s|^2 + weight |D c|^2, with A_s the exact slice-average matrix of a trilinear lattice: the
honest baseline of every super-resolution claim (Poot et al., MICCAI 2010; Gholipour et al., IEEE TMI 2010).

Needs: stacks with their slice thickness (mm).
Gives: intensity, one channel for each contrast.
Use when: you need an answer in seconds, without a network and with nothing invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Stacks
from ..solve import Method, Run
from ..solve.linear import ConjugateGradients, SliceSystem, padded
from ..space import Volume


@dataclass(frozen=True)
class SRRCG(Method):
    """One linear solve for each contrast.

    Args:
        weight: of the squared gradient per voxel, for intensities of about 0 to 1.
        steps: of conjugate gradients, at most.
    """

    paper: ClassVar[str] = (
        "Ali Gholipour and Judy A. Estroff and Simon K. Warfield: Robust Super-Resolution Volume Reconstruction From Slice "
        "Acquisitions: Application to Fetal Brain MRI. IEEE Transactions on Medical Imaging 2010. doi:10.1109/TMI.2010.2051680")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"steps": 10}
    fidelity: ClassVar[str] = "classical"

    weight: float = 0.02
    steps: int = 60

    @torch.no_grad()
    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Volume:
        lattice, inner = padded(case)
        channels = []
        for contrast in case.contrasts:
            system = SliceSystem(case.only(contrast), lattice, device=run.device)
            b = system.adjoint(system.y)
            state = ConjugateGradients(partial(system.normal, smooth=self.weight), b, torch.zeros_like(b), system.preconditioner(self.weight))
            for _ in run.steps(self.steps, f"conjugate gradients {contrast}".strip(), state):
                if state.done:
                    break
                state.step()
                run.report(residual=state.residual.norm())
            channels.append((system.offset + system.scale * state.x)[inner].cpu())
        return Volume(torch.stack(channels), case.grid, case.unit)
