"""The counts of runs for Prometheus, among the scheduler's own at ``/metrics``."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import dask
import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from curator_dask.dashboard.following import Run, Runs

#: By name, what it is, and its value for each worker, reason, filter or kind of work.
_COUNTERS: dict[str, tuple[str, str, Any]] = {
    "images": ("Images finished", "worker", lambda run: {n: sum(c) for n, c in run.course.counts.items()}),
    "time_seconds": ("Seconds of threads of workers", "work", lambda run: run.seconds),
    "failures": (
        "Failed images of finished shards, and failed shards",
        "reason",
        lambda run: run.meter.reasons,
    ),
    "rows_left_out": ("Rows left out by filters", "filter", lambda run: run.left_out),
}
_GAUGES: dict[str, tuple[str, Any]] = {
    "shards": ("Shards to do", lambda run: run.meter.shards),
    "shards_done": ("Shards finished", lambda run: run.meter.done),
    "shards_failed": ("Shards given up", lambda run: run.meter.broken),
    "shards_under_way": ("Shards that workers are at", lambda run: sum(run.under_way.values())),
    "images_failed": ("Images without a result", lambda run: run.meter.failed),
    "running": ("1 until the run has ended", lambda run: int(not run.end)),
}


class _Figures:
    """Collects from all schedulers of this process: Prometheus' registry is one for all of them."""

    def __init__(self) -> None:
        self.followed: WeakSet[Runs] = WeakSet()

    def collect(self) -> Iterator[Any]:
        """Called by prometheus_client."""
        runs: list[Run] = [run for each in self.followed for run in list(each.runs.values())]
        for name, (help_text, label, values) in _COUNTERS.items():
            counter = CounterMetricFamily(_name(name), help_text, labels=["run", "output", label])
            for run in runs:
                for which, value in dict(values(run)).items():
                    counter.add_metric([run.meter.run, run.meter.what, which], value)
            yield counter
        for name, (help_text, value_of) in _GAUGES.items():
            gauge = GaugeMetricFamily(_name(name), help_text, labels=["run", "output"])
            for run in runs:
                gauge.add_metric([run.meter.run, run.meter.what], value_of(run))
            yield gauge


def _name(name: str) -> str:
    namespace = dask.config.get("distributed.dashboard.prometheus.namespace")
    return "_".join([*filter(None, [namespace]), "curator", name])


@functools.cache
def _figures() -> _Figures:
    figures = _Figures()
    prometheus_client.REGISTRY.register(figures)
    return figures


def offer(runs: Runs) -> None:
    """Have these runs among the figures for as long as they are followed."""
    _figures().followed.add(runs)
