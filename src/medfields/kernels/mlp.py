"""A multilayer perceptron as one function of autograd, run in chunks of points that stay in the cache, in bfloat16 where that is faster.

h_0 = x,  h_l = s(W_l h_(l-1) + b_l) for the hidden layers,  y = W h + b.  Eager torch streams every activation of every point through
main memory; here a chunk goes through all layers before the next one starts, in both directions, each chunk on one core.

Precision. "fp32" differs from the twin by rounding only. "bf16" is used only where a gradient is wanted (training): activations, their
gradients and a copy of the weights have 8 significant bits, products are summed in float32 inside a chunk, and the weight gradients of
the chunks in float32; weights, input, output and last layer stay float32. Stated tolerance against the float32 twin, as relative
root-mean-square error: 1 % of the output, 3 % of each gradient with SiLU, 10 % with ReLU, where units within rounding of zero switch
sides. What is evaluated without a gradient, finished fields among it, is float32.

The precision is chosen once per process, at the first large call, by a measurement of some 50 ms: bf16 if it is at least 1.25 times as
fast. The variable MEDFIELDS_MLP=fp32|bf16 or `set_policy` overrides. A run that resumes must ask for the policy it began with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import UnknownName
from . import memory
from .workers import each

POLICIES = ("fp32", "bf16")
ACTIVATIONS = {"relu": F.relu, "silu": F.silu}
SMALL = 4096  # points below which plain torch is as fast
_CHUNK = 2**20  # points x widest layer of one chunk: 2 MB in bf16
_chosen: str | None = None


def policy() -> str:
    """"fp32" or "bf16": the precision of large training calls on the CPU in this process; measured now if it was not before.

    Raises:
        UnknownName: if MEDFIELDS_MLP is neither.
    """
    global _chosen
    if _chosen is None:
        set_policy(os.environ.get("MEDFIELDS_MLP") or _measure())
    assert _chosen is not None
    return _chosen


def set_policy(name: str | None) -> None:
    """Set the precision, as a resumed run does; None forgets it, so that it is measured again.

    Raises:
        UnknownName: if it is not one of `POLICIES`.
    """
    global _chosen
    if name is not None and name not in POLICIES:
        raise UnknownName("precision of networks (MEDFIELDS_MLP)", name, POLICIES)
    _chosen = name


def mlp_forward(x: Float[Tensor, "N I"], weights: Sequence[Tensor], biases: Sequence[Tensor],
                activation: str = "relu") -> Float[Tensor, "N O"]:
    """The network at N points; `weights[l]` is [out, in] as in nn.Linear, no activation after the last layer.

    Large float32 batches on the CPU run in chunks, see the module; all else is `mlp_torch`, as is a gradient with `create_graph=True`.

    Raises:
        UnknownName: if the activation is neither "relu" nor "silu".
    """
    if activation not in ACTIVATIONS:
        raise UnknownName("activation", activation, ACTIVATIONS)
    tensors = (x, *weights, *biases)
    if len(x) < SMALL or len(weights) < 2 or any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return mlp_torch(x, weights, biases, activation)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    dtype = torch.bfloat16 if training and policy() == "bf16" else torch.float32
    return _ChunkedMLP.apply(activation, dtype, training, len(weights), *tensors)


def mlp_torch(x: Float[Tensor, "*N I"], weights: Sequence[Tensor], biases: Sequence[Tensor],
              activation: str = "relu") -> Float[Tensor, "*N O"]:
    """The same in plain torch: the definition. Any device, any float type, differentiable any number of times."""
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        x = ACTIVATIONS[activation](F.linear(x, w, b))
    return F.linear(x, weights[-1], biases[-1])


def _chunks(n: int, widths: Sequence[int]) -> list[slice]:
    size = max(512, _CHUNK // max(widths) // 512 * 512)
    return [slice(a, min(a + size, n)) for a in range(0, n, size)]


def _layers(x: Tensor, widths: Sequence[int], dtype: torch.dtype, rows: int) -> list[Tensor]:
    """Uninitialised activations of `rows` points: the input, laid out in memory as `x` is, and the layers of the other widths."""
    return [memory.empty_like(x, dtype, rows), *(memory.empty((rows, width), dtype) for width in widths[1:])]


class _ChunkedMLP(torch.autograd.Function):
    """Keeps of each hidden layer what its derivative needs, in the working precision: the output of ReLU, the input of SiLU."""

    @staticmethod
    def forward(ctx: Any, activation: str, dtype: torch.dtype, training: bool, layers: int, x: Tensor, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:layers], parameters[layers:]
        work_w, work_b = [w.to(dtype) for w in weights[:-1]], [b.to(dtype) for b in biases[:-1]]
        widths = [x.shape[1], *(w.shape[0] for w in weights)]
        parts = _chunks(len(x), widths)
        size = parts[0].stop  # of the longest chunk
        y, kept = memory.empty((len(x), widths[-1])), _layers(x, widths[:-1], dtype, len(x)) if training else []

        together = dtype == torch.bfloat16 and activation == "relu" and _thin(weights[-1])

        def run(parts: Iterator[slice]) -> Iterator[None]:
            own = kept or _layers(x, widths[:-1], dtype, size)
            top = memory.empty((0 if together else size, widths[-2]))
            for part in parts:
                n = part.stop - part.start
                here = [t[part] if training else t[:n] for t in own]
                h = here[0].copy_(x[part])
                for w, b, z in zip(work_w, work_b, here[1:], strict=True):
                    torch.addmm(b, h, w.t(), out=z)
                    if together and z is here[-1]:
                        from .mlp_numba import last_
                        last_(z, weights[-1], biases[-1], y[part])
                    else:
                        h = _relu_(z) if activation == "relu" else F.silu(z)
                if not together:
                    torch.addmm(biases[-1], top[:n].copy_(h), weights[-1].t(), out=y[part])
                yield None

        each(run, parts)
        ctx.save_for_backward(x, *parameters)
        ctx.kept, ctx.activation, ctx.dtype, ctx.layers = kept, activation, dtype, layers
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        layers, relu, needed = ctx.layers, ctx.activation == "relu", ctx.needs_input_grad[4:]
        weights, biases = parameters[:layers], parameters[layers:]
        if torch.is_grad_enabled():  # create_graph=True: the gradient needs a graph of its own
            wanted = [t for t, need in zip((x, *parameters), needed, strict=True) if need]
            found = iter(torch.autograd.grad(mlp_torch(x, weights, biases, ctx.activation), wanted, grads[0], create_graph=True))
            return None, None, None, None, *(next(found) if need else None for need in needed)
        work, widths = [w.to(ctx.dtype) for w in weights], [x.shape[1], *(w.shape[0] for w in weights)]
        parts = _chunks(len(x), widths)
        size, grad_x = parts[0].stop, memory.empty_like(x) if needed[0] else None

        def run(parts: Iterator[slice]) -> Iterator[list[Tensor | None]]:
            """Gradients of weights and biases from each chunk."""
            slopes = _layers(x, widths, ctx.dtype, size)
            for part in parts:
                n = part.stop - part.start
                of_weight: list[Tensor | None] = [None] * layers
                of_bias: list[Tensor | None] = [None] * layers
                of_bias[-1] = grads[0][part].sum(0)
                g = slopes[-1][:n].copy_(grads[0][part])
                for layer in reversed(range(layers)):
                    below = ctx.kept[layer][part]
                    h = below if relu or not layer else F.silu(below)
                    if needed[1 + layer]:
                        of_weight[layer] = torch.mm(g.t(), h) if widths[layer] >= widths[layer + 1] else torch.mm(h.t(), g).t()
                    if layer or grad_x is not None:
                        g = torch.mm(g, work[layer], out=slopes[layer][:n])
                    if layer:
                        of_bias[layer - 1] = _relu_backward_(g, h) if relu else _silu_backward_(g, below)
                if grad_x is not None:
                    grad_x[part] = g
                yield of_weight + of_bias

        totals: list[Tensor | None] = [torch.zeros_like(t) if need else None for t, need in zip(parameters, needed[1:], strict=True)]
        for shares in each(run, parts):  # added in the order of the chunks, whichever thread had them
            for total, share in zip(totals, shares, strict=True):
                if total is not None and share is not None:
                    total += share
        return None, None, None, None, grad_x, *totals


def _thin(last: Tensor) -> bool:
    """Whether a last layer is too thin for a matrix routine, so that the ReLU before it takes it along."""
    from .mlp_numba import NARROW
    return len(last) == 1 and last.shape[1] <= NARROW and last.is_contiguous()


def _relu_(z: Tensor) -> Tensor:
    if z.dtype != torch.bfloat16:
        return z.relu_()
    from .mlp_numba import relu_
    return relu_(z)


def _relu_backward_(g: Tensor, h: Tensor) -> Tensor:
    """In place; returns the gradient of the bias."""
    if g.dtype != torch.bfloat16:
        return torch.ops.aten.threshold_backward.grad_input(g, h, 0, grad_input=g).sum(0)
    from .mlp_numba import relu_backward_
    return relu_backward_(g, h)


def _silu_backward_(g: Tensor, z: Tensor) -> Tensor:
    """In place; returns the gradient of the bias."""
    return torch.ops.aten.silu_backward.grad_input(g, z, grad_input=g).sum(0)


def _measure() -> str:
    """Forward and backward of a 2 x 64 network at 8192 points in both precisions, in turn; the best of five of each."""
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    with torch.inference_mode(False), torch.enable_grad():  # whoever asks first may be only reading
        x = torch.linspace(-1, 1, 8192 * 32).view(8192, 32)
        sizes = ((64, 32), (64, 64), (1, 64))
        parameters = [torch.full(s, 0.1).requires_grad_() for s in sizes] + [torch.zeros(s[0]).requires_grad_() for s in sizes]
        for _ in range(6):
            for dtype in best:
                start = time.process_time()
                torch.autograd.grad(_ChunkedMLP.apply("relu", dtype, True, 3, x, *parameters).sum(), parameters)
                best[dtype] = min(best[dtype], time.process_time() - start)
    return "bf16" if 1.25 * best[torch.bfloat16] < best[torch.float32] else "fp32"
