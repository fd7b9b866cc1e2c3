"""Run by the interpreter of ANTs's own environment, which knows nothing of us: images.npz and settings.json of a folder in, u.npy out."""

import json
import sys
from pathlib import Path

import ants
import numpy as np


def main(folder: Path) -> None:
    """Register, and write the displacement [I, J, K, 3] in mm at the voxels of the fixed image."""
    given, settings = np.load(folder / "images.npz"), json.loads((folder / "settings.json").read_text())

    def image(name: str) -> "ants.ANTsImage | None":
        if name not in given:
            return None
        affine = given[name + "_affine"]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        return ants.from_numpy(given[name], affine[:3, 3].tolist(), spacing.tolist(), affine[:3, :3] / spacing)

    fixed, moving = image("fixed"), image("moving")
    found = ants.registration(fixed, moving, mask=image("mask"), moving_mask=image("moving_mask"), outprefix=str(folder / "found"), **settings)
    whole = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=str(folder / "whole"))
    np.save(folder / "u.npy", ants.image_read(whole).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
