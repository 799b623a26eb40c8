"""Counts that flow from the workers to the person who waits.

A task reports what it has just done. On a Dask worker that is added up and becomes an event that the client has
subscribed to; in a process without a cluster it goes to the watcher directly. Tasks carry the name of their run as an
annotation, so that two people on one scheduler each see their own.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import dask

from curator_dask.cluster.showing import dashboard_link, showing
from curator_dask.meter import Meter as Meter  # from here, too

if TYPE_CHECKING:
    from distributed import Client, Worker

logger = logging.getLogger("curator_dask")

TOPIC = "curator_dask-progress"
_RUN = "curator_dask_run"  # the annotation of a task
# Dask warns that its query planner does not heed annotations: it need not, this one is for `report` alone.
warnings.filterwarnings("ignore", f"Dask annotations .*{_RUN}")
_TELL_EVERY = 0.5  # seconds between events of a worker
_watchers: list[Callable[[dict[str, Any]], None]] = []  # of this process, for runs without a cluster


class _Teller:
    """Adds up what a worker's tasks have done, and tells it twice a second at most.

    An event costs about 2 ms of processor time on its way through a worker's, the scheduler's and the client's event
    loop: one for each shard would be a good part of what a small shard costs besides its images.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: Counter[str] = Counter()  # by run
        self._failed: Counter[str] = Counter()
        self._due = False

    def add(self, run: str, images: int, failed: int, worker: Worker) -> None:
        """Have this told within half a second."""
        with self._lock:
            self._images[run] += images
            self._failed[run] += failed
            if self._due:
                return
            self._due = True
        worker.loop.add_callback(worker.loop.call_later, _TELL_EVERY, self._tell, worker)

    def _tell(self, worker: Worker) -> None:
        with self._lock:
            events = [
                {"run": run, "images": images, "failed": self._failed[run]}
                for run, images in self._images.items()
            ]
            self._images.clear()
            self._failed.clear()
            self._due = False
        for event in events:
            worker.log_event(TOPIC, event)


def _run_of_task(worker: Worker) -> str | None:
    """The run that the task of this thread belongs to; None of a user's own ``compute()``, which nobody watches."""
    task = worker.state.tasks.get(worker.active_threads.get(threading.get_ident(), ""))
    annotations = None if task is None else task.annotations
    return annotations.get(_RUN) if annotations else None


_tellers: WeakKeyDictionary[Worker, _Teller] = WeakKeyDictionary()  # of the workers in this process
_tellers_lock = threading.Lock()


def report(images: int, failed: int = 0) -> None:
    """Say, from within a task, how many images were just finished, and how many of them failed."""
    try:
        from distributed.worker import get_worker

        worker = get_worker()
    except (ImportError, ValueError):  # not on a Dask worker
        for watcher in _watchers:
            watcher({"images": images, "failed": failed})
    else:
        if (run := _run_of_task(worker)) is None:
            return
        with _tellers_lock:
            teller = _tellers.setdefault(worker, _Teller())
        teller.add(run, images, failed, worker)


@contextmanager
def watch(meter: Meter, client: Client | None, show: bool = True) -> Iterator[None]:
    """Feed `meter` with the events of the tasks handed out meanwhile, and show it.

    At a terminal a line is kept up to date, in a notebook a bar; elsewhere a line is printed every 30 seconds.

    Parameters
    ----------
    meter
        Where the events are counted.
    client
        Of the cluster that runs the tasks; None when they run in this process.
    show
        False only counts.
    """

    def on_event(event: Any) -> None:
        what = event[1]
        if "left_out" in what:
            logger.warning("worker %s is left out: %s", what["left_out"], what["reason"])
        elif what["run"] == meter.run:
            meter.count(what)

    if client is not None:
        client.subscribe_topic(TOPIC, on_event)
    else:
        _watchers.append(meter.count)
    shown = showing(meter, dashboard_link(client)) if show else nullcontext()
    try:
        with shown, dask.annotate(**{_RUN: meter.run}):
            yield
    finally:
        if client is None:
            _watchers.remove(meter.count)
        elif client.status == "running":
            client.unsubscribe_topic(TOPIC)
