"""Starting a field from an image: an earlier scan, or what the projections themselves say at a first look."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..cases import Projections
from ..fields import Field
from ..space import Grid
from .problem import Problem
from .run import Run
from .tomography import PrimalDualTV, RaySystem


class Embedding(Problem):
    """A field that repeats an image: half the mean of its squared error at the voxel centres, in units of the field's scale.

    Args:
        field: to be taught.
        grid: of the image.
        image: [I, J, K] in the field's unit.
        most: voxels in a step.
    """

    memory = "the size of the network"
    points: Tensor
    value: Tensor

    def __init__(self, field: Field, grid: Grid, image: Float[Tensor, "I J K"], most: int = 1 << 16):
        super().__init__()
        self.field, self.most = field, most
        self.register_buffer("points", grid.points().reshape(-1, 3), persistent=False)
        self.register_buffer("value", image.reshape(-1, 1), persistent=False)

    def batch(self, rng: torch.Generator) -> Any:
        if len(self.points) <= self.most:
            return self.points, self.value
        index = torch.randint(len(self.points), (self.most,), generator=rng, device=rng.device)
        return self.points[index], self.value[index]

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        return {"image": ((self.field(batch[0]) - batch[1]) / self.field.scale).square().mean() / 2}


def first_look(case: Projections, run: Run, weight: float = 0.03, steps: int = 60) -> Float[Tensor, "I J K"]:
    """A rough image of the projections alone, 1/mm: least squares with a total variation of this weight, and no value below 0."""
    state = PrimalDualTV(RaySystem(case, device=run.device), weight)
    for _ in run.steps(steps, "first look", state):
        state.step()
    return state.system.level * state.answer
