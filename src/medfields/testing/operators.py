"""What every operator promises: measurements are independent of one another, linear in the object, true to their gradient, and the same
on every device. `check_operator` is for operators that read a function, `check_matrix` for those that read a lattice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def check_operator(
    operator: Callable[[Function, Any], Tensor], at: Any, *, ndim: int = 3, scale: float = 20.0, linear: bool = True
) -> None:
    """Assert that an operator measures each sample on its own, is linear in the function (if `linear`), and lets
    gradients through to the function's parameters.

    Args:
        operator: (function, at) -> [N, C].
        at: what it needs to know of N samples: a tensor or a dict of tensors with leading axis N; None if it always measures all of them.
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
    size = max(1.0, float(whole.abs().max()))
    if at is not None:
        parts = torch.cat([operator(first, _rows(at, slice(i, i + 1))) for i in range(min(n, 20))])
        assert torch.allclose(parts, whole[:20], atol=1e-5 * size), "samples measured one by one differ from the batch"
    if linear:
        mixed = operator(lambda x: 2 * first(x) - 3 * second(x), at)
        assert torch.allclose(mixed, 2 * whole - 3 * operator(second, at), atol=1e-4 * size), "the operator is not linear in the function"
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
    assert abs(stated - measured) <= 2e-2 * abs(measured) + 1e-3 * size * n**0.5, (
        f"the gradient is {stated:.5g}, finite differences say {measured:.5g}"
    )
    for device in accelerators():
        moved = operator.to(device) if isinstance(operator, nn.Module) else operator
        there = moved(first, _moved(at, device))
        if isinstance(operator, nn.Module):
            operator.to("cpu")
        assert there.device.type == torch.device(device).type, f"measurements on {device} come back on {there.device}"
        assert torch.allclose(there.cpu(), whole, atol=1e-4 * size), f"{device} measures something else than the CPU"


def check_matrix(matrix: Any, shape: tuple[int, ...], seed: int = 0) -> None:
    """Assert that a matrix is linear, that its adjoint is its transpose (to 1e-5) and its gradient the adjoint, that it leaves its input
    alone, takes any memory layout, and does the same on every device there is.

    Args:
        matrix: with `apply`, `adjoint`, a differentiable call, and the `shape` of what it measures.
        shape: of the lattice it takes.

    Raises:
        AssertionError: that says which promise is broken.
    """
    rng = torch.Generator().manual_seed(seed)
    x, other = (torch.randn(shape, generator=rng) for _ in range(2))
    kept, whole = x.clone(), matrix.apply(x)
    assert tuple(whole.shape) == tuple(matrix.shape), f"measurements are {tuple(whole.shape)}, the operator says {tuple(matrix.shape)}"
    assert torch.isfinite(whole).all(), "measurements of finite values are not finite"
    size = float(whole.abs().max())
    assert size > 0, "nothing is measured"
    y = torch.randn(whole.shape, generator=rng)
    mixed = matrix.apply(2 * x - 3 * other)
    assert torch.allclose(mixed, 2 * whole - 3 * matrix.apply(other), rtol=0, atol=1e-5 * 5 * size), "the operator is not linear"
    check_adjoint(matrix.apply, matrix.adjoint, x, seed)
    back = matrix.adjoint(y)
    assert back.shape == x.shape, f"the adjoint gives {tuple(back.shape)} for a lattice of {tuple(x.shape)}"
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(matrix(leaf), leaf, y)
    assert torch.allclose(slope, back, rtol=0, atol=1e-5 * float(back.abs().max())), "the gradient is not the adjoint"
    assert torch.equal(x, kept), "the operator changed its input"
    for turned in (x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0]):
        assert torch.allclose(matrix.apply(turned), whole, rtol=0, atol=1e-5 * size), "another memory layout is measured otherwise"
    for device in accelerators():
        there, returned = matrix.apply(x.to(device)).cpu(), matrix.adjoint(y.to(device)).cpu()
        assert torch.allclose(there, whole, rtol=0, atol=1e-4 * size), f"{device} measures something else than the CPU"
        assert torch.allclose(returned, back, rtol=0, atol=1e-4 * float(back.abs().max())), f"the adjoint differs on {device}"


def accelerators() -> list[str]:
    """The devices beside the CPU on which operators are checked: "cuda" where there is one."""
    return ["cuda"] if torch.cuda.is_available() else []


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


def _moved(at: Any, device: str) -> Any:
    return {k: v.to(device) for k, v in at.items()} if isinstance(at, dict) else None if at is None else at.to(device)


def _rows(at: Any, index: slice) -> Any:
    return {k: v[index] for k, v in at.items()} if isinstance(at, dict) else at[index]
