"""Distance-weighted compounding: a voxel is the mean of the pixels around it, each weighted by a Gaussian of its distance.

f(x) = sum_p w(|x - x_p|) y_p / sum_p w(|x - x_p|), w(r) = exp(-r^2 / 2 sigma^2). Gaps are filled first, with frames on the straight line from each
to the next, so that sigma need not bridge them. The width sigma is found from frames that are left out and predicted; then all are used.
Beyond four sigma from any frame the answer is 0.

Needs: frames with their poses, in the order in which they were taken.
Gives: grey values on the output grid.
Deviations: the filling (after Coupe et al. 2007, who interpolate along the path of the probe), without which (`--between 0`) it is the plain one.
Use when: you have a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor, nn

from ..cases import Sweep
from ..errors import InputError
from ..operators.planes import PlaneOperator
from ..solve import Method, Run
from ..space import Volume

REACH = 4.0  # sigmas
FEWEST = 5  # frames; of fewer none can be left out


@dataclass(frozen=True)
class Compounding(Method):
    """Barry et al. 1997, with a Gaussian; the width by leaving frames out.

    Args:
        sigmas: mm, widths that are tried; a single one is taken as it is.
        between: mm from frame to frame after gaps are filled; 0 takes the frames alone.
        every: each so many frames one is left out to choose among them.
    """

    paper: ClassVar[str] = (
        "C. D. Barry and C. P. Allott and N. W. John and P. M. Mellor and P. A. Arundel and D. S. Thomson and J. C. Waterton: Three-dimensional "
        "freehand ultrasound: image reconstruction and volume analysis. Ultrasound in Medicine and Biology 1997. "
        "doi:10.1016/S0301-5629(97)00123-3")
    task: ClassVar[str] = "ultrasound"
    tiny: ClassVar[dict[str, Any]] = {"sigmas": (0.8, 1.6), "every": 3}
    fidelity: ClassVar[str] = "classical"

    sigmas: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.1, 1.3, 1.6, 2.0, 2.5)
    between: float = 0.3
    every: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigmas or not all(0 < s < np.inf for s in self.sigmas):
            raise InputError(f"sigmas must be positive mm, got {self.sigmas}", "for instance --sigmas 0.5 1 2")

    @torch.no_grad()
    def solve(self, case: Sweep, run: Run, prior: nn.Module | None = None) -> Volume:
        sigma, case = self.sigmas[0], case.coarser(max(1, int(case.grid.spacing.min() / 2 / case.pixel)))  # finer is lost in voxels
        if len(self.sigmas) > 1 and len(case.frames) >= FEWEST:
            shown, held = case.without(self.every, self.every // 2)
            sums = splatted(shown.filled(self.between))
            errors = [held.misfit(compounded(held, sums, s)) for s in self.sigmas]
            sigma = self.sigmas[int(np.argmin(errors))]
        run.note(sigma_mm=sigma)
        return compounded(case, splatted(case.filled(self.between)), sigma)


def splatted(case: Sweep) -> tuple[Tensor, Tensor]:
    """Sums of the grey values and of the weights of all pixels, each shared among the eight voxels around it."""
    inside = torch.cat([case.box().contains(case.points(n)) for n in range(len(case.frames))])
    at, plane, value = (part[inside] for part in case.pixels())
    matrix = PlaneOperator(case.grid, at, plane, case.affines, "none", [1.0] * len(case.frames))
    return matrix.adjoint(value), matrix.adjoint(torch.ones_like(value))


def compounded(case: Sweep, sums: tuple[Tensor, Tensor], sigma: float) -> Volume:
    """The mean of what lies around each voxel."""
    width = sigma / case.grid.spacing
    total, weight = (scipy.ndimage.gaussian_filter(s.double().numpy(), width, mode="constant", truncate=REACH) for s in sums)
    return Volume(np.where(weight > 1e-9, total / np.maximum(weight, 1e-9), 0), case.grid, case.unit)
