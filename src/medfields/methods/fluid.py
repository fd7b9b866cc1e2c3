"""Fluid B-splines: every displacement is tried on a coarse lattice, then many small free-form steps, none of which folds, are put together.

phi = phi_0 o phi_n o ... o phi_1: each step phi_k(x) = x + u_k(x) is a B-spline that makes F and M(phi) a little more alike, in windows. Its
bending and its change of volume are penalised, those of the whole are not: like a fluid it may go far. Steps that do not fold cannot fold together.
phi_0 is a search (see `medfields.solve.search`), so that tissue that moved further than its detail is wide does not end in the wrong vessel.

Needs: two images of one modality; a mask helps where organs slide along one another.
Gives: displacement, mm, one cubic B-spline on a fine lattice, with exact derivatives.
Deviations: greedy methods smooth the gradient of each step with a Gaussian (Yushkevich's greedy, Avants' SyN); here each step is optimised.
Fidelity: ours.
Use when: always, for images of one modality; `bspline` is smoother and half as long, and knows mutual information.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..cases import Pair
from ..errors import InputError
from ..fields import Field
from ..solve import Method, Run
from ..solve.fluid import Steps, searched
from ..solve.freeform import Views


@dataclass(frozen=True)
class Fluid(Method):
    """Composed free-form deformations after a coupled convex search.

    Args:
        search: mm that the search reaches to each side; 0 is no search.
        spacing: of the finest lattice of the steps, mm.
        lattice: of the whole, mm.
        voxels: mm, of the images in each stage; never finer than the images' own.
        blur: Gaussian sigma in each stage, mm.
        rounds: steps composed in each stage.
        steps: of Adam in each.
        lr: of Adam, mm.
        radius: of the windows, voxels of the stage.
        bending: weight, mm^2, in each step.
        volume: weight of the change of volume in each step.
    """

    paper: ClassVar[str] = (
        "Mattias Heinrich and Bartlomiej Papiez and Julia Schnabel and Heinz Handels: Non-parametric discrete registration with convex optimisation. "
        "WBIR 2014. doi:10.1007/978-3-319-08554-8_6")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"search": 4.0, "spacing": 8.0, "voxels": (4.0, 2.0), "blur": (2.0, 0.0), "rounds": (1, 2), "steps": 12}
    fidelity: ClassVar[str] = "ours"

    search: float = 20.0
    spacing: float = 3.0
    lattice: float = 1.5
    voxels: tuple[float, ...] = (4.0, 2.0, 1.0)
    blur: tuple[float, ...] = (2.0, 1.0, 0.0)
    rounds: tuple[int, ...] = (3, 4, 4)
    steps: int = 20
    lr: float = 0.3
    radius: int = 2
    bending: float = 20.0
    volume: float = 0.1

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        if not len(self.voxels) == len(self.blur) == len(self.rounds):
            raise InputError("voxels, blur and rounds must be given for the same number of stages")
        whole = Steps(case, self.spacing, self.lattice)
        if self.search:
            whole.start_from(searched(case, run, self.search))
        for stage, (voxel, blur, rounds) in enumerate(zip(self.voxels, self.blur, self.rounds, strict=True)):
            views = Views(case, voxel, blur)
            for k in range(rounds):
                step = whole.step(views, len(self.voxels) - 1 - stage, self.radius, self.bending, self.volume)
                run.fit(step, steps=self.steps, lr=step.rates(self.lr), name=f"level {stage + 1}, step {k + 1}", schedule="cosine", final=0.1)
                whole.add(step)
        return whole.field(case)
