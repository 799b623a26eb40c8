"""Speaking to the workers: calling a function on each, and what a future ended with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from distributed import Client, Future, KilledWorker, default_client
from distributed.client import FutureCancelledError

from curator_dask.cluster.dask_settings import closed_client
from curator_dask.cluster.presence import ANSWER, Presence, connection_lost, threads_of_workers
from curator_dask.errors import ClusterError, CuratorError, ShardError
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

_UNREAD = "deserialization of the task graph"  # of `distributed.scheduler.Scheduler.update_graph`


class ResultLost(ShardError):
    """A partition was done, but what it reported is lost, as where its worker dies, and was not made again."""


class HandedBack(ResultLost):
    """A partition was not done, by no fault of its own: another worker is to do it."""


class NotTaken(ResultLost):
    """A partition never came to a worker: the scheduler could not read what it was sent."""


class WorkerUnfit(CuratorError):
    """A worker cannot do the tasks of this run; others may.

    Attributes
    ----------
    worker
        Its address.
    """

    worker: str = ""


class WorkersDied(ShardError):
    """Every worker that a partition was given to died, as far as Dask tries."""


def current_client() -> Client | None:
    """The Dask client of this process, None if there is none: then work is done in this process.

    Raises
    ------
    ClusterError
        It is asynchronous: in its event loop nothing can be waited for.
    """
    client: Client | None = None
    with contextlib.suppress(ValueError):
        client = default_client()
    if client is not None and client.asynchronous:
        raise ClusterError(
            "the current Dask client is asynchronous, and what is asked for waits for workers: use"
            " curator_dask.get_client(), or call it in a thread of its own, as `await asyncio.to_thread(…)` does"
        )
    closed = closed_client()
    if closed is not None and (client is None or client.scheduler.address != closed):
        where = "in this process, one shard after the other"
        if client is not None:
            where = f"on the cluster at {client.scheduler.address}, whose client is still open"
        logger.warning("the client of %s is closed: from now on work is done %s", closed, where)
    return client


def tell_workers(function: Callable[[], Any], client: Client) -> None:
    """Call a function on every worker that answers within a few seconds; that others do not is no error."""
    if client.status == "running":
        with contextlib.suppress(Exception):
            client.sync(client._run, function, on_error="ignore", callback_timeout=_TELL)


_POLL = 0.05  # seconds between looks at what gives no notice


_TELL = 10.0  # seconds for what may be left undone


TAKEN_BACK = "taken back"  # why a task was cancelled
_RESTARTED = "scheduler-restart"  # the same, by Dask, of all tasks at once


FETCHES = 5  # failures to fetch a result that is said to be there, in a row


_LOADS = 3  # times that a model is tried where every worker died of loading it


def run_everywhere(function: Any, client: Client | None, most: int | None = None) -> dict[str, Any]:
    """Call a function once on every worker that is there now, or in this process without a cluster.

    Parameters
    ----------
    function
        Without arguments.
    client
        Of the cluster.
    most
        Workers, at most; the same ones for as long as the same are there, spread over machines. None is all.

    Returns
    -------
    What it returned, by the worker's address. A worker that dies meanwhile is left out, and one that Dask has paused
    before it began.

    Raises
    ------
    ClusterError
        No worker finished, although workers that died came back twice; or there is none, or no scheduler.
    """
    if client is None:
        return {"this process": function()}
    for _ in range(_LOADS):
        results = _run_on_workers(function, client, most)
        if results:
            return results
    raise ClusterError(
        "no worker could load the model: each died while trying. Look at the workers' logs; most often it is memory:"
        " fewer workers (n_workers) leave more for each"
    )


def wait_for_a_worker(client: Client, timeout: float | None = None) -> dict[str, int]:
    """Wait until there is a worker; one is asked for, since a cluster that scales itself starts none for nothing.

    Parameters
    ----------
    client
        Of the cluster.
    timeout
        Seconds; None: those of `settings.PATIENCE`.

    Returns
    -------
    Threads of each, by its address.

    Raises
    ------
    ClusterError
        There is none for so long, or no scheduler.
    """
    presence, work = Presence(client, timeout), None
    while not (addresses := threads_of_workers(client)):
        if work is None:
            work = client.submit(int, pure=False)
        presence.check()
        time.sleep(_POLL)
    return addresses


def _run_on_workers(function: Any, client: Client, most: int | None) -> dict[str, Any]:
    presence, addresses = Presence(client), _spread(wait_for_a_worker(client))[:most]
    pending = {address: client.submit(function, workers=[address], pure=False) for address in addresses}
    results = {}
    try:
        while pending:
            for address, future in list(pending.items()):
                if future.done():
                    del pending[address]
                    result = result_of(future, presence)
                    if isinstance(result, ResultLost):
                        continue
                    if isinstance(result, BaseException):
                        raise result
                    results[address] = result
            presence.check()
            alive = threads_of_workers(client)
            # A task that is tied to a worker that is gone would wait for ever; one that is paused loads it later.
            waits = presence.resting if results else ()
            dropped = [address for address in pending if address not in alive or address in waits]
            if dropped:
                client.cancel([pending.pop(address) for address in dropped])
            if pending:
                _wait_for_any(pending.values())
    finally:
        if pending and client.status == "running":
            client.cancel(list(pending.values()))
    return results


def _spread(addresses: Collection[str]) -> list[str]:
    """Workers in an order in which one of each machine comes before a second of any."""
    before: dict[str, int] = {}
    turns = []
    for address in sorted(addresses):
        machine = address.rpartition(":")[0]
        turns.append((before.setdefault(machine, 0), address))
        before[machine] += 1
    return [address for _, address in sorted(turns)]


def _wait_for_any(futures: Collection[Future[Any]]) -> None:
    end, pause = time.monotonic() + 1, 0.002
    while not any(future.done() for future in futures) and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, _POLL)


def result_of(future: Future[Any], presence: Presence) -> Any:
    """What a future that is done ended with."""
    failures = 0
    while True:
        presence.check()
        if future.status == "error":
            return _explained(future)
        try:
            return future.result(timeout=ANSWER)
        except FutureCancelledError as error:
            if error.reason == "scheduler-connection-lost":
                raise connection_lost(presence.client) from None
            if error.reason == TAKEN_BACK:
                return HandedBack("the worker that it was given to has not begun it")
            if error.reason == _RESTARTED:  # which says nothing of this task, nor of memory
                return HandedBack("all workers were restarted meanwhile (Client.restart): run again")
            return ResultLost(
                f"what it reported was lost, as where the worker that has it dies: Dask says {error.reason}"
            )
        except (Exception, asyncio.CancelledError) as error:
            # The worker that held it died, and it is being made again; or there is no scheduler any more.
            failures += not isinstance(error, TimeoutError)
            if failures > FETCHES:
                raise
            time.sleep(_POLL)


def _explained(future: Any) -> BaseException:
    error = future.exception()
    if isinstance(error, KilledWorker):
        return WorkersDied(
            f"{counted(error.allowed_failures + 1, 'worker')} died while working on it, the last at"
            f" {error.last_worker.address}. Look at the workers' logs: most often it is memory (smaller batch_size or"
            " rows_per_partition) or a damaged file"
        )
    if isinstance(error, CuratorError):
        return error
    if isinstance(error, RuntimeError) and _UNREAD in str(error):
        # Of the client's own process this was seen once, for one of the graphs of a run; why, Dask's log does not say.
        return NotTaken(
            "Dask's scheduler could not read the task. Look at its log, and whether it has the packages that this"
            " client has, in the same versions"
        )
    return error if error is not None else ShardError(f"the task ended as {future.status}")
