"""DNVF: a network of sines gives a velocity that does not change in time, and points carried by it for unit time never fold.

Each step reads v on a lattice, integrates phi = exp(v) there by scaling and squaring, and compares all voxels: 1 - local NCC + fold max(0, -det
grad phi) + smooth |grad v|^2 + small |v|^2. The answer is the flow, along paths from point to point; its inverse is the same flow backwards.
Given a displacement to start from (Cas-DNVF), it refines it: phi = first that one, then exp(v).

Needs: a fixed and a moving image, roughly aligned, whose intensities agree up to a slow change. Optional: another method's displacement.
Gives: displacement, mm, at any point, whose inverse is known.
Deviations: v is read on a lattice of about `nodes` points, not at all voxels, and phi is linear between: the network's waves are about 2 pi r / omega
mm long in a box of 2 r mm, which such a lattice shows. The start may be any method's; exp(v) comes after it, in the paper before it.
Fidelity: interpreted (network and number of squarings as published; weights, found there by search, are ours).
Use when: the map must have an inverse, or another method's folds are to be mended. A step on two cores takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..cases.pair import Pair
from ..fields import BSpline, Field, Siren, composed, displacement, on_lattice
from ..losses import diffusion, fold
from ..losses.local import local_ncc
from ..solve import Method, Run
from ..solve.pairing import Match, differences, exponential, flow, lattice, sampled, stretch
from ..space import Volume


class LatticeMatch(Match):
    """Both images on one lattice, through a velocity on another."""

    memory = "nodes, where the velocity is read, or voxels, which are compared"
    nodes: Tensor
    voxels: Tensor
    mask: Tensor
    target: Tensor
    to_index: Tensor

    def __init__(self, cfg: DNVF, case: Pair, warp: Field):
        nodes, seen = lattice(case, cfg.nodes), lattice(case, cfg.voxels)
        is_coarser = seen.size < lattice(case, case.grid.size).size
        super().__init__(case, warp, blur=(0.4 * float(seen.spacing[:2].max()) if is_coarser else 0.0,))
        around = np.where(np.array(nodes.shape) > 1, 2, 0)  # paths that leave what counts still meet the velocity
        self.cfg, self.grid = cfg, nodes.crop(-around, nodes.shape + 2 * around)
        x = seen.points()
        with torch.no_grad():  # the start stays as it is
            y = x if case.first is None else x + case.first(x.reshape(-1, 3)).reshape(x.shape)
        values = {"nodes": self.grid.points(), "voxels": y, "mask": Volume(case.inside.float(), case.grid)(x)[..., 0] > 0.5,
                  "target": self.fixed[0](x)[..., 0], "to_index": torch.tensor(np.linalg.inv(self.grid.affine), dtype=torch.float32)}
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def batch(self, rng: torch.Generator) -> None:
        """All voxels, every step."""

    def losses(self, batch: None, progress: float) -> dict[str, Tensor]:
        cfg, a = self.cfg, self.to_index[:3, :3]
        v = cast(Field, self.velocity)(self.nodes).movedim(-1, 0)[None]
        u = torch.einsum("ij,bjxyz->bixyz", a.inverse(), exponential(torch.einsum("ij,bjxyz->bixyz", a, v), cfg.squarings))
        y = self.voxels + sampled(u, (self.voxels @ a.T + self.to_index[:3, 3])[None])[0].movedim(0, -1)
        return {"unlike": 1 - local_ncc(self.target, self.moving[0](y)[..., 0], cfg.radius, self.mask & self.counts(y)),
                "fold": cfg.fold * fold(stretch(differences(u, self.grid))),
                "smooth": cfg.smooth * diffusion(differences(v, self.grid)) + cfg.small * v.square().sum(1).mean()}


@dataclass(frozen=True)
class DNVF(Method):
    """Han et al., WACV 2023.

    Args:
        net: the velocity.
        steps, lr: of Adam, cosine to a hundredth.
        radius: of the windows, voxels: 4 makes them 9 wide.
        squarings, flow_steps: of the exponential in training, and of each path in the answer.
        nodes: of the velocity's lattice, at most; two more go around them.
        voxels: that are compared, at most; an image that has more is seen on a coarser lattice, blurred to its spacing.
        fold, smooth, small: weights of max(0, -det grad phi), |grad v|^2 and, in 1/mm^2, |v|^2.
    """

    paper: ClassVar[str] = (
        "Kun Han and Shanlin Sun and Xiangyi Yan and Chenyu You and Hao Tang and Junayed Naushad and Haoyu Ma and Deying Kong and Xiaohui Xie: "
        "Diffeomorphic Image Registration with Neural Velocity Field. WACV 2023. arXiv:2202.12498")
    task: ClassVar[str] = "register"
    fidelity: ClassVar[str] = "interpreted"
    uses: ClassVar[tuple[str, ...]] = ("first",)
    tiny: ClassVar[dict[str, Any]] = {"net": Siren(width=32, depth=2, omega_first=10.0, omega=10.0), "steps": 12, "lr": 1e-3, "nodes": 1000}

    net: Siren = Siren(width=256, depth=5, omega_first=30.0, omega=30.0)
    steps: int = 300
    lr: float = 1e-4
    radius: int = 4
    squarings: int = 7
    flow_steps: int = 8
    nodes: int = 32_768
    voxels: int = 1_000_000
    fold: float = 10.0
    smooth: float = 0.05
    small: float = 0.0

    def solve(self, case: Pair, run: Run, prior: nn.Module | None = None) -> Field:
        warp = flow(case, self.net, self.flow_steps, zero=True)
        run.fit(LatticeMatch(self, case, warp), steps=self.steps, lr=self.lr, name="register", schedule="cosine", final=0.01)
        return warp if case.first is None else composed(_in_box(case.first, case), warp)


def _in_box(first: Field, case: Pair) -> Field:
    """The start as it is, or, if it was told in another box, as the lattice of the fixed image shows it."""
    made = displacement(BSpline.on(case.grid), case.box())
    if first.box == made.box:
        return first
    with torch.no_grad():
        made.net.coefficients.copy_(on_lattice(first, case.grid).data / made.radius[0])  # type: ignore[operator]
    return made
