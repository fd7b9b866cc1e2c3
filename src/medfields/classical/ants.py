"""Symmetric normalisation (SyN) by ANTs, if asked after an affine map: what most papers compare with.

A program of others, run as a yardstick in an environment of its own: ANTsPy asks for versions of numpy that we do not. The images are cut
to their masks; where both have one, what is outside is painted with one value.

Needs: two volumes of one modality, roughly aligned; MEDFIELDS_ANTS_PYTHON naming a Python that has antspyx. Masks help.
Gives: the displacement in mm on the fixed lattice, a diffeomorphism up to its sampling.
Use when: you want the number that readers know, and have minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases.pair import Pair
from ..errors import InputError, MissingExtra
from ..fields import Field
from ..solve import Method, Run
from ..solve.peers import Seen, registered, require_steps, seen


@dataclass(frozen=True)
class ANTs(Method):
    """Avants et al., NeuroImage 2011.

    Args:
        steps: at each level from coarse to fine; each level halves the voxels.
        radius: of the window of the correlation, voxels.
        affine: an affine map first, by mutual information; useful where the start is poor.
        step_length: of an update at its longest, voxels.
        smooth: variance of the Gaussian that smooths each update, voxels.
        stiff: variance of the Gaussian that smooths the whole displacement, voxels.
        margin: mm around the masks that are seen.
    """

    paper: ClassVar[str] = (
        "Brian B. Avants et al.: A reproducible evaluation of ANTs similarity metric performance in brain image registration. NeuroImage 2011. "
        "doi:10.1016/j.neuroimage.2010.09.025")
    task: ClassVar[str] = "register"
    tiny: ClassVar[dict[str, Any]] = {"steps": (10, 10)}
    fidelity: ClassVar[str] = "classical"

    steps: tuple[int, ...] = (100, 50, 20)
    radius: int = 2
    affine: bool = False
    step_length: float = 0.2
    smooth: float = 3.0
    stiff: float = 0.0
    margin: float = 10.0

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        require_steps(self.steps)
        images = seen(case, self.margin)
        settings = {"type_of_transform": "SyN" if self.affine else "SyNOnly", "initial_transform": "identity", "syn_metric": "CC",
                    "syn_sampling": self.radius, "reg_iterations": self.steps, "grad_step": self.step_length, "flow_sigma": self.smooth,
                    "total_sigma": self.stiff}
        return registered(run, case, images, "ANTs", lambda: self._ask(images, settings, run.seed))

    def _ask(self, images: Seen, settings: dict[str, Any], seed: int) -> Float[Tensor, "3 I J K"]:
        """Run `_ants_run.py` in a temporary folder."""
        python = os.environ.get("MEDFIELDS_ANTS_PYTHON", "")
        if not python:
            missing = MissingExtra("antspyx", "peers", "ants")  # no extra of ours can bring it
            missing.hint = "pip install antspyx in an environment of its own, and name its python in MEDFIELDS_ANTS_PYTHON"
            raise missing
        threads = str(torch.get_num_threads())
        surroundings = os.environ | {"ANTS_RANDOM_SEED": str(seed + 1), "ITK_GLOBAL_DEFAULT_NUMBER_OF_ITK_THREADS": threads}
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            arrays: dict[str, Any] = {}
            for name in ("fixed", "moving", "mask", "moving_mask"):
                if (volume := getattr(images, name)) is not None:
                    arrays |= {name: volume.data[0].numpy(), f"{name}_affine": volume.grid.affine}
            np.savez(folder / "images.npz", **arrays)
            (folder / "settings.json").write_text(json.dumps(settings))
            try:
                done = subprocess.run([python, "-I", str(Path(__file__).with_name("_ants_run.py")), place], env=surroundings, capture_output=True,
                                      text=True)
            except OSError as error:
                raise InputError(f"cannot run {python}: {error.strerror}", "MEDFIELDS_ANTS_PYTHON names a Python that has antspyx") from error
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise InputError(f"ANTs failed: {last}", f"{python} -m pip install antspyx")
            return torch.from_numpy(np.load(folder / "u.npy").transpose(3, 0, 1, 2).astype(np.float32))
