"""Slice-to-volume reconstruction: slices registered to the subject and the subject rebuilt from them, in turn, with robust statistics.

Stacks are laid on one another, then, a few times over: every slice is registered to the subject as it is, coarse to fine; its gain is
matched; expectation and maximisation tell which pixels and slices fit; and the subject is rebuilt through the slice profile with an
edge-preserving prior, by conjugate gradients. A slice whose correlation with the subject stays below 0.5 is left out.

Needs: slices of two or more stacks that moved, with their thickness (mm), and masks of what moved as one.
Gives: intensity on the result's grid; in the run's notes the poses.
Deviations: slices are registered by Gauss-Newton steps on squared differences with a free gain, which has the same optimum as the paper's
correlation and gets there sooner; the prior sees three directions, not thirteen; no bias field.
Use when: you want the classical answer, or to see what another method is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..cases import Slices
from ..solve import Method, Run
from ..solve.linear import conjugate_gradients, gradient, gradient_adjoint
from ..solve.motion import LIKENESS, Estimate, Found, Level, fixed, laid
from ..solve.plane_system import PlaneSystem
from ..solve.robust import believed
from ..solve.settle import aligned, coarsest, noted
from ..space import Volume


@dataclass(frozen=True)
class SVR(Method):
    """Kuklisova-Murgasova and others, with the settings of later software.

    Args:
        outer: registrations and reconstructions.
        inner: conjugate gradient steps with one set of beliefs and edges.
        rounds: such sets in a reconstruction; three times as many in the last.
        weight, edge: of the prior, and the difference between neighbours, in units of the contrast, that counts as an edge.
        coarse: spacing of the lattice on which slices are registered at first, in slice thicknesses; it halves to `fine` on the way.
        fine: see coarse.
    """

    paper: ClassVar[str] = (
        "Maria Kuklisova-Murgasova and Gerardine Quaghebeur and Mary A. Rutherford and Joseph V. Hajnal and Julia A. Schnabel: Reconstruction of "
        "fetal brain MRI with intensity matching and complete outlier removal. Medical Image Analysis 2012. doi:10.1016/j.media.2012.07.004")
    task: ClassVar[str] = "motion"
    tiny: ClassVar[dict[str, Any]] = {"outer": 2}
    fidelity: ClassVar[str] = "classical"

    outer: int = 8
    inner: int = 7
    rounds: int = 1
    weight: float = 0.02
    edge: float = 0.1
    coarse: float = 1.0
    fine: float = 0.4

    @torch.no_grad()
    def solve(self, case: Slices, run: Run, prior: nn.Module | None = None) -> Volume:
        size = coarsest(case)
        rest = aligned(case, run, self.coarse * size)
        state = Estimate(rest)
        state.c = self._rebuilt(PlaneSystem(case, state.found(), rest), 1)
        for n in run.steps(self.outer, "register and rebuild", state):
            mm = size * max(self.fine, self.coarse * 2.0 ** (-3 * n / max(1, self.outer - 1)))
            lattice = PlaneSystem(case, state.found(), rest).lattice
            level = Level.of_spacing(case, mm, state.poses.numpy())
            subject = Volume(state.c, lattice).blurred(0.4 * mm).on(level.lattice).data[0]
            poses, gain, _ = laid(level, subject, state.poses.numpy(), torch.ones_like(level.y), rest, np.arange(len(rest)),
                                  np.full(len(rest), 0.1), 0.05, 10)
            poses = fixed(poses, case, rest, np.ones(len(rest)))
            likeness = level.likeness(level.operator(poses).apply(subject))
            state.take(Found(poses, gain / np.median(gain), (likeness >= LIKENESS).astype(np.float64), likeness))
            system = PlaneSystem(case, state.found(), rest)
            state.c = self._rebuilt(system, self.rounds * (3 if n == self.outer - 1 else 1))
        noted(run, case, state.found())
        return Volume(system.offset + system.scale * state.c[system.inner], case.grid, case.unit)

    def _rebuilt(self, system: PlaneSystem, rounds: int) -> Tensor:
        """Beliefs, edges and subject in turn, from the smooth subject."""
        c = system.solver(self.weight, steps=2 * self.inner)(system.adjoint(system.y), torch.zeros(system.lattice.shape))
        of, n = system.plane.numpy(), len(system.case.slices)
        for _ in range(rounds):
            pixels, slices = believed(system.residual(c).double().numpy(), of, n)
            system.weigh(torch.from_numpy(pixels * (slices * system.found.worth)[of]).float())
            flow = 1 / (1 + gradient(c).square() / self.edge**2).sqrt()
            c = conjugate_gradients(partial(self._normal, system, flow), system.adjoint(system.y), c, self.inner)
        return c

    def _normal(self, system: PlaneSystem, flow: Tensor, c: Tensor) -> Tensor:
        """Of the data and of an edge-preserving prior with its weights held: large where neighbours hardly differ."""
        return system.normal(c) + self.weight * gradient_adjoint(flow * gradient(c))
