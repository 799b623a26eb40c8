"""`save_metadata`: what to write, what is there already, and the run that writes the rest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd

from curator_dask.datasets.planning import (
    check_own_files,
    find_strays,
    find_unfinished,
    plan_schema,
    plan_targets,
)
from curator_dask.datasets.running import (
    WorkerSetup,
    current_client,
    run_everywhere,
    run_partitions,
)
from curator_dask.datasets.summary import SaveSummary
from curator_dask.datasets.writing import Target, WritePartition
from curator_dask.errors import ClusterError, ConfigError, CuratorError, OutputError, ShardError, WeightsError
from curator_dask.frames.lineage import trace
from curator_dask.frames.parquet import (
    remove_leftovers,
)
from curator_dask.progress import Meter, watch


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
    storage_options: Mapping[str, Any] | None,
) -> SaveSummary:
    """Write a frame's partitions as Parquet; see `ImageTextPairDataset.save_metadata`."""
    started = time.monotonic()
    folder = os.path.abspath(path if path is not None else root)  # noqa: PTH100
    if "://" in (path if path is not None else root):
        raise ConfigError(f"path={path or root!r}: expected a local directory")
    in_place = Path(folder) == Path(os.path.abspath(root))  # noqa: PTH100
    if in_place and drop_failed:
        raise ConfigError(
            "drop_failed=True would drop rows from the dataset's own files: give save_metadata a path"
        )
    missing = [name for name in columns or () if name not in frame.columns]
    if missing:
        raise ConfigError(f"columns: no such columns {missing}; the metadata has {list(frame.columns)}")
    client = current_client()
    if client is not None:
        client.register_plugin(WorkerSetup())
    _check_writable(folder)
    lineage = trace(frame)
    steps = list(
        {
            step.column: step
            for step in (*earlier_steps, *lineage.functions)
            if hasattr(step, "describe") and (step in lineage.functions or step.column in frame.columns)
        }.values()
    )
    kept = [name for name in frame.columns if columns is None or name in columns]
    if steps:
        sources = ", ".join(str(step.encoder) for step in steps)
        where = "in this process" if client is None else f"on {len(client.nthreads())} workers"
        print(f"loading {sources} {where}", flush=True)
    described = {step.column: _describe(step, client) for step in steps}
    made = {name: info for name, info in described.items() if name in kept}
    for name, info in made.items():
        made_by = f"{info['output']} output of {info['model']} ({info['dtype']}; {info['source']})"
        print(f"{name}: {info['dim']} values, {made_by}")

    schema = plan_schema(frame, kept, made, lineage)
    targets = plan_targets(frame, lineage, folder, schema, described, drop_failed, storage_options)
    todo = find_unfinished(targets, schema, made, in_place, overwrite)
    if in_place and not overwrite:
        check_own_files(lineage, targets, schema)
    remove_leftovers(folder)
    strays = find_strays(folder, targets, overwrite)

    summary = SaveSummary(folder, skipped=len(targets) - len(todo))
    summary.startup_seconds = time.monotonic() - started
    if todo:
        write = WritePartition(schema, id_col, made, drop_failed, in_place and not overwrite)
        written = write_graph(frame, targets, todo, write)
        _run(written, client, [targets[number] for number in todo], summary, lineage.ranges is not None)
    if not summary.failed_shards:
        for stray in strays:
            stray.unlink(missing_ok=True)
    summary.seconds = time.monotonic() - started
    print(summary)
    return summary


def _check_writable(folder: str) -> None:
    """Fail before the model is loaded, not after."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: could not be written: {error.strerror}. Give another path") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: could not be written: no permission. Give another path")


def write_graph(
    frame: dd.DataFrame, targets: Sequence[Target], todo: Sequence[int], write: WritePartition
) -> dd.DataFrame:
    """The lazy frame whose partitions write the targets with the numbers `todo` and report on them."""
    assert frame.npartitions == len(targets), (frame.npartitions, len(targets))
    picked = frame if len(todo) == len(targets) else frame.partitions[todo]
    texts = [json.dumps(vars(targets[number])) for number in todo]
    return dd.map_partitions(
        write,
        picked,
        dd.from_map(_target_frame, texts, meta=_target_frame("")),
        meta=_target_frame(""),
        align_dataframes=False,
        enforce_metadata=False,
    )


def _describe(step: Any, client: Any) -> dict[str, Any]:
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


def _run(
    written: dd.DataFrame, client: Any, targets: list[Target], summary: SaveSummary, apart: bool
) -> None:
    meter = Meter(len(targets))
    with watch(meter, client):
        for number, result in run_partitions(written, client, apart):
            if isinstance(result, pd.DataFrame):
                report = json.loads(result["target"].iloc[0])
                summary.add(report)
                meter.finish(report["rows"])
            elif isinstance(result, CuratorError) and not isinstance(result, ShardError):
                raise result  # it would happen to every shard
            else:
                reason = (
                    str(result) if isinstance(result, CuratorError) else f"{type(result).__name__}: {result}"
                )
                summary.failed_shards[targets[number].name] = reason
                meter.broken += 1
    if client is not None and client.status != "running":
        raise ClusterError(
            f"the connection to the cluster was lost after {meter.done} of {meter.shards} files. Run again when it is"
            " there: finished files are kept"
        )


def _target_frame(text: str) -> pd.DataFrame:
    return pd.DataFrame({"target": [text]}).astype({"target": "str"})
