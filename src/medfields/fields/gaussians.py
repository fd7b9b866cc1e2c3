"""Gaussians: a field of bells that move, stretch and turn."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.splat import apart, dot, point_sums
from ..space import Box
from .jet import Differentiable, Jet, pairs
from .spec import Spec, bounded, spec


@spec
class Gaussians(Spec):
    """f(u) = sum_n w_n exp(-|A_n (u - c_n)|^2 / 2), A_n = diag(1 / s_n) R_n': anisotropic Gaussians (Kerbl et al., ACM TOG 2023).

    A sum of densities, not the layered opacities of the paper. They start at random places of the box, as wide as they are apart.

    Args:
        count: number of Gaussians.
        flat: they do not change along the last axis: the field of a slice.
        positive: weights are softplus of their parameter and cannot be negative.
    """

    count: int = 10000
    flat: bool = False
    positive: bool = True

    def __post_init__(self) -> None:
        bounded(self, count=(1, 1 << 24))

    @classmethod
    def example(cls, box: Box) -> Gaussians | None:
        return cls(40, flat=box.ndim == 3) if box.ndim in (2, 3) else None

    def build(self, box: Box, channels: int) -> Bells:
        axes = box.ndim - self.flat
        if axes not in (2, 3) or box.ndim > 3:
            raise InputError(f"Gaussians have two or three axes, the box has {box.ndim}", "flat=True leaves the last one out, of three")
        return Bells(self, axes, [float(r) for r in box.sides[:axes] / (2 * box.radius[:axes])], channels)


class Bells(Differentiable):
    """The module of `Gaussians`: `centres` [N, A] in unit coordinates, `log_scales` [N, A], `turns`, an angle [N, 1] or a quaternion [N, 4],
    and `densities` [N, C] before the softplus."""

    def __init__(self, spec: Gaussians, axes: int, half: list[float], channels: int):
        super().__init__()
        self.axes, self.positive = axes, spec.positive
        apart = (2**axes * math.prod(half) / spec.count) ** (1 / axes)
        self.centres = nn.Parameter((2 * torch.rand(spec.count, axes) - 1) * torch.tensor(half))
        self.log_scales = nn.Parameter(math.log(apart / 2) + 0.3 * torch.randn(spec.count, axes))
        upright = torch.tensor([1.0, 0, 0, 0]) if axes == 3 else torch.zeros(1)
        self.turns = nn.Parameter(upright + 0.3 * torch.randn(spec.count, len(upright)))
        self.densities = nn.Parameter(0.3 * torch.randn(spec.count, channels) - 1)

    @property
    def weights(self) -> Float[Tensor, "N C"]:
        """Peaks."""
        return nn.functional.softplus(self.densities) if self.positive else self.densities

    def places(self) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
        """Centres and whitening matrices as `kernels.splat` takes them: flat ones with zeros for the axis they do not have."""
        whiten = rotations(self.turns).mT * torch.exp(-self.log_scales)[..., None]
        missing = 3 - self.axes
        return nn.functional.pad(self.centres, (0, missing)), nn.functional.pad(whiten, (0, missing, 0, missing))

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        return point_sums(self._flat(u), *self.places(), self.weights).reshape(*u.shape[:-1], self.densities.shape[1])

    def _flat(self, u: Tensor) -> Float[Tensor, "n 3"]:
        u = u.reshape(-1, u.shape[-1])
        return nn.functional.pad(u[:, :self.axes], (0, 3 - self.axes))

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        """With z = A (u - c) and v = exp(-|z|^2 / 2): v_i = -v (A' z)_i, v_ij = v ((A' z)_i (A' z)_j - (A' A)_ij)."""
        (centres, whiten), weights, ndim = self.places(), self.weights, u.shape[-1]
        z = apart(self._flat(u), centres, whiten)
        v = torch.exp(-0.5 * dot(z, z))
        steep = [dot(z, list(whiten[:, :, i].unbind(1))) for i in range(min(ndim, 3))]
        rows = [v @ weights, *(-(v * s) @ weights for s in steep)]
        if order == 2:
            inner = whiten.mT @ whiten
            rows += [(v * (steep[i] * steep[j] - inner[:, i, j])) @ weights for i, j in pairs(ndim)]
        return torch.stack(rows)


def rotations(turns: Float[Tensor, "N _"]) -> Float[Tensor, "N A A"]:
    """Rotation matrices of angles [N, 1] (radians, in the plane) or of quaternions [N, 4] (w, x, y, z) of any length."""
    if turns.shape[1] == 1:
        c, s = torch.cos(turns[:, 0]), torch.sin(turns[:, 0])
        return torch.stack([c, -s, s, c], -1).reshape(-1, 2, 2)
    w, x, y, z = nn.functional.normalize(turns, dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z), 1 - 2 * (x * x + z * z),
            2 * (y * z - w * x), 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).reshape(-1, 3, 3)
