"""Geometry-informed: a deformation along a tube, as a sine network of the tube's own coordinates.

The bowel moves along itself and across itself. A network that is asked at (along, across, across) of a given centreline, and answers in the
same coordinates, need not learn the bends: positions before and after are carried to the world by a twist-free frame, and compared there.

Needs: a fixed and a moving image (volumes), points along the centreline of one tube in the fixed image (mm), its radius.
Gives: a displacement in mm at any point: inside the tube as fitted, fading to nothing within another radius; first derivatives.
Deviations: the network starts from no displacement, and one unit is as long along the tube as across: as published (`--no-even`), one along a
long tube is many times one across, a random start moves points by more than a radius, and a tube of 59 cm was registered worse than by world
coordinates. The points of a step are voxels of the tube, not of a lattice in its coordinates, so that both charts see the same ones. The curve is
measured by arc length, not by counting points, and smoothed by a spline: a polynomial of degree 8 (`--smooth polynomial`, as published) misses an S
by 2 mm and bends at its ends. `--chart image` is the same network on world coordinates, the paper's own comparison; `--penalty image` penalises
volume changes of the world instead of those of the tube.
Fidelity: published (parameters of the released code).
Licence: the released code is MIT; nothing of it is used here.
Use when: one tube moves along itself, and its centreline is known. What lies outside stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..cases import Pair
from ..errors import GeometryError, InputError
from ..fields import Field, Siren, Tube, jacobian
from ..fields.tube import InTube
from ..losses import ncc, volume_change
from ..solve import Method, Problem, Run
from ..space.tube import Smoothing, TubeChart


@dataclass(frozen=True)
class GeometryInformed(Method):
    """van Harten et al., MIDL 2023.

    Args:
        net: the network.
        chart: of which coordinates: "tube", or "image" for world coordinates.
        penalty: where volumes are to stay: in the coordinates of the "tube", or in the "image".
        weight: of mean |det - 1|.
        smooth, slack: of the centreline: a "polynomial" of degree 8 as published, or a "spline" whose rms distance from the points is this share of
            the radius.
        extend: share of the centreline's length that is added, straight, at each end.
        even: one unit of length along the tube and across it; else -1 to 1 in each direction, as published.
        steps, lr: of Adam.
        samples: voxels in a step.
    """

    paper: ClassVar[str] = (
        "Louis D. van Harten and Rudolf L. M. van Herten and Jaap Stoker and Ivana Isgum: Deformable Image Registration with "
        "Geometry-informed Implicit Neural Representations. MIDL 2023. https://proceedings.mlr.press/v227/van-harten24a.html")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"net": Siren(width=16, depth=2), "steps": 20, "samples": 256}
    uses: ClassVar[tuple[str, ...]] = ("centreline",)

    net: Siren = Siren(width=256, depth=3, omega_first=64.0, omega=64.0)
    chart: Literal["tube", "image"] = "tube"
    penalty: Literal["tube", "image"] = "tube"
    weight: float = 5e-2
    smooth: Smoothing = "spline"
    slack: float = 0.05
    extend: float = 0.2
    even: bool = True
    steps: int = 2500
    lr: float = 1e-4
    samples: int = 10_000

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        if case.centreline is None or case.tube_radius <= 0:
            raise InputError("the tube is not known: this method follows a centreline in the fixed image",
                             "--centreline points.csv --tube-radius 15 (mm)")
        if case.grid.is_2d:
            raise InputError("a tube lies in a volume, these images are slices")
        tube = Tube.along(case.centreline, case.tube_radius, self.net, smooth=self.smooth, slack=self.slack, extend=self.extend, even=self.even)
        field = case.displacement(tube if self.chart == "tube" else self.net, zero=True)
        return run.fit(Tubular(field, tube.chart, case, self), steps=self.steps, lr=self.lr, name="fit").field


class Tubular(Problem):
    """min over the displacement of -NCC + weight mean |det - 1|, over random voxels of the tube."""

    x: Tensor
    q: Tensor
    values: Tensor

    def __init__(self, field: Field, chart: TubeChart, case: Pair, method: GeometryInformed):
        super().__init__()
        self.field, self.moving, self.n, self.weight = field, case.aligned, method.samples, method.weight
        self.in_world = method.penalty == "image"
        x = case.points()
        q = chart.from_world(x)
        inside = chart.holds(q)
        if int(inside.sum()) < 100:
            raise GeometryError(f"only {int(inside.sum())} voxels of the image and its mask lie in the tube",
                                "give the centreline in mm of the fixed image's world, not in voxels, and the tube's radius in mm")
        for name, value in (("x", x[inside]), ("q", q[inside]), ("values", case.fixed.data[0][case.inside][inside])):
            self.register_buffer(name, value, persistent=False)

    def batch(self, rng: torch.Generator) -> Tensor:
        return torch.randint(len(self.x), (self.n,), generator=rng, device=rng.device)

    def losses(self, batch: Tensor, progress: float) -> dict[str, Tensor]:
        x, q, net = self.x[batch], self.q[batch], self.field.net
        if isinstance(net, InTube):
            to, f = net.carried(q)
            y = net.chart.to_world(to)
            f = net.in_world(q, to, f) if self.in_world else f
        else:
            y, f = x + self.field(x), jacobian(self.field, x)
        return {"ncc": -ncc(self.values[batch], self.moving(y)[:, 0]), "volume": self.weight * volume_change(f)}
