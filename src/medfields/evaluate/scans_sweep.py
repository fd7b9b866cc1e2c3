"""A sweep that nobody tracked: thin planes of a real head around one axis, as a hand turns a probe, and what was guessed of their poses.

Planes are read from the head by quintic splines in double precision, where reconstructions know linear grids and networks.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from jaxtyping import Float

from ..cases import Slices
from ..cases.slices import Slice
from ..cases.stacks import Profile
from ..space import Grid, Volume
from . import simulate

THIN = 0.1  # mm: what a plane is given for its thickness where a file must have one


class Head(simulate.Scene):
    """A scene that is read at points, too."""

    def at(self, x: np.ndarray) -> np.ndarray:
        """Values [*batch] at points [*batch, 3] in mm: what a plane without thickness shows."""
        index = np.moveaxis(self.grid.index(x) + simulate.PAD, -1, 0)
        return scipy.ndimage.map_coordinates(self._spline, index, order=5, mode="constant", cval=0.0, prefilter=False)


def fan(grid: Grid, planes: int) -> Float[np.ndarray, "N 4 4"]:
    """True affines of planes around the third axis of a lattice: half a turn in equal steps, all through its centre."""
    side, mm = np.array(grid.shape), grid.spacing
    out = np.tile(np.eye(4), (planes, 1, 1))
    for n, angle in enumerate(np.pi * np.arange(planes) / planes):
        across = grid.directions @ [np.cos(angle), np.sin(angle), 0.0]
        out[n, :3, 0], out[n, :3, 1] = mm[0] * across, mm[2] * grid.directions[:, 2]
        out[n, :3, 2] = THIN * np.cross(across, grid.directions[:, 2])
        out[n, :3, 3] = grid.centre - out[n, :3, :2] @ (side[[0, 2]] - 1) / 2
    return out


def swept(scene: Head, grid: Grid, affines: Float[np.ndarray, "N 4 4"]) -> Float[np.ndarray, "N I J"]:
    """What planes show, of as many pixels as the lattice has along its first and third axes."""
    pixel = np.stack(np.meshgrid(np.arange(grid.shape[0]), np.arange(grid.shape[2]), indexing="ij"), -1)
    return np.stack([scene.at(pixel @ a[:3, :2].T + a[:3, 3]) for a in affines])


def guessed(pictures: Float[np.ndarray, "N I J"], affines: Float[np.ndarray, "N 4 4"], poses: Float[np.ndarray, "N 4 4"], grid: Grid,
            profile: Profile = "none") -> Slices:
    """The case of a method: planes whose headers are off, so that slice n lies at poses[n] @ its header."""
    headers = np.linalg.inv(poses) @ affines
    cut = []
    for n, (picture, header) in enumerate(zip(pictures, headers, strict=True)):
        image = Volume(picture[:, :, None].astype(np.float32), Grid((*picture.shape, 1), header))
        cut.append(Slice(image, THIN, image.data[0, :, :, 0] > -np.inf, 0, n))
    return Slices.cut(cut, grid=grid, profile=profile, names=("sweep",))
