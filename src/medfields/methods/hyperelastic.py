"""Conformal-invariant hyperelastic registration: distortion is dear, a mere change of scale is not, and a fold costs without end.

min over u of 1 - NCC(F(x), M(phi(x))) + mean of shape (|J|^3 / (3^(3/2) det J) - 1)^p + volume (det J + 1/det J - 2), J = grad phi. The first part
is zero for similarities, and only for them. Images are read by cubic splines, so that the problem is smooth in u.

Needs: a fixed and a moving image of one kind, roughly aligned; a mask of what is to match.
Gives: displacement, mm, at any point, with derivatives of every order.
Deviations: images are cubic splines, not networks fitted to them; penalties are means over the same points as the images, in mm. The barrier is a
straight line below det = 1e-3, so that a folded start can be left again: a penalty at points is no guarantee, so folds are counted afterwards.
Fidelity: interpreted (network and rate as IDIR; exponents and weights of the paper unread).
Use when: no fold is wanted and volumes may change, as in breathing lungs. `idir` is the cheaper penalty; `dnvf` cannot fold by its construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..cases.pair import Pair
from ..fields import Field, Siren
from ..losses import conformal
from ..solve import Method, Run
from ..solve.pairing import PointMatch, stretch
from ..space import Volume


@dataclass(frozen=True)
class Hyperelastic(Method):
    """Zou et al., arXiv 2303.08113.

    Args:
        net: the network.
        steps, lr: of Adam.
        schedule: of the rate: "constant", or "cosine" to a hundredth.
        points: of the mask in a step.
        shape, volume, power: weights of distortion and of volume change, and the exponent of the former.
        zero_start: begin with no displacement instead of a random one.
        blur: mm, sigma of the images in equal shares of the steps.
    """

    paper: ClassVar[str] = (
        "Jing Zou and Noemie Debroux and Lihao Liu and Jing Qin and Carola-Bibiane Schoenlieb and Angelica I. Aviles-Rivero: Learning Homeomorphic "
        "Image Registration via Conformal-Invariant Hyperelastic Regularisation. 2023. arXiv:2303.08113")
    task: ClassVar[str] = "register"
    fidelity: ClassVar[str] = "interpreted"
    tiny: ClassVar[dict[str, Any]] = {"net": Siren(width=32, depth=2, omega_first=10.0, omega=10.0), "steps": 20, "lr": 1e-3, "points": 500}

    net: Siren = Siren(width=256, depth=3, omega_first=32.0, omega=32.0)
    steps: int = 2500
    lr: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    points: int = 10_000
    shape: float = 0.1
    volume: float = 0.05
    power: float = 1.0
    zero_start: bool = False
    blur: tuple[float, ...] = (0.0,)

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        smooth = case.replaced(fixed=_cubic(case.fixed), moving=_cubic(case.moving))

        def penalty(slope: Tensor) -> Tensor:
            return conformal(stretch(slope), self.shape, self.volume, self.power)

        warp = case.displacement(self.net, zero=self.zero_start)
        problem = PointMatch(smooth, warp, self.points, penalty, blur=self.blur)
        run.fit(problem, steps=self.steps, lr=self.lr, name="register", schedule=self.schedule, final=0.01)
        return warp


def _cubic(image: Volume) -> Volume:
    return Volume(image.data, image.grid, image.unit, interpolation="cubic", fill=image.fill)
