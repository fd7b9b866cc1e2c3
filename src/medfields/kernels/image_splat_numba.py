"""`image_sums` in Numba. A Gaussian touches the rows and, in each, the pixels that its ellipse covers. Images are shared out among threads,
gradients by Gaussians: no two threads write to one place and every sum runs in a fixed order."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from .dispatch import jit, use_threads
from .splat_numba import LIMIT, REACH, _rise


@jit()
def _span(c, w, rows):  # type: ignore[no-untyped-def]
    """First and one past the last row of the ellipse."""
    half = REACH * math.sqrt(1 / (w[0] * w[0]) + (w[1] / (w[0] * w[2])) ** 2)
    return math.ceil(max(c[0] - half, 0.0)), math.floor(min(c[0] + half, len(rows) - 1.0)) + 1


@jit()
def _line(y, c, w, row):  # type: ignore[no-untyped-def]
    """First and one past the last pixel of the ellipse in a row that lies y pixels from its middle."""
    f, g, h = w[1] * w[1] + w[2] * w[2], w[0] * w[1] * y, w[0] * w[0] * y * y - LIMIT
    root = g * g - f * h
    if root <= 0:
        return 0, 0
    root = math.sqrt(root)
    first = math.ceil(max(c[1] + (-g - root) / f, float(row[0])))
    last = math.floor(min(c[1] + (-g + root) / f, row[1] - 1.0)) + 1
    return first, max(first, last)


@jit()
def _add(out, first, a, b, d, x, peak):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        s = x + np.float32(k)
        z, e = a + b * s, d * s
        out[k] += peak / _rise(z * z + e * e)


@jit(parallel=True)
def _images(c, w, peaks, starts, rows, out):  # type: ignore[no-untyped-def]
    for n in numba.prange(len(out)):
        for q in range(starts[n], starts[n + 1]):
            top, bottom = _span(c[q], w[q], rows[n])
            for i in range(top, bottom):
                y = np.float32(i) - c[q, 0]
                first, last = _line(y, c[q], w[q], rows[n, i])
                _add(out[n, i, first:last], first, w[q, 0] * y, w[q, 1], w[q, 2], np.float32(first) - c[q, 1], peaks[q])


@jit()
def _sum(g, a, b, d, x):  # type: ignore[no-untyped-def]
    """Over the pixels of a row, g v times 1, z, e, z s and e s, with s from the middle and v = exp(-(z^2 + e^2) / 2)."""
    s0 = s1 = s2 = s3 = s4 = np.float32(0)
    for k in range(len(g)):
        s = x + np.float32(k)
        z, e = a + b * s, d * s
        v = g[k] / _rise(z * z + e * e)
        s0 += v
        s1 += v * z
        s2 += v * e
        s3 += v * z * s
        s4 += v * e * s
    return s0, s1, s2, s3, s4


@jit(parallel=True)
def _gradient(c, w, peaks, image, rows, g, to_centres, to_whiten, to_peaks):  # type: ignore[no-untyped-def]
    for q in numba.prange(len(c)):
        n = image[q]
        a, b, d = w[q, 0], w[q, 1], w[q, 2]
        t0 = t1 = t2 = t3 = t4 = t5 = np.float32(0)
        top, bottom = _span(c[q], w[q], rows[n])
        for i in range(top, bottom):
            y = np.float32(i) - c[q, 0]
            first, last = _line(y, c[q], w[q], rows[n, i])
            s0, s1, s2, s3, s4 = _sum(g[n, i, first:last], a * y, b, d, np.float32(first) - c[q, 1])
            t0 += s0
            t1 += s1
            t2 += s2
            t3 += s3
            t4 += s4
            t5 += s1 * y
        p = peaks[q]
        to_peaks[q] = t0
        to_centres[q, 0], to_centres[q, 1] = p * a * t1, p * (b * t1 + d * t2)
        to_whiten[q, 0], to_whiten[q, 1], to_whiten[q, 2] = -p * t5, -p * t3, -p * t4


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


def images(centres: Tensor, whiten: Tensor, peaks: Tensor, starts: Tensor, rows: Tensor, width: int) -> Tensor:
    """See `image_splat.image_sums`."""
    use_threads()
    out = np.zeros((*rows.shape[:2], width), np.float32)
    _images(*_numpy(centres, whiten, peaks, starts, rows), out)
    return torch.from_numpy(out)


def images_gradient(centres: Tensor, whiten: Tensor, peaks: Tensor, starts: Tensor, rows: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to centres, whitening matrices and peaks."""
    use_threads()
    out = [np.empty(t.shape, np.float32) for t in (centres, whiten, peaks)]
    image = np.repeat(np.arange(len(rows)), np.diff(starts.numpy()))
    _gradient(*_numpy(centres, whiten, peaks), image, *_numpy(rows, g), *out)
    return torch.from_numpy(out[0]), torch.from_numpy(out[1]), torch.from_numpy(out[2])
