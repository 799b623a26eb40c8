"""Computing a dataset's partitions for what comes out of them, where nothing is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import dask.dataframe as dd
import pandas as pd

from curator_dask.cluster.workers import current_client, set_up_workers
from curator_dask.runs.describing import load_models
from curator_dask.runs.groups import Running
from curator_dask.runs.lineage import trace
from curator_dask.runs.settle import run_targets, write_graph
from curator_dask.runs.state import clear_stages
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target


def collect(
    frame: dd.DataFrame,
    last: Any,
    meta: pd.DataFrame,
    describers: list[Any],
    how: Running,
) -> tuple[SaveSummary, list[Mapping[str, Any]]]:
    """Compute every partition, with the progress, the retries and the counts of `save_metadata`.

    Parameters
    ----------
    frame
        A partition a shard, as the dataset reads it.
    last
        From a partition and its target to one row with a report in the column ``target``; a
        `curator_dask.runs.groups.Last` that is also called with two frames and gives one, in which its row is.
    meta
        Empty, with the columns of that frame.
    describers
        Steps whose models every worker is to load first.
    how
        Layout of the tasks.

    Returns
    -------
    summary
        Counts; it is also printed.
    rows
        The row that `last` gave for each shard that did not fail, in the order of the shards.
    """
    started = time.monotonic()
    client = current_client()
    if client is not None:
        set_up_workers(client)
    summary = SaveSummary("")
    done: dict[int, Mapping[str, Any]] = {}
    try:
        load_models(describers, [step.column for step in describers], client)
        lineage = trace(frame)
        targets = [
            Target(part.name, "", "", {"url": part.shard.url}, None, None) for part in lineage.ranges or ()
        ]
        numbers = range(len(targets))
        summary.startup_seconds = time.monotonic() - started
        run_targets(
            write_graph(frame, targets, numbers, last, meta),
            client,
            targets,
            summary,
            True,
            groups=how.groups(lineage, targets, numbers, last, client),
            resources=how.resources,
            take=done.__setitem__,
        )
    finally:
        clear_stages(client)
    summary.seconds = time.monotonic() - started
    print(summary)
    return summary, [done[number] for number in sorted(done)]
