"""NeRP: the earlier scan of the same patient is the start of the fit, and what the new views contradict is unlearned.

(1) A field learns the earlier image, min mean (f - x_prior)^2 / 2. (2) From there it learns the new projections, min mean (A f - y)^2. There
is no other regulariser: the earlier scan acts through the weights alone. The rate matters: too small a rate of (2) keeps the earlier
scan as it was, changes included (a pilot with a grid, before this code: 35.4 dB at 3e-3, 30.7 at 3e-4). A scan of another patient, or a
badly aligned one, is found out: with some views kept aside, a second field starts from a rough image of the other views; both are fitted
for a while, and the one that explains the kept views better goes on, on all views.

Needs: projections in a known geometry; an earlier scan of the same patient in 1/mm, aligned with the new one (without it the start is cold).
Gives: attenuation in 1/mm at any point.
Deviations: the race against a rough image is ours (race 0 goes without, and trusts the earlier scan); integrals instead of means along rays; no
resampler that wraps round the image's corners; no weight decay (1e-4 at a rate of 1e-4). With `net` a hash grid, l1 and a rate of 3e-3 for
both starts it fits on a CPU.
Fidelity: published (network, rates, steps, of the 2-D experiments).
Licence: written from notes on the paper; no code of theirs was copied. The authors' code is for research only (Stanford OTL), and the idea has
patents pending (US 2022/0414953, US 2023/0024401): ask before commercial use.
Use when: there is an aligned earlier scan and few views (10 to 30). With none, total variation (`pdhg-tv`) is better and quicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ..cases import Projections
from ..fields import MLP, Field, Fourier, GridEncoding, Siren, Spec
from ..solve import Method, Run
from ..solve.embed import Embedding, first_look
from ..solve.projections import Misfit, ProjectionFit


@dataclass(frozen=True)
class NeRP(Method):
    """Shen, Pauly and Xing, IEEE TNNLS 2022.

    Args:
        net: the network: 256 Gaussian frequencies before 7 layers of sines and a linear one.
        embed_steps, embed_lr: of Adam on the earlier image.
        steps: of Adam on the projections, the race included.
        lr, cold_lr: its rates after a warm and after a cold start.
        final: share of the rate at the end, exponentially; 1 keeps it.
        misfit: of the projections, "l1" or "l2".
        tv: weight of the total variation.
        rays: in a step; None takes all through the lattice, which suits slices.
        warm: False starts from random weights even if there is an earlier scan.
        race: share of the steps after which the better of the two starts goes on; 0 trusts the earlier scan.
        held_out: share of the views that decides the race.
    """

    paper: ClassVar[str] = (
        "Liyue Shen and John Pauly and Lei Xing: NeRP: Implicit Neural Representation Learning with Prior Embedding for Sparsely Sampled "
        "Image Reconstruction. IEEE Transactions on Neural Networks and Learning Systems 2022. arXiv:2108.10991")
    task: ClassVar[str] = "ct"
    uses: ClassVar[tuple[str, ...]] = ("prior",)
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(GridEncoding(4, 2.0, 16.0, log2_table=10), width=16, depth=1), "embed_steps": 20, "steps": 40,
                                      "embed_lr": 1e-2, "lr": 1e-2, "cold_lr": 1e-2, "held_out": 0.2}

    net: Spec = Siren(width=256, depth=7, encoding=Fourier(size=256, sigma=4.0))
    embed_steps: int = 1000
    embed_lr: float = 1e-4
    steps: int = 1000
    lr: float = 1e-5
    cold_lr: float = 1e-4
    final: float = 1.0
    misfit: Misfit = "l2"
    tv: float = 0.0
    rays: int | None = None
    warm: bool = True
    race: float = 0.25
    held_out: float = 0.1

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field:
        problem = self._problem(case)
        if not self.warm or case.prior is None:
            return self._fit(problem, run, self.steps, self.cold_lr, "cold start")
        image, trial = case.prior.on(case.grid).data[0], round(self.race * self.steps)
        run.fit(Embedding(problem.field, case.grid, image), steps=self.embed_steps, lr=self.embed_lr, name="earlier scan")
        if not trial:
            return self._fit(problem, run, self.steps, self.lr, "warm start")
        warm, rough = self._problem(case, self.held_out), self._problem(case, self.held_out)
        warm.field.load_state_dict(problem.field.state_dict())
        embedding = Embedding(rough.field, case.grid, first_look(rough.case, run))
        run.fit(embedding, steps=self.embed_steps, lr=self.embed_lr, name="rough image")
        for name, racer in (("warm", warm), ("rough", rough)):
            self._fit(racer, run, trial, self.lr, f"race {name}")
        errors = [float(cast(Tensor, racer.eval().held_out())) for racer in (warm, rough)]
        kept, name = (warm, "earlier scan") if errors[0] <= errors[1] else (rough, "rough image")
        run.note(start=name, held_out_errors=dict(zip(("earlier scan", "rough image"), errors, strict=True)))
        problem.field.load_state_dict(kept.field.state_dict())
        return self._fit(problem, run, max(1, self.steps - trial), self.lr, "fit")

    def _problem(self, case: Projections, held_out: float = 0.0) -> ProjectionFit:
        return ProjectionFit(self.net, case, rays=self.rays or 0, misfit=self.misfit, tv=self.tv, held_out=held_out)

    def _fit(self, problem: ProjectionFit, run: Run, steps: int, lr: float, name: str) -> Field:
        return run.fit(problem, steps=steps, lr=lr, name=name, schedule="exponential", final=self.final).field
