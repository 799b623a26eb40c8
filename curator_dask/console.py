"""What the library says, shown to a person at a terminal or in a notebook.

The library logs, to the logger ``curator_dask``: INFO is what a user wants to read, DEBUG what explains it. The command
line and notebooks show this as plain lines; any other program shows what its own configuration of logging lets through.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import os
import sys
from typing import TextIO

_LOGGER = logging.getLogger("curator_dask")


class _Lines(logging.Handler):
    """Messages as lines without ornament, to the streams that are standard output and error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record: to stdout, or from warnings on to stderr, after the word for its level."""
        try:
            text = self.format(record)
            if record.levelno >= logging.WARNING:
                print(f"{record.levelname.lower()}: {text}", file=sys.stderr, flush=True)
            else:
                print(text, file=sys.stdout, flush=True)
        except BrokenPipeError:  # who read has gone, as `head` has: the work goes on, and nobody is told
            with contextlib.suppress(OSError, ValueError):  # streams without a descriptor
                _silence(sys.stderr if record.levelno >= logging.WARNING else sys.stdout)
        except Exception:
            self.handleError(record)


def _silence(stream: TextIO) -> None:
    """Let what is still written to a stream go nowhere, also what Python writes as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def show_messages() -> None:
    """Show what the library logs in this process from now on, unless its logger has handlers already.

    Its level becomes INFO where none was set.
    """
    if not _LOGGER.handlers:
        _LOGGER.addHandler(_Lines())
    if _LOGGER.level == logging.NOTSET:
        _LOGGER.setLevel(logging.INFO)


def show_in_notebook() -> None:
    """`show_messages` where this is a cell of a notebook, or a line of IPython; else nothing."""
    if hasattr(builtins, "get_ipython"):  # there while IPython runs a cell
        show_messages()
