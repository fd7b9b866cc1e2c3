"""Quadratic problems on a lattice: conjugate gradients, finite differences, and the thick-slice normal equations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..cases import Stack, Stacks
from ..cases.stacks import percentiles
from ..operators.slices import SliceOperator
from ..space import Grid


def gradient(x: Float[Tensor, "I J K"]) -> Float[Tensor, "3 I J K"]:
    """Forward differences per voxel step; zero past the last voxel."""
    return torch.stack([torch.diff(x, dim=d, append=x.narrow(d, -1, 1)) for d in range(3)])


def gradient_adjoint(p: Float[Tensor, "3 I J K"]) -> Float[Tensor, "I J K"]:
    """The transpose of `gradient` (minus the divergence)."""
    out = torch.zeros_like(p[0])
    for d in range(3):
        inner = p[d].narrow(d, 0, p.shape[d + 1] - 1)
        out.narrow(d, 0, inner.shape[d]).sub_(inner)
        out.narrow(d, 1, inner.shape[d]).add_(inner)
    return out


class ConjugateGradients(nn.Module):
    """Solves N x = b for a symmetric positive definite N, one `step` at a time (Hestenes & Stiefel 1952).

    Its state is in buffers, so `Run.steps` can stop and resume it.

    Args:
        normal: N.
        b, x: right side and start.
        precondition: a symmetric positive definite guess at the inverse of N.
    """

    x: Tensor
    residual: Tensor
    direction: Tensor
    size: Tensor

    def __init__(self, normal: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, precondition: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.normal, self.precondition, self.goal = normal, precondition or (lambda r: r), 1e-4 * float(b.norm())
        self.register_buffer("x", x)
        self.register_buffer("residual", b - normal(x))
        self.register_buffer("direction", torch.zeros_like(x))
        self.register_buffer("size", torch.ones(()).to(x))

    @property
    def done(self) -> bool:
        """Whether the residual has fallen to 1e-4 of |b|."""
        return float(self.residual.norm()) <= self.goal

    @torch.no_grad()
    def step(self) -> None:
        """One iteration."""
        better = self.precondition(self.residual)
        size = (self.residual * better).sum()
        self.direction = better + (size / self.size) * self.direction
        q = self.normal(self.direction)
        a = size / (self.direction * q).sum()
        self.x, self.residual, self.size = self.x + a * self.direction, self.residual - a * q, size


def conjugate_gradients(normal: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, steps: int,
                        precondition: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """At most `steps` iterations from x."""
    state = ConjugateGradients(normal, b, x, precondition)
    for _ in range(steps):
        if state.done:
            break
        state.step()
    return state.x


class LatticeSystem(ABC):
    """Measurements of one contrast as one linear system A c = y on a lattice, intensities scaled to about one.

    Attributes:
        lattice: of c.
        y: what was measured, in parts.
        scale, offset: physical = offset + scale * c; the 1st and 99th percentile of the measurements map to 0 and 1.
    """

    lattice: Grid
    y: list[Tensor]
    offset: float
    scale: float
    oblique = True  # a stack does not lie along the lattice

    @abstractmethod
    def apply(self, c: Float[Tensor, "I J K"]) -> list[Tensor]:
        """A c, in the parts of y."""

    @abstractmethod
    def adjoint(self, y: Sequence[Tensor]) -> Float[Tensor, "I J K"]:
        """A^T y."""

    def normal(self, c: Float[Tensor, "I J K"], smooth: float = 0.0, near: float = 0.0) -> Float[Tensor, "I J K"]:
        """(A^T A + smooth D^T D + near) c."""
        out = self.adjoint(self.apply(c)) + near * c
        return out + smooth * gradient_adjoint(gradient(c)) if smooth else out

    def solver(self, smooth: float, near: float = 0.0, steps: int = 8) -> Callable[[Tensor, Tensor], Tensor]:
        """A function (b, start) -> (A^T A + smooth D^T D + near)^-1 b, by at most `steps` of preconditioned conjugate gradients."""
        normal, guess = partial(self.normal, smooth=smooth, near=near), self.preconditioner(smooth, near)
        return lambda b, start: conjugate_gradients(normal, b, start, steps, guess)

    def preconditioner(self, smooth: float, near: float = 0.0) -> Callable[[Tensor], Tensor] | None:
        """Something close to the inverse of A^T A + smooth D^T D + near; None if there is nothing."""
        return None


class SliceSystem(LatticeSystem):
    """All stacks of one contrast.

    Args:
        case: the stacks of one contrast.
        lattice: of the coefficients; should be the result's grid with a margin (`padded`).
        degree: of the B-spline.
    """

    def __init__(self, case: Stacks, lattice: Grid, degree: int = 1, device: torch.device | str = "cpu"):
        self.lattice, self.case = lattice, case
        self.operators = [_operator(lattice, s, case.profile, degree) for s in case.stacks]
        raw = [s.volume.data[0][o.block].to(device) for s, o in zip(case.stacks, self.operators, strict=True)]
        seen = torch.cat([y[o.inside.to(device)] for y, o in zip(raw, self.operators, strict=True)])
        ends = percentiles(seen)
        self.offset, self.scale = float(ends[0]), max(float(ends[1] - ends[0]), 1e-6 * max(1.0, float(seen.abs().max())))
        self.y = [(y - self.offset) / self.scale * o.inside.to(device) for y, o in zip(raw, self.operators, strict=True)]

    def apply(self, c: Float[Tensor, "I J K"]) -> list[Tensor]:
        """A c, one array for each stack."""
        return [o.apply(c) for o in self.operators]

    def adjoint(self, y: Sequence[Tensor]) -> Float[Tensor, "I J K"]:
        """A^T y."""
        return torch.stack([o.adjoint(v) for o, v in zip(self.operators, y, strict=True)]).sum(0)

    def noise(self) -> float:
        """Standard deviation of the measurements' noise, in units of `y`.

        The median of |I * N| over bright voxels, N = [1 -2 1]^T [1 -2 1] in the plane of the slices (Immerkaer, CVIU 1996, with a
        median for robustness): N takes away whatever is linear along a row or a column.
        """
        responses = []
        for y, stack in zip(self.y, self.case.stacks, strict=True):
            a, b = (d for d in range(3) if d != stack.axis)
            if min(y.shape[a], y.shape[b]) < 3:
                continue
            second = y
            for d in (a, b):
                n = y.shape[d] - 2
                second = second.narrow(d, 0, n) - 2 * second.narrow(d, 1, n) + second.narrow(d, 2, n)
            bright = y.narrow(a, 1, y.shape[a] - 2).narrow(b, 1, y.shape[b] - 2) > 0.25
            responses.append(second[bright].abs())
        values = torch.cat(responses) if responses else torch.zeros(1)
        return float(values.median() / (0.6745 * 6)) if len(values) else 0.0

    def covered(self) -> Tensor:
        """Lattice points [I, J, K] that every stack sees, bool; all of them if there are none."""
        seen = torch.ones(self.lattice.shape, dtype=torch.bool, device=self.y[0].device)
        for o in self.operators:
            share = o.adjoint(torch.ones(o.shape, device=seen.device))
            seen &= share > 0.5 * share[share > 1e-3].median()
        return seen if seen.any() else ~seen

    @property
    def oblique(self) -> bool:  # type: ignore[override]
        """Whether a stack does not lie along the lattice."""
        return any(o.factors is None for o in self.operators)

    def preconditioner(self, smooth: float, near: float = 0.0) -> Callable[[Tensor], Tensor] | None:
        """The inverse of A^T A + smooth D^T D + near where every stack lies along the lattice and sees all of it; close to it
        where a stack sees a part; None where a stack is oblique.

        Such a matrix is a sum of three one-dimensional ones, so it is inverted by diagonalising those: the fast
        diagonalisation method (Lynch, Rice & Thomas, Numer. Math. 1964).
        """
        lines = [torch.zeros(n, n, dtype=torch.float64) for n in self.lattice.shape]
        for o in self.operators:
            if o.factors is None:
                return None
            for line, factor in zip(lines, o.factors, strict=True):
                if factor.axis == o.axis:
                    line += (factor.matrix.T @ factor.matrix).double()
        total, vectors = torch.full((1, 1, 1), near, dtype=torch.float64), []
        for d, line in enumerate(lines):
            step = torch.diff(torch.eye(len(line), dtype=torch.float64), dim=0)
            value, vector = torch.linalg.eigh(line + smooth * step.T @ step)
            total = total + value.reshape([-1 if a == d else 1 for a in range(3)])
            vectors.append(vector.to(self.y[0]))
        inverse = (1 / total.clamp_min(1e-6 * float(total.max()))).to(self.y[0])

        def solve(b: Tensor) -> Tensor:
            for d, v in enumerate(vectors):
                b = torch.tensordot(v.T, b, dims=([1], [d])).movedim(0, d)
            b = b * inverse
            for d, v in enumerate(vectors):
                b = torch.tensordot(v, b, dims=([1], [d])).movedim(0, d)
            return b.contiguous()

        return solve


def _operator(lattice: Grid, stack: Stack, profile: str, degree: int) -> SliceOperator:
    return SliceOperator(lattice, stack.volume.grid, stack.axis, profile, stack.thickness, degree)


def padded(case: Stacks) -> tuple[Grid, tuple[slice, slice, slice]]:
    """The result's grid widened so that every slice profile that touches it fits in, and where the result lies in it."""
    margin = np.ceil(case.reach() / case.grid.spacing + 0.5).astype(int)
    wide = case.grid.crop(-margin, np.array(case.grid.shape) + 2 * margin)
    inner = [slice(int(m), int(m) + n) for m, n in zip(margin, case.grid.shape, strict=True)]
    return wide, (inner[0], inner[1], inner[2])


