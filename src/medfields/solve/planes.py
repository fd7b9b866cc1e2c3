"""Learning plane by plane: a small network that corrects volumes, taught with pairs of volumes.

Two-dimensional planes are where thick slices lose detail and where a subject's own sharp slices can teach; a plane network sees
as far as a three-dimensional one for a tenth of the work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.workers import each
from ..space import Grid, Volume
from .problem import Problem

Axes = tuple[int, int]
Planes = Mapping[Axes, tuple[bool, ...]]  # the axes of planes -> for each contrast, whether it loses something in them


class PlaneNet(nn.Module):
    """Three neighbouring planes of every contrast, [n, 3 C, A, B] -> the middle ones, corrected, [n, C, A, B].

    Works on 2 x 2 pixel blocks, which doubles what it sees for the price.
    """

    def __init__(self, width: int, depth: int, contrasts: int = 1):
        super().__init__()
        sizes = [12 * contrasts] + [width] * depth
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.1)) for a, b in itertools.pairwise(sizes)]
        last = nn.Conv2d(width, 4 * contrasts, 3, padding=1)
        for parameter in last.parameters():  # untaught, it changes nothing
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(*layers, last)
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub

    def forward(self, planes: Tensor) -> Tensor:
        blocks = nn.functional.pixel_unshuffle(planes, 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast(planes.device.type, torch.bfloat16):
            correction = self.layers(blocks)
        return planes[:, 1::3] + nn.functional.pixel_shuffle(correction.float(), 2)


class PlanePairs(Problem):
    """Random patches of pairs (reconstruction, truth) of volumes, in planes where a contrast loses something and its stacks see it.

    Args:
        net: to be taught.
        seen, truth: [P, C, I, J, K], P pairs of volumes of C contrasts.
        covered: [C, I, J, K] bool, what the stacks of each contrast see.
        planes: axes of the planes, and which contrasts lose something in them.
        patches, patch: patches in a step, and their side in voxels.

    Raises:
        InputError: if the volumes are too small for a patch.
    """

    memory = "patches, the number of patches in a step"
    seen: Tensor
    truth: Tensor
    covered: Tensor

    def __init__(self, net: PlaneNet, seen: Tensor, truth: Tensor, covered: Tensor, planes: Planes, patches: int, patch: int):
        super().__init__()
        self.net, self.planes, self.patches = net, list(planes.items()), patches
        self.register_buffer("seen", seen, persistent=False)
        self.register_buffer("truth", truth, persistent=False)
        self.register_buffer("covered", covered.float(), persistent=False)
        self.shape = seen.shape[2:]
        self.patch = min(patch, *self.shape) // 2 * 2
        if self.patch < 2 or min(self.shape) < 3:
            raise InputError(f"patches of {patch} voxels in a volume of {tuple(self.shape)} leave nothing to learn from", "use srr-tv")

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        seen, truth, weight = [], [], []
        for r in torch.rand(self.patches, 8, generator=rng, device=rng.device).tolist():
            (a, b), losing = self.planes[int(r[0] * len(self.planes))]
            across, p = 3 - a - b, int(r[1] * len(self.seen))
            start = [0, 0, 0]
            for axis, at, span in ((a, r[2], self.patch), (b, r[3], self.patch), (across, r[4], 3)):
                start[axis] = int(at * (self.shape[axis] - span + 1))
            size = [3 if axis == across else self.patch for axis in range(3)]
            cut = (slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True)))
            flips = [d + 1 for d, f in enumerate(r[5:8]) if f < 0.5]
            x, y, w = (v[cut].permute(0, across + 1, a + 1, b + 1).flip(flips) for v in (self.seen[p], self.truth[p], self.covered))
            seen.append(x.flatten(0, 1))
            truth.append(y[:, 1])
            weight.append(w[:, 1] * torch.tensor(losing, device=w.device)[:, None, None])
        return torch.stack(seen), torch.stack(truth), torch.stack(weight)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        seen, truth, weight = batch
        share = weight / weight.sum().clamp_min(1e-6)

        def error(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            return (w * (self.net(x) - y).square()).sum()

        return {"planes": in_parts(error, (seen, truth, share), tuple(self.net.parameters()), 2)}


def in_parts(error: Callable[..., Tensor], batch: tuple[Tensor, ...], parameters: tuple[Tensor, ...], size: int) -> Tensor:
    """error(*batch), a sum over the batch, of parts of `size`, which the CPU's cores share out."""
    if batch[0].device.type != "cpu":
        return error(*batch)

    def work(parts: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        for part in parts:
            with torch.enable_grad():
                loss = error(*part)
                yield loss.detach(), torch.autograd.grad(loss, parameters)

    parts = list(zip(*(t.split(size) for t in batch), strict=True))
    return cast(Tensor, _Sum.apply(each(work, parts), *parameters))


class _Sum(torch.autograd.Function):
    """Losses of parts whose gradients are known already, as one loss, summed in a fixed order.

    Pairs of patches are shared out among threads, one core each: the backward pass of a convolution on two threads spins while it waits
    for the other one, and took seven times as long as soon as anything else ran on the machine (measured).
    """

    @staticmethod
    def forward(ctx: Any, parts: list[tuple[Tensor, tuple[Tensor, ...]]], *parameters: Tensor) -> Tensor:
        ctx.grads = [torch.stack(grads).sum(0) for grads in zip(*(grads for _, grads in parts), strict=True)]
        return torch.stack([loss for loss, _ in parts]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(grads[0] * g for g in ctx.grads))


@torch.no_grad()
def corrected(net: PlaneNet, volume: Tensor, planes: Planes) -> Tensor:
    """The network on all planes of a volume [C, I, J, K], averaged over mirror images and, for each contrast, the planes where it loses."""
    total, times = torch.zeros_like(volume), torch.zeros(len(volume), 1, 1, 1, device=volume.device)
    for (a, b), losing in planes.items():
        across = 3 - a - b
        stack = volume.permute(across + 1, 0, a + 1, b + 1)
        x = torch.cat([stack[:1], stack, stack[-1:]]).unfold(0, 3, 1).movedim(-1, 2).flatten(1, 2)
        odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
        for flips in ((), (2, 3)):
            def work(parts: Iterator[Tensor], flips: tuple[int, ...] = flips, odd: tuple[int, ...] = odd) -> Iterator[Tensor]:
                return (net(nn.functional.pad(part, odd, mode="replicate").flip(flips)).flip(flips) for part in parts)

            out = torch.cat(each(work, x.split(8)))[:, :, : x.shape[2], : x.shape[3]]
            share = torch.tensor(losing, device=volume.device).float().reshape(-1, 1, 1, 1)
            total += share * out.permute(1, *[(across, -1, a, b).index(axis) for axis in range(3)])
            times += share
    return torch.where(times > 0, total / times.clamp_min(1), volume)


def turned(volume: Float[Tensor, "I J K"], turn: Sequence[int], grid: Grid) -> Float[Tensor, "I J K"]:
    """The volume with its axes permuted, on the same grid: what lay along one axis lies along another and is as long in mm there."""
    volume, spacing = volume.permute(*turn), grid.spacing[list(turn)]
    if not np.allclose(spacing, grid.spacing, rtol=1e-3):
        shape = np.floor((np.array(volume.shape) - 1) * spacing / grid.spacing + 1.001).astype(int)
        wanted = Grid.from_spacing(shape.tolist(), grid.spacing.tolist())
        volume = Volume(volume, Grid.from_spacing(volume.shape, spacing.tolist()), interpolation="cubic").on(wanted).data[0]
    return fitted(volume, grid.shape)


def fitted(volume: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Cut to, or continued by mirror images to, a shape."""
    for d, n in enumerate(shape):
        have = volume.shape[d]
        volume = volume.narrow(d, (have - n) // 2, n) if have >= n else volume
        while volume.shape[d] < n:
            more = min(n - volume.shape[d], volume.shape[d])
            volume = torch.cat([volume, volume.narrow(d, volume.shape[d] - more, more).flip(d)], d)
    return volume.contiguous()
