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
from multiprocessing import resource_tracker
from typing import Any

#: What a scheduler of jobs sends to those that it is about to kill: SIGTERM, or what the job has asked for
#: (``sbatch --signal=USR1@120``).
_LAST_WORDS = (signal.SIGTERM, signal.SIGUSR1)
_AGAIN = 0.02  # seconds, after which the place that lost it has been left


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[list[int]]:
    """Within the block, which the main thread runs, SIGTERM and SIGUSR1 end it as a Ctrl-C does.

    The first of them is raised as KeyboardInterrupt; what is sent besides, while all is closed, changes nothing.

    Yields
    ------
    The signals that came.
    """
    came: list[int] = []
    noise = logging.getLogger("distributed")
    level = noise.level

    def end(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) == 1:
            noise.setLevel(logging.CRITICAL)  # of workers that the signal has ended
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python sets no handler
        yield came
        return
    before = {number: signal.signal(number, end) for number in _LAST_WORDS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            # What comes once more, until the process has ended, is not to change how it ends.
            signal.signal(
                number, signal.SIG_IGN if came else handler if handler is not None else signal.SIG_DFL
            )
        noise.setLevel(level)


@contextmanager
def spared() -> Iterator[None]:
    """Threads and processes that are started within the block get no Ctrl-C and no SIGUSR1.

    It is the client that is interrupted, and that ends them. They get the signal too, as its children or as processes
    of its job, and would die with tracebacks while their nannies start others. Of SIGTERM they do die: it is also what
    ends them where their parent is gone.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()  # else the first worker's start does, and lifts the block of a Ctrl-C
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
