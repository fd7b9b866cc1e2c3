"""Fitting a field to projections of a subject that moved: a rigid pose for every view is found with it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases import Projections
from ..fields import Spec
from ..losses import total_variation
from ..space.rigid import rotation
from .projections import ProjectionFit

TURN = 0.2  # one step of the optimiser turns a view by so many radians for each radius it shifts it: angles are told less surely than shifts


class MovingFit(ProjectionFit):
    """A field at rest, and for every view the pose in which its subject lay.

    Args:
        spec, case, rays, tv: as in `ProjectionFit`; `rays` at least 1.
        lattice: read the rays from the result's lattice, on which the field is evaluated once a step, instead of from the field.
        anchor: poses count from their mean or from the first view: the data cannot tell.
        coarse: share of the progress after which all levels of the field's grid are open; 0 opens all at once.
    """

    about: Tensor
    scale: Tensor
    to_index: Tensor

    def __init__(self, spec: Spec, case: Projections, rays: int, lattice: bool = True, anchor: Literal["mean", "first"] = "mean",
                 coarse: float = 0.0, tv: float = 0.0):
        super().__init__(spec, case, rays=rays, tv=tv)
        self.lattice, self.anchor, self.coarse = lattice, anchor, coarse
        self.free = [2, 3, 4] if case.grid.is_2d else [0, 1, 2, 3, 4, 5]  # a slice turns about z and shifts along x and y
        self.register_buffer("scale", torch.tensor([TURN] * 3 + [float(case.box().radius[0])] * 3)[self.free], persistent=False)
        self.moves = nn.Parameter(torch.zeros(case.geometry.views, len(self.free)))
        self.register_buffer("about", torch.tensor(case.box().centre, dtype=torch.float32), persistent=False)
        self.register_buffer("to_index", torch.tensor(np.linalg.inv(case.grid.affine), dtype=torch.float32), persistent=False)

    def poses(self) -> Float[Tensor, "V 6"]:
        """How the subject moved, x -> R (x - c) + c + t about the middle of the box: rotation vectors in radians, shifts in mm, gauge fixed."""
        moves = self.moves - (self.moves.mean(0) if self.anchor == "mean" else self.moves[0])
        return moves.new_zeros(len(moves), 6).index_copy(1, torch.tensor(self.free, device=moves.device), moves * self.scale)

    def carried(self, at: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rays as the subject at rest meets them: moved back by the poses of their views."""
        pose = self.poses()
        back, shift = rotation(pose[:, :3]).mT[at["view"]], pose[at["view"], 3:]
        origin = torch.einsum("nij,nj->ni", back, at["origin"] - self.about - shift) + self.about
        return at | {"origin": origin, "direction": torch.einsum("nij,nj->ni", back, at["direction"])}

    def before_step(self, progress: float) -> None:
        if self.coarse:
            levels = self.field.net.encoding
            levels.set_levels((0.25 + 0.75 * min(1.0, progress / self.coarse)) * len(levels.level_mask))

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        index, x, direction = batch
        at, function = self.carried(self.case.geometry.at(index)), self.field
        values = self.on_lattice() if self.lattice else None
        if values is not None:
            function = lambda x: interpolated(values, x @ self.to_index[:3, :3].T + self.to_index[:3, 3])  # noqa: E731
        predicted = self.along(function, at)
        out = {"data": self.misfit(predicted / self.unit, self.data[index] / self.unit, self.weight[index])}
        if self.tv and values is not None:
            out["variation"] = self.tv * self.side / self.case.level * total_variation(values[None], self.grid.spacing.tolist())
        elif self.tv:
            a, b = self.field(torch.cat([x, x + self.side * direction])).chunk(2)
            out["variation"] = self.tv * ((a - b).square() + (1e-3 * self.case.level) ** 2).sqrt().mean() / self.case.level
        return out


def interpolated(values: Float[Tensor, "I J K"], index: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 1"]:
    """Values read linearly at fractional voxel indices, zero from one voxel beyond the outermost; a slice is constant across."""
    flat = values.shape[2] == 1
    shape = values.shape[:2] if flat else values.shape
    place = torch.stack([2 * index[..., d] / max(n - 1, 1) - 1 for d, n in reversed(list(enumerate(shape)))], -1)
    image = (values[..., 0] if flat else values)[None, None]
    grid = place.reshape(1, 1, -1, 2) if flat else place.reshape(1, 1, 1, -1, 3)
    read = nn.functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return read.reshape(*index.shape[:-1], 1)
