"""Python's garbage collector, held back where many small objects are made and none of them in circles.

It looks at all that there is again and again while lists grow: with it the headers of a tar take twice as long.
"""

from __future__ import annotations

import gc
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
