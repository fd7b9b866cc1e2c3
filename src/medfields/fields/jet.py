"""Forward-mode derivatives: a value, its tangents and its curvatures travel through a network side by side.

With z = W h + b and y = f(z), everything linear acts on all of them alike, and the nonlinearity by the chain rule:

    y_i = f' z_i            y_ij = f' z_ij + f'' z_i z_j .

A jet of n points is ONE tensor [P, n, w]: the value, D tangents, and for order 2 the D (D + 1) / 2 second derivatives i <= j, so a layer
is one matrix product over P n rows. A bending-energy step of a SIREN costs 8.5 plain steps this way and 26 by differentiating twice, timed
in the same run (benchmarks/derivatives.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import InputError
from .activations import Activation

CPU_CHUNK = 2048
"""Points per sweep on a CPU: all jets of a 256-wide layer (20 MB) then stay in cache. Measured: 12.2 -> 8.5 times a plain step."""


def pairs(ndim: int) -> list[tuple[int, int]]:
    """The second derivatives that a jet carries, in order."""
    return [(i, j) for i in range(ndim) for j in range(i, ndim)]


@dataclass(frozen=True)
class Affine:
    """The jet of an affine function of u: tangents are the same at all points and there is no curvature. It stays this small until
    the first nonlinearity."""

    value: Float[Tensor, "n w"]
    slopes: Float[Tensor, "D w"]

    @classmethod
    def identity(cls, u: Float[Tensor, "n D"]) -> Affine:
        return cls(u, torch.eye(u.shape[-1], dtype=u.dtype, device=u.device))


Jet = Affine | Tensor


def spread(jet: Jet, order: int) -> Float[Tensor, "P n w"]:
    """The jet written out."""
    if isinstance(jet, Tensor):
        return jet
    rows = [jet.value, *(s.expand_as(jet.value) for s in jet.slopes)]
    return torch.stack(rows + [torch.zeros_like(jet.value)] * (len(pairs(len(jet.slopes))) if order == 2 else 0))


def beside(jets: Iterable[Jet], order: int) -> Float[Tensor, "P n w"]:
    """Jets of several quantities, side by side."""
    return torch.cat([spread(jet, order) for jet in jets], -1)


def linear(jet: Jet, weight: Float[Tensor, "out w"]) -> Jet:
    """W h, without bias, for a whole jet."""
    if isinstance(jet, Affine):
        return Affine(jet.value @ weight.T, jet.slopes @ weight.T)
    return (jet.flatten(0, 1) @ weight.T).unflatten(0, jet.shape[:2])


def activate(jet: Jet, bias: Float[Tensor, "w"], f: Activation, ndim: int, order: int) -> Float[Tensor, "P n w"]:
    """f(z + b) for a whole jet."""
    if isinstance(jet, Tensor):
        return Pointwise.apply(jet, bias, f, ndim)
    value, first, second = (*f.derivatives(jet.value + bias, order), None)[:3]
    assert value is not None and first is not None
    rows = [value, *(first * s for s in jet.slopes)]
    if order == 2:
        rows += [torch.zeros_like(value) if second is None else second * (jet.slopes[i] * jet.slopes[j]) for i, j in pairs(ndim)]
    return torch.stack(rows)


def shift(jet: Jet, bias: Float[Tensor, "w"], order: int) -> Float[Tensor, "P n w"]:
    """z + b: the bias touches the value only. For narrow layers, where copying is nothing."""
    jet = spread(jet, order)
    return torch.cat([jet[:1] + bias, jet[1:]])


class Pointwise(torch.autograd.Function):
    """y = f(z + b) on jets [P, n, w], with its hand-written gradient: a fraction of the passes over memory that autograd would make."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, bias: Tensor, f: Activation, ndim: int) -> Tensor:
        ctx.save_for_backward(z, bias)
        ctx.f, ctx.ndim = f, ndim
        curved = z.shape[0] > 1 + ndim
        value, first, second = (*f.derivatives(z[0] + bias, 2 if curved else 1), None)[:3]
        assert value is not None and first is not None
        y = torch.empty_like(z)
        y[0] = value
        torch.mul(z[1:], first, out=y[1:])
        if curved and second is not None:
            for row, (i, j) in enumerate(pairs(ndim), 1 + ndim):
                y[row].addcmul_(z[1 + i] * z[1 + j], second)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, bias = ctx.saved_tensors
        ndim, curved = ctx.ndim, z.shape[0] > 1 + ctx.ndim
        _, first, second, third = (*ctx.f.derivatives(z[0] + bias, 3 if curved else 2), None)[:4]
        gz = g * first
        if second is not None:
            along = torch.zeros_like(second)  # sum of g_p z_p over tangents and curvatures
            for row in range(1, len(z)):
                along.addcmul_(g[row], z[row])
            gz[0].addcmul_(along, second)
        if curved and second is not None:
            bent = torch.zeros_like(second)  # sum of g_ij z_i z_j
            for row, (i, j) in enumerate(pairs(ndim), 1 + ndim):
                bent.addcmul_(g[row], z[1 + i] * z[1 + j])
                steep = g[row] * second
                gz[1 + i].addcmul_(steep, z[1 + j])
                gz[1 + j].addcmul_(steep, z[1 + i])
            if third is not None:
                gz[0].addcmul_(bent, third)
        return gz, gz[0].sum(0), None, None


def unpack(jet: Float[Tensor, "P n C"], batch: Iterable[int], ndim: int) -> tuple[Tensor, ...]:
    """(v [*, C], J [*, C, D]) and, where the jet has curvatures, H [*, C, D, D], which is symmetric."""
    batch, channels = tuple(batch), jet.shape[-1]
    value = jet[0].reshape(*batch, channels)
    jacobian = torch.stack(jet[1:1 + ndim].unbind(), -1).reshape(*batch, channels, ndim)
    if len(jet) == 1 + ndim:
        return value, jacobian
    row = {pair: k for k, pair in enumerate(pairs(ndim), 1 + ndim)}
    full = [jet[row[min(i, j), max(i, j)]] for i in range(ndim) for j in range(ndim)]
    return value, jacobian, torch.stack(full, -1).reshape(*batch, channels, ndim, ndim)


class Differentiable(nn.Module):
    """A function of u that gives its own derivatives; subclasses write `flat_jet`, for a flat list of points."""

    jet_order: int = 2

    def flat_jet(self, u: Float[Tensor, "n D"], order: int) -> Jet:
        raise NotImplementedError

    def jet(self, u: Float[Tensor, "*batch D"], order: int) -> tuple[Tensor, ...]:
        """Value [*, C], Jacobian [*, C, D] and, for order 2, Hessian [*, C, D, D], per unit of u; differentiable once more in the
        parameters and in u.

        Raises:
            InputError: for an order other than 1 or 2, or one this module does not have.
        """
        if order not in (1, 2):
            raise InputError(f"derivatives come in orders 1 and 2, not {order}")
        self.require_order(order)
        flat = u.reshape(-1, u.shape[-1])
        parts = flat.split(CPU_CHUNK) if u.device.type == "cpu" else (flat,)
        jets = [spread(self.flat_jet(part, order), order) for part in parts]
        return unpack(torch.cat(jets, 1) if len(jets) > 1 else jets[0], u.shape[:-1], u.shape[-1])

    def require_order(self, order: int) -> None:
        """Raise unless derivatives of this order exist."""
        if order > self.jet_order:
            raise InputError(f"{type(self).__name__} has no derivatives of order {order}: a trilinear grid has no curvature",
                             "use a network of sines or a cubic B-spline where bending is penalised")
