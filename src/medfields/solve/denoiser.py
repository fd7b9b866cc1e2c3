"""A denoiser of images, learned from other people's: a prior for any measurement, since it knows nothing of how the image was measured.

One comes with medfields: `shipped`. It was learned by `tools/learn_denoiser.py`, which says from which images; `weights/README.md` says how long.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from importlib import resources

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.workers import each
from .planes import in_parts
from .problem import Problem

REACH = 2  # planes on either side that help
WEIGHTS = "denoiser.safetensors"
NOISE = (0.003, 0.25)  # of what it learned, where water is 1: log-uniform


class Residual(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Denoiser(nn.Module):
    """Five neighbouring planes with white noise, and its standard deviation, to the middle plane without: a residual U-net without biases.

    Without biases D(c x, c sigma) = c D(x, sigma) for c > 0, so it does not matter what unit an image is in. Like DRUNet (Zhang and Others,
    IEEE TPAMI 2022), smaller, on 2 x 2 pixel blocks. A plane alone is its own neighbour.

    Args:
        widths: channels at 1/2, 1/4, ... of the resolution.
        blocks: residual blocks at each, on the way down and up.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128), blocks: int = 2):
        super().__init__()
        steps = list(itertools.pairwise(widths))

        def body(width: int) -> nn.Sequential:
            return nn.Sequential(*(Residual(width) for _ in range(blocks)))

        self.first = nn.Conv2d(4 * (2 * REACH + 2), widths[0], 3, padding=1, bias=False)
        self.encode = nn.ModuleList(body(w) for w in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in steps)
        self.middle = body(widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in steps)
        self.decode = nn.ModuleList(body(w) for w in widths[:-1])
        self.last = nn.Conv2d(widths[0], 4, 3, padding=1, bias=False)
        nn.init.zeros_(self.last.weight)  # untaught, it changes nothing
        self.side = 2 ** len(widths)  # of the image, a multiple of which it needs
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub

    def forward(self, planes: Float[Tensor, "n 5 A B"], sigma: Float[Tensor, "n"]) -> Float[Tensor, "n A B"]:
        """The middle planes; A and B are multiples of `side`."""
        level = sigma[:, None, None, None].expand(-1, 1, *planes.shape[2:])
        blocks = nn.functional.pixel_unshuffle(torch.cat([planes, level], 1), 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast(planes.device.type, torch.bfloat16):
            h, skips = self.first(blocks), []
            for encode, down in zip(self.encode, self.down, strict=True):
                skips.append(encode(h))
                h = down(skips[-1])
            h = self.middle(h)
            for decode, up in reversed(list(zip(self.decode, self.up, strict=True))):
                h = decode(up(h) + skips.pop())
            noise = self.last(h)
        return planes[:, REACH] - nn.functional.pixel_shuffle(noise.float(), 2)[:, 0]


def shipped() -> Denoiser:
    """The one that comes with medfields."""
    from safetensors.torch import load

    net = Denoiser()
    stored = load(resources.files("medfields").joinpath("weights", WEIGHTS).read_bytes())
    net.load_state_dict({name: t.float() for name, t in stored.items()})
    return net.eval().requires_grad_(False)


@torch.no_grad()
def denoised(net: Denoiser, image: Float[Tensor, "I J K"], sigma: float, axis: int = 2, chunk: int = 4) -> Float[Tensor, "I J K"]:
    """The image without white noise of a standard deviation of `sigma`, plane by plane across an axis.

    Args:
        net: on the device of the image.
        image: of any unit; where water is 1, sigma is best within `NOISE`.
        sigma: in the unit of the image.
        axis: across which the planes lie.
        chunk: planes at a time on one core.
    """
    stack = image.movedim(axis, 0)
    count, a, b = stack.shape
    pad = (0, -b % net.side, 0, -a % net.side)
    wide = nn.functional.pad(stack[:, None], pad, mode="replicate")[:, 0]
    level = torch.full((count,), sigma, device=image.device)
    first = torch.arange(count, device=image.device)[:, None] + torch.arange(-REACH, REACH + 1, device=image.device)
    neighbours = first.clamp(0, count - 1)

    def work(parts: Iterator[Tensor]) -> Iterator[Tensor]:
        return (net(wide[neighbours[part]], level[part]) for part in parts)

    parts = torch.arange(count, device=image.device).split(chunk)
    return torch.cat(each(work, parts))[:, :a, :b].movedim(0, axis)


class Denoising(Problem):
    """Random patches of stacks of planes with noise added; the middle plane is asked for.

    Mean over patches of |D(x + n, sigma) - x|^2 / sigma^1.5, |.|^2 a mean over pixels: what is left of strong noise counts more, but less than in
    proportion. A reconstruction asks for the rare fine structure not to be bent: the mean logarithm of the same, which weighs patches alike, taught a
    network that removes noise better and reconstructs 1 dB worse (measured). The gradients are as rare and large as that structure: clip them.

    Args:
        net: to be taught.
        stacks: [K, A, B], where water is about 1; K is 1 or at least 9, planes no smaller than a patch.
        shares: how often each is drawn from, in proportion.
        patches, patch: patches in a step, and their side in pixels.

    Attributes:
        average: the network with the running mean of its weights over about the last 1000 steps, which is the one to use.
    """

    memory = "patches, the number of patches in a step"
    count: Tensor

    def __init__(self, net: Denoiser, stacks: Sequence[Tensor], shares: Sequence[float], patches: int = 16, patch: int = 64):
        super().__init__()
        if any(min(s.shape[1:]) < patch or 1 < len(s) < 4 * REACH + 1 for s in stacks):
            raise InputError(f"a stack is smaller than a patch of {patch} pixels, or has 2 to {4 * REACH} planes", "pad its planes, or leave it out")
        self.net, self.stacks, self.patches, self.patch = net, list(stacks), patches, patch
        self.register_buffer("shares", torch.tensor(shares) / sum(shares), persistent=False)
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        draw = torch.rand(self.patches, 12, generator=rng, device=rng.device)
        which = torch.multinomial(self.get_buffer("shares"), self.patches, replacement=True, generator=rng).tolist()
        clean = torch.stack([self._cut(self.stacks[s], row) for s, row in zip(which, draw.tolist(), strict=True)]).to(rng.device)
        low, high = (math.log(s) for s in NOISE)
        sigma = torch.exp(low + (high - low) * draw[:, 8])
        noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=rng, device=rng.device)
        # Stacks end, and what would come next is their last plane again; most often a plane is alone.
        for planes, (ends, side, near) in zip(noisy, draw[:, 9:].tolist(), strict=True):
            if ends < 0.4:
                planes[:] = planes[REACH].clone()
            elif ends < 0.6:
                last = int(near * REACH)
                end = planes[REACH + last if side < 0.5 else REACH - last].clone()
                (planes[REACH + last + 1:] if side < 0.5 else planes[:REACH - last])[:] = end
        return noisy, sigma, clean[:, REACH]

    def _cut(self, stack: Tensor, r: list[float]) -> Tensor:
        """Five planes, every one or every second, of a patch, turned over and made brighter or darker."""
        count, a, b = stack.shape
        stride = 0 if count == 1 else 1 if r[0] < 0.67 or count < 20 else 2
        k = REACH * stride + int(r[1] * (count - 2 * REACH * stride))
        i, j = int(r[2] * (a - self.patch + 1)), int(r[3] * (b - self.patch + 1))
        patch = stack[[k + stride * d for d in range(-REACH, REACH + 1)], i:i + self.patch, j:j + self.patch].float()
        patch = patch.flip([axis for axis in (0, 1, 2) if r[4 + axis] < 0.5])
        scale = 0.7 + 0.6 * (2 * r[7] % 1)
        return scale * (patch.transpose(1, 2) if r[7] < 0.5 else patch)

    @torch.no_grad()
    def before_step(self, progress: float) -> None:
        share = max(0.001, 9 / (int(self.count) + 10))
        for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mean.lerp_(now, share)
        self.count += 1

    def losses(self, batch: tuple[Tensor, Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        def error(noisy: Tensor, sigma: Tensor, clean: Tensor) -> Tensor:
            return ((self.net(noisy, sigma) - clean).square().mean((1, 2)) / sigma**1.5).sum() / self.patches

        return {"noise": in_parts(error, batch, tuple(self.net.parameters()), 4)}
