"""What a run of `save_metadata` has to write: files, fingerprints, and what must not be replaced."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pyarrow as pa

import curator_dask
from curator_dask.datasets.reading import URL_COLUMN
from curator_dask.datasets.running import in_threads
from curator_dask.datasets.writing import ERROR_COLUMN, ERRORS_FOLDER, Target
from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.lineage import Lineage
from curator_dask.frames.parquet import (
    Footer,
    fingerprint,
    is_finished,
    output_schema,
    read_footer,
    read_metadata,
)
from curator_dask.webdataset.shards import ShardRange, stamp


def plan_schema(frame: dd.DataFrame, kept: list[str], made: Mapping[str, Any], lineage: Lineage) -> pa.Schema:
    """Types of the columns to write: those of the frame, with the embeddings' lengths."""
    dims = {name: info["dim"] for name, info in made.items()}
    return output_schema(frame._meta[kept], dims, getattr(lineage.reader, "schema", None))


def plan_targets(
    frame: dd.DataFrame,
    lineage: Lineage,
    folder: str,
    schema: pa.Schema,
    described: Mapping[str, Any],
    drop_failed: bool,
    storage_options: Mapping[str, Any] | None,
) -> list[Target]:
    """The file of each partition, with the fingerprint of all that decides its content."""
    common = {
        "package": curator_dask.__version__,
        "embeddings": {name: _identity(info) for name, info in described.items()},
        "columns": sorted(f"{column.name}: {_kind(column.type)}" for column in schema),
        "drop_failed": drop_failed,
    }
    if lineage.ranges is None:
        # Partitions were mixed: each depends on all of the input. If that is not known, nothing is ever finished.
        inputs = (
            str(uuid.uuid4())
            if lineage.inputs is None
            else in_threads(lambda part: _look(part, "parquet", folder, storage_options), lineage.inputs)
        )
        common |= {"frame": frame.expr._name, "inputs": inputs}
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


def find_unfinished(
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
        if existing is not None and is_finished(existing, target.fingerprint):
            continue
        todo.append(number)
        if existing is not None and not overwrite:
            problem = _conflict(target, existing, schema, made, in_place)
            if problem:
                conflicts.append(f"{target.path}: {problem}")
    if conflicts:
        raise OutputError(
            f"{len(conflicts)} files would be replaced by something else: {conflicts[0]}. Use overwrite=True"
            " (--overwrite) to replace them, or write to another path"
        )
    return todo


def check_own_files(lineage: Lineage, targets: list[Target], schema: pa.Schema) -> None:
    """Protect the dataset's own Parquet files where the run writes into its directory.

    Raises
    ------
    OutputError
        They would lose columns, or files with the same rows would come to lie beside them.
    """
    reader = lineage.reader
    lost = [name for name in getattr(reader, "schema", schema).names if name not in schema.names]
    if lost and getattr(reader, "source", None) == "parquet":
        raise OutputError(
            f"writing into the dataset's own Parquet files would drop their columns {lost}. Keep these columns, give"
            " another path, or use overwrite=True"
        )
    owned = any(part.shard.parquet is not None for part in lineage.inputs or ())
    beside = [target for target in targets if _is_beside(target, owned)]
    if beside:
        raise OutputError(
            f"{len(beside)} files, {beside[0].path} for example, would lie beside the dataset's own Parquet files and"
            " hold the same rows once more. Give another path, or use overwrite=True"
        )


def _is_beside(target: Target, owned: bool) -> bool:
    if target.shard is None:
        return owned
    return target.companion is not None and target.path != target.companion


_PART = re.compile(r"(^|\.)part-\d{5}$")


def find_strays(folder: str, targets: list[Target], overwrite: bool) -> list[Path]:
    """Files that an earlier run wrote of the same shards, cut in another way.

    Raises
    ------
    OutputError
        There are some, and `overwrite` does not allow to remove them.
    """
    expected = {target.path for target in targets} | {target.companion for target in targets}
    mixes = any(target.shard is None for target in targets)
    bases = {_PART.sub("", target.name) for target in targets}
    found = []
    for path in Path(folder).rglob("*.parquet"):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if str(path) in expected or ERRORS_FOLDER in path.parts:
            continue
        stored = read_metadata(str(path))
        # Of the same shard, or of mixed partitions where these are not mixed, or the other way round.
        mixed = stored is not None and stored.get("shard") is None
        if stored is not None and (_PART.sub("", name) in bases or mixed != mixes):
            found.append(path)
    if found and not overwrite:
        raise OutputError(
            f"{folder} has {len(found)} files of the same rows in other partitions, {min(found).name} for example: a"
            " reader of the folder would see rows twice. Give the same rows_per_partition as before, write to another"
            " path, or use overwrite=True (--overwrite), which removes them when all is written"
        )
    return found


def _existing(target: Target) -> Footer | None:
    """Footer of the file that is there; None if there is none."""
    return read_footer(target.path) if os.path.exists(target.path) else None  # noqa: PTH110


def _conflict(
    target: Target,
    existing: Footer,
    schema: pa.Schema,
    made: Mapping[str, Any],
    in_place: bool,
) -> str | None:
    stored, columns = existing.stored or {}, existing.columns
    embeddings = stored.get("embeddings", {})
    for name, info in made.items():
        if name in embeddings and _identity(embeddings[name]) != _identity(info):
            differing = [key for key in _identity(info) if embeddings[name].get(key) != info[key]]
            was = ", ".join(f"{key} {_short(embeddings[name].get(key))}" for key in differing)
            now = ", ".join(f"{key} {_short(info[key])}" for key in differing)
            return f"column {name!r} was made with {was}; this run has {now}"
        if name in columns and name not in embeddings:
            return f"has a column {name!r} that was not made by curator_dask"
    shard, mine = (stored.get("shard") or {}).get("url"), (target.shard or {}).get("url")
    if shard is not None and mine is not None and shard != mine:
        return f"was made of {shard}, not of {mine}"
    taken = [name for name in (URL_COLUMN, ERROR_COLUMN) if name in columns and name in schema.names]
    if not stored and taken:
        return f"has columns {taken} of its own, whose names curator_dask uses"
    lost = sorted(name for name in embeddings if name not in schema.names)
    if lost:
        return f"has embeddings {lost} that this run would not write"
    if not stored and not (in_place and target.path == target.companion):
        return "was not written by curator_dask"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for two embeddings to be the same: all but the name the model was asked for by."""
    return {key: value for key, value in info.items() if key != "source"}
