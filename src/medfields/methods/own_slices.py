"""Own slices: least squares with total variation, and what a small network learned from the subject's own sharp planes.

The default of `superres`. A stack is blurred across its slices and sharp along them, so the subject itself shows what its anatomy looks like
in full resolution, only in other directions. (1) Total variation gives a first volume v. (2) Turned by permuting its axes, v becomes a truth of
the same kind of anatomy; it is measured with the very stacks' operators A, with noise as strong as the residual of (1), and reconstructed by
linear least squares: pairs of what a reconstruction looks like and what it should. (3) A residual network learns to map planes of the former to the
latter. (4) It is applied to the linear reconstruction of the real stacks, in every plane that contains a slice direction, and averaged.

Needs: stacks with their slice thickness (mm), any number and orientation; works best with two or more.
Gives: intensity, one channel for each contrast, as a trilinear field on the output grid.
Deviations: there is no paper; (2) and (3) carry self-supervised super-resolution from sharp planes (SMORE: Zhao et al., IEEE TMI 2021) and the idea of
equivariant imaging (Chen et al., ICCV 2021) over to several thick stacks.
Fidelity: ours.
Use when: you have thick stacks and a minute. Fine structure that no direction shows sharply is inferred; where nothing may be inferred, use srr-cg.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cases import Stacks
from ..fields import BSpline, Field
from ..losses import mse
from ..solve import Method, Problem, Run
from ..solve.linear import SliceSystem, TotalVariation, padded


class PlaneNet(nn.Module):
    """Three neighbouring planes -> the middle one, corrected. Works on 2 x 2 pixel blocks, which doubles what it sees for the price."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        sizes = [12] + [width] * depth
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.1)) for a, b in itertools.pairwise(sizes)]
        last = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(*layers, last).to(memory_format=torch.channels_last)

    def forward(self, planes: Tensor) -> Tensor:
        blocks = nn.functional.pixel_unshuffle(planes, 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast(planes.device.type, torch.bfloat16):
            correction = self.layers(blocks)
        return planes[:, 1:2] + nn.functional.pixel_shuffle(correction.float(), 2)


class Lessons(Problem):
    """Random patches of pairs (reconstruction, truth) of volumes [P, I, J, K], in planes of given axes."""

    memory = "patches, the number of patches in a step"

    def __init__(self, net: PlaneNet, seen: Tensor, truth: Tensor, planes: list[tuple[int, int]], patches: int, patch: int):
        super().__init__()
        self.net, self.planes, self.patches = net, planes, patches
        self.register_buffer("seen", seen, persistent=False)
        self.register_buffer("truth", truth, persistent=False)
        self.patch = min(patch, *(n // 2 * 2 for n in seen.shape[1:]))

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        seen, truth = [], []
        for r in torch.rand(self.patches, 8, generator=rng, device=rng.device).tolist():
            a, b = self.planes[int(r[0] * len(self.planes))]
            across, p = 3 - a - b, int(r[1] * len(self.seen))
            start = [0, 0, 0]
            for axis, at, span in ((a, r[2], self.patch), (b, r[3], self.patch), (across, r[4], 3)):
                start[axis] = int(at * (self.seen.shape[axis + 1] - span + 1))
            size = [3 if axis == across else self.patch for axis in range(3)]
            cut = (p, *(slice(s, s + n) for s, n in zip(start, size, strict=True)))
            x, y = (v[cut].permute(across, a, b) for v in (self.seen, self.truth))
            flips = [d for d, f in ((0, r[5]), (1, r[6]), (2, r[7])) if f < 0.5]
            seen.append(x.flip(flips))
            truth.append(y.flip(flips)[1:2])
        return torch.stack(seen), torch.stack(truth)

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        return {"planes": mse(self.net(batch[0]).flatten()[:, None], batch[1].flatten()[:, None])}


@torch.no_grad()
def corrected(net: PlaneNet, volume: Tensor, planes: list[tuple[int, int]]) -> Tensor:
    """The network on all planes of a volume [I, J, K], averaged over directions and mirror images."""
    total = torch.zeros_like(volume)
    for a, b in planes:
        across = 3 - a - b
        stack = volume.permute(across, a, b)
        near = torch.stack([stack[:1], stack[-1:]])
        x = torch.cat([near[0], stack, near[1]]).unfold(0, 3, 1).movedim(-1, 1)
        odd = (0, stack.shape[2] % 2, 0, stack.shape[1] % 2)
        for flips in ((), (2,), (3,), (2, 3)):
            out = torch.cat([net(nn.functional.pad(part, odd, mode="replicate").flip(flips)).flip(flips) for part in x.split(16)])
            back = out[:, 0, : stack.shape[1], : stack.shape[2]]
            total += back.permute(*[(across, a, b).index(axis) for axis in range(3)])
    return total / (4 * len(planes))


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

    weight: float = 0.0015
    smooth: float = 0.02
    width: int = 64
    depth: int = 6
    steps: int = 3000
    lr: float = 1e-3
    patches: int = 4
    patch: int = 48

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        lattice, inner = padded(case)
        spec = BSpline.on(case.grid)
        field = Field(spec, case.box(), len(case.contrasts), names=case.contrasts)
        for n, contrast in enumerate(case.contrasts):
            system = SliceSystem(case.only(contrast), lattice, device=run.device)
            values = self._one(system, run, contrast)
            with torch.no_grad():
                field.net.coefficients[n] = (system.offset + system.scale * values)[inner].cpu()
        return field

    def _one(self, system: SliceSystem, run: Run, name: str) -> Tensor:
        first = TotalVariation(system, self.weight)
        for _ in run.steps(20, f"total variation {name}".strip(), first):
            first.step()
            run.report(change=first.change)
        linear = system.solver(self.smooth)
        noise = torch.cat([(a - y)[o.inside] for a, y, o in zip(system.apply(first.x), system.y, system.operators, strict=True)]).std()
        run.note(**{f"noise {name}".strip(): float(noise * system.scale)})
        rng = run.generator(f"noise {name}")
        truths, seen = [], []
        for order in itertools.islice(itertools.permutations(range(3)), 1, 5):
            truth = _fitted(first.x.permute(order), system.lattice.shape)
            y = [a + noise * torch.randn(a.shape, generator=rng, device=a.device) * o.inside for a, o in
                 zip(system.apply(truth), system.operators, strict=True)]
            b = system.adjoint(y)
            truths.append(truth)
            seen.append(linear(b, torch.zeros_like(b)))
        planes = _planes(system)
        net = PlaneNet(self.width, self.depth)
        lessons = Lessons(net, torch.stack(seen), torch.stack(truths), planes, self.patches, self.patch)
        run.fit(lessons, steps=self.steps, lr=self.lr, name=f"own slices {name}".strip(), schedule="cosine", final=0.0)
        b = system.adjoint(system.y)
        return corrected(net, linear(b, torch.zeros_like(b)), planes)


def _planes(system: SliceSystem) -> list[tuple[int, int]]:
    """The lattice planes in which something is lost: those spanned by two slice directions, or holding the only one."""
    across = sorted({int(abs(system.lattice.directions.T @ s.normal).argmax()) for s in system.case.stacks})
    pairs = list(itertools.combinations(range(3), 2))
    return [p for p in pairs if set(p) <= set(across)] if len(across) > 1 else [p for p in pairs if across[0] in p]


def _fitted(volume: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Cut to, or continued by mirror images to, a shape."""
    for d, n in enumerate(shape):
        have = volume.shape[d]
        volume = volume.narrow(d, (have - n) // 2, n) if have >= n else volume
        while volume.shape[d] < n:
            more = min(n - volume.shape[d], volume.shape[d])
            volume = torch.cat([volume, volume.narrow(d, volume.shape[d] - more, more).flip(d)], d)
    return volume.contiguous()
