"""Fitting a field to slices that moved: their poses, gains and variances are found with it."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..cases.slices import Slices
from ..errors import InputError
from ..fields import MLP, Field, GridEncoding, Positive
from ..fields.activations import ReLU
from ..fields.mlp import Branch, Layers, Network
from ..kernels.mlp import mlp_forward
from ..losses import gaussian_nll
from ..operators.slices import FWHM_PER_SIGMA, slice_quadrature
from ..space.rigid import rotation
from .motion import LIKENESS, Found, Level, covering, placed
from .problem import Problem
from .slice_bends import Bends

ARM = 30.0  # mm: a pose's shift is told in this length, so that one step of the optimiser turns and shifts a brain about as far
FEATURES = 15  # numbers beside the intensity, from which the variance is told
EMBEDDING = 16  # numbers that a slice has for itself
EDGE = 0.2  # of the mean intensity, per mm: slopes below it are penalised by their square, above by their size
NOISE = 0.1  # standard deviation that pixels start with, of the contrast
LEAST = 1e-3  # standard deviation that is always left


class SlicePoses(nn.Module):
    """Rigid motion of each slice from where it is thought to lie, x -> R (x - m) + m + t about its own middle m.

    Args:
        case: the slices.
        start: [N, 4, 4] poses that they start from.
    """

    at: Tensor
    plane: Tensor
    columns: Tensor
    middle: Tensor
    corner: Tensor
    across: Tensor

    def __init__(self, case: Slices, start: Float[np.ndarray, "N 4 4"]):
        super().__init__()
        self.moves = nn.Parameter(torch.zeros(len(start), 6))
        self.start = start
        affines = start @ case.affines
        across = np.cross(affines[:, :3, 0], affines[:, :3, 1])
        self.middles = np.einsum("nij,nj->ni", start[:, :3, :3], case.centres()) + start[:, :3, 3]
        at, plane, _ = case.pixels()
        held = {"at": at, "plane": plane.long(), "columns": affines[:, :3, :2], "middle": self.middles, "corner": affines[:, :3, 3] - self.middles,
                "across": across / np.linalg.norm(across, axis=1, keepdims=True)}
        for name, value in held.items():
            whole = torch.as_tensor(value)
            self.register_buffer(name, whole.float() if whole.is_floating_point() else whole, persistent=False)

    def laid(self) -> tuple[Float[Tensor, "N 3 2"], Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
        """Of each slice: the steps from pixel to pixel, the place of pixel (0, 0) and the normal, mm."""
        turn = rotation(self.moves[:, :3])
        origin = torch.einsum("nij,nj->ni", turn, self.corner) + self.middle + ARM * self.moves[:, 3:]
        return turn @ self.columns, origin, torch.einsum("nij,nj->ni", turn, self.across)

    def prior(self) -> Float[Tensor, ""]:
        """Mean square of the turns, radians, and a thousandth of that of the shifts, mm."""
        return self.moves[:, :3].square().sum(1).mean() + 1e-3 * (ARM * self.moves[:, 3:]).square().sum(1).mean()

    @torch.no_grad()
    def maps(self) -> Float[np.ndarray, "N 4 4"]:
        """Where the slices lie now, as maps of the world in which their headers put them."""
        moves = self.moves.detach().double().cpu()
        m = np.tile(np.eye(4), (len(moves), 1, 1))
        m[:, :3, :3] = rotation(moves[:, :3]).numpy()
        m[:, :3, 3] = self.middles + ARM * moves[:, 3:].numpy() - np.einsum("nij,nj->ni", m[:, :3, :3], self.middles)
        return m @ self.start


class SliceFit(Problem):
    """A field of one intensity, the poses, gains and variances of the slices that measured it, and the variance of each pixel.

    A pixel shows gain times bias times the mean of the field under its slice's profile, with a normal error whose variance is that of its slice
    plus what a network tells from the field's features there. Misfit is minus the log of that density; intensities count as about 0 to 1.

    Args:
        encoding, width, depth: of the field's network.
        case: the slices.
        found: what they start from.
        samples: pixels in a step.
        nodes: of each pixel's profile; all of a pixel are shifted together at random.
        robust: False gives all pixels one variance.
        bias: levels of the encoding from which a slice's smooth gain is told; 0 is none.
        in_plane: full width at half maximum, in pixels, of a pixel within its slice; 0 is a point.
        edge, pose: weights of the penalties on slopes and on motion from the start.
        bend: weight of the penalty on bending; None holds the subject rigid.
    """

    memory = "the number of pixels in a step"
    value: Tensor
    nodes: Tensor
    weights: Tensor
    thickness: Tensor

    def __init__(self, encoding: GridEncoding, width: int, depth: int, case: Slices, found: Found, *, samples: int, nodes: int = 8,
                 robust: bool = True, bias: int = 0, in_plane: float = 0.0, edge: float = 0.0, pose: float = 0.1, bend: float | None = None):
        super().__init__()
        if bias > encoding.levels:
            raise InputError(f"a bias of {bias} levels, the grid has {encoding.levels}")
        self.case, self.samples, self.robust, self.in_plane = case, samples, robust, in_plane
        self.edge, self.pose, self.spec, self.step = edge, pose, MLP(encoding, width, depth), float(case.grid.spacing.min())
        lattice, _ = covering(case.grid, placed(case, found.poses), case.reach() + 3 * self.step)
        low, high = case.level()[0], sum(case.level())
        self.offset = min(0.0, low)  # the field is positive: only what was measured below zero takes its zero there
        self.scale = high - self.offset
        self.net = Field(self.spec, lattice.box(), 1 + FEATURES)
        self.poses = SlicePoses(case, found.poses)
        n, self.bend = len(case.slices), bend or 0.0
        self.bends = None if bend is None else Bends(lattice.box(), n, width)
        self.logits, self.log_variance = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.full((n,), 2 * math.log(NOISE)))
        self.embedding = nn.Parameter(0.1 * torch.randn(n, EMBEDDING))
        self.variance = _head(EMBEDDING + FEATURES, width, math.log(NOISE))
        self.smooth = bias * encoding.features
        self.biases = _head(EMBEDDING + self.smooth, width, 0.0) if bias else None
        z, w = slice_quadrature(case.profile, 1.0, nodes)
        self.gaussian = case.profile == "gauss"
        held = {"value": (case.pixels()[2] - self.offset) / self.scale, "nodes": z, "weights": w, "thickness": case.thickness}
        for name, array in held.items():
            self.register_buffer(name, torch.as_tensor(array).float(), persistent=False)
        self.mean = float(self.value.mean())

    @property
    def gain(self) -> Float[Tensor, "N"]:
        """Of each slice; their mean is one."""
        return len(self.logits) * torch.softmax(self.logits, 0)

    def batch(self, rng: torch.Generator) -> Any:
        """Pixels; the random shift of each one's nodes, in steps of them; places in their planes; and for a few of them a neighbour."""
        device, k = rng.device, len(self.nodes)
        pixel = torch.randint(len(self.value), (self.samples,), generator=rng, device=device)
        shift = torch.rand(self.samples, generator=rng, device=device) - 0.5
        aside = torch.randn(self.samples, k, 2, generator=rng, device=device) if self.in_plane else None
        node = torch.randint(k, (self.samples // 2,), generator=rng, device=device)
        away = nn.functional.normalize(torch.randn(self.samples // 2, 3, generator=rng, device=device), dim=-1)
        return pixel, shift, aside, node, away

    def points(self, pixel: Int[Tensor, "S"], shift: Float[Tensor, "S"] | None = None,
               aside: Float[Tensor, "S K 2"] | None = None) -> tuple[Float[Tensor, "S K 3"], Float[Tensor, "S K"]]:
        """The nodes of pixels' profiles, mm, and their weights."""
        columns, origin, across = self.poses.laid()
        plane, z = self.poses.plane[pixel], self.nodes.expand(len(pixel), -1)
        w = self.weights.expand_as(z)
        if shift is not None and z.shape[1] > 1:
            moved = z + shift[:, None] * (self.nodes[1] - self.nodes[0])
            w = w * torch.exp((z.square() - moved.square()) * FWHM_PER_SIGMA**2 / 2) if self.gaussian else w
            z = moved
        at = self.poses.at[pixel][:, None, :]
        if aside is not None:
            at = at + self.in_plane / FWHM_PER_SIGMA * aside
        x = (columns.index_select(0, plane)[:, None] @ at[..., None])[..., 0] + origin.index_select(0, plane)[:, None]
        if self.bends is not None:
            x = x + self.bends(x.mean(1), plane)[:, None]
        return x + (z * self.thickness[plane][:, None])[..., None] * across.index_select(0, plane)[:, None], w

    def told(self, x: Float[Tensor, "*batch 3"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch F"], Float[Tensor, "*batch E"]]:
        """Intensity, features and encoding at places, mm."""
        net = cast(Network, self.net.net)
        read = net.encoding(self.net.unit_coordinates(x))
        layers = [*net.body.linears(), cast(Branch, net.branches[0]).last]
        out = mlp_forward(read.reshape(-1, read.shape[-1]), [m.weight for m in layers], [m.bias for m in layers], net.fused)
        out = out.reshape(*x.shape[:-1], 1 + FEATURES)
        return nn.functional.softplus(out[..., 0]), out[..., 1:], read

    def seen(self, pixel: Int[Tensor, "S"]) -> tuple[Float[Tensor, "S"], Float[Tensor, "S"], Float[Tensor, "S"]]:
        """What pixels show; the variance of each; and the logs of the biases."""
        x, w = self.points(pixel)
        return self.shown(pixel, w, *self.told(x))

    def shown(self, pixel: Int[Tensor, "S"], w: Float[Tensor, "S K"], value: Float[Tensor, "S K"], features: Float[Tensor, "S K F"],
              read: Float[Tensor, "S K E"]) -> tuple[Float[Tensor, "S"], Float[Tensor, "S"], Float[Tensor, "S"]]:
        """The same from what the field says at the nodes of their profiles, whose weights are w."""
        plane = self.poses.plane[pixel]
        own = self.embedding.index_select(0, plane)
        log_bias = torch.zeros_like(value[:, 0])
        if self.biases is not None:
            known = (w[..., None] * read[..., :self.smooth]).sum(1)
            log_bias = self.biases(torch.cat([own, known], 1))[:, 0]
        factor = self.gain.index_select(0, plane) * log_bias.exp()
        predicted = factor * (w * value).sum(1)
        if not self.robust:
            return predicted, self.log_variance.mean().exp().expand_as(predicted) + LEAST**2, log_bias
        spread = self.variance(torch.cat([own, (w[..., None] * features).sum(1)], 1))[:, 0].exp()
        return predicted, (factor.detach() * spread).square() + self.log_variance.index_select(0, plane).exp() + LEAST**2, log_bias

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        pixel, shift, aside, node, away = batch
        x, w = self.points(pixel, shift, aside)
        value, features, read = self.told(x)
        predicted, variance, log_bias = self.shown(pixel, w, value, features, read)
        data = gaussian_nll(predicted[:, None], self.value[pixel, None], variance[:, None])
        out = {"data": data, "pose": self.pose * self.poses.prior()}
        if self.edge:
            few = torch.arange(len(node), device=node.device)
            slope = (self.told(x.detach()[few, node] + self.step * away)[0] - value[few, node]) / self.step
            delta = EDGE * self.mean
            out["edge"] = self.edge * delta * ((1 + (slope / delta).square()).sqrt() - 1).mean()
        if self.bends is not None:
            out["bend"] = self.bend * self.bends.stretch(x.mean(1), self.poses.plane[pixel])
        if self.biases is not None:
            out["bias"] = 100 * log_bias.mean().square()
        return out

    @torch.no_grad()
    def found(self) -> Found:
        """How the slices lie. Those that are unlike what is in their place are worth nothing, others as much as their variance is usual."""
        parts = [self.seen(pixel) for pixel in torch.arange(len(self.value), device=self.value.device).split(1 << 14)]
        level = Level(self.case, self.case.grid, self.offset, self.scale)
        shown, variance = (torch.cat([part[k] for part in parts]).cpu() for k in (0, 1))
        mean, alike = level.sums(variance) / level.count, level.likeness(shown)
        worth = np.where(alike < LIKENESS, 0.0, np.minimum(1.0, np.median(mean) / mean))
        return Found(self.poses.maps(), self.gain.double().cpu().numpy(), worth, alike)

    def field(self) -> Field:
        """The intensity alone, in the unit of the case."""
        field = Field(Positive(self.spec, "softplus"), self.net.box, 1, scale=self.scale, offset=self.offset, unit=self.case.unit)
        rows = {f"net.{k}": v[:1] if ".last." in k else v for k, v in self.net.net.state_dict().items()}
        field.net.load_state_dict(rows)
        return field.to(self.value.device)


def _head(n_in: int, width: int, start: float) -> nn.Sequential:
    """A network of one hidden layer that says `start` at first."""
    last = nn.Linear(width, 1)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.fill_(start)
    return nn.Sequential(Layers(n_in, [width], ReLU()), last)
