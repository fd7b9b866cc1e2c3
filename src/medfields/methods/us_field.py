"""Ultrasound field: a hash grid and a small network, fitted to tracked frames and to what lies on the way from each to the next.

min_f sum |f(x) - y|^2 over pixels of frames, f a function of world coordinates. Frames alone leave f free between them, where it makes up detail
out of speckle, which each frame has anew. So a pixel is taken at a random place of the path of the probe: x and y on the straight line from
a frame to the next.

Needs: frames with their poses, in the order in which they were taken.
Gives: grey values at any point, in a file a tenth to a fifth as large as voxels of 0.5 mm (RESULTS). Far from all frames they mean nothing:
`medfields ultrasound` writes 0 into such voxels of the volume.
Deviations: the paper is a short one whose network, sizes and rates we could not read: they are ours, and so is the path. Pixels are first
averaged in squares of 0.25 mm, since most are finer than the beam.
Fidelity: interpreted.
Use when: a small continuous model is wanted, or what is thin and bright, as wires, is looked for. compounding is quicker, and as good on tissue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cases import Sweep
from ..fields import MLP, Field, GridEncoding
from ..losses import mse
from ..solve import Method, Problem, Run
from ..solve.optimise import Adam


@dataclass(frozen=True)
class USField(Method):
    """Gu et al., MIDL 2022.

    Args:
        net: encoding and network.
        between: mm from place to place along the path; 0 takes the frames alone.
        steps, lr: of Adam (0.9, 0.99, eps 1e-15), exponential to a twentieth; the network learns at a fifth of the tables' rate.
        samples: pixels in a step.
        pixel: mm; frames are averaged to about this.
    """

    paper: ClassVar[str] = (
        "Ang Nan Gu and Purang Abolmaesumi and Christina Luong and Kwang Moo Yi: Representing 3D Ultrasound with Neural Fields. Medical Imaging "
        "with Deep Learning 2022. https://openreview.net/forum?id=1EDRk-CyQou")
    task: ClassVar[str] = "ultrasound"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(GridEncoding(levels=4, finest_mm=2.0, coarsest_mm=8.0, log2_table=10), width=16, depth=1),
                                      "steps": 20, "samples": 256}
    fidelity: ClassVar[str] = "interpreted"

    net: MLP = MLP(GridEncoding(levels=8, finest_mm=0.5, coarsest_mm=16.0, log2_table=13), width=32, depth=1)
    between: float = 0.3
    steps: int = 600
    lr: float = 0.02
    samples: int = 16384
    pixel: float = 0.25

    def solve(self, case: Sweep, run: Run, prior: nn.Module | None = None) -> Field:
        offset, scale = case.level()
        field = Field(self.net, case.box(), 1, scale=scale, offset=offset, unit=case.unit)
        problem = Path(field, case.coarser(max(1, round(self.pixel / case.pixel))), self.between, self.samples)
        rates = {"field.net.encoding": self.lr, "field.net": self.lr / 5}
        return run.fit(problem, steps=self.steps, lr=rates, name="fit", optimiser=_adam, schedule="exponential", final=0.05).field


class Path(Problem):
    """A field and pixels of frames at random places of the path of the probe, `n` in a step."""

    places: Tensor
    planes: Tensor
    pixels: Tensor
    values: Tensor

    def __init__(self, field: Field, case: Sweep, between: float, n: int):
        super().__init__()
        self.field, self.n = field, n
        at = case.mask.nonzero().float()
        for name, value in {"places": torch.as_tensor(case.path(between), dtype=torch.float32), "pixels": torch.cat([at, torch.ones(len(at), 1)], 1),
                            "planes": torch.as_tensor(case.affines[:, :3, [0, 1, 3]], dtype=torch.float32),
                            "values": case.frames[:, case.mask]}.items():
            self.register_buffer(name, value, persistent=False)

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        p, m = (torch.randint(len(of), (self.n,), generator=rng, device=of.device) for of in (self.pixels, self.places))
        place = self.places[m]
        here = place.long()
        after, share = (here + 1).clamp(max=len(self.planes) - 1), place - here
        plane = torch.lerp(self.planes[here], self.planes[after], share[:, None, None])
        return (plane @ self.pixels[p, :, None])[..., 0], torch.lerp(self.values[here, p], self.values[after, p], share)

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        return {"data": mse(self.field(batch[0]), batch[1][:, None])}


def _adam(groups: list[dict[str, Any]]) -> Adam:
    return Adam(groups, betas=(0.9, 0.99), eps=1e-15)
