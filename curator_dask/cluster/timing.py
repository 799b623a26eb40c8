"""Where the time of a task goes: fetching, decoding, the model, writing."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from curator_dask.cluster.progress import reporter


class Stopwatch:
    """Counts the seconds of one thread by what it does; made in the task's own, which it reports for."""

    def __init__(self) -> None:
        self._tell = reporter()
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._now: str | None = None
        self._since = 0.0

    def turn_to(self, what: str | None) -> str | None:
        """From now on this is done (None: nothing that counts); what was done before."""
        now, before = time.perf_counter(), self._now
        if before is not None:
            self._spent[before] += now - self._since
        self._now, self._since = what, now
        return before

    def tell(self) -> None:
        """Report what was spent up to the last turn."""
        if self._spent:
            self._tell(seconds=self._spent)
            self._spent = defaultdict(float)


@contextmanager
def spending(what: str) -> Iterator[None]:
    """The time of the block goes there."""
    watch = Stopwatch()
    watch.turn_to(what)
    try:
        yield
    finally:
        watch.turn_to(None)
        watch.tell()
