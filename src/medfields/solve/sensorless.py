"""Sweeps without a tracker: a field and the poses of whole thin planes, fitted together to what the planes look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..cases.slices import Slices
from ..fields import Field, Spec
from ..fields.encodings import Levels
from ..losses import ssim
from .motion import Found, Level, covering, placed
from .problem import Problem
from .slice_fit import SlicePoses

WINDOW, SIGMA = 5, 1.5  # pixels
ROOM = 0.05  # of the lattice's extent: how far planes may leave the place where they are thought to lie


class SweepFit(Problem):
    """A field of one intensity that looks like the planes, in their poses.

    Args:
        spec: of the field.
        case: the planes; their profile is ignored.
        poses: of the planes, which several fits in a row may share.
        planes: in a step, whole.
        hold: weight of the poses' mean squared distance from where they started.
        levels: share of the levels of a grid encoding that is open at first and at last.
        coarse: share of the fit after which the last are open.
    """

    memory = "the number of planes in a step"
    value: Tensor
    inside: Tensor
    pixel: Tensor

    def __init__(self, spec: Spec, case: Slices, poses: SlicePoses, planes: int, *, hold: float = 0.0, levels: tuple[float, float] = (1.0, 1.0),
                 coarse: float = 0.5):
        super().__init__()
        self.case, self.planes, self.hold, self.levels, self.coarse = case, planes, hold, levels, coarse
        self.offset, self.scale = case.level()
        margin = ROOM * float((case.grid.spacing * case.grid.shape).max())
        box = covering(case.grid, placed(case, poses.maps()), margin)[0].box()
        self.field, self.poses = Field(spec, box, 1, scale=self.scale, offset=self.offset, unit=case.unit), poses
        rows, columns = (max(s.values.shape[d] for s in case.slices) for d in (0, 1))
        value, inside = torch.zeros(len(case.slices), rows, columns), torch.zeros(len(case.slices), rows, columns, dtype=torch.bool)
        for n, s in enumerate(case.slices):
            i, j = s.values.shape
            value[n, :i, :j], inside[n, :i, :j] = (s.values - self.offset) / self.scale, s.mask
        pixel = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).float()
        for name, held in {"value": value, "inside": inside, "pixel": pixel}.items():
            self.register_buffer(name, held, persistent=False)

    def before_step(self, progress: float) -> None:
        grid = getattr(self.field.net, "encoding", None)
        if isinstance(grid, Levels):
            first, last = self.levels
            grid.set_levels((first + (last - first) * min(1.0, progress / self.coarse)) * len(grid.level_mask))

    def batch(self, rng: torch.Generator) -> Int[Tensor, "B"]:
        """Whole planes."""
        return torch.randperm(len(self.value), generator=rng, device=rng.device)[:self.planes]

    def seen(self, planes: Int[Tensor, "B"]) -> Float[Tensor, "B I J"]:
        """What planes show of the field where they lie, of about 0 to 1."""
        columns, origin, _ = self.poses.laid()
        at = torch.einsum("bxc,ijc->bijx", columns[planes], self.pixel) + origin[planes][:, None, None]
        return self.field.net(self.field.unit_coordinates(at))[..., 0]

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        out = {"ssim": 1 - ssim(self.seen(batch), self.value[batch], WINDOW, SIGMA, self.inside[batch])}
        return out | ({"hold": self.hold * self.poses.prior()} if self.hold else {})

    @torch.no_grad()
    def found(self) -> Found:
        """How the planes lie; none is left out."""
        shown = torch.cat([self.seen(n[None])[0][self.inside[n]] for n in torch.arange(len(self.value), device=self.value.device)])
        one = np.ones(len(self.value))
        return Found(self.poses.maps(), one, one, Level(self.case, self.case.grid, self.offset, self.scale).likeness(shown.cpu()))
