"""Thick-slice acquisitions of a real, finely sampled volume.

A measurement must not be made by the code that undoes it. So this module shares nothing with the operators: it reads the truth by
quintic spline interpolation in double precision and integrates the slice profile at 49 nodes over four widths, where reconstructions use
linear or cubic interpolation and at most 16 nodes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import scipy.ndimage
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from ..cases import Stack
from ..errors import GeometryError, InputError
from ..space import Grid, Volume

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
NODES = 49
REACH = 2.0  # the profile is integrated to this many widths on either side: 4.7 standard deviations
PAD = 16  # voxels of mirrored border, so that the spline's own boundary condition is never felt


def stack_grid(cover: Grid, through: int, distance: float, *, in_plane: float | Sequence[float] | None = None,
               tilt: Sequence[float] = (0, 0, 0)) -> Grid:
    """The lattice of a stack that covers a region: slices along its last axis, centred on the region.

    Args:
        cover: the region, to the outer faces of its voxels.
        through: the axis (0, 1, 2) of `cover` along which the slices lie.
        distance: mm between slice centres.
        in_plane: mm, one or two numbers (for the two next axes in cyclic order); None takes the spacing of `cover` on those axes.
        tilt: rotation vector in degrees by which the whole stack is turned about the region's centre; the stack grows to cover it.
    """
    order = [(through + 1) % 3, (through + 2) % 3, through]
    spacing = np.array([*np.broadcast_to(cover.spacing[order[:2]] if in_plane is None else in_plane, 2), distance], dtype=np.float64)
    directions = Rotation.from_rotvec(tilt, degrees=True).as_matrix() @ cover.directions[:, order]
    along = (cover.corners() - cover.centre) @ directions
    extent = along.max(0) - along.min(0)
    shape = np.maximum(1, np.ceil(extent / spacing - 0.05)).astype(int)  # headers round their directions
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = cover.centre + directions @ (along.max(0) + along.min(0)) / 2 - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, cover.frame)


class Scene:
    """A truth that can be scanned: the quintic spline through the voxels of a volume with one channel.

    Args:
        truth: the finest volume there is; its voxels count as samples of the continuous subject.
        empty_outside: whether the world beyond the volume is known to be zero (a brain-extracted image); otherwise no profile may reach
            there, because what lies beyond must not be invented.
    """

    def __init__(self, truth: Volume, *, empty_outside: bool = False):
        if truth.channels != 1:
            raise InputError(f"one channel can be scanned at a time, got {truth.channels}")
        data = truth.data[0].cpu().numpy().astype(np.float64)
        self.grid, self.empty_outside = truth.grid, empty_outside
        padded = np.pad(data, PAD, mode="constant") if empty_outside else np.pad(data, PAD, mode="reflect", reflect_type="even")
        self._spline = scipy.ndimage.spline_filter(padded, order=5, mode="mirror", output=np.float64)

    def slices(self, grid: Grid, thickness: float, through: int = 2) -> np.ndarray:
        """Noise-free voxels [I, J, K]: m(x) = sum_s w(s) f(x + s n), w a Gaussian of FWHM = `thickness` mm along the slice normal n.

        Raises:
            GeometryError: if a profile reaches beyond the volume and what lies there is not known.
        """
        sigma = thickness / FWHM_PER_SIGMA
        s = np.linspace(-REACH * thickness, REACH * thickness, NODES)
        weight = np.exp(-0.5 * (s / sigma) ** 2)
        weight /= weight.sum()
        normal = grid.directions[:, through]
        ends = self.grid.index(np.concatenate([grid.corners(faces=False) + end * normal for end in (s[0], s[-1])]))
        if not self.empty_outside and not ((ends > -0.5 - 1e-6) & (ends < np.array(self.grid.shape) - 0.5 + 1e-6)).all():
            raise GeometryError("a slice profile reaches beyond the scanned volume", "cover a smaller region, or use thinner slices")
        to_index = np.linalg.inv(self.grid.affine) @ grid.affine
        along = np.abs(to_index[:3, :3]) > 1e-9 * np.abs(to_index[:3, :3]).max()
        return self._upright(grid, to_index, s, weight, through) if along.sum() == 3 else self._oblique(grid, s, weight, normal)

    def at(self, x: np.ndarray) -> np.ndarray:
        """Values [*batch] at points [*batch, 3] in mm: what a plane without thickness shows."""
        index = np.moveaxis(self.grid.index(x) + PAD, -1, 0)
        return scipy.ndimage.map_coordinates(self._spline, index, order=5, mode="constant", cval=0.0, prefilter=False)

    def _oblique(self, grid: Grid, s: np.ndarray, weight: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Node by node, over all voxels."""
        centres = grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))

        def node(step: float) -> np.ndarray:
            return self.at(centres + step * normal)

        total = np.zeros(grid.shape)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # scipy leaves the interpreter free meanwhile; the sum keeps its order
            for w, values in zip(weight, pool.map(node, s), strict=True):
                total += w * values
        return total

    def _upright(self, grid: Grid, to_index: np.ndarray, s: np.ndarray, weight: np.ndarray, through: int) -> np.ndarray:
        """The same sum where the axes of stack and truth are parallel: the spline is a product, so one small matrix for each axis does."""
        result = self._spline
        source = [int(np.argmax(np.abs(to_index[:3, d]))) for d in range(3)]  # the truth's axis of each stack axis
        for d, axis in enumerate(source):
            at = to_index[axis, d] * np.arange(grid.shape[d])[:, None] + to_index[axis, 3] + PAD
            nodes, w = (s / self.grid.spacing[axis] * np.sign(to_index[axis, d]), weight) if d == through else (np.zeros(1), np.ones(1))
            offsets = (at + nodes)[:, :, None] - np.arange(self._spline.shape[axis])
            matrix = np.einsum("s,nsm->nm", w, _quintic(offsets))
            result = np.moveaxis(np.tensordot(matrix, result, (1, axis)), 0, axis)
        return np.transpose(result, source)


