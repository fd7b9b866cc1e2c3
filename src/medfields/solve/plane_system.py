"""Slices in space as a linear system: what `SliceSystem` is for stacks at rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..cases.slices import Slices
from .linear import LatticeSystem
from .motion import TUKEY, Found, Poses, covering, placed


class PlaneSystem(LatticeSystem):
    """All slices, each where it was found to lie, with its gain, and counting as much as it is worth.

    What `LatticeSystem` calls A and y holds the roots of the weights: sqrt(w) g A c = sqrt(w) y.

    Args:
        case: the slices.
        found: poses, gains and worth of them.
        hold: poses whose pixels the lattice is made to hold, where poses will change; those that were found if they will not.
        finer: spacing of the lattice over that of the result.

    Attributes:
        inner: where the result's grid, or its finer like, lies in the lattice.
    """

    def __init__(self, case: Slices, found: Found, hold: Poses | None = None, finer: float = 1.0):
        self.case, self.found = case, found
        grid = case.grid if finer == 1 else case.grid.with_spacing((finer * case.grid.spacing).tolist())
        where = placed(case, found.poses if hold is None else hold)
        self.lattice, self.inner = covering(grid, where, case.reach() + float(grid.spacing.max()))
        self.operator = case.operator(self.lattice, found.poses)
        self.offset, self.scale = case.level()
        self.plane = self.operator.plane.long()
        self.gain = torch.from_numpy(found.gain).float()[self.plane]
        self.value = (case.pixels()[2] - self.offset) / self.scale
        self.weigh(torch.from_numpy(found.worth).float()[self.plane])

    def weigh(self, weight: Float[Tensor, "P"]) -> None:
        """Other weights of the pixels."""
        self.root = weight.sqrt()
        self.y = [self.root * self.value]

    def residual(self, c: Float[Tensor, "I J K"]) -> Float[Tensor, "P"]:
        """What the pixels measured beyond what they show of c, unweighted."""
        return self.value - self.gain * self.operator.apply(c)

    def doubt(self, c: Float[Tensor, "I J K"]) -> None:
        """Weigh pixels down that stand out from what c shows (Geman-McClure), beside their slices' worth."""
        residual, worth = self.residual(c), torch.from_numpy(self.found.worth).float()[self.plane]
        noise = ((worth * residual.square()).sum() / worth.sum()).sqrt()
        self.weigh(worth / (1 + (residual / (TUKEY * noise)).square()).square())

    def apply(self, c: Float[Tensor, "I J K"]) -> list[Tensor]:
        return [self.root * self.gain * self.operator.apply(c)]

    def adjoint(self, y: Sequence[Tensor]) -> Float[Tensor, "I J K"]:
        return self.operator.adjoint(self.root * self.gain * y[0])
