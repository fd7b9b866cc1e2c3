"""Rigid poses: six numbers, a rotation vector in radians and a translation in mm."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor


def rotation(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a rotation vector (axis times angle, radians): the matrix exponential (Rodrigues).

    Smooth at zero, so poses can start there and be optimised.
    """
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape[:-1], 3, 3)
    return torch.linalg.matrix_exp(skew)


def matrix_from_pose(pose: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 4 4"]:
    """[rotation vector, translation mm] as a homogeneous matrix."""
    top = torch.cat([rotation(pose[..., :3]), pose[..., 3:, None]], -1)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=pose.dtype, device=pose.device).expand(*pose.shape[:-1], 1, 4)
    return torch.cat([top, last], -2)


def move(pose: Float[Tensor, "*batch 6"], x: Float[Tensor, "*batch 3"], about: Float[Tensor, "3"] | None = None) -> Float[Tensor, "*batch 3"]:
    """Points x mm moved by their pose: R (x - about) + about + t. Rotating about the subject, not the scanner's
    zero, keeps rotation and translation nearly independent."""
    c = torch.zeros(3, dtype=x.dtype, device=x.device) if about is None else about
    return torch.einsum("...ij,...j->...i", rotation(pose[..., :3]), x - c) + c + pose[..., 3:]


def six(maps: Float[np.ndarray, "N 4 4"], about: Float[np.ndarray, "3"]) -> Float[np.ndarray, "N 6"]:
    """Rigid maps of the world as poses: x -> R (x - about) + about + t as [rotation vector (radians), t (mm)]."""
    return np.concatenate([Rotation.from_matrix(maps[:, :3, :3]).as_rotvec(), maps[:, :3, :3] @ about + maps[:, :3, 3] - about], 1)


def maps_of(poses: Float[np.ndarray, "N 6"], about: Float[np.ndarray, "3"]) -> Float[np.ndarray, "N 4 4"]:
    """The inverse of `six`."""
    maps = np.tile(np.eye(4), (len(poses), 1, 1))
    maps[:, :3, :3] = Rotation.from_rotvec(poses[:, :3]).as_matrix()
    maps[:, :3, 3] = about + poses[:, 3:] - maps[:, :3, :3] @ about
    return maps
