"""Warps: displacements u in mm that say where a point lies in another image, phi(x) = x + u(x), and what can be done with them.

A warp is a `Field` of three channels whose scale is its radius, so that its network maps unit coordinates to displacements in unit
coordinates and warps can be put into one another. It pulls: the warped moving image is M(x + u(x)), and landmarks go from the fixed to the
moving image. Affine maps, compositions and flows are specs like any other, and so have derivatives and a place in a `.field` file.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..space import Box, Grid, Volume
from .bspline import BSpline, LinearBasis
from .field import Field
from .mlp import Network
from .spec import Spec, bounded, spec

Points = Float[Tensor, "*batch 3"]
NAMES = ("dx", "dy", "dz")


@spec
class Affine(Spec):
    """u(x) = A x + t - x, with [A | t] in mm, row by row."""

    channels: ClassVar[int | None] = 3

    matrix: tuple[float, ...] = (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)

    def __post_init__(self) -> None:
        m = np.array(self.matrix, dtype=float)
        if m.shape != (12,) or not np.isfinite(m).all() or abs(np.linalg.det(m.reshape(3, 4)[:, :3])) < 1e-9:
            raise InputError("an affine map needs twelve finite numbers and must not flatten space")

    @classmethod
    def of(cls, matrix: np.ndarray) -> Affine:
        """From a [4, 4] matrix, mm to mm."""
        return cls(tuple(float(v) for v in np.asarray(matrix)[:3].ravel()))

    @classmethod
    def example(cls, box: Box) -> Affine | None:
        return cls((0.9, 0.1, 0.0, 3.0, -0.1, 1.1, 0.0, -2.0, 0.0, 0.0, 1.0, 1.0)) if box.ndim == 3 else None

    def build(self, box: Box, channels: int) -> nn.Module:
        three_to_three(self, box, channels)
        return AffineMap(np.array(self.matrix).reshape(3, 4), box)


class AffineMap(nn.Module):
    """u in unit coordinates: (A - 1) u + (A c + t - c) / r."""

    slope: Tensor
    shift: Tensor

    def __init__(self, matrix: np.ndarray, box: Box):
        super().__init__()
        a, t, c, r = matrix[:, :3], matrix[:, 3], box.centre[:3], float(box.radius[0])
        self.register_buffer("slope", torch.tensor(a - np.eye(3), dtype=torch.float32), persistent=False)
        self.register_buffer("shift", torch.tensor((a @ c + t - c) / r, dtype=torch.float32), persistent=False)

    def forward(self, u: Points) -> Points:
        return u @ self.slope.T + self.shift

    def jet(self, u: Points, order: int) -> tuple[Tensor, ...]:
        """The slope everywhere; no curvature."""
        jacobian = self.slope.expand(*u.shape[:-1], 3, 3)
        value = self(u)
        return (value, jacobian) if order == 1 else (value, jacobian, value.new_zeros(*u.shape[:-1], 3, 3, 3))


@spec
class Composed(Spec):
    """First one warp, then the other: u(x) = u1(x) + u2(x + u1(x))."""

    channels: ClassVar[int | None] = 3

    first: Spec
    then: Spec

    @classmethod
    def example(cls, box: Box) -> Composed | None:
        made = BSpline.example(box)
        return None if made is None else cls(made, made)

    def build(self, box: Box, channels: int) -> nn.Module:
        three_to_three(self, box, channels)
        return Chain(self.first.build(box, 3), self.then.build(box, 3))


class Chain(nn.Module):
    """Two displacements of unit coordinates, one after the other."""

    def __init__(self, first: nn.Module, then: nn.Module):
        super().__init__()
        self.first, self.then = first, then
        self.jet_order = min(getattr(part, "jet_order", 2) for part in (first, then))

    def forward(self, u: Points) -> Points:
        a = self.first(u)
        return a + self.then(u + a)

    def jet(self, u: Points, order: int) -> tuple[Tensor, ...]:
        """The chain rule: J = J1 + J2 P and H = H1 + J2 H1 + P^T H2 P with P = 1 + J1."""
        a, ja, *ha = self.first.jet(u, order)  # type: ignore[operator]
        b, jb, *hb = self.then.jet(u + a, order)  # type: ignore[operator]
        p = ja + torch.eye(3, dtype=u.dtype, device=u.device)
        jacobian = ja + jb @ p
        if order == 1:
            return a + b, jacobian
        bent = torch.einsum("...cij,...ia,...jb->...cab", hb[0], p, p)
        return a + b, jacobian, ha[0] + torch.einsum("...ci,...iab->...cab", jb, ha[0]) + bent


@spec
class Flow(Spec):
    """Points carried by a velocity v for unit time, dx/dt = v(x) or v(x, t), by `steps` of the classical Runge-Kutta method.

    A smooth v whose steps are short gives a diffeomorphism; its inverse is the same flow backwards.

    Args:
        velocity: displacement per unit of time.
        steps: of equal length.
        timed: the velocity depends on time: it is a function of four coordinates, the last from -1 to 1.
        backwards: from t = 1 to 0.
    """

    channels: ClassVar[int | None] = 3

    velocity: Spec
    steps: int = 8
    timed: bool = False
    backwards: bool = False

    def __post_init__(self) -> None:
        bounded(self, steps=(1, 4096))

    @classmethod
    def example(cls, box: Box) -> Flow | None:
        made = BSpline.example(box)
        return None if made is None else cls(made, 4)

    def build(self, box: Box, channels: int) -> nn.Module:
        three_to_three(self, box, channels)
        return Integral(self.velocity.build(box.extended(0.0, 1.0) if self.timed else box, 3), self)


class Integral(nn.Module):
    """The flow of a velocity in unit coordinates."""

    jet_order = 1

    def __init__(self, velocity: nn.Module, spec: Flow):
        super().__init__()
        self.velocity, self.spec = velocity, spec

    def _at(self, u: Points, t: float) -> Tensor:
        return torch.cat([u, torch.full_like(u[..., :1], 2 * t - 1)], -1) if self.spec.timed else u

    def _times(self) -> tuple[list[float], float]:
        n, sign = self.spec.steps, -1.0 if self.spec.backwards else 1.0
        return [(1.0 if self.spec.backwards else 0.0) + sign * k / n for k in range(n)], sign / n

    def forward(self, u: Points) -> Points:
        x = u
        times, h = self._times()
        for t in times:
            k1 = self.velocity(self._at(x, t))
            k2 = self.velocity(self._at(x + h / 2 * k1, t + h / 2))
            k3 = self.velocity(self._at(x + h / 2 * k2, t + h / 2))
            k4 = self.velocity(self._at(x + h * k3, t + h))
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x - u

    def jet(self, u: Points, order: int) -> tuple[Tensor, ...]:
        """The Jacobian F of the flow obeys dF/dt = grad v F, and travels with the points through the same steps.

        Raises:
            InputError: for order 2.
        """
        if order > 1:
            raise InputError("a flow has no derivatives of order 2", "penalise the bending of its velocity")
        one = torch.eye(3, dtype=u.dtype, device=u.device)
        x, f = u, one.expand(*u.shape[:-1], 3, 3)

        def slope(y: Tensor, g: Tensor, t: float) -> tuple[Tensor, Tensor]:
            v, j = self.velocity.jet(self._at(y, t), 1)  # type: ignore[operator]
            return v, j[..., :3] @ g

        times, h = self._times()
        for t in times:
            k1, l1 = slope(x, f, t)
            k2, l2 = slope(x + h / 2 * k1, f + h / 2 * l1, t + h / 2)
            k3, l3 = slope(x + h / 2 * k2, f + h / 2 * l2, t + h / 2)
            k4, l4 = slope(x + h * k3, f + h * l3, t + h)
            x, f = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), f + h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
        return x - u, f - one


@spec
class InPlane(Spec):
    """A displacement that stays in the plane across one world axis: registration of slices.

    Args:
        inner: a displacement.
        axis: of the world, whose component is dropped.
    """

    channels: ClassVar[int | None] = 3

    inner: Spec
    axis: int = 2

    def __post_init__(self) -> None:
        bounded(self, axis=(0, 2))

    @classmethod
    def example(cls, box: Box) -> InPlane | None:
        made = BSpline.example(box)
        return None if made is None else cls(made, 1)

    def build(self, box: Box, channels: int) -> nn.Module:
        three_to_three(self, box, channels)
        return Plane(self.inner.build(box, 3), self.axis)


class Plane(nn.Module):
    """A displacement without its component along one axis."""

    keep: Tensor

    def __init__(self, inner: nn.Module, axis: int):
        super().__init__()
        self.inner, self.jet_order = inner, getattr(inner, "jet_order", 2)
        self.register_buffer("keep", torch.tensor([float(d != axis) for d in range(3)]), persistent=False)

    def forward(self, u: Points) -> Points:
        return self.keep * self.inner(u)

    def jet(self, u: Points, order: int) -> tuple[Tensor, ...]:
        """As the inner one's, without that component."""
        parts = self.inner.jet(u, order)  # type: ignore[operator]
        return tuple(part * self.keep.reshape(3, *[1] * k) for k, part in enumerate(parts))


