"""Learning over subjects: a convolutional network reads a coarse image of each, and a field that is conditioned on it is taught by projections."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases import Projections
from ..fields import Conditional
from ..fields.conditional import Beside
from ..space import Box
from .fbp import filtered, filtered_backprojection
from .problem import Problem
from .projections import MISFITS, Misfit


class Reader(nn.Module):
    """Reads an image into a map of features, and holds the MLP that says values from them.

    Streaks cross the whole image, so every layer looks twice as far as the one before (dilated convolutions), and the sixth from near by again.

    Args:
        spec: of the conditional field; its map's lattice does not matter here.
        width, depth: of the convolutional network.
    """

    def __init__(self, spec: Conditional, width: int, depth: int):
        super().__init__()
        sizes = [1] + [width] * depth
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=2**(n % 5), dilation=2**(n % 5)), nn.ReLU())
                  for n, (a, b) in enumerate(itertools.pairwise(sizes))]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, spec.features - 1, 3, padding=1))
        self.net = spec.build(Box((-1, -1, -1), (1, 1, 1)), 1)

    def features(self, image: Float[Tensor, "I J K"]) -> Float[Tensor, "F I J K"]:
        """Slice by slice; the first feature is the image itself, the others are corrections of it."""
        x = image.movedim(2, 0)[:, None]
        return torch.cat([x, x + self.layers(x)], 1).permute(1, 2, 3, 0)

    def forward(self, image: Float[Tensor, "I J K"], u: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Values >= 0 at the image's own N = I J K voxels, whose unit coordinates are u."""
        z = self.features(image).flatten(1).T
        return nn.functional.softplus(self.net.branches[0](self.net.body(torch.cat([cast(Beside, self.net.encoding).place(u), z], 1))))[:, 0]


class Cohort(Problem):
    """Projections of one subject in a step: some of the views, evenly spread, are shown as a coarse image, and all are asked for.

    Args:
        reader: to be taught.
        cohort: the subjects.
        views: about how many are shown.
        misfit: "l1" or "l2".
        detail: weight of the same misfit after a ramp filter (Hann), without which the fine parts of an image hardly count.
    """

    memory = "the size of the patients' grids"

    def __init__(self, reader: Reader, cohort: Sequence[Projections], views: int, misfit: Misfit, detail: float = 1.0):
        super().__init__()
        self.reader, self.cohort, self.views, self.misfit, self.detail = reader, cohort, views, MISFITS[misfit], detail
        self.projectors = [case.projector() for case in cohort]
        for n, case in enumerate(cohort):
            self.register_buffer(f"data{n}", case.clean.reshape(-1, 1), persistent=False)

    def batch(self, rng: torch.Generator) -> Any:
        pick, shift = torch.rand(2, generator=rng, device=rng.device).tolist()
        n = int(pick * len(self.cohort))
        stride = max(1, self.cohort[n].geometry.views // self.views)
        return n, self.cohort[n].subset(slice(int(shift * stride), None, stride))

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        n, shown = batch
        case, data = self.cohort[n], self.get_buffer(f"data{n}")
        box, unit = case.box(), case.level * float(case.grid.spacing[:2].min())
        u = (case.grid.points(data.device).reshape(-1, 3) - torch.tensor(box.centre).to(data)) / torch.tensor(box.radius).to(data)
        image = self.reader(filtered_backprojection(shown, "hann", data.device)[0] / case.level, u)
        predicted = self.projectors[n](image.reshape(case.grid.shape) * case.level)
        weight = case.weight.reshape(-1).to(data)
        wrong = weight.reshape(predicted.shape) * (predicted - data.reshape(predicted.shape))
        sharp = filtered(wrong, float(case.geometry.pitch[0, 0]), "hann").reshape(-1, 1) / case.level
        return {"projections": self.misfit(predicted.reshape(-1, 1) / unit, data / unit, weight),
                "detail": self.detail * self.misfit(sharp, torch.zeros_like(sharp), weight)}
