"""How good a warp is: landmarks, labels, vessels, folds. Lengths are mm; a warp is u with phi(x) = x + u(x), from the fixed to the moving image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from ..errors import InputError
from ..fields import Field
from ..losses.regularity import LEAST
from ..solve.determinants import Determinants
from ..space import Grid
from .metrics import Image, Mask

Displacement = Callable[[Tensor], Tensor]  # [N, 3] mm to [N, 3] mm: a Field, a Volume of three channels, a function
Points = Float[np.ndarray, "N 3"]
Distances = Float[np.ndarray, "N"]
Labels = Integer[np.ndarray, "_ _ _"]  # whether two have one shape is said by an error of ours
Region = Bool[np.ndarray, "_ _ _"]
_CHUNK = 1 << 15  # points at a time: with their slopes 130 MB in a layer of 256 units


# ---- landmarks


def tre(warp: Displacement, fixed: Points, moving: Points) -> Distances:
    """Target registration error |x + u(x) - y| of landmark pairs (x, y) in mm, sub-voxel."""
    return np.linalg.norm(moved(warp, fixed) - moving, axis=1)


def tre_snapped(warp: Displacement, fixed: Points, moving: Points, grid: Grid) -> Distances:
    """The same by DIR-Lab's convention: x + u(x) is first rounded to the nearest voxel centre of the moving image, whose grid is given.

    Their landmarks are voxel centres, so rounding forgives what is below half a voxel: on 4DCT it is 0.11 to 0.15 mm lower. Give both.
    """
    snapped = grid.world(np.rint(grid.index(moved(warp, fixed))))
    return np.linalg.norm(snapped - moving, axis=1)


def summary(distances: Distances) -> dict[str, float]:
    """mean, median, p95, max in mm, and count.

    Raises:
        InputError: if there are none.
    """
    if not len(distances):
        raise InputError("there are no landmarks to score", "do they lie inside the images?")
    return {"mean": float(distances.mean()), "median": float(np.median(distances)), "p95": float(np.percentile(distances, 95)),
            "max": float(distances.max()), "count": float(len(distances))}


def inverse_consistency(warp: Displacement, back: Displacement, points: Points) -> float:
    """Mean of |phi_back(phi(x)) - x| in mm over points of the fixed image."""
    return float(np.linalg.norm(moved(back, moved(warp, points)) - points, axis=1).mean())


@torch.no_grad()
def moved(warp: Displacement, points: Points) -> Points:
    """x + u(x), the sum in double precision."""
    device = next((b.device for b in warp.buffers()), torch.device("cpu")) if isinstance(warp, nn.Module) else torch.device("cpu")
    parts = torch.as_tensor(points, dtype=torch.float32, device=device).split(_CHUNK)
    return points + torch.cat([warp(part) for part in parts]).cpu().numpy().astype(np.float64)


# ---- regularity


def folds(warp: Field, grid: Grid, mask: Bool[Tensor, "I J K"], finer: int = 2) -> float:
    """The share of points with det grad phi <= 0; see `regularity`."""
    return regularity(warp, grid, mask, finer)["folds"]


def sd_log_jacobian(warp: Field, grid: Grid, mask: Bool[Tensor, "I J K"], finer: int = 2) -> float:
    """The standard deviation of log det grad phi; see `regularity`."""
    return regularity(warp, grid, mask, finer)["sd_log_jacobian"]


@torch.no_grad()
def regularity(warp: Field, grid: Grid, mask: Bool[Tensor, "I J K"], finer: int = 2) -> dict[str, float]:
    """What a warp does to small volumes, from its analytic Jacobian, in one sweep.

    Args:
        grid, mask: where: a voxel counts with all its points.
        finer: points per voxel along each axis; a slice keeps its one across.

    Returns:
        folds: the share of points with det grad phi <= 0.
        sd_log_jacobian: the standard deviation of log max(det grad phi, 1e-3): folds would have no logarithm, and count as 1e-3.
        least: the smallest determinant.

    Raises:
        InputError: for an empty mask.
    """
    count, folded, total, square, least = 0, 0, 0.0, 0.0, float("inf")
    for d in _determinants(warp, grid, mask, finer):
        logs = d.double().clamp_min(LEAST).log()
        count, folded = count + len(d), folded + int((d <= 0).sum())
        total, square, least = total + float(logs.sum()), square + float(logs.square().sum()), min(least, float(d.min()))
    mean = total / count
    return {"folds": folded / count, "sd_log_jacobian": max(square / count - mean**2, 0.0) ** 0.5, "least": least}


def _determinants(warp: Field, grid: Grid, mask: Bool[Tensor, "I J K"], finer: int) -> Iterator[Float[Tensor, "n"]]:
    """det grad phi at the points of the mask, slab by slab of a lattice around it."""
    if tuple(mask.shape) != grid.shape:
        raise InputError(f"a mask of {tuple(mask.shape)} voxels does not fit {grid}")
    where = torch.nonzero(mask)
    if not len(where):
        raise InputError("the mask is empty: nothing to score")
    lo, size = where.amin(0), where.amax(0) - where.amin(0) + 1
    mask = mask[tuple(slice(int(a), int(a + n)) for a, n in zip(lo, size, strict=True))]
    times = [1 if grid.is_2d and d == 2 else finer for d in range(3)]
    lattice = _finer(grid.crop(lo.numpy(), size.numpy()), times)
    for d in range(1, 3):
        mask = mask.repeat_interleave(times[d], d)
    everywhere = Determinants(warp, lattice)
    for i, stop in everywhere.slabs():
        inside = mask[torch.arange(i, stop) // times[0]]
        if inside.any():
            yield everywhere.at(i, stop, inside)


def _finer(grid: Grid, times: list[int]) -> Grid:
    """The same field of view in `times` voxels for each along i, j, k."""
    affine = grid.affine.copy()
    affine[:3, :3] /= times
    affine[:3, 3] = grid.world(-0.5 + 0.5 / np.array(times))
    return Grid((grid.shape[0] * times[0], grid.shape[1] * times[1], grid.shape[2] * times[2]), affine)


# ---- labels and vessels


def dice(a: Labels, b: Labels, labels: Iterable[int] | None = None) -> dict[int, float]:
    """2 |A and B| / (|A| + |B|) of each label, from 0 to 1; nan where neither image has it.

    Args:
        a, b: label images on one grid, 0 for none.
        labels: None takes all that one of them has, but for 0.

    Raises:
        InputError: for different shapes, or labels below 0.
    """
    if a.shape != b.shape:
        raise InputError(f"label images of {a.shape} and {b.shape} voxels", "resample one onto the other first, by the nearest voxel")
    if min(a.min(), b.min()) < 0:
        raise InputError("labels count from 0 for none, one here is negative")
    top = int(max(a.max(), b.max())) + 1
    size = np.bincount(a.ravel(), minlength=top) + np.bincount(b.ravel(), minlength=top)
    shared = np.bincount(a[a == b], minlength=top)
    asked = np.flatnonzero(size[1:]) + 1 if labels is None else labels
    return {int(n): float(2 * shared[n] / size[n]) if 0 <= n < top and size[n] else float("nan") for n in asked}


def hd95(a: Region, b: Region, spacing: Float[np.ndarray, "3"]) -> float:
    """Robust Hausdorff distance in mm: the larger of the two directed 95th percentiles.

    Directed from A to B: over all border voxels of A, the distance of its centre to the nearest centre of a border voxel of B. A border voxel has
    a face neighbour outside the mask; beyond the image is outside. A slice (K = 1) is measured in its plane. Others pool both directions, or
    measure surfaces; their numbers differ.

    Args:
        a, b: on one grid.
        spacing: [3] mm along its axes.

    Raises:
        InputError: for different shapes, or a mask that is empty.
    """
    if a.shape != b.shape:
        raise InputError(f"masks of {a.shape} and {b.shape} voxels", "resample one onto the other first")
    if not (a.any() and b.any()):
        raise InputError("a mask is empty: it has no border to measure from")
    where = scipy.ndimage.find_objects((a | b).astype(np.uint8))[0]  # far voxels change nothing
    parts, ndim = [a[where], b[where]], 3
    if a.shape[2] == 1:
        parts, ndim = [part[..., 0] for part in parts], 2
    edges = [part & ~scipy.ndimage.binary_erosion(part) for part in parts]
    far = [scipy.ndimage.distance_transform_edt(~edge, sampling=spacing[:ndim]) for edge in edges]
    return float(max(np.percentile(far[1][edges[0]], 95), np.percentile(far[0][edges[1]], 95)))


def vesselness_overlap(fixed: Image, warped: Image, mask: Mask, share: float = 0.05) -> float:
    """Dice of the strongest vessels of two images, a check without landmarks: 1 where they lie on one another, `share` by chance.

    Vessels are the `share` of the mask's voxels of greatest `vesselness`. Low values can also mean that one image is noisier, so compare only
    warps of the same pair.

    Args:
        fixed, warped: the fixed and the warped moving image, on one grid.
        mask: the lung.

    Raises:
        InputError: for an empty mask, or an image with too few bright ridges in it.
    """
    count = int(np.ceil(share * mask.sum()))
    if not count:
        raise InputError("the mask is empty: nothing to score")
    strongest = []
    for image in (fixed, warped):
        strength = vesselness(image, mask)
        best = np.argpartition(strength, -count)[-count:]
        if not strength[best].min() > 0:
            raise InputError(f"less than {share:.0%} of the mask lies on bright ridges", "is it the image of a lung, and warped into its mask?")
        strongest.append(best)
    return len(np.intersect1d(strongest[0], strongest[1], assume_unique=True)) / count


def vesselness(image: Image, mask: Mask, scales: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Float[np.ndarray, "N"]:
    """At the voxels of the mask, how much the image looks like a bright tube, from 0 to 1, the most of several scales in voxels.

    Frangi et al. (MICCAI 1998), eq. 13 and 14, with alpha = beta = 1/2 and c half the greatest norm of the Hessian in the mask.
    """
    reach = int(np.ceil(4 * max(scales)))
    where = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in scipy.ndimage.find_objects(mask.astype(np.uint8))[0])
    part, inside = image[where].astype(np.float32), mask[where]
    best = np.zeros(int(mask.sum()))
    for scale in scales:
        hessian = np.empty((len(best), 3, 3), np.float32)
        for a, b in itertools.combinations_with_replacement(range(3), 2):
            orders = [int(d == a) + int(d == b) for d in range(3)]
            hessian[:, a, b] = hessian[:, b, a] = scale**2 * scipy.ndimage.gaussian_filter(part, scale, order=orders)[inside]
        values = np.linalg.eigvalsh(hessian).astype(np.float64)
        l1, l2, l3 = np.take_along_axis(values, np.abs(values).argsort(1), 1).T
        size = (values**2).sum(1)
        if not size.max() > 0:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            plate, blob = (l2 / l3) ** 2, l1**2 / np.abs(l2 * l3)
            tube = (1 - np.exp(-2 * plate)) * np.exp(-2 * blob) * (1 - np.exp(-2 * size / size.max()))
        best = np.maximum(best, np.where((l2 < 0) & (l3 < 0), tube, 0.0))
    return best
