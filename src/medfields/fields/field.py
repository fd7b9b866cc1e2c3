"""Field: a spec that has been given a place in the world, units and weights."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..space import Box, Grid
from .lazy import LazyVolume
from .spec import Spec


class Field(nn.Module):
    """A continuous function of the world: f(x) = offset + scale * net((x - centre) / radius).

    Complex quantities are two channels (real, imaginary).

    Args:
        spec: what is between the unit coordinates and the channels.
        box: the part of the world, mm, the field describes; beyond it the answer is whatever the spec continues with.
        channels: number of output values.
        scale, offset: physical units per network unit, one number or one for each channel.
        unit: of the values.
        names: of the channels.
        seed: of the initial weights; None draws from torch's global generator.

    Attributes:
        grid: the lattice the result was asked for, or None; `medfields query` without options uses it.
        about: provenance that travels in the `.field` file.
    """

    centre: Tensor
    radius: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, spec: Spec, box: Box, channels: int = 1, *, scale: Tensor | float = 1.0, offset: Tensor | float = 0.0, unit: str = "",
                 names: tuple[str, ...] = (), seed: int | None = None):
        super().__init__()
        if names and len(names) != channels:
            raise InputError(f"{len(names)} names for {channels} channels")
        self.spec, self.box, self.channels, self.unit, self.names = spec, box, channels, unit, tuple(names)
        self.grid: Grid | None = None
        self.about: dict[str, Any] = {}
        for name, value in (("centre", box.centre), ("radius", box.radius)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))
        for name, given in (("scale", scale), ("offset", offset)):
            self.register_buffer(name, torch.as_tensor(given, dtype=torch.float32).expand(channels).clone())
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.net = spec.build(box, channels)

    def unit_coordinates(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """u = (x - centre) / radius, in [-1, 1] inside the box."""
        return (x - self.centre) / self.radius

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        return self.offset + self.scale * self.net(self.unit_coordinates(x))

    def value_and_jacobian(self, x: Float[Tensor, "*batch D"]) -> tuple[Float[Tensor, "*batch C"], Float[Tensor, "*batch C D"]]:
        """Values and their gradients per mm, in one forward sweep; both can be trained on."""
        v, j = self.net.jet(self.unit_coordinates(x), 1)  # type: ignore[operator]
        return self.offset + self.scale * v, self.scale[:, None] * j / self.radius

    def value_jacobian_hessian(self, x: Float[Tensor, "*batch D"]) -> tuple[
            Float[Tensor, "*batch C"], Float[Tensor, "*batch C D"], Float[Tensor, "*batch C D D"]]:
        """Values, gradients per mm and second derivatives per mm^2, in one forward sweep."""
        v, j, h = self.net.jet(self.unit_coordinates(x), 2)  # type: ignore[operator]
        return (self.offset + self.scale * v, self.scale[:, None] * j / self.radius,
                self.scale[:, None, None] * h / (self.radius[:, None] * self.radius))

    def on(self, grid: Grid, *, chunk: int = 1 << 18) -> LazyVolume:
        """The field as an array on a grid, computed where it is read, `chunk` points at a time."""
        return LazyVolume(self, grid, chunk)

    def __repr__(self) -> str:
        return f"Field({self.spec}, {self.channels} channel{'s' * (self.channels != 1)}{', ' + self.unit if self.unit else ''})"
