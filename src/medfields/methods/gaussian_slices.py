"""Gaussians for moved slices: a field of anisotropic bells whose thick slices are known in closed form, and each slice's pose and gain.

Under a Gaussian slice profile a bell measures as a wider, lower bell, and a slice shows it as a bell in its plane. So a pixel costs one
evaluation of the bells around it where other fields are sampled across the slice, and poses follow from the same derivatives.

Needs: slices of two or more stacks that moved, with their thickness (mm), and masks of what moved as one.
Gives: intensity at any point, smooth, never below zero; in the run's notes poses, gains, weights and likeness of the slices.
Deviations: clean room. A pixel sums all bells within four standard deviations, not a number of nearest ones; bells start from least squares on
slices that were registered on a coarse lattice, half of them where the subject is steep; a penalty keeps their widths near the first. A box
profile counts as the Gaussian of its width at half maximum.
Fidelity: interpreted (the papers' figures in our words; rates are ours).
Licence: clean room; no code of the authors was read.
Use when: you want a compact, smooth field with poses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ..cases import Slices
from ..fields import Field
from ..solve import Method, Run
from ..solve.settle import noted, settled
from ..solve.slice_splat import GaussianSliceFit, begin, seen
from ..solve.splat import spacing


@dataclass(frozen=True)
class GaussianSlices(Method):
    """GSVR: Gaussians with slice profiles in closed form.

    Args:
        motion: False leaves the slices where registration laid them.
        distance: between Gaussians at first, in slice thicknesses: a twentieth of the paper's 30,000 to 50,000 in a small head; more of them
            fit noise.
        even: share of them that start evenly spread; others start where the subject is steep.
        alternations: of the registration that slices start from, at each of two coarse resolutions.
        smooth: weight of the squared gradient of the subject that the Gaussians start from.
        steps, lr, final: of Adam, and the share of the rate at the end; centres learn at the rate times their distance.
        pose_lr, gain_lr: rates of poses, radians and 30 mm, and of gains.
        batch: slices in a step.
        size, pose: weights of the penalties on widths and on motion from the start.
    """

    paper: ClassVar[str] = "GSVR: Gaussian representations for slice-to-volume reconstruction. arXiv preprint 2025. arXiv:2512.11624"
    task: ClassVar[str] = "motion"
    tiny: ClassVar[dict[str, Any]] = {"distance": 1.5, "alternations": 1, "steps": 10, "batch": 6}
    fidelity: ClassVar[str] = "interpreted"

    motion: bool = True
    distance: float = 0.75
    even: float = 0.5
    alternations: int = 3
    smooth: float = 0.05
    steps: int = 600
    lr: float = 0.02
    final: float = 0.05
    pose_lr: float = 5e-3
    gain_lr: float = 5e-3
    batch: int = 12
    size: float = 0.01
    pose: float = 0.1

    def solve(self, case: Slices, run: Run, prior: nn.Module | None = None) -> Field:
        start = settled(case, run, levels=(1.0, 0.7), steps=self.alternations)
        count = round(seen(case) / (self.distance * float(np.median(case.thickness))) ** 3)
        field = begin(case, start, count, self.smooth, 20, np.random.default_rng((run.seed, 1)), self.even)
        problem = GaussianSliceFit(field, case, start, self.batch, self.size, self.pose)
        rates = {"field.net": self.lr, "field.net.centres": self.lr * spacing(field), "logits": self.gain_lr}
        if self.motion:
            rates["poses.moves"] = self.pose_lr
        run.fit(problem, steps=self.steps, lr=rates, name="fit", schedule="exponential", final=self.final)
        noted(run, case, problem.found(start))
        return problem.field
