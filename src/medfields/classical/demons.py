"""Diffeomorphic demons by SimpleITK, from coarse to fine: each voxel is pushed along the images' gradients, the pushes are smoothed.

A program of others, run as a yardstick. It compares intensities as they are, each image from 0 at its darkest to 1 at its brightest that counts.
The images are cut to their masks; where both have one, what is outside is painted with one value.

Needs: two volumes of one modality, roughly aligned, and SimpleITK (the extra "peers"). Masks help.
Gives: the displacement in mm on the fixed lattice.
Use when: you want the classical answer that is simplest and quick, for images whose intensities agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases.pair import Pair
from ..errors import MissingExtra
from ..fields import Field
from ..solve import Method, Run
from ..solve.peers import itk_displacement, itk_image, registered, require_steps, seen


@dataclass(frozen=True)
class Demons(Method):
    """Vercauteren et al., NeuroImage 2009, as ITK has it.

    Args:
        steps: at each level from coarse to fine; each level halves the voxels.
        smooth: sigma of the Gaussian that smooths the displacement after each step, voxels.
        step_length: of an update at its longest, voxels.
        margin: mm around the masks that are seen.
    """

    paper: ClassVar[str] = (
        "Tom Vercauteren, Xavier Pennec, Aymeric Perchant and Nicholas Ayache: Diffeomorphic demons: efficient non-parametric image "
        "registration. NeuroImage 2009. doi:10.1016/j.neuroimage.2008.10.040")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"steps": (20, 20)}
    fidelity: ClassVar[str] = "classical"

    steps: tuple[int, ...] = (100, 80, 40)
    smooth: float = 2.0
    step_length: float = 2.0
    margin: float = 10.0

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        require_steps(self.steps)
        try:
            import SimpleITK as sitk
        except ImportError as error:
            raise MissingExtra("SimpleITK", "peers", "demons") from error
        images = seen(case, self.margin)
        fixed, moving = itk_image(sitk, images.fixed), itk_image(sitk, images.moving)
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetUseGradientType(demons.Symmetric)
        demons.SetMaximumUpdateStepLength(self.step_length)
        demons.SetStandardDeviations(self.smooth)
        demons.SetNumberOfThreads(torch.get_num_threads())

        def coarse(image: Any, n: int) -> Any:
            """Blurred, each axis with 1/n of its voxels."""
            if n == 1:
                return image
            blurred = sitk.SmoothingRecursiveGaussian(image, [0.5 * n * side for side in image.GetSpacing()])
            return sitk.Shrink(blurred, [min(n, size) for size in image.GetSize()])

        def find() -> Float[Tensor, "3 I J K"]:
            u = None
            for level, steps in enumerate(self.steps):
                n = 2 ** (len(self.steps) - 1 - level)
                a, still = coarse(fixed, n), sitk.Transform()
                b = sitk.Resample(coarse(moving, n), a, still, sitk.sitkBSpline)  # ITK wants both on one lattice
                demons.SetNumberOfIterations(steps)
                u = demons.Execute(a, b, *([] if u is None else [sitk.Resample(u, a, still, useNearestNeighborExtrapolator=True)]))
            return itk_displacement(sitk, u)

        return registered(run, case, images, "SimpleITK", find)
