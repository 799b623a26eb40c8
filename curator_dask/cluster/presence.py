"""Whether there is still someone to do the work: the scheduler, and its workers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from dask.utils import format_bytes
from distributed import Client
from distributed.client import AllExit
from distributed.comm import CommClosedError

from curator_dask.errors import ClusterError
from curator_dask.settings import PATIENCE

logger = logging.getLogger("curator_dask")

_LOOK_EVERY = 5.0  # seconds between questions to the scheduler who is there
_WARN_EVERY = 60.0  # seconds
ANSWER = 30.0  # seconds that it may take to answer


class Presence:
    """Whether there is still someone to do the work; asks the scheduler every few seconds.

    Parameters
    ----------
    client
        Of the cluster.
    timeout
        Seconds to wait for a worker; None: those of `settings.PATIENCE`.

    Attributes
    ----------
    resting
        Addresses of workers that Dask has paused and that do nothing, at two looks, while others work: what they have
        been given they begin when they have memory again, perhaps never.
    there
        Addresses of all workers at the last look.

    Raises
    ------
    ConfigError
        The environment variable of `settings.PATIENCE` has a bad value.
    """

    def __init__(self, client: Client, timeout: float | None = None) -> None:
        for name in ("distributed.client", "distributed.batched", "asyncio"):
            logging.getLogger(name).addFilter(_not_of_a_lost_connection)  # `check` says it in one line
        self.client = client
        self.patience = PATIENCE.value() if timeout is None else timeout
        self.set_by = PATIENCE.name if timeout is None else "timeout"
        self.seen = self.warned = time.monotonic()
        self.looked = 0.0
        self.there: frozenset[str] = frozenset()
        self.resting: frozenset[str] = frozenset()
        self._rested: frozenset[str] = frozenset()

    def check(self) -> None:
        """Look if it is time to; say once a minute that there is no worker, or none that takes work.

        Raises
        ------
        ClusterError
            The connection was lost, or there was no worker for `settings.PATIENCE` seconds but such as Dask has paused.
        """
        # What a client asked for is forgotten with its connection, also where it can connect again.
        if self.client.status != "running":
            raise connection_lost(self.client)
        now = time.monotonic()
        if now - self.looked < min(_LOOK_EVERY, self.patience):
            return
        self.looked = now
        try:
            what = self._what_is_wrong()
            if what is None:
                self.seen = self.warned = now
                return
        except (OSError, TimeoutError):
            what = f"the scheduler at {_address(self.client)} does not answer"
        silence = now - self.seen
        if silence >= self.patience:
            raise ClusterError(
                f"{what}, for {silence:.0f} s. Look at the logs of workers and scheduler ({_address(self.client)}),"
                " start them again and run again: finished files are kept. "
                f"{self.set_by} sets how many seconds are waited (now {self.patience:g})"
            )
        if now - self.warned >= _WARN_EVERY:
            self.warned = now
            logger.warning("%s, for %.0f s now; waiting %.0f s more", what, silence, self.patience - silence)

    def _what_is_wrong(self) -> str | None:
        """Why no worker takes work; None if one does, or one that is paused still finishes what it has begun."""
        # Asked of the scheduler: what the client remembers of it may be empty for a moment.
        running = self._ask(self.client.scheduler.ncores_running)
        paused, at_rest = {}, frozenset[str]()
        self.there = frozenset(self._ask(self.client.scheduler.ncores))
        if len(running) < len(self.there):
            found = self._ask(self.client.scheduler.identity, n_workers=-1)
            paused = {
                address: each for address, each in found["workers"].items() if each["status"] == "paused"
            }
            at_rest = frozenset(address for address, each in paused.items() if not _works(each))
        self.resting = at_rest & self._rested if running else frozenset()
        self._rested = at_rest
        if running or len(at_rest) < len(paused):
            return None
        if not paused:
            return "the cluster has no worker"
        address, worker = next(iter(paused.items()))
        used, limit = (
            format_bytes(each or 0) for each in (worker["metrics"]["memory"], worker["memory_limit"])
        )
        return (
            f"every worker is paused for its memory ({len(paused)}: {address} has {used} of its limit of {limit}; give"
            " each more, by --memory-limit or fewer workers, or have fewer images a batch by batch_size)"
        )

    def _ask(self, question: Any, **options: Any) -> Any:
        return self.client.sync(question, callback_timeout=ANSWER, **options)


def _works(worker: Mapping[str, Any]) -> bool:
    """Whether a worker, as the scheduler knows it, is at work on a task; one that left its pool is, too."""
    counts = worker["metrics"].get("task_counts", {})
    return bool(counts.get("executing") or counts.get("long-running"))


def threads_of_workers(client: Client) -> dict[str, int]:
    """Threads of each worker that is there now, by its address."""
    # Asked of the scheduler now: what the client remembers of it may be empty for a moment.
    try:
        threads: dict[str, int] = client.sync(client.scheduler.ncores, callback_timeout=ANSWER)
    except (OSError, TimeoutError):
        raise connection_lost(client) from None
    return threads


def connection_lost(client: Client) -> ClusterError:
    """The error to raise where there is no scheduler any more."""
    return ClusterError(
        f"the connection to the scheduler at {_address(client)} was lost. Look whether it still runs, and what its"
        " log says; then run again: finished files are kept"
    )


def _address(client: Client) -> str:
    return client.scheduler.address if client.scheduler is not None else "?"


def _not_of_a_lost_connection(record: logging.LogRecord) -> bool:
    """False for the tracebacks with which a client loses its scheduler, and gives up to look for it."""
    error = record.exc_info[1] if record.exc_info else None
    # A client that is closed while it waits ends the waiting with an exception of its own, "AllExit".
    return not isinstance(error, asyncio.CancelledError | CommClosedError | AllExit)
