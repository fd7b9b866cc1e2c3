"""Where two images lie on one another before they are deformed: by their centres, their masses, or an optimised rigid or affine map.

Affine maps are exponentials of their generators, in the axes of the fixed image, about the middle of what counts there, and in units of mm
at a typical distance from it. A rotation is the exponential of a rotation's generators, a slice leaves out those that leave its plane, and
no step can flatten space.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import GeometryError, InputError, UnknownName
from ..losses import ncc, nmi
from ..space import Grid, Volume
from .rigid import descend, endless

Similarity = Literal["ncc", "mi"]
KINDS = ("header", "centres", "moments", "rigid", "affine")
LEVELS = ((0.12, 0.2), (0.06, 0.5), (0.03, 1.0))  # width (sigma) of the blur in radii of the fixed image, 9, 5, 2 mm in a head; share of the points
TRIED = 3  # starts that are followed, of those that are most alike at the coarsest level
BINS = 24  # of the joint histogram
LEAST_SHARE = 0.5  # of the fixed points, that must lie in the moving image for full marks


def start_of(fixed: Volume, moving: Volume, kind: str, mask: Volume | None = None, moving_mask: Volume | None = None, *,
             similarity: Similarity = "mi", points: int = 20_000) -> Float[np.ndarray, "4 4"]:
    """The map from the fixed to the moving world, mm to mm, from which a registration starts.

    Args:
        fixed, moving: one channel each, both slices or both volumes, in any orientation and spacing.
        kind: "header" is no change; "centres" lays the middle of one lattice on that of the other; "moments" the centres of mass, of the masks
            if there are two, else of the images; "rigid" and "affine" go on from the best of these, and of rotations that lay the principal axes
            of the masses on one another: coarse to fine by L-BFGS, rigid at the coarsest level.
        mask: on any grid; where the fixed image counts.
        moving_mask: on any grid; it counts for the moments alone, for what lies around an organ says best where its border is.
        similarity: of "rigid" and "affine": "mi" is normalised mutual information, which serves all modalities, "ncc" the correlation, for one.
        points: of the fixed image that are compared at the finest level, about.

    Returns:
        M with M (x, 1) = (y, 1): the point x of the fixed image lies at y of the moving one.

    Raises:
        UnknownName: for a kind that does not exist.
        InputError: if a mask holds nothing inside its image.
        GeometryError: for a slice and a volume, or for slices whose planes are not parallel.
    """
    if kind not in KINDS:
        raise UnknownName("start", kind, KINDS)
    if kind == "header":
        return np.eye(4)
    if fixed.grid.is_2d != moving.grid.is_2d:
        raise GeometryError("one image is a slice, the other a volume", "cut the slice out of the volume first")
    mask, moving_mask = _inside(mask, "mask"), _inside(moving_mask, "moving mask")
    masses = (_weight(fixed), _weight(moving)) if mask is None or moving_mask is None else (mask, moving_mask)
    if kind == "centres":
        start = _shift(moving.grid.centre - fixed.grid.centre)
    elif kind == "moments":
        start = _shift(_mass(masses[1])[0] - _mass(masses[0])[0])
    else:
        start = _optimised(fixed, moving, mask, masses, kind == "affine", similarity, points)
    return _into_plane(start, fixed.grid, moving.grid)


@dataclass(frozen=True)
class Likeness:
    """How alike both images are at one width of blur, as a function of a map between their worlds."""

    moving: Volume
    x: Float[Tensor, "N 3"]
    values: Float[Tensor, "N"]
    cover: Volume  # one inside the moving image
    similarity: Similarity

    def __call__(self, start: Float[Tensor, "4 4"]) -> Float[Tensor, ""]:
        """In [-1, 1]: the similarity where both images are, times the share of the fixed points that is there, up to `LEAST_SHARE`."""
        m = start.to(self.x)
        y = self.x @ m[:3, :3].T + m[:3, 3]
        with torch.no_grad():
            inside = self.cover(y)[:, 0] > 0.5
        share = float(inside.float().mean())
        if share * len(self.x) < 32:
            return 0 * y.sum()
        a, b = self.moving(y[inside])[:, 0], self.values[inside]
        found = ncc(a, b) if self.similarity == "ncc" else nmi(a, b, BINS) - 1
        return found * min(1.0, share / LEAST_SHARE)


def _optimised(fixed: Volume, moving: Volume, mask: Volume | None, masses: tuple[Volume, Volume], affine: bool, similarity: Similarity,
               points: int) -> Float[np.ndarray, "4 4"]:
    """Several starts at the coarsest level; the best of them goes on."""
    place, flat = _near(mask) if mask is not None else fixed.grid, fixed.grid.is_2d
    radius = float(np.linalg.norm(np.ptp(place.corners(), axis=0)) / 4)
    frame = torch.eye(4, dtype=torch.float64)
    frame[:3, :3] = torch.tensor(np.linalg.qr(fixed.grid.directions)[0])
    frame[:3, 3] = torch.tensor(place.centre)
    levels = [_likeness(_clipped(fixed), _clipped(moving), mask, place, sigma * radius, similarity, int(share * points)) for sigma, share in LEVELS]
    starts = sorted((torch.tensor(s) for s in _starts(fixed, moving, masses)), key=lambda s: -float(levels[0](s)))
    tried = [_climb(levels[0], s, frame, _generators(False, flat, radius)) for s in _distinct(starts, frame, radius)[:TRIED]]
    best = max(tried, key=lambda s: float(levels[0](s)))
    for level in levels if affine else levels[1:]:
        best = _climb(level, best, frame, _generators(affine, flat, radius))
    # Never worse than what was given: at the finest level a start may still be the best there is.
    made = max((best, *starts), key=lambda s: float(levels[-1](s))).numpy().copy()
    made[3] = 0, 0, 0, 1  # without rounding
    return made


def _distinct(starts: list[Float[Tensor, "4 4"]], frame: Float[Tensor, "4 4"], radius: float) -> list[Float[Tensor, "4 4"]]:
    """Without those that put everything within a quarter of the coarsest blur of where a better one does."""
    scale = torch.diag(torch.tensor([radius, radius, radius, 1.0], dtype=torch.float64))
    kept: list[Tensor] = []
    for s in starts:
        if all(float(((s - t) @ frame @ scale)[:3].norm(dim=0).max()) > LEVELS[0][0] * radius / 4 for t in kept):
            kept.append(s)
    return kept


def _climb(level: Likeness, start: Float[Tensor, "4 4"], frame: Float[Tensor, "4 4"], generators: Float[Tensor, "K 4 4"]) -> Float[Tensor, "4 4"]:
    """The most similar map near a start."""
    back = torch.linalg.inv(frame)

    def at(q: Tensor) -> Tensor:
        return start @ frame @ torch.matrix_exp(torch.einsum("k,kab->ab", q, generators)) @ back

    return at(descend(lambda q: -1000 * level(at(q)), torch.zeros(len(generators), dtype=torch.float64))).detach()


def _generators(affine: bool, flat: bool, radius: float) -> Float[Tensor, "K 4 4"]:
    """Of the maps that are looked for: shifts of 1 mm, and turns, or all linear changes, that move a point at `radius` mm by 1 mm."""
    axes = range(2 if flat else 3)
    made = []
    for a, b in itertools.product(axes, axes) if affine else itertools.combinations(axes, 2):
        g = torch.zeros(4, 4, dtype=torch.float64)
        g[a, b] = 1 / radius
        if not affine:
            g[b, a] = -1 / radius
        made.append(g)
    for a in axes:
        g = torch.zeros(4, 4, dtype=torch.float64)
        g[a, 3] = 1
        made.append(g)
    return torch.stack(made)


def _likeness(fixed: Volume, moving: Volume, mask: Volume | None, place: Grid, mm: float, similarity: Similarity, points: int) -> Likeness:
    """Both images blurred by `mm`, and points of the fixed one, evenly spread, in the mask and a little beyond: its border tells much."""
    axes = 2 if fixed.grid.is_2d else 3
    share = 1.0 if mask is None else float((mask.data > 0.5).sum()) / place.size
    step = (share * float((place.spacing * place.shape)[:axes].prod()) / points) ** (1 / axes)
    x = place.with_spacing(np.maximum(place.spacing, step).tolist()).points().reshape(-1, 3)
    if mask is not None:
        x = x[_smooth(mask, mm)(x)[:, 0] > 0.1]
    thick = endless(_smooth(moving, mm), fixed)
    return Likeness(thick, x, _smooth(fixed, mm)(x)[:, 0], thick.with_data(torch.ones_like(thick.data)), similarity)


def _starts(fixed: Volume, moving: Volume, masses: tuple[Volume, Volume]) -> list[Float[np.ndarray, "4 4"]]:
    """Where the headers say, centre on centre, mass on mass, and with the principal axes of the masses on one another."""
    (a, ea), (b, eb) = (_mass(m) for m in masses)
    found = [np.eye(4), _shift(moving.grid.centre - fixed.grid.centre), _shift(b - a)]
    if not fixed.grid.is_2d:
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = eb @ np.diag(signs) @ ea.T
            if np.linalg.det(turn) > 0:
                found.append(_shift(b) @ np.block([[turn, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]) @ _shift(-a))
    return [_into_plane(s, fixed.grid, moving.grid) for s in found]


def _into_plane(start: Float[np.ndarray, "4 4"], fixed: Grid, moving: Grid) -> Float[np.ndarray, "4 4"]:
    """Of slices: the map with the shift across them that lays plane on plane."""
    if not fixed.is_2d:
        return start
    n = moving.normal(2)
    if abs(n @ fixed.normal(2)) < 1 - 1e-3:
        raise GeometryError("the planes of the two slices are not parallel", "registration of slices stays in their plane: turn one of them first")
    at = start[:3, :3] @ fixed.centre + start[:3, 3]
    return _shift(n * (n @ (moving.centre - at))) @ start


def _shift(t: np.ndarray) -> Float[np.ndarray, "4 4"]:
    made = np.eye(4)
    made[:3, 3] = t
    return made


def _inside(mask: Volume | None, what: str) -> Volume | None:
    """A mask of zeros and ones."""
    if mask is not None and not (mask.data > 0.5).any():
        raise InputError(f"the {what} is empty: no voxel is above 0.5", "a mask is 1 where the images are to be alike, else 0")
    return None if mask is None else mask.with_data((mask.data > 0.5).float())


def _weight(image: Volume) -> Volume:
    """How far an image is above its lowest value."""
    clipped = _clipped(image)
    return clipped.with_data(clipped.data - clipped.data.min())


def _mass(weight: Volume) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
    """Centre of mass in mm, and the principal axes as columns; the lattice's middle and axes of the world if there is no mass."""
    coarse = _smooth(weight, float((weight.grid.spacing * weight.grid.shape).max()) / 64)
    w = coarse.data[0].double().numpy().ravel()
    if w.sum() <= 0:
        return weight.grid.centre, np.eye(3)
    x = coarse.grid.points().double().numpy().reshape(-1, 3)
    centre = w @ x / w.sum()
    return centre, np.linalg.eigh(((x - centre) * w[:, None]).T @ (x - centre))[1]


