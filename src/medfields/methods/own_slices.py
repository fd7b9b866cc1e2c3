"""Own slices: least squares with total variation, and what a small network learned from the subject's own sharp planes.

The default of `superres`. A stack is blurred across its slices and sharp along them, so the subject itself shows what its anatomy
looks like in full resolution, only in other directions. (1) Total variation gives a first volume v. (2) Turned by permuting its axes, v
becomes a truth of the same kind of anatomy; it is measured with the very stacks' operators A, with the noise found in them, and
reconstructed by linear least squares: pairs of what a reconstruction looks like and what it should. (3) A residual network learns to map
planes of the former to the latter. (4) It is applied to the linear reconstruction of the real stacks, in every plane that is spanned by
slice directions, and averaged.

Needs: stacks with their slice thickness (mm), any number and orientation; works best with two or more.
Gives: intensity, one channel for each contrast, as a trilinear field on the output grid.
Deviations: there is no paper; (2) and (3) carry self-supervised super-resolution from sharp planes (SMORE: Zhao et al., IEEE TMI 2021)
and the idea of equivariant imaging (Chen et al., ICCV 2021) over to several thick stacks.
Fidelity: ours.
Use when: you have thick stacks and a minute. Fine structure that no direction shows sharply is inferred; where nothing may be inferred, use srr-cg.
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
from ..solve.planes import PlaneNet, PlanePairs, corrected, fitted


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

    paper: ClassVar[str] = "medfields (after doi:10.1109/TMI.2020.3037187 and arXiv:2103.14756)"
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"width": 8, "depth": 2, "steps": 10, "patch": 16}
    fidelity: ClassVar[str] = "ours"

    weight: float = 0.0025
    smooth: float = 0.02
    width: int = 64
    depth: int = 6
    steps: int = 4000
    lr: float = 1e-3
    patches: int = 4
    patch: int = 48

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        lattice, inner = padded(case)
        spec = BSpline.on(case.grid)
        field = Field(spec, case.box(), len(case.contrasts), unit=case.unit, names=case.contrasts)
        for n, contrast in enumerate(case.contrasts):
            system = SliceSystem(case.only(contrast), lattice, device=run.device)
            values = self._one(system, run, contrast)
            basis = cast(LinearBasis, field.net)
            with torch.no_grad():
                basis.coefficients[n] = (system.offset + system.scale * values)[inner].cpu()
        return field

    def _one(self, system: SliceSystem, run: Run, name: str) -> Tensor:
        first = TotalVariation(system, self.weight)
        for _ in run.steps(20, f"total variation {name}".strip(), first):
            first.step()
            run.report(change=first.change)
        linear = system.solver(self.smooth)
        noise = system.noise()
        run.note(**{f"noise {name}".strip(): noise * system.scale})
        rng = run.generator(f"noise {name}")
        truths, seen = [], []
        for order in itertools.islice(itertools.permutations(range(3)), 1, 5):
            truth = fitted(first.x.permute(order), system.lattice.shape)
            y = [a + noise * torch.randn(a.shape, generator=rng, device=a.device) * o.inside for a, o in
                 zip(system.apply(truth), system.operators, strict=True)]
            b = system.adjoint(y)
            truths.append(truth)
            seen.append(linear(b, torch.zeros_like(b)))
        planes = _planes(system)
        net = PlaneNet(self.width, self.depth)
        pairs = PlanePairs(net, torch.stack(seen), torch.stack(truths), system.covered(), planes, self.patches, self.patch)
        run.fit(pairs, steps=self.steps, lr=self.lr, name=f"own slices {name}".strip(), schedule="cosine", final=0.0)
        b = system.adjoint(system.y)
        return corrected(net, linear(b, torch.zeros_like(b)), planes)


def _planes(system: SliceSystem) -> list[tuple[int, int]]:
    """The lattice planes in which something is lost: those spanned by two slice directions, or holding the only one."""
    across = sorted({int(abs(system.lattice.directions.T @ s.normal).argmax()) for s in system.case.stacks})
    pairs = list(itertools.combinations(range(3), 2))
    return [p for p in pairs if set(p) <= set(across)] if len(across) > 1 else [p for p in pairs if across[0] in p]
