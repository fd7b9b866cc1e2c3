"""NeuRec: one network for many patients: it reads a coarse image of a patient and says the attenuation at any place, then adapts.

A small network of dilated convolutions turns the filtered backprojection c of a few views into a map of features z; the field is
f(x) = softplus(MLP(z(x), gamma(x))), z(x) read linearly. `learn` teaches both networks on other patients: it shows them `views` of a
patient's projections, evenly spread, and asks for all, min mean |A f - y|, before and after a ramp filter. So patients who were scanned
densely teach most; no images are needed. `solve` makes the field of a new patient in one pass, and adapts its map and MLP to the
patient's own projections.

Needs: projections in a known circular geometry; other patients' projections, best with many more views than `views`, to learn from.
Gives: attenuation in 1/mm at any point.
Deviations: the sizes, and what adapts, are ours; learned on projections, where images would do too. Without a learned prior the networks start
at random and all is left to the adaptation.
Fidelity: interpreted (paper's idea; its details are unread).
Licence: no code is known; written from the idea.
Use when: there are scans of other patients of the same region, and a patient with few views. What is not in the views comes from the others.
Measured: one dB over an unlearned start after 100 steps of adaptation, next to nothing after 300.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ..cases import Projections
from ..errors import InputError
from ..fields import BSpline, Conditional, Field, Fourier, Network, Positive, Spec
from ..solve import Method, Run
from ..solve.cohort import Cohort, Reader
from ..solve.fbp import filtered_backprojection
from ..solve.projections import Misfit, ProjectionFit
from ..space import Grid


@dataclass(frozen=True)
class NeuRec(Method):
    """Liu, Wang and Zhang, BioMed Research International 2022.

    Args:
        encoding: of the coordinates.
        features: numbers at each point of the map, the coarse image among them; 1 leaves the convolutional network out.
        width, depth: of the MLP's hidden layers.
        filters, layers: of the convolutional network.
        views: that the networks see of a patient while they learn: about as many as patients will have.
        learn_steps, learn_lr: of Adam over patients, cosine to zero.
        detail: weight, while learning, of the ramp-filtered misfit, without which fine parts hardly count.
        steps, lr: of the adaptation; no steps leaves it out.
        misfit: of projections, "l1" or "l2".
    """

    paper: ClassVar[str] = (
        "Cong Liu and Qingbin Wang and Jing Zhang: NeuRec: Incorporating Interpatient prior to Sparse-View Image Reconstruction for "
        "Neurorehabilitation. BioMed Research International 2022. https://www.hindawi.com/journals/bmri/2022/5426643/")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"encoding": Fourier(size=4, sigma=1.0), "features": 4, "width": 16, "filters": 4, "layers": 1, "views": 6,
                                      "learn_steps": 20, "steps": 10}
    fidelity: ClassVar[str] = "interpreted"

    encoding: Spec = Fourier(size=16, sigma=4.0)
    features: int = 16
    width: int = 64
    depth: int = 2
    filters: int = 32
    layers: int = 8
    views: int = 20
    learn_steps: int = 2000
    learn_lr: float = 2e-3
    detail: float = 10.0
    steps: int | None = 300
    lr: float = 5e-3
    misfit: Misfit = "l1"

    def learn(self, cohort: Sequence[Projections], run: Run) -> Reader:
        if not cohort:
            raise InputError("there is nobody to learn from", "give the projections of other patients")
        problem = Cohort(self._reader(), cohort, self.views, self.misfit, self.detail)
        return run.fit(problem, steps=self.learn_steps, lr=self.learn_lr, name="learn", schedule="cosine", final=0.0).reader

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field:
        reader = self._reader()
        if prior is not None:
            if {k: v.shape for k, v in prior.state_dict().items()} != {k: v.shape for k, v in reader.state_dict().items()}:
                raise InputError("what was learned has other sizes than this network", "give the hyper-parameters that it was learned with")
            reader.load_state_dict(prior.state_dict())
        problem = ProjectionFit(Positive(self._spec(case.grid)), case, misfit=self.misfit)
        net = cast(Network, problem.field.net.net)
        with torch.no_grad():
            coarse = filtered_backprojection(case, "hann")[0] / case.level
            mine = {k: v for k, v in reader.net.state_dict().items() if not k.startswith("encoding.map.")}
            net.load_state_dict(mine | {"encoding.map.coefficients": reader.features(coarse)}, strict=True)
        if self.steps is None:
            return problem.field
        return run.fit(problem, steps=self.steps, lr=self.lr, name="adapt", schedule="cosine", final=0.0).field

    def _spec(self, grid: Grid) -> Conditional:
        return Conditional(BSpline.on(grid), self.features, self.encoding, self.width, self.depth)

    def _reader(self) -> Reader:
        return Reader(self._spec(Grid.from_spacing((1, 1, 1), 1.0)), self.filters, self.layers)
