"""X-ray projections of a field of Gaussians, in closed form: no lattice and no samples along the rays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..kernels.joseph import RayTable
from ..kernels.splat import ray_sums
from ..space import Box, Geometry, Grid
from .projections import ray_table


class SplatProjector:
    """Line integrals of a field whose spec is `Gaussians`, in the field's unit times mm.

    Rays count as whole lines, so the source must lie outside what the field describes. A flat field takes rays that lie in the slice.

    Args:
        box: of the field.
        geometry: the views.
    """

    def __init__(self, box: Box, geometry: Geometry):
        affine = np.diag([*[box.radius[0]] * 3, 1.0])
        affine[:3, 3] = box.centre[:3]
        self.table = ray_table(Grid((1, 1, 1), affine), geometry)  # in unit coordinates, which the Gaussians live in

    def views(self, index: Tensor | slice) -> RayTable:
        """The table of some of the views."""
        at = index if isinstance(index, slice) else index.cpu().numpy()
        return replace(self.table, **{name: getattr(self.table, name)[at] for name in ("source", "centre", "u", "v", "w")})

    def __call__(self, field: Any, index: Tensor | slice = slice(None)) -> Float[Tensor, "V R C"]:
        """Of the views `index`.

        Raises:
            InputError: for a field of several channels, or of something else than Gaussians.
        """
        if field.channels != 1 or not hasattr(field.net, "places"):
            raise InputError("closed-form ray sums need a field of Gaussians with one channel", "project other fields through a lattice")
        centres, whiten = field.net.places()
        return ray_sums(centres, whiten, field.scale * field.net.weights[:, 0], self.views(index))
