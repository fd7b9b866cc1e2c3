"""Symmetric normalisation (SyN) by dipy: both images flow to a middle, led by their correlation in small windows.

A program of others, run as a yardstick. The images are cut to their masks; where both have one, what is outside is painted with one value.

Needs: two volumes of one modality, roughly aligned, and dipy (the extra "peers"). Masks help.
Gives: the displacement in mm on the fixed lattice, a diffeomorphism up to its sampling.
Use when: you want the best-known classical answer beside ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases.pair import Pair
from ..errors import MissingExtra
from ..fields import Field
from ..solve import Method, Run
from ..solve.peers import registered, require_steps, seen


@dataclass(frozen=True)
class SyN(Method):
    """Avants et al., Medical Image Analysis 2008, as dipy has it.

    Args:
        steps: at each level from coarse to fine; each level halves the voxels.
        radius: of the window of the correlation, voxels.
        smooth: sigma of the Gaussian that smooths each update, voxels.
        step_length: of an update at its longest, voxels.
        noise: standard deviation of what is added to both images, whose intensities are 0 to 1: dipy divides by the variance in a window, and
            where there is almost none its longest step takes all from the others.
        margin: mm around the masks that are seen.
    """

    paper: ClassVar[str] = (
        "Brian B. Avants, Charles L. Epstein, Murray Grossman and James C. Gee: Symmetric diffeomorphic image registration with "
        "cross-correlation. Medical Image Analysis 2008. doi:10.1016/j.media.2007.06.004")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"steps": (10, 5), "radius": 2}
    fidelity: ClassVar[str] = "classical"

    steps: tuple[int, ...] = (100, 50, 10)
    radius: int = 2
    smooth: float = 2.0
    step_length: float = 0.25
    noise: float = 0.01
    margin: float = 10.0

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        require_steps(self.steps)
        try:
            from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
            from dipy.align.metrics import CCMetric
        except ImportError as error:
            raise MissingExtra("dipy", "peers", "syn") from error
        images, rng = seen(case, self.margin), np.random.default_rng(run.seed)
        fixed, moving = (v.data[0].numpy() + self.noise * rng.standard_normal(v.grid.shape) for v in (images.fixed, images.moving))
        made = SymmetricDiffeomorphicRegistration(
            CCMetric(3, sigma_diff=self.smooth, radius=self.radius), level_iters=list(self.steps), step_length=self.step_length,
            opt_tol=-1e9)  # a level ends with its steps, not when dipy's smoothed energy is flat for a moment
        made.verbosity = 0  # or it logs to the terminal

        def find() -> Float[Tensor, "3 I J K"]:
            found = made.optimize(fixed, moving, static_grid2world=images.fixed.grid.affine, moving_grid2world=images.moving.grid.affine)
            return torch.from_numpy(np.ascontiguousarray(found.get_forward_field().transpose(3, 0, 1, 2), dtype=np.float32))

        return registered(run, case, images, "dipy", find)
