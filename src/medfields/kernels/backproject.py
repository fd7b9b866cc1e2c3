"""Pixel-driven backprojection: every voxel collects what is seen at the place where it falls on the detector, view by view.

Not the transpose of `joseph`, but what filtered backprojection asks for: between pixels values are interpolated bilinearly, and those of a
point source are divided by the square of the voxel's depth (Feldkamp, Davis & Kress, JOSA A 1984). Beyond the outermost pixels
values fade to zero over one pixel; a detector of one row is constant over its height, and a slice (K = 1) lies in it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .dispatch import backend
from .joseph import RayTable, Shape, two_nodes


def backproject(q: Float[Tensor, "V R C"], table: RayTable, shape: Shape) -> Float[Tensor, "I J K"]:
    """sum over views of q at the voxel's place on the detector / depth^2, on a lattice of `shape`.

    The depth is 1 at the detector: of a flat one, along its normal; of a curved one (`table.b` not zero), across its axis; 1 everywhere in
    a parallel beam. Numba for float32 on the CPU, else the twin; they agree to rounding. The same bytes for any number of threads.
    """
    if backend(q) != "numba":
        return backproject_torch(q, table, shape)
    from . import backproject_numba
    return backproject_numba.backproject(q.detach(), *detector_maps(table), shape)


def detector_maps(table: RayTable) -> tuple[np.ndarray, float, np.ndarray]:
    """Matrices [V, 3, 4] from a voxel (i, j, k, 1) to (p, q, depth), columns per radian, and rows [V] by which a curved detector is raised.

    Flat detectors: p / depth and q / depth are columns and rows from the middle; the numbers are 0. Curved ones: p / depth is the tangent of
    the angle from the middle, q / hypot(p, depth) rows from the height of the source. Parallel beams: p and q themselves, and depth 1.
    """
    arc = bool(np.any(table.b != 0))
    origin = table.centre if table.parallel else table.source
    third = table.source if table.parallel else table.w if arc else table.centre - table.source
    matrix = np.linalg.inv(np.stack([table.u, table.v, third], -1))
    per_radian, raised = 0.0, np.zeros(len(matrix))
    if arc:
        reach = np.einsum("vij,vj->vi", matrix, table.centre - table.source)  # steps of u, of v, and mm along w
        radius, raised = float(reach[0, 2]), reach[:, 1]
        pitch = float(np.sqrt(table.u[0] @ table.metric @ table.u[0]))
        per_radian = radius / pitch
        matrix = matrix * np.array([pitch / radius, 1.0, 1 / radius])[:, None]
    maps = np.concatenate([matrix, -np.einsum("vij,vj->vi", matrix, origin)[..., None]], -1)
    if table.parallel:
        maps[:, 2] = [0.0, 0.0, 0.0, 1.0]
    return maps, per_radian, raised


def backproject_torch(q: Float[Tensor, "V R C"], table: RayTable, shape: Shape) -> Float[Tensor, "I J K"]:
    """The plain twin: any device and float type, differentiable in q; it visits one view at a time."""
    views, rows, columns = q.shape
    maps, per_radian, raised = detector_maps(table)
    voxels = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64, device=q.device) for n in shape))
    out = q.new_zeros(len(voxels))
    for view in range(views):
        m = torch.as_tensor(maps[view], device=q.device)
        across, up, depth = (voxels @ m[:, :3].T + m[:, 3]).unbind(1)
        before = depth > 0  # the source
        column = (per_radian * torch.atan2(across, depth) if per_radian else across / depth) + (columns - 1) / 2
        depth = torch.hypot(across, depth) if per_radian else depth
        row = up / depth - raised[view] + (rows - 1) / 2
        in_row = [(torch.zeros_like(row, dtype=torch.long), torch.ones_like(row))] if rows == shape[2] == 1 else two_nodes(row, rows)
        seen = torch.zeros_like(out)
        for r, wr in in_row:
            for c, wc in two_nodes(column, columns):
                seen = seen + (wr * wc * before / depth.square()).to(out) * q[view].reshape(-1)[r * columns + c]
        out = out + seen
    return out.reshape(shape)
