"""Linear interpolation of the metal trace: rays through metal are replaced by the straight line between their neighbours in the row.

The mask of the metal is projected; what it touches counts as not measured and is interpolated along the detector's rows; filtered
backprojection of that gives an image without metal, into which the metal is put back, with the values of the uncorrected image.

Needs: projections on a circular orbit; where metal is, as a mask.
Gives: attenuation in 1/mm.
Use when: metal spoils a scan and a second is all there is: streaks go, and with them detail near the metal. polyner models what metal does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Projections
from ..errors import InputError
from ..solve import Method, Run
from ..solve.fbp import Window, filtered_backprojection
from ..space import Volume


@dataclass(frozen=True)
class LinearInterpolationMAR(Method):
    """Kalender, Hebel & Ebersberger, Radiology 1987.

    Args:
        window: of the filter, "ramp", "hann" or "cosine".
        least: mm of metal on a ray from which on it counts as spoilt.
    """

    paper: ClassVar[str] = ("Willi A. Kalender and Robert Hebel and Johannes Ebersberger: Reduction of CT artifacts caused by metallic implants. "
                            "Radiology 1987. doi:10.1148/radiology.164.2.3602406")
    task: ClassVar[str] = "ct"
    uses: ClassVar[tuple[str, ...]] = ("metal",)
    tiny: ClassVar[dict[str, Any]] = {}
    fidelity: ClassVar[str] = "classical"

    window: Window = "hann"
    least: float = 0.05

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        if case.metal is None:
            raise InputError(f"'{case.name}' does not say where metal is", "give a mask (--metal mask.nii.gz), or use fbp")
        mask = (case.metal.on(case.grid).data[0] > 0.5).float()
        trace = case.projector().apply(mask) > self.least
        good = (case.weight > 0) & ~trace
        if not good.any():
            raise InputError(f"every ray of '{case.name}' runs through metal", "is the mask inverted?")
        run.note(**{"rays through metal": float(trace.float().mean())})
        without, _ = filtered_backprojection(replace(case, good=good), self.window, run.device)
        spoilt, _ = filtered_backprojection(case, self.window, run.device)
        return Volume(torch.where(mask.to(without.device) > 0, spoilt, without).cpu(), case.grid, case.unit)
