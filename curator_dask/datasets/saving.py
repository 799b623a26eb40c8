"""`save_metadata`: what to write, what is there already, and the run that writes the rest."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

import curator_dask
from curator_dask.datasets.reading import ReadShard
from curator_dask.datasets.running import (
    WorkerSetup,
    current_client,
    in_threads,
    run_everywhere,
    run_partitions,
)
from curator_dask.datasets.writing import Target, WritePartition
from curator_dask.errors import ConfigError, CuratorError, OutputError, ShardError, WeightsError
from curator_dask.frames.lineage import Lineage, trace
from curator_dask.frames.parquet import (
    fingerprint,
    output_schema,
    read_footer,
    read_metadata,
    remove_leftovers,
)
from curator_dask.progress import Meter, watch
from curator_dask.webdataset.shards import ShardRange, stamp

_FEW = 5  # how many names a message lists


@dataclass
class SaveSummary:
    """What a call of `save_metadata` did.

    Attributes
    ----------
    path
        Where the files are.
    rows, failed
        Rows written in this call, and those of them whose image failed.
    written, skipped
        Files written in this call, and files that were finished before.
    failed_shards
        Names of shards that could not be read, or on which something else went wrong, with the reason; their
        rows are not in the output, and a rerun tries them again.
    reasons
        How many images failed for which kind of reason.
    examples
        For each kind of reason, a few ``shard key: reason``.
    seconds
        Of this call.
    startup_seconds
        Of these, until the first partition was handed out: most of it every worker loading the model.
    """

    path: str
    rows: int = 0
    failed: int = 0
    written: int = 0
    skipped: int = 0
    failed_shards: dict[str, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    startup_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Rows written divided by the seconds after the start-up."""
        running = self.seconds - self.startup_seconds
        return self.rows / running if self.rows and running > 0 else 0.0

    def add(self, report: Mapping[str, Any]) -> None:
        """Count what `WritePartition` reports of a file."""
        self.rows += report["rows"]
        self.failed += report["failed"]
        self.written += 1
        self.reasons.update(report["reasons"])
        for reason, examples in report["examples"].items():
            known = self.examples.setdefault(reason, [])
            known += examples[: max(0, 3 - len(known))]

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.rows} rows in {self.written} files, {self.failed} failed images; {self.skipped} files"
            f" were finished before; {self.seconds:.1f} s ({self.startup_seconds:.1f} s of it start-up),"
            f" {self.images_per_second:.1f} images/s"
        ]
        for reason, count in self.reasons.most_common():
            lines.append(f"  {count} x {reason}, for example {'; '.join(self.examples.get(reason, []))}")
        lines += [
            f"  shard failed: {name}: {reason}" for name, reason in list(self.failed_shards.items())[:20]
        ]
        if len(self.failed_shards) > 20:
            lines.append(f"  … and {len(self.failed_shards) - 20} more shards that failed")
        return "\n".join(lines)


