"""Filtered backprojection: parallel beams, flat and curved fans, and circular cone beams (FDK), chosen by the geometry.

Exact for noiseless, densely sampled slices; in a cone beam exact in the plane of the source, approximate away from it. Fans of less than a
turn get Parker's weights (1982), detectors on one side of the axis Wang's (2002); uneven angles count by the gaps to their neighbours.

Needs: projections of a circular orbit with the detector facing the axis; any other is refused, with a hint. Pixels that are not to be
trusted are filled in along their row.
Gives: attenuation in 1/mm; it may be negative.
Use when: views are many (more than the slice has voxels along a side), or an answer is needed at once. With fewer, pdhg-tv.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Projections
from ..solve import Method, Run
from ..solve.fbp import Window, filtered_backprojection
from ..space import Volume


@dataclass(frozen=True)
class FBP(Method):
    """Ramachandran & Lakshminarayanan 1971 for slices, Feldkamp, Davis & Kress 1984 for cone beams.

    Args:
        window: of the ramp filter: "ramp" is sharpest, "hann" quietest, "cosine" between.
    """

    paper: ClassVar[str] = (
        "L. A. Feldkamp and L. C. Davis and J. W. Kress: Practical cone-beam algorithm. Journal of the Optical Society of America A 1984. "
        "doi:10.1364/JOSAA.1.000612")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {}
    fidelity: ClassVar[str] = "classical"

    window: Window = "hann"

    @torch.no_grad()
    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        x, scan = filtered_backprojection(case, self.window, run.device)
        run.note(scan=scan)
        return Volume(x.cpu(), case.grid, case.unit)