class TotalVariation(nn.Module):
    """min sum_c 1/2 |A_c x_c - y_c|^2 + weight sum sqrt(sum_c |D x_c|^2) by ADMM, one `step` at a time, for the contrasts c of a case.

    The total variation is that of all contrasts together: where one has an edge, another may have one at no great cost (Blomgren and
    Chan, IEEE TIP 1998).

    Args:
        systems: A and y of every contrast, on one lattice.
        weight: of the isotropic total variation.
    """

    RHO = 0.03  # the penalty of the split; the answer does not depend on it, the speed does: 0.2 was still 1 dB short after 30 steps
    x: Tensor
    z: Tensor
    u: Tensor
    change: Tensor

    def __init__(self, systems: Sequence[LatticeSystem], weight: float):
        super().__init__()
        self.weight = weight
        self.b = torch.stack([s.adjoint(s.y) for s in systems])
        # Each solve goes on from the last one. Where there is a preconditioner, one step of it converges soonest.
        self.solvers = [s.solver(self.RHO, steps=2 if s.oblique else 1) for s in systems]
        start = torch.stack([s.solver(0.02)(b, torch.zeros_like(b)) for s, b in zip(systems, self.b, strict=True)])
        self.register_buffer("x", start)
        self.register_buffer("z", torch.stack([gradient(x) for x in start]))
        self.register_buffer("u", torch.zeros_like(self.z))
        self.register_buffer("change", torch.zeros(()))

    @torch.no_grad()
    def step(self) -> None:
        """One iteration: linear solves, shrinkage, multiplier."""
        before = self.x
        goals = zip(self.solvers, self.b, self.z - self.u, before, strict=True)
        self.x = torch.stack([solve(b + self.RHO * gradient_adjoint(p), x) for solve, b, p, x in goals])
        relaxed = 1.6 * torch.stack([gradient(x) for x in self.x]) - 0.6 * self.z + self.u
        size = relaxed.square().sum((0, 1)).sqrt_().clamp_min_(1e-12)
        self.z = relaxed * (1 - self.weight / (self.RHO * size)).clamp_min(0)
        self.u = relaxed - self.z
        self.change = (self.x - before).norm() / self.x.norm().clamp_min(1e-12)