def save(
    frame: dd.DataFrame,
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
    missing = [name for name in columns or () if name not in frame.columns]
    if missing:
        raise ConfigError(f"columns: no such columns {missing}; the metadata has {list(frame.columns)}")
    client = current_client()
    if client is not None:
        client.register_plugin(WorkerSetup())
    lineage = trace(frame)
    steps = [function for function in lineage.functions if hasattr(function, "describe")]
    kept = [name for name in frame.columns if columns is None or name in columns]
    made = {step.column: _describe(step, client) for step in steps if step.column in kept}
    for name, info in made.items():
        made_by = f"{info['output']} output of {info['model']} ({info['dtype']}; {info['source']})"
        print(f"{name}: {info['dim']} values, {made_by}")

    schema = _schema(frame, kept, made, lineage)
    targets = _targets(frame, lineage, folder, schema, made, drop_failed, storage_options)
    in_place = Path(folder) == Path(os.path.abspath(root))  # noqa: PTH100
    todo = _unfinished(targets, schema, made, in_place, overwrite)
    if in_place and not overwrite and lineage.reader is not None:
        _check_columns_kept(lineage.reader, schema)
    if Path(folder).is_dir():
        remove_leftovers(folder)
    strays = _strays(folder, targets)
    if strays and not overwrite:
        raise OutputError(
            f"{folder} has {len(strays)} files of the same rows in other partitions, {strays[0].name} for example: a"
            " reader of the folder would see rows twice. Give the same rows_per_partition as before, write to another"
            " path, or use overwrite=True (--overwrite), which removes them when all is written"
        )

    summary = SaveSummary(folder, skipped=len(targets) - len(todo))
    if todo:
        write = WritePartition(schema, id_col, made, drop_failed, in_place and not overwrite)
        written = write_graph(frame, targets, todo, write)
        _run(written, client, [targets[number] for number in todo], summary)
    if not summary.failed_shards:
        for stray in strays:
            stray.unlink(missing_ok=True)
    summary.seconds = time.monotonic() - started
    print(summary)
    return summary


def write_graph(
    frame: dd.DataFrame, targets: Sequence[Target], todo: Sequence[int], write: WritePartition
) -> dd.DataFrame:
    """The lazy frame whose partitions write the targets with the numbers `todo` and report on them."""
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


def _run(written: dd.DataFrame, client: Any, targets: list[Target], summary: SaveSummary) -> None:
    meter = Meter(len(targets))
    with watch(meter, client):
        for number, result in run_partitions(written, client):
            if isinstance(result, pd.DataFrame):
                summary.add(json.loads(result["target"].iloc[0]))
                meter.done += 1
            elif isinstance(result, CuratorError) and not isinstance(result, ShardError):
                raise result  # it would happen to every shard
            else:
                reason = (
                    str(result) if isinstance(result, CuratorError) else f"{type(result).__name__}: {result}"
                )
                summary.failed_shards[targets[number].name] = reason
                meter.broken += 1


def _schema(frame: dd.DataFrame, kept: list[str], made: Mapping[str, Any], lineage: Lineage) -> pa.Schema:
    dims = {name: info["dim"] for name, info in made.items()}
    if isinstance(lineage.reader, ReadShard):
        # Embeddings that came with the dataset keep their type too, also where the frame knows only lists.
        for old in lineage.reader.schema:
            if pa.types.is_fixed_size_list(old.type) and old.name in kept:
                dims.setdefault(old.name, old.type.list_size)
    return output_schema(frame._meta[kept], dims)


def _targets(
    frame: dd.DataFrame,
    lineage: Lineage,
    folder: str,
    schema: pa.Schema,
    made: Mapping[str, Any],
    drop_failed: bool,
    storage_options: Mapping[str, Any] | None,
) -> list[Target]:
    """The file of each partition, with the fingerprint of all that decides its content."""
    common = {
        "package": curator_dask.__version__,
        "embeddings": {name: _identity(info) for name, info in made.items()},
        "columns": sorted(f"{column.name}: {_kind(column.type)}" for column in schema),
        "drop_failed": drop_failed,
    }
    if lineage.ranges is None:
        # Partitions were mixed: each depends on all of the input.
        common["frame"] = frame.expr._name
        names = [f"part-{number:05d}" for number in range(frame.npartitions)]
        parts: list[dict[str, Any]] = [{"partition": number} for number in range(frame.npartitions)]
        shards: list[dict[str, Any] | None] = [None] * len(names)
        source = None
    else:
        common["recipe"] = lineage.recipe
        names = [part.name for part in lineage.ranges]
        source = getattr(lineage.reader, "source", None)
        shards = in_threads(lambda part: _look(part, source, folder, storage_options), lineage.ranges)
        parts = [{"shard": shard} for shard in shards]
    return [
        Target(
            name=name,
            path=os.path.join(folder, f"{name}.parquet"),  # noqa: PTH118
            fingerprint=fingerprint({**common, **part}),
            shard=shard,
            companion=lineage.ranges[number].shard.parquet if lineage.ranges else None,
            source=source,
        )
        for number, (name, part, shard) in enumerate(zip(names, parts, shards, strict=True))
    ]


def _kind(kind: pa.DataType) -> str:
    """A type's name that is the same before and after a turn through Parquet."""
    return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else str(kind)


def _look(
    part: ShardRange, source: str | None, folder: str, storage_options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """State of a range's input files; a file that is not there has none, and its partition will say so."""
    found: dict[str, Any] = {"url": part.shard.url, "rows": [part.start, part.stop]}
    files = {"tar": part.shard.url}
    # The companion is input too, unless this very file is what is being written.
    output = os.path.join(folder, f"{part.name}.parquet")  # noqa: PTH118
    if source == "parquet" and part.shard.parquet is not None and part.shard.parquet != output:
        files["parquet"] = part.shard.parquet
    for kind, url in files.items():
        try:
            found[kind] = vars(stamp(url, storage_options))
        except ShardError:
            found[kind] = None
    return found


def _unfinished(
    targets: list[Target], schema: pa.Schema, made: Mapping[str, Any], in_place: bool, overwrite: bool
) -> list[int]:
    """Numbers of the targets to write.

    Raises
    ------
    OutputError
        Something is in the way that `overwrite` does not allow to replace.
    """
    found = in_threads(_existing, targets)
    todo, conflicts = [], []
    for number, (target, existing) in enumerate(zip(targets, found, strict=True)):
        if existing is not None and existing[0].get("fingerprint") == target.fingerprint:
            continue
        todo.append(number)
        if existing is not None and not overwrite:
            problem = _conflict(target, *existing, schema, made, in_place)
            if problem:
                conflicts.append(f"{target.path}: {problem}")
    if conflicts:
        raise OutputError(
            f"{len(conflicts)} files would be replaced by something else:\n  "
            + "\n  ".join(conflicts[:_FEW])
            + "\nUse overwrite=True (--overwrite) to replace them, or write to another path"
        )
    return todo


_PART = re.compile(r"(^|\.)part-\d{5}$")


def _strays(folder: str, targets: list[Target]) -> list[Path]:
    """Files that an earlier run wrote of the same shards, cut in another way."""
    expected = {target.path for target in targets} | {target.companion for target in targets}
    bases = {_PART.sub("", target.name) for target in targets}
    found = []
    for path in Path(folder).rglob("*.parquet"):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if str(path) not in expected and _PART.sub("", name) in bases and read_metadata(str(path)):
            found.append(path)
    return sorted(found)


def _existing(target: Target) -> tuple[dict[str, Any], list[str]] | None:
    """Stored metadata and columns of the file that is there; None if there is none that can be read."""
    if not os.path.exists(target.path):  # noqa: PTH110
        return None
    stored, columns = read_footer(target.path)
    return stored or {}, columns


def _conflict(
    target: Target,
    stored: dict[str, Any],
    columns: list[str],
    schema: pa.Schema,
    made: Mapping[str, Any],
    in_place: bool,
) -> str | None:
    embeddings = stored.get("embeddings", {})
    for name, info in made.items():
        if name in embeddings and _identity(embeddings[name]) != _identity(info):
            differing = [key for key in _identity(info) if embeddings[name].get(key) != info[key]]
            was = ", ".join(f"{key} {embeddings[name].get(key)}" for key in differing)
            now = ", ".join(f"{key} {info[key]}" for key in differing)
            return f"column {name!r} was made with {was}; this run has {now}"
        if name in columns and name not in embeddings:
            return f"has a column {name!r} that was not made by curator_dask"
    lost = sorted(name for name in embeddings if name not in schema.names)
    if lost:
        return f"has embeddings {lost} that this run would not write"
    if not stored and not (in_place and target.path == target.companion):
        return "was not written by curator_dask"
    return None


def _identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for two embeddings to be the same: all but the name the model was asked for by."""
    return {key: value for key, value in info.items() if key != "source"}


def _check_columns_kept(reader: Any, schema: pa.Schema) -> None:
    lost = [name for name in getattr(reader, "schema", schema).names if name not in schema.names]
    if lost and getattr(reader, "source", None) == "parquet":
        raise OutputError(
            f"writing into the dataset's own Parquet files would drop their columns {lost}. Keep these columns, give"
            " another path, or use overwrite=True"
        )


def _target_frame(text: str) -> pd.DataFrame:
    return pd.DataFrame({"target": [text]}).astype({"target": "str"})
