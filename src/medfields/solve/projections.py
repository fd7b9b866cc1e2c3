"""Fitting fields to projections: all rays at once through the result's lattice, or random rays through the function itself."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..cases import Projections
from ..errors import InputError
from ..fields import Field, Spec
from ..losses import l1, mse, total_variation
from .problem import Problem

Misfit = Literal["l1", "l2"]
MISFITS = {"l1": l1, "l2": mse}


class ProjectionFit(Problem):
    """A field in 1/mm that explains projections.

    The misfit counts in units of `case.level` times the voxel side, so that weights mean the same for every subject, unit and voxel
    size: |A f - y| / (level h) for "l1", its square for "l2", averaged over the trusted rays. `total variation` is the mean of |grad f|
    times h / level.

    Args:
        spec: of the field.
        case: the projections.
        rays: in a step; 0 evaluates the field on the result's lattice and takes all rays, which is the quicker way for slices.
        step: mm between samples of a ray; None is the voxel side.
        misfit: "l1" or "l2".
        tv: weight of the total variation, on the lattice, or with rays between random pairs of points one voxel apart.
        held_out: share of the views that tells when to stop.
        top: what the network's 1 means, in levels: a field that ends in a sigmoid cannot exceed it.
        channels: of the field; subclasses say what several of them make a detector read.
    """

    memory = "the number of rays in a step"
    field: Any
    data: Tensor
    weight: Tensor
    points: Tensor

    def __init__(self, spec: Spec, case: Projections, *, rays: int = 0, step: float | None = None, misfit: Misfit = "l1", tv: float = 0.0,
                 held_out: float = 0.0, top: float = 1.0, channels: int = 1):
        super().__init__()
        if misfit not in MISFITS:
            raise InputError(f"there is no misfit '{misfit}'", "l1 or l2")
        self.case: Projections = case
        self.tests: Projections | None = None
        if held_out:
            self.case, self.tests = case.split(held_out)
        self.rays, self.tv, self.misfit, self.grid = rays, tv, MISFITS[misfit], case.grid
        self.side = float((case.grid.spacing[:2] if case.grid.is_2d else case.grid.spacing).min())
        self.unit = case.level * self.side
        self.field = Field(spec, case.box(), channels, scale=top * case.level, unit=case.unit)
        self.projector = self.case.projector()
        self.along = self.case.rays(step)
        self.register_buffer("data", self.case.clean.reshape(-1, 1), persistent=False)
        self.register_buffer("weight", self.case.weight.reshape(-1), persistent=False)
        self.register_buffer("points", case.grid.points().reshape(-1, 3), persistent=False)

    def batch(self, rng: torch.Generator) -> Any:
        if not self.rays:
            return None
        index = torch.randint(len(self.data), (self.rays,), generator=rng, device=rng.device)
        n = max(1, self.rays // 2)
        x = self.grid.box().random(n, rng)
        return index, x, nn.functional.normalize(torch.randn(x.shape, generator=rng, device=rng.device), dim=-1)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        if batch is None:
            lattice = self.on_lattice()
            predicted = self.projector(lattice).reshape(-1, 1)
            out = {"data": self.misfit(predicted / self.unit, self.data / self.unit, self.weight)}
            if self.tv:
                out["variation"] = self.tv * self.side / self.case.level * total_variation(lattice[None], self.grid.spacing.tolist())
            return out
        index, x, direction = batch
        predicted = self.along(self.field, self.case.geometry.at(index))
        out = {"data": self.misfit(predicted / self.unit, self.data[index] / self.unit, self.weight[index])}
        if self.tv:
            a, b = self.field(torch.cat([x, x + self.side * direction])).chunk(2)
            out["variation"] = self.tv * ((a - b).square() + (1e-3 * self.case.level) ** 2).sqrt().mean() / self.case.level
        return out

    def on_lattice(self) -> Tensor:
        """The field on the result's lattice, [I, J, K]."""
        return self.field(self.points).reshape(self.grid.shape)

    @torch.no_grad()
    def held_out(self) -> Tensor | None:
        if self.tests is None:
            return None
        predicted = self.tests.projector().apply(self.on_lattice()).reshape(-1, 1)
        data, weight = self.tests.clean.reshape(-1, 1).to(predicted), self.tests.weight.reshape(-1).to(predicted)
        return l1(predicted / self.unit, data / self.unit, weight)
