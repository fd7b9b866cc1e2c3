"""StackFit: a field fitted to thick slices, the problem of every single-subject super-resolution method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..cases import Stacks
from ..fields import Field, Spec
from .problem import Inverse


class StackFit(Inverse):
    """Least squares through the slice profile, and total variation between random pairs of points one voxel apart.

    Thick slices leave fine oblique detail undetermined; a network with high frequencies at hand fills it with grain. The second term,
    weight times the mean of sqrt(|f(x) - f(x + h e)|^2 + 0.01^2) over random places x and directions e, keeps that quiet. The norm is
    that of all contrasts together, so where one has an edge another may have one at no great cost (vectorial total variation, Blomgren
    and Chan, IEEE TIP 1998). Intensities count as -1 to 1 from the 1st to the 99th percentile, whatever their unit.

    Args:
        spec: of the field.
        case: the stacks.
        samples: stack voxels in a step, and half as many pairs.
        nodes: quadrature points under each slice profile.
        tv: weight of the total variation; 0 leaves it out.
        held_out: share of the stack voxels that tells when to stop.
    """

    size: Tensor

    def __init__(self, spec: Spec, case: Stacks, samples: int, nodes: int, tv: float = 0.0, held_out: float = 0.0):
        offset, scale = case.intensities()
        field = Field(spec, case.box(), len(case.contrasts), scale=scale, offset=offset, unit=case.unit, names=case.contrasts)
        super().__init__(field, case.operator(nodes), case.samples(), samples, held_out)
        self.tv, self.pairs, self.box, self.step = tv, max(1, samples // 2), case.grid.box(), float(case.grid.spacing.min())
        self.register_buffer("size", scale, persistent=False)

    def batch(self, rng: torch.Generator) -> Any:
        if not self.tv:
            return super().batch(rng), None
        x = self.box.random(self.pairs, rng)
        return super().batch(rng), (x, nn.functional.normalize(torch.randn(x.shape, generator=rng, device=rng.device), dim=-1))

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        samples, pairs = batch
        misfit = (self.operator(self.field, samples.at) - samples.value) / self.size[samples.at["channel"], None]
        data = misfit.square().mean()
        if pairs is None:
            return {"data": data}
        x, direction = pairs
        a, b = (self.field(torch.cat([x, x + self.step * direction])) / self.size).chunk(2)
        return {"data": data, "variation": self.tv * ((a - b).square().sum(-1) + 1e-4).sqrt().mean()}
