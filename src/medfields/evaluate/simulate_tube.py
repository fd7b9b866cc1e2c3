"""A peristalsis phantom: a tube in two S, whose wall contracts in a wave that travels along it, and pushes the contents on.

A measurement must not be made by the code that undoes it. So nothing here is shared with `TubeChart`: the curve is a meander in a plane, whose
directions are known in closed form, both frames are functions that are evaluated at eight points of every voxel and averaged, and the true
displacement is the motion itself, in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from ..cases import Pair
from ..space import Grid, Volume

Points = Float[np.ndarray, "N 3"]


@dataclass(frozen=True)
class Bowel:
    """The tube, in mm; everything is a function of arc length l and of the distance from the centreline.

    Args:
        period, turn: of the meander, mm along the curve and radians: the direction swings as turn cos(2 pi l / period) about z (Langbein & Leopold
            1966), for two periods; then the tube goes on straight.
        lumen, wall: radius of the contents, thickness of the wall.
        surroundings: distance from the centreline at which nothing moves any more; less than the radius of curvature, 19 mm.
        wavelength: of the contractions.
        squeeze: the lumen's radius at rest is up to 1 + squeeze times that where it is contracted; below 1.25, or space folds.
        push: amplitude of the motion along the tube.
    """

    period: float = 203.0
    turn: float = 1.7
    lumen: float = 8.0
    wall: float = 3.0
    surroundings: float = 17.0
    wavelength: float = 80.0
    squeeze: float = 0.8
    push: float = 5.0

    def curve(self) -> tuple[Float[np.ndarray, "K 2"], Float[np.ndarray, "K 2"], Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
        """(y, z), unit tangent, curvature (1/mm, towards the left) and arc length at points 0.02 mm apart; l = 0 in the middle, at the origin."""
        arc = np.arange(-2 * self.period, 2 * self.period + 0.01, 0.02)
        k, on = 2 * np.pi / self.period, np.abs(arc) < self.period
        angle = self.turn * np.where(on, np.cos(k * arc), 1.0)
        tangent = np.stack([np.sin(angle), np.cos(angle)], -1)
        yz = np.concatenate([np.zeros((1, 2)), np.cumsum((tangent[1:] + tangent[:-1]) / 2 * 0.02, 0)])
        return yz - yz[len(yz) // 2], tangent, np.where(on, self.turn * k * np.sin(k * arc), 0.0), arc

    def strength(self, rho: np.ndarray) -> np.ndarray:
        """1 on the centreline, 0 where nothing moves."""
        return np.clip(1 - (rho / self.surroundings) ** 2, 0, None) ** 2

    def squeezed(self, arc: np.ndarray, phase: float) -> np.ndarray:
        """How much narrower the tube is, at a phase of the wave in periods."""
        return self.squeeze * np.cos(np.pi * (arc / self.wavelength - phase)) ** 4

    def pushed(self, arc: np.ndarray, phase: float) -> np.ndarray:
        """mm along the tube."""
        return self.push * np.sin(2 * np.pi * (arc / self.wavelength - phase))


class Wave:
    """The motion of a `Bowel` in world coordinates."""

    def __init__(self, bowel: Bowel):
        self.bowel = bowel
        self.yz, self.tangent, self.bend, self.arc = bowel.curve()
        self.tree = cKDTree(self.yz[::20])

    def along(self, x: Points) -> tuple[np.ndarray, np.ndarray]:
        """Arc length [N] and the two distances across [N, 2] of world points: out of the plane of the curve, and in it."""
        arc = self.arc[::20][self.tree.query(x[:, 1:])[1]]
        for _ in range(4):  # Newton
            p, t, n = self._frame(arc)
            d = x[:, 1:] - p
            b = (d * n).sum(-1)
            arc = arc + (d * t).sum(-1) / np.maximum(1 - np.interp(arc, self.arc, self.bend) * b, 0.1)
        p, t, n = self._frame(arc)
        return arc, np.stack([x[:, 0], ((x[:, 1:] - p) * n).sum(-1)], -1)

    def world(self, arc: np.ndarray, across: np.ndarray) -> Points:
        """The way back."""
        p, _, n = self._frame(arc)
        return np.concatenate([across[:, :1], p + across[:, 1:] * n], -1)

    def _frame(self, arc: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(y, z), tangent and left normal at arc lengths."""
        p, t = (np.stack([np.interp(arc, self.arc, c) for c in rows.T], -1) for rows in (self.yz, self.tangent))
        return p, t, np.stack([-t[:, 1], t[:, 0]], -1)

    def at_rest(self, x: Points, phase: float) -> Points:
        """Where a point lies when nothing is contracted, if it lies at x now."""
        arc, across = self.along(x)
        rho = np.linalg.norm(across, axis=-1)
        w = self.bowel.strength(rho)
        moved = self.world(arc + w * self.bowel.pushed(arc, phase), across * (1 + w * self.bowel.squeezed(arc, phase))[:, None])
        return np.where((w > 0)[:, None], moved, x)

    def from_rest(self, x: Points, phase: float) -> Points:
        """Its inverse, by fixed points along and across in turn."""
        to, across = self.along(x)
        wide = np.linalg.norm(across, axis=-1)
        arc, rho = to, wide
        for _ in range(80):
            w = self.bowel.strength(rho)
            arc, rho = to - w * self.bowel.pushed(arc, phase), wide / (1 + w * self.bowel.squeezed(arc, phase))
        moved = self.world(arc, across * (rho / np.maximum(wide, 1e-9))[:, None])
        return np.where((wide < self.bowel.surroundings)[:, None], moved, x)


