"""CoIL: a network learns the measurements as a function of view angle and detector position, and tells those that were not taken.

No projector is involved until the end, when as many views as wanted are read from the network and filtered and backprojected.

Needs: projections of a slice or a volume from a parallel, fan or circular cone beam, two views or more.
Gives: attenuation in 1/mm on the grid of the case.
Deviations: the authors keep the state that is best on noise-free projections of the truth, which nobody has; here a share of the measured rays is
held out and tells when to stop. Where the views close a turn, the first one (parallel: its mirror image) also follows the last. The learning
rate falls; in a volume the row is a third coordinate. The published network takes hours on a CPU; 6 x 128 with a rate of 3e-3 takes minutes.
Fidelity: published (encoding, network, loss, batch, rates by noise).
Licence: the authors' code carries no licence; this file is written from the paper's description.
Use when: you compare with the paper. Interpolating the views linearly (`--no-network`) needs a second; the network passes it only after all of its
3,000 epochs, by less than a decibel. Total variation (`pdhg-tv`) is better than both by far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..cases import Projections
from ..fields import MLP, Field, Harmonics, Spec
from ..solve import Inverse, Method, Run
from ..solve.fbp import Window, filtered_backprojection
from ..solve.views import Dense, closed, denser
from ..space import Box, Samples, Volume


@dataclass(frozen=True)
class CoIL(Method):
    """Sun et al., IEEE TCI 2021.

    Args:
        net: of the measurements, on [-1, 1] for each of angle, column and (in a volume) row.
        epochs: passes over the measured rays.
        lr: of Adam, exponential to a tenth; published are 2e-4 for 50 dB of noise and above, 1e-4 for 40 dB, 1e-6 for 30 dB.
        rays: in a step.
        held_out: share of the measured rays that tells when to stop.
        patience, every: stop when the held-out error has not fallen for so many looks, one every so many steps.
        views: about as many are read.
        keep: measured views stay as they are; False takes the network's, which have less noise.
        network: False interpolates linearly between the views instead.
        window: of the ramp filter.
    """

    paper: ClassVar[str] = (
        "Yu Sun and Jiaming Liu and Mingyang Xie and Brendt Wohlberg and Ulugbek Kamilov: CoIL: Coordinate-Based Internal Learning for "
        "Tomographic Imaging. IEEE Transactions on Computational Imaging 2021. doi:10.1109/TCI.2021.3125564")
    task: ClassVar[str] = "ct"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(Harmonics(4), width=16, depth=2), "epochs": 6, "rays": 128, "views": 48, "every": 5}

    net: Spec = MLP(Harmonics(10), width=256, depth=16, skips=(2, 4, 6, 8, 10, 12, 14))
    epochs: float = 3000
    lr: float = 2e-4
    rays: int = 1000
    held_out: float = 0.05
    patience: int = 10
    every: int = 250
    views: int = 360
    keep: bool = False
    network: bool = True
    window: Window = "ramp"

    def solve(self, case: Projections, run: Run, prior: nn.Module | None = None) -> Volume:
        path = denser(case.geometry, max(1, round(self.views / case.geometry.views)))
        data = self._learned(case, path, run) if self.network else _interpolated(case, path)
        if self.keep:
            data[path.measured] = torch.where(case.weight > 0, case.clean, data[path.measured])
        dense = replace(case, data=data, geometry=path.geometry, good=None)
        return Volume(filtered_backprojection(dense, self.window)[0], case.grid, case.unit)

    def _learned(self, case: Projections, path: Dense, run: Run) -> Tensor:
        """[N, R, C] all views as the network tells them."""
        data, weight, angle = closed(case, path)
        end, (rows, columns) = angle[-1], case.geometry.shape
        trusted = weight.reshape(-1) > 0
        samples = Samples(_places(angle, end, rows, columns)[trusted], data.reshape(-1, 1)[trusted])
        scale = float(case.clean.max())
        ndim = samples.at.shape[-1]
        field = Field(self.net, Box((-1.0,) * ndim, (1.0,) * ndim), scale=scale)
        unit = Samples(samples.at, samples.value / scale)
        problem = Inverse(field, lambda f, x: f(x) / scale, unit, self.rays, self.held_out)
        steps = max(1, round(self.epochs * len(problem.train_on) / self.rays))
        run.fit(problem, steps=steps, lr=self.lr, name="sinogram", schedule="exponential", patience=self.patience, every=self.every)
        error = problem.held_out()
        if error is not None:
            run.note(**{"held-out SNR dB": float(10 * (unit.value.square().mean() / error.cpu()).log10())})
        with torch.no_grad():
            parts = _places(path.angle, end, rows, columns).split(1 << 16)
            return torch.cat([field(x.to(run.device)).cpu() for x in parts]).reshape(-1, rows, columns)


def _places(angle: np.ndarray, end: float, rows: int, columns: int) -> Tensor:
    """[V * R * C, 2 or 3] angle, column and, of several rows, row, each on [-1, 1]."""
    along = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in (rows, columns)]
    places = torch.cartesian_prod(torch.as_tensor(2 * angle / end - 1, dtype=torch.float32), *along)
    return places[:, [0, 2, 1]] if rows > 1 else places[:, [0, 2]]


def _interpolated(case: Projections, path: Dense) -> Tensor:
    """[N, R, C] all views, linear in the angle between the trusted measured ones."""
    data, weight, angle = (t.numpy() if isinstance(t, Tensor) else t for t in closed(case, path))
    out = np.zeros((len(path.angle), *data.shape[1:]), np.float32)
    for r, c in np.ndindex(*data.shape[1:]):
        good = weight[:, r, c] > 0
        if good.any():
            out[:, r, c] = np.interp(path.angle, angle[good], data[good, r, c])
    return torch.as_tensor(out)
