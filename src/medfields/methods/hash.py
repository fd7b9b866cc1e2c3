"""Hash grid: a multi-resolution table of features and a small network, fitted to all stacks through the slice profile.

Detail lives in tables that are looked up, so a step costs a hundredth of a wide network's. Levels are unlocked from coarse to fine, and a
total-variation term on random pairs of points, one voxel apart, keeps quiet what the slices do not determine.

Needs: stacks with their slice thickness (mm).
Gives: intensity at any point; continuous, with kinks at the cells of the finest level.
Deviations: the paper fits images, distances and radiance; slice profile, unlocking (after Nerfies, Park et al. 2021) and total variation are
ours. Levels are given in mm.
Fidelity: published (encoding, initialisation, optimiser constants).
Use when: you build on a fast neural field, for instance with poses or bias to be found with it. On still stacks srr-tv is better and faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..cases import Stacks
from ..fields import MLP, Field, GridEncoding
from ..solve import Method, Run
from ..solve.optimise import Adam
from ..solve.stacks import StackFit


class CoarseToFine(StackFit):
    """Levels are unlocked over time."""

    def before_step(self, progress: float) -> None:
        levels = self.field.net.encoding
        levels.set_levels(min(1.0, 0.4 + 1.2 * progress) * len(levels.level_mask))


@dataclass(frozen=True)
class HashGrid(Method):
    """Mueller et al., SIGGRAPH 2022 (instant-NGP).

    Args:
        net: encoding and network.
        steps, lr: of Adam (0.9, 0.99, eps 1e-15), exponential to 3 %; the network learns at a fifth of the tables' rate.
        samples: stack voxels in a step.
        nodes: quadrature points under each slice profile.
        tv: weight of the total variation between random pairs of points.
        held_out: share of the stack voxels that decides when to stop.
    """

    paper: ClassVar[str] = (
        "Thomas Mueller and Alex Evans and Christoph Schied and Alexander Keller: Instant Neural Graphics Primitives with a "
        "Multiresolution Hash Encoding. ACM Transactions on Graphics 2022. doi:10.1145/3528223.3530127")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(GridEncoding(4, 2.0, 16.0, log2_table=10), width=16, depth=1), "steps": 20,
                                      "samples": 256, "nodes": 4, "held_out": 0.1}

    net: MLP = MLP(GridEncoding(levels=12, finest_mm=1.0, coarsest_mm=32.0, log2_table=19), width=64, depth=2)
    steps: int = 2000
    lr: float = 1e-2
    samples: int = 8192
    nodes: int = 8
    tv: float = 0.02
    held_out: float = 0.02

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        problem = CoarseToFine(self.net, case, self.samples, self.nodes, self.tv, self.held_out)
        rates = {"field.net.encoding": self.lr, "field.net": self.lr / 5}
        return run.fit(problem, steps=self.steps, lr=rates, name="fit", optimiser=self._adam, schedule="exponential",
                       final=0.03, patience=8, every=100).field

    @staticmethod
    def _adam(groups: list[dict[str, Any]]) -> Adam:
        return Adam(groups, betas=(0.9, 0.99), eps=1e-15)
