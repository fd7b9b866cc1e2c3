"""One run of a method, timed."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..solve import Method, Run
from ..space import Volume

T = TypeVar("T")


def solve(method: Method, case: Any, run: Run, prior: Any = None) -> Volume:
    """The result of a method on the grid of the case."""
    result = method.solve(case, run, prior)
    if not isinstance(result, Volume):
        return result.on(case.grid).volume()
    return result if result.grid.same_as(case.grid) else result.on(case.grid)


def timed(work: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    """A result, and the seconds and the memory that it took: the process' peak so far, and what it was before."""
    before, start = peak_mb(), time.monotonic()
    result = work()
    return result, {"seconds": round(time.monotonic() - start, 2), "peak_mb": round(peak_mb(), 1), "start_mb": round(before, 1)}


def peak_mb() -> float:
    """The largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 2**10
