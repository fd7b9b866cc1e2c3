"""Hybrid: a base plus a residual, so that a network adds only what a linear basis cannot say."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..space import Box
from .siren import Siren
from .spec import Spec, spec


@spec
class Hybrid(Spec):
    """f = base + residual; both see the same unit coordinates."""

    base: Spec
    residual: Spec

    @classmethod
    def example(cls, box: Box) -> Hybrid:
        return cls(Siren(width=8, depth=1), Siren(width=16, depth=2))

    def build(self, box: Box, channels: int) -> Sum:
        return Sum(self.base.build(box, channels), self.residual.build(box, channels))


class Sum(nn.Module):
    """The two parts of a `Hybrid`."""

    def __init__(self, base: nn.Module, residual: nn.Module):
        super().__init__()
        self.base, self.residual = base, residual

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        return self.base(u) + self.residual(u)

    def jet(self, u: Float[Tensor, "*batch D"], order: int) -> tuple[Tensor, ...]:
        """Derivatives of a sum are sums of derivatives."""
        return tuple(a + b for a, b in zip(self.base.jet(u, order), self.residual.jet(u, order), strict=True))  # type: ignore[operator]
