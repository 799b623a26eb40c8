"""Python's garbage collector, held back where many small objects are made and none of them in circles.

It looks at all that there is again and again while lists grow: with it the headers of a tar take twice as long, and an
import that brings thousands of modules a quarter longer.
"""

from __future__ import annotations

import atexit
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_holding = 0  # blocks
_was_on = True  # before the first of them


@contextmanager
def held_back() -> Iterator[None]:
    """No collection in this process while the block lasts; what is made in it should be what is kept."""
    global _holding, _was_on
    with _lock:
        if not _holding:
            _was_on = gc.isenabled()
            gc.disable()
        _holding += 1
    try:
        yield
    finally:
        with _lock:
            _holding -= 1
            if not _holding and _was_on:
                gc.enable()


def look_rarely() -> None:
    """Have it look at what is new a seventieth as often as it does by itself: for a process that imports much."""
    gc.set_threshold(50_000, 10, 10)


def leave_quickly() -> None:
    """Have it not look at all that there is once more when Python ends: that takes a second where Dask is loaded.

    To be called early: what is registered at `atexit` after it is done before.
    """
    atexit.unregister(_freeze)  # it was called before, in the same process
    atexit.register(_freeze)


def _freeze() -> None:
    if "torch" not in sys.modules:  # of which libraries complain about what is left then
        gc.freeze()
