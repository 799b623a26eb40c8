"""Patience with what goes over a network: a call that fails is tried again after a pause.

One that does not come back in time is left behind and counts as failed.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from curator_dask.settings import STALL_SECONDS

logger = logging.getLogger("curator_dask")

T = TypeVar("T")

TRIES = 5
"""Times that a call to a store is tried before it is given up; the pauses between add up to about 8 seconds."""

UNREACHED_SECONDS = 5.0
"""After which a store that cannot be reached is not tried again, unless it has answered this process before: S3's own
client connects five times within each try, which takes it 7 seconds, and 15 at most."""

BLOCK_BYTES = 1 << 23
"""Bytes asked of a store at a time: a connection that is cut costs no more than these."""

# What trying again does not mend.
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
)
_FINAL_NAMES = frozenset({"NoCredentialsError", "PartialCredentialsError", "ParamValidationError"})
_FINAL_STATUS = frozenset({400, 401, 403, 404, 405, 410})
# Nobody listens at an address, or there is none: of botocore, aiohttp, Azure's client and Python.
_UNREACHED = "EndpointConnectionError ConnectTimeoutError ClientConnectorError ServiceRequestError gaierror"
_UNREACHED_NAMES = frozenset([*_UNREACHED.split(), "ConnectionRefusedError"])
_answered: set[str] = set()  # stores that have, be it with an error


def patiently(action: Callable[[], T], what: str, size: int = 0) -> T:
    """The result of a call to a store, tried `TRIES` times; see `UNREACHED_SECONDS` for one that is not there.

    Parameters
    ----------
    action
        What to do; run in a thread of its own, which is left behind where it does not come back within
        `settings.STALL_SECONDS`.
    what
        The URL, or the path in the store: for the log, and to know the store by its bucket.
    size
        Bytes that it moves: `settings.STALL_SECONDS` for each `BLOCK_BYTES` of them.

    Raises
    ------
    Exception
        The last of its errors, or the first that trying again cannot mend (no such file, no permission).
        TimeoutError where it stalled.
    """
    limit = STALL_SECONDS.value() * max(1, -(-size // BLOCK_BYTES))
    store = (what.partition("://")[2] or what).split("/")[0]
    began = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            found = _in_time(action, limit)
        except Exception as error:
            unreached = _is_unreached(error)
            if not unreached and not isinstance(error, TimeoutError):
                _answered.add(store)
            lasts = time.monotonic() - began > UNREACHED_SECONDS and store not in _answered
            if number == TRIES or (unreached and lasts) or _is_final(error):
                raise
            pause = (
                0.5 * 2 ** (number - 1) * random.uniform(0.8, 1.2)
            )  # all workers must not come back at once
            logger.debug("%s: try %d of %d failed (%r); again in %.1f s", what, number, TRIES, error, pause)
            time.sleep(pause)
        else:
            _answered.add(store)
            return found
    raise AssertionError("unreachable")


def _in_time(action: Callable[[], T], seconds: float) -> T:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="curator-store", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise  # its own
        raise TimeoutError(f"no answer within {seconds:g} s ({STALL_SECONDS.name} sets this limit)") from None


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    return isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES or status in _FINAL_STATUS


def _is_unreached(error: BaseException) -> bool:
    """Whether nothing could be connected to: no answer, neither good nor bad, came from the store."""
    names = {kind.__name__ for kind in type(error).__mro__}
    cause = error.__cause__
    return bool(names & _UNREACHED_NAMES) or (cause is not None and _is_unreached(cause))
