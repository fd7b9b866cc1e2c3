"""The picture of the README from a folder of the demo: `python tools/picture.py FOLDER docs/superres.png`.

Publish no face: run the demo with `--head average` for this picture.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from medfields import plugins
from medfields.cases import Stacks
from medfields.evaluate.measure import solve
from medfields.io import read_volume
from medfields.solve import Run
from medfields.space import Volume

PLANE = 1  # coronal: both stacks are thick in it


def nearest(volume: Volume, like: Volume) -> np.ndarray:
    """The stack's own voxels, uninterpolated, on the lattice of `like`."""
    index = np.stack(np.meshgrid(*map(np.arange, like.grid.shape), indexing="ij"), -1)
    at = np.rint(volume.grid.index(like.grid.world(index))).astype(int)
    i, j, k = np.moveaxis(np.clip(at, 0, np.array(volume.grid.shape) - 1), -1, 0)
    return volume.data[0].numpy()[i, j, k]


def main(folder: Path, out: Path) -> None:
    """Stacks, cubic interpolation, the result and the truth, in one plane, and a part of it larger."""
    truth, result = read_volume(folder / "truth.nii.gz"), read_volume(folder / "iso.nii.gz")
    paths = [folder / "axial.nii.gz", folder / "sagittal.nii.gz"]
    method = tomllib.loads((folder / "iso.run/config.toml").read_text(encoding="utf-8"))["method"]
    cubic = solve(plugins.load("cubic-mean")(), Stacks.read(paths, spacing=1.0), Run())
    panels = {f"{p.name.split('.')[0]} stack, 5 mm": nearest(read_volume(p), truth) for p in paths}
    panels |= {"mean of cubics": cubic.data[0].numpy(), f"medfields ({method})": result.data[0].numpy(), "truth, 1 mm": truth.data[0].numpy()}
    low, high = np.percentile(truth.data[0].numpy(), [0.5, 99.8])
    size = truth.grid.shape[0]
    part = slice(size // 8, size // 8 + size // 2)
    figure, axes = plt.subplots(2, len(panels), figsize=(2.6 * len(panels), 5.5), facecolor="black")
    for column, (title, data) in zip(axes.T, panels.items(), strict=True):
        plane = np.take(data, data.shape[PLANE] // 2, PLANE).T
        for axis, image in zip(column, (plane, plane[part, part]), strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
            axis.axis("off")
        column[0].set_title(title, color="white", fontsize=11)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.94, 0.02, 0.02)
    figure.savefig(out, dpi=110, facecolor="black")
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
