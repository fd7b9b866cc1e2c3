"""Kim: a field fitted to few views serves as a prior image; what it leaves of the projections is filtered, backprojected and added.

x = FBP(y) - (FBP(A f) - f) = f + FBP(y - A f): the streaks that the few views make of the field f are known, so they are taken off the
reconstruction of the data; or, read the other way, one filtered correction brings back detail that the field has smoothed away.

Needs: projections of a slice or a volume from a parallel, fan or circular cone beam.
Gives: attenuation in 1/mm on the grid of the case; with `--weight 0`, the field itself.
Deviations: the architecture is not public; Fourier features with a network of 4 x 256 are our guess. The correction is weighted and Hann filtered.
Fidelity: interpreted.
Use when: the field is too smooth and detail matters more than streaks. In PSNR the correction gains decibels where the field has not converged and
next to nothing where it has; it brings back streaks of the residual. Total variation (`pdhg-tv`) is better and quicker.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Projections
from ..fields import MLP, Field, Fourier, Positive, Spec
from ..solve import Method, Run
from ..solve.fbp import Orbit, Window, filtered_backprojection
from ..solve.projections import Misfit, ProjectionFit
from ..space import Volume


@dataclass(frozen=True)
class Kim(Method):
    """Kim, Shim & Baek, SPIE Medical Imaging 2022.

    Args:
        net: of the field.
        steps, lr: of Adam, a tenth at the end.
        rays: in a step; None takes all of them, through the grid.
        misfit: "l2" as published, or "l1".
        tv: weight of the total variation; published is 0.
        weight: of the correction; 0 returns the field.
        window: of the ramp filter.
    """

    paper: ClassVar[str] = (
        "Byeongjoon Kim and Hyunjung Shim and Jongduk Baek: Streak artifacts reduction algorithm using an implicit neural representation in "
        "sparse-view CT. SPIE Medical Imaging 2022. doi:10.1117/12.2610722")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"net": Positive(MLP(Fourier(size=16, sigma=2.0), width=16, depth=2)), "steps": 15}
    fidelity: ClassVar[str] = "interpreted"

    net: Spec = Positive(MLP(Fourier(size=256, sigma=2.0), width=256, depth=4))
    steps: int = 2000
    lr: float = 1e-3
    rays: int | None = None
    misfit: Misfit = "l2"
    tv: float = 0.0
    weight: float = 1.0
    window: Window = "hann"

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Field | Volume:
        if self.weight:
            Orbit.of(case.geometry)  # views that cannot be backprojected are better refused before the fit
        problem = ProjectionFit(self.net, case, rays=self.rays or 0, misfit=self.misfit, tv=self.tv)
        field = run.fit(problem, steps=self.steps, lr=self.lr, name="fit", schedule="exponential").field.cpu()
        if not self.weight:
            return field
        image = field.on(case.grid).volume().data[0]
        of_field = replace(case, data=case.projector().apply(image), good=None)
        of_data = replace(of_field, data=torch.where(case.weight > 0, case.clean, of_field.data))  # where nothing was measured, nothing is corrected
        first, second = (filtered_backprojection(c, self.window)[0] for c in (of_data, of_field))
        return Volume(image + self.weight * (first - second), case.grid, case.unit)
