"""Atlas super-resolution for the pedunculopontine nucleus: a multi-channel atlas as one field, drawn on finely, carried to a patient.

A single group atlas (susceptibility and T1w, 1 mm) is fitted by a coordinate network with one output for each map and read at 0.25 mm; a
small nucleus is delineated there by hand, and `transfer` takes the drawing to an individual's grid.

Needs: one stack for each map of the atlas, on any grids (the profile acts across the slices; with isotropic voxels, along the last axis).
Gives: all maps at any point, one channel each; labels on another grid by `transfer`.
Deviations: voxels are integrated over the case's profile; `--profile none` is the published point sampling. A weak total variation is
added; `--tv 0` is the published form. A single image holds no detail above its own sampling: the gain over cubic interpolation is what the
profile gives back, and without it about nothing.
Fidelity: interpreted (network after IREM, which the paper names; details unread).
Licence: no code was published.
Use when: you draw on an atlas finer than its voxels. For patients with two or more thick scans use the default method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..cases import Stacks
from ..fields import MLP, Field, Fourier
from ..solve import Method, Run
from ..solve.stacks import StackFit
from ..space import Grid, Volume


@torch.no_grad()
def transfer(labels: Volume, grid: Grid, warp: Callable[[Tensor], Tensor] | None = None, level: float = 0.5) -> Volume:
    """Labels drawn on a fine grid, as a mask on another: a voxel belongs to the label that fills most of it, and at least `level`.

    Args:
        labels: [1, ...] integer labels, 0 is background.
        grid: of the individual.
        warp: individual's mm -> atlas mm, [*batch, 3]; None if both share one space.
        level: smallest share of a voxel, in [0, 1], found by 4 x 4 x 4 points inside it.
    """
    names = torch.unique(labels.data)
    offsets = torch.cartesian_prod(*[(torch.arange(4) + 0.5) / 4 - 0.5] * 3) @ torch.tensor(grid.affine[:3, :3].T.copy(), dtype=torch.float32)
    masks = [Volume((labels.data == name).float(), labels.grid, fill=float(name == 0)) for name in names]
    out = torch.zeros(grid.shape)
    for i in range(grid.shape[0]):  # slab by slab: the points of a whole brain would not fit in memory
        share = torch.zeros(len(names), *grid.shape[1:])
        for offset in offsets:
            points = grid.slab(i, i + 1)[0] + offset
            points = points if warp is None else warp(points)
            for n, mask in enumerate(masks):
                share[n] += (mask(points)[..., 0] > 0.5).float() / len(offsets)
        best, which = share.max(0)
        out[i] = torch.where(best >= level, names[which], torch.zeros(()))
    return Volume(out, grid)


@dataclass(frozen=True)
class PPN(Method):
    """Li et al., Human Brain Mapping 2023.

    Args:
        net: Gaussian Fourier features and a ReLU network, one output for each map.
        steps, lr: of Adam, cosine to a tenth.
        samples: voxels in a step.
        nodes: quadrature points under the profile.
        tv: weight of the total variation between random pairs of points; 0 is the published form.
        held_out: share of the voxels that decides when to stop.
    """

    paper: ClassVar[str] = (
        "Jun Li and others: Direct localization and delineation of human pedunculopontine nucleus based on a self-supervised "
        "magnetic resonance image super-resolution method. Human Brain Mapping 2023. "
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC10203800")
    task: ClassVar[str] = "superres"
    tiny: ClassVar[dict[str, Any]] = {"net": MLP(Fourier(size=16), width=32, depth=2), "steps": 20, "samples": 256, "nodes": 4}
    fidelity: ClassVar[str] = "interpreted"

    net: MLP = MLP(Fourier("gaussian", size=256, sigma=8.0), width=256, depth=8, skips=(4,))
    steps: int = 8000
    lr: float = 5e-4
    samples: int = 4096
    nodes: int = 4
    tv: float = 0.02
    held_out: float = 0.02

    def solve(self, case: Stacks, run: Run, prior: nn.Module | None = None) -> Field:
        problem = StackFit(self.net, case, self.samples, self.nodes, self.tv, self.held_out)
        return run.fit(problem, steps=self.steps, lr=self.lr, name="fit", schedule="cosine", patience=10).field
