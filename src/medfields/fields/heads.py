"""MultiHead: the survey's "output modification" (MH-ReLU): one body for all cells of the box, one head for each."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import InputError
from ..space import Box
from .jet import Affine, Differentiable, Jet
from .mlp import ACTIVATIONS, Layers
from .spec import Spec, bounded, spec


@spec
class MultiHead(Spec):
    """y(u) = W_k h(t) + b_k, k = the cell of u, t = the place inside that cell (Aftab et al., ICASSP 2022, arXiv 2110.03448).

    The box is cut into equal cells that share ONE local coordinate t in [-1, 1]^D. The body h sees t only; head k rebuilds cell k from
    `alpha` of the body's units, chosen at random once. Each cell looks stretched to the body, so its frequencies are lower by the number of
    cells along an axis, and fine detail costs less. On the training lattice one pass of the body serves all cells: see `Cells.heads`.
    Continuity across cells is learned, not built in.

    Args:
        cells: number of cells along each axis of the box.
        width, depth: of the body.
        alpha: body units that each head reads; from `width` on, all of them.
        activation: of the body.
    """

    cells: tuple[int, ...] = (8, 8, 8)
    width: int = 256
    depth: int = 4
    alpha: int = 32
    activation: Literal["relu", "silu"] = "relu"

    def __post_init__(self) -> None:
        bounded(self, width=(1, 8192), depth=(1, 64), alpha=(1, 8192))
        if not self.cells or not all(1 <= n <= 1024 for n in self.cells) or math.prod(self.cells) > 1 << 20:
            raise InputError(f"MultiHead: cells must be 1 to 1024 along each axis and at most 2^20 in all, got {self.cells}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"MultiHead: activation must be relu or silu, got {self.activation}")

    @classmethod
    def example(cls, box: Box) -> MultiHead:
        return cls(cells=(2, 3, 1, 2)[: box.ndim], width=32, alpha=8)

    def build(self, box: Box, channels: int) -> Cells:
        if len(self.cells) != box.ndim:
            raise InputError(f"MultiHead: {len(self.cells)} numbers of cells for a box of {box.ndim} axes")
        return Cells(self, box, channels)


class Cells(Differentiable):
    """The module of a `MultiHead`. Heads are [n cells, C, alpha]; `units` [n cells, alpha] says which body units each reads."""

    count: Tensor
    stride: Tensor
    low: Tensor
    size: Tensor
    units: Tensor

    def __init__(self, given: MultiHead, box: Box, channels: int):
        super().__init__()
        self.body = Layers(box.ndim, [given.width] * given.depth, ACTIVATIONS[given.activation])
        n, alpha = math.prod(given.cells), min(given.alpha, given.width)
        half = box.sides / 2 / box.radius
        strides = [math.prod(given.cells[d + 1:]) for d in range(box.ndim)]
        for name, values in (("low", list(-half)), ("size", list(2 * half / given.cells))):
            self.register_buffer(name, torch.tensor([float(v) for v in values]), persistent=False)
        for name, integers in (("count", list(given.cells)), ("stride", strides)):
            self.register_buffer(name, torch.tensor(integers), persistent=False)
        chosen = torch.arange(alpha).repeat(n, 1) if alpha == given.width else torch.rand(n, given.width).argsort(1)[:, :alpha].contiguous()
        self.register_buffer("units", chosen)
        bound = math.sqrt(6 / (alpha + max(1.0, alpha * n * channels / given.width)))  # Glorot: connections in and out
        self.weight = nn.Parameter(torch.empty(n, channels, alpha).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(n, channels))

    def locate(self, u: Float[Tensor, "*batch D"]) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch D"]]:
        """The cell of each point, and its place in the cell, -1 to 1; beyond the box the border cells go on."""
        place = (u - self.low) / self.size
        cell = place.detach().floor().long().clamp(torch.zeros_like(self.count), self.count - 1)
        return (cell * self.stride).sum(-1), 2 * (place - cell) - 1

    def read(self, cell: Int[Tensor, "n"], h: Float[Tensor, "P n w"]) -> Float[Tensor, "P n C"]:
        """Each point's head, without bias, on the body's answer (or on its jet)."""
        weight = nn.functional.embedding(cell, self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        if self.units.shape[1] < h.shape[-1]:
            h = h.gather(-1, self.units[cell].expand(len(h), -1, -1))
        return torch.einsum("ncw,pnw->pnc", weight, h)

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        cell, local = self.locate(u.reshape(-1, u.shape[-1]))
        y = self.read(cell, self.body(local)[None])[0] + nn.functional.embedding(cell, self.bias)
        return y.reshape(*u.shape[:-1], y.shape[-1])

    def heads(self, local: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch nC"]:
        """All cells at once, at shared local coordinates: [*, n cells * C], cells in C order, channels last. The body runs once
        where `forward` would run it n times."""
        h = self.body(local)
        dense = torch.zeros(*self.weight.shape[:2], h.shape[-1], dtype=h.dtype, device=h.device)
        dense = dense.scatter(2, self.units[:, None].expand(-1, dense.shape[1], -1), self.weight)
        return nn.functional.linear(h, dense.flatten(0, 1), self.bias.flatten())

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        cell, local = self.locate(u)
        h = self.body.through(Affine(local, torch.diag(2 / self.size).to(u.dtype)), u.shape[-1], order)
        assert isinstance(h, Tensor)
        y = self.read(cell, h)
        return torch.cat([y[:1] + self.bias[cell], y[1:]])
