"""A run: what a frame says is done to all its partitions, and what comes of it goes to a sink."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dask.dataframe as dd

from curator_dask.cluster.package import check_modules
from curator_dask.cluster.setup import client_at_work
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.frames.parquet import read_record
from curator_dask.frames.record import made_by_model
from curator_dask.runs.awaiting import awaited_by, with_origins
from curator_dask.runs.describing import load_models
from curator_dask.runs.fit import Fit
from curator_dask.runs.groups import Groups, Layout
from curator_dask.runs.lineage import Lineage, replace_functions, trace
from curator_dask.runs.settle import FrameTasks, Named, ShardTasks, Tasks, run_targets, write_graph
from curator_dask.runs.shardwise import ShardFunction, shard_function
from curator_dask.runs.sink import Job, Plan, Sink, Writer
from curator_dask.runs.state import clear_stages
from curator_dask.runs.step import GivesUp, Step
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Picked
from curator_dask.storage import Options

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("curator_dask")


def run(
    frame: dd.DataFrame,
    earlier_steps: Sequence[Step],
    sink: Sink,
    *,
    kept: Sequence[str],
    id_col: str,
    input_options: Options = None,
    layout: Layout | None = None,
    keep_rows: bool = False,
    client: Callable[[], Client | None] = client_at_work,
) -> tuple[SaveSummary, list[Mapping[str, Any]]]:
    """Compute every partition of a frame that a sink lacks, and hand it to the sink.

    Parameters
    ----------
    frame
        Not computed.
    earlier_steps
        That made columns which the frame's own graph does not show any more, since it was persisted.
    sink
        Where the rows go.
    kept
        The columns that are wanted, in their order.
    id_col
        Column of the keys.
    input_options
        For fsspec, where the dataset is in a store.
    layout
        Of the tasks.
    keep_rows
        Give the rows, too.
    client
        Gives that of the cluster to work on, whose workers are set up; asked once there is something to do for them.

    Returns
    -------
    summary
        Counts, times and failures; it is also logged.
    rows
        What the sink's writer gave for each partition that was done, in their order; none unless they are kept.

    Raises
    ------
    CuratorError
        What would happen to every shard.
    """
    started = time.monotonic()
    connected = None
    summary = SaveSummary(sink.place, part=getattr(sink, "part", None))
    done: dict[int, Mapping[str, Any]] = {}
    try:
        with sink.open() as held:
            check_held = getattr(held, "check_held", lambda: None)
            lineage = trace(frame)
            columns = {*frame.columns, ERROR_COLUMN}
            earlier = [step for step in earlier_steps if columns >= {*step.columns}]
            steps = {tuple(step.columns): step for step in (*earlier, *lineage.steps)}
            summary.opened = any(step.needs & {"bytes", "pixels"} for step in steps.values())
            # Only workers know what a model is, and whether they have a function's module.
            connected = client() if steps or lineage.functions else None
            if connected is not None:
                check_modules(connected, (*steps.values(), *lineage.functions))
            function = shard_function(lineage)
            by_shard = function is not None and not (layout and layout.resources)
            # Where shards are few, on as many workers; another that comes to a task loads them then (`Fit`).
            most = sink.unwritten(lineage) if by_shard else None
            loaded = load_models(list(steps.values()), kept, connected, most)
            job = Job(
                frame,
                lineage,
                tuple(steps.values()),
                with_origins(
                    loaded.described, [*steps.values()], _read_models(lineage, steps.values(), input_options)
                ),
                tuple(kept),
                id_col,
                input_options,
            )
            if job.models and not job.made:
                summary.made = made_by_model(next(iter(job.models.values())))
            plan = sink.plan(job)
            summary.skipped = len(plan.targets) - len(plan.todo)
            for report in plan.finished:
                summary.add_finished(report)
            summary.add_remarks(plan.remarks)
            summary.startup_seconds = time.monotonic() - started
            if plan.todo:
                connected = client() if connected is None else connected
                fit = Fit(job.steps, loaded)
                tasks = _tasks(job, plan, function, layout or Layout(), connected, fit)
                named: Picked[Named] = Picked(lineage.ranges or plan.targets, plan.todo)

                def take(number: int, row: Mapping[str, Any]) -> None:
                    check_held()
                    if keep_rows:
                        done[number] = row

                run_targets(tasks, connected, named, summary, take)
            check_held()
            sink.close(plan, summary)
            summary.fingerprint = plan.fingerprint
    finally:
        clear_stages(connected)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary, [done[number] for number in sorted(done)]


def _read_models(
    lineage: Lineage, steps: Iterable[Step], options: Options = None
) -> Mapping[str, Mapping[str, Any]]:
    """What made the columns of the dataset's own Parquet, as the first of its files says, where steps take some."""
    if not any(awaited_by(step) for step in steps):
        return {}
    parts = lineage.ranges or lineage.inputs or ()
    path = next((part.shard.parquet for part in parts if part.shard.parquet is not None), None)
    record = None if path is None else read_record(path, options)
    return {} if record is None else record.models


def _tasks(
    job: Job, plan: Plan, function: ShardFunction | None, layout: Layout, client: Any, fit: Fit
) -> Tasks:
    """How the targets of a plan are done: from the range of a shard where there is one, else as Dask lays it out."""
    lineage, targets = job.lineage, plan.targets
    if function is None:

        def written(reason: str | None) -> dd.DataFrame:
            writer: Any = plan.writer if reason is None else plan.writer.give_up(reason)
            return write_graph(_given_up(job.frame, reason), targets, plan.todo, writer)

        apart = lineage.ranges is not None
        return FrameTasks(written(None), written, apart, client, layout.resources)

    assert lineage.ranges is not None
    ranges, wanted = Picked(lineage.ranges, plan.todo), Picked(targets, plan.todo)

    def groups(reason: str | None) -> Groups:
        done = function if reason is None else shard_function(trace(_given_up(job.frame, reason)))
        writer: Writer = plan.writer if reason is None else plan.writer.give_up(reason)
        assert done is not None
        asked = fit if reason is None and client is not None else None  # what is given up loads no model
        return layout.groups(done, writer, ranges, wanted, client, asked)

    return ShardTasks(groups, client, layout.resources, fit.enough_for(len(ranges)))


def _given_up(frame: dd.DataFrame, reason: str | None) -> dd.DataFrame:
    if reason is None:
        return frame
    return replace_functions(frame, functools.partial(_give_up, reason))


def _give_up(reason: str, function: Any) -> Any:
    return function.give_up(reason) if isinstance(function, GivesUp) else function
