"""IntraTomo: a field predicts the views that are missing, an image is refined on all of them, and the field learns from it, in turn.

A, sinogram prediction: a field f >= 0 learns the measured projections, and is projected to the views that lie between them and beyond.
B, geometry refinement: an image x >= 0 explains the measured views y and the predicted ones p,
    1/2 |A x - y|^2 + trust / 2 |A' x - p|^2 + tv sum |grad x| + pull / 2 |x - NLM(x)|^2,  NLM(x) by the x of up to 25 steps ago.
In the next round the field also stays near x, with weight `near`. Fully trusted predictions make B worse than A: trust < 1.

Needs: projections in a known geometry, few of them (8 to 60) or from a part of the turn.
Gives: attenuation in 1/mm: the image of the last B.
Deviations: layer counts, weights, inner steps and the trust are ours; all rays in a step, through the lattice (`rays` draws some).
Fidelity: interpreted (the idea and its modules from the abstract and the project page; constants unread).
Licence: no official code is known; written from the paper's idea.
Use when: a field is wanted to fill a gap of angles. The loop is no free gain: on noise-free views total variation alone (`pdhg-tv`) is close
or better, and quicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cases import Projections
from ..errors import InputError
from ..fields import MLP, Fourier, GridEncoding, Positive, Spec
from ..solve import Method, Run
from ..solve.non_local import non_local_means
from ..solve.projections import Misfit, ProjectionFit
from ..solve.tomography import PrimalDualTV, RaySystem
from ..solve.views import completed, reprojected
from ..space import Volume


class Prediction(ProjectionFit):
    """Module A: the field learns the projections, and to be near the image [I, J, K] of the round before, with a weight."""

    near: tuple[Tensor, float] | None = None

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        out = super().losses(batch, progress)
        if self.near and self.near[1]:
            flat, weight = self.near[0].reshape(-1), self.near[1]
            index = torch.randint(len(flat), (min(len(flat), 1 << 14),), device=flat.device)
            out["near"] = weight * ((self.field(self.points[index])[:, 0] - flat[index]) / self.case.level).square().mean()
        return out


@dataclass(frozen=True)
class IntraTomo(Method):
    """Zang, Idoughi, Li, Wonka and Heidrich, ICCV 2021.

    Args:
        net: of the field.
        rounds: of A and B; 1 is A, then B as a last step.
        refine: False leaves B out: the field alone, after as many steps.
        steps: of Adam, shared out among the rounds.
        lr: its rate, exponentially to a tenth in each round.
        misfit: of A, "l1" or "l2".
        rays: in a step of A; None takes all through the lattice.
        views: of the half turn (parallel) or turn, measured and predicted.
        trust: how much a predicted ray counts against a measured one.
        tv, pull, h: of B: total variation, non-local means, and how alike its patches must be (in typical attenuations).
        inner: steps of B.
        near: how much the field is held to the image of the round before.
    """

    paper: ClassVar[str] = (
        "Guangming Zang and Ramzi Idoughi and Rui Li and Peter Wonka and Wolfgang Heidrich: IntraTomo: Self-Supervised Learning-Based "
        "Tomography via Sinogram Synthesis and Prediction. ICCV 2021. https://neuralfields.cs.brown.edu/paper_243.html")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(GridEncoding(4, 2.0, 16.0, log2_table=10), width=16, depth=1), "steps": 40, "lr": 1e-2,
                                      "inner": 10, "views": 24}
    fidelity: ClassVar[str] = "interpreted"

    net: Spec = Positive(MLP(Fourier(size=256, sigma=4.0), width=256, depth=4, activation="silu"))
    rounds: int = 3
    refine: bool = True
    steps: int = 6000
    lr: float = 1e-3
    misfit: Misfit = "l2"
    rays: int | None = None
    views: int = 180
    trust: float = 0.003
    tv: float = 0.6
    pull: float = 0.3
    h: float = 0.05
    inner: int = 300
    near: float = 10.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or min(self.trust, self.near) < 0:
            raise InputError("one round is the least, and trust and near cannot be negative")

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        problem = Prediction(self.net, case, rays=self.rays or 0, misfit=self.misfit)
        for k in range(self.rounds):
            run.fit(problem, steps=max(1, self.steps // self.rounds), lr=self.lr, name=f"A {k + 1}", schedule="exponential")
            image = self._image(problem, case, run, f"B {k + 1}")
            problem.near = (image, self.near) if self.refine else None
        return Volume(image.cpu(), case.grid, case.unit)

    @torch.no_grad()
    def _image(self, problem: Prediction, case: Projections, run: Run, name: str) -> Tensor:
        """What the field says, refined by module B: [I, J, K] 1/mm on the run's device."""
        image = problem.on_lattice()
        if not self.refine:
            return image
        geometry, measured = completed(case.geometry, self.views)
        whole = reprojected(case, Volume(image, case.grid), geometry, measured)
        worth = torch.full_like(whole.data, self.trust)
        worth[measured] = case.weight
        state = PrimalDualTV(RaySystem(whole, device=run.device, level=case.level, weight=worth), self.tv, x=image / case.level, pull=self.pull)
        for n in run.steps(self.inner, name, state):
            if self.pull and n % 25 == 0:
                state.towards = non_local_means(state.answer, self.h)
            state.step()
            run.report(residual=state.residual, change=state.change)
        return case.level * state.answer
