"""Trilinear reading: the compiled kernel against the twin and against known functions, and its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from medfields.kernels.trilinear import trilinear, trilinear_torch

SHAPES = [(1, 5, 6, 7), (3, 4, 1, 6), (2, 1, 1, 1), (1, 1, 7, 2)]


def image(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def indices(shape: tuple[int, ...], n: int = 300) -> Tensor:
    """Inside and up to three voxels beyond."""
    u = torch.rand(n, 3, generator=torch.Generator().manual_seed(1))
    return u * (torch.tensor(shape[-3:]) + 5.0) - 3


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_slope_are_the_twins(shape: tuple[int, ...]) -> None:
    a, x = image(shape), indices(shape).requires_grad_()
    weight = image((len(x), shape[0]), 2)
    found, twin = trilinear(a, x), trilinear_torch(a, x)
    torch.testing.assert_close(found, twin, rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, twin)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-4)
    assert shape[-3:] == (1, 1, 1) or slopes[0].any()


def test_is_interpolation() -> None:
    """As scipy's, and exact on a function that is linear in each index."""
    a, x = image((1, 5, 6, 7)), indices((1, 5, 6, 7))
    wanted = scipy.ndimage.map_coordinates(a[0].numpy().astype(np.float64), x.numpy().T.astype(np.float64), order=1, mode="nearest")
    torch.testing.assert_close(trilinear(a, x)[:, 0], torch.tensor(wanted, dtype=torch.float32), rtol=1e-5, atol=1e-5)
    i, j, k = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (5, 6, 7)), indexing="ij")
    inside = (torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 5, 6])).requires_grad_()
    p, q, s = inside.unbind(-1)
    y = trilinear((1 + 2 * i - j + 0.5 * i * j * k)[None], inside)[:, 0]
    torch.testing.assert_close(y, 1 + 2 * p - q + 0.5 * p * q * s, rtol=1e-5, atol=1e-4)
    slope = torch.autograd.grad(y.sum(), inside)[0]
    torch.testing.assert_close(slope, torch.stack([2 + 0.5 * q * s, -1 + 0.5 * p * s, 0.5 * p * q], -1), rtol=1e-4, atol=1e-4)


def test_nodes_and_borders() -> None:
    a = image((2, 4, 3, 5))
    nodes = torch.cartesian_prod(*(torch.arange(float(n)) for n in (4, 3, 5)))
    torch.testing.assert_close(trilinear(a, nodes), a.flatten(1).T, rtol=0, atol=0)
    far = torch.tensor([[-9.0, 1, 2], [99.0, 1, 2], [1, -0.25, 2], [1, 2.75, 7.5]]).requires_grad_()
    y = trilinear(a, far)
    assert torch.equal(y, torch.stack([a[:, 0, 1, 2], a[:, 3, 1, 2], a[:, 1, 0, 2], a[:, 1, 2, 4]]))
    slope = torch.autograd.grad(y.sum(), far)[0]
    assert not slope[:2, 0].any() and not slope[2:, 1].any() and slope[3, 2] == 0 and slope[0, 1:].all()
    assert trilinear(a, torch.zeros(0, 3)).shape == (0, 2)


def test_not_contiguous() -> None:
    a, x = image((7, 6, 5, 2)).movedim(-1, 0), indices((2, 7, 6, 5), 40).T.contiguous().T
    torch.testing.assert_close(trilinear(a, x), trilinear_torch(a, x), rtol=1e-5, atol=1e-5)


def test_double_backward_is_the_twins() -> None:
    """A penalty on the slope of an image; the mixed second derivatives do not vanish."""
    a, seed = image((2, 5, 6, 7)), indices((2, 5, 6, 7), 60)

    def second(read) -> tuple[Tensor, Tensor]:
        start = seed.clone().requires_grad_()
        x = start * 0.9 + 0.2  # not a leaf
        slope = torch.autograd.grad(read(a, x).square().sum(), x, create_graph=True)[0]
        return slope.detach(), torch.autograd.grad(slope.square().sum(), start)[0]

    for ours, twin in zip(second(trilinear), second(trilinear_torch), strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-3)
        assert ours.any()


def test_images_are_trained_by_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    a, x = image((1, 4, 4, 4)).requires_grad_(), indices((1, 4, 4, 4), 30)
    torch.testing.assert_close(torch.autograd.grad(trilinear(a, x).sum(), a)[0].sum(), torch.tensor(30.0))
    monkeypatch.setenv("MEDFIELDS_KERNELS", "torch")
    assert torch.equal(trilinear(a.detach(), x), trilinear_torch(a.detach(), x))
    assert trilinear(a.detach().double(), x.double()).dtype == torch.float64
