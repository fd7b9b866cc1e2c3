"""The slow change of brightness that coils cause, and the part of an image that is not air; both by SimpleITK (the extra "io")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.ndimage
import torch

from ..errors import InputError
from ..io.itk import simpleitk
from ..space import Volume
from .peers import itk_image

LEVELS, ITERATIONS = 4, 50  # of N4, from few control points to twice, four and eight times as many
CLOSED = 5.0  # mm, radius of the gaps in a mask that are closed
LEAST = 100  # voxels of a mask that N4 can work with


def body(volume: Volume, axis: int) -> Volume:
    """What is not air: above Otsu's threshold, the largest connected part, its gaps closed and its holes filled.

    Args:
        volume: one channel.
        axis: across the slices; holes are filled in three dimensions, then slice by slice, for slices at the end are open on one side.

    Returns:
        1 inside, 0 outside, on the same grid.

    Raises:
        InputError: for an image of one value.
        MissingExtra: without SimpleITK.
    """
    sitk = simpleitk("Otsu's threshold")
    if float(volume.data.max()) == float(volume.data.min()):
        raise InputError(f"the image is {float(volume.data.min()):g} everywhere: nothing in it can be told from air", "is this the right file?")
    image = sitk.OtsuThreshold(itk_image(sitk, volume), 0, 1, 128)
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(image)) == 1
    radius = [min(int(CLOSED / mm), n - 1) for mm, n in zip(volume.grid.spacing, volume.grid.shape, strict=True)]
    closed = sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(largest, radius, sitk.sitkBall))
    inside = sitk.GetArrayFromImage(closed).transpose(2, 1, 0) > 0
    for k in range(inside.shape[axis]):
        plane = inside.take(k, axis)
        inside[(slice(None),) * axis + (k,)] = scipy.ndimage.binary_fill_holes(plane)
    return volume.with_data(torch.from_numpy(inside.astype(np.float32)))


def unbiased(volume: Volume, mask: Volume, shrink: int = 4, tell: Callable[[int, int], None] | None = None) -> tuple[Volume, Volume]:
    """An image without its bias, by N4 (Tustison et al. 2010), and the bias it was divided by.

    Args:
        volume: one channel, positive in the mask.
        mask: on the same grid; where the bias is looked for. It goes on smoothly outside.
        shrink: every so many voxels along the finest axis are looked at, and as many mm along the others: thick slices are all kept.
        tell: is told how many iterations of how many are done.

    Returns:
        The corrected image, as bright in the mask as before, and the bias, whose geometric mean in the mask is 1.

    Raises:
        InputError: if the mask marks too little, or where most of the image is not positive.
        MissingExtra: without SimpleITK.
    """
    sitk = simpleitk("N4")
    inside = mask.data > 0.5
    wanted = shrink * volume.grid.spacing.min()
    factors = [max(1, min(round(wanted / mm), n // 12)) for mm, n in zip(volume.grid.spacing, volume.grid.shape, strict=True)]
    image, where = itk_image(sitk, volume), sitk.Cast(itk_image(sitk, volume.with_data(inside.float())), sitk.sitkUInt8)
    if volume.grid.is_2d:
        image, where = image[:, :, 0], where[:, :, 0]
    few, seen = (sitk.Shrink(i, factors[: image.GetDimension()]) for i in (image, where))
    if int(sitk.GetArrayViewFromImage(seen).sum()) < LEAST:
        raise InputError(f"fewer than {LEAST} of the voxels that are looked at lie in the mask", "give a wider --mask, or a smaller --shrink")
    if float((volume.data[inside] > 0).float().mean()) < 0.5:
        raise InputError("most of the image is not positive in the mask", "a bias is a factor: give intensities of MR, not CT or differences")
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([ITERATIONS] * LEVELS)
    n4.SetNumberOfThreads(torch.get_num_threads())
    if tell is not None:
        n4.AddCommand(sitk.sitkIterationEvent, lambda: tell(min(n4.GetCurrentLevel() * ITERATIONS + n4.GetElapsedIterations(),
                                                                LEVELS * ITERATIONS - 1), LEVELS * ITERATIONS))
    n4.Execute(few, seen)
    log = torch.from_numpy(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T.copy()).reshape(volume.data.shape).float()
    bias = volume.with_data(torch.exp(log - log[inside].mean()))
    if tell is not None:
        tell(LEVELS * ITERATIONS, LEVELS * ITERATIONS)
    return volume.with_data(volume.data / bias.data), bias
