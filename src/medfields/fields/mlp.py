"""MLP: encoding, hidden layers, output. The skeleton of every network here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.mlp import mlp_forward
from ..space import Box
from .activations import Activation, ReLU, SiLU
from .encodings import Encoding, Identity
from .jet import Differentiable, Jet, activate, beside, linear, shift
from .spec import Spec, bounded, spec

ACTIVATIONS: dict[str, Activation] = {"relu": ReLU(), "silu": SiLU()}


@spec
class MLP(Spec):
    """h_0 = encoding(u), h_l = f(W_l h_(l-1) + b_l), y = W h + b: a fully connected network.

    The output has no activation; physical scale and offset belong to the `Field`. Weights start as He et al. (2015), so that neither
    values nor gradients fade with depth.

    Args:
        encoding: what is made of the coordinates first; without one, a ReLU network cannot say anything sharp (spectral bias).
        width: units of each hidden layer.
        depth: number of hidden layers.
        activation: f.
        skips: hidden layers, counted from 0, that also read the encoding (NeRF: depth 8, skips (5,)).
        split: layers of a branch of its own for every channel, the first of them halving the width ("split head", McGinnis et al. 2023:
            depth 5, split 2); 0 = one linear layer for all channels.
    """

    encoding: Spec = Identity()
    width: int = 256
    depth: int = 4
    activation: Literal["relu", "silu"] = "relu"
    skips: tuple[int, ...] = ()
    split: int = 0

    def __post_init__(self) -> None:
        bounded(self, width=(1, 8192), depth=(1, 64), split=(0, 16))
        if self.activation not in ACTIVATIONS:
            raise InputError(f"MLP: activation must be relu or silu, got {self.activation}")
        if len(set(self.skips)) != len(self.skips) or not all(1 <= s < self.depth for s in self.skips):
            raise InputError(f"MLP: skips must be different hidden layers from 1 to {self.depth - 1}, got {self.skips}")

    def build(self, box: Box, channels: int) -> Network:
        encoding = built_encoding(self.encoding, box)
        f = ACTIVATIONS[self.activation]
        body = Layers(encoding.n_out, [self.width] * self.depth, f, skips=self.skips)
        if self.split:
            widths = [self.width] + [max(self.width // 2, 1)] * (self.split - 1)
            return Network(encoding, body, [Branch(widths, 1, f) for _ in range(channels)])
        return Network(encoding, body, [Branch([self.width], channels, f)], fused="" if self.skips else self.activation)


def built_encoding(given: Spec, box: Box) -> Encoding:
    """The module of an encoding spec.

    Raises:
        InputError: if the spec is a network instead.
    """
    module = given.build(box, 1)
    if not isinstance(module, Encoding):
        raise InputError(f"{type(given).__name__} is not an encoding", "use Identity, Fourier, NeRFEncoding or GridEncoding")
    return module


class Layers(nn.Module):
    """Hidden layers h <- f(gain (W h + b)), some of which also read the input x of the first."""

    def __init__(self, n_in: int, widths: Sequence[int], f: Activation, gains: Sequence[float] | None = None, skips: Sequence[int] = ()):
        super().__init__()
        self.f, self.skips = f, frozenset(skips)
        self.gains = list(gains) if gains is not None else [1.0] * len(widths)
        sizes = [n_in, *widths]
        self.layers = nn.ModuleList(nn.Linear(a + n_in * (k in self.skips), b) for k, (a, b) in enumerate(zip(sizes, widths, strict=False)))
        for layer in self.linears():
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")

    def linears(self) -> list[nn.Linear]:
        """The layers, without gains."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of each layer with its gain."""
        return [(layer.weight, layer.bias) if gain == 1 else (gain * layer.weight, gain * layer.bias)
                for layer, gain in zip(self.linears(), self.gains, strict=True)]

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch w"]:
        h = x
        for k, (weight, bias) in enumerate(self.weights()):
            h = self.f(nn.functional.linear(torch.cat([h, x], -1) if k in self.skips else h, weight, bias))
        return h

    def through(self, x: Jet, ndim: int, order: int) -> Jet:
        """The same for a jet."""
        h = x
        for k, (weight, bias) in enumerate(self.weights()):
            h = activate(linear(beside([h, x], order) if k in self.skips else h, weight), bias, self.f, ndim, order)
        return h


class Branch(nn.Module):
    """The way from the body to some of the channels: hidden layers of its own, perhaps none, then a linear one."""

    def __init__(self, widths: Sequence[int], channels: int, f: Activation):
        super().__init__()
        self.hidden = Layers(widths[0], widths[1:], f)
        self.last = nn.Linear(widths[-1], channels)

    def forward(self, h: Float[Tensor, "*batch w"]) -> Float[Tensor, "*batch C"]:
        return self.last(self.hidden(h))

    def through(self, h: Jet, ndim: int, order: int) -> Tensor:
        return shift(linear(self.hidden.through(h, ndim, order), self.last.weight), self.last.bias, order)


class Network(Differentiable):
    """Encoding, hidden layers, and one branch for all channels or one for each.

    `fused` names the activation of a plain stack of layers, which `kernels.mlp` runs in chunks that fit the cache.
    """

    def __init__(self, encoding: Encoding, body: Layers, branches: Sequence[Branch], fused: str = ""):
        super().__init__()
        self.fused = fused
        self.encoding, self.body, self.branches = encoding, body, nn.ModuleList(branches)
        self.jet_order = encoding.jet_order

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        x = self.encoding(u)
        if self.fused:
            layers = [*self.body.linears(), cast(Branch, self.branches[0]).last]
            weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
            return mlp_forward(x.reshape(-1, x.shape[-1]), weights, biases, self.fused).reshape(*u.shape[:-1], len(biases[-1]))
        h = self.body(x)
        return torch.cat([branch(h) for branch in self.branches], -1) if len(self.branches) > 1 else self.branches[0](h)

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        ndim = u.shape[-1]
        h = self.body.through(self.encoding.flat_jet(u, order), ndim, order)
        return beside([branch.through(h, ndim, order) for branch in self.branches], order)  # type: ignore[operator]
