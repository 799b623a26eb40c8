"""What a worker needs once: set up when it joins, let go when it ends."""

from __future__ import annotations

import errno
import functools
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from distributed import Client, WorkerPlugin

from curator_dask.cache import LISTINGS, POSSESSIONS
from curator_dask.cluster.memory import leave_memory, watch_memory
from curator_dask.cluster.package import check_package
from curator_dask.cluster.presence import Presence
from curator_dask.cluster.watching import offer_dashboard
from curator_dask.cluster.workers import current_client
from curator_dask.console import show_messages
from curator_dask.dashboard.topics import PROGRESS
from curator_dask.errors import CuratorError

_POLL = 0.05  # seconds between tries

OpenWorkers = Callable[[], AbstractContextManager[Any]]
"""Opens a cluster, whose client is the current one then."""


def worker_setup() -> WorkerPlugin:
    """The plugin that sets a worker up, also one that joins later, and owns what the worker keeps for runs.

    Its class is made here, so that it is pickled by value: distributed gives tasks to a worker whose plugins cannot be
    loaded, and that worker never does them. One that lacks the package is sent away before it takes a task of ours,
    which would end it, and be counted as a task that kills workers.
    """

    class WorkerSetup(WorkerPlugin):
        name = "curator_dask-worker-setup"
        #: Once a worker: another would let go what the first one owns.
        idempotent = True
        client: tuple[str, int]
        topic: str

        async def setup(self, worker: Any) -> None:
            """Called by distributed when the worker has joined, or the plugin is registered."""
            try:
                from curator_dask.cluster.setup import set_up
            except Exception as error:
                reason = f"it cannot import curator_dask ({type(error).__name__}: {error})"
                worker.log_event(self.topic, {"left_out": worker.address, "reason": reason})
                await worker.scheduler.retire_workers(workers=[worker.address], remove=True)
                # When it has started: until then its nanny does not listen.
                worker.loop.add_callback(worker.close, reason=reason)
            else:
                set_up(worker, self.client)

        def teardown(self, worker: Any) -> None:
            """Called by distributed when the worker ends."""
            try:
                from curator_dask.cluster.setup import tear_down
            except Exception:
                return
            tear_down(worker)

    plugin = WorkerSetup()  # whose methods name nothing of this module: that would be loaded with them
    plugin.client, plugin.topic = _this_process(), PROGRESS
    return plugin


def set_up(worker: Any, client: tuple[str, int]) -> None:
    """Set up the worker of this process.

    A worker that is a process of its own, not the client's, shows what it logs there, unless its logging was
    configured: what a stage with ``verbose`` says is in the worker's log. Pillow's warnings are not: they name no
    image, and one that cannot be used has a reason in its row.
    """
    for name in ("distributed.worker", "distributed.worker.state_machine"):
        log = logging.getLogger(name)
        for old in [each for each in log.filters if isinstance(each, OnlySurprises)]:
            log.removeFilter(old)
        log.addFilter(OnlySurprises())
    quiet_scratch()
    if _this_process() != client:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if not logging.getLogger("curator_dask").hasHandlers():
            show_messages()
    watch_memory(worker)


def tear_down(worker: Any) -> None:
    """Models, loaders, stages and local copies are let go."""
    leave_memory(worker)
    POSSESSIONS.clear()


class OnlySurprises(logging.Filter):
    """Keeps a worker from logging, with a traceback, errors that the client explains in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for distributed's record of a task that ended with a `CuratorError`, or was cancelled."""
        kinds: list[type] = [CuratorError, *CuratorError.__subclasses__()]
        expected = tuple(f"{kind.__name__}(" for kind in kinds)
        texts = record.args if isinstance(record.args, tuple) else ()
        if "ended with CancelledError" in record.getMessage():
            return False  # of a task that was under way when the run was given up
        if record.exc_info and isinstance(record.exc_info[1], OSError):
            record.exc_info = record.exc_text = None  # a connection that was lost takes one line to say
        return not any(isinstance(text, str) and text.startswith(expected) for text in texts)


def quiet_scratch() -> None:
    """Keep distributed from logging, in this process, that a scratch folder it removes is gone already.

    Clusters of one machine share ``dask-scratch-space``: one that starts removes what dead workers have left there,
    among them the folder of a worker that ends just now and removes it as well.
    """
    logging.getLogger("distributed.diskutils").addFilter(_not_of_what_is_gone)


def _not_of_what_is_gone(record: logging.LogRecord) -> bool:
    return os.strerror(errno.ENOENT) not in record.getMessage()


def _this_process() -> tuple[str, int]:
    return platform.node(), os.getpid()


def set_up_workers(client: Client) -> None:
    """Have every worker set up, those that join later too, and the dashboard show what they do.

    Raises
    ------
    ClusterError
        A worker lacks the package, or there is no scheduler any more.
    """
    check_package(client)
    offer_dashboard(client)
    presence = Presence(client)
    while True:
        presence.check()
        try:
            client.register_plugin(worker_setup())
            forget_listings(client)
        except OSError:
            time.sleep(_POLL)  # a worker died meanwhile; the one in its place gets it when it joins
        else:
            return


def forget_listings(client: Client) -> None:
    """Have every worker list folders of stores anew: what it saw of them for another run, or a computation, is old."""
    client.run(_forget_listings, on_error="ignore")


def _forget_listings() -> None:
    POSSESSIONS.forget(LISTINGS)


def client_at_work() -> Client | None:
    """The client of the cluster that is there, with every worker set up.

    It is None where there is no cluster: then work is done in this process.

    Raises
    ------
    ClusterError
        As of `set_up_workers`, and of `curator_dask.cluster.workers.current_client`.
    """
    client = current_client()
    if client is not None:
        set_up_workers(client)
    return client


@contextmanager
def at_work(workers: OpenWorkers = nullcontext) -> Iterator[Client | None]:
    """`client_at_work` of the cluster that is opened, or else of the one that is there."""
    with workers():
        yield client_at_work()


@contextmanager
def when_needed(workers: OpenWorkers = nullcontext) -> Iterator[Callable[[], Client | None]]:
    """What gives the client of `at_work`: the cluster is opened when it is first asked for, closed with the block."""
    with ExitStack() as stack:
        yield functools.cache(lambda: stack.enter_context(at_work(workers)))
