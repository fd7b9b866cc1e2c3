"""Conditional: a network that is told, besides where it is, what an image shows there."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..space import Box, Grid
from .bspline import BSpline, LinearBasis
from .encodings import Encoding, Identity
from .jet import Jet, beside, pairs
from .mlp import ACTIVATIONS, Branch, Layers, Network, built_encoding
from .spec import Spec, bounded, spec


@spec
class Conditional(Spec):
    """y = MLP([encoding(u), z(u)]), z a map of features read at u (pixelNeRF: Yu et al., CVPR 2021; LIIF: Chen et al., CVPR 2021).

    What fills the map, for instance a convolutional network that has seen an image, is no part of the function: the map's coefficients
    are parameters like the weights.

    Args:
        map: the lattice of the features.
        features: numbers at each of its points.
        encoding: of the coordinates.
        width, depth, activation: of the hidden layers.
    """

    map: BSpline
    features: int = 16
    encoding: Spec = Identity()
    width: int = 64
    depth: int = 2
    activation: Literal["relu", "silu"] = "relu"

    def __post_init__(self) -> None:
        bounded(self, features=(1, 1024), width=(1, 8192), depth=(1, 64))
        if self.activation not in ACTIVATIONS:
            raise InputError(f"Conditional: activation must be relu or silu, got {self.activation}")

    @classmethod
    def example(cls, box: Box) -> Conditional | None:
        if box.ndim != 3:
            return None
        grid = Grid.from_spacing([int(side / 20) + 2 for side in box.sides], 20.0, box.lo)
        return cls(BSpline.on(grid, 3), 3, width=16, activation="silu")

    def build(self, box: Box, channels: int) -> Network:
        encoding = Beside(built_encoding(self.encoding, box), self.map.build(box, self.features))
        f = ACTIVATIONS[self.activation]
        body = Layers(encoding.n_out, [self.width] * self.depth, f)
        return Network(encoding, body, [Branch([self.width], channels, f)], fused=self.activation)


class Beside(Encoding):
    """An encoding and the features of a map, side by side."""

    def __init__(self, place: Encoding, map: LinearBasis):
        super().__init__()
        self.place, self.map = place, map
        self.n_out = place.n_out + len(map.coefficients)
        self.jet_order = place.jet_order
        nn.init.uniform_(map.coefficients, -0.1, 0.1)

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch n"]:
        return torch.cat([self.place(u), self.map(u)], -1)

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        value, jacobian, *hessian = self.map.jet(u, order)
        rows = [value, *jacobian.unbind(-1), *(hessian[0][..., i, j] for i, j in (pairs(u.shape[-1]) if order == 2 else []))]
        return beside([self.place.flat_jet(u, order), torch.stack(rows)], order)