def _quintic(x: np.ndarray) -> np.ndarray:
    """The centred quintic B-spline."""
    return np.nan_to_num(BSpline.basis_element(np.arange(-3.0, 4.0), extrapolate=False)(x))


def thick_stack(scene: Scene, grid: Grid, thickness: float, *, noise: float = 0.0, seed: int | Sequence[int] = 0,
                kind: Literal["gaussian", "rician"] = "gaussian", contrast: str = "", name: str = "") -> Stack:
    """One acquisition: slices along the last axis of `grid`, with a Gaussian profile and noise.

    Args:
        scene: what is scanned.
        grid: the voxels of the stack, see `stack_grid`.
        thickness: mm, FWHM of the slice profile.
        noise: standard deviation in the unit of the image.
        seed: of the noise; the same seed gives the same stack.
        kind: "gaussian" adds noise; "rician" takes the magnitude of a complex signal with that noise in both parts.
    """
    return add_noise(Stack(Volume(scene.slices(grid, thickness), grid), thickness, contrast, name, through=2), noise, seed, kind)


def add_noise(stack: Stack, noise: float, seed: int | Sequence[int], kind: Literal["gaussian", "rician"] = "gaussian") -> Stack:
    """The stack with noise of standard deviation `noise`, see `thick_stack`."""
    rng = np.random.default_rng(seed)
    clean = stack.volume.data[0].cpu().numpy().astype(np.float64)
    real = clean + noise * rng.standard_normal(clean.shape)
    noisy = real if kind == "gaussian" else np.hypot(real, noise * rng.standard_normal(clean.shape))
    return Stack(stack.volume.with_data(noisy), stack.thickness, stack.contrast, stack.name, stack.through)


def paint_lesions(truth: Volume, centres: np.ndarray, radius: float, amplitude: float, edge: float = 0.5) -> Volume:
    """The volume with soft-edged balls added: amplitude / (1 + exp((|x - c| - radius) / edge)) for each centre c.

    Args:
        truth: any volume.
        centres: [N, 3] world mm.
        radius: mm.
        amplitude: in the unit of the image; negative darkens.
        edge: mm, how soft the rim is.
    """
    return truth.with_data(truth.data.cpu().numpy() + amplitude * lesion_profile(truth.grid, centres, radius, edge)[None])


def lesion_profile(grid: Grid, centres: np.ndarray, radius: float, edge: float = 0.5) -> np.ndarray:
    """[I, J, K] in [0, 1]: how much of a lesion each voxel holds, see `paint_lesions`."""
    points = grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    profile = np.zeros(grid.shape)
    for c in np.atleast_2d(centres):
        distance = np.linalg.norm(points - c, axis=-1)
        profile += 1 / (1 + np.exp(np.clip((distance - radius) / edge, -60, 60)))
    return np.minimum(profile, 1.0)
