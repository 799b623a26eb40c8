"""What the library says, shown to a person at a terminal or in a notebook.

The library logs, to the logger ``curator_dask``: INFO is what a user wants to read, DEBUG what explains it. The command
line and notebooks show this as plain lines; any other program shows what its own configuration of logging lets through.
"""

from __future__ import annotations

import builtins
import logging
import sys

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
        except Exception:
            self.handleError(record)


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
