"""Learn the denoiser that comes with medfields from the images below; eight minutes on two cores, resumable.

    python tools/learn_denoiser.py runs/denoiser -o src/medfields/weights/denoiser.safetensors

None is of a patient that the bench scores (LIDC-0001, the 4D-CT of plastimatch, the head of TIGRE, the tooth of tomopy).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from safetensors.torch import save_file

from medfields.evaluate.families import data_folder
from medfields.io import atomic, read_volume
from medfields.solve import Run, Terminal
from medfields.solve.denoiser import Denoiser, Denoising

PATCH = 64
# File, how often it is drawn from, and the axes across which its planes lie; the shares of CT and of what looks most like it are largest.
CT = [("e_registration/3DCT_lung_baseline.mha", 0.19, "k"), ("e_registration/3DCT_lung_followup.mha", 0.19, "k"),
      ("b_ct/totalseg_thorax_cta_aorta.nii.gz", 0.20, "kji"), ("b_ct/totalseg_abdomen_ct.nii.gz", 0.12, "kji"),
      *((f"j_radiotherapy/openkbp/pt_{n}.npz", 0.015, "k") for n in (126, 17, 182, 280, 29, 308, 55, 83))]
MR = [("a_mri/studyforrest_T1w_1mm.nii.gz", 0.04, "ki"), ("a_mri/vs_seg_001_T1Gd_half.nii.gz", 0.03, "k"),
      ("a_mri/ch2_colin27_T1.nii.gz", 0.03, "k")]
DRAWN = 0.05  # of images made of discs
ZOOMS = ((1.0, 1.0), (0.55, 0.72), (0.72, 0.95), (1.1, 1.35))


def stacks() -> tuple[list[torch.Tensor], list[float]]:
    """Stacks of planes where water (in MR: four fifths of the brightest tissue) is 1, in several sizes, and how often to draw from each."""
    rng, out, shares = np.random.default_rng(0), [], []
    for file, share, axes in (*CT, *MR):
        path = data_folder() / file
        values = np.load(path)["ct"].astype(np.float32) - 1024 if path.suffix == ".npz" else read_volume(path).data[0].numpy().astype(np.float32)
        bright = (file, share, axes) in MR
        image = values / np.quantile(values, 0.999) * 1.25 if bright else 1 + np.clip(np.where(values < -900, -1000, values), -1000, 1500) / 1000
        for axis in axes:
            planes = np.moveaxis(image, "ijk".index(axis), 0)
            for low, high in ZOOMS:
                zoom = rng.uniform(low, high)
                more = np.stack([_sized(plane, zoom) for plane in planes])
                pad = [(0, 0), *((0, max(0, PATCH - n)) for n in more.shape[1:])]
                out.append(torch.from_numpy(np.pad(more, pad).astype(np.float16)))
                shares.append(share / len(axes) / len(ZOOMS) * (1.4 if zoom == 1 else 1.0))
    for _ in range(60):
        out.append(torch.from_numpy(_discs(rng)[None].astype(np.float16)))
        shares.append(DRAWN / 60)
    return out, shares


def _sized(plane: np.ndarray, zoom: float) -> np.ndarray:
    """The plane with `zoom` times as many pixels along each axis; smoothed first where there are fewer."""
    if zoom == 1:
        return plane
    smooth = scipy.ndimage.gaussian_filter(plane, 0.5 * (1 / zoom - 1)) if zoom < 1 else plane
    return np.clip(scipy.ndimage.zoom(smooth, zoom, order=3), 0, None)


def _discs(rng: np.random.Generator, side: int = 160) -> np.ndarray:
    """Ellipses on top of each other, many small and few large, with edges of about a pixel."""
    image = np.zeros((side, side), np.float32)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    for _ in range(rng.integers(10, 120)):
        radius, flat, turn = side / 2 * min(0.9, 0.03 / rng.uniform(0.03, 1) + 0.02), rng.uniform(0.4, 1), rng.uniform(0, np.pi)
        u, v = rng.uniform(-0.5, 0.5, 2) * side
        p, q = (x - u) * np.cos(turn) + (y - v) * np.sin(turn), (y - v) * np.cos(turn) - (x - u) * np.sin(turn)
        image[(p / radius) ** 2 + (q / (flat * radius)) ** 2 < 1] = rng.uniform(0, 1.6)
    return scipy.ndimage.gaussian_filter(image, rng.uniform(0.4, 1.2))


class Clipped(torch.optim.Adam):
    """Adam of gradients no longer than 1."""

    def __init__(self, groups: list[dict[str, Any]]):
        super().__init__(groups, betas=(0.9, 0.99))

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the run; the same one goes on where it was stopped")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500, help="more make it denoise better and reconstruct worse")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args.folder, seed=0, listeners=[Terminal()])
    problem = Denoising(Denoiser(), *stacks(), patches=16, patch=PATCH)
    run.fit(problem, steps=args.steps, lr=1e-3, name="denoiser", optimiser=Clipped)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(args.output) as temporary:
        save_file({name: t.half().contiguous() for name, t in problem.average.state_dict().items()}, temporary)


if __name__ == "__main__":
    main()
