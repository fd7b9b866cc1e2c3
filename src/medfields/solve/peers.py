"""What methods that run other people's programs share: the images as those see them, and the displacement they give back.

ITK calls its world LPS, but never looks at what the axes are called: it gets ours as it is, and its displacements come back in RAS+ mm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases.pair import Pair
from ..errors import InputError
from ..fields import Field
from ..fields.warp import from_lattice
from ..space import Grid, Volume
from .run import Run


@dataclass(frozen=True)
class Seen:
    """The two images in the aligned world, cut to what counts; their intensities go from 0, the darkest that counts, to 1, the brightest."""

    fixed: Volume
    moving: Volume
    mask: Volume | None
    moving_mask: Volume | None

    @property
    def grid(self) -> Grid:
        """Where the displacement is wanted."""
        return self.fixed.grid


def seen(case: Pair, margin: float) -> Seen:
    """The images within `margin` mm of their masks. Where both have one, what is outside is painted with one value, its mean, so that the
    outline counts and nothing beyond it.

    Args:
        case: without masks the whole images count.
        margin: mm.

    Raises:
        InputError: for slices, which these programs are not given.
    """
    if case.grid.is_2d:
        raise InputError("programs of others are run on volumes only", "--method bspline registers slices")
    whole = case.mask is None or case.moving_mask is None  # the scale of a part is not that of a whole
    fixed, mask = _cut(_upright(case.fixed), None if case.mask is None else _upright(case.mask), margin, whole)
    moving, moving_mask = _cut(_upright(case.aligned), None if case.aligned_mask is None else _upright(case.aligned_mask), margin, whole)
    if mask is None or moving_mask is None:
        return Seen(fixed, moving, mask, moving_mask)
    paint = torch.cat([v.data[m.data <= 0.5] for v, m in ((fixed, mask), (moving, moving_mask))]).mean()
    fixed, moving = (v.with_data(torch.where(m.data > 0.5, v.data, paint)) for v, m in ((fixed, mask), (moving, moving_mask)))
    return Seen(fixed, moving, mask, moving_mask)


def _upright(volume: Volume) -> Volume:
    """The volume on a lattice whose axes are at right angles, as these programs want it: an affine start may shear."""
    d = volume.grid.directions
    if np.allclose(d.T @ d, np.eye(3), atol=1e-4):
        return volume
    box, size = volume.grid.box(), volume.grid.spacing
    shape = np.ceil(box.sides / size).astype(int).tolist()
    grid = Grid.from_spacing(shape, size.tolist(), (np.array(box.lo) + size / 2).tolist())
    return Volume(volume.data, volume.grid, fill=float(volume.data.min())).on(grid)


def _cut(image: Volume, mask: Volume | None, margin: float, whole: bool) -> tuple[Volume, Volume | None]:
    """The image and its mask around the mask; the scale is that of what is inside, or of the whole image."""
    counts = image.data if whole or mask is None else image.data[mask.data > 0.5]
    low, high = np.percentile(counts.numpy(), [0.5, 99.5])
    data = ((image.data - low) / max(high - low, 1e-30)).clamp(0, 1)
    if mask is None:
        return image.with_data(data), None
    where, room = torch.nonzero(mask.data[0] > 0.5), np.ceil(margin / image.grid.spacing).astype(int)
    lo = np.maximum(where.amin(0).numpy() - room, 0)
    hi = np.minimum(where.amax(0).numpy() + 1 + room, image.grid.shape)
    grid, part = image.grid.crop(lo, hi - lo), (slice(None), *(slice(a, b) for a, b in zip(lo, hi, strict=True)))
    return Volume(data[part], grid), Volume(mask.data[part], grid)


def itk_image(sitk: ModuleType, volume: Volume) -> Any:
    """A volume of one channel as an image of SimpleITK, in our world."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data[0].numpy().transpose(2, 1, 0)))
    image.SetSpacing(volume.grid.spacing.tolist())
    image.SetDirection(volume.grid.directions.ravel().tolist())
    image.SetOrigin(volume.grid.affine[:3, 3].tolist())
    return image


def itk_displacement(sitk: ModuleType, image: Any) -> Float[Tensor, "3 I J K"]:
    """The vectors of an image of displacements of SimpleITK."""
    return torch.from_numpy(np.ascontiguousarray(sitk.GetArrayViewFromImage(image).transpose(3, 2, 1, 0), dtype=np.float32))


class Found(nn.Module):
    """The displacement as the state of a stage, so that a finished one is not asked for again."""

    u: Tensor

    def __init__(self, grid: Grid):
        super().__init__()
        self.register_buffer("u", torch.zeros(3, *grid.shape))


def registered(run: Run, case: Pair, images: Seen, program: str, find: Callable[[], Float[Tensor, "3 I J K"]]) -> Field:
    """The warp on the lattice of the fixed image as it was seen, by a program that cannot be stopped half-way: one step of one stage.

    Args:
        run, case, images: of the method.
        program: whose name, and version where it is installed here, are noted.
        find: the displacement in mm at the voxels of `images.grid`.

    Raises:
        InputError: with the last line of what the program says, if it fails.
    """
    with suppress(metadata.PackageNotFoundError):
        program = f"{program} {metadata.version(program)}"
    run.note(program=program)
    found = Found(images.grid)
    for _ in run.steps(1, "register", found):
        try:
            found.u.copy_(find())
        except (RuntimeError, ValueError) as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise InputError(f"{program} failed: {told}", "do the images overlap, and are they large enough for so many levels?") from error
    warp = from_lattice(Volume(found.u.cpu(), images.grid, "mm"))
    warp.grid = case.grid
    return warp


def require_steps(steps: tuple[int, ...]) -> None:
    """Raise unless `steps` counts at least one step at one level, and none below zero."""
    if not steps or min(steps) < 0 or not any(steps):
        raise InputError(f"steps {steps} are none", "counts for the levels from coarse to fine, for instance 100 50 20; 0 leaves a level out")
