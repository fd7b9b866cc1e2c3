"""`backproject` in Numba, shared out by slabs of the lattice: every voxel is one thread's, and its sum runs in the order of the views."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from .dispatch import jit, use_threads


@jit()
def _ends(x, n):  # type: ignore[no-untyped-def]
    """The two nodes of an axis of n next to x, and their weights: zero for nodes that do not exist."""
    low = math.floor(x) if -2 < x < n + 1 else -2
    f = np.float32(x - low)
    here, next_to = np.float32(1) - f if 0 <= low < n else np.float32(0), f if -1 <= low < n - 1 else np.float32(0)
    return max(0, min(low, n - 1)), max(0, min(low + 1, n - 1)), here, next_to


@jit(parallel=True)
def _backproject(q, maps, per_radian, raised, out):  # type: ignore[no-untyped-def]
    views, rows, columns = q.shape
    n, nj, nk = out.shape
    middle, centre = (columns - 1) / 2, (rows - 1) / 2
    for i in numba.prange(n):
        for view in range(views):
            m = maps[view]
            upright = abs(m[0, 2]) < 1e-12 and abs(m[2, 2]) < 1e-12  # voxels above one another are seen in one column
            for j in range(nj):
                p, up, d = m[0, 0] * i + m[0, 1] * j + m[0, 3], m[1, 0] * i + m[1, 1] * j + m[1, 3], m[2, 0] * i + m[2, 1] * j + m[2, 3]
                near, far, left, right, scale, depth = 0, 0, np.float32(0), np.float32(0), np.float32(0), 1.0
                for k in range(nk):
                    if k == 0 or not upright:
                        across, depth = p + k * m[0, 2], d + k * m[2, 2]
                        if depth <= 0:  # behind the source
                            scale = np.float32(0)
                            continue
                        if per_radian > 0:
                            column = per_radian * math.atan2(across, depth)
                            depth = math.sqrt(across * across + depth * depth)
                        else:
                            column = across / depth
                        near, far, left, right = _ends(column + middle, columns)
                        scale = np.float32(1 / (depth * depth))
                    if scale == 0:
                        continue
                    if rows == 1 and nk == 1:
                        out[i, j, k] += scale * (left * q[view, 0, near] + right * q[view, 0, far])
                        continue
                    row = (up + k * m[1, 2]) / depth - raised[view] + centre
                    if rows == 1:
                        if abs(row) <= 0.5:
                            out[i, j, k] += scale * (left * q[view, 0, near] + right * q[view, 0, far])
                        continue
                    under, above, low, high = _ends(row, rows)
                    out[i, j, k] += scale * (low * (left * q[view, under, near] + right * q[view, under, far])
                                             + high * (left * q[view, above, near] + right * q[view, above, far]))


def backproject(q: Tensor, maps: np.ndarray, per_radian: float, raised: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """See `kernels.backproject`."""
    use_threads()
    out = np.zeros(shape, np.float32)
    _backproject(q.contiguous().numpy(), maps, per_radian, raised, out)
    return torch.from_numpy(out)
