"""Multi-contrast INR: two contrasts, each thick in its own direction, share one body and help each other.

Where one contrast is blurred the other is sharp, and anatomy is the same: one Fourier-feature body, one branch for each contrast ("split
head"), each voxel supervising only its own. Training stops when the mutual information between the two outputs no longer grows.

Needs: two aligned contrasts of one subject, at least one stack each (`--contrast t1=a.nii.gz t2=b.nii.gz`).
Gives: both contrasts at any point, one channel each.
Deviations: thick voxels are integrated over the case's profile instead of taken as points; one world box for fitting and reading, where the
released code scales the output if the two extents differ; the optional information terms of the loss (off by default) are left out. A weak
total variation of both contrasts together is added; `--tv 0` is the published form. Intensities are scaled by percentiles, not by their extremes,
and the rate ends at a tenth, not at zero. Sigma 4 on [-1, 1], as published, is 8 periods to the box here.
Fidelity: published (encoding, body, heads, optimiser, batch, epochs, stop).
Licence: the released code is CC BY-NC-SA; this file is built from the paper's description only.
Use when: two contrasts are thick in different directions. With one contrast it has nothing to share. The published body wants a GPU; on two
cores the bench gives it a multi-resolution grid for the frequencies, which needs a minute and is 3 dB better there; at most 2 % of a lesion
of one contrast then shows in the other, with frequencies at the size two cores can train 42 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cases import Stacks
from ..errors import InputError
from ..fields import MLP, Field, Fourier
from ..losses import mutual_information
from ..solve import Method, Run
from ..solve.stacks import StackFit


class Joint(StackFit):
    """Two contrasts; the stop listens to what they say about each other, not to any measurement."""

    def __init__(self, cfg: McGinnis, case: Stacks):
        super().__init__(cfg.net, case, cfg.samples, cfg.nodes, cfg.tv)
        points = case.grid.box().random(20_000, torch.Generator().manual_seed(0))
        self.register_buffer("probe", points, persistent=False)

    @torch.no_grad()
    def held_out(self) -> Tensor:
        """Minus the mutual information of the two outputs at fixed places, so that lower is better."""
        a, b = self.field(self.probe).unbind(-1)
        return -mutual_information(a, b)


@dataclass(frozen=True)
class McGinnis(Method):
    """McGinnis et al., MICCAI 2023.

    Args:
        net: 256 Gaussian frequencies, a body of 1024 x 5, and a branch 1024 -> 512 -> 1 for each contrast.
        epochs: passes over all stack voxels, at most.
        lr: of Adam, cosine to a tenth.
        samples: stack voxels in a step.
        nodes: quadrature points under each slice profile.
        tv: weight of the total variation between random pairs of points; 0 is the published form.
        patience: epochs without more mutual information before it stops and goes back to the most; None trains to the end.
    """

    paper: ClassVar[str] = (
        "Julian McGinnis and others: Single-subject Multi-contrast MRI Super-resolution via Implicit Neural Representations. "
        "MICCAI 2023. arXiv:2303.15065")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(Fourier(size=16), width=32, depth=2, split=2), "epochs": 1, "samples": 512, "nodes": 4}

    net: MLP = MLP(Fourier("gaussian", size=256, sigma=8.0), width=1024, depth=5, split=2)
    epochs: float = 50
    lr: float = 4e-4
    samples: int = 1000
    nodes: int = 6
    tv: float = 0.02
    patience: int | None = 4

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        if len(case.contrasts) > 2:
            raise InputError(f"mcginnis joins two contrasts, got {len(case.contrasts)}", "give two, or use the default method")
        joint = len(case.contrasts) == 2
        problem = Joint(self, case) if joint else StackFit(self.net, case, self.samples, self.nodes, self.tv)
        epoch = max(1, round(len(problem.train_on) / self.samples))
        steps = max(1, round(self.epochs * epoch))
        patience = self.patience if joint else None
        return run.fit(problem, steps=steps, lr=self.lr, name="fit", schedule="cosine", patience=patience, every=epoch).field
