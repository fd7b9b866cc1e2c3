"""Which pixels and which slices to believe: mixtures of those that fit and those that do not, by expectation and maximisation.

Kuklisova-Murgasova et al. (Medical Image Analysis 2012, section 2.4): residuals of pixels are a zero-mean Gaussian or, for outliers, uniform;
a slice's potential, the root mean square of its pixels' doubt, is one of two Gaussians.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

Residuals = Float[np.ndarray, "P"]
EACH = Float[np.ndarray, "N"]


def believed(residual: Residuals, of: Int[np.ndarray, "P"], slices: int, rounds: int = 10) -> tuple[Residuals, EACH]:
    """The probabilities that pixels and slices fit.

    Args:
        residual: what pixels measured beyond what was expected.
        of: whose slice a pixel is of.
        slices: how many there are.
        rounds: of expectation and maximisation.

    Returns:
        [P] of pixels and [N] of slices.
    """
    uniform = 1 / max(float(np.ptp(residual)), 1e-12)
    variance, share = max(float(np.median(residual**2)) / 0.455, 1e-18), 0.9  # the median of the squares of a standard Gaussian is 0.455
    pixels = np.ones_like(residual)
    for _ in range(rounds):
        fits = share * np.exp(-(residual**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        pixels = fits / (fits + (1 - share) * uniform)
        variance, share = max(float((pixels * residual**2).sum() / pixels.sum()), 1e-18), float(np.clip(pixels.mean(), 0.5, 0.999))
    count = np.maximum(np.bincount(of, minlength=slices), 1)
    return pixels, _two(np.sqrt(np.bincount(of, (1 - pixels) ** 2, slices) / count), rounds)


def _two(potential: EACH, rounds: int) -> EACH:
    """The probability of the lower of two Gaussians; where all potentials are alike there is one only, and it is one."""
    low, high = float(potential.min()), float(potential.max())
    if high - low < 0.05:
        return np.ones_like(potential)
    means, widths, share = np.array([low, high]), np.full(2, (high - low) / 4), 0.9
    belief = np.ones_like(potential)
    for _ in range(rounds):
        densities = np.exp(-((potential[:, None] - means) ** 2) / (2 * widths**2)) / widths
        belief = share * densities[:, 0] / np.maximum(share * densities[:, 0] + (1 - share) * densities[:, 1], 1e-300)
        belief = np.where(potential <= means[0], 1.0, np.where(potential >= means[1], 0.0, belief))
        for n, p in enumerate((belief, 1 - belief)):
            if p.sum() > 1e-6:
                means[n] = (p @ potential) / p.sum()
                widths[n] = max(np.sqrt(p @ (potential - means[n]) ** 2 / p.sum()), 0.02)
        share = float(np.clip(belief.mean(), 0.5, 0.999))
    return belief
