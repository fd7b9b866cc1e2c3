"""Where things are: grids, boxes, volumes and rigid poses, all in RAS+ millimetres."""

from .box import Box
from .geometry import Geometry
from .grid import Grid
from .rigid import matrix_from_pose, move
from .samples import Samples
from .volume import Volume

__all__ = ["Box", "Geometry", "Grid", "Samples", "Volume", "matrix_from_pose", "move"]
