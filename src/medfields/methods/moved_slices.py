"""Moved slices: poses by Gauss-Newton, coarse to fine, then a robust, edge-preserving answer on a lattice finer than the pixels.

The default of `superres --motion`. (1) Whole stacks are laid on the one that moved least within itself. (2) Subject and poses in turn, at three
resolutions: the subject is rebuilt by least squares through the slice profile, then every slice makes Gauss-Newton steps on its turn, its shift
and its gain. Pixels that stand out and slices that fit badly count less; slices that stand out start again from other places, and those that
stay unlike the subject are left out. (3) With poses and gains fixed, the subject is what fits best with smooth regions and few edges.

Needs: slices of two or more stacks that moved, with their thickness (mm), and masks of what moved as one.
Gives: intensity, as a trilinear field on a lattice finer than the pixels; in the run's notes the poses, gains and weights of the slices.
Deviations: there is no paper; the parts are those of slice-to-volume reconstruction (Kuklisova-Murgasova et al., MedIA 2012) with
second-order steps for the poses.
Fidelity: ours.
Use when: a subject moved between slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from ..cases import Slices
from ..fields import BSpline, Field, LinearBasis
from ..solve import Method, Run
from ..solve.linear import EdgePreserving
from ..solve.plane_system import PlaneSystem
from ..solve.settle import noted, settled


@dataclass(frozen=True)
class MovedSlices(Method):
    """Poses; weights; subject.

    Args:
        alternations: of subject and poses, at each of three resolutions.
        smooth: weight of the squared gradient of the subject meanwhile, for intensities of about 0 to 1.
        weight, edge: of the prior on a lattice as fine as the pixels, and the difference of neighbours, for intensities of about 0 to 1, above
            which they are an edge.
        lattice: spacing of the lattice that is solved for, over the finest pixel's, but never coarser than the result: where slices lie
            anywhere, so does the subject's detail, and a lattice as coarse as the detail holds it or not, depending on where its points fall.
        steps: solutions, each with the edges of the last one.
    """

    paper: ClassVar[str] = "{The medfields developers}: medfields, continuous fields from medical measurements. Software, 2026"
    task: ClassVar[str] = "motion"
    tiny: ClassVar[dict[str, Any]] = {"alternations": 2, "steps": 2}
    fidelity: ClassVar[str] = "ours"

    alternations: int = 10
    smooth: float = 0.005
    weight: float = 0.05
    edge: float = 0.05
    lattice: float = 0.75
    steps: int = 4

    def solve(self, case: Slices, run: Run, prior: nn.Module | None = None) -> Field:
        found = settled(case, run, steps=self.alternations, smooth=self.smooth)
        noted(run, case, found)
        # Slices that were kept count alike from here on, for a badly fitting one is often the only one that sees what it sees.
        kept = replace(found, worth=(found.worth > 0).astype(np.float64))
        result = float(case.grid.spacing.max())
        mm = min(self.lattice * case.pixel, result)
        system = PlaneSystem(case, kept, finer=mm / result)
        step = mm / case.pixel  # of differences: their squares shrink with the square of it, and there are more of them by its cube
        x = system.solver(self.smooth * step, steps=20)(system.adjoint(system.y), torch.zeros(system.lattice.shape))
        system.doubt(x)
        state = EdgePreserving(system, self.weight * step, self.edge * step, x)
        for _ in run.steps(self.steps, "subject", state):
            state.step()
            run.report(change=state.change)
        field = Field(BSpline.on(system.lattice), system.lattice.box(), 1, unit=case.unit)
        with torch.no_grad():
            cast(LinearBasis, field.net).coefficients[0] = system.offset + system.scale * state.x
        return field
