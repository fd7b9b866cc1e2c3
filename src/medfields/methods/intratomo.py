"""IntraTomo: a field predicts the views that are missing, an image is refined on all of them, and the field learns from it, in turn.

A, sinogram prediction: a field f >= 0 learns the measured projections, and is projected to the views that lie between them and beyond.
B, geometry refinement: an image x >= 0 explains the measured views y and the predicted ones p,
    1/2 |A x - y|^2 + trust / 2 |A' x - p|^2 + tv sum |grad x| + pull / 2 |x - NLM(x)|^2.
In the next round the field also stays near x, with weight `near`. Fully trusted predictions make B worse than A, so the measured views
count more (trust < 1).

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
from ..fields import MLP, Fourier, GridEncoding, Positive, Spec
from ..operators.projections import Projector
from ..solve import Method, Run
from ..solve.projections import Misfit, ProjectionFit
from ..solve.refine import Refinement, completed
from ..space import Volume


class Prediction(ProjectionFit):
    """Module A: the field learns the projections, and to be near the image of the round before."""

    near: Tensor
    image: Tensor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("image", torch.zeros(self.grid.shape))
        self.register_buffer("near", torch.zeros(()))

    def stay_near(self, image: Tensor, weight: float) -> None:
        """From now on."""
        self.image.copy_(image)
        self.near.fill_(weight)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        out = super().losses(batch, progress)
        if self.near > 0:
            flat = self.image.reshape(-1)
            index = torch.randint(len(flat), (min(len(flat), 1 << 14),), device=flat.device)
            out["near"] = self.near * ((self.field(self.points[index])[:, 0] - flat[index]) / self.case.level).square().mean()
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
    tv: float = 0.03
    pull: float = 0.3
    h: float = 0.05
    inner: int = 100
    near: float = 10.0

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        problem = Prediction(self.net, case, rays=self.rays or 0, misfit=self.misfit)
        geometry, measured = completed(case.geometry, self.views)
        projector, image = Projector(case.grid, geometry), problem.image
        for k in range(self.rounds):
            run.fit(problem, steps=max(1, self.steps // self.rounds), lr=self.lr, name=f"A {k + 1}", schedule="exponential")
            with torch.no_grad():
                image = problem.on_lattice()
            if not self.refine:
                continue
            predicted = projector.apply(image)
            data, worth = predicted, torch.full_like(predicted, self.trust)
            data[measured], worth[measured] = case.clean, case.weight
            refined = Refinement(projector, data, worth, image, case.level, self.tv, self.pull, self.h)
            for _ in run.steps(self.inner, f"B {k + 1}", refined):
                refined.step()
            image = refined.image
            problem.stay_near(image, self.near)
        return Volume(image.cpu(), case.grid, case.unit)
