"""Fitting Gaussians to projections: where they start, what they minimise, and how they become more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from ..cases import Projections
from ..errors import InputError
from ..fields import Field, Gaussians
from ..fields.gaussians import Bells, rotations
from ..losses import l1, total_variation
from ..operators.splat import SplatProjector
from .problem import Problem

FAINT = 1e-3  # of the subject's level: the least peak a Gaussian starts with


class SplatFit(Problem):
    """A field of Gaussians that explains projections, through its ray sums in closed form.

    Misfit and total variation count as in `ProjectionFit`.

    Args:
        field: of Gaussians; trained in place.
        case: the projections.
        views: in a step, drawn anew; None is all.
        tv: weight of the total variation of the values on the lattice; in a volume, on a random part of it.
        part: side of that part, voxels.
    """

    memory = "the number of views in a step"
    data: Tensor
    weight: Tensor

    def __init__(self, field: Field, case: Projections, views: int | None = None, tv: float = 0.0, part: int = 32):
        super().__init__()
        self.field, self.case, self.views, self.tv, self.part = field, case, views, tv, part
        self.side = float((case.grid.spacing[:2] if case.grid.is_2d else case.grid.spacing).min())
        self.projector = SplatProjector(case.box(), case.geometry)
        self.register_buffer("data", case.clean, persistent=False)
        self.register_buffer("weight", case.weight, persistent=False)

    def batch(self, rng: torch.Generator) -> Any:
        n, corner = len(self.data), [0, 0, 0]
        some = self.views is not None and self.views < n
        index: Tensor | slice = torch.randperm(n, generator=rng, device=rng.device)[:self.views] if some else slice(None)
        if not self.case.grid.is_2d:
            corner = [int(torch.randint(max(1, m - self.part + 1), (), generator=rng, device=rng.device)) for m in self.case.grid.shape]
        return index, corner

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        index, corner = batch
        out = {"data": self.misfit(index)}
        if self.tv:
            grid = self.case.grid
            shape = grid.shape if grid.is_2d else [min(self.part, n) for n in grid.shape]
            part = grid.crop(corner, shape)
            values = self.field(part.points(self.data.device)).movedim(-1, 0)
            out["variation"] = self.tv * self.side / self.case.level * total_variation(values, grid.spacing.tolist())
        return out

    def misfit(self, index: Tensor | slice) -> Float[Tensor, ""]:
        """The mean of |A f - y| / (level h) over the trusted rays of some views."""
        unit = self.case.level * self.side
        predicted, data, weight = self.projector(self.field, index), self.data[index], self.weight[index]
        return l1(predicted.reshape(-1, 1) / unit, data.reshape(-1, 1) / unit, weight.reshape(-1))


def bells(field: Field) -> Bells:
    """The Gaussians of a field.

    Raises:
        InputError: if it is made of something else.
    """
    if not isinstance(field.net, Bells):
        raise InputError(f"a field of Gaussians is needed, not of {type(field.spec).__name__}")
    return field.net


def spacing(field: Field) -> float:
    """How far Gaussians are apart in unit coordinates, if they fill the box evenly."""
    net = bells(field)
    return float(np.prod((field.box.sides / field.box.radius)[:net.axes]) / len(net.centres)) ** (1 / net.axes)


def begin(case: Projections, count: int, steps: int, rng: torch.Generator) -> Field:
    """A field of `count` Gaussians where a short SIRT reconstruction is dense or steep, half as wide as they are apart, with its values.

    Raises:
        InputError: for a slice that does not lie across the z axis.
    """
    flat = case.grid.is_2d
    if flat and abs(case.grid.normal(2)[2]) < 0.999:
        raise InputError("Gaussians of a slice lie in a plane across the z axis, this one does not", "another method, or a volume")
    field = Field(Gaussians(count, flat), case.box(), scale=case.level, unit=case.unit)
    image = case.rough(max(case.grid.shape), case.geometry.views, steps)
    value = image.data[0].double().cpu().numpy() / case.level
    slope = np.sqrt(sum(g**2 for g in np.gradient(value, axis=tuple(d for d in range(3) if value.shape[d] > 1))))
    chance = (value * (value > 0.02) + slope).ravel()
    draw = np.random.default_rng(int(torch.randint(1 << 62, (), generator=rng, device=rng.device)))
    chosen = draw.choice(chance.size, count, p=chance / chance.sum())
    index = np.stack(np.unravel_index(chosen, value.shape), 1)
    jitter = draw.uniform(-0.5, 0.5, index.shape) * (np.array(value.shape) > 1)
    net, box = bells(field), case.box()
    centres = ((image.grid.world(index + jitter) - box.centre) / box.radius)[:, :net.axes]
    gap = cKDTree(centres).query(centres, min(4, count))[0].reshape(count, -1)[:, 1:].mean(1) if count > 1 else np.array([0.1])
    with torch.no_grad():
        net.centres.copy_(torch.as_tensor(centres))
        net.log_scales.copy_(torch.as_tensor(np.log(np.maximum(gap, 1e-4))[:, None]).expand_as(net.log_scales))
        net.log_scales.add_(0.1 * torch.as_tensor(draw.standard_normal(net.log_scales.shape)))
        net.turns.copy_(torch.as_tensor(draw.standard_normal(net.turns.shape)))
        net.densities.copy_(_before_softplus(torch.as_tensor(value.ravel()[chosen, None])))
        predicted = SplatProjector(box, case.geometry)(field)
        match = float((case.weight * predicted * case.clean).sum() / (case.weight * predicted.square()).sum().clamp_min(1e-30))
        net.densities.copy_(_before_softplus(match * net.weights))
    return field


def densified(problem: SplatFit, count: int) -> Field:
    """A field of `count` Gaussians: without those whose mass is below a hundredth of the median, and with those split whose centres the
    views pull at most.

    A Gaussian of scale s along its longest axis becomes two of s / sqrt(2), s / sqrt(2) to either side, of the same mass together.
    """
    field, net, device = problem.field, bells(problem.field), problem.data.device
    pull = torch.zeros(len(net.centres), device=device)
    for view in range(len(problem.data)):
        (g,) = torch.autograd.grad(problem.misfit(torch.tensor([view])), [net.centres])
        pull += g.norm(dim=1)
    with torch.no_grad():
        mass = net.weights[:, 0] * net.log_scales.sum(1).exp()
        kept = torch.nonzero(mass > 0.01 * mass.median())[:, 0]
        new = Field(Gaussians(count, net.axes == 2, net.positive), field.box, scale=field.scale.cpu(), unit=field.unit).to(device)
        kept = kept[pull[kept].argsort(descending=True, stable=True)][:count]
        twice = kept[:max(0, count - len(kept))]
        # Where nearly all were faint, not even two for each make up the number: what is missing stays as it was made, at random places.
        source = torch.cat([kept, twice])
        parts = dict(new.net.named_parameters())
        for name, old in net.named_parameters():
            parts[name][:len(source)] = old[source]
        _split(bells(new), len(twice), len(kept))
    return new.to("cpu")


def _split(net: Bells, n: int, offset: int) -> None:
    """Move the first n Gaussians and their copies, which begin at `offset`, apart."""
    first, second = slice(0, n), slice(offset, offset + n)
    long = net.log_scales[first].argmax(1)
    scale = net.log_scales[first].gather(1, long[:, None]).exp()
    axis = rotations(net.turns[first]).gather(2, long[:, None, None].expand(-1, net.axes, 1))[..., 0]
    step = scale * axis / math.sqrt(2)
    for part, sign in ((first, 1), (second, -1)):
        net.centres[part] += sign * step
        net.log_scales[part] = net.log_scales[part].scatter(1, long[:, None], torch.log(scale / math.sqrt(2)))
        net.densities[part] = _before_softplus(net.weights[part] / math.sqrt(2))


def _before_softplus(weights: Tensor) -> Tensor:
    """The parameter whose softplus is the weight, or FAINT where that is less."""
    return torch.log(torch.expm1(weights.clamp_min(FAINT)))
