"""IDIR: the displacement is a network of sines, held back by its exact derivatives.

min over u of 1 - NCC(F(x), M(x + u(x))) + weight * penalty, over random points of the mask. omega is in radians per unit coordinate: in a box
whose longest side is 2 r mm the first layer's waves are 2 pi r / omega mm long (a lung of r = 130 mm: 26 mm at omega 32, 82 mm at 10).

Two numbers decide. The rate of the published code is 1e-5, a trap: on a phantom (48^3, motion of 5.2 voxels) 1000 steps left 1.0 voxels, and 0.8 at
1e-4, which every later study uses and is the default here. And a low omega from no displacement, cosine, from blurred to sharp, left 0.14 there and
no folds: --net.omega-first 10 --net.omega 10 --lr 3e-4 --zero-start --schedule cosine --blur 4 2 0 --steps 600

Needs: a fixed and a moving image of one kind, roughly aligned; a mask of what is to match (a lung: without it the sliding ribs win).
Gives: displacement, mm, at any point, with derivatives of every order.
Deviations: coordinates are mm with one radius for all axes, so penalties mean the same in every direction; points are drawn with replacement;
all mixed terms of the bending energy count twice. The published bending weight, 1e-3 in unit coordinates, is 1e-3 r^2 in mm^2 here.
Fidelity: published (network, rate of the later studies, points, penalties, weights).
Licence: the authors' code is MIT; none of it is used.
Use when: you want analytic derivatives, or the published yardstick. `bspline` is quicker and at its stock settings nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..cases.pair import Pair
from ..errors import InputError
from ..fields import Field, Siren
from ..losses import bending, hyperelastic, volume_change
from ..solve import Method, Run
from ..solve.pairing import PointMatch, stretch

WEIGHTS = {"jacobian": 0.05, "hyperelastic": 0.25, "bending": 1e-3}


@dataclass(frozen=True)
class IDIR(Method):
    """Wolterink, Zwienenberg and Brune, MIDL 2022.

    Args:
        net: the network.
        steps, lr: of Adam.
        schedule: of the rate: "constant" as published, or "cosine" to a hundredth.
        points: of the mask in a step.
        penalty: "jacobian" |det - 1|, "hyperelastic" (Burger) or "bending".
        weight: of the penalty, which is a mean over points: without unit, for bending in mm^2. None is the published one.
        zero_start: begin with no displacement instead of a random one.
        blur: mm, sigma of the images in equal shares of the steps.
    """

    paper: ClassVar[str] = (
        "Jelmer M. Wolterink and Jesse C. Zwienenberg and Christoph Brune: Implicit Neural Representations for Deformable Image Registration. "
        "MIDL 2022. https://proceedings.mlr.press/v172/wolterink22a.html")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"net": Siren(width=32, depth=2, omega_first=10.0, omega=10.0), "steps": 30, "lr": 1e-3, "points": 500}

    net: Siren = Siren(width=256, depth=3, omega_first=32.0, omega=32.0)
    steps: int = 2500
    lr: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    points: int = 10_000
    penalty: Literal["jacobian", "hyperelastic", "bending"] = "jacobian"
    weight: float | None = None
    zero_start: bool = False
    blur: tuple[float, ...] = (0.0,)

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        if self.penalty not in WEIGHTS:
            raise InputError(f"there is no penalty '{self.penalty}'", "one of " + ", ".join(WEIGHTS))
        warp = case.displacement(self.net, zero=self.zero_start)
        radius = float(warp.box.radius[0])
        run.note(wavelength_mm=2 * math.pi * radius / self.net.omega_first)
        scale = radius**2 if self.penalty == "bending" else 1.0
        weight = self.weight if self.weight is not None else WEIGHTS[self.penalty] * scale

        def penalty(slope: Tensor, *bent: Tensor) -> Tensor:
            return weight * (bending(*bent) if bent else {"jacobian": volume_change, "hyperelastic": hyperelastic}[self.penalty](stretch(slope)))

        problem = PointMatch(case, warp, self.points, penalty if weight else None, 2 if self.penalty == "bending" else 1, self.blur)
        run.fit(problem, steps=self.steps, lr=self.lr, name="register", schedule=self.schedule, final=0.01)
        return warp
