"""Positive: a function that cannot be negative, as attenuation, density and concentration cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..space import Box
from .activations import Activation, Derivatives, ReLU
from .jet import Differentiable, Jet, activate, spread
from .siren import Siren
from .spec import Spec, spec


@dataclass(frozen=True)
class Softplus(Activation):
    """log(1 + exp(z))."""

    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return nn.functional.softplus(z)

    def derivatives(self, z: Float[Tensor, "*shape"], order: int) -> Derivatives:
        s = torch.sigmoid(z)
        p = s * (1 - s)
        return (nn.functional.softplus(z), s, p, p * (1 - 2 * s))[: order + 1]


@dataclass(frozen=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-z))."""

    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sigmoid(z)

    def derivatives(self, z: Float[Tensor, "*shape"], order: int) -> Derivatives:
        s = torch.sigmoid(z)
        p = s * (1 - s)
        return (s, p, p * (1 - 2 * s), p * (1 - 6 * p))[: order + 1]


@dataclass(frozen=True)
class Squareplus(Activation):
    """(z + sqrt(z^2 + 4)) / 2 (Barron 2021): like softplus, with tails that fall as 1 / z."""

    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (z + (z.square() + 4).sqrt()) / 2

    def derivatives(self, z: Float[Tensor, "*shape"], order: int) -> Derivatives:
        root = (z.square() + 4).sqrt()
        return ((z + root) / 2, (1 + z / root) / 2, 2 / root**3, -6 * z / root**5)[: order + 1]


SHAPES: dict[str, Activation] = {"relu": ReLU(), "softplus": Softplus(), "sigmoid": Sigmoid(), "squareplus": Squareplus()}


@spec
class Positive(Spec):
    """f = h(net - shift), h one of relu, softplus, sigmoid (which is also at most 1) and squareplus.

    Args:
        net: what gives the unconstrained value.
        shape: h.
        shift: taken off before h; with 3, a network that starts near zero starts as nearly empty space.
    """

    net: Spec
    shape: Literal["relu", "softplus", "sigmoid", "squareplus"] = "softplus"
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError(f"Positive: shape must be one of {', '.join(SHAPES)}, got {self.shape}")

    @classmethod
    def example(cls, box: Box) -> Positive:
        return cls(Siren(width=8, depth=1), "softplus", 1.0)

    def build(self, box: Box, channels: int) -> Bounded:
        return Bounded(self.net.build(box, channels), SHAPES[self.shape], self.shift)


class Bounded(Differentiable):
    """The module of `Positive`."""

    def __init__(self, net: nn.Module, f: Activation, shift: float):
        super().__init__()
        self.net, self.f, self.shift = net, f, shift
        self.jet_order = int(getattr(net, "jet_order", 2))

    @property
    def encoding(self) -> nn.Module:
        """Of the network inside."""
        return self.net.encoding  # type: ignore[return-value]

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        return self.f(self.net(u) - self.shift)

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        inner = spread(self.net.flat_jet(u, order), order)  # type: ignore[operator]
        return activate(inner, torch.full_like(inner[0, 0], -self.shift), self.f, u.shape[-1], order)
