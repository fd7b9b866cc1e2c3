"""What every operator promises: measurements are independent of one another, linear in the object, and true to their gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def check_operator(
    operator: Callable[[Function, Any], Tensor], at: Any, *, ndim: int = 3, scale: float = 20.0, linear: bool = True
) -> None:
    """Assert that an operator measures each sample on its own, is linear in the function (if `linear`), and lets
    gradients through to the function's parameters.

    Args:
        operator: (function, at) -> [N, C].
        at: what it needs to know of N samples: a tensor or a dict of tensors with leading axis N.
        ndim: coordinates the function takes.
        scale: mm over which the test functions vary.

    Raises:
        AssertionError: that says which promise is broken.
    """
    waves = torch.linspace(-1, 1, ndim) / scale

    def first(x: Tensor) -> Tensor:
        return torch.sin(x @ waves.to(x))[..., None]

    def second(x: Tensor) -> Tensor:
        return torch.cos(2 * (x @ waves.flip(0).to(x)) + 0.3)[..., None]

    whole = operator(first, at)
    n = len(whole)
    assert torch.isfinite(whole).all(), "measurements of a bounded function are not finite"
    parts = torch.cat([operator(first, _rows(at, slice(i, i + 1))) for i in range(min(n, 20))])
    assert torch.allclose(parts, whole[:20], atol=1e-5), "samples measured one by one differ from the batch"
    if linear:
        mixed = operator(lambda x: 2 * first(x) - 3 * second(x), at)
        assert torch.allclose(mixed, 2 * whole - 3 * operator(second, at), atol=1e-4), "the operator is not linear in the function"
    gain = torch.tensor(1.3, requires_grad=True)

    def swept(x: Tensor) -> Tensor:
        return torch.sin(gain * (x @ waves.to(x)))[..., None]

    (slope,) = torch.autograd.grad(operator(swept, at).sum(), gain)
    h = 1e-2
    with torch.no_grad():
        ends = []
        for end in (1.3 + h, 1.3 - h):
            gain.fill_(end)
            ends.append(operator(swept, at).double().sum())
    stated, measured = float(slope), float((ends[0] - ends[1]) / (2 * h))
    assert abs(stated - measured) <= 2e-2 * abs(measured) + 1e-3 * n**0.5, (
        f"the gradient is {stated:.5g}, finite differences say {measured:.5g}"
    )


def check_adjoint(forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], x: Tensor, seed: int = 0) -> None:
    """Assert <A x, y> = <x, A^T y> for random x and y.

    Args:
        forward, adjoint: the pair of linear maps.
        x: any tensor of the shape and type that `forward` takes.

    Raises:
        AssertionError: with both products.
    """
    rng = torch.Generator(x.device).manual_seed(seed)
    x = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    forward_x = forward(x)
    y = torch.randn(forward_x.shape, generator=rng, device=x.device, dtype=forward_x.dtype)
    left, right = (float((a.double() * b.double()).sum()) for a, b in ((forward_x, y), (x, adjoint(y))))
    size = float(forward_x.double().norm() * y.double().norm())
    assert abs(left - right) <= 1e-5 * size, f"<Ax, y> = {left:.8g} but <x, A'y> = {right:.8g}: the adjoint does not match"


def _rows(at: Any, index: slice) -> Any:
    return {k: v[index] for k, v in at.items()} if isinstance(at, dict) else at[index]
