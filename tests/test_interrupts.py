"""Ctrl-C at the moments in which Python or distributed would lose it, or print a traceback of their own."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import threading
import time

import pytest
from distributed.utils import LoopRunner, sync

from curator_dask.cluster.interrupts import heard


class Interrupted:
    """Interrupts whoever lets it go."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def in_a_callback_of_the_garbage_collector():
    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    gc.collect()


def in_a_destructor():
    del Interrupted().__dict__


@pytest.mark.parametrize("lose", [in_a_callback_of_the_garbage_collector, in_a_destructor])
def test_python_drops_none(lose, capfd):
    before = sys.unraisablehook
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), heard():
        lose()
        threading.Event().wait(60)  # Python by itself goes on
    assert time.monotonic() - start < 50
    assert sys.unraisablehook is before
    assert capfd.readouterr().err == ""


def test_one_that_ends_an_exec_does_not_decide_the_exit_code(tmp_path):
    """Python 3.11 to 3.13 forget that it was caught, and end by SIGINT: dataclasses are made by exec() on import."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\nfrom curator_dask.cluster.interrupts import heard\n"
        "try:\n    with heard():\n        exec('raise KeyboardInterrupt')\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_locks_of_logging_that_an_interrupt_left_held_are_let_go():
    """Else every other thread that logs, and so every cluster of a notebook, waits for ever."""
    handler = logging.StreamHandler()
    with pytest.raises(KeyboardInterrupt), heard():
        logging._lock.acquire()
        handler.acquire()
        signal.raise_signal(signal.SIGINT)
    other = threading.Thread(
        target=lambda: (logging.Logger("new").isEnabledFor(10), handler.acquire()), daemon=True
    )
    other.start()
    other.join(10)
    assert not other.is_alive()


def test_what_else_python_drops_goes_where_it_did():
    told = []

    class Broken:
        def __del__(self):
            raise ValueError("broken")

    before, sys.unraisablehook = sys.unraisablehook, lambda dropped: told.append(str(dropped.exc_value))
    try:
        with heard():
            del Broken().__dict__
    finally:
        sys.unraisablehook = before
    assert told == ["broken"]


def test_a_wait_that_is_interrupted_before_it_has_begun(caplog):
    runner = LoopRunner()
    runner.start()
    busy = threading.Event()

    async def nothing():
        return 1

    def keep_busy():
        busy.set()
        time.sleep(0.5)

    try:
        with caplog.at_level(logging.ERROR), heard():
            runner.loop.add_callback(keep_busy)
            busy.wait(10)
            main = threading.main_thread().ident
            interrupting = threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT])
            interrupting.start()
            with pytest.raises(KeyboardInterrupt):
                sync(runner.loop, nothing)
            interrupting.join()
            assert sync(runner.loop, nothing) == 1  # the loop has been through all of it
            runner.loop.add_callback(lambda: broken)  # noqa: F821
            assert sync(runner.loop, nothing) == 1
    finally:
        runner.stop()
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert told == ["name 'broken' is not defined"]