def three_to_three(owner: Spec, box: Box, channels: int) -> None:
    """Refuse to build a warp that does not move points of space; InputError names its owner."""
    if box.ndim != 3 or channels != 3:
        raise InputError(f"{type(owner).__name__} moves points of space: three coordinates to three, not {box.ndim} to {channels}")


def displacement(given: Spec, box: Box, *, flat: np.ndarray | None = None, seed: int | None = None, zero: bool = False) -> Field:
    """A warp of fresh weights.

    Args:
        given: of unit coordinates to displacements in them.
        box: mm, where it lives.
        flat: the normal of the slices it must not leave; only slices along a world axis can be kept exactly.
        seed: of the weights.
        zero: start from no displacement: the last layer of a network, or all coefficients, are set to zero.

    Raises:
        InputError: for slices that lie oblique in the world.
    """
    if flat is not None:
        axis = int(np.abs(flat).argmax())
        if abs(flat[axis]) < 1 - 1e-4:
            raise InputError("slices that lie oblique in the world cannot be registered in their plane", "give them an upright affine")
        given = InPlane(given, axis)
    made = Field(given, box, 3, scale=float(box.radius[0]), unit="mm", names=NAMES, seed=seed)
    if zero:
        set_to_zero(made.net)
    return made


@torch.no_grad()
def set_to_zero(net: nn.Module) -> None:
    """Make a displacement or a velocity vanish: what is linear in the end starts from zero, the rest keeps its random start."""
    if isinstance(net, LinearBasis):
        net.coefficients.zero_()
    elif isinstance(net, Network):
        for branch in net.branches:
            _vanish(branch)
    elif any(isinstance(part, LinearBasis | Network) for part in net.modules()):  # a flow, a plane, a sum: all its parts vanish
        for part in net.children():
            set_to_zero(part)
    else:
        _vanish(net)


