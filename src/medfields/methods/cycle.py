"""Cycle consistency: a second network registers the other way round, both keep to each other, and where they differ the answer is unsure.

Forward u and backward w are trained together: 1 - NCC of both ways, |u(x) + w(x + u(x))|^2 and its mirror image, and det + 1/det - 2 of both. The
answer is the mean of u and of the inverse of w, by one Newton step from u. Half of what parts these two is the uncertainty in mm, which
`fields.agreed.uncertainty` gives at any point.

Needs: a fixed and a moving image of one kind, roughly aligned; masks of what is to match, best in both images.
Gives: displacement, mm, at any point, with first derivatives, and its uncertainty in mm.
Deviations: coordinates are mm with one radius for all axes, the cycle error is in mm^2 as published; below det = 0.1 the penalty is a straight line
instead of a constant, so that folds are left again; without a moving mask both ways draw from the fixed one.
Fidelity: published (losses, cycle weight, inference; network, rate and weight of the penalty as IDIR).
Licence: the authors' code states no licence; none of it is used.
Use when: failures must be rare or known of: an error in mm comes with the answer. It costs twice what `idir` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..cases.pair import Pair
from ..fields import Field, Siren, displacement
from ..fields.agreed import Agreed, Mean, uncertainty
from ..losses import symmetric_volume_change
from ..solve import Method, Problem, Run
from ..solve.pairing import PointMatch, Points, stretch
from ..space import Volume


class CycleMatch(Problem):
    """Both ways, and what a point lacks to come back to where it began."""

    memory = "points, the number of points in a step"

    def __init__(self, cfg: Cycle, there: PointMatch, back: PointMatch):
        super().__init__()
        self.cfg, self.there, self.back = cfg, there, back

    def batch(self, rng: torch.Generator) -> tuple[Points, Points]:
        return self.there.batch(rng), self.back.batch(rng)

    def losses(self, batch: tuple[Points, Points], progress: float) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        lacking = torch.zeros((), device=batch[0].device)
        for name, x, way, other in (("forward", batch[0], self.there, self.back), ("backward", batch[1], self.back, self.there)):
            u, penalty = way.swept(x)
            terms |= {name: 1 - way.alike(x, x + u), f"{name} penalty": penalty["penalty"]}
            lacking = lacking + (u + other.warp(x + u)).square().mean()
        return terms | {"cycle": self.cfg.cycle * lacking}


@dataclass(frozen=True)
class Cycle(Method):
    """Van Harten, Stoker and Isgum, IEEE TMI 2024.

    Args:
        net: each of the two networks.
        steps, lr: of Adam.
        points: of each mask in a step.
        cycle: weight of the cycle error, 1/mm^2.
        weight: of the mean of det + 1/det - 2.
        zero_start: begin with no displacement instead of random ones.
    """

    paper: ClassVar[str] = (
        "Louis D. van Harten and Jaap Stoker and Ivana Isgum: Robust Deformable Image Registration Using Cycle-Consistent Implicit "
        "Representations. IEEE Transactions on Medical Imaging 2024. arXiv:2310.01934")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"net": Siren(width=32, depth=2, omega_first=10.0, omega=10.0), "steps": 20, "lr": 1e-3, "points": 500}

    net: Siren = Siren(width=256, depth=3, omega_first=32.0, omega=32.0)
    steps: int = 2500
    lr: float = 1e-4
    points: int = 10_000
    cycle: float = 1e-3
    weight: float = 0.05
    zero_start: bool = False

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        def penalty(slope: Tensor) -> Tensor:
            return self.weight * symmetric_volume_change(stretch(slope))

        counted = case.aligned_mask or Volume(case.inside.float(), case.grid).on(case.aligned.grid)
        turned = Pair(case.aligned, case.fixed, counted, case.mask)
        there, back = (case.displacement(self.net, zero=self.zero_start) for _ in range(2))
        problem = CycleMatch(self, PointMatch(case, there, self.points, penalty), PointMatch(turned, back, self.points, penalty))
        run.fit(problem, steps=self.steps, lr=self.lr, name="register")
        made = displacement(Agreed(there.spec, back.spec), there.box, seed=0).to(run.device)
        net = cast(Mean, made.net)
        net.onward.load_state_dict(there.net.state_dict())
        net.backward.load_state_dict(back.net.state_dict())
        unsure = torch.cat([uncertainty(made, x).detach() for x in problem.there.points[::37].split(4096)])
        run.note(uncertainty_mm={"mean": float(unsure.mean()), "95 %": float(unsure.quantile(0.95))})
        return made
