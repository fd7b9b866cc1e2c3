"""How slices lie that moved while they were scanned: the subject and the poses of its slices, found in turn.

The subject is rebuilt on a lattice from all slices where they are thought to lie; then every slice is laid on it again, by Gauss-Newton
steps on its rotation, its shift and its gain, for which `PlaneOperator.slope` tells how a slice's picture changes when it moves. Coarse to
fine: on a coarse lattice a slice finds its place from far, on a fine one precisely. What does not fit counts less: pixels by a robust
weight, slices by their own variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from ..cases.slices import Slices
from ..operators.planes import PlaneOperator
from ..space import Grid, Volume
from .linear import conjugate_gradients, gradient, gradient_adjoint

Poses = Float[np.ndarray, "N 4 4"]
PRIOR = (float(np.radians(10.0)), 10.0)  # standard deviation of each component of a slice's turn and shift from its stack: radians, mm
GAIN = 0.2  # standard deviation of a slice's gain from one: without it, an end slice can wander off to where it is alone and be explained
ALIKE = 16.0  # neighbouring pixels err together: so many count as one
NODES = 10  # of a profile while poses are sought
TUKEY = 3.0  # residuals of so many standard deviations count a quarter
LIKENESS = 0.5  # a slice that is less alike what the subject shows in its place is left out
FARTHER = 1.8  # a slice is laid on a subject of which it is itself a third, which holds it back: so much larger are its steps made
FARTHEST = 4.0  # mm, of one step at the subject's surface


@dataclass(frozen=True)
class Found:
    """How slices lie, and how far each is to be trusted.

    Args:
        poses: [N, 4, 4] maps of the world, mm: what a slice shows at x of its header lies at poses @ x in the subject.
        gain: [N] a slice's values over the subject's.
        worth: [N] in [0, 1], the weight of its pixels; 0 leaves it out.
        likeness: [N] the correlation of a slice with what the subject shows in its place.
    """

    poses: Poses
    gain: Float[np.ndarray, "N"]
    worth: Float[np.ndarray, "N"]
    likeness: Float[np.ndarray, "N"]

    @classmethod
    def at(cls, poses: Poses) -> Found:
        """Nothing but poses."""
        one = np.ones(len(poses))
        return cls(poses, one, one, one)


class Estimate(nn.Module):
    """The subject and how its slices lie, as a state that a run can stop with and take up again.

    Args:
        poses: to start from; gains and worths are one.
        c: the subject on its lattice, once there is one.
    """

    c: Tensor
    poses: Tensor
    gain: Tensor
    worth: Tensor
    likeness: Tensor

    def __init__(self, poses: Poses, c: Tensor | None = None):
        super().__init__()
        one = torch.ones(len(poses), dtype=torch.float64)
        start = {"c": torch.zeros(1, 1, 1) if c is None else c, "poses": torch.from_numpy(poses.copy()), "gain": one, "worth": one, "likeness": one}
        for name, value in start.items():
            self.register_buffer(name, value.clone())

    def found(self) -> Found:
        """How the slices lie."""
        return Found(*(t.numpy().copy() for t in (self.poses, self.gain, self.worth, self.likeness)))

    def take(self, found: Found) -> None:
        """Another opinion of it."""
        self.poses, self.gain, self.worth, self.likeness = (torch.from_numpy(np.array(a, np.float64)) for a in
                                                            (found.poses, found.gain, found.worth, found.likeness))


class Level:
    """Slices at one resolution, and the lattice on which the subject is rebuilt for them.

    Args:
        case: the slices, at the resolution that is wanted.
        lattice: it holds them all, and what they may move.
        offset, scale: values become (value - offset) / scale, about 0 to 1.
    """

    def __init__(self, case: Slices, lattice: Grid, offset: float, scale: float):
        self.case, self.lattice, self.offset, self.scale = case, lattice, offset, scale
        self.at, self.plane, value = case.pixels()
        self.y = (value - offset) / scale
        self.of = self.plane.numpy().astype(np.int64)
        self.count = np.bincount(self.of, minlength=len(case.slices))
        self.affines, self.middles = case.affines, case.centres()

    @classmethod
    def of_spacing(cls, case: Slices, mm: float, poses: Poses) -> Level:
        """On a lattice of `mm`, with pixels averaged to about as much, for slices that are thought to lie in these poses."""
        lattice, _ = covering(case.grid.with_spacing(mm), placed(case, poses), case.reach() + 2 * mm)
        return cls(case.coarser(max(1, round(0.8 * mm / case.pixel))), lattice, *case.level())

    def only(self, kept: Bool[np.ndarray, "N"]) -> Level:
        """Some of the slices, on the same lattice."""
        return Level(self.case.only(kept), self.lattice, self.offset, self.scale)

    def operator(self, poses: Poses) -> PlaneOperator:
        case = self.case
        return PlaneOperator(self.lattice, self.at, self.plane, poses @ self.affines, case.profile, case.thickness.tolist(), NODES)

    def spread(self, each: Float[np.ndarray, "N"]) -> Float[Tensor, "P"]:
        """A number of each slice, for its pixels."""
        return torch.from_numpy(each[self.of]).float()

    def sums(self, values: Tensor) -> Float[np.ndarray, "N"]:
        """Over the pixels of each slice."""
        return np.bincount(self.of, values.double().numpy(), minlength=len(self.count))

    def points(self, poses: Poses) -> Float[np.ndarray, "P 3"]:
        """Where the pixels lie, mm."""
        a = (poses @ self.affines)[self.of]
        return np.einsum("pij,pj->pi", a[:, :3, :2], self.at.numpy()) + a[:, :3, 3]

    def likeness(self, shown: Float[Tensor, "P"]) -> Float[np.ndarray, "N"]:
        """The correlation of each slice with what the subject shows in its place."""
        mean = [self.sums(t) / self.count for t in (shown, self.y)]
        a, b = (t - self.spread(m) for t, m in zip((shown, self.y), mean, strict=True))
        return self.sums(a * b) / np.sqrt(np.maximum(self.sums(a * a) * self.sums(b * b), 1e-12))


class Alternation(Estimate):
    """Subject and poses in turn, one `step` at a time.

    Args:
        level: the slices at one resolution.
        found: to start from.
        rest: poses about which the prior holds the slices.
        smooth: weight of the squared gradient of the subject, for values of about 0 to 1.
        together: the number of the rigid body each slice belongs to; None moves every slice alone.
    """

    damping: Tensor
    noise: Tensor

    def __init__(self, level: Level, found: Found, rest: Poses, smooth: float = 0.02, together: Int[np.ndarray, "N"] | None = None):
        super().__init__(found.poses, torch.zeros(level.lattice.shape))
        self.take(found)
        self.level, self.rest, self.smooth = level, rest, smooth
        self.group = np.arange(len(rest)) if together is None else together
        self.register_buffer("damping", torch.full((int(self.group.max()) + 1,), 0.1, dtype=torch.float64))
        self.register_buffer("noise", torch.zeros((), dtype=torch.float64))
        self.change = float("inf")

    @torch.no_grad()
    def step(self, steps: int = 3, rebuild: int = 6) -> None:
        """Rebuild the subject by conjugate gradients, weigh slices and pixels, move the slices by Gauss-Newton."""
        level, before = self.level, self.poses.numpy().copy()
        weight = self.weights() if float(self.noise) else torch.ones(len(level.y))
        self.c = rebuilt(level.operator(before), level.y, level.spread(self.gain.numpy()), weight, self.smooth, self.c,
                         rebuild if float(self.noise) else 4 * rebuild)
        weight = self.weights()
        poses, gain, damping = laid(level, self.c, before, weight, self.rest, self.group, self.damping.numpy(), float(self.noise), steps)
        poses = fixed(farther(before, poses, level.middles, FARTHER), level.case, self.rest, self.worth.numpy())
        self.poses, self.damping = torch.from_numpy(poses), torch.from_numpy(damping)
        self.gain = torch.from_numpy(gain / np.median(gain))
        self.change = float(np.median(moved(level.case, before, poses)))

    def subject(self) -> Volume:
        """As it was last rebuilt."""
        level = self.level
        return Volume(level.offset + level.scale * self.c.cpu(), level.lattice, level.case.unit)

    def judged(self) -> Found:
        """How the slices lie; those that are unlike what is in their place are worth nothing."""
        found = self.found()
        return replace(found, worth=np.where(found.likeness < LIKENESS, 0.0, found.worth))

    def weights(self) -> Float[Tensor, "P"]:
        """Of the pixels: their slice's, one over its variance, and less for pixels that stand out (Geman-McClure)."""
        shown = self.level.operator(self.poses.numpy()).apply(self.c)
        residual = self.level.y - self.level.spread(self.gain.numpy()) * shown
        variance = self.level.sums(residual.square()) / self.level.count
        usual = float(np.median(variance))
        self.worth = torch.from_numpy(np.minimum(1.0, usual / variance))
        self.likeness, self.noise = torch.from_numpy(self.level.likeness(shown)), torch.tensor(usual).sqrt().double()
        return self.level.spread(self.worth.numpy()) / (1 + (residual / (TUKEY * usual**0.5)).square()).square()


