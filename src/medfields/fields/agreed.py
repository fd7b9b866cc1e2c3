"""Agreed: two displacements that were sought in opposite directions, made into one, and how far they are apart."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..space import Box
from .field import Field
from .siren import Siren
from .spec import Spec, spec

Points = Float[Tensor, "*batch 3"]


@spec
class Agreed(Spec):
    """Mean of a displacement and of the inverse of another, backward one."""

    channels: ClassVar[int | None] = 3

    forward: Spec
    backward: Spec

    @classmethod
    def example(cls, box: Box) -> Agreed | None:
        made = Siren(width=16, depth=2, omega_first=3.0, omega=3.0)
        return cls(made, made) if box.ndim == 3 else None

    def build(self, box: Box, channels: int) -> Mean:
        if box.ndim != 3 or channels != 3:
            raise InputError(f"Agreed moves points of space: three coordinates to three, not {box.ndim} to {channels}")
        return Mean(self.forward.build(box, 3), self.backward.build(box, 3))


class Mean(nn.Module):
    """u - d / 2, where z = x + u(x) and d = (1 + grad w(z))^-1 (z + w(z) - x) is the Newton step from z towards the inverse of w."""

    jet_order = 1

    def __init__(self, onward: nn.Module, backward: nn.Module):
        super().__init__()
        self.onward, self.backward = onward, backward

    def apart(self, x: Points, u: Points) -> Points:
        """d: how far forward and inverted backward are apart."""
        w, slope = self.backward.jet(x + u, 1)  # type: ignore[operator]
        return torch.einsum("...ij,...j->...i", _inverse(_with_one(slope)), u + w)

    def forward(self, x: Points) -> Points:
        u = self.onward(x)
        return u - self.apart(x, u) / 2

    def jet(self, x: Points, order: int) -> tuple[Tensor, ...]:
        """With P = 1 + grad u: grad d = (1 + grad w)^-1 ((1 + grad w) P - 1 - (grad^2 w P) d)."""
        if order > 1:
            raise InputError("an agreed displacement has no derivatives of order 2", "penalise the bending of its two networks")
        u, ju = self.onward.jet(x, 1)  # type: ignore[operator]
        w, jw, hw = self.backward.jet(x + u, 2)  # type: ignore[operator]
        p, q = _with_one(ju), _with_one(jw)
        back = _inverse(q)
        d = torch.einsum("...ij,...j->...i", back, u + w)
        turned = torch.einsum("...cij,...jb,...i->...cb", hw, p, d)
        return u - d / 2, ju - back @ (q @ p - _with_one(torch.zeros_like(p)) - turned) / 2


def _with_one(slope: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """1 + slope: the gradient of the map whose displacement has that slope."""
    return slope + torch.eye(3, dtype=slope.dtype, device=slope.device)


def _inverse(f: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """f^-1; where a volume shrinks below a tenth, as if it were a tenth: a folded place makes no giant step."""
    a, b, c = f.unbind(-2)
    columns = torch.stack([torch.linalg.cross(b, c, dim=-1), torch.linalg.cross(c, a, dim=-1), torch.linalg.cross(a, b, dim=-1)], -1)
    return columns / (a * columns[..., 0]).sum(-1).clamp_min(0.1)[..., None, None]


def uncertainty(warp: Field, x: Points) -> Float[Tensor, "*batch"]:
    """mm: half the distance between the forward and the inverted backward displacement of an answer of `cycle`, at world points."""
    net, u = cast(Mean, warp.net), warp.unit_coordinates(x)
    return warp.scale[0] / 2 * net.apart(u, net.onward(u)).norm(dim=-1)
