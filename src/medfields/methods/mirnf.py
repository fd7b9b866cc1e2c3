"""NIR: a network of sines gives the displacement or the velocity, and blocks of voxels let it be judged by windowed correlation.

Random points have no neighbours, so a field of points could only be compared by one correlation over everything, which a coil's sensitivity or
breath in a lung deceives. Here each step draws blocks of voxels at random places and a coarse lattice over the whole (coordinate sampling), and reads
the images blurred at first, then sharp (intensity sampling). min of 1 - local NCC + smooth |grad u|^2 + fold max(0, -det grad phi); with
`--mode velocity` phi = exp(v), which has an inverse, and the penalty is of v. `--windowed False` is the ablation: the same field and as many points.

Needs: a fixed and a moving image, roughly aligned, whose intensities agree up to a slow change; a mask helps.
Gives: displacement, mm, at any point; with `--mode velocity` a flow whose inverse is the same flow backwards.
Deviations: the displacement is computed at every second voxel of a block and is linear between, which costs an eighth; the flow is integrated along
the points, not by scaling and squaring; starts from no displacement. Encodings are an option of the network (`--net.encoding`).
Fidelity: interpreted (the paper's widths, weights and steps unread).
Use when: intensities drift across the image, or a diffeomorphism is wanted. Where they do not, `idir` with its better settings is quicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..cases.pair import Pair
from ..errors import InputError
from ..fields import Field, Siren
from ..losses import diffusion, fold
from ..solve import Method, Run
from ..solve.pairing import BlockMatch, Match, PointMatch, flow, stretch


@dataclass(frozen=True)
class NIR(Method):
    """Sun, Han, Tang et al., arXiv 2206.03111.

    Args:
        net: the network, with an encoding of the coordinates if one is wanted.
        mode: what the network gives, "displacement" or "velocity".
        windowed: blocks and windowed correlation; False is one correlation over as many random points.
        steps, lr: of Adam, cosine to a hundredth.
        blocks: in a step.
        nodes, every: points at which a block is displaced along each side, and voxels from one to the next.
        radius: of the windows, voxels.
        coarse: points of the coarse lattice, at most.
        smooth, fold: weights of |grad u|^2 and of max(0, -det), without units; of v with `--mode velocity`.
        flow_steps: of the integration along each path.
        zero_start: begin with no displacement instead of a random one.
        blur: mm, sigma of the images in equal shares of the steps.
    """

    paper: ClassVar[str] = (
        "Shanlin Sun and Kun Han and Chenyu You and Hao Tang and Deying Kong and Junayed Naushad and Xiangyi Yan and Haoyu Ma and Pooya Khosravi and "
        "James S. Duncan and Xiaohui Xie: Medical Image Registration via Neural Fields. 2022. arXiv:2206.03111")
    task: ClassVar[str] = "register"
    fidelity: ClassVar[str] = "interpreted"
    tiny: ClassVar[dict[str, Any]] = {"net": Siren(width=32, depth=2, omega_first=10.0, omega=10.0), "steps": 20, "lr": 1e-3, "blocks": 2,
                                      "nodes": 5, "coarse": 216}

    net: Siren = Siren(width=256, depth=4, omega_first=30.0, omega=30.0)
    mode: Literal["displacement", "velocity"] = "displacement"
    windowed: bool = True
    steps: int = 1000
    lr: float = 1e-4
    blocks: int = 8
    nodes: int = 9
    every: int = 2
    radius: int = 2
    coarse: int = 4096
    smooth: float = 0.05
    fold: float = 1.0
    flow_steps: int = 2
    zero_start: bool = True
    blur: tuple[float, ...] = (3.0, 1.5, 0.0)

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        if self.mode not in ("displacement", "velocity"):
            raise InputError(f"there is no mode '{self.mode}'", "displacement or velocity")
        warp = (flow(case, self.net, self.flow_steps, self.zero_start) if self.mode == "velocity"
                else case.displacement(self.net, zero=self.zero_start))

        def penalty(slope: Tensor) -> Tensor:
            return self.smooth * diffusion(slope) + self.fold * fold(stretch(slope))

        problem: Match
        if self.windowed:
            problem = BlockMatch(case, warp, self.blocks, self.nodes, self.every, self.radius, self.coarse, penalty, blur=self.blur)
        else:
            depth = 1 if case.grid.is_2d else self.nodes
            problem = PointMatch(case, warp, self.blocks * self.nodes**2 * depth + self.coarse, penalty, blur=self.blur)
        run.fit(problem, steps=self.steps, lr=self.lr, name="register", schedule="cosine", final=0.01)
        return warp