def _clipped(image: Volume) -> Volume:
    """Without the brightest and darkest thousandth: metal would fill a histogram alone."""
    some = image.data.flatten()
    lo, hi = torch.quantile(some[:: max(1, len(some) // 1_000_000)], torch.tensor([1e-3, 1 - 1e-3]))
    return image.with_data(image.data.clamp(float(lo), float(hi))) if hi > lo else image


def _smooth(volume: Volume, mm: float) -> Volume:
    """Blurred to a width (sigma) of `mm`: blocks are averaged first, so that a large volume costs no more than a small one."""
    grid = volume.grid
    blocks = [max(1, min(n, int(mm / s))) if n > 1 else 1 for s, n in zip(grid.spacing, grid.shape, strict=True)]
    more = [-n % k for n, k in zip(grid.shape, blocks, strict=True)]
    padded = torch.nn.functional.pad(volume.data[None], [p for n in reversed(more) for p in (0, n)], mode="replicate")[0]
    coarse = torch.nn.functional.avg_pool3d(padded[None], tuple(blocks))[0, 0]
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world((np.array(blocks) - 1) / 2)
    affine[:3, :3] = affine[:3, :3] * blocks
    made = Grid(tuple(coarse.shape), affine)  # type: ignore[arg-type]  # three sizes
    # A block of k voxels has blurred by (k^2 - 1) / 12 of their squared size.
    left = [max(0.0, mm**2 - (k * k - 1) / 12 * s * s) ** 0.5 / (k * s) if n > 1 else 0.0
            for k, s, n in zip(blocks, grid.spacing, grid.shape, strict=True)]
    return Volume(scipy.ndimage.gaussian_filter(coarse.numpy(), left, mode="nearest"), made)


def _near(mask: Volume) -> Grid:
    """The part of a lattice that holds a mask, with a tenth of its size around it."""
    where = torch.nonzero(mask.data[0] > 0.5)
    lo, hi = where.amin(0).numpy(), where.amax(0).numpy() + 1
    pad = np.where(np.array(mask.grid.shape) > 1, np.ceil(0.1 * (hi - lo)), 0).astype(int)
    lo, hi = np.maximum(lo - pad, 0), np.minimum(hi + pad, mask.grid.shape)
    return mask.grid.crop(lo, hi - lo)
