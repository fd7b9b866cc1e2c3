"""Window sums: the twin against a loop, the compiled kernel against the twin, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medfields.kernels.window import window_sums, window_sums_torch

SHAPES = [(6, 7, 8), (2, 3, 5, 4, 6), (1, 9, 1), (1, 1, 1), (11, 1, 3), (2, 4, 4, 1)]


def slow(x: Tensor, radius: int) -> Tensor:
    out = torch.zeros_like(x, dtype=torch.float64)
    ni, nj, nk = x.shape[-3:]
    for i in range(ni):
        for j in range(nj):
            for k in range(nk):
                cut = (..., *(slice(max(0, v - radius), v + radius + 1) for v in (i, j, k)))
                out[..., i, j, k] = x.double()[cut].sum((-3, -2, -1))
    return out


def values(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("radius", [0, 1, 3, 20])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_sum_over_the_window(shape: tuple[int, ...], radius: int) -> None:
    """Also at the borders, and for windows wider than the lattice."""
    x = values(shape)
    wanted = slow(x, radius)
    for found in (window_sums(x, radius), window_sums_torch(x, radius)):
        assert found.dtype == torch.float32 and found.shape == x.shape
        torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(window_sums(x.double(), radius), wanted)
    torch.testing.assert_close(window_sums(x.mT, radius), slow(x.mT, radius).float(), rtol=1e-6, atol=1e-5)  # not contiguous


def test_known_counts() -> None:
    counts = window_sums(torch.ones(5, 4, 3), 1)
    assert (counts[2, 1, 1], counts[0, 0, 0], counts[0, 1, 1], counts[4, 3, 1]) == (27, 8, 18, 12)
    assert (window_sums(torch.ones(5, 4, 3), 9) == 60).all() and torch.equal(window_sums(values((5, 4, 3)), 0), values((5, 4, 3)))


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable takes the twin, whose bytes are as good as the kernel's."""
    x = values((9, 8, 7))
    quick = window_sums(x, 2)
    monkeypatch.setenv("MEDFIELDS_KERNELS", "torch")
    assert torch.equal(window_sums(x, 2), window_sums_torch(x, 2))
    torch.testing.assert_close(quick, window_sums_torch(x, 2), rtol=1e-6, atol=1e-6)


def test_far_values_leave_no_trace() -> None:
    """A running sum in single precision would forget the small values that follow a large one."""
    x = torch.ones(4, 4, 40)
    x[..., 3] = 1e9
    assert (window_sums(x, 1)[1:3, 1:3, 10:-1] == 27).all()


@pytest.mark.parametrize("radius", [1, 2, 12])
def test_gradient_is_the_transpose(radius: int) -> None:
    x, y = values((2, 6, 5, 7)).requires_grad_(), values((2, 6, 5, 7), 1)
    grad = torch.autograd.grad((window_sums(x, radius) * y).sum(), x)[0]
    twin = torch.autograd.grad((window_sums_torch(x, radius) * y).sum(), x)[0]
    torch.testing.assert_close(grad, twin, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, slow(y, radius).float(), rtol=1e-5, atol=1e-5)  # symmetric
    assert torch.autograd.gradcheck(lambda x: window_sums(x, radius), values((3, 3, 2)).double().requires_grad_())


def test_double_backward() -> None:
    x = values((5, 4, 6)).requires_grad_()

    def second(of) -> Tensor:
        grad = torch.autograd.grad(of(x, 1).square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad((grad**3).sum(), x)[0]

    torch.testing.assert_close(second(window_sums), second(window_sums_torch), rtol=1e-4, atol=1e-2)
