"""IREM: several thick scans of one subject as one deep Fourier-feature network of world coordinates.

Every voxel of every scan, placed in one world frame, is one example; the network is the volume and is read on any grid afterwards.

Needs: two or three stacks in different directions, aligned, with their slice thickness (mm).
Gives: intensity at any point.
Deviations: the paper treats a thick voxel as a point, which loses to averaging cubic interpolations once the slices have a true profile; here
the case's profile is integrated, and a weak total variation is added; `--profile none --tv 0` is the published form. Rigid
registration of the stacks is expected before.
Fidelity: interpreted. Depth, skips and lr are read from secondary sources (15 to 18 fully connected ReLU layers, L2 loss, L = 256).
Licence: no code was published; this file is built from the description.
Use when: you compare with the paper. On two cores the published width needs hours; srr-tv needs seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..cases import Stacks
from ..fields import MLP, Field, Fourier
from ..solve import Method, Run
from ..solve.stacks import StackFit


@dataclass(frozen=True)
class IREM(Method):
    """Wu et al., MICCAI 2021.

    Args:
        net: Gaussian Fourier features and a deep ReLU network that reads them again on the way.
        epochs: passes over all stack voxels.
        lr: of Adam, cosine to a tenth.
        samples: stack voxels in a step.
        nodes: quadrature points under each slice profile.
        tv: weight of the total variation between random pairs of points; 0 is the published form.
    """

    paper: ClassVar[str] = (
        "Qing Wu and others: IREM: High-Resolution Magnetic Resonance Image Reconstruction via Implicit Neural Representation. "
        "MICCAI 2021. doi:10.1007/978-3-030-87231-1_7")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(Fourier(size=16), width=32, depth=3, skips=(2,)), "epochs": 1, "samples": 512, "nodes": 4}
    fidelity: ClassVar[str] = "interpreted"

    net: MLP = MLP(Fourier("gaussian", size=256, sigma=4.0), width=256, depth=15, skips=(5, 10))
    epochs: float = 200
    lr: float = 1e-4
    samples: int = 2500
    nodes: int = 6
    tv: float = 0.02

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        problem = StackFit(self.net, case, self.samples, self.nodes, self.tv)
        steps = max(1, round(self.epochs * len(problem.train_on) / self.samples))
        return run.fit(problem, steps=steps, lr=self.lr, name="fit", schedule="cosine").field
