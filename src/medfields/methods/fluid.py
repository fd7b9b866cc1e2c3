"""Fluid B-splines: displacements are searched on a coarse lattice, then refined by one free-form deformation and by a flow of small ones.

phi = phi_0 o phi_1 o phi_2 o ... o phi_n, each phi_k(x) = x + u_k(x). phi_0 is a search (see `medfields.solve.search`), so that tissue that moved
further than its detail is wide does not end in the wrong vessel. The others make F and M(phi) more alike: phi_1 is smooth as a whole, fitted from
coarse to fine by correlations in windows; phi_2 ... are short steps down the slope of squared correlations in windows and of squared differences of
values, of which only each by itself is smooth: like a fluid they may go far. After each the whole is smoothed a little, or it follows noise.
Steps that do not fold cannot fold together; what is smoothed between them is no proof, and folds are counted.

Needs: two images; a mask helps where organs slide along one another, and where one image shows what the other lacks.
Gives: displacement, mm, one cubic B-spline on a fine lattice, with exact derivatives.
Deviations: greedy methods (Yushkevich's greedy, Avants' SyN) smooth the slope of each step with a Gaussian; here its B-spline does that. They know
windows or values; here both count, the values after lines in wide windows made them comparable, so that a coil's bias counts for little.
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
from ..solve.fluid import Likeness, Steps, flow, searched
from ..solve.freeform import FreeForm, Views, coarse_to_fine


@dataclass(frozen=True)
class Fluid(Method):
    """A coupled convex search, a free-form deformation, and a flow.

    Args:
        search: mm that the search reaches to each side; 0 is no search.
        elastic: steps of the one deformation at 6, 4, 3 and 2 mm.
        spacing: of its finest lattice, mm.
        lattice: of the whole, voxels of the last stage.
        voxels: mm, of the images in each stage of the flow; never finer than the images' own.
        steps: of the flow in each stage.
        step: length of a step where it is longest, voxels of the stage.
        smooth: spacing of the B-splines that smooth a step, voxels of the stage.
        stiff: variance by which the whole is smoothed after each step, squared nodes of its lattice.
        similarity: windowed correlation; MIND or mutual information for different modalities, which the search does not serve: it is left out.
        radius: of the windows of the flow, voxels of the stage.
        noise: variance, as a share of the images', of what says nothing in a window.
        values: weight of squared differences of values, once lines in wide windows have made the images comparable, beside squared correlations.
        reach: of the wide windows to each side, mm.
    """

    paper: ClassVar[str] = (
        "Mattias Heinrich and Bartlomiej Papiez and Julia Schnabel and Heinz Handels: Non-parametric discrete registration with convex optimisation. "
        "WBIR 2014. doi:10.1007/978-3-319-08554-8_6")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"search": 4.0, "elastic": (5, 5, 5, 5), "spacing": 16.0, "voxels": (4.0, 2.0), "steps": (8, 8)}
    fidelity: ClassVar[str] = "ours"

    search: float = 20.0
    elastic: tuple[int, int, int, int] = (60, 60, 60, 40)
    spacing: float = 6.0
    lattice: float = 1.5
    voxels: tuple[float, ...] = (3.0, 2.0, 1.0)
    steps: tuple[int, ...] = (10, 10, 40)
    step: float = 0.5
    smooth: float = 3.0
    stiff: float = 0.04
    similarity: Literal["ncc", "mi", "mind"] = "ncc"
    radius: int = 2
    noise: float = 0.01
    values: float = 1.0
    reach: float = 10.0

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        if len(self.voxels) != len(self.steps):
            raise InputError("voxels and steps must be given for the same number of stages")
        own = float(case.grid.spacing[:2].min())
        whole = Steps(case, self.lattice * max(own, self.voxels[-1]))
        if self.search and self.similarity == "ncc":
            whole.start_from(searched(case, run, self.search))
        one = FreeForm(case.grid, case.box(), self.spacing, 4)
        coarse_to_fine(one, case, run, (6.0, 4.0, 3.0, 2.0), (3.0, 2.0, 1.0, 0.0), self.elastic, similarity=self.similarity,
                       base=whole.whole)
        whole.add(one)
        for voxel, steps in zip(self.voxels, self.steps, strict=True):
            views = Views(case, voxel, 0.0)
            mm = max(own, voxel)
            small = FreeForm(case.grid, case.box(), self.smooth * mm, 1)
            match = Likeness(small, views, self.similarity, self.radius, whole.whole, self.noise, self.values, self.reach)
            flow(whole, match, run, steps, self.step * mm, self.stiff, f"flow {mm:.3g} mm")
        return whole.field(case)
