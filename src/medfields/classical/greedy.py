"""Greedy diffeomorphic registration by picsl-greedy: small smooth steps composed, led by correlation in small windows.

A program of others, run as a yardstick. The images are cut to their masks; gradients count inside the masks only.

Needs: two volumes of one modality, roughly aligned, and picsl-greedy and SimpleITK (the extra "peers"). Masks help.
Gives: the displacement in mm on the fixed lattice.
Use when: you want a strong classical answer within a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
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
class Greedy(Method):
    """Yushkevich et al., Alzheimer's & Dementia 2016.

    Args:
        steps: at each level from coarse to fine; each level halves the voxels.
        radius: of the windows of the correlation, voxels.
        smooth: sigma of the Gaussian that smooths each update, voxels.
        stiff: sigma of the Gaussian that smooths the whole displacement after each update, voxels.
        step_length: of an update, voxels.
        velocity: a stationary velocity instead of composed displacements; slower, with less folding.
        margin: mm around the masks that are seen.
    """

    paper: ClassVar[str] = (
        "Paul A. Yushkevich et al.: Fast automatic segmentation of hippocampal subfields and medial temporal lobe subregions in 3 Tesla and "
        "7 Tesla T2-weighted MRI. Alzheimer's & Dementia 2016. doi:10.1016/j.jalz.2016.06.205")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"steps": (20, 20)}
    fidelity: ClassVar[str] = "classical"

    steps: tuple[int, ...] = (100, 50, 20)
    radius: int = 2
    smooth: float = 1.732
    stiff: float = 0.7071
    step_length: float = 1.0
    velocity: bool = False
    margin: float = 10.0

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        require_steps(self.steps)
        try:
            import SimpleITK as sitk
            from picsl_greedy import Greedy3D
        except ImportError as error:
            raise MissingExtra("picsl-greedy", "peers", "greedy") from error
        images = seen(case, self.margin)
        given = {"fixed": itk_image(sitk, images.fixed), "moving": itk_image(sitk, images.moving)}
        words = ["-i fixed moving -o warp -wp 0 -V 0", f"-n {'x'.join(map(str, self.steps))} -m WNCC {'x'.join([str(self.radius)] * 3)}",
                 f"-s {self.smooth}vox {self.stiff}vox -e {self.step_length} -threads {torch.get_num_threads()} -seed {run.seed + 1}"]
        words += ["-sv"] * self.velocity
        for flag, name, mask in (("-gm", "mask", images.mask), ("-mm", "moving_mask", images.moving_mask)):
            if mask is not None:
                given[name] = itk_image(sitk, mask)
                words.append(f"{flag} {name}")

        def find() -> Float[Tensor, "3 I J K"]:
            greedy = Greedy3D()
            greedy.execute(" ".join(words), out=StringIO(), err=StringIO(), warp=None, **given)
            return itk_displacement(sitk, greedy["warp"])

        return registered(run, case, images, "picsl-greedy", find)
