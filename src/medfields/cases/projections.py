"""X-ray projections of one subject: the case of the task `ct`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import GeometryError, InputError
from ..operators.projections import LineIntegral, Projector
from ..operators.spectrum import Spectrum
from ..space import Box, Geometry, Grid, Volume
from .lattice import lattice

if TYPE_CHECKING:
    from ..io.projections import Scan


@dataclass(frozen=True, eq=False)
class Projections:
    """Line integrals of the attenuation along known rays, and the lattice on which the answer is wanted.

    Args:
        data: [V, R, C] line integrals -log(I / I0), without unit: attenuation in 1/mm times mm.
        geometry: where the V x R x C rays run.
        grid: the lattice of the result; a slice has K = 1.
        good: [V, R, C] which pixels to trust; None is all of them.
        water: attenuation of water, 1/mm, at the energy that the data count for; 0 if unknown. With it, results can be told in HU.
        photons: in a pixel of the open beam; 0 if unknown.
        prior: an earlier scan of the same subject, 1/mm, aligned with this one.
        metal: where metal is, as a mask (above 0.5).
        spectrum: of the tube, for methods that model it.
        name: how messages and reports call it.

    Raises:
        GeometryError: if data and geometry differ in size, or no ray meets the grid.
        InputError: for values that are not finite among the trusted ones, or nothing to trust.
    """

    data: Float[Tensor, "V R C"]
    geometry: Geometry
    grid: Grid
    good: Bool[Tensor, "V R C"] | None = None
    water: float = 0.0
    photons: float = 0.0
    prior: Volume | None = None
    metal: Volume | None = None
    spectrum: Spectrum | None = None
    name: str = "projections"

    def __post_init__(self) -> None:
        expected = (self.geometry.views, *self.geometry.shape)
        if tuple(self.data.shape) != expected:
            raise GeometryError(f"'{self.name}' holds {' x '.join(map(str, self.data.shape))} values, its geometry has "
                                f"{' x '.join(map(str, expected))} (views x rows x columns)", "the angles or the detector size are another scan's")
        if self.good is not None and self.good.shape != self.data.shape:
            raise InputError(f"the mask of good pixels is {tuple(self.good.shape)}, the data are {tuple(self.data.shape)}")
        trusted = self.data if self.good is None else self.data[self.good]
        if len(trusted) == 0:
            raise InputError(f"no pixel of '{self.name}' can be trusted")
        if not torch.isfinite(trusted).all():
            raise InputError(f"{int((~torch.isfinite(trusted)).sum())} values of '{self.name}' are NaN or infinite", "mask them: good=...")
        if float(trusted.max()) <= 0:
            raise InputError(f"'{self.name}' attenuates nowhere: all line integrals are zero or negative", "was -log(I / I0) forgotten?")
        seen = self.geometry.sees(self.box())
        if not seen.any():
            raise GeometryError(f"no ray of '{self.name}' meets the {self.grid}", "distances and pitch are mm, angles radians; or give another grid")
        if (seen == 0).any():
            raise GeometryError(f"{int((seen == 0).sum())} of {len(seen)} views of '{self.name}' look past the {self.grid}",
                                "check the angles, the isocentre and the grid's position")

    @property
    def unit(self) -> str:
        """Of what methods return."""
        return "1/mm"

    @property
    def weight(self) -> Float[Tensor, "V R C"]:
        """1 where a pixel is to be trusted, else 0."""
        return torch.ones_like(self.data) if self.good is None else self.good.to(self.data)

    @property
    def clean(self) -> Float[Tensor, "V R C"]:
        """The data with zeros where they are not to be trusted."""
        return self.data if self.good is None else torch.where(self.good, self.data, torch.zeros_like(self.data))

    def box(self) -> Box:
        """The part of the world that the wanted voxels fill."""
        return self.grid.box()

    def projector(self, subrays: int = 1) -> Projector:
        """The exact matrix from the grid to the rays."""
        return Projector(self.grid, self.geometry, subrays)

    def rays(self, step: float | None = None) -> LineIntegral:
        """Integrals of any function along rays, in parts of `step` mm (default: the finest voxel side)."""
        sides = self.grid.spacing[:2] if self.grid.is_2d else self.grid.spacing
        return LineIntegral(self.box(), float(step or sides.min()))

    @cached_property
    def level(self) -> float:
        """A typical attenuation of the subject, 1/mm: the 99th percentile of a rough reconstruction; networks count in units of it."""
        x = self.rough().data
        inside = x[x > 0.05 * x.max()]
        return float(torch.quantile(inside[: 1 << 23], 0.99)) if len(inside) else 1.0

    def rough(self, side: int = 48, views: int = 60, steps: int = 10) -> Volume:
        """A quick reconstruction in 1/mm that is never negative: a few steps of SIRT, with at most about `side` voxels along an axis and
        about `views` of the views."""
        coarse = self.grid.with_spacing([float(s * max(1.0, n / side)) for s, n in zip(self.grid.spacing, self.grid.shape, strict=True)])
        every = max(1, self.geometry.views // views)
        matrix = Projector(coarse, self.geometry.subset(slice(None, None, every)))
        weight, data = self.weight[::every], self.clean[::every]
        rows, columns = matrix.apply(torch.ones(coarse.shape)), matrix.adjoint(weight)
        x = torch.zeros(coarse.shape)
        for _ in range(steps):
            x = (x + matrix.adjoint(weight * (data - matrix.apply(x)) / rows.clamp_min(1e-3)) / columns.clamp_min(1e-3)).clamp_min(0)
        return Volume(x, coarse, self.unit)

    def misfit(self, volume: Volume) -> tuple[float, float]:
        """How far the projections of a volume on this grid are from the data: rms over the trusted pixels, and as a share of the data's rms."""
        error = self.weight * (self.projector().apply(volume.data[0].contiguous()) - self.clean)
        count = self.weight.sum().clamp_min(1)
        rms, size = (float((part.square().sum() / count).sqrt()) for part in (error, self.clean))
        return rms, rms / max(size, 1e-30)

    def subset(self, views: Sequence[int] | np.ndarray | slice) -> Projections:
        """The case with some of its views."""
        index: Any = views if isinstance(views, slice) else torch.as_tensor(np.array(views))
        good = None if self.good is None else self.good[index]
        return replace(self, data=self.data[index], geometry=self.geometry.subset(views), good=good)

    def split(self, share: float) -> tuple[Projections, Projections]:
        """Views to fit and views to judge by: about `share` of them, evenly spread, never the first or the last.

        Raises:
            InputError: if one side would be empty.
        """
        n = self.geometry.views
        kept = round(share * n)
        if not 0 < kept < n - 1:
            raise InputError(f"cannot hold out {share:g} of {n} views", "a share that leaves at least two views")
        held = np.unique(((np.arange(kept) + 0.5) * n / kept).astype(int))
        return self.subset(np.setdiff1d(np.arange(n), held)), self.subset(held)

    def fingerprint(self) -> str:
        """A hash of everything a result depends on."""
        g = self.geometry
        h = hashlib.sha256(repr((self.grid.shape, g.beam, g.shape, g.arc, self.water, self.photons, self.spectrum)).encode())
        for array in (self.grid.affine, g.source, g.centre, g.u, g.v):
            h.update(array.tobytes())
        for tensor in (self.data, self.good, *(None if v is None else v.data for v in (self.prior, self.metal))):
            h.update(b"-" if tensor is None else tensor.cpu().numpy().tobytes())
        for volume in (self.prior, self.metal):
            h.update(b"-" if volume is None else volume.grid.affine.tobytes())
        return h.hexdigest()

    @classmethod
    def from_scan(cls, scan: Scan, grid: Grid | None = None) -> Projections:
        """What a file holds (`io.read_projections`) as a case, on `grid`, else on the file's, else on the lattice that the views see."""
        good = None if scan.good is None else torch.as_tensor(np.ascontiguousarray(scan.good), dtype=torch.bool)
        spectrum = None if scan.spectrum is None else Spectrum(*(tuple(map(float, part)) for part in scan.spectrum))
        data = torch.as_tensor(np.ascontiguousarray(scan.data), dtype=torch.float32)
        return cls(data, scan.geometry, grid or scan.grid or lattice(scan.geometry), good=good, water=float(scan.water or 0.0),
                   photons=float(scan.photons or 0.0), spectrum=spectrum, name=scan.name or "projections")

    @classmethod
    def toy(cls, seed: int = 0, size: int = 24, views: int = 12) -> Projections:
        """A small slice of ellipses and its exact parallel projections with a little noise, an earlier scan that lacks one of them, a
        spectrum, and a mask of the densest."""
        rng = np.random.default_rng(seed)
        grid = Grid.from_spacing((size, size, 1), (2.0, 2.0, 2.0), [-(size - 1.0), -(size - 1.0), 0.0])
        geometry = Geometry.parallel(np.linspace(0, np.pi, views, endpoint=False), round(1.5 * size), 2.0)
        shapes = [(0.0, 0.0, 0.75 * size, 0.6 * size, 0.0, 0.02)]
        for _ in range(3):
            shapes.append((*rng.uniform(-0.35, 0.35, 2) * size, *rng.uniform(0.1, 0.2, 2) * size, rng.uniform(0, np.pi), rng.uniform(0.005, 0.015)))
        origin, direction = geometry.rays()
        data = np.sum([_ellipse_integral(origin, direction, s) for s in shapes], axis=0)
        points = grid.points().numpy()
        prior = Volume(np.sum([_ellipse(points, s) for s in shapes[:-1]], axis=0), grid, "1/mm")
        metal = Volume(_ellipse(points, shapes[-1]) > 0, grid)
        noise = rng.normal(0, 0.005, data.shape)
        return cls(torch.tensor(data + noise, dtype=torch.float32), geometry, grid, water=0.02, photons=1e5, prior=prior, metal=metal,
                   spectrum=Spectrum.flat(), name="toy")


def _ellipse(x: np.ndarray, shape: tuple[float, ...]) -> np.ndarray:
    """The value of an ellipse (cx, cy, a, b, turn, value) at points x [..., 3] mm."""
    cx, cy, a, b, turn, value = shape
    p, q = x[..., 0] - cx, x[..., 1] - cy
    c, s = np.cos(turn), np.sin(turn)
    return value * (((c * p + s * q) / a) ** 2 + ((c * q - s * p) / b) ** 2 <= 1)


def _ellipse_integral(origin: np.ndarray, direction: np.ndarray, shape: tuple[float, ...]) -> np.ndarray:
    """Its exact line integrals: value times the chord, from the roots of |o + t d|^2 = 1 in the ellipse's own axes."""
    cx, cy, a, b, turn, value = shape
    c, s = np.cos(turn), np.sin(turn)
    axes = np.array([[c / a, s / a, 0], [-s / b, c / b, 0]])
    o, d = (origin - [cx, cy, 0]) @ axes.T, direction @ axes.T
    aa, ab, bb = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1)
    return value * 2 * np.sqrt(np.maximum(ab**2 - aa * (bb - 1), 0)) / np.maximum(aa, 1e-12)
