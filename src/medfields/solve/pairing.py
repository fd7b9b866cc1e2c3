"""Two images compared through a displacement: the problems that methods of registration share.

With phi(x) = x + u(x), F the fixed and M the aligned moving image, F(x) and M(phi(x)) are to be alike, and u (or, of a flow, its velocity) smooth.
Both come from one sweep through the network: its value and its derivatives travel side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..cases.pair import Pair
from ..errors import InputError
from ..fields import Field
from ..fields.spec import Spec
from ..fields.warp import Flow, InPlane, Integral, Plane, displacement
from ..losses import ncc
from ..losses.local import local_ncc
from ..space import Grid, Volume
from .problem import Problem

Points = Float[Tensor, "*batch 3"]
Penalty = Callable[..., Tensor]  # (grad u), or (grad u, second derivatives), per mm -> a scalar, weighted


class Match(Problem):
    """What point and block matching share: the images, from blurred to sharp, and the sweep.

    Args:
        case: the images.
        warp: the displacement that is sought.
        penalty: of the derivatives of the displacement, or of a flow's velocity, in world mm; None for none.
        order: the highest derivative that the penalty is given, 1 or 2.
        blur: Gaussian widths (sigma) in mm; equal shares of the progress see the images blurred so, one after the other.

    Raises:
        InputError: for no or negative widths, or if no point that counts lies where the moving image counts.
    """

    points: Tensor

    def __init__(self, case: Pair, warp: Field, penalty: Penalty | None = None, order: int = 1, blur: Sequence[float] = (0.0,)):
        super().__init__()
        if not blur or min(blur) < 0:
            raise InputError(f"blur must be widths of at least 0 mm, got {tuple(blur)}", "--blur 0 compares the images as they are")
        self.warp, self.penalty, self.order = warp, penalty, order
        self.velocity = velocity_of(warp) if _integral(warp.net) else None  # its parameters are those of the warp
        self.fixed = nn.ModuleList(case.fixed.blurred(mm) for mm in blur)
        self.moving = nn.ModuleList(case.aligned.blurred(mm) for mm in blur)
        self.moving_mask = None if case.aligned_mask is None else case.aligned_mask.blurred(0.0)
        self.level = 0
        self.register_buffer("points", case.points(), persistent=False)
        if not self.counts(self.points).any():
            raise InputError("the masks of the two images do not overlap as they are started", "--start centres lays them on one another")

    def before_step(self, progress: float) -> None:
        self.level = min(int(progress * len(self.fixed)), len(self.fixed) - 1)

    @torch.no_grad()
    def counts(self, y: Points) -> Bool[Tensor, "*batch"]:
        """Whether the moving image counts at its points y."""
        return torch.ones_like(y[..., 0], dtype=torch.bool) if self.moving_mask is None else self.moving_mask(y)[..., 0] > 0.5

    def swept(self, x: Points) -> tuple[Points, dict[str, Tensor]]:
        """u(x) in mm, and the penalty at these points."""
        if self.penalty is None:
            return self.warp(x), {}
        source = self.warp if self.velocity is None else self.velocity
        value, *derivatives = source.value_and_jacobian(x) if self.order == 1 else source.value_jacobian_hessian(x)
        return value if self.velocity is None else self.warp(x), {"penalty": self.penalty(*derivatives)}

    def drawn(self, n: int, rng: torch.Generator) -> Points:
        """n random voxels that count, mm."""
        return self.points[torch.randint(len(self.points), (n,), generator=rng, device=rng.device)]


class PointMatch(Match):
    """The correlation coefficient of F(x) and M(phi(x)) over random voxels.

    Args:
        case, warp, penalty, order, blur: as in `Match`.
        n: voxels in a step.
    """

    memory = "points, the number of points in a step"

    def __init__(self, case: Pair, warp: Field, n: int, penalty: Penalty | None = None, order: int = 1, blur: Sequence[float] = (0.0,)):
        super().__init__(case, warp, penalty, order, blur)
        self.n = n

    def batch(self, rng: torch.Generator) -> Points:
        return self.drawn(self.n, rng)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        u, penalty = self.swept(batch)
        return {"unlike": 1 - self.alike(batch, batch + u), **penalty}

    def alike(self, x: Points, y: Points) -> Float[Tensor, ""]:
        """Correlation of the fixed image at x and the moving one at y, where it counts."""
        if self.moving_mask is not None:
            kept = self.counts(y)
            x, y = x[kept], y[kept]
        return ncc(self.fixed[self.level](x), self.moving[self.level](y))


class BlockMatch(Match):
    """Windowed correlation, which needs neighbours, for functions of points: small blocks of voxels at random places, and a coarse lattice over
    everything (hybrid sampling of Sun et al., arXiv 2206.03111).

    The displacement is computed at the nodes of a block, every `every`-th voxel, and is linear between; images are read at all its voxels. Of
    the windows those count whose centre lies a radius inside the block, and in the masks. The coarse lattice sees images that are blurred to
    its spacing, is shifted at random by up to half a step, and counts as one more block.

    Args:
        case, warp, penalty, order, blur: as in `Match`.
        blocks: in a step.
        nodes: along each side of a block.
        every: voxels from node to node.
        radius: of the windows, voxels.
        coarse: nodes of the coarse lattice, at most.

    Raises:
        InputError: if a block is too small for its windows.
    """

    memory = "blocks, the number of blocks in a step"
    offsets: Tensor
    fine_offsets: Tensor
    lattice: Tensor
    step: Tensor

    def __init__(self, case: Pair, warp: Field, blocks: int, nodes: int = 9, every: int = 2, radius: int = 2, coarse: int = 4096,
                 penalty: Penalty | None = None, order: int = 1, blur: Sequence[float] = (0.0,)):
        super().__init__(case, warp, penalty, order, blur)
        self.blocks, self.radius, self.margin = blocks, radius, 0 if case.grid.is_2d else radius  # a slice's windows are cut off at its block
        side = (nodes - 1) * every + 1
        if side <= 2 * radius:
            raise InputError(f"a block of {side} voxels holds no window of radius {radius}", f"at least {2 * radius // every + 2} nodes")
        coarse_grid = lattice(case, coarse)
        self.register_buffer("offsets", _block(case.grid, nodes, every), persistent=False)
        self.register_buffer("fine_offsets", _block(case.grid, side, 1), persistent=False)
        self.register_buffer("lattice", coarse_grid.points(), persistent=False)
        self.register_buffer("step", torch.tensor(coarse_grid.affine[:3, :3].T.copy(), dtype=torch.float32), persistent=False)
        self.inside = Volume(case.inside.float(), case.grid)
        self.coarse = nn.ModuleList(image.blurred(0.5 * float(coarse_grid.spacing[:2].max())) for image in (case.fixed, case.aligned))

    def batch(self, rng: torch.Generator) -> tuple[Float[Tensor, "K 3"], Float[Tensor, "I J L 3"]]:
        """Centres of the blocks, and the nodes of the coarse lattice, mm."""
        shift = (torch.rand(3, generator=rng, device=rng.device) - 0.5) @ self.step
        return self.drawn(self.blocks, rng), self.lattice + shift

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        centres, coarse = batch
        middle = centres[:, None, None, None]
        nodes, x = middle + self.offsets, middle + self.fine_offsets
        u, penalty = self.swept(torch.cat([nodes.reshape(-1, 3), coarse.reshape(-1, 3)]))
        u, u_coarse = u.split([nodes[..., 0].numel(), coarse[..., 0].numel()])
        u = u.reshape(nodes.shape).movedim(-1, 1)
        between = nn.functional.interpolate(u, x.shape[1:4], mode="trilinear", align_corners=True).movedim(1, -1)
        fine = self.alike(self.fixed[self.level], self.moving[self.level], x, between, self.margin)
        whole = self.alike(self.coarse[0], self.coarse[1], coarse, u_coarse.reshape(coarse.shape), 0)
        return {"unlike": 1 - (self.blocks * fine + whole) / (self.blocks + 1), **penalty}

    def alike(self, fixed: nn.Module, moving: nn.Module, x: Points, u: Points, margin: int) -> Float[Tensor, ""]:
        """Mean correlation in the windows of lattices of points x, [*, I, J, K, 3] mm, displaced by u mm."""
        with torch.no_grad():
            here, mask = fixed(x)[..., 0], self.inside(x)[..., 0] > 0.5
        y = x + u
        return local_ncc(here, moving(y)[..., 0], self.radius, mask & self.counts(y), margin)


def _block(grid: Grid, n: int, every: int) -> Float[Tensor, "n n m 3"]:
    """Offsets in mm from the middle voxel of a block to its nodes; of slices it is one voxel thick. Nodes lie on voxel centres."""
    steps = every * (torch.arange(n) - n // 2).double()
    axes = [steps, steps, steps[n // 2:n // 2 + 1] * 0 if grid.is_2d else steps]
    return (torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ torch.tensor(grid.affine[:3, :3].T.copy())).float()


def lattice(case: Pair, most: int) -> Grid:
    """A lattice over the voxels that count, along the axes of the fixed image: its voxels, or larger ones if there would be more than `most`."""
    where = torch.nonzero(case.inside)
    lo, hi = where.amin(0).numpy(), where.amax(0).numpy() + 1
    grid = case.grid.crop(lo, hi - lo)
    fine, mm = grid, float(grid.spacing.min())
    while grid.size > most:
        mm *= 1.05
        grid = fine.with_spacing(np.maximum(fine.spacing, mm).tolist())
    return grid


def stretch(slope: Float[Tensor, "*points 3 3"]) -> Float[Tensor, "*points 3 3"]:
    """grad phi = 1 + grad u."""
    return slope + torch.eye(3, dtype=slope.dtype, device=slope.device)


def flow(case: Pair, velocity: Spec, steps: int, zero: bool = False) -> Field:
    """A fresh displacement that carries points by a stationary velocity for unit time, in `steps` steps; slices stay in their plane."""
    if case.grid.is_2d:
        velocity = InPlane(velocity, int(np.abs(case.grid.normal(2)).argmax()))
    return case.displacement(Flow(velocity, steps), zero=zero)


def velocity_of(warp: Field) -> Field:
    """The velocity of a flow as a field of its own, mm per unit time, with the flow's own weights.

    Raises:
        InputError: if the warp is no flow.
    """
    found = _integral(warp.net)
    if found is None:
        raise InputError(f"{type(warp.spec).__name__} has no velocity", "only a Flow has one")
    made = displacement(found.spec.velocity, warp.box, seed=0)
    made.net = found.velocity
    return made


def _integral(net: nn.Module) -> Integral | None:
    """The flow in a network, which may be held in a plane."""
    net = net.inner if isinstance(net, Plane) else net
    return net if isinstance(net, Integral) else None


def exponential(velocity: Float[Tensor, "B 3 I J K"], squarings: int = 7) -> Float[Tensor, "B 3 I J K"]:
    """The displacement of exp(v) by scaling and squaring (Arsigny et al., MICCAI 2006): u_0 = v / 2^n, u <- u(x) + u(x + u(x)) n times.

    Args:
        velocity: on a lattice, in its steps; what lies beyond is as at the border. Of the displacement minus `velocity` is the inverse.
        squarings: n.
    """
    at = index_points(velocity)
    u = velocity / 2**squarings
    for _ in range(squarings):
        u = u + sampled(u, at + u.movedim(1, -1))
    return u


def indices(of: Grid, on: Grid) -> Float[Tensor, "N 3"]:
    """The voxel centres of one grid as indices of another."""
    return torch.tensor(on.index(of.points().reshape(-1, 3).double().numpy()), dtype=torch.float32)


def displaced(grid: Grid, u: Float[Tensor, "3 I J K"]) -> Float[Tensor, "N 3"]:
    """x + u(x) at the voxels of a grid, u in mm, as indices of the same grid."""
    to_index = torch.tensor(np.linalg.inv(grid.affine)[:3, :3], dtype=torch.float32, device=u.device)
    return torch.cartesian_prod(*(torch.arange(float(n), device=u.device) for n in grid.shape)) + u.flatten(1).T @ to_index.T


def index_points(like: Float[Tensor, "B C I J K"]) -> Float[Tensor, "I J K 3"]:
    """The indices of a lattice's nodes."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in like.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def sampled(values: Float[Tensor, "B C I J K"], index: Float[Tensor, "B i j k 3"]) -> Float[Tensor, "B C i j k"]:
    """A lattice read linearly at fractional indices; beyond it its border goes on. Differentiable in both."""
    top = torch.tensor([max(n - 1, 1) for n in values.shape[2:]], dtype=index.dtype, device=index.device)
    place = (2 * index / top - 1).flip(-1)
    return nn.functional.grid_sample(values, place, mode="bilinear", padding_mode="border", align_corners=True)


def differences(u: Float[Tensor, "B 3 I J K"], grid: Grid) -> Float[Tensor, "B I J K 3 3"]:
    """grad u per mm by forward differences on a lattice of values in mm; across the last layer it is 0."""
    parts = [u.diff(dim=2 + d, append=u.narrow(2 + d, u.shape[2 + d] - 1, 1)) for d in range(3)]
    to_index = torch.as_tensor(np.linalg.inv(grid.affine)[:3, :3], dtype=u.dtype, device=u.device)
    return torch.stack(parts, -1).movedim(1, -2) @ to_index
