"""What a warp carries: images, labels, doses, points and surfaces.

phi(x) = x + u(x) goes from the fixed to the moving world. So images of the moving world are pulled onto the fixed grid, and points go the other
way, from fixed to moving. `backwards` gives the inverse warp, with which everything goes in the other direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..fields import Affine, Field, displacement, from_lattice, inverse_at, on_lattice
from ..space import Grid, Volume
from .determinants import Determinants

if TYPE_CHECKING:
    import trimesh

Interpolation = Literal["linear", "cubic", "nearest"]
Preserve = Literal["dose", "energy"]
Places = Float[np.ndarray, "N 3"]
_CHUNK = 1 << 17


@torch.no_grad()
def carried_image(warp: Field, moving: Volume, grid: Grid, interpolation: Interpolation = "linear") -> Volume:
    """The moving image on a grid of the fixed world: M(x + u(x)).

    "nearest" keeps labels as they are. Where x + u(x) lies outside the moving image the value is `moving.fill`; the share of such voxels is
    `about["outside"]`.
    """
    read = moving if interpolation == "nearest" else Volume(moving.data, moving.grid, interpolation=interpolation, fill=moving.fill)
    u = on_lattice(warp, grid).data
    data, outside = torch.empty(moving.channels, *grid.shape), 0
    step = max(1, _CHUNK // (grid.shape[1] * grid.shape[2]))
    for i in range(0, grid.shape[0], step):
        part = slice(i, i + step)
        x = grid.slab(i, min(i + step, grid.shape[0])) + u[:, part].movedim(0, -1)
        within = _within(moving.grid, x)
        data[:, part] = (_nearest(moving, x, within) if interpolation == "nearest" else read(x)).movedim(-1, 0)
        outside += int((~within).sum())
    return Volume(data, grid, moving.unit, fill=moving.fill, about={**moving.about, "outside": outside / grid.size})


def carried_dose(warp: Field, dose: Volume, grid: Grid, preserve: Preserve = "dose", density: tuple[Volume, Volume] | None = None) -> Volume:
    """A dose of the moving world on a grid of the fixed world.

    * "dose": D(phi(x)), what each piece of tissue received per mass.
    * "energy": D(phi(x)) det J(x), so that the integral over the fixed world is that over its image in the moving one: of a body that is squeezed
      and keeps its mass, or of any quantity per volume. With densities the energy per mass follows from both,
      D(phi) rho_moving(phi) det J / rho_fixed (energy and mass transfer, Siebers and Zhong, Med. Phys. 35, 2008), and is 0 where rho_fixed is not
      above 0.

    Args:
        warp: from the fixed to the moving world.
        dose: one channel, for instance Gy.
        grid: of the answer.
        preserve: see above.
        density: of the fixed and the moving image, on any grids and in any one unit; for "energy" only.

    Returns:
        The dose; `about["outside"]` is the share of voxels that lie outside the given dose, and with "energy" `about["folded"]` that of det J <= 0,
        whose dose is 0.

    Raises:
        InputError: densities without "energy", or a dose of several channels.
    """
    if dose.channels != 1 or (density is not None and preserve == "dose"):
        raise InputError("a dose has one channel; densities are for energies", 'choose preserve="energy", or leave them out')
    made = carried_image(warp, dose, grid)
    if preserve == "dose":
        return made
    folding = Determinants(warp, grid)
    d = torch.cat([folding.at(*slab) for slab in folding.slabs()]).reshape(grid.shape)
    data = made.data * d.clamp_min(0)
    if density is not None:
        fixed = density[0].on(grid).data
        data = torch.where(fixed > 0, data * carried_image(warp, density[1], grid).data / fixed.clamp_min(1e-30), 0.0)
    return Volume(data, grid, dose.unit, about={**made.about, "folded": float((d <= 0).float().mean())})


def carried_points(warp: Field, points: Places, inverse: bool = False) -> tuple[Places, Float[np.ndarray, "N"]]:
    """Points of the fixed world in the moving one, or with `inverse` points of the moving world in the fixed one.

    Returns:
        Their places [N, 3] mm, and for each the distance in mm by which phi misses the given point: 0 forwards; of the inverse what is left by
        Newton's method, large where it gets lost in folds.
    """
    given = torch.as_tensor(np.asarray(points), dtype=torch.float32)
    moved, missed = [], []
    for part in given.split(_CHUNK):
        if inverse:
            x, off = inverse_at(warp, part)
            moved.append((x - part).double())
            missed.append(off.double())
        else:
            with torch.no_grad():
                moved.append(warp(part).double())
            missed.append(torch.zeros(len(part), dtype=torch.float64))
    return np.asarray(points, dtype=np.float64) + torch.cat(moved).numpy(), torch.cat(missed).numpy()


def carried_mesh(warp: Field, mesh: trimesh.Trimesh, inverse: bool = False) -> tuple[trimesh.Trimesh, Float[np.ndarray, "N"]]:
    """A surface whose vertices, in RAS+ mm, are carried as points are; and the errors of `carried_points`."""
    moved, missed = carried_points(warp, np.asarray(mesh.vertices, dtype=np.float64), inverse)
    made = mesh.copy()
    made.vertices = moved
    return made, missed


def backwards(warp: Field, grid: Grid) -> tuple[Field, Volume]:
    """The inverse warp, from the moving to the fixed world, linear between the voxels of a grid of the moving world; of affine maps it is exact.

    Returns:
        The warp, and at each voxel y of the grid the error |phi(x) - y| in mm of the inverse, large where it gets lost in folds.
    """
    if isinstance(warp.spec, Affine):
        matrix = np.vstack([np.reshape(warp.spec.matrix, (3, 4)), [0, 0, 0, 1]])
        return displacement(Affine.of(np.linalg.inv(matrix)), grid.box()), Volume(torch.zeros(grid.shape), grid, "mm")
    y = grid.points().reshape(-1, 3)
    moved, missed = zip(*(inverse_at(warp, part) for part in y.split(_CHUNK)), strict=True)
    u = (torch.cat(moved) - y).T.reshape(3, *grid.shape)
    return from_lattice(Volume(u, grid, "mm")), Volume(torch.cat(missed).reshape(grid.shape), grid, "mm")


def _within(grid: Grid, x: Float[Tensor, "*batch 3"]) -> Tensor:
    """[*batch] whether points lie inside the outer faces of the voxels, as `Volume` has it."""
    index = _index(grid, x)
    return ((index >= -0.5 - 1e-4) & (index <= torch.tensor(grid.shape) - 0.5 + 1e-4)).all(-1)


def _index(grid: Grid, x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    inverse = torch.as_tensor(np.linalg.inv(grid.affine), dtype=x.dtype)
    return x @ inverse[:3, :3].T + inverse[:3, 3]


def _nearest(moving: Volume, x: Float[Tensor, "*batch 3"], within: Tensor) -> Float[Tensor, "*batch C"]:
    """The value of the voxel in which a point lies."""
    i, j, k = (_index(moving.grid, x) + 0.5).floor().long().clamp_min(0).minimum(torch.tensor(moving.grid.shape) - 1).unbind(-1)
    return torch.where(within[..., None], moving.data[:, i, j, k].movedim(0, -1), moving.fill)
