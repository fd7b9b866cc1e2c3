"""Tube: a displacement along and across a tube, told in the tube's own coordinates."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import InputError
from ..space import Box
from ..space.tube import Points, Smoothing, TubeChart
from .siren import Siren
from .spec import Spec, bounded, spec
from .warp import three_to_three

UNIT = Box((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))


@spec
class Tube(Spec):
    """u(x) = X(q + fade(q) d(q)) - x with x = X(q): points are moved in the tube coordinates q = (s, u, v) of a `TubeChart` (van Harten et al.,
    MIDL 2023).

    Inside the tube fade is 1; beyond its ends, and towards the border of what the chart serves, the displacement fades to nothing.

    Args:
        centreline: x, y and z of its points in turn, mm.
        radius: mm, of the tube.
        inner: d, a function of q.
        smooth, slack, extend: as in `TubeChart`.
        even: d is told, and tells, lengths in units of the box's radius, so that its bandwidth is the same along and across the tube, and that of a
            network of world coordinates; else q itself, as published, where one unit along a long tube is many times one across.
    """

    channels: ClassVar[int | None] = 3

    centreline: tuple[float, ...]
    radius: float
    inner: Spec
    smooth: Smoothing = "spline"
    slack: float = 0.05
    extend: float = 0.2
    even: bool = True

    def __post_init__(self) -> None:
        bounded(self, radius=(1e-6, 1e6), slack=(1e-6, 1), extend=(1e-3, 1))
        if len(self.centreline) % 3 or not 6 <= len(self.centreline) <= 3 << 14:
            raise InputError("Tube: a centreline is three numbers for each of 2 to 16384 points")
        if self.smooth not in ("polynomial", "spline"):
            raise InputError(f"Tube: smooth must be polynomial or spline, got {self.smooth}")

    @classmethod
    def along(cls, points: Float[np.ndarray, "N 3"], radius: float, inner: Spec, **how: Any) -> Tube:
        """With the centreline as an array of points."""
        return cls(tuple(float(v) for v in np.asarray(points).ravel()), float(radius), inner, **how)

    @property
    def chart(self) -> TubeChart:
        """A fresh one.

        Raises:
            GeometryError: if the tube overlaps itself.
        """
        return TubeChart(np.array(self.centreline, dtype=float).reshape(-1, 3), self.radius, self.smooth, self.slack, self.extend)

    @classmethod
    def example(cls, box: Box) -> Tube | None:
        if box.ndim != 3:
            return None
        t = np.linspace(-1, 1, 17)[:, None]
        line = box.centre + box.sides * np.concatenate([0.05 * np.cos(2 * t), 0.1 * np.sin(2 * t), 0.45 * t], 1)
        return cls.along(line, 0.4 * box.sides.min(), Siren(width=16, depth=2))

    def build(self, box: Box, channels: int) -> nn.Module:
        three_to_three(self, box, channels)
        return InTube(self.chart, self.inner.build(UNIT, 3), box, self.even)


class InTube(nn.Module):
    """The displacement of a `Tube` in unit coordinates of the world."""

    jet_order = 1
    centre: Tensor
    units: Tensor

    def __init__(self, chart: TubeChart, inner: nn.Module, box: Box, even: bool):
        super().__init__()
        self.chart, self.inner, self.scale = chart, inner, float(box.radius[0])
        units = torch.tensor([chart.span, 2 * chart.radius, 2 * chart.radius]) / self.scale if even else torch.ones(3)
        self.register_buffer("units", units, persistent=False)
        self.register_buffer("centre", torch.tensor(box.centre, dtype=torch.float32), persistent=False)

    def carried(self, q: Points) -> tuple[Points, Float[Tensor, "*batch 3 3"]]:
        """Where tube coordinates are carried to, and the gradient of that, both in tube coordinates."""
        d, slope = self.inner.jet(self.units * q, 1)  # type: ignore[operator]
        d, slope = d / self.units, slope * self.units / self.units[:, None]
        fade, by = self.chart.fade(q)
        f = torch.eye(3, dtype=q.dtype, device=q.device) + fade[..., None] * slope + d[..., None] * by[..., None, :]
        return q + fade * d, f

    def in_world(self, q: Points, to: Points, f: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
        """The gradient of `carried` in mm per mm, by the chain rule."""
        return self.chart.jacobian(to) @ f @ torch.linalg.inv(self.chart.jacobian(q))

    def forward(self, u: Points) -> Points:
        flat, moves, q = self._moves(u)
        y = self.chart.to_world(q + self.chart.fade(q)[0] * self.inner(self.units * q) / self.units)
        return torch.zeros_like(flat).index_put((moves,), (y - self._world(flat[moves])) / self.scale).reshape(u.shape)

    def jet(self, u: Points, order: int) -> tuple[Tensor, ...]:
        """Value and Jacobian; world and displacement share one scale, so the latter has no unit.

        Raises:
            InputError: for order 2.
        """
        if order > 1:
            raise InputError("a displacement in a tube has no derivatives of order 2", "penalise the first ones")
        flat, moves, q = self._moves(u)
        to, f = self.carried(q)
        slope = self.in_world(q, to, f) - torch.eye(3, dtype=u.dtype, device=u.device)
        value = torch.zeros_like(flat).index_put((moves,), (self.chart.to_world(to) - self._world(flat[moves])) / self.scale)
        jacobian = flat.new_zeros(len(flat), 3, 3).index_put((moves,), slope)
        return value.reshape(u.shape), jacobian.reshape(*u.shape, 3)

    def _world(self, u: Points) -> Points:
        return self.centre + self.scale * u

    def _moves(self, u: Points) -> tuple[Float[Tensor, "N 3"], Bool[Tensor, "N"], Float[Tensor, "M 3"]]:
        """The points as a list, which of them can move at all, and the tube coordinates of these."""
        flat = u.reshape(-1, 3)
        x = self._world(flat)
        moves = self.chart.near(x)
        q = self.chart.from_world(x[moves])
        live = self.chart.fade(q)[0][:, 0] > 0
        return flat, moves.masked_scatter(moves, live), q[live]
