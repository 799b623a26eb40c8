"""Counts that flow from the workers to the person who waits.

A task reports what it has just done. On a Dask worker that is added up and becomes an event that the client has
subscribed to, and that the dashboard hears; in a process without a cluster it goes to the watcher directly. Tasks
carry the name of their run as an annotation, so that two people on one scheduler each see their own.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import dask

from curator_dask.cluster.showing import dashboard_link, showing
from curator_dask.dashboard.topics import PROGRESS, RUNS
from curator_dask.meter import Meter as Meter  # from here, too

if TYPE_CHECKING:
    from distributed import Client, Worker

logger = logging.getLogger("curator_dask")

_RUN = "curator_dask_run"  # the annotation of a task
# Dask warns that its query planner does not heed annotations: it need not, this one is for `report` alone.
warnings.filterwarnings("ignore", f"Dask annotations .*{_RUN}")
_TELL_EVERY = 0.5  # seconds between events of a worker, at least
_ANNOUNCE_EVERY = 1.0  # seconds between events of a client
_ANSWER = 5.0  # seconds that the scheduler may take to hear of one
_watchers: list[Callable[[dict[str, Any]], None]] = []  # of this process, for runs without a cluster


@dataclass
class _Done:
    """What a worker has done for a run since it last told."""

    images: int = 0
    failed: int = 0
    seconds: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    left_out: Counter[str] = field(default_factory=Counter)


class _Teller:
    """Adds up what a worker's tasks have done, and tells it twice a second at most.

    An event costs about 2 ms of processor time on its way through a worker's, the scheduler's and the client's event
    loop: one for each shard would be a good part of what a small shard costs besides its images. Where there are many
    workers each tells as seldom as Dask has it say that it is there: hundreds of events a second keep a scheduler busy.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: defaultdict[str, _Done] = defaultdict(_Done)  # by run
        self._under_way: Counter[str] = Counter()
        self._due = False

    def add(
        self,
        worker: Worker,
        run: str,
        images: int = 0,
        failed: int = 0,
        seconds: Mapping[str, float] | None = None,
        left_out: Mapping[str, int] | None = None,
        begun: int = 0,
    ) -> None:
        """Have this told within half a second."""
        with self._lock:
            done = self._done[run]
            done.images += images
            done.failed += failed
            for what, spent in (seconds or {}).items():
                done.seconds[what] += spent
            done.left_out.update(left_out or {})
            self._under_way[run] += begun
            if self._due:
                return
            self._due = True
        heartbeat = worker.periodic_callbacks["heartbeat"].callback_time / 1000
        worker.loop.add_callback(worker.loop.call_later, max(_TELL_EVERY, heartbeat), self._tell, worker)

    def _tell(self, worker: Worker) -> None:
        with self._lock:
            told = [
                {
                    "run": run,
                    "worker": str(worker.name),
                    "under_way": self._under_way[run],
                    "images": done.images,
                    "failed": done.failed,
                    "seconds": dict(done.seconds),
                    "left_out": dict(done.left_out),
                }
                for run, done in self._done.items()
            ]
            self._done.clear()
            self._under_way = +self._under_way  # without those at zero
            self._due = False
        for event in told:
            worker.log_event(PROGRESS, event)


def _run_of_task(worker: Worker) -> str | None:
    """The run that the task of this thread belongs to; None of a user's own ``compute()``, which nobody watches."""
    task = worker.state.tasks.get(worker.active_threads.get(threading.get_ident(), ""))
    annotations = None if task is None else task.annotations
    return annotations.get(_RUN) if annotations else None


_tellers: WeakKeyDictionary[Worker, _Teller] = WeakKeyDictionary()  # of the workers in this process
_tellers_lock = threading.Lock()


def reporter() -> Callable[..., None]:
    """What the task of this thread reports with, from any thread; see `report` for its arguments."""
    try:
        from distributed.worker import get_worker

        worker = get_worker()
    except (ImportError, ValueError):  # not on a Dask worker
        return _tell_watchers
    if (run := _run_of_task(worker)) is None:
        return _tell_nobody
    with _tellers_lock:
        teller = _tellers.setdefault(worker, _Teller())
    return partial(teller.add, worker, run)


def _tell_watchers(images: int = 0, failed: int = 0, **others: Any) -> None:
    for watcher in _watchers:
        watcher({"images": images, "failed": failed})


def _tell_nobody(**counts: Any) -> None:
    return


def report(images: int = 0, failed: int = 0, **others: Any) -> None:
    """Say, from within a task, what was just done.

    Parameters
    ----------
    images, failed
        How many were finished, and how many of them failed.
    **others
        ``seconds`` by what they were spent on, rows ``left_out`` by what left them out, shards ``begun`` (below 0:
        ended).
    """
    reporter()(images=images, failed=failed, **others)


@contextmanager
def at_work(shards: int) -> Iterator[None]:
    """Within the block, in a task, so many shards are under way."""
    tell = reporter()
    tell(begun=shards)
    try:
        yield
    finally:
        tell(begun=-shards)


@contextmanager
def watch(meter: Meter, client: Client | None, show: bool = True) -> Iterator[None]:
    """Feed `meter` with the events of the tasks handed out meanwhile, and show it.

    At a terminal a line is kept up to date, in a notebook a bar; elsewhere a line is printed after a second, and
    then more and more seldom, up to every 30 seconds.

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
        if "reason" in what:
            logger.warning("worker %s is left out: %s", what["left_out"], what["reason"])
        elif what["run"] == meter.run:
            meter.count(what)

    if client is not None:
        client.subscribe_topic(PROGRESS, on_event)
    else:
        _watchers.append(meter.count)
    shown = showing(meter, dashboard_link(client)) if show else nullcontext()
    try:
        with shown, _announced(meter, client), dask.annotate(**{_RUN: meter.run}):
            yield
    finally:
        if client is None:
            _watchers.remove(meter.count)
        elif client.status == "running":
            client.unsubscribe_topic(PROGRESS)


@contextmanager
def _announced(meter: Meter, client: Client | None) -> Iterator[None]:
    """Within the block the scheduler is told how far the run is, and at its end how it ended."""
    if client is None:
        yield
        return
    stop = threading.Event()

    def tell(**more: str) -> None:
        message = {"client": client.id, **meter.told, **more}
        with suppress(Exception):  # of a cluster that is lost the run itself will hear
            client.sync(client.scheduler.log_event, topic=RUNS, msg=message, callback_timeout=_ANSWER)

    def keep_telling() -> None:
        before: Any = None
        while not stop.wait(_ANNOUNCE_EVERY):
            if (now := (meter.done, meter.broken)) != before:
                tell()
                before = now

    tell()
    thread = threading.Thread(target=keep_telling, name="curator_dask-announcing", daemon=True)
    thread.start()
    end = "ended"
    try:
        yield
    except BaseException:
        end = "stopped"
        raise
    finally:
        stop.set()
        thread.join()
        if client.status == "running":
            tell(end=end)
