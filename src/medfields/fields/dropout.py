"""Dropout: a network of which every look can be another draw, so that its spread tells what the data leave open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..space import Box
from .jet import Differentiable, Jet
from .mlp import MLP, Network
from .siren import Finer, Siren
from .spec import Spec, bounded, spec


@spec
class Dropout(Spec):
    """A network whose units are left out at random (Gal & Ghahramani, ICML 2016), on every layer's input except the first's.

    One draw thins the network for all points of a call alike: each draw is a function, which can be projected like any other. Draws are
    made only inside `with drawing(field)`; otherwise, and in files, the network is whole and says the same every time.

    Args:
        net: a Siren, Finer, or MLP without `split`.
        p: the share of units that a draw leaves out; the others are raised by 1 / (1 - p).
    """

    net: Spec = MLP()
    p: float = 0.2

    def __post_init__(self) -> None:
        bounded(self, p=(0, 0.95))
        if not isinstance(self.net, MLP | Siren | Finer) or (isinstance(self.net, MLP) and self.net.split):
            raise InputError(f"Dropout: {type(self.net).__name__} has no single stack of layers to thin", "use a Siren, Finer, or MLP without split")

    @classmethod
    def example(cls, box: Box) -> Dropout:
        return cls(MLP(width=16, depth=2, activation="silu"))

    def build(self, box: Box, channels: int) -> Thinned:
        net = self.net.build(box, channels)
        assert isinstance(net, Network)
        return Thinned(net, self.p)


class Thinned(Differentiable):
    """The module of `Dropout`; `draws` is True while calls are to be random."""

    def __init__(self, net: Network, p: float):
        super().__init__()
        self.net, self.p, self.draws = net, p, False
        self.jet_order = net.jet_order

    @property
    def encoding(self) -> nn.Module:
        """Of the network inside."""
        return self.net.encoding

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        if not (self.draws and self.p):
            return self.net(u)
        body, branch = self.net.body, self.net.branches[0]
        h = x = self.net.encoding(u)
        for k, (weight, bias) in enumerate(body.weights()):
            h = self._thin(h) if k else h
            h = body.f(nn.functional.linear(torch.cat([h, x], -1) if k in body.skips else h, weight, bias))
        return branch(self._thin(h))

    def _thin(self, h: Float[Tensor, "*batch w"]) -> Float[Tensor, "*batch w"]:
        """With the same units left out for all points, by torch's global generator."""
        return h * nn.functional.dropout(torch.ones(h.shape[-1], dtype=h.dtype, device=h.device), self.p)

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        return self.net.flat_jet(u, order)


@contextmanager
def drawing(module: nn.Module, on: bool = True) -> Iterator[None]:
    """Inside, every call of the `Dropout` networks in the module is another draw (or, with `on` False, none is)."""
    found = [m for m in module.modules() if isinstance(m, Thinned)]
    before = [m.draws for m in found]
    for m in found:
        m.draws = on
    try:
        yield
    finally:
        for m, was in zip(found, before, strict=True):
            m.draws = was
