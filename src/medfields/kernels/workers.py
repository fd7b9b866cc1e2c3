"""Threads that each run torch operations on one core: for work that divides into independent parts.

An operation on a part that fits the cache takes a tenth of a millisecond, as long as it takes to wake a sleeping OpenMP team: shared out
within each operation, two cores were no faster than one (measured). Shared out by parts, they are twice as fast.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import torch

P = TypeVar("P")
R = TypeVar("R")


def each(work: Callable[[Iterator[P]], Iterator[R]], parts: Sequence[P]) -> list[R]:
    """The results of `work`, in the order of `parts`, from as many threads as torch has; without gradients.

    `work` runs once on every thread and yields one result for each part it draws, so it can keep its scratch memory from part to part.
    Which thread draws which part is left to chance: what is computed for a part must not depend on it.
    """
    inference, queue, results = torch.is_inference_mode_enabled(), deque(enumerate(parts)), {}

    def run(_: int) -> None:
        drawn: list[int] = []

        def draw() -> Iterator[P]:
            with suppress(IndexError):
                while True:
                    number, part = queue.popleft()
                    drawn.append(number)
                    yield part

        with torch.inference_mode(inference), torch.no_grad():
            for result in work(draw()):
                results[drawn[-1]] = result

    threads = min(torch.get_num_threads(), len(parts))
    if threads <= 1:
        run(0)
    else:
        list(_pool(torch.get_num_threads()).map(run, range(threads)))
    return [results[number] for number in range(len(parts))]


@cache
def _pool(threads: int) -> Any:
    """`threads` workers whose torch has one thread. torch keeps the number per thread, and one for threads yet to come: that is set back."""
    ready = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # torch sets up a new thread at its first question; after that its number stays
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "medfields-kernel", start)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