def peristalsis(seed: int = 0, *, shape: tuple[int, int, int] = (40, 96, 96), spacing: float = 2.0, phase: float = 0.25, noise: float = 0.005,
                bowel: Bowel | None = None) -> tuple[Pair, Volume, Volume]:
    """Two frames of the wave, `phase` of a period apart, with a tube radius that holds the wall and 2 mm of its surroundings.

    Both are read cubically: the wall is 1.5 voxels thick, and linear reading blurs it by more than what is to be compared.

    Args:
        seed: of the texture and the noise.
        shape, spacing: of both images, centred on the world's origin; mm.
        phase: of the moving image; that of the fixed one is 0.
        noise: standard deviation; the wall has 0.9, the contents about 0.4.
        bowel: the tube; it fits the default shape.

    Returns:
        the pair with its centreline, the true displacement in mm, and the pair's mask: 1 inside `tube_radius` where the moving image sees the same
        place, else 0.
    """
    bowel = bowel or Bowel()
    grid = Grid.from_spacing(shape, spacing, [-(n - 1) / 2 * spacing for n in shape])
    wave, rng = Wave(bowel), np.random.default_rng(seed)
    texture = _texture(rng, 30)
    centres = grid.world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)).reshape(-1, 3)
    distance = np.linalg.norm(wave.along(centres)[1], axis=-1)
    seen = distance < bowel.surroundings + 2 * spacing  # beyond, one even tissue that nobody compares

    def frame(at: float) -> Volume:
        total = np.full(len(centres), 0.5)
        total[seen] = 0
        for corner in np.ndindex(2, 2, 2):
            rest = wave.at_rest(centres[seen] + spacing * (np.array(corner) / 2 - 0.25), at)
            total[seen] += _tissue(texture(rest), np.linalg.norm(wave.along(rest)[1], axis=-1), bowel) / 8
        return Volume((total + noise * rng.normal(size=len(total))).reshape(shape), grid, interpolation="cubic")

    fixed, moving = frame(0.0), frame(phase)
    radius = bowel.lumen + bowel.wall + 2
    truth = np.zeros_like(centres)
    truth[seen] = wave.from_rest(wave.at_rest(centres[seen], 0.0), phase) - centres[seen]
    stays = (np.abs(centres + truth) < spacing * (np.array(shape) - 1) / 2).all(-1)
    tube = Volume(((distance < radius) & stays).reshape(shape).astype(np.float32), grid)
    shown = (np.abs(wave.yz) < spacing * np.array(shape[1:]) / 2).all(-1)
    line = np.concatenate([np.zeros((shown.sum(), 1)), wave.yz[shown]], 1)[:: max(1, int(shown.sum() / 120))]
    pair = Pair(fixed, moving, tube, centreline=line, tube_radius=radius, name=f"peristalsis {seed}")
    return pair, Volume(truth.T.reshape(3, *shape), grid, "mm"), tube


def _tissue(texture: np.ndarray, rho: np.ndarray, bowel: Bowel) -> np.ndarray:
    """Contents, a bright wall and what lies around, with soft borders of 3 mm."""
    inner, outer = ((1 + np.tanh((rho - at) / 1.4)) / 2 for at in (bowel.lumen, bowel.lumen + bowel.wall))
    return (0.4 + 0.2 * texture) * (1 - inner) + (0.9 + 0.05 * texture) * inner * (1 - outer) + (0.5 + 0.06 * texture) * outer


def _texture(rng: np.random.Generator, waves: int):  # type: ignore[no-untyped-def]
    """A smooth random function of the world, of about unit variance: plane waves 14 to 35 mm long."""
    direction = rng.normal(size=(waves, 3))
    k = 2 * np.pi / rng.uniform(14, 35, (waves, 1)) * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    start = rng.uniform(0, 2 * np.pi, waves)
    return lambda x: np.sqrt(2 / waves) * sum(np.cos(x @ a + b) for a, b in zip(k, start, strict=True))
