"""What surrounds the products of a ReLU network in bfloat16, on the bits: torch converts to float32 and back, in passes of their own.

Here ReLU is one pass, which takes along a last layer of one output; its derivative and the gradient of the bias are another.
The width of a narrow layer is known to the compiler as the length of the tuple `units`, so a row is a few vector instructions; a wide one
would take seconds to compile, and its products outweigh what surrounds them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .dispatch import jit

SIGN, REST, INFINITY = np.uint16(0x8000), np.uint16(0x7FFF), np.uint16(0x7F80)
ZERO, NOTHING = np.float32(0), np.uint16(0)
NARROW = 256  # units
BLOCK = 1024  # points whose gradients are summed before they join the total


@jit()
def _value(bits):  # type: ignore[no-untyped-def]
    """The float32 that these bits of bfloat16 mean."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@jit()
def _rectified(bits):  # type: ignore[no-untyped-def]
    return NOTHING if np.uint16(bits - SIGN) <= INFINITY else bits  # -0 to -infinity, not NaN


@jit()
def _relu(z):  # type: ignore[no-untyped-def]
    for i in range(len(z)):
        z[i] = _rectified(z[i])


@jit()
def _relu_dot(units, z, w):  # type: ignore[no-untyped-def]
    """Both in one loop: apart, the first would not be vectorised."""
    total = ZERO
    for i in range(len(units)):
        z[i] = _rectified(z[i])
        total += w[i] * _value(z[i])
    return total


@jit()
def _last(units, z, w, b, y):  # type: ignore[no-untyped-def]
    width = len(units)
    for q in range(len(y)):
        y[q] = _relu_dot(units, z[q * width : (q + 1) * width], w) + b[0]


@jit()
def _mask(units, g, h, total):  # type: ignore[no-untyped-def]
    for i in range(len(units)):
        bits = g[i] if h[i] & REST else NOTHING
        g[i] = bits
        total[i] += _value(bits)


@jit()
def _relu_backward(units, g, h, total):  # type: ignore[no-untyped-def]
    width, points = len(units), len(g) // len(units)
    part = np.empty(width, np.float32)
    total[:] = ZERO
    for start in range(0, points, BLOCK):
        part[:] = ZERO
        for q in range(start, min(points, start + BLOCK)):
            _mask(units, g[q * width : (q + 1) * width], h[q * width : (q + 1) * width], part)
        for i in range(width):
            total[i] += part[i]


@jit()
def _mask_all(g, h):  # type: ignore[no-untyped-def]
    for i in range(len(g)):
        g[i] = g[i] if h[i] & REST else NOTHING


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(-1).view(torch.uint16).numpy()


def relu_(z: Tensor) -> Tensor:
    """z <- max(z, 0), contiguous bfloat16; NaN stays."""
    _relu(_bits(z))
    return z


def last_(z: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """z <- max(z, 0) and y = z w + b for z [n, W] bfloat16 and w [1, W], b [1], y [n, 1] float32; all contiguous, W <= `NARROW`."""
    _last((0,) * weight.shape[1], _bits(z), *(t.detach().view(-1).numpy() for t in (weight, bias, y)))


def relu_backward_(g: Tensor, h: Tensor) -> Tensor:
    """g <- g where h != 0, else 0, for h the output of ReLU, both contiguous [n, W] bfloat16; returns sum_n g, [W] float32."""
    if g.shape[1] > NARROW:
        _mask_all(_bits(g), _bits(h))
        return g.sum(0, dtype=torch.float32)
    total = torch.empty(g.shape[1])
    _relu_backward((0,) * g.shape[1], _bits(g), _bits(h), total.numpy())
    return total
