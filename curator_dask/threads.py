"""Many looks at files at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


_THREADS = 16  # that look at files at once


_WAITS = 0.02  # seconds of waiting, after which looks at files go to threads


def in_threads(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """``[function(item) for item in items]``, many at a time where they wait: for looks at files.

    The first are looked at one by one. Files that the system knows already answer at once, and threads that do not
    wait stand in each other's way: 200,000 such looks take 1.4 s in one thread and 4.3 s in 16.
    """
    done: list[T] = []
    waited = worked = 0.0
    for item in items:
        clock, work = time.perf_counter(), time.thread_time()
        done.append(function(item))
        work = time.thread_time() - work
        worked += work
        waited += time.perf_counter() - clock - work
        if waited > _WAITS and waited > 2 * worked:
            break
    rest = items[len(done) :]
    # A few items a task, which costs more than a quick look.
    size = max(1, len(rest) // (8 * _THREADS))
    blocks = [rest[start : start + size] for start in range(0, len(rest), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda block: [function(item) for item in block], blocks)
        return [*done, *(result for results in found for result in results)]
