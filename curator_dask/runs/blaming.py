"""Whose an error is: code of a user's own raises what it likes, and says neither its class nor its column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curator_dask.errors import CuratorError
from curator_dask.frames.names import ERROR_COLUMN

_NOTE = "raised by "


def whose(step: Any) -> str:
    """A step by its class or model, and its columns: ``Length (column 'length')``."""
    columns = [repr(each) for each in step.columns if each != ERROR_COLUMN]
    said = f" (column{'s' if len(columns) > 1 else ''} {', '.join(columns)})" if columns else ""
    return f"{getattr(step, 'owner', step.label)}{said}"


@contextmanager
def blaming(step: Any) -> Iterator[None]:
    """Note on what the block raises that it is this step's. Errors of the package are left: they say it themselves."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, CuratorError) or _note_of(error)
        if not known and hasattr(step, "label"):  # a function of a frame has none
            error.add_note(f"{_NOTE}{whose(step)}")
        raise


def told(error: Exception) -> str:
    """An error in words; one that is not the package's with its type, and with whose it is where that was noted."""
    if isinstance(error, CuratorError):
        return str(error)
    said = f"{type(error).__name__}: {error}"
    note = _note_of(error)
    return f"{note.removeprefix(_NOTE)}: {said}" if note else said


def _note_of(error: Exception) -> str:
    return next((each for each in getattr(error, "__notes__", ()) if each.startswith(_NOTE)), "")