class EdgePreserving(nn.Module):
    """min 1/2 |A x - y|^2 + weight edge^2 sum (sqrt(1 + |D x|^2 / edge^2) - 1), one `step` at a time.

    Differences below `edge` cost their square, those above it their size: noise is smoothed, edges stay. A step solves the equations with the
    weights of the differences held as the last answer has them (lagged diffusivity: Vogel and Oman, SIAM J. Sci. Comput. 1996).

    Args:
        system: A and y.
        weight, edge: of the prior; the difference of neighbours that counts as an edge.
        x: to start from.
        steps: of conjugate gradients in one step.
    """

    x: Tensor
    change: Tensor

    def __init__(self, system: LatticeSystem, weight: float, edge: float, x: Float[Tensor, "I J K"], steps: int = 10):
        super().__init__()
        self.system, self.weight, self.edge, self.steps = system, weight, edge, steps
        self.b = system.adjoint(system.y)
        self.register_buffer("x", x)
        self.register_buffer("change", torch.zeros(()))

    @torch.no_grad()
    def step(self) -> None:
        """Weights, then the subject."""
        before, slope = self.x, gradient(self.x).square().sum(0)
        flow = self.weight / (1 + slope / self.edge**2).sqrt()
        self.x = conjugate_gradients(lambda c: self.system.normal(c) + gradient_adjoint(flow * gradient(c)), self.b, before, self.steps)
        self.change = (self.x - before).norm() / self.x.norm().clamp_min(1e-12)
