"""Ultrasound field: a hash grid and a small network, fitted to the grey values of tracked frames, pixel by pixel.

y_p = f(x_p) at the place x_p of every pixel, f a function of world coordinates. How fine f may be is found from frames that are left out and
predicted: too coarse, and wires blur; too fine, and it makes up what lies between frames out of speckle, which each frame has anew.

Needs: frames with their poses.
Gives: grey values at any point, smaller than the voxels: see RESULTS. Far from all frames they mean nothing; `medfields ultrasound` sets them to 0.
Deviations: the paper is a short one whose network, sizes and rates we could not read: they are ours, and so is the choice of how fine. Pixels are
first averaged in squares of 0.25 mm, since most are finer than the beam.
Fidelity: interpreted.
Use when: a small continuous model of the sweep is wanted. compounding predicts frames about as well, and needs no training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from ..cases import Sweep
from ..errors import InputError
from ..fields import MLP, Field, GridEncoding
from ..solve import Method, Run
from ..solve.optimise import Adam
from ..solve.problem import Inverse

FEWEST = 5  # frames; of fewer none can be left out


@dataclass(frozen=True)
class USField(Method):
    """Gu et al., MIDL 2022.

    Args:
        net: encoding and network; the cells of the finest level come from `finest`.
        finest: mm, that are tried; a single one is taken as it is.
        every: each so many frames one is left out to choose among them.
        trial: steps of each of these fits.
        steps, lr: of Adam (0.9, 0.99, eps 1e-15), exponential to a twentieth; the network learns at a fifth of the tables' rate.
        samples: pixels in a step.
        pixel: mm; frames are averaged to about this.
    """

    paper: ClassVar[str] = (
        "Ang Nan Gu and Purang Abolmaesumi and Christina Luong and Kwang Moo Yi: Representing 3D Ultrasound with Neural Fields. Medical Imaging "
        "with Deep Learning 2022. https://openreview.net/forum?id=1EDRk-CyQou")
    task: ClassVar[str] = "ultrasound"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(GridEncoding(levels=4, coarsest_mm=8.0, log2_table=10), width=16, depth=1), "finest": (1.0, 4.0),
                                      "every": 3, "trial": 5, "steps": 20, "samples": 256}
    fidelity: ClassVar[str] = "interpreted"

    net: MLP = MLP(GridEncoding(levels=8, coarsest_mm=16.0, log2_table=13), width=32, depth=1)
    finest: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    every: int = 4
    trial: int = 150
    steps: int = 400
    lr: float = 0.02
    samples: int = 16384
    pixel: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.finest or not all(0 < mm < np.inf for mm in self.finest):
            raise InputError(f"finest must be positive mm, got {self.finest}", "for instance --finest 0.5 1 2")
        if not isinstance(self.net.encoding, GridEncoding):
            raise InputError(f"us-field has no finest level in {self.net.encoding}", "a network with a GridEncoding is meant")

    def solve(self, case: Sweep, run: Run, prior: nn.Module | None = None) -> Field:
        finest, coarse = self.finest[0], case.coarser(max(1, round(self.pixel / case.pixel)))
        if len(self.finest) > 1 and len(case.frames) >= FEWEST:
            shown, held = coarse.without(self.every, self.every // 2)
            errors = [held.misfit(self._fit(shown, run, mm, self.trial, f"finest {mm:g} mm")) for mm in self.finest]
            finest = self.finest[int(np.argmin(errors))]
        run.note(finest_mm=finest)
        return self._fit(coarse, run, finest, self.steps, "fit")

    def _fit(self, case: Sweep, run: Run, finest: float, steps: int, name: str) -> Field:
        offset, scale = case.level()
        levels = replace(self.net.encoding, finest_mm=finest, coarsest_mm=max(finest, self.net.encoding.coarsest_mm))  # type: ignore[attr-defined]
        field = Field(replace(self.net, encoding=levels), case.box(), 1, scale=scale, offset=offset, unit=case.unit)
        rates = {"field.net.encoding": self.lr, "field.net": self.lr / 5}
        problem = Inverse(field, _read, case.samples(), self.samples)
        return run.fit(problem, steps=steps, lr=rates, name=name, optimiser=_adam, schedule="exponential", final=0.05).field


def _adam(groups: list[dict[str, Any]]) -> Adam:
    return Adam(groups, betas=(0.9, 0.99), eps=1e-15)


def _read(field: nn.Module, at: Tensor) -> Tensor:
    """A pixel is what the field is at its place: the thickness of the beam is not in the file."""
    return field(at)
