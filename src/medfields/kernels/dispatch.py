"""Which implementation of a kernel runs: Numba on the CPU, Triton on CUDA, plain torch everywhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from inspect import unwrap
from typing import Any

import torch

from ..errors import UnknownName

BACKENDS = ("torch", "numba", "triton")


def backend(*tensors: torch.Tensor) -> str:
    """"numba", "triton" or "torch" for these tensors; the variable MEDFIELDS_KERNELS names one that is to be used where it can.

    The compiled kernels know float32 only; other types, mixed devices and other accelerators go to the torch twin.

    Raises:
        UnknownName: if MEDFIELDS_KERNELS names no implementation.
    """
    asked = os.environ.get("MEDFIELDS_KERNELS", "")
    if asked and asked not in BACKENDS:
        raise UnknownName("kernel implementation (MEDFIELDS_KERNELS)", asked, BACKENDS)
    devices = {t.device.type for t in tensors}
    if asked == "torch" or len(devices) != 1 or any(t.dtype != torch.float32 for t in tensors):
        return "torch"
    able = {"cpu": "numba", "cuda": "triton" if has_triton() else "torch"}.get(devices.pop(), "torch")
    return able if asked in ("", able) else "torch"


@cache
def has_triton() -> bool:
    """Triton comes with the CUDA builds of torch; a build for the CPU has none."""
    return find_spec("triton") is not None


def jit(parallel: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Numba's decorator as all kernels use it: compiled at the first call, kept on disk, without the interpreter lock.

    Multiply-adds may be fused and sums reordered, but NaN stays NaN: a diverged fit must be seen, not hidden. Division by zero
    gives what the processor gives; a check for it would keep loops from being vectorised.
    """
    import numba

    def compile_later(function: Callable[..., Any]) -> Callable[..., Any]:
        bare = unwrap(function)  # the tests wrap every function in a type checker, which Numba cannot compile
        options = {"parallel": parallel, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "nsz", "arcp", "contract"}}
        try:
            return numba.njit(bare, cache=True, **options)
        except RuntimeError:  # neither the package folder nor the user's cache folder can be written
            return numba.njit(bare, **options)

    return compile_later


def use_threads() -> int:
    """Give Numba as many threads as torch has, as far as it can; returns the number."""
    import numba

    wanted = torch.get_num_threads()
    threads = max(1, min(wanted, numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(threads)
    if torch.get_num_threads() != wanted:  # Numba's first call starts OpenMP, which torch shares, with as many threads as it likes
        torch.set_num_threads(wanted)
    return threads
