"""Counts that flow from the workers to the person who waits.

A task reports what it has just done. On a Dask worker that is added up and becomes an event that the client has
subscribed to; in a process without a cluster it goes to the watcher directly. Tasks carry the name of their run as an
annotation, so that two people on one scheduler each see their own.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import dask

if TYPE_CHECKING:
    from distributed import Client, Worker

logger = logging.getLogger("curator_dask")

TOPIC = "curator_dask-progress"
_RUN = "curator_dask_run"  # the annotation of a task
# Dask warns that its query planner does not heed annotations: it need not, this one is for `report` alone.
warnings.filterwarnings("ignore", f"Dask annotations .*{_RUN}")
_TELL_EVERY = 0.5  # seconds between events of a worker
_LOG_EVERY = 30.0  # seconds between log lines where there is no terminal to draw on
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


@dataclass
class Meter:
    """What a run has done so far.

    Attributes
    ----------
    shards
        Partitions to do in this run.
    done, broken
        Partitions finished, and given up.
    rows
        Of the partitions finished.
    images, failed
        Images finished on all workers, and those of them without a vector.
    started
        `time.monotonic` at the start, seconds.
    run
        Its name, told apart from all other runs on the cluster.
    """

    shards: int
    done: int = 0
    broken: int = 0
    rows: int = 0
    images: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, event: dict[str, Any]) -> None:
        """Add what was reported."""
        with self.lock:
            self.images += event["images"]
            self.failed += event["failed"]

    def finish(self, rows: int) -> None:
        """Count a partition as finished."""
        self.done += 1
        self.rows += rows

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images a second since the start."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def remaining(self) -> float | None:
        """Seconds until the end, if shards to come are like those finished; None before the first is."""
        if not self.done:
            return None
        total = self.rows / self.done * (self.shards - self.broken)
        # Of shards under way the images done count, too; without images (no embedding) only shards do.
        if self.images:
            return max(0.0, total - self.images) / self.rate
        finished = self.done + self.broken
        return self.seconds / finished * (self.shards - finished)

    def __str__(self) -> str:
        left = "?" if self.remaining is None else _clock(self.remaining)
        broken = f", {self.broken} failed" if self.broken else ""
        return (
            f"shards {self.done}/{self.shards}{broken} | {self.images} images, {self.rate:.1f}/s |"
            f" {self.failed} failed | {_clock(self.seconds)} elapsed, {left} left"
        )


@contextmanager
def watch(meter: Meter, client: Client | None, show: bool = True) -> Iterator[None]:
    """Feed `meter` with the events of the tasks handed out meanwhile, and show it.

    On a terminal a line is kept up to date; elsewhere one is logged every 30 seconds.

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
    stop = threading.Event()
    shower = threading.Thread(target=_show, args=(meter, stop), name="curator_dask-progress", daemon=True)
    try:
        if show:
            shower.start()
        with dask.annotate(**{_RUN: meter.run}):
            yield
    finally:
        stop.set()
        if show:
            shower.join()
        if client is None:
            _watchers.remove(meter.count)
        elif client.status == "running":
            client.unsubscribe_topic(TOPIC)


def _show(meter: Meter, stop: threading.Event) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        while not stop.wait(_LOG_EVERY):
            print(meter, file=sys.stderr, flush=True)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while not stop.wait(0.25):
            live.update(Text(str(meter)))


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
