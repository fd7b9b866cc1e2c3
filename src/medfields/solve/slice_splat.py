"""Fitting Gaussians to slices that moved: where they start, and what they minimise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn

from ..cases.slices import Slices
from ..fields import Field, Gaussians
from ..fields.gaussians import rotations
from ..losses import l1
from ..operators.slice_splat import Bodies, Laid, slice_images
from ..operators.slices import FWHM_PER_SIGMA
from .motion import LIKENESS, Found, Level
from .plane_system import PlaneSystem
from .problem import Problem
from .slice_fit import SlicePoses
from .splat import bells

SEEN = 0.05  # of what a voxel in the midst of the slices weighs: one that weighs less gets no Gaussian
WIDE = 0.6  # standard deviation of a Gaussian at first, in distances between them: a lattice of such is flat to 1e-3
ALONE = 1e-3  # mm, a profile that is none
FAINT = 1e-3  # of the contrast: the least peak a Gaussian starts with
MATCHED = 8  # times that peaks are scaled to the values of the subject, before the fit


class GaussianSliceFit(Problem):
    """Gaussians that explain slices in closed form, and with them the pose and the gain of each slice.

    Misfit is the mean absolute difference; intensities count as about 0 to 1.

    Args:
        field: of Gaussians; trained in place.
        case: the slices.
        found: what they start from; slices that are worth nothing do not count.
        slices: in a step, drawn anew.
        size: weight of the squared change of log-widths from the first: what is not seen neither shrinks to grain nor spreads.
        pose: weight of the penalty on motion from the start.
    """

    memory = "the number of slices in a step"
    value: Tensor
    sigma: Tensor
    worth: Tensor
    first: Tensor
    rows: Tensor

    def __init__(self, field: Field, case: Slices, found: Found, slices: int, size: float = 0.0, pose: float = 0.1):
        super().__init__()
        self.field, self.case, self.slices, self.size, self.pose = field, case, slices, size, pose
        self.poses = SlicePoses(case, found.poses)
        self.logits = nn.Parameter(torch.zeros(len(case.slices)))
        sigma = case.thickness / FWHM_PER_SIGMA if case.profile != "none" else np.full(len(case.slices), ALONE)
        scale, offset = float(field.scale[0]), float(field.offset[0])
        held = {"value": (case.pixels()[2] - offset) / scale, "sigma": torch.as_tensor(sigma).float(), "worth": torch.as_tensor(found.worth).float(),
                "first": bells(field).log_scales.detach().clone(), "rows": _rows(case)}
        for name, value in held.items():
            self.register_buffer(name, value, persistent=False)
        self.width = max(s.mask.shape[1] for s in case.slices)
        self.starts = np.r_[0, np.cumsum([int(s.mask.sum()) for s in case.slices])]

    @property
    def gain(self) -> Float[Tensor, "N"]:
        """Of each slice; their mean is one."""
        return len(self.logits) * torch.softmax(self.logits, 0)

    def batch(self, rng: torch.Generator) -> Any:
        return torch.randperm(len(self.logits), generator=rng, device=rng.device)[:self.slices].sort().values

    def shown(self, index: Int[Tensor, "M"]) -> tuple[Float[Tensor, "P"], Int[Tensor, "P"]]:
        """What the pixels of some slices show of the field, without their gain; and which pixels they are."""
        columns, origin, across = (t.index_select(0, index) for t in self.poses.laid())
        images = slice_images(bodies(self.field), Laid(columns, origin, across, self.sigma[index]), self.rows[index], self.width)
        pixel = torch.cat([torch.arange(int(self.starts[n]), int(self.starts[n + 1]), device=index.device) for n in index.tolist()])
        place = torch.zeros_like(self.logits, dtype=torch.long).index_copy(0, index, torch.arange(len(index), device=index.device))
        at = self.poses.at[pixel].long()
        return images[place[self.poses.plane[pixel]], at[:, 0], at[:, 1]], pixel

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        shown, pixel = self.shown(batch)
        plane = self.poses.plane[pixel]
        predicted = self.gain.index_select(0, plane) * shown
        out = {"data": l1(predicted[:, None], self.value[pixel, None], self.worth[plane]), "pose": self.pose * self.poses.prior()}
        if self.size:
            out["size"] = self.size * (bells(self.field).log_scales - self.first).square().mean()
        return out

    @torch.no_grad()
    def found(self, start: Found) -> Found:
        """How the slices lie. Those that are unlike what is in their place are worth nothing."""
        parts = [self.shown(index) for index in torch.arange(len(self.logits), device=self.value.device).split(self.slices)]
        level = Level(self.case, self.case.grid, float(self.field.offset[0]), float(self.field.scale[0]))
        alike = level.likeness(torch.cat([part for part, _ in parts]).cpu())
        return Found(self.poses.maps(), self.gain.double().cpu().numpy(), np.where(alike < LIKENESS, 0.0, start.worth), alike)


def begin(case: Slices, found: Found, count: int, smooth: float, steps: int, rng: np.random.Generator, flat: float = 0.5) -> Field:
    """A field of at most `count` Gaussians where slices see, on the values of a subject that is rebuilt by least squares.

    Args:
        case: the slices.
        found: where they are thought to lie.
        count: Gaussians; fewer where there are fewer voxels.
        smooth, steps: weight of the squared gradient, and conjugate gradient steps.
        rng: chooses among voxels.
        flat: share of them that are spread evenly; others lie where the subject is steep.
    """
    system = PlaneSystem(case, found)
    c = system.solver(smooth, steps=steps)(system.adjoint(system.y), torch.zeros(system.lattice.shape))
    reached = system.operator.adjoint(torch.ones(len(system.value)))
    voxels = (reached > SEEN * reached.max()).nonzero().numpy()
    offset = min(0.0, system.offset)
    scale = system.offset + system.scale - offset
    value = (system.offset - offset + system.scale * c.numpy()) / scale
    steep = np.sqrt(sum(g**2 for g in np.gradient(value)))[tuple(voxels.T)]
    count = min(count, len(voxels))
    chance = flat / len(voxels) + (1 - flat) * steep / max(float(steep.sum()), 1e-12)
    chosen = voxels[np.sort(rng.choice(len(voxels), count, replace=False, p=chance / chance.sum()))]
    x = system.lattice.world(chosen + rng.uniform(-0.5, 0.5, chosen.shape))
    gap = cKDTree(x).query(x, min(7, count))[0][:, 1:].mean(1)
    field = Field(Gaussians(count), system.lattice.box(), scale=scale, offset=offset, unit=case.unit)
    net, box = bells(field), field.box
    with torch.no_grad():
        net.centres.copy_(torch.as_tensor((x - box.centre) / box.radius))
        net.log_scales.copy_(torch.as_tensor(np.log(WIDE * gap / box.radius[0]))[:, None].expand_as(net.log_scales))
        net.turns.copy_(torch.tensor([1.0, 0, 0, 0]).expand_as(net.turns))
        wanted = torch.as_tensor(value[tuple(chosen.T)]).float().clamp_min(FAINT)[:, None]
        peaks = wanted
        for _ in range(MATCHED):  # until their sums are the values at their centres
            net.densities.copy_(_before_softplus(peaks))
            peaks = (peaks * (wanted / net(net.centres.detach()).clamp_min(FAINT)).clamp(0.3, 3.0)).clamp_min(FAINT)
    return field


def seen(case: Slices) -> float:
    """The volume in the masks, mm^3, the mean of the stacks."""
    each = [int(s.mask.sum()) * s.thickness * float(np.prod(s.image.grid.spacing[:2])) for s in case.slices]
    return sum(each) / len(np.unique(case.stack))


def bodies(field: Field) -> Bodies:
    """The Gaussians of a field, in mm."""
    net, radius = bells(field), field.radius[0]
    return Bodies(field.centre + radius * net.centres, rotations(net.turns), radius * net.log_scales.exp(), net.weights[:, 0])


def _before_softplus(weights: Tensor) -> Tensor:
    """The parameter whose softplus is the weight."""
    return torch.log(torch.expm1(weights))


def _rows(case: Slices) -> Int[Tensor, "N I 2"]:
    """First and one past the last pixel in the mask, of each row of each slice."""
    rows = torch.zeros(len(case.slices), max(s.mask.shape[0] for s in case.slices), 2, dtype=torch.long)
    for n, s in enumerate(case.slices):
        own, width = s.mask.any(1), s.mask.shape[1]
        rows[n, :len(own), 0] = torch.where(own, s.mask.int().argmax(1), 0)
        rows[n, :len(own), 1] = torch.where(own, width - s.mask.flip(1).int().argmax(1), 0)
    return rows
