"""Pointwise nonlinearities and their derivatives, which `jet` needs.

`derivatives(z, order)` gives f, f', ..., up to `order` (at most 3); None stands for a derivative that is zero almost everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Derivatives = tuple[Tensor | None, ...]


class Activation(ABC):
    """A function of one number, applied to every element."""

    @abstractmethod
    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """f(z)."""

    @abstractmethod
    def derivatives(self, z: Float[Tensor, "*shape"], order: int) -> Derivatives:
        """f(z), f'(z), ... up to `order`."""


@dataclass(frozen=True)
class ReLU(Activation):
    """max(z, 0)."""

    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.relu(z)

    def derivatives(self, z: Float[Tensor, "*shape"], order: int) -> Derivatives:
        return (torch.relu(z), (z > 0).to(z.dtype), None, None)[: order + 1]


@dataclass(frozen=True)
class SiLU(Activation):
    """z sigmoid(z); smooth, so it has a curvature where ReLU has none."""

    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.nn.functional.silu(z)

    def derivatives(self, z: Float[Tensor, "*shape"], order: int) -> Derivatives:
        s = torch.sigmoid(z)
        p = s * (1 - s)
        slope, bend = 1 - 2 * s, 1 - 6 * p  # p' = p slope, p'' = p bend
        made = [z * s, s + z * p]
        if order >= 2:
            made.append(p * (2 + z * slope))
        if order >= 3:
            made.append(p * (3 * slope + z * bend))
        return tuple(made)


@dataclass(frozen=True)
class Sine(Activation):
    """sin z; SIREN's omega is a gain on z."""

    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sin(z)

    def derivatives(self, z: Float[Tensor, "*shape"], order: int) -> Derivatives:
        s, c = torch.sin(z), torch.cos(z)
        return (s, c, *([-s] if order >= 2 else []), *([-c] if order >= 3 else []))


@dataclass(frozen=True)
class VariableSine(Activation):
    """sin(omega (|z| + 1) z): the frequency grows with the bias (FINER, Liu et al., CVPR 2024).

    As published, training treats the factor |z| + 1 as a constant; `derivatives` are the true ones.
    """

    omega: float

    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sin(self.omega * (z.detach().abs() + 1) * z)

    def derivatives(self, z: Float[Tensor, "*shape"], order: int) -> Derivatives:
        phase, first, second = self.omega * (z.abs() + 1) * z, self.omega * (2 * z.abs() + 1), 2 * self.omega * z.sign()
        s, c = torch.sin(phase), torch.cos(phase)
        made = [s, c * first]
        if order >= 2:
            made.append(c * second - s * first**2)
        if order >= 3:
            made.append(-c * first**3 - 3 * s * first * second)
        return tuple(made)
