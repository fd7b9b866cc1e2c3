"""Multi-resolution B-spline free-form deformation: the strongest cheap way to register two images.

u(x) = sum_n c_n B3(x / h - n), with c minimising  unlike(F, M(x + u)) + bending mean |D^2 u|^2 + volume mean (det + 1/det - 2)
over all voxels, from blurred images and wide lattices to sharp and fine ones, by Adam on nested lattices. The last term lets nothing fold.

Needs: two images; a mask helps where organs slide along one another.
Gives: displacement, mm, with exact derivatives.
Use when: always try it first. For motion wider than the detail it carries, `fluid` searches first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from ..cases import Pair
from ..fields import Field
from ..solve import Method, Run
from ..solve.freeform import FreeForm, coarse_to_fine


@dataclass(frozen=True)
class BSplineFFD(Method):
    """Rueckert et al. 1999, with windowed correlation.

    Args:
        spacing: of the finest lattice, mm.
        levels: lattices, each twice as wide as the one before.
        voxels: mm, of the images in each stage; never finer than the images' own.
        blur: Gaussian sigma in each stage, mm.
        steps: of each stage.
        lr: of Adam, mm, in the first stage; it falls to a twentieth in each, and starts a third lower in the next.
        similarity: windowed correlation; mutual information or MIND for different modalities; mean squared difference for equal scales.
        radius: of the windows, voxels of the stage.
        bending: weight, mm^2.
        volume: weight of the change of volume.
    """

    paper: ClassVar[str] = (
        "Daniel Rueckert and Luke Sonoda and Carmel Hayes and Derek Hill and Martin Leach and David Hawkes: Nonrigid registration using free-form "
        "deformations: application to breast MR images. IEEE Transactions on Medical Imaging 1999. doi:10.1109/42.796284")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"spacing": 8.0, "levels": 2, "voxels": (4.0, 2.0), "blur": (2.0, 0.0), "steps": (20, 20)}
    fidelity: ClassVar[str] = "classical"

    spacing: float = 6.0
    levels: int = 4
    voxels: tuple[float, ...] = (6.0, 4.0, 3.0, 2.0)
    blur: tuple[float, ...] = (3.0, 2.0, 1.0, 0.0)
    steps: tuple[int, ...] = (60, 60, 60, 40)
    lr: float = 0.4
    similarity: Literal["ncc", "mi", "mind", "mse"] = "ncc"
    radius: int = 3
    bending: float = 100.0
    volume: float = 0.01

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        form = FreeForm(case.grid, case.box(), self.spacing, self.levels)
        coarse_to_fine(form, case, run, self.voxels, self.blur, self.steps, self.lr, self.similarity, self.radius, self.bending, self.volume)
        return form.field(case)
