"""`save_metadata`: what to write, what is there already, and the run that writes the rest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.dataframe as dd

from curator_dask.cluster.workers import current_client, set_up_workers
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.parquet import remove_leftovers
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.planning import (
    check_own_files,
    find_strays,
    find_unfinished,
    list_files,
    plan_schema,
    plan_targets,
)
from curator_dask.outputs.writing import Output, WritePartition
from curator_dask.runs.describing import load_models
from curator_dask.runs.groups import Running
from curator_dask.runs.lineage import trace
from curator_dask.runs.settle import run_targets, write_graph
from curator_dask.runs.state import clear_stages
from curator_dask.runs.summary import SaveSummary
from curator_dask.storage import Options, absolute, is_remote, remove

if TYPE_CHECKING:
    pass


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


def _check_writable(folder: str) -> None:
    """Fail before the model is loaded, not after."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: could not be written: {error.strerror}. Give another path") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: could not be written: no permission. Give another path")
