"""Cubic B-splines by SimpleITK, from coarse to fine control lattices and images: the free-form deformation of ITK's toolbox.

A program of others, run as a yardstick. There is no penalty: the control spacing alone keeps the warp smooth, so it may fold.

Needs: two volumes, roughly aligned, and SimpleITK (the extra "peers"). Mattes mutual information allows other contrasts.
Gives: the displacement in mm on the fixed lattice.
Use when: you want ITK's answer beside ours, or have two modalities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases.pair import Pair
from ..errors import MissingExtra
from ..fields import Field
from ..solve import Method, Run
from ..solve.peers import itk_displacement, itk_image, registered, seen


@dataclass(frozen=True)
class ITKBSpline(Method):
    """Rueckert et al., IEEE TMI 1999, as ITK has it.

    Args:
        spacing: mm between control points at the finest level.
        levels: of the control lattice and of the images, each twice as fine as the one before.
        steps: of the optimiser at each level.
        metric: "correlation", or "mutual information" (Mattes, 32 bins).
        share: of the voxels that are compared, drawn anew for each level.
        margin: mm around the masks that are seen.
    """

    paper: ClassVar[str] = (
        "Daniel Rueckert et al.: Nonrigid registration using free-form deformations: application to breast MR images. IEEE Transactions on "
        "Medical Imaging 1999. doi:10.1109/42.796284")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"spacing": 10.0, "levels": 2, "steps": 10, "share": 1.0}
    fidelity: ClassVar[str] = "classical"

    spacing: float = 32.0
    levels: int = 4
    steps: int = 30
    metric: Literal["correlation", "mutual information"] = "correlation"
    share: float = 0.05
    margin: float = 10.0

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        try:
            import SimpleITK as sitk
        except ImportError as error:
            raise MissingExtra("SimpleITK", "peers", "itk-bspline") from error
        images = seen(case, self.margin)
        fixed, moving, grid = itk_image(sitk, images.fixed), itk_image(sitk, images.moving), images.grid
        factors = [2 ** (self.levels - 1 - n) for n in range(self.levels)]
        mesh = np.maximum(1, np.round(grid.spacing * grid.shape / (self.spacing * factors[0]))).astype(int)
        search = sitk.ImageRegistrationMethod()
        search.SetInitialTransformAsBSpline(sitk.BSplineTransformInitializer(fixed, mesh.tolist(), 3), True, factors[::-1])
        search.SetShrinkFactorsPerLevel(factors)
        search.SetSmoothingSigmasPerLevel([0.5 * n if n > 1 else 0.0 for n in factors])
        search.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
        search.SetInterpolator(sitk.sitkLinear)
        if self.metric == "correlation":
            search.SetMetricAsCorrelation()
        else:
            search.SetMetricAsMattesMutualInformation(32)
        search.SetMetricSamplingStrategy(search.RANDOM if self.share < 1 else search.NONE)
        search.SetMetricSamplingPercentage(min(self.share, 1.0), run.seed + 1)
        search.SetOptimizerAsLBFGS2(numberOfIterations=self.steps, deltaConvergenceTolerance=0,
                                      solutionAccuracy=1e-12)  # of its gradient per mm, which is small: or it stops too soon
        for mask, use in ((images.mask, search.SetMetricFixedMask), (images.moving_mask, search.SetMetricMovingMask)):
            if mask is not None:
                use(itk_image(sitk, mask) > 0.5)
        search.SetNumberOfThreads(torch.get_num_threads())

        def find() -> Float[Tensor, "3 I J K"]:
            found = search.Execute(fixed, moving)
            return itk_displacement(sitk, sitk.TransformToDisplacementField(
                found, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()))

        return registered(run, case, images, "SimpleITK", find)
