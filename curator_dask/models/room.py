"""Where a device is full: models that nobody uses any more go; where there are none, a model takes half as much."""

from __future__ import annotations

import logging

from curator_dask import backend
from curator_dask.cache import ENCODERS, LONG_UNUSED

logger = logging.getLogger("curator_dask")


class Room:
    """How much may go through a model at once; for one thread at a time.

    Parameters
    ----------
    name
        Of the model.
    what
        Of how many it is said, with a place for the number: ``"{} images at once"``.
    limit
        At most; None: as much as comes.
    """

    def __init__(self, name: str, what: str, limit: int | None = None) -> None:
        self.limit = limit
        self._name, self._what = name, what
        self._was_full = False

    def of(self, count: int) -> int:
        """How many of so many may go through at once."""
        return min(count, self.limit or count)

    def may_be_made(self, error: Exception, count: int) -> bool:
        """Whether a pass of so many that ended with an error is to be tried again, once room is made."""
        return backend.is_out_of_memory(error) and (count > 1 or ENCODERS.has_idle())

    def make(self, count: int) -> None:
        """Make room after a pass of so many.

        Not while its exception is handled, whose traceback holds the tensors of that pass.
        """
        if not ENCODERS.make_room(LONG_UNUSED if count > 1 else 0.0):
            first, self._was_full, self.limit = not self._was_full, True, (count + 1) // 2
            logger.log(
                logging.WARNING if first else logging.DEBUG,
                "%s: out of memory with %s, going on with %d (set batch_size=%d)",
                self._name,
                self._what.format(count),
                self.limit,
                self.limit,
            )
        backend.current().release_memory()
