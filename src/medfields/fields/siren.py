"""Siren and Finer: networks of sines, smooth to every order, so derivatives of a fit mean something."""

from __future__ import annotations

import math

from torch import nn

from ..space import Box
from .activations import Activation, Sine, VariableSine
from .encodings import Identity
from .mlp import Branch, Layers, Network, built_encoding
from .spec import Spec, bounded, spec


@spec
class Siren(Spec):
    """h_l = sin(omega_l (W_l h_(l-1) + b_l)), y = W h + b (Sitzmann et al., NeurIPS 2020).

    Weights start as the paper's section 3.2: the first layer U(-1/n, 1/n), the others U(-sqrt(6/n)/omega, sqrt(6/n)/omega), so that every
    layer's input to the sine has unit variance whatever the depth; biases U(-1/sqrt(n), 1/sqrt(n)).

    Args:
        width: units of each hidden layer.
        depth: number of sine layers.
        omega_first: gain of the first layer: the highest frequency that is easy to fit, radians per unit coordinate.
        omega: gain of the others.
        encoding: of the coordinates before the first layer (NeRP, NIK: Fourier).
    """

    width: int = 256
    depth: int = 3
    omega_first: float = 30.0
    omega: float = 30.0
    encoding: Spec = Identity()

    def __post_init__(self) -> None:
        bounded(self, width=(1, 8192), depth=(1, 64), omega_first=(1e-3, 1e4), omega=(1e-3, 1e4))

    def build(self, box: Box, channels: int) -> Network:
        return _sines(self, box, channels, Sine(), [self.omega_first] + [self.omega] * (self.depth - 1))


@spec
class Finer(Spec):
    """h_l = sin(omega (|z| + 1) z), z = W_l h_(l-1) + b_l (Liu et al., CVPR 2024): each unit's frequency grows with |z|.

    As published, the factor |z| + 1 is a constant for training; `jet` gives the true derivatives with respect to u all the same. Weights
    start as in `Siren`.

    Args:
        width, depth, encoding: as in `Siren`.
        omega: gain of all layers.
        bias: the first layer's biases start in U(-bias, bias): the wider, the higher the frequencies at hand; None = as in `Siren`.
    """

    width: int = 256
    depth: int = 3
    omega: float = 30.0
    bias: float | None = None
    encoding: Spec = Identity()

    def __post_init__(self) -> None:
        bounded(self, width=(1, 8192), depth=(1, 64), omega=(1e-3, 1e4))
        if self.bias is not None:
            bounded(self, bias=(0, 1e3))

    def build(self, box: Box, channels: int) -> Network:
        network = _sines(self, box, channels, VariableSine(self.omega), [1.0] * self.depth)
        if self.bias is not None:
            nn.init.uniform_(network.body.linears()[0].bias, -self.bias, self.bias)
        return network


def _sines(given: Siren | Finer, box: Box, channels: int, f: Activation, gains: list[float]) -> Network:
    encoding = built_encoding(given.encoding, box)
    body, branch = Layers(encoding.n_out, [given.width] * given.depth, f, gains), Branch([given.width], channels, f)
    for k, layer in enumerate([*body.linears(), branch.last]):
        n = layer.in_features
        bound = 1 / n if k == 0 else math.sqrt(6 / n) / given.omega
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.uniform_(layer.bias, -1 / math.sqrt(n), 1 / math.sqrt(n))
    return Network(encoding, body, [branch])
