"""ImplicitVol: a sweep that nobody tracked becomes a network, whose planes are laid anew while it learns what they look like.

x = R_n p + t_n for every pixel p of plane n, a thin plane. Minimised is one minus the structural similarity of whole planes, over the network
and the poses together. Both can agree on a wrong answer; so the network is thrown away every so many steps and learned again from the poses
as they are by then, and at the end once more, for longer.

Needs: thin planes as slices, whose headers say roughly how they lie (a localisation network, or a hand that turned steadily).
Gives: intensity at any point; in the run's notes the poses of the planes.
Deviations: rotation vectors about each plane's middle instead of Euler angles; several planes in a step, and thousands instead of a million of
them; intensities are positive, for the similarity is blind to the sign of a picture and its mean together; poses are held, weakly, to where they
started, for turning all planes about their common axis shows in none of them (`--hold 0` is published). `--field paper` is its network (ten
octaves, eight layers of 128 sines) but for the skip and the last sines, and wants `--lr 1e-3`; the default is a grid of several resolutions,
opened from coarse to fine in every round, which a CPU learns in a ninth of the time; with it one round (`--rounds 1 --last 1000`) does about as
well as three. Where planes start is given.
Fidelity: published (loss, planes, poses, rounds), ours (grid, hold).
Use when: planes were swept by hand, without a tracker, and their poses are known to a few degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from ..cases import Slices
from ..fields import MLP, Field, GridEncoding, Positive, Siren, Spec
from ..fields.encodings import NeRFEncoding
from ..solve import Method, Run
from ..solve.sensorless import SweepFit
from ..solve.settle import noted
from ..solve.slice_fit import SlicePoses


@dataclass(frozen=True)
class ImplicitVol(Method):
    """Yeung and others, 2021.

    Args:
        field: "grid" or "paper", see above.
        finest, coarsest: cells of the first and the last level of the grid, in pixels.
        levels: of the grid.
        rounds: in which the network is learned anew and poses go on, the fit at the end among them; published are eleven.
        steps: of a round before the last; published are 500 epochs.
        last: steps of the last.
        planes: in a step, published is one.
        open: share of the grid's levels that is open at first and at last in every fit.
        lr, pose_lr: of Adam, for the field and for the poses (radians, and as many times 30 mm).
        motion: False leaves the planes where they were thought to lie.
        hold: weight of the poses' squared distance from their start; published is 0.
    """

    paper: ClassVar[str] = (
        "Pak-Hei Yeung and Linde Hesse and Moska Aliasi and Monique Haak and the INTERGROWTH-21st Consortium and Weidi Xie and Ana I. L. "
        "Namburete: ImplicitVol: Sensorless 3D Ultrasound Reconstruction with Deep Implicit Representation. 2021. arXiv:2109.12108")
    task: ClassVar[str] = "motion"
    tiny: ClassVar[dict[str, Any]] = {"levels": 3, "rounds": 2, "steps": 10, "last": 15}

    field: Literal["grid", "paper"] = "grid"
    finest: float = 1.5
    coarsest: float = 16.0
    levels: int = 8
    rounds: int = 3
    steps: int = 200
    last: int = 600
    planes: int = 4
    open: tuple[float, float] = (0.2, 1.0)
    lr: float = 1e-2
    pose_lr: float = 4e-3
    motion: bool = True
    hold: float = 0.3

    def spec(self, case: Slices) -> Spec:
        """The field."""
        if self.field == "paper":
            net: Spec = Siren(128, 8, 30.0, 1.0, NeRFEncoding(10))
        else:
            net = MLP(GridEncoding(self.levels, self.finest * case.pixel, self.coarsest * case.pixel), width=64, depth=2)
        return Positive(net, "softplus")

    def solve(self, case: Slices, run: Run, prior: nn.Module | None = None) -> Field:
        poses = SlicePoses(case, np.tile(np.eye(4), (len(case.slices), 1, 1)))
        rates = {"field": self.lr, **({"poses": self.pose_lr} if self.motion else {})}
        for n in range(self.rounds - 1 if self.motion else 0):
            problem = SweepFit(self.spec(case), case, poses, self.planes, hold=self.hold, levels=self.open, coarse=0.7)
            poses = run.fit(problem, steps=self.steps, lr=rates, name=f"round {n + 1}").poses
        problem = SweepFit(self.spec(case), case, poses, self.planes, hold=self.hold, levels=self.open, coarse=0.4)
        problem = run.fit(problem, steps=self.last, lr=rates, name="fit", schedule="cosine", final=0.02)
        noted(run, case, problem.found())
        return problem.field
