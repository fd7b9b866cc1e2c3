"""Refining an image against projections of unequal worth: least squares, total variation, non-local means and x >= 0."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from ..errors import InputError
from ..operators.projections import Projector
from ..space import Geometry
from ..space.orbit import field_of_view


def completed(geometry: Geometry, views: int) -> tuple[Geometry, Bool[np.ndarray, "N"]]:
    """The measured views, and new ones that fill their half turn (parallel) or turn (cone) to about `views` equal steps.

    A new view is the nearest measured one, turned about the axis of the views' directions through the middle of what they see. Where the
    measured ones cover only a part of the turn, new ones cover the rest.

    Returns:
        All views, measured first, and which of them were measured.
    """
    e1, e2 = geometry.plane
    axis, turn = np.cross(e1, e2), np.pi if geometry.beam == "parallel" else 2 * np.pi
    have = np.arctan2(geometry.towards @ e2, geometry.towards @ e1)
    step = turn / views
    wanted = have[0] + step * np.arange(views)
    away = np.mod(wanted[:, None] - have + turn / 2, turn) - turn / 2
    nearest = np.abs(away).argmin(1)
    by = away[np.arange(views), nearest]
    new = np.abs(by) > 0.5 * step
    rotation = Rotation.from_rotvec(by[new, None] * axis).as_matrix()
    more = geometry.subset(nearest[new]).moved(rotation, np.zeros(3), field_of_view(geometry)[0])
    joined = {name: np.concatenate([getattr(geometry, name), getattr(more, name)]) for name in ("source", "centre", "u", "v")}
    whole = Geometry(geometry.beam, **joined, shape=geometry.shape, arc=geometry.arc, frame=geometry.frame)
    return whole, np.arange(whole.views) < geometry.views


class Refinement(nn.Module):
    """min over x >= 0 of  1/2 sum_r w_r (A x - y)_r^2 + weight sum_n |(D x)_n| + pull / 2 |x - z|^2,  z = NLM(x) of some steps ago.

    By the primal-dual method of Chambolle & Pock (J. Math. Imaging Vis. 2011) with the step sizes of Pock & Chambolle (ICCV 2011, alpha = 1).
    Counted in voxels: x in units of `level`, y in `level` times the voxel side, so that weights mean the same for every subject.

    Args:
        projector: A.
        data, worth: [V, R, C] y in the unit of x times mm, and w >= 0.
        start: [I, J, K] x to start from.
        level: a typical value of x.
        weight, pull: of the total variation and of non-local means.
        h: of non-local means, in levels.
        every: steps after which z is made anew.
    """

    x: Tensor
    ahead: Tensor
    ray: Tensor
    slope: Tensor
    smooth: Tensor
    count: Tensor
    y: Tensor
    worth: Tensor
    tau: Tensor
    sigma: Tensor

    def __init__(self, projector: Projector, data: Tensor, worth: Tensor, start: Tensor, level: float, weight: float, pull: float = 0.0,
                 h: float = 0.05, every: int = 25):
        super().__init__()
        if min(weight, pull) < 0 or every < 1 or not h > 0:
            raise InputError(f"cannot refine with weight {weight:g}, pull {pull:g}, h {h:g}, every {every}", "weights of at least 0, h above 0")
        grid = projector.grid
        self.projector, self.level, self.weight, self.pull, self.h, self.every = projector, level, weight, pull, h, every
        self.side = float((grid.spacing[:2] if grid.is_2d else grid.spacing).min())
        self.axes = [d for d in range(3) if grid.shape[d] > 1]
        start = start.clamp_min(0) / level
        state = {"x": start.clone(), "ahead": start.clone(), "ray": torch.zeros_like(data), "slope": torch.zeros(len(self.axes), *start.shape),
                 "smooth": start.clone(), "count": torch.zeros((), dtype=torch.long)}
        ones = self._back(torch.ones_like(data))
        constants = {"y": data / (level * self.side), "worth": worth, "tau": 1 / (ones + 2 * len(self.axes)),
                     "sigma": 1 / self._project(torch.ones_like(start)).clamp_min(1e-3)}
        for name, t in (*state.items(), *constants.items()):
            self.register_buffer(name, t, persistent=name in state)

    @property
    def image(self) -> Float[Tensor, "I J K"]:
        """x, in the unit it came in."""
        return self.x * self.level

    @torch.no_grad()
    def step(self) -> None:
        """One iteration."""
        if self.pull and int(self.count) % self.every == 0:
            self.smooth = non_local_means(self.x, self.h)
        self.count += 1
        r = self.ray + self.sigma * (self._project(self.ahead) - self.y)
        self.ray = self.worth * r / (self.worth + self.sigma)
        g = self.slope + 0.5 * self._differences(self.ahead)
        self.slope = g / (g.norm(dim=0) / max(self.weight, 1e-12)).clamp_min(1)
        down = self._back(self.ray) + self._divergence(self.slope) - self.pull * self.smooth
        new = ((self.x - self.tau * down) / (1 + self.tau * self.pull)).clamp_min(0)
        self.ahead, self.x = 2 * new - self.x, new

    def _project(self, x: Tensor) -> Tensor:
        return self.projector.apply(x) / self.side

    def _back(self, y: Tensor) -> Tensor:
        return self.projector.adjoint(y) / self.side

    def _differences(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(self.axes), *x.shape)
        for part, d in zip(out, self.axes, strict=True):
            n = x.shape[d] - 1
            part.narrow(d, 0, n).copy_(x.narrow(d, 1, n) - x.narrow(d, 0, n))
        return out

    def _divergence(self, g: Tensor) -> Tensor:
        """The transpose of the differences."""
        out = torch.zeros_like(g[0])
        for part, d in zip(g, self.axes, strict=True):
            n = out.shape[d] - 1
            out.narrow(d, 0, n).sub_(part.narrow(d, 0, n))
            out.narrow(d, 1, n).add_(part.narrow(d, 0, n))
        return out


def non_local_means(x: Float[Tensor, "I J K"], h: float, search: int = 5, patch: int = 1) -> Float[Tensor, "I J K"]:
    """z_n = sum_m w_nm x_m / sum_m w_nm,  w = exp(-d / h^2), d the mean squared difference of the patches about n and m.

    Buades, Coll & Morel, CVPR 2005. Borders go on by repeating their voxels; axes of one voxel are left alone.

    Args:
        x: the image.
        h: how different patches may be that count as alike, in units of x.
        search, patch: radii in voxels of where patches are looked for, and of the patches.
    """
    reach = [min(search, n - 1) if n > 1 else 0 for n in x.shape]
    sides = [2 * patch + 1 if n > 1 else 1 for n in x.shape]
    pad: Any = [p for r in reversed(reach) for p in (r, r)]
    wide = nn.functional.pad(x[None, None], pad, mode="replicate")[0, 0]
    edge: Any = [p for s in reversed(sides) for p in (s // 2, s // 2)]
    total, weights = torch.zeros_like(x), torch.zeros_like(x)
    for shift in itertools.product(*(range(2 * r + 1) for r in reach)):
        other = wide[tuple(slice(s, s + n) for s, n in zip(shift, x.shape, strict=True))]
        apart = nn.functional.pad((x - other).square()[None, None], edge, mode="replicate")
        w = torch.exp(-nn.functional.avg_pool3d(apart, sides, 1)[0, 0] / h**2)
        total, weights = total + w * other, weights + w
    return total / weights