def rebuilt(operator: PlaneOperator, y: Tensor, gain: Tensor, weight: Tensor, smooth: float, start: Tensor, steps: int) -> Float[Tensor, "I J K"]:
    """The lattice values c with the least sum of weight (gain A c - y)^2 + smooth |D c|^2, by conjugate gradients from `start`."""

    def normal(c: Tensor) -> Tensor:
        return operator.adjoint(gain.square() * weight * operator.apply(c)) + smooth * gradient_adjoint(gradient(c))

    return conjugate_gradients(normal, operator.adjoint(gain * weight * y), start, steps)


def laid(level: Level, c: Tensor, poses: Poses, weight: Tensor, rest: Poses, group: Int[np.ndarray, "N"], damping: Float[np.ndarray, "G"],
         noise: float, steps: int) -> tuple[Poses, Float[np.ndarray, "N"], Float[np.ndarray, "G"]]:
    """Slices laid on the subject: Levenberg-Marquardt steps on six numbers of each group and a gain of each slice.

    Minimised is sum of weight (y - gain A(pose) c)^2 / noise^2, the gain being the best one, plus the squares of turn and shift from `rest`
    over `PRIOR`. A step that makes a group worse is not made, and the next is smaller.
    """
    bodies, variance = len(damping), ALIKE * max(noise, 1e-6) ** 2
    x = level.points(poses)
    radius = max(1.0, float(np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())))
    tight = np.repeat([1 / (PRIOR[0] * radius), 1 / PRIOR[1]], 3) ** 2
    share, loose = np.bincount(group, minlength=bodies), variance / GAIN**2
    inner = np.stack([np.bincount(group, m, bodies) for m in _carried(poses, level.middles).T], 1) / share[:, None]

    def judged(poses: Poses) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor, Tensor]:
        shown, slope = level.operator(poses).slope(c)
        gain = (level.sums(weight * shown * level.y) + loose) / (level.sums(weight * shown * shown) + loose)
        residual = level.y - level.spread(gain) * shown
        away = _deviation(poses, rest, level.middles, radius)
        cost = (level.sums(weight * residual.square()) + loose * (gain - 1) ** 2) / variance + (tight * away**2).sum(1)
        return np.bincount(group, cost, bodies), gain, residual, shown, slope

    cost, gain, residual, shown, slope = judged(poses)
    for _ in range(steps):
        arm = torch.from_numpy(level.points(poses) - inner[group][level.of]).float()
        own = level.spread(gain)[:, None] * torch.cat([torch.linalg.cross(arm, slope) / radius, slope], 1)
        away = _deviation(poses, rest, level.middles, radius)
        h, b = _normal(level, own, shown, weight, residual, loose)
        h, b = (np.stack([t[group == g].sum(0) for g in range(bodies)]) / variance for t in (h, b))
        pull = np.stack([np.bincount(group, a, bodies) for a in (tight * away).T], 1)
        h = h + share[:, None, None] * np.diag(tight)
        h += damping[:, None, None] * np.einsum("gii,ij->gij", h, np.eye(6))
        q = np.linalg.solve(h, (b - pull)[..., None])[..., 0]
        size = np.maximum(np.linalg.norm(q[:, :3], axis=1), np.linalg.norm(q[:, 3:], axis=1))
        q *= np.minimum(1, FARTHEST / np.maximum(size, 1e-9))[:, None]
        tried = _turned(q / ([radius] * 3 + [1.0] * 3), inner)[group] @ poses
        found = judged(tried)
        better = found[0] < cost
        slices, pixels = better[group], torch.from_numpy(better[group][level.of])
        poses, inner = np.where(slices[:, None, None], tried, poses), np.where(better[:, None], inner + q[:, 3:], inner)
        cost, gain = np.where(better, found[0], cost), np.where(slices, found[1], gain)
        residual, shown = torch.where(pixels, found[2], residual), torch.where(pixels, found[3], shown)
        slope = torch.where(pixels[:, None], found[4], slope)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-4, 1e3)
    return poses, gain, damping


