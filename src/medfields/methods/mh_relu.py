"""Multi-head ReLU: the survey's "output modification": one body for all cells of the volume, one head for each cell.

The box is cut in cells that share one local coordinate; each cell's signal looks stretched to the body, so a ReLU network without any
encoding reaches detail it could not see across the whole box. Each head reads a few random units of the body.

Needs: stacks with their slice thickness (mm).
Gives: intensity at any point; cells meet only as well as they were taught to.
Deviations: the paper's 2-D cells become 3-D boxes, and full batches of pixels mini-batches of stack voxels through the slice profile; a
stop by measurements that were kept aside. A weak total variation is added; `--tv 0` is the published form.
Fidelity: published (body, sparse heads, learning rate and its decay, but for the constant rate of the first 50 of 2000 epochs).
Use when: you study spectral bias. Speed, not quality, is what the method is for; srr-tv is better at both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..cases import Stacks
from ..fields import Field, MultiHead
from ..solve import Method, Run
from ..solve.stacks import StackFit


@dataclass(frozen=True)
class MultiHeadReLU(Method):
    """Aftab, Morsali & Ghaemmaghami, ICASSP 2022.

    Args:
        net: cells, body and sparsity of the heads.
        steps, lr: of Adam, exponential to 2 %, as e^-0.1 every 50 of 2000 epochs ends.
        samples: stack voxels in a step.
        nodes: quadrature points under each slice profile.
        tv: weight of the total variation between random pairs of points; 0 is the published form.
        held_out: share of the stack voxels that decides when to stop.
    """

    paper: ClassVar[str] = (
        "Arya Aftab and Alireza Morsali and Shahrokh Ghaemmaghami: Multi-Head ReLU Implicit Neural Representation Networks. "
        "ICASSP 2022. arXiv:2110.03448")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"net": MultiHead(cells=(2, 2, 2), width=32, depth=2, alpha=8), "steps": 20, "samples": 256, "nodes": 4,
                                      "held_out": 0.1}

    net: MultiHead = MultiHead(cells=(8, 8, 8), width=256, depth=4, alpha=64)
    steps: int = 4000
    lr: float = 1e-3
    samples: int = 4096
    nodes: int = 6
    tv: float = 0.02
    held_out: float = 0.02

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        problem = StackFit(self.net, case, self.samples, self.nodes, self.tv, self.held_out)
        return run.fit(problem, steps=self.steps, lr=self.lr, name="fit", schedule="exponential", final=0.02, patience=10).field
