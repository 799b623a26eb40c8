"""What the scheduler knows of the runs on its cluster, from what workers and clients tell."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed import SchedulerPlugin

from curator_dask.dashboard.topics import PROGRESS, RUNS, WAITING, WORK
from curator_dask.meter import Meter

_KEPT = 12  # runs, the last ones
_SPANS = 240  # that a course has at most
_SPAN = 2.0  # seconds of each, at first
_IDLE = 0.35  # share of its time that the model waits, above which images come too slowly


class Course:
    """Images over time, by worker: a few hundred spans of equal length, longer ones for a longer run."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.span = _SPAN
        self.counts: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, worker: str, images: int) -> None:
        """Count images that a worker has just finished."""
        while (place := int((time.monotonic() - self.started) / self.span)) >= _SPANS:
            self.span *= 2
            for name, counts in self.counts.items():
                self.counts[name] = [sum(counts[at : at + 2]) for at in range(0, len(counts), 2)]
        counts = self.counts[worker]
        counts += [0] * (place + 1 - len(counts))
        counts[place] += images

    def rates(self, worker: str, until: float) -> tuple[list[float], list[float]]:
        """The middle of each span that was over after so many seconds, in seconds, and the images/s in it."""
        over = int(until / self.span)
        counts = self.counts[worker]
        filled = [*counts, *[0] * (over - len(counts))][:over]
        return [(at + 0.5) * self.span for at in range(over)], [count / self.span for count in filled]


@dataclass
class Run:
    """A run, as far as it has been heard of.

    Attributes
    ----------
    meter
        Shards, rows and failures as its client tells them; images as the workers do.
    course
        Images over time, by worker.
    seconds
        Of all workers' threads, by what they were spent on.
    left_out
        Rows, by the filter that left them out.
    under_way
        Shards, by worker.
    client
        Whose it is; None: nobody has told yet.
    end
        How it ended; empty: it has not.
    """

    meter: Meter
    course: Course = field(default_factory=Course)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    left_out: Counter[str] = field(default_factory=Counter)
    under_way: dict[str, int] = field(default_factory=dict)
    client: str | None = None
    end: str = ""
    ended_after: float | None = None

    @property
    def label(self) -> str:
        """What a person calls it, told apart from another run to the same place."""
        return f"{self.meter.what or 'computed'} ({self.meter.run[:4]})"

    @property
    def seconds_run(self) -> float:
        """Until now, or its end."""
        return self.meter.seconds if self.ended_after is None else self.ended_after

    def rates(self, worker: str) -> tuple[list[float], list[float]]:
        """Of a worker, the seconds of the points of its course, and the images/s there."""
        until = time.monotonic() - self.course.started
        if self.ended_after is not None:  # to the end of the span in which it ended
            until = min(until, self.ended_after + self.course.span)
        return self.course.rates(worker, until)

    def hear_worker(self, told: Mapping[str, Any]) -> None:
        """Take an event of ``PROGRESS``."""
        self.meter.count(dict(told))
        worker = told.get("worker", "")
        self.course.add(worker, told["images"])
        for what, seconds in told.get("seconds", {}).items():
            self.seconds[what] += seconds
        self.left_out.update(told.get("left_out", {}))
        self.under_way[worker] = told.get("under_way", 0)

    def hear_client(self, told: Mapping[str, Any]) -> None:
        """Take an event of ``RUNS``."""
        self.client = told["client"]
        self.meter.hear(told)
        if "end" in told:
            self.finish(told["end"])

    def finish(self, how: str) -> None:
        """The run is over."""
        if not self.end:
            self.end, self.ended_after = how, self.meter.seconds
            self.under_way.clear()

    @property
    def advice(self) -> str:
        """Where most of the time goes, and what is done about it; empty before anything is known."""
        busy = self.seconds["forward"] + self.seconds["write"]
        waiting = self.seconds[WAITING]
        if not busy + waiting:
            return ""
        slow = ("fetch", "decode") if waiting > _IDLE * (busy + waiting) else ("forward", "write")
        return WORK[max(slow, key=lambda what: self.seconds[what])]


class Runs(SchedulerPlugin):
    """Follows the runs on a cluster; the last ones are kept."""

    name = "curator_dask-runs"
    idempotent = True

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}

    @property
    def latest(self) -> Run | None:
        """The run that began last of those under way; where none is, of all."""
        runs = list(self.runs.values())
        return next((run for run in reversed(runs) if not run.end), runs[-1] if runs else None)

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by distributed for each event, of any topic."""
        if topic not in (PROGRESS, RUNS) or "run" not in msg:
            return
        run = self.runs.get(msg["run"])
        if run is None:
            run = self.runs[msg["run"]] = Run(Meter(0, run=msg["run"]))
            if len(self.runs) > _KEPT:
                over = [name for name, each in self.runs.items() if each.end]
                self.runs.pop(over[0] if over else next(iter(self.runs)))
        if topic == RUNS:
            run.hear_client(msg)
        else:
            run.hear_worker(msg)

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Called by distributed when a worker has left; what it was at is under way no more."""
        there = {str(each.name) for each in scheduler.workers.values()}
        for run in self.runs.values():
            for name in [name for name in run.under_way if name not in there]:
                del run.under_way[name]

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Called by distributed when a client has left, and with it what it waited for."""
        for run in self.runs.values():
            if run.client == client:
                run.finish("its client is gone")
