"""Image quality inside a mask. Arrays are [I, J, K]; the data range is always the truth's maximum - minimum inside the mask."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Num

from ..errors import InputError, MissingExtra

Image = Num[np.ndarray, "I J K"]
Mask = Bool[np.ndarray, "I J K"]


def data_range(truth: Image, mask: Mask) -> float:
    """max - min of the truth inside the mask: the one range of psnr, ssim and nrmse here."""
    if not mask.any():
        raise InputError("the mask is empty: nothing to score")
    inside = truth[mask]
    return float(inside.max()) - float(inside.min())


def nrmse(result: Image, truth: Image, mask: Mask) -> float:
    """Root of the mean squared error inside the mask, in units of the data range."""
    scale = data_range(truth, mask)
    error = result[mask].astype(np.float64) - truth[mask]
    return float(np.sqrt(np.mean(error**2)) / scale)


def psnr(result: Image, truth: Image, mask: Mask) -> float:
    """20 log10(range / rms error) inside the mask, in dB; infinite for a perfect result."""
    error = nrmse(result, truth, mask)
    return float("inf") if error == 0 else float(-20 * np.log10(error))


def ssim(result: Image, truth: Image, mask: Mask) -> float:
    """Structural similarity (Wang et al. 2004) with a 3-D Gaussian window of 1.5 voxels, averaged over the mask, in [-1, 1].

    Raises:
        MissingExtra: without scikit-image, whose implementation is the reference.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise MissingExtra("scikit-image", "bench", "SSIM") from None
    _, local = structural_similarity(
        result.astype(np.float64),
        truth.astype(np.float64),
        data_range=data_range(truth, mask),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(local[mask].mean())


def scores(result: Num[np.ndarray, "..."], truth: Image, mask: Mask) -> dict[str, float]:
    """psnr (dB), ssim and nrmse together, for a result on the truth's own grid."""
    if result.shape != truth.shape:
        raise InputError(f"result {result.shape} and truth {truth.shape} differ in shape", "resample the result onto the truth's grid")
    return {"psnr": psnr(result, truth, mask), "ssim": ssim(result, truth, mask), "nrmse": nrmse(result, truth, mask)}


def otsu(values: Num[np.ndarray, "*shape"]) -> float:
    """The threshold that maximises the variance between the two classes it makes (Otsu 1979), over 256 bins up to the 99.5th percentile."""
    top = np.percentile(values, 99.5)
    if not top > values.min():
        raise InputError("the image is constant: it has no threshold")
    counts, edges = np.histogram(np.minimum(values, top), bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(centres[between >= np.nanmax(between) * (1 - 1e-9)].mean())  # the middle of an empty gap


def head_mask(image: Image) -> Mask:
    """The head without the air around it: half of Otsu's threshold, the largest piece, holes filled in 3-D and in every slice.

    Half, because fluid and bone are dark but belong to the head; ghosts and noise in air lie lower still.
    """
    bright = scipy.ndimage.binary_opening(image > otsu(image) / 2)
    labels, n = scipy.ndimage.label(bright)
    if n == 0:
        raise InputError("no head found: nothing in the image is two voxels thick")
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    mask = scipy.ndimage.binary_fill_holes(largest)
    for axis in range(3):
        filled = [scipy.ndimage.binary_fill_holes(plane) for plane in np.moveaxis(mask, axis, 0)]
        mask = np.moveaxis(np.stack(filled), 0, axis)
    return mask
