"""Fluid B-splines: displacements are searched on a coarse lattice, then refined by one free-form deformation and by small ones after it.

phi = phi_0 o phi_1 o phi_2 o ... o phi_n, each phi_k(x) = x + u_k(x). phi_0 is a search (see `medfields.solve.search`), so that tissue that moved
further than its detail is wide does not end in the wrong vessel. The others make F and M(phi) more alike, in windows: phi_1 is smooth as a whole,
fitted from coarse to fine; of phi_2 ... only each by itself has to be smooth: like a fluid they may go far. Steps that do not fold cannot
fold together.

Needs: two images; a mask helps where organs slide along one another.
Gives: displacement, mm, one cubic B-spline on a fine lattice, with exact derivatives.
Deviations: greedy methods smooth the gradient of each step with a Gaussian (Yushkevich's greedy, Avants' SyN); here each step is optimised.
Fidelity: ours.
Use when: always; `bspline` is smoother and several times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from ..cases import Pair
from ..errors import InputError
from ..fields import Field
from ..solve import Method, Run
from ..solve.fluid import Steps, searched
from ..solve.freeform import FreeForm, LatticeMatch, Views, coarse_to_fine


@dataclass(frozen=True)
class Fluid(Method):
    """Composed free-form deformations after a coupled convex search.

    Args:
        search: mm that the search reaches to each side; 0 is no search.
        elastic: steps of the one deformation at 6, 4, 3 and 2 mm.
        spacing: of the finest lattice of the small steps, mm; that of the one deformation is twice as wide.
        lattice: of the whole, mm.
        voxels: mm, of the images in each stage of the small steps; never finer than the images' own.
        blur: Gaussian sigma in each stage, mm.
        rounds: small steps composed in each stage.
        steps: of Adam in each.
        lr: of Adam, mm.
        similarity: windowed correlation; MIND or mutual information for different modalities, which the search does not serve: it is left out.
        radius: of the windows, voxels of the stage.
        bending: weight, mm^2, in each small step.
        volume: weight of the change of volume in each small step.
    """

    paper: ClassVar[str] = (
        "Mattias Heinrich and Bartlomiej Papiez and Julia Schnabel and Heinz Handels: Non-parametric discrete registration with convex optimisation. "
        "WBIR 2014. doi:10.1007/978-3-319-08554-8_6")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"search": 4.0, "elastic": (5, 5, 5, 5), "spacing": 8.0, "voxels": (4.0, 2.0), "blur": (2.0, 0.0),
                                      "rounds": (1, 2), "steps": 12}
    fidelity: ClassVar[str] = "ours"

    search: float = 20.0
    elastic: tuple[int, int, int, int] = (60, 60, 60, 40)
    spacing: float = 3.0
    lattice: float = 1.5
    voxels: tuple[float, ...] = (2.0, 1.0)
    blur: tuple[float, ...] = (0.7, 0.0)
    rounds: tuple[int, ...] = (2, 4)
    steps: int = 20
    lr: float = 0.3
    similarity: Literal["ncc", "mi", "mind"] = "ncc"
    radius: int = 3
    bending: float = 20.0
    volume: float = 0.1

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        if not len(self.voxels) == len(self.blur) == len(self.rounds):
            raise InputError("voxels, blur and rounds must be given for the same number of stages")
        whole = Steps(case, self.lattice)
        if self.search and self.similarity == "ncc":
            whole.start_from(searched(case, run, self.search))
        one = FreeForm(case.grid, case.box(), 2 * self.spacing, 4)
        coarse_to_fine(one, case, run, (6.0, 4.0, 3.0, 2.0), (3.0, 2.0, 1.0, 0.0), self.elastic, similarity=self.similarity,
                       base=whole.whole)
        whole.add(one)
        for stage, (voxel, blur, rounds) in enumerate(zip(self.voxels, self.blur, self.rounds, strict=True)):
            views, finest = Views(case, voxel, blur), len(self.voxels) - 1 - stage
            for k in range(rounds):
                small = FreeForm(case.grid, case.box(), self.spacing, 2 + finest)
                match = LatticeMatch(small, views, finest, self.similarity, self.radius, self.bending, self.volume, whole.whole)
                run.fit(match, steps=self.steps, lr=small.rates(self.lr, finest), name=f"detail {stage + 1}.{k + 1}", schedule="cosine", final=0.1)
                whole.add(small, finest)
        return whole.field(case)
