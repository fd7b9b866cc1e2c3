"""Ultrasound field: a network of sines fitted to the grey values of tracked frames, pixel by pixel.

y_p = f(x_p) at the place x_p of every pixel, f a network of world coordinates. How fine f may be is found from frames that are left out and
predicted: too coarse, and wires blur; too fine, and the network makes up what lies between frames out of speckle, which each frame has anew.

Needs: frames with their poses.
Gives: grey values at any point, in a file a tenth as large as the voxels.
Deviations: the paper is a short one whose sizes and rates we could not read: network, steps and rates are ours, and so is the choice of how
fine. Pixels are first averaged in squares of 0.25 mm, since most are finer than the beam.
Fidelity: interpreted.
Use when: frames are apart, or a small continuous model of the sweep is wanted. compounding is quicker.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from ..cases import Sweep
from ..errors import InputError
from ..fields import Field, Siren
from ..solve import Method, Run
from ..solve.problem import Inverse

FEWEST = 5  # frames; of fewer none can be left out


@dataclass(frozen=True)
class USField(Method):
    """Gu et al., MIDL 2022.

    Args:
        net: the network; the gain of its first layer comes from `gains`.
        gains: that are tried: the detail at hand, radians over half the longest side of the sweep; a single one is taken as it is.
        every: each so many frames one is left out to choose among them.
        trial: steps of each of these fits.
        steps, lr: of Adam, cosine to a twentieth.
        samples: pixels in a step.
        pixel: mm; frames are averaged to about this.
    """

    paper: ClassVar[str] = (
        "Ang Nan Gu and Purang Abolmaesumi and Christina Luong and Kwang Moo Yi: Representing 3D Ultrasound with Neural Fields. Medical Imaging "
        "with Deep Learning 2022. https://openreview.net/forum?id=1EDRk-CyQou")
    task: ClassVar[str] = "ultrasound"
    tiny: ClassVar[dict[str, Any]] = {"net": Siren(width=32, depth=2), "gains": (5.0, 10.0), "every": 3, "trial": 5, "steps": 20, "samples": 256}
    fidelity: ClassVar[str] = "interpreted"

    net: Siren = Siren(width=128, depth=3, omega=30.0)
    gains: tuple[float, ...] = (10.0, 20.0, 40.0)
    every: int = 4
    trial: int = 150
    steps: int = 500
    lr: float = 5e-4
    samples: int = 8192
    pixel: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gains or not all(0 < g < np.inf for g in self.gains):
            raise InputError(f"gains must be positive, got {self.gains}", "for instance --gains 10 20 40")

    def solve(self, case: Sweep, run: Run, prior: nn.Module | None = None) -> Field:
        gain, coarse = self.gains[0], case.coarser(max(1, round(self.pixel / case.pixel)))
        if len(self.gains) > 1 and len(case.frames) >= FEWEST:
            shown, held = coarse.without(self.every, self.every // 2)
            errors = [held.misfit(self._fit(shown, run, g, self.trial, f"gain {g:g}")) for g in self.gains]
            gain = self.gains[int(np.argmin(errors))]
        run.note(gain=gain)
        return self._fit(coarse, run, gain, self.steps, "fit")

    def _fit(self, case: Sweep, run: Run, gain: float, steps: int, name: str) -> Field:
        offset, scale = case.level()
        field = Field(replace(self.net, omega_first=gain), case.box(), 1, scale=scale, offset=offset, unit=case.unit)
        problem = Inverse(field, _read, case.samples(), self.samples)
        return run.fit(problem, steps=steps, lr=self.lr, name=name, schedule="cosine", final=0.05).field


def _read(field: nn.Module, at: Tensor) -> Tensor:
    """A pixel is what the field is at its place: the thickness of the beam is not in the file."""
    return field(at)
