"""Large CPU tensors that take over the memory of earlier ones.

The C library returns a large freed block to the system and asks for it again at the next step, page by page: a third of a training step
went there, and 20 ms of every step for the gradient of a table of 10^7 rows. CUDA has a caching allocator; this is one for our kernels.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SMALL = 2**18  # bytes; smaller tensors are left to torch
LIMIT = 2**29  # bytes kept for reuse, at most

_held: list[tuple[np.ndarray, weakref.ref]] = []
_lock = threading.Lock()


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised CPU tensor, in the memory of an earlier one of the same size that nobody uses any more.

    A tensor made from an array keeps that array alive, whichever way it is viewed or detached, so a weak reference to the array tells
    when its memory is free.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < SMALL:
        return torch.empty(tuple(shape), dtype=dtype)
    with _lock:
        place = next((i for i, (memory, user) in enumerate(_held) if memory.nbytes == size + 64 and user() is None), None)
        memory = np.empty(size + 64, np.uint8) if place is None else _held.pop(place)[0]
        start = -memory.ctypes.data % 64  # a cache line, as torch aligns
        view = memory[start : start + size]
        _held.append((memory, weakref.ref(view)))
        while sum(memory.nbytes for memory, _ in _held) > LIMIT:
            _held.pop(0)
    return torch.from_numpy(view).view(dtype).view(tuple(shape))


def empty_like(tensor: Tensor, dtype: torch.dtype | None = None, rows: int | None = None) -> Tensor:
    """`empty` of the shape of a matrix, or of so many of its rows, column by column in memory if the matrix is."""
    n, width = len(tensor) if rows is None else rows, tensor.shape[1]
    by_column = tensor.stride(0) == 1 and not tensor.is_contiguous()
    return empty((width, n), dtype or tensor.dtype).t() if by_column else empty((n, width), dtype or tensor.dtype)
