"""Losses: known values, invariances, gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from medfields import losses as L


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_data_terms_at_the_truth_and_at_known_distances():
    y = rand(7, 2)
    for loss in (L.mse, L.l1):
        assert loss(y, y) == 0
    assert L.mse(y + 2, y).item() == pytest.approx(4)
    assert L.l1(y - 2, y).item() == pytest.approx(2)
    assert L.huber(y + 0.5, y, 1.0).item() == pytest.approx(0.125)
    assert L.huber(y + 3, y, 1.0).item() == pytest.approx(2.5)


def test_weights_count_by_ratio_alone():
    p, y, w = torch.tensor([[1.0], [5.0]]), torch.zeros(2, 1), torch.tensor([3.0, 1.0])
    assert L.mse(p, y, w).item() == pytest.approx((3 * 1 + 25) / 4)
    assert L.mse(p, y, 100 * w).item() == pytest.approx(L.mse(p, y, w).item())
    assert L.mse(p, y, w[:, None]).item() == pytest.approx(L.mse(p, y, w).item())
    assert L.mse(p, y, torch.zeros(2)).item() == 0


def test_likelihoods_are_smallest_at_their_own_parameters():
    r = torch.full((5, 1), 0.7, dtype=torch.float64)
    v = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    at_optimum = torch.tensor(0.49, dtype=torch.float64, requires_grad=True)
    for variance in (v, at_optimum):
        L.gaussian_nll(r, torch.zeros_like(r), variance.expand(5, 1)).backward()
    assert abs(v.grad) > 0.1 and abs(at_optimum.grad) < 1e-9  # v = r^2
    counts = torch.tensor([[0.0], [4.0]])
    p = counts.clone().requires_grad_()
    L.poisson_nll(p, counts).backward()
    assert p.grad[1].item() == pytest.approx(0)  # p = y
    assert L.poisson_nll(torch.zeros(1, 1), torch.zeros(1, 1)).isfinite()


def test_ncc():
    a = rand(5, 6, 7)
    assert L.ncc(a, 3 * a + 2).item() == pytest.approx(1)
    assert L.ncc(a, -a).item() == pytest.approx(-1)
    b = rand(5, 6, 7, seed=1)
    assert L.ncc(a, b).item() == pytest.approx(torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1].item())
    for level in (0.1, 2.0, 1000.3):  # most means are rounded
        flat = torch.full((1000,), level, requires_grad=True)
        value = L.ncc(flat, rand(1000))
        value.backward()
        assert abs(value) < 1e-3 and flat.grad.abs().max() < 1


def test_mutual_information_of_two_labels_is_ln_2():
    a = torch.tensor([0.0, 1.0] * 500)
    assert L.mutual_information(a, a).item() == pytest.approx(math.log(2), abs=1e-5)
    assert L.mutual_information(a, 1 - a).item() == pytest.approx(math.log(2), abs=1e-5)
    assert L.mutual_information(a, torch.tensor([0.0, 0.0, 1.0, 1.0] * 250)).item() == pytest.approx(0, abs=1e-5)
    assert L.mutual_information(a, torch.ones(1000)).item() == pytest.approx(0, abs=1e-5)


def test_mutual_information_agrees_with_a_gaussian_pair():
    g = torch.Generator().manual_seed(0)
    a, n = torch.randn(2, 40_000, generator=g, dtype=torch.float64)
    rho = 0.9
    b = rho * a + math.sqrt(1 - rho**2) * n
    assert L.mutual_information(a, b, bins=48).item() == pytest.approx(-0.5 * math.log(1 - rho**2), rel=0.08)
    assert L.mutual_information(a, n, bins=48).item() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("similarity", [L.mutual_information, L.nmi])
def test_information_ignores_the_intensity_scale_and_the_order(similarity):
    a, b = rand(400), rand(400) ** 2 + 0.1 * rand(400, seed=1)
    value = similarity(a, b).item()
    assert similarity(-40 * a + 7, 0.01 * b).item() == pytest.approx(value, rel=1e-6)
    assert similarity(b, a).item() == pytest.approx(value, rel=1e-6)
    assert similarity(a, rand(400, seed=2)).item() < value


def test_nmi_lies_between_one_and_two():
    a = torch.tensor([0.0, 1.0] * 500)
    assert L.nmi(a, torch.tensor([0.0, 0.0, 1.0, 1.0] * 250)).item() == pytest.approx(1, abs=1e-5)
    assert 1 < L.nmi(rand(1000), rand(1000)).item() < 2


def test_parzen_windows_keep_all_the_probability():
    joint = L.similarity.joint_histogram(rand(100), rand(100, seed=1), 16)
    assert joint.sum().item() == pytest.approx(1)
    assert (joint >= 0).all()


def test_linear_functions_have_their_slope_as_penalty_at_any_voxel_size():
    for mm in (0.5, 2.0):
        i = torch.arange(8, dtype=torch.float64) * mm
        x = (3 * i[:, None, None] - 4 * i[None, :, None]).expand(8, 8, 5)[None]
        assert L.total_variation(x, (mm, mm, 1.0)).item() == pytest.approx(5)
        assert L.squared_gradient(x, (mm, mm, 1.0)).item() == pytest.approx(25)


def test_a_flat_image_costs_nothing_and_one_voxel_thick_images_are_plane():
    flat = torch.full((2, 4, 4, 1), 3.0, requires_grad=True)
    for value in (L.total_variation(flat, (1.0, 1.0, 5.0)), L.squared_gradient(flat, (1.0, 1.0, 5.0))):
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-12) and flat.grad.isfinite().all()
    assert L.total_variation(torch.ones(1, 1, 1, 1), (1.0, 1.0, 1.0)) == 0


def test_gradients_agree_with_finite_differences():
    a, b = rand(30, 1).requires_grad_(), rand(30, 1, seed=1)
    x = rand(2, 3, 4, 2).requires_grad_()
    inner = a.detach().clone().requires_grad_()

    def middle(t: torch.Tensor) -> torch.Tensor:
        """The ends of the range are constants of the histogram, so two values hold it."""
        return torch.cat([t.reshape(-1), torch.tensor([-1.0, 2.0], dtype=torch.float64)])

    other = middle(b)
    cases = [
        (lambda t: L.huber(t, b, 0.3), a),
        (lambda t: L.gaussian_nll(t, b, t + 0.5), a),
        (lambda t: L.poisson_nll(t + 0.1, b), a),
        (lambda t: L.ncc(t, b), a),
        (lambda t: L.mutual_information(middle(t), other, 12), inner),
        (lambda t: L.nmi(middle(t), other, 12), inner),
        (lambda t: L.total_variation(t, (1.0, 2.0, 0.5), 0.1), x),
        (lambda t: L.squared_gradient(t, (1.0, 2.0, 0.5)), x),
    ]
    for loss, at in cases:
        assert torch.autograd.gradcheck(loss, (at,), atol=1e-5)
