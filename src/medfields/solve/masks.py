"""A mask of one stack carried to others of the same subject, who may have moved in between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from ..errors import GeometryError
from ..losses import ncc
from ..space import Grid, Volume
from .prealign import start_of

SHARE = 0.5  # of the masked part, that must lie in the other stack for its likeness to count
POINTS = 8000  # of the known stack that are compared
BLUR = 2.0  # mm: the two stacks are thick in different directions


@dataclass(frozen=True)
class Laid:
    """How a subject lies in another stack.

    Args:
        map: from the world of the known stack to that of the other, mm.
        before, after: correlation of the two stacks in the mask, where the headers put it and where the map does.
    """

    map: Float[np.ndarray, "4 4"]
    before: float
    after: float

    def turn_and_shift(self, middle: Float[np.ndarray, "3"]) -> tuple[float, float]:
        """Degrees of the turn, and mm by which a point of the known stack moves."""
        turn = Rotation.from_matrix(self.map[:3, :3]).magnitude()
        return float(np.degrees(turn)), float(np.linalg.norm(self.map[:3, :3] @ middle + self.map[:3, 3] - middle))


def laid(known: Volume, mask: Volume, other: Volume) -> Laid:
    """The rigid map that lays what a mask marks on another stack: the best correlation, from where the headers put it and from other starts.

    A map that makes the two no more alike than the headers do is not taken.

    Args:
        known: the stack in which the mask was drawn.
        mask: on any grid.
        other: a stack of the same contrast, in any direction.
    """
    found = start_of(known, other, "rigid", mask, similarity="ncc", points=POINTS)
    before, after = (_alike(known, mask, other, m) for m in (np.eye(4), found))
    return Laid(found, before, after) if after > before else Laid(np.eye(4), before, before)


def carried(mask: Volume, onto: Grid, by: Float[np.ndarray, "4 4"], margin: float) -> Volume:
    """A mask on another grid, moved by a map of the world and wider by a margin.

    Args:
        mask: above 0.5 inside.
        onto: the grid of the result.
        by: from the world of the mask to that of `onto`, mm.
        margin: mm; every voxel whose middle is so near to the mask counts.

    Raises:
        GeometryError: if nothing of it lies there.
    """
    there = Volume((mask.data > 0.5).float(), Grid(mask.grid.shape, by @ mask.grid.affine)).on(onto).data[0].numpy() > 0.5
    if not there.any():
        raise GeometryError("the mask marks nothing of the stack to which it is carried", "do the two lie in one world? See their headers")
    near = scipy.ndimage.distance_transform_edt(~there, onto.spacing) <= margin if margin > 0 else there
    return Volume(torch.from_numpy((near | there).astype(np.float32)), onto)


@torch.no_grad()
def _alike(known: Volume, mask: Volume, other: Volume, by: Float[np.ndarray, "4 4"]) -> float:
    """Correlation of two stacks in a mask, where a map lays one on the other; -1 where too little of it lies in the other."""
    inside = mask.on(known.grid).data[0] > 0.5
    x = known.grid.points()[inside].double()
    y = (x @ torch.from_numpy(by[:3, :3]).T + torch.from_numpy(by[:3, 3])).float()
    seen = other.with_data(torch.ones_like(other.data))(y)[:, 0] > 0.5
    if float(seen.float().mean()) < SHARE:
        return -1.0
    return float(ncc(known.blurred(BLUR)(x.float()[seen])[:, 0], other.blurred(BLUR)(y[seen])[:, 0]))
