"""The chunked network against its plain torch twin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from medfields.errors import UnknownName
from medfields.kernels import mlp
from medfields.kernels.mlp_numba import last_, relu_, relu_backward_

N = 3 * mlp.SMALL + 17  # several chunks for wide layers, the last one ragged


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    mlp.set_policy(None)
    yield
    mlp.set_policy(None)


def network(width: int = 200, inputs: int = 24, outputs: int = 3, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, list, list]:
    rng = torch.Generator().manual_seed(0)
    sizes = [(width, inputs), (width, width), (outputs, width)]
    weights = [(torch.randn(s, generator=rng) * (2 / s[1]) ** 0.5).to(dtype).requires_grad_() for s in sizes]
    biases = [(0.1 * torch.randn(s[0], generator=rng)).to(dtype).requires_grad_() for s in sizes]
    return torch.randn(N, inputs, generator=rng).to(dtype).requires_grad_(), weights, biases


def run(function, activation: str, x, weights, biases) -> list[torch.Tensor]:
    y = function(x, weights, biases, activation)
    seed = torch.linspace(-1, 2, y.numel()).view_as(y).to(y)
    return [y.detach(), *torch.autograd.grad(y, [x, *weights, *biases], seed)]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).pow(2).mean().sqrt() / b.pow(2).mean().sqrt())


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_fp32_chunks_differ_from_the_twin_by_rounding(activation: str) -> None:
    mlp.set_policy("fp32")
    net = network()
    for ours, twin in zip(run(mlp.mlp_forward, activation, *net), run(mlp.mlp_torch, activation, *net), strict=True):
        assert error(ours, twin) < 1e-5


@pytest.mark.parametrize(("width", "outputs"), [(200, 1), (200, 3), (1030, 1)])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_bf16_keeps_its_stated_tolerance(activation: str, width: int, outputs: int) -> None:
    mlp.set_policy("bf16")
    net = network(width, outputs=outputs)
    ours, twin = run(mlp.mlp_forward, activation, *net), run(mlp.mlp_torch, activation, *net)
    assert all(t.dtype == torch.float32 for t in ours)
    assert 1e-6 < error(ours[0], twin[0]) < 0.01  # not equal: bf16 did run
    for a, b in zip(ours[1:], twin[1:], strict=True):
        assert error(a, b) < (0.1 if activation == "relu" else 0.03)


def test_relu_on_the_bits_of_bfloat16_is_relu() -> None:
    z = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).view(-1, 64)  # every number there is
    h, g = relu_(z.clone()), torch.linspace(-1, 1, 2**16).to(torch.bfloat16).view(-1, 64)
    assert torch.equal(h.isnan(), z.isnan())
    assert torch.equal(h.nan_to_num(7.0), z.relu().nan_to_num(7.0))
    kept = z.isnan() | (z > 0)
    masked = torch.where(kept, g, torch.zeros_like(g))
    of_bias = relu_backward_(g, h)
    assert torch.equal(g, masked)
    torch.testing.assert_close(of_bias, masked.float().sum(0), rtol=1e-5, atol=1e-3)


def test_relu_takes_along_a_last_layer_of_one_output() -> None:
    rng = torch.Generator().manual_seed(0)
    z, weight, bias, y = torch.randn(1500, 37, generator=rng).bfloat16(), torch.randn(1, 37, generator=rng), torch.ones(1), torch.empty(1500, 1)
    h = z.relu()
    last_(z, weight, bias, y)
    assert torch.equal(z, h)
    torch.testing.assert_close(y, torch.nn.functional.linear(h.float(), weight, bias), rtol=1e-5, atol=1e-5)


def test_a_nan_is_seen_in_either_precision() -> None:
    for precision in mlp.POLICIES:
        mlp.set_policy(precision)
        x, weights, biases = network()
        with torch.no_grad():
            x[5, 2] = -float("nan")
        y = mlp.mlp_forward(x, weights, biases)
        assert y[5].isnan().all() and y.isnan().sum() == 3


def test_what_needs_no_gradient_is_float32_whatever_the_policy() -> None:
    mlp.set_policy("bf16")
    x, weights, biases = network()
    with torch.no_grad():
        assert error(mlp.mlp_forward(x, weights, biases), mlp.mlp_torch(x, weights, biases)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_batches_and_other_types_are_the_twin_itself(dtype: torch.dtype) -> None:
    mlp.set_policy("bf16")
    x, weights, biases = network(dtype=dtype)
    x = x if dtype == torch.float64 else x[: mlp.SMALL - 1]
    assert torch.equal(mlp.mlp_forward(x, weights, biases), mlp.mlp_torch(x, weights, biases))


def test_gradients_only_where_asked() -> None:
    mlp.set_policy("fp32")
    x, weights, biases = network()
    x, weights[1] = x.detach(), weights[1].detach()
    mlp.mlp_forward(x, weights, biases).sum().backward()
    assert weights[1].grad is None and weights[0].grad is not None and biases[1].grad is not None


@pytest.mark.parametrize("precision", mlp.POLICIES)
def test_a_gradient_can_be_differentiated(precision: str) -> None:
    mlp.set_policy(precision)
    x, weights, biases = network(width=32)
    found = []
    for function in (mlp.mlp_forward, mlp.mlp_torch):
        slope, = torch.autograd.grad(function(x, weights, biases, "silu").sum(), x, create_graph=True)
        found.append(torch.autograd.grad((slope**2).sum(), weights))
    for ours, twin in zip(*found, strict=True):
        assert error(ours, twin) < 1e-4


@pytest.mark.parametrize("precision", mlp.POLICIES)
def test_the_same_input_gives_the_same_bytes(precision: str) -> None:
    mlp.set_policy(precision)
    net = network()
    assert all(torch.equal(a, b) for a, b in zip(run(mlp.mlp_forward, "relu", *net), run(mlp.mlp_forward, "relu", *net), strict=True))


def test_the_policy_is_measured_once_or_taken_from_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDFIELDS_MLP", raising=False)
    state = torch.random.get_rng_state()
    chosen = mlp.policy()
    assert chosen in mlp.POLICIES and torch.equal(state, torch.random.get_rng_state())
    monkeypatch.setattr(mlp, "_measure", lambda: pytest.fail("measured twice"))
    assert mlp.policy() == chosen
    for name in mlp.POLICIES:
        mlp.set_policy(None)
        monkeypatch.setenv("MEDFIELDS_MLP", name)
        assert mlp.policy() == name
    mlp.set_policy(None)
    monkeypatch.setenv("MEDFIELDS_MLP", "fp8")
    with pytest.raises(UnknownName):
        mlp.policy()


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(UnknownName, match="relu"):
        mlp.mlp_forward(*network(), activation="rely")


def test_the_precision_can_be_asked_for_while_only_reading() -> None:
    with torch.inference_mode():
        assert mlp.policy() in mlp.POLICIES
