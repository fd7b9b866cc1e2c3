"""X-ray projections of a finely sampled volume.

A measurement must not be made by the code that undoes it. So this module shares nothing with the operators that reconstruct but the
`Geometry`: it reads the volume at its own resolution, trilinearly or by cubic splines, at midpoints of equal steps along several rays of
each pixel, where `Projector` sums bilinear values on planes of the wanted lattice. Lengths are mm, attenuation is 1/mm, line integrals have
no unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numba
import numpy as np
import scipy.ndimage
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from scipy.special import logsumexp

from ..errors import InputError
from ..kernels.dispatch import jit, use_threads
from ..operators.detector import gaussian, poisson
from ..operators.materials import decompose, mass_attenuation
from ..operators.spectrum import Spectrum
from ..space import Geometry, Volume
from .simulate import paint_lesions

Reading = Literal["linear", "cubic"]
PAD = 2  # voxels that the cubic spline needs around the lattice


def project(volume: Volume, geometry: Geometry, *, subrays: int = 4, step: float = 0.5, intensities: bool = False,
            interpolation: Reading = "linear") -> Float[np.ndarray, "V R C"]:
    """Line integrals without noise, averaged over each pixel.

    Up to the outer faces of the border voxels the volume continues as it is there; beyond, it is zero.

    Args:
        volume: attenuation in 1/mm, one channel; K = 1 is a slice, constant through its thickness.
        geometry: the views; rays of a cone beam end at the detector.
        subrays: rays of a pixel; side by side along its columns if the volume is a slice, else over both directions (4: 2 x 2).
        step: voxel sides (the finest one's) between two samples of a ray, at most.
        intensities: average what reaches the pixel, exp(-p), and take -log, as a detector does; otherwise average p.
        interpolation: between the voxels, "linear" or "cubic" (the interpolating cubic B-spline; half as fast).

    Returns:
        float32.

    Raises:
        InputError: for several channels, less than one ray, or a step that is not positive.
    """
    rays = _rays([volume], geometry, subrays, step, interpolation)
    return np.stack([_mean(p, intensities)[0] for p in rays]).astype(np.float32)


def polychromatic(volume: Volume, geometry: Geometry, spectrum: Spectrum, *, metal: Mapping[str, Volume] | None = None,
                  reference_kev: float = 70.0, subrays: int = 4, step: float = 0.5,
                  interpolation: Reading = "linear") -> Float[np.ndarray, "V R C"]:
    """What a detector reads of a tube's whole spectrum, -log sum_E eta_E exp(-p_E), without noise; intensities are averaged over each pixel.

    Args:
        volume: attenuation in 1/mm at `reference_kev`; `materials.decompose` tells water from bone.
        spectrum: shares eta of the detected signal.
        metal: masks by material, see `decompose`.
        reference_kev: the energy at which a monochromatic beam would see `volume`.
        geometry, subrays, step, interpolation: see `project`.
    """
    parts = decompose(volume, reference_kev, metal=metal)
    per_gram = np.stack([mass_attenuation(m, spectrum.energies) for m in parts]) / 10  # times g / cm^3 times mm is no unit
    present = np.array(spectrum.shares) > 0
    log_share, views = np.log(np.array(spectrum.shares)[present]), []
    for amount in _rays(list(parts.values()), geometry, subrays, step, interpolation):
        by_energy = np.tensordot(per_gram[:, present], amount, (0, 0)) - log_share[:, None, None, None, None]
        views.append(-logsumexp(-by_energy, axis=(0, 2, 4)) + np.log(amount.shape[2] * amount.shape[4]))
    return np.stack(views).astype(np.float32)


def moving(volume: Volume, geometry: Geometry, poses: Float[np.ndarray, "V 6"], about: Sequence[float] | np.ndarray | None = None, *,
           subrays: int = 4, step: float = 0.5, intensities: bool = False, interpolation: Reading = "linear") -> Float[np.ndarray, "V R C"]:
    """Projections of a subject that lies elsewhere in every view.

    Args:
        poses: rotation vectors in radians and shifts in mm, one for each view: x -> R (x - about) + about + t moves the subject.
        about: mm; None is the middle of the volume.
        volume, geometry, subrays, step, intensities, interpolation: see `project`.

    Raises:
        InputError: if there is not one pose for each view.
    """
    seen = followed(geometry, poses, volume.grid.centre if about is None else about)
    return project(volume, seen, subrays=subrays, step=step, intensities=intensities, interpolation=interpolation)


def followed(geometry: Geometry, poses: Float[np.ndarray, "V 6"], about: Sequence[float] | np.ndarray) -> Geometry:
    """The views as the subject of `moving` meets them: with this geometry its projections are those of a subject at rest."""
    if len(poses) != geometry.views:
        raise InputError(f"{len(poses)} poses do not fit {geometry.views} views")
    back = Rotation.from_rotvec(poses[:, :3]).as_matrix().transpose(0, 2, 1)
    return geometry.moved(back, -np.einsum("nij,nj->ni", back, poses[:, 3:]), about)


def add_noise(projections: Float[np.ndarray, "V R C"], photons: float | None, seed: int | Sequence[int] = 0, *, scatter: float = 0.0,
              electronic: float = 0.0, floor: float = 1.0, decibel: float | None = None) -> Float[np.ndarray, "V R C"]:
    """Noisy line integrals; the same seed gives the same noise.

    Args:
        projections: line integrals without noise.
        photons: in a pixel of the open beam; None adds no photon noise, and then scatter, electronic noise and floor do not count.
        scatter, electronic, floor: photons, see `detector.poisson`.
        decibel: white noise besides, of this signal-to-noise ratio.
    """
    rng = np.random.default_rng(seed)
    noisy = projections if photons is None else poisson(projections, photons, rng, scatter=scatter, electronic=electronic, floor=floor)
    return noisy if decibel is None else gaussian(noisy, decibel, rng)


def lesion(volume: Volume, centre: Sequence[float] | np.ndarray, radius_mm: float, delta: float, edge_mm: float = 0.5) -> Volume:
    """The volume with a ball added, in a slice a disc: delta / (1 + exp((|x - centre| - radius) / edge)), see `simulate.paint_lesions`.

    Args:
        centre: mm; in a slice its height does not count.
        delta: in the unit of the volume; negative darkens.
    """
    index = volume.grid.index(np.asarray(centre))
    if volume.grid.is_2d:
        index[2] = 0
    return paint_lesions(volume, volume.grid.world(index)[None], radius_mm, delta, edge_mm)


def warp(volume: Volume, amplitude_mm: float, seed: int = 0, *, wavelength_mm: float = 60.0) -> Volume:
    """The subject on another day: read at x + d(x), where d is a smooth random displacement within the volume's axes.

    d is a cubic spline through independent normal numbers `wavelength_mm` apart, scaled to `amplitude_mm` where it is longest; in a slice it
    stays in the plane. Values are read by cubic splines and kept within the volume's own range.

    Raises:
        InputError: if the space would fold.
    """
    rng, grid = np.random.default_rng(seed), volume.grid
    knots = [math.ceil((n - 1) * s / wavelength_mm) + 4 for n, s in zip(grid.shape, grid.spacing, strict=True)]
    noise = rng.standard_normal((3, *knots))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")).astype(np.float64)
    at = index * (grid.spacing / wavelength_mm)[:, None, None, None] + 1.5
    shift = np.stack([scipy.ndimage.map_coordinates(part, at, order=3, mode="mirror") for part in noise])
    if grid.is_2d:
        shift[2] = 0
    shift *= amplitude_mm / np.sqrt((shift**2).sum(0)).max() / grid.spacing[:, None, None, None]  # voxels
    slopes = [np.stack([np.gradient(s, axis=d) if n > 1 else np.zeros_like(s) for d, n in enumerate(grid.shape)], -1) for s in shift]
    if np.linalg.det(np.stack(slopes, -2) + np.eye(3)).min() <= 0:
        raise InputError(f"displacements of {amplitude_mm:g} mm fold the space within {wavelength_mm:g} mm", "less amplitude or a longer wavelength")
    moved = []
    for channel in volume.data.cpu().numpy().astype(np.float64):
        read = scipy.ndimage.map_coordinates(channel, index + shift, order=3, mode="nearest")
        moved.append(np.clip(read, channel.min(), channel.max()))
    return volume.with_data(np.stack(moved))


def _mean(p: np.ndarray, intensities: bool) -> np.ndarray:
    """Over the rays of a pixel: [M, R, a, C, b] to [M, R, C]."""
    return -logsumexp(-p, axis=(2, 4)) + np.log(p.shape[2] * p.shape[4]) if intensities else p.mean((2, 4))


def _rays(volumes: Sequence[Volume], geometry: Geometry, subrays: int, step: float, interpolation: Reading) -> Iterator[np.ndarray]:
    """For each view the line integrals [M, R, a, C, b] of M volumes on one grid along a x b rays of each pixel."""
    grid = volumes[0].grid
    if subrays < 1 or not step > 0:
        raise InputError(f"{subrays} rays of a pixel with {step:g} voxels between samples cannot be", "at least one ray, a step above 0")
    if any(v.channels != 1 for v in volumes):
        raise InputError(f"a volume of one channel can be projected, this one has {volumes[0].channels}")
    a = 1 if grid.is_2d else max(d for d in range(1, math.isqrt(subrays) + 1) if subrays % d == 0)
    b, (rows, columns) = subrays // a, geometry.shape
    fine, turn = geometry.finer(b, a), np.linalg.inv(grid.affine)[:3, :3].T
    cubic = interpolation == "cubic"
    values = [_coefficients(v.data[0].cpu().numpy()) if cubic else np.ascontiguousarray(v.data[0].cpu().numpy()) for v in volumes]
    kernel, shape, mm = _cubic_rays if cubic else _linear_rays, np.array(grid.shape), step * float(grid.spacing.min())
    use_threads()
    for view in range(geometry.views):
        origin, direction = (np.asarray(x).reshape(-1, 3) for x in fine.rays(view))
        start, stop = np.full(len(origin), -1e30), np.full(len(origin), 1e30)
        if geometry.beam == "cone":
            start, stop = np.zeros(len(origin)), np.linalg.norm(fine.pixels(view).reshape(-1, 3) - origin, axis=-1)
        o, d, out = grid.index(origin), direction @ turn, np.zeros((len(values), len(origin)))
        for part, result in zip(values, out, strict=True):
            kernel(part, shape, o, d, start, stop, mm, result)
        yield out.reshape(len(values), rows, a, columns, b)


def _coefficients(data: np.ndarray) -> np.ndarray:
    """Of the cubic B-spline through the voxels, with a mirrored border of PAD voxels along axes that are longer than one."""
    for axis, n in enumerate(data.shape):
        data = scipy.ndimage.spline_filter1d(data, 3, axis, output=np.float64, mode="mirror") if n > 1 else data
    index = [np.abs(np.arange(-PAD, n + PAD)) if n > 1 else np.zeros(1, dtype=int) for n in data.shape]
    index = [np.where(i > n - 1, 2 * (n - 1) - i, i).clip(0) for i, n in zip(index, data.shape, strict=True)]
    return np.ascontiguousarray(data[np.ix_(*index)], dtype=np.float32)


@jit()
def _inside(n, o, d, start, stop):  # type: ignore[no-untyped-def]
    """The part of [start, stop] mm in which the ray o + t d (voxels) runs between the outer faces of n voxels."""
    for axis in range(3):
        if abs(d[axis]) < 1e-12:
            if o[axis] < -0.5 or o[axis] > n[axis] - 0.5:
                return 1.0, 0.0
            continue
        a, b = (-0.5 - o[axis]) / d[axis], (n[axis] - 0.5 - o[axis]) / d[axis]
        start, stop = max(start, min(a, b)), min(stop, max(a, b))
    return start, stop


@jit()
def _linear(x, n, stride):  # type: ignore[no-untyped-def]
    """Where the lower of the two nodes next to x on an axis of n voxels is stored, the way to the other, and its weight; beyond the ends
    the last value. Unsigned, because Numba asks of every signed index whether it counts from the end."""
    if n == 1:
        return np.uint64(0), np.uint64(0), np.float32(0)
    x = min(max(x, 0.0), n - 1.0)
    i = min(int(x), n - 2)
    return np.uint64(i * stride), np.uint64(stride), np.float32(x - i)


@jit(parallel=True)
def _linear_rays(values, n, origin, direction, start, stop, step, out):  # type: ignore[no-untyped-def]
    """Integrals of a trilinear lattice along rays, in mm."""
    c = values.ravel()
    for ray in numba.prange(len(out)):
        o, d = origin[ray], direction[ray]
        begin, end = _inside(n, o, d, start[ray], stop[ray])
        if end <= begin:
            continue
        parts = math.ceil((end - begin) / step)
        h, total = (end - begin) / parts, 0.0
        for part in range(parts):
            t = begin + (part + 0.5) * h
            i, si, f = _linear(o[0] + t * d[0], n[0], n[1] * n[2])
            j, sj, g = _linear(o[1] + t * d[1], n[1], n[2])
            k, sk, e = _linear(o[2] + t * d[2], n[2], 1)
            at = i + j + k
            p = c[at] + e * (c[at + sk] - c[at])
            q = c[at + sj] + e * (c[at + sj + sk] - c[at + sj])
            at += si
            r = c[at] + e * (c[at + sk] - c[at])
            s = c[at + sj] + e * (c[at + sj + sk] - c[at + sj])
            p, r = p + g * (q - p), r + g * (s - r)
            total += p + f * (r - p)
        out[ray] = total * h


@jit()
def _spline(x, n):  # type: ignore[no-untyped-def]
    """The first of the nodes of a padded axis that matter at x, their number, and their cubic B-spline weights."""
    if n == 1:
        return 0, 1, (1.0, 0.0, 0.0, 0.0)
    i = math.floor(x)
    f = x - i
    g = 1 - f
    return int(i) - 1 + PAD, 4, (g * g * g / 6, (4 - 6 * f * f + 3 * f * f * f) / 6, (4 - 6 * g * g + 3 * g * g * g) / 6, f * f * f / 6)


@jit(parallel=True)
def _cubic_rays(values, n, origin, direction, start, stop, step, out):  # type: ignore[no-untyped-def]
    """Integrals of a cubic B-spline, given by its padded coefficients, along rays, in mm."""
    for ray in numba.prange(len(out)):
        o, d = origin[ray], direction[ray]
        begin, end = _inside(n, o, d, start[ray], stop[ray])
        if end <= begin:
            continue
        parts = math.ceil((end - begin) / step)
        h, total = (end - begin) / parts, 0.0
        for part in range(parts):
            t = begin + (part + 0.5) * h
            i, ni, wi = _spline(o[0] + t * d[0], n[0])
            j, nj, wj = _spline(o[1] + t * d[1], n[1])
            k, nk, wk = _spline(o[2] + t * d[2], n[2])
            for a in range(ni):
                for b in range(nj):
                    line = 0.0
                    for c in range(nk):
                        line += wk[c] * values[i + a, j + b, k + c]
                    total += wi[a] * wj[b] * line
        out[ray] = total * h
