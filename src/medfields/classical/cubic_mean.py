"""Cubic interpolation of every stack onto the output grid, averaged.

What a workstation does. It treats a thick slice as a point sample, so the blur of every slice stays in the mean.

Needs: stacks, at least one.
Gives: intensity on the output grid, one channel for each contrast.
Use when: you want to see what the data look like without any model; never as the yardstick alone (see srr-cg).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..cases import Stacks
from ..solve import Method, Run
from ..space import Volume


@dataclass(frozen=True)
class CubicMean(Method):
    """Interpolating cubic B-splines (Unser, IEEE SPM 1999), mean of the stacks that see a voxel."""

    paper: ClassVar[str] = (
        "Michael Unser: Splines: a perfect fit for signal and image processing. IEEE Signal Processing Magazine 1999. "
        "doi:10.1109/79.799930")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {}
    fidelity: ClassVar[str] = "classical"

    @torch.no_grad()
    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Volume:
        total = torch.zeros(len(case.contrasts), *case.grid.shape)
        seen = torch.zeros_like(total)
        lowest = torch.full((len(case.contrasts),), float("inf"))
        for n in run.steps(len(case.stacks), "interpolate"):
            stack, channel = case.stacks[n], case.channel(case.stacks[n])
            source = stack.volume.grid
            cubic = Volume(stack.volume.data, source, interpolation="cubic")
            inside = Volume(torch.ones(1, *source.shape), source).on(case.grid).data[0]
            total[channel] += cubic.on(case.grid).data[0] * inside
            seen[channel] += inside
            lowest[channel] = min(float(lowest[channel]), float(stack.volume.data.min()))
        background = lowest[:, None, None, None].expand_as(total)
        return Volume(torch.where(seen > 0, total / seen.clamp_min(1), background), case.grid, case.unit)
