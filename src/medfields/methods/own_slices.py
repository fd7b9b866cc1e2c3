"""Own slices: least squares with total variation, and what a small network learned from the subject's own sharp planes.

The default of `superres`. A stack is blurred across its slices and sharp along them, so the subject itself shows what its anatomy
looks like in full resolution, only in other directions. (1) Total variation gives a first volume v. (2) Turned by permuting its axes, v
becomes a truth of the same kind of anatomy; it is measured with the very stacks' operators A, with the noise found in them, and
reconstructed by linear least squares: pairs of what a reconstruction looks like and what it should. (3) A residual network learns to map
planes of the former to the latter. (4) It is applied to the linear reconstruction of the real stacks, in every plane that is spanned by
slice directions, and averaged. Several contrasts go through all of this together: the network sees them side by side, so where one is
thick another that is sharp there can help.

Needs: stacks with their slice thickness (mm), any number and orientation; works best with two or more.
Gives: intensity, one channel for each contrast, as a trilinear field on the output grid.
Deviations: there is no paper; (2) and (3) carry self-supervised super-resolution from sharp planes (SMORE: Zhao et al., IEEE TMI 2021)
and the idea of equivariant imaging (Chen et al., ICCV 2021) over to several thick stacks.
Fidelity: ours.
Use when: you have thick stacks, at least about 50 output voxels a side (below, srr-tv is as good) and a minute. Fine structure that no direction
shows sharply is inferred; where nothing may be inferred, use srr-cg.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..cases import Stacks
from ..fields import BSpline, Field, LinearBasis
from ..solve import Method, Run
from ..solve.linear import SliceSystem, TotalVariation, padded
from ..solve.planes import PlaneNet, PlanePairs, corrected, turned


@dataclass(frozen=True)
class OwnSlices(Method):
    """Total variation, turned; simulated; learned; applied.

    Args:
        weight: of the total variation of the first volume, for intensities of about 0 to 1.
        smooth: of the squared gradient of the linear reconstruction the network sees.
        width, depth: of the network.
        steps, lr: of Adam, cosine to zero.
        patches, patch: patches in a step, and their side in voxels.
    """

    paper: ClassVar[str] = "{The medfields developers}: medfields, continuous fields from medical measurements. Software, 2026"
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"width": 8, "depth": 2, "steps": 10, "patch": 16}
    fidelity: ClassVar[str] = "ours"

    weight: float = 0.0025
    smooth: float = 0.02
    width: int = 64
    depth: int = 6
    steps: int = 3200
    lr: float = 1e-3
    patches: int = 4
    patch: int = 48

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        lattice, inner = padded(case)
        spec = BSpline.on(case.grid)
        field = Field(spec, case.box(), len(case.contrasts), unit=case.unit, names=case.contrasts)
        systems = [SliceSystem(case.only(contrast), lattice, device=run.device) for contrast in case.contrasts]
        solvers = [s.solver(self.smooth) for s in systems]

        def linear(measured: list[list[Tensor]]) -> Tensor:
            sides = [s.adjoint(y) for s, y in zip(systems, measured, strict=True)]
            return torch.stack([solve(b, torch.zeros_like(b)) for solve, b in zip(solvers, sides, strict=True)])

        first = TotalVariation(systems, self.weight)
        for _ in run.steps(20, "total variation", first):
            first.step()
            run.report(change=first.change)
        noise, rng = [s.noise() for s in systems], run.generator("noise")
        run.note(**{f"noise {c}".strip(): n * s.scale for c, n, s in zip(case.contrasts, noise, systems, strict=True)})
        truths, seen = [], []
        for turn in _turns(systems):
            truth = torch.stack([turned(x, turn, lattice) for x in first.x])
            measured = [[y + n * torch.randn(y.shape, generator=rng, device=y.device) * o.inside.to(y.device) for y, o in
                         zip(s.apply(x), s.operators, strict=True)] for s, x, n in zip(systems, truth, noise, strict=True)]
            truths.append(truth)
            seen.append(linear(measured))
        net, planes, covered = PlaneNet(self.width, self.depth, len(systems)), _planes(systems), torch.stack([s.covered() for s in systems])
        pairs = PlanePairs(net, torch.stack(seen), torch.stack(truths), covered, planes, self.patches, self.patch)
        run.fit(pairs, steps=self.steps, lr=self.lr, name="own slices", schedule="cosine", final=0.0)
        values = corrected(net, linear([s.y for s in systems]), planes)
        with torch.no_grad():
            for n, s in enumerate(systems):
                cast(LinearBasis, field.net).coefficients[n] = (s.offset + s.scale * values[n])[inner].cpu()
        return field


def _across(system: SliceSystem) -> list[int]:
    """The lattice axes nearest to the slice directions."""
    return sorted({int(abs(system.lattice.directions.T @ s.normal).argmax()) for s in system.case.stacks})


def _turns(systems: list[SliceSystem]) -> list[tuple[int, ...]]:
    """Up to four permutations of the axes. One that leaves what a contrast loses in its place would teach that nothing is lost."""
    across = [a for a in map(_across, systems) if len(a) < 3]
    turns = itertools.islice(itertools.permutations(range(3)), 1, None)
    return [t for t in turns if all({t[d] for d in a} != set(a) for a in across)][:4]


def _planes(systems: list[SliceSystem]) -> dict[tuple[int, int], tuple[bool, ...]]:
    """The lattice planes in which a contrast loses something, those spanned by two of its slice directions or holding its only one; and
    for which contrasts that is so."""
    across = [set(_across(system)) for system in systems]
    planes = {p: tuple(set(p) <= a if len(a) > 1 else a <= set(p) for a in across) for p in itertools.combinations(range(3), 2)}
    return {p: losing for p, losing in planes.items() if any(losing)}
