"""Fourier features: a ReLU network of [cos 2 pi B v, sin 2 pi B v], fitted to all stacks through the slice profile.

A plain ReLU network learns low frequencies first and detail hardly at all; lifted coordinates make its kernel stationary, and the
spread of B sets the bandwidth. All three encodings of the paper are at hand: `--net.encoding.frequencies gaussian|positional|basic`.

Needs: stacks with their slice thickness (mm).
Gives: intensity at any point.
Deviations: the paper's 3-D MRI experiment fits k-space samples; here mini-batches of stack voxels through the slice profile, no
sigmoid at the output, and a stop by measurements that were kept aside. A weak total variation is added; `--tv 0` is the published form.
Fidelity: published (encodings, network size).
Use when: you study encodings. srr-tv is sharper in a hundredth of the time.
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
class FourierFeatures(Method):
    """Tancik et al., NeurIPS 2020, section 5; sigma = 5 is the paper's choice for MRI.

    Args:
        net: encoding and network.
        steps, lr: of Adam, cosine to a tenth.
        samples: stack voxels in a step.
        nodes: quadrature points under each slice profile.
        tv: weight of the total variation between random pairs of points; 0 is the published form.
        held_out: share of the stack voxels that decides when to stop.
    """

    paper: ClassVar[str] = (
        "Matthew Tancik and others: Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains. "
        "NeurIPS 2020. arXiv:2006.10739")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(Fourier(size=16), width=32, depth=2), "steps": 20, "samples": 256, "nodes": 4, "held_out": 0.1}

    net: MLP = MLP(Fourier("gaussian", size=256, sigma=5.0), width=256, depth=3)
    steps: int = 4000
    lr: float = 1e-3
    samples: int = 4096
    nodes: int = 6
    tv: float = 0.02
    held_out: float = 0.02

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        problem = StackFit(self.net, case, self.samples, self.nodes, self.tv, self.held_out)
        return run.fit(problem, steps=self.steps, lr=self.lr, name="fit", schedule="cosine", patience=10).field