def _vanish(net: nn.Module) -> None:
    for last in [m for m in net.modules() if isinstance(m, nn.Linear)][-1:]:
        last.weight.zero_()
        if last.bias is not None:
            last.bias.zero_()


def composed(first: Field, then: Field) -> Field:
    """First one warp, then the other, with weights of its own; it lives in the box of the first.

    Raises:
        InputError: if the second lives in another box and cannot be told in that of the first, or one is no warp as `displacement` makes it.
    """
    for warp in (first, then):
        if warp.offset.any() or not torch.allclose(warp.scale, warp.radius[:1].expand_as(warp.scale)):
            raise InputError("a warp has the scale of its box's radius and no offset", "make it by displacement(...)")
    spec_of = {"first": first.spec, "then": then.spec}
    made = displacement(Composed(**spec_of), first.box, seed=0)
    if first.box != then.box and not isinstance(then.spec, Affine):
        raise InputError("warps of different boxes cannot be composed exactly", "read one on a lattice over the box of the other")
    net = made.net
    assert isinstance(net, Chain)
    net.first.load_state_dict(first.net.state_dict())
    net.then.load_state_dict(then.net.state_dict())
    return made


def jacobian(warp: Field, x: Points) -> Float[Tensor, "*batch 3 3"]:
    """grad phi = 1 + grad u at world points."""
    return warp.value_and_jacobian(x)[1] + torch.eye(3, dtype=x.dtype, device=x.device)


@torch.no_grad()
def inverse_at(warp: Field, y: Points, steps: int = 30, tolerance: float = 1e-3) -> tuple[Points, Float[Tensor, "*batch"]]:
    """x with x + u(x) = y, and the distance |x + u(x) - y| in mm that is left.

    Newton's method; where a step does not come nearer the fixed-point step x <- y - u(x) is taken instead. Points that have no inverse, where
    the warp folds, keep a large error.

    Args:
        warp: the displacement.
        y: world mm.
        steps: at most.
        tolerance: mm; it stops when all points are that near.
    """
    x = y - warp(y)
    off = x + warp(x) - y
    for _ in range(steps):
        if float(off.norm(dim=-1).max()) <= tolerance:
            break
        try:
            newton = x - torch.linalg.solve(jacobian(warp, x), off)
        except torch.linalg.LinAlgError:  # the warp flattens space at a point
            newton = x - off
        trial = newton + warp(newton) - y
        plain = x - off
        other = plain + warp(plain) - y
        better = (trial.norm(dim=-1) <= other.norm(dim=-1))[..., None]
        x, off = torch.where(better, newton, plain), torch.where(better, trial, other)
    return x, off.norm(dim=-1)


@torch.no_grad()
def on_lattice(warp: Field, grid: Grid) -> Volume:
    """u in mm at the voxel centres, as a volume of three channels."""
    if isinstance(warp.net, LinearBasis) and (bases := warp.net.bases(grid)) is not None:
        net = warp.net
        return Volume(warp.offset[:, None, None, None] + warp.scale[:, None, None, None] * net.on(bases, net.coefficients), grid, "mm")
    return Volume(warp.on(grid).volume().data, grid, "mm")


def from_lattice(u: Volume) -> Field:
    """The warp that a volume of displacements in mm states, linear between its voxels; beyond them it goes on as at the border."""
    if u.channels != 3:
        raise InputError(f"a displacement has three channels, this volume has {u.channels}")
    made = displacement(BSpline.on(u.grid), u.grid.box())
    with torch.no_grad():
        made.net.coefficients.copy_(u.data / float(made.radius[0]))  # type: ignore[operator]
    made.grid = u.grid
    return made
