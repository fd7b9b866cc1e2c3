"""What is small when a function explains its measurements, or is smooth. Every loss is a scalar tensor."""

from .derivative import squared_gradient, total_variation
from .fidelity import gaussian_nll, huber, l1, mse, poisson_nll
from .regularity import (
    bending,
    conformal,
    determinant,
    diffusion,
    fold,
    hyperelastic,
    orthogonality,
    symmetric_volume_change,
    variation,
    volume_change,
)
from .similarity import mutual_information, ncc, nmi
from .ssim import ssim

__all__ = [
    "bending", "conformal", "determinant", "diffusion", "fold", "gaussian_nll", "huber", "hyperelastic", "l1", "mse", "mutual_information", "ncc",
    "nmi", "orthogonality", "poisson_nll", "squared_gradient", "ssim", "symmetric_volume_change", "total_variation", "variation", "volume_change",
]
