"""Encodings: what a network is told about a place. Each maps u [*batch, D] to `n_out` features."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.grid import grid_encode
from ..kernels.grid_layout import GridLayout
from ..space import Box
from .activations import Sine
from .jet import Affine, Differentiable, Jet, activate, beside, linear
from .spec import Spec, bounded, spec


class Encoding(Differentiable):
    """A built encoding; networks accept nothing else in front of them."""

    n_out: int


@spec
class Identity(Spec):
    """gamma(u) = u."""

    def build(self, box: Box, channels: int) -> Coordinates:
        return Coordinates(box.ndim)


class Coordinates(Encoding):
    """The module of `Identity`."""

    def __init__(self, ndim: int):
        super().__init__()
        self.n_out = ndim

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return u

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        return Affine.identity(u)


@spec
class Fourier(Spec):
    """gamma(u) = [cos 2 pi B v, sin 2 pi B v] with v = (u + 1) / 2 (Tancik et al., NeurIPS 2020, section 5).

    Args:
        frequencies: "gaussian": B ~ N(0, sigma^2), drawn once and kept with the weights; "positional": on each axis sigma^(j / m),
            j = 0 ... m - 1; "basic": B is the identity.
        size: number of frequencies, half the number of features; "positional" shares them among the axes, "basic" has one for each axis.
        sigma: bandwidth, periods per box (twice the box's radius): too low blurs, too high gives grain.
    """

    frequencies: Literal["gaussian", "positional", "basic"] = "gaussian"
    size: int = 256
    sigma: float = 4.0

    def __post_init__(self) -> None:
        bounded(self, size=(1, 1 << 16), sigma=(1e-6, 1e4))
        if self.frequencies not in ("gaussian", "positional", "basic"):
            raise InputError(f"Fourier: frequencies must be gaussian, positional or basic, got {self.frequencies}")

    def build(self, box: Box, channels: int) -> Waves:
        ndim = box.ndim
        if self.frequencies == "gaussian":
            return Waves(self.sigma * torch.randn(self.size, ndim), math.pi, math.pi)
        per_axis = max(self.size // ndim, 1) if self.frequencies == "positional" else 1
        ladder = torch.tensor([self.sigma ** (j / per_axis) for j in range(per_axis)])
        return Waves(_on_each_axis(ladder, ndim), math.pi, math.pi)


@spec
class NeRFEncoding(Spec):
    """gamma(u) = [u, cos 2^l pi u, sin 2^l pi u], l = 0 ... octaves - 1, on each axis (Mildenhall et al., ECCV 2020, eq. 4)."""

    octaves: int = 10

    def __post_init__(self) -> None:
        bounded(self, octaves=(1, 24))

    def build(self, box: Box, channels: int) -> Waves:
        return Waves(_on_each_axis(2.0 ** torch.arange(self.octaves), box.ndim), math.pi, 0.0, identity=True)


@spec
class Harmonics(Spec):
    """gamma(u) = [cos k pi v / 2, sin k pi v / 2], v = (u + 1) / 2, k = 1 ... n, on each axis (CoIL: Sun et al., IEEE TCI 2021).

    All of them are slow: the highest has n / 4 periods across the box, and what is finer is left to the network.

    Args:
        n: number of frequencies of each axis.
    """

    n: int = 10

    def __post_init__(self) -> None:
        bounded(self, n=(1, 1 << 12))

    def build(self, box: Box, channels: int) -> Waves:
        ladder = torch.arange(1, self.n + 1, dtype=torch.float32)
        return Waves(_on_each_axis(ladder, box.ndim), math.pi / 4, math.pi / 4)


def _on_each_axis(ladder: Float[Tensor, "m"], ndim: int) -> Float[Tensor, "n D"]:
    """One row for each axis and frequency."""
    return torch.cat([ladder[:, None] * row for row in torch.eye(ndim)])


class Waves(Encoding):
    """[u if `identity`, cos z, sin z] with z = B (scale u + shift); B [m, D] is a buffer that `state_dict` keeps."""

    frequencies: Tensor

    def __init__(self, frequencies: Float[Tensor, "m D"], scale: float, shift: float, identity: bool = False):
        super().__init__()
        self.register_buffer("frequencies", frequencies)
        self.scale, self.shift, self.identity = scale, shift, identity
        self.n_out = 2 * frequencies.shape[0] + frequencies.shape[1] * identity

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch n"]:
        z = (self.scale * u + self.shift) @ self.frequencies.T
        return torch.cat([*([u] if self.identity else []), torch.cos(z), torch.sin(z)], -1)

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        here, b = Affine.identity(u), self.frequencies
        phase = self.shift * b.sum(1)
        phase = torch.cat([phase + math.pi / 2, phase])  # cos z = sin(z + pi / 2)
        waves = activate(linear(here, self.scale * torch.cat([b, b])), phase, Sine(), u.shape[-1], order)
        return beside([here, waves], order) if self.identity else waves


@spec
class GridEncoding(Spec):
    """Features read from grids of several resolutions, each interpolated d-linearly, side by side (Mueller et al., SIGGRAPH 2022).

    Cells are about equal in mm along the spatial axes and shrink geometrically from level to level; a further axis, such as time, is
    cut as finely in unit coordinates. A level whose vertices fit in 2^log2_table rows is dense, a finer one is hashed. Beyond the box the
    border value goes on. There is no second derivative.

    Args:
        levels: number of grids.
        finest_mm, coarsest_mm: largest side of the cells of the last and the first level.
        log2_table: rows of one level, as a power of two.
        features: numbers at each vertex.
    """

    levels: int = 12
    finest_mm: float = 1.0
    coarsest_mm: float = 32.0
    log2_table: int = 17
    features: int = 2

    def __post_init__(self) -> None:
        bounded(self, levels=(1, 32), finest_mm=(1e-6, 1e6), coarsest_mm=(self.finest_mm, 1e6), log2_table=(4, 26), features=(1, 16))
        if self.levels * self.features << self.log2_table > 1 << 31:
            raise InputError(f"GridEncoding: {self.levels} levels of 2^{self.log2_table} rows of {self.features} features are too many")

    @classmethod
    def growing(cls, growth: float, finest_mm: float, coarsest_mm: float, log2_table: int = 17, features: int = 2) -> GridEncoding:
        """As many levels as it takes to refine by at most `growth` each time (NeSVoR: 1.3819)."""
        if not 1.01 <= growth <= 100 or not 0 < finest_mm <= coarsest_mm:
            raise InputError(f"a grid is refined by 1.01 to 100 from coarse to fine, not by {growth} from {coarsest_mm} to {finest_mm} mm")
        return cls(1 + math.ceil(math.log(coarsest_mm / finest_mm) / math.log(growth) - 1e-9), finest_mm, coarsest_mm, log2_table, features)

    @classmethod
    def example(cls, box: Box) -> GridEncoding:
        return cls(levels=3, finest_mm=8.0, log2_table=8)

    def layout(self, box: Box) -> GridLayout:
        """Cells of each level along each axis of the box."""
        ratio = self.finest_mm / self.coarsest_mm
        sizes = [self.coarsest_mm * ratio ** (k / max(self.levels - 1, 1)) for k in range(self.levels)]
        extent = box.sides / box.radius * box.radius[0]
        return GridLayout(tuple(tuple(max(1, math.ceil(e / mm - 1e-6)) for e in extent) for mm in sizes), self.log2_table, self.features)

    def build(self, box: Box, channels: int) -> Levels:
        if box.ndim > 4:
            raise InputError(f"GridEncoding: 1 to 4 coordinates, the box has {box.ndim}")
        return Levels(self.layout(box), box)


class Levels(Encoding):
    """The module of a `GridEncoding`: one `table` for all levels, and a `level_mask` [L] that training from coarse to fine opens."""

    jet_order = 1
    level_mask: Tensor
    to_box: Tensor

    def __init__(self, layout: GridLayout, box: Box):
        super().__init__()
        self.layout, self.n_out = layout, layout.width
        self.table = nn.Parameter(torch.empty(layout.rows, layout.features).uniform_(-1e-4, 1e-4))
        self.register_buffer("level_mask", torch.ones(layout.levels))
        self.register_buffer("to_box", torch.tensor([float(v) for v in box.radius / box.sides]), persistent=False)

    def set_levels(self, active: float) -> None:
        """Open the first `active` levels; the fraction fades the next one in."""
        with torch.no_grad():
            self.level_mask.copy_((active - torch.arange(self.layout.levels, device=self.level_mask.device)).clamp(0, 1))

    def forward(self, u: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch n"]:
        place = (u * self.to_box + 0.5).reshape(-1, u.shape[-1])
        return grid_encode(place, self.table, self.layout, self.level_mask).reshape(*u.shape[:-1], self.n_out)

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        """Along an axis a d-linear function is straight inside a cell, so its slope is the difference of the values on the two faces."""
        self.require_order(order)
        place, ndim = u * self.to_box + 0.5, u.shape[-1]
        inside = ((place >= 0) & (place <= 1)) * self.to_box
        axes = torch.eye(ndim, dtype=torch.bool, device=u.device)[:, None]
        tables = self.table.split([stop - start for start, stop in pairwise(self.layout.offsets)])
        slopes = []
        for level, (cells, table) in enumerate(zip(self.layout.resolutions, tables, strict=True)):
            one = GridLayout((cells,), self.layout.log2_table, self.layout.features)
            count = torch.tensor(cells, device=u.device)
            low = (place.detach() * count).floor().clamp(min=0).minimum(count - 1)
            faces = torch.stack([torch.where(axes, (low + side) / count, place) for side in (0, 1)])  # [2, D, n, D]
            values = grid_encode(faces.flatten(0, 2), table, one, self.level_mask[level:level + 1])
            near, far = values.unflatten(0, (2, ndim, len(u)))
            slopes.append((far - near) * (inside * count).T[..., None])
        return torch.cat([self.forward(u)[None], torch.cat(slopes, -1)])
