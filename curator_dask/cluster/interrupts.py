"""A Ctrl-C that ends what it is meant to end, and is not told as somebody else's error.

Python raises it between any two steps of the main thread, also where it then gets lost or finds things half done.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN = 0.02  # seconds, after which the place that lost it has been left


@contextmanager
def heard() -> Iterator[None]:
    """Within the block, which the main thread runs, a Ctrl-C is not lost, wherever it lands.

    Python prints and drops what is raised in a callback of its garbage collector (distributed has one), of a weak
    reference, or in a ``__del__``. A Ctrl-C that it drops is raised again a moment later.
    """
    logging.getLogger("tornado.application").addFilter(_not_of_an_interrupted_wait)
    before = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # At once it would be dropped again; and to the thread itself, which waits where it only then wakes up.
            main = threading.main_thread().ident
            again = threading.Timer(_AGAIN, signal.pthread_kill, [main, signal.SIGINT])
            again.daemon = True
            again.start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    except KeyboardInterrupt:
        _let_go_of_logging()
        # Python notes one that ended an exec(), as of a dataclass, and would end by SIGINT though it was caught.
        exec("")
        raise
    finally:
        sys.unraisablehook = before


def _let_go_of_logging() -> None:
    """Release locks of `logging` that the main thread holds, though it is not there.

    Python 3.11's `logging` takes a lock a step before the ``try`` that gives it back: a Ctrl-C between the two leaves
    it held, and every other thread that logs, as distributed's, waits for ever.
    """
    handlers = [each() for each in getattr(logging, "_handlerList", ())]
    locks = [getattr(logging, "_lock", None), *(each.lock for each in handlers if each is not None)]
    for lock in locks:
        while getattr(lock, "_is_owned", bool)():
            lock.release()


def _not_of_an_interrupted_wait(record: logging.LogRecord) -> bool:
    """False for the traceback of a wait for distributed's loop that was interrupted before the loop had begun.

    `distributed.utils.sync` then cancels what is not there yet. The wait is over all the same.
    """
    if not record.exc_info or record.exc_info[0] is not NameError:
        return True
    trace = record.exc_info[2]
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code if trace is not None else None
    return code is None or code.co_qualname != "sync.<locals>.cancel"
