"""`save_metadata`: what to write, what is there already, and the run that writes the rest."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.dataframe as dd

from curator_dask.datasets.groups import (
    LONG_ENOUGH,
    Groups,
    Last,
    RunGroup,
    even_groups,
    shrinking_groups,
)
from curator_dask.datasets.planning import (
    check_own_files,
    find_strays,
    find_unfinished,
    list_files,
    plan_schema,
    plan_targets,
)
from curator_dask.datasets.presence import threads_of_workers
from curator_dask.datasets.runlock import RunLock
from curator_dask.datasets.running import (
    current_client,
    run_everywhere,
    set_up_workers,
)
from curator_dask.datasets.summary import SaveSummary
from curator_dask.datasets.targets import run_targets
from curator_dask.datasets.writing import (
    Output,
    Target,
    TargetTexts,
    WritePartition,
    report_frame,
    target_frame,
)
from curator_dask.errors import ConfigError, OutputError, WeightsError
from curator_dask.frames.lineage import Lineage, map_items, trace
from curator_dask.frames.parquet import remove_leftovers
from curator_dask.storage import Options, absolute, is_remote, remove
from curator_dask.webdataset.staging import STAGE

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Running:
    """How the tasks of a run are laid out; it does not change what they make.

    Attributes
    ----------
    group
        Shards in a task. None: as many as are worth one, on a cluster and where the shards are on its disks; of
        those in a store each is a task, so that the next is fetched while the model works on the one before.
    resources
        Of a worker, that a task takes (`distributed`'s, such as ``{"GPU": 0.25}``); None takes nothing.
    """

    group: int | None = None
    resources: Mapping[str, float] | None = None

    def groups(
        self, lineage: Lineage, targets: Sequence[Target], todo: Sequence[int], last: Last, client: Any
    ) -> Groups | None:
        """The tasks for the targets with the numbers `todo`; None if each is a task of its own."""
        if self.group == 1 or lineage.ranges is None or not lineage.is_mapped:
            return None
        ranges = [lineage.ranges[number] for number in todo]

        def threads() -> int:
            return 1 if client is None else max(1, sum(threads_of_workers(client).values()))

        if self.group is not None:
            members, seconds = even_groups(len(todo), self.group), math.inf
        else:
            members, seconds = shrinking_groups(len(todo), threads()), LONG_ENOUGH
            # Annotations (retries, say) are the user's, and meant for the tasks that a frame has.
            if (
                client is None
                or dask.get_annotations()
                or len(members) == len(todo)
                or any(is_remote(part.shard.url) for part in ranges)
            ):
                return None
        run = RunGroup(lineage.reader, lineage.functions, last, seconds)
        return Groups(run, members, ranges, [targets[number] for number in todo], threads)


def save(
    frame: dd.DataFrame,
    earlier_steps: Sequence[Any],
    root: str,
    path: str | None,
    *,
    id_col: str,
    columns: Sequence[str] | None,
    overwrite: bool,
    drop_failed: bool,
    input_options: Options,
    output_options: Options,
    how: Running | None = None,
) -> SaveSummary:
    """Write a frame's partitions as Parquet; see `ImageTextPairDataset.save_metadata`."""
    started = time.monotonic()
    missing = [name for name in columns or () if name not in frame.columns]
    if missing:
        raise ConfigError(f"columns: no such columns {missing}; the metadata has {list(frame.columns)}")
    output = _output(root, path, overwrite, drop_failed, input_options, output_options)
    kept = [name for name in frame.columns if columns is None or name in columns]
    client = current_client()
    if client is not None:
        set_up_workers(client)
    summary = SaveSummary(output.folder)
    try:
        with RunLock(output.folder, output.options):
            _save(
                frame,
                earlier_steps,
                kept,
                output,
                id_col,
                input_options,
                client,
                summary,
                started,
                how or Running(),
            )
    finally:
        clear_stages(client)
    summary.seconds = time.monotonic() - started
    print(summary)
    return summary


def _output(
    root: str,
    path: str | None,
    overwrite: bool,
    drop_failed: bool,
    input_options: Options,
    options: Options,
) -> Output:
    """Where to write to, if it can be.

    Raises
    ------
    ConfigError
        It is the dataset's own folder, and failed rows are to be dropped.
    OutputError
        It cannot be written to.
    """
    if options is None and (path is None or path.partition("://")[0] == root.partition("://")[0]):
        options = input_options
    if path == "":
        raise ConfigError("path='': expected a directory or URL, or None for the dataset's own")
    own = locate(root, input_options)
    folder = own if path is None else locate(path, options)
    if not is_remote(folder) and os.path.realpath(folder) == os.path.realpath(own):
        folder = own  # by whatever links
    if folder == own and drop_failed:
        raise ConfigError(
            "drop_failed=True would drop rows from the dataset's own files: give save_metadata a path"
        )
    if not is_remote(folder):
        _check_writable(folder)
    return Output(folder, options, folder == own, overwrite, drop_failed)


def locate(path: str, options: Options) -> str:
    """Absolute path or URL of an output.

    Raises
    ------
    OutputError
        It is in a store that cannot be opened.
    """
    try:
        return absolute(path, options)
    except ConfigError:
        raise
    except Exception as error:  # fsspec's, of many types: no such store, a package that it needs
        raise OutputError(f"{path}: fsspec cannot open this store: {error!r}") from error


def _save(
    frame: dd.DataFrame,
    earlier_steps: Sequence[Any],
    kept: list[str],
    output: Output,
    id_col: str,
    input_options: Options,
    client: Any,
    summary: SaveSummary,
    started: float,
    how: Running,
) -> None:
    lineage = trace(frame)
    steps = list(
        {
            step.column: step
            for step in (*earlier_steps, *lineage.functions)
            if hasattr(step, "describe") and (step in lineage.functions or step.column in frame.columns)
        }.values()
    )
    described = load_models(steps, kept, client)
    made = {name: info for name, info in described.items() if name in kept}

    schema = plan_schema(frame, kept, made, lineage)
    targets = plan_targets(frame, lineage, output, schema, described, input_options)
    if not is_remote(output.folder):
        remove_leftovers(output.folder)
    there = list_files(output)
    todo, remarks = find_unfinished(targets, there, schema, made, output)
    if output.in_place and not output.overwrite:
        check_own_files(lineage, targets, schema)
    strays = find_strays(lineage, targets, there, output)

    summary.skipped = len(targets) - len(todo)
    summary.add_remarks(remarks)
    summary.startup_seconds = time.monotonic() - started
    if todo:
        settings = {step.column: json.loads(step.settings) for step in steps if step.column in made}
        write = WritePartition(schema, output, id_col, made, settings, input_options)
        run_targets(
            write_graph(frame, targets, todo, write),
            client,
            [targets[number] for number in todo],
            summary,
            lineage.ranges is not None,
            groups=how.groups(lineage, targets, todo, write, client),
            resources=how.resources,
        )
        if not is_remote(output.folder):
            remove_leftovers(output.folder)  # of workers that died while they were writing
    if not summary.failed_shards:
        for stray in strays:
            remove(stray, output.options)


def clear_stages(client: Any) -> None:
    """Remove the local copies of remote shards, here and on all workers."""
    STAGE.clear()
    if client is not None and client.status == "running":
        client.run(_clear_stage, wait=False)  # not to be held up by a worker that does not answer


async def _clear_stage() -> None:  # only a coroutine is not waited for
    from curator_dask.webdataset.staging import STAGE  # that of the worker's process

    STAGE.clear()


def _check_writable(folder: str) -> None:
    """Fail before the model is loaded, not after."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: could not be written: {error.strerror}. Give another path") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: could not be written: no permission. Give another path")


def write_graph(
    frame: dd.DataFrame,
    targets: Sequence[Target],
    todo: Sequence[int],
    write: Callable[[Any, pd.DataFrame], pd.DataFrame],
    meta: pd.DataFrame | None = None,
) -> dd.DataFrame:
    """The lazy frame whose partitions write the targets with the numbers `todo` and report on them."""
    assert frame.npartitions == len(targets), (frame.npartitions, len(targets))
    picked = frame if len(todo) == len(targets) else frame.partitions[todo]
    texts = TargetTexts([targets[number] for number in todo])
    return dd.map_partitions(
        write,
        picked,
        map_items(target_frame, texts, report_frame({}), "target"),
        meta=report_frame({}) if meta is None else meta,
        align_dataframes=False,
        enforce_metadata=False,
    )


def load_models(steps: Sequence[Any], shown: Sequence[str], client: Any) -> dict[str, dict[str, Any]]:
    """Have every worker load the models of some steps; what makes each embedding, by its column.

    Those of the columns `shown` are printed.
    """
    if steps:
        sources = ", ".join(str(step.encoder) for step in steps)
        where = "in this process" if client is None else f"on {len(client.nthreads())} workers"
        print(f"loading {sources} {where}", flush=True)
    described = {step.column: describe(step, client) for step in steps}
    for name in [name for name in described if name in shown]:
        info = described[name]
        made_by = f"{info['output']} output of {info['model']} ({info['dtype']}; {info['source']})"
        print(f"{name}: {info['dim']} values, {made_by}")
    return described


def describe(step: Any, client: Any) -> dict[str, Any]:
    """What makes an embedding; on the way every worker loads the model.

    Raises
    ------
    WeightsError
        Two workers loaded different weights under one name.
    """
    found = {address: info.to_dict() for address, info in run_everywhere(step.describe, client).items()}
    (first, info), *others = found.items()
    for address, other in others:
        if other != info:
            differing = {key: (info[key], other[key]) for key in info if info[key] != other[key]}
            raise WeightsError(
                f"{step.column}: the workers {first} and {address} do not run the same model: {differing}. Give every"
                " node the same files, versions and kind of device"
            )
    return info
