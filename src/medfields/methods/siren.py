"""SIREN: one network of sines fitted to all stacks through the slice profile.

y = integral p(z) f(x + z n) dz for every stack voxel, f a sine network of world coordinates; its smoothness is the main prior.

Needs: stacks with their slice thickness (mm).
Gives: intensity at any point; derivatives of every order.
Deviations: the paper fits pixels as points at lr 1e-4 with full batches; here mini-batches through the slice profile, a rate that falls to
a tenth, and a stop when measurements that were kept aside are no longer predicted better. A weak total variation is added: thick slices
leave oblique detail undetermined; `--tv 0` is the published form.
Fidelity: published (network and initialisation).
Use when: you need smooth derivatives of the image. srr-tv is sharper in a hundredth of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..cases import Stacks
from ..fields import Field, Siren
from ..solve import Method, Run
from ..solve.stacks import StackFit


@dataclass(frozen=True)
class SIREN(Method):
    """Sitzmann et al., NeurIPS 2020, section 3.

    Args:
        net: the network.
        steps, lr: of Adam, cosine to a tenth.
        samples: stack voxels in a step.
        nodes: quadrature points under each slice profile.
        tv: weight of the total variation between random pairs of points; 0 is the published form.
        held_out: share of the stack voxels that decides when to stop.
    """

    paper: ClassVar[str] = (
        "Vincent Sitzmann and Julien N. P. Martel and Alexander W. Bergman and David B. Lindell and Gordon Wetzstein: Implicit "
        "Neural Representations with Periodic Activation Functions. NeurIPS 2020. arXiv:2006.09661")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"net": Siren(width=32, depth=2), "steps": 20, "samples": 256, "nodes": 4, "held_out": 0.1}

    net: Siren = Siren(width=256, depth=3, omega_first=30.0, omega=30.0)
    steps: int = 4000
    lr: float = 1e-4
    samples: int = 4096
    nodes: int = 6
    tv: float = 0.02
    held_out: float = 0.02

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        problem = StackFit(self.net, case, self.samples, self.nodes, self.tv, self.held_out)
        return run.fit(problem, steps=self.steps, lr=self.lr, name="fit", schedule="cosine", patience=10).field