def _normal(level: Level, own: Tensor, shown: Tensor, weight: Tensor, residual: Tensor,
            loose: float) -> tuple[np.ndarray, np.ndarray]:
    """[N, 6, 6] and [N, 6] of each slice, with its gain eliminated."""
    h, b = [], []
    sizes = level.count.tolist()
    for j, v, w, r in zip(*(t.split(sizes) for t in (own, shown, weight, residual)), strict=True):
        wj, wv = w[:, None] * j, w * v
        line = (wv @ j).double()  # at the best gain the gain's own slope is zero
        h.append((j.T @ wj).double() - torch.outer(line, line) / (float(wv @ v) + loose))
        b.append((wj.T @ r).double())
    return torch.stack(h).numpy(), torch.stack(b).numpy()


def _turned(q: Float[np.ndarray, "G 6"], about: Float[np.ndarray, "G 3"]) -> Poses:
    """Maps of the world that turn by rotation vectors about points and shift."""
    m = np.tile(np.eye(4), (len(q), 1, 1))
    m[:, :3, :3] = Rotation.from_rotvec(q[:, :3]).as_matrix()
    m[:, :3, 3] = about + q[:, 3:] - np.einsum("nij,nj->ni", m[:, :3, :3], about)
    return m


def _carried(poses: Poses, x: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Points, each by its own map."""
    return np.einsum("nij,nj->ni", poses[:, :3, :3], x) + poses[:, :3, 3]


def _deviation(poses: Poses, rest: Poses, middles: Float[np.ndarray, "N 3"], radius: float) -> Float[np.ndarray, "N 6"]:
    """Turn, in mm at `radius`, and shift of the middle, mm, from a slice's rest."""
    turn = Rotation.from_matrix(poses[:, :3, :3] @ np.swapaxes(rest[:, :3, :3], 1, 2)).as_rotvec()
    return np.concatenate([radius * turn, _carried(poses, middles) - _carried(rest, middles)], 1)


def farther(before: Poses, after: Poses, middles: Float[np.ndarray, "N 3"], times: float) -> Poses:
    """The same change of every pose, so many times as large: turned about and shifted with the slice's middle."""
    turn = Rotation.from_matrix(after[:, :3, :3] @ np.swapaxes(before[:, :3, :3], 1, 2)).as_rotvec()
    start = _carried(before, middles)
    return _turned(times * np.concatenate([turn, _carried(after, middles) - start], 1), start) @ before


def placed(case: Slices, poses: Poses, every: int = 1) -> Float[np.ndarray, "P 3"]:
    """Where the pixels of all slices lie, mm; or every so many of them."""
    of = np.concatenate([np.full(int(s.mask.sum()), n) for n, s in enumerate(case.slices)])[::every]
    return _carried(poses[of], case.points()[::every])


def moved(case: Slices, a: Poses, b: Poses) -> Float[np.ndarray, "N"]:
    """How far the pixels of each slice lie apart in two sets of poses, mm, in the mean."""
    of = np.concatenate([np.full(int(s.mask.sum()), n) for n, s in enumerate(case.slices)])
    x = case.points()
    far = np.linalg.norm(_carried(a[of], x) - _carried(b[of], x), axis=1)
    return np.bincount(of, far) / np.bincount(of)


def fixed(poses: Poses, case: Slices, rest: Poses, worth: Float[np.ndarray, "N"]) -> Poses:
    """The same motion of slices against one another, with none of them all: the rigid map is taken away that carries rest best to poses."""
    of = np.concatenate([np.full(int(s.mask.sum()), n) for n, s in enumerate(case.slices)])
    x = case.points()
    return rigid_between(_carried(poses[of], x), _carried(rest[of], x), worth[of]) @ poses


def rigid_between(a: Float[np.ndarray, "P 3"], b: Float[np.ndarray, "P 3"], weight: Float[np.ndarray, "P"]) -> Float[np.ndarray, "4 4"]:
    """The rigid map that carries points a to points b with the least weighted sum of squares (Kabsch 1976)."""
    total = weight.sum()
    ca, cb = weight @ a / total, weight @ b / total
    u, _, v = np.linalg.svd((weight[:, None] * (b - cb)).T @ (a - ca))
    turn = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = turn, cb - turn @ ca
    return found


def covering(grid: Grid, points: Float[np.ndarray, "P 3"], margin: float) -> tuple[Grid, tuple[slice, slice, slice]]:
    """The grid, cut or grown by whole voxels until it holds itself and all points with a margin (mm); and where the grid lies in it."""
    index, rim = grid.index(points), margin / grid.spacing
    low = np.floor(np.minimum(index.min(0) - rim, 0)).astype(int)
    high = np.ceil(np.maximum(index.max(0) + rim, np.array(grid.shape) - 1)).astype(int)
    inner = [slice(int(-a), int(-a) + n) for a, n in zip(low, grid.shape, strict=True)]
    return grid.crop(low, high - low + 1), (inner[0], inner[1], inner[2])
