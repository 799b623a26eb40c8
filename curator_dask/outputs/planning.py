"""What a run of `save_metadata` has to write: files, fingerprints, and what must not be replaced."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

import curator_dask
from curator_dask.errors import OutputError, ShardError
from curator_dask.fingerprint import fingerprints
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, output_schema, read_footer
from curator_dask.frames.record import vectors_of
from curator_dask.outputs.conflicts import FORMERLY, conflict, dataset_of, describe_difference, identity
from curator_dask.outputs.keeping import Kept, good_columns
from curator_dask.outputs.writing import Output
from curator_dask.runs.graph import types_read
from curator_dask.runs.sink import Job
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads
from curator_dask.webdataset.shards import ShardRange
from curator_dask.webdataset.stamps import stamp


def plan_schema(job: Job) -> pa.Schema:
    """Types of the columns to write: those of the frame, with the embeddings' lengths."""
    dims = {name: info["dim"] for name, info in job.made.items()}
    return output_schema(job.frame._meta[list(job.kept)], dims, types_read(job.frame))


def names_of(job: Job) -> list[str]:
    """Of the files of a job's partitions, without ``.parquet``."""
    if job.lineage.ranges is None:
        return [f"part-{number:05d}" for number in range(job.frame.npartitions)]
    return [part.name for part in job.lineage.ranges]


def plan_targets(job: Job, output: Output, schema: pa.Schema, kept: Kept) -> list[Target]:
    """The file of each partition, with the fingerprint of all that decides its content, but what is kept there."""
    lineage, options = job.lineage, job.input_options
    described = {name: identity(info) for name, info in job.described.items()}
    own = [column for column in schema if column.name not in kept.types.names]
    common = {
        "package": curator_dask.__version__,
        "embeddings": described,
        "columns": _kinds(own),
        "drop_failed": output.drop_failed,
    }
    if lineage.ranges is None:
        # Partitions were mixed: each depends on all of the input. If that is not known, nothing is ever finished.
        inputs = (
            str(uuid.uuid4())
            if lineage.inputs is None
            else in_threads(lambda part: _look(part, "parquet", output.folder, options), lineage.inputs)
        )
        common |= {"frame": job.frame.expr._name, "inputs": inputs}
        prints = fingerprints(common, "partition", range(job.frame.npartitions))
        shards: list[dict[str, Any] | None] = [None] * len(prints)
        source = None
        dataset = dataset_of(lineage)
    else:
        dataset = None
        common["recipe"] = lineage.recipe
        source = getattr(lineage.reader, "source", None)
        shards = in_threads(lambda part: _look(part, source, output.folder, options), lineage.ranges)
        prints = fingerprints(common, "shard", shards)
    before = {name: identity(info.get(FORMERLY, info)) for name, info in job.described.items()}
    # Earlier versions counted columns that other runs had put into the dataset's own files.
    parts = itertools.product(
        [described] if before == described else [described, before],
        [own] if len(own) == len(schema) else [own, schema],
    )
    as_before = [
        fingerprints({**common, "embeddings": infos, "columns": _kinds(columns)}, "shard", shards)
        for infos, columns in itertools.islice(parts, 1, None)
    ]
    later: frozenset[str] = getattr(lineage.reader, "later_columns", frozenset())
    fewer = [column for column in own if column.name not in later]
    lacking: Sequence[str | None] = [None] * len(prints)
    if len(fewer) < len(own):
        lacking = fingerprints({**common, "columns": _kinds(fewer)}, "shard", shards)
    return [
        Target(
            name=name,
            path=join(output.folder, f"{name}.parquet"),
            fingerprint=each,
            shard=shard,
            companion=lineage.ranges[number].shard.parquet if lineage.ranges else None,
            source=source,
            dataset=dataset,
            formerly=tuple(former[number] for former in as_before),
            lacking=less,
        )
        for number, (name, each, less, shard) in enumerate(
            zip(names_of(job), prints, lacking, shards, strict=True)
        )
    ]


def _kinds(columns: Iterable[pa.Field]) -> list[str]:
    return sorted(f"{column.name}: {_kind(column.type)}" for column in columns)


def _kind(kind: pa.DataType) -> str:
    """A type's name that is the same before and after a turn through Parquet."""
    return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else str(kind)


def _look(part: ShardRange, source: str | None, folder: str, options: Options) -> dict[str, Any]:
    """State of a range's input files; a file that is not there has none, and its partition will say so."""
    found: dict[str, Any] = {"url": part.shard.url, "rows": [part.start, part.stop]}
    files = {"tar": part.shard.url}
    # The companion is input too, unless this very file is what is being written.
    output = join(folder, f"{part.name}.parquet")
    if source == "parquet" and part.shard.parquet is not None and part.shard.parquet != output:
        files["parquet"] = part.shard.parquet
    for kind, url in files.items():
        try:
            found[kind] = vars(stamp(url, options))
        except ShardError:
            found[kind] = None
    return found


def read_footers(job: Job, there: Collection[str], output: Output) -> dict[str, Footer]:
    """What those of a job's files that are there say of themselves, by path."""
    paths = [join(output.folder, f"{name}.parquet") for name in names_of(job)]
    found = [path for path in paths if path in there]
    return dict(zip(found, in_threads(lambda path: read_footer(path, output.options), found), strict=True))


def find_unfinished(
    targets: list[Target],
    there: Mapping[str, Footer],
    schema: pa.Schema,
    kept: Kept,
    job: Job,
    output: Output,
) -> tuple[list[Target], list[int], dict[str, Any], list[Mapping[str, Any]]]:
    """The targets with what they can take over, numbers of those to write; remarks on and reports of the others.

    Parameters
    ----------
    targets
        All of them.
    there
        Those of the files that are there, by path.
    schema, kept, job
        What the files have, what of it other runs have made, and what is to be done.
    output
        Where they are.

    Raises
    ------
    OutputError
        Something is in the way that `overwrite` does not allow to replace.
    """
    found = [there.get(target.path) for target in targets]
    columns = tuple(job.made) or ("",)
    planned, todo, conflicts = list(targets), [], []
    remarks: dict[str, Any] = {}
    reports: list[Mapping[str, Any]] = []
    finished = [_is_finished(*each, columns, lacking=False) for each in zip(targets, found, strict=True)]
    if not all(finished):
        # Files without the later columns all stay as they are, or are all made anew: of one schema.
        lacking = [_is_finished(*each, columns, lacking=True) for each in zip(targets, found, strict=True)]
        finished = lacking if all(lacking) else finished
    for number, (target, existing) in enumerate(zip(targets, found, strict=True)):
        if existing is not None and finished[number]:
            noticed, report = existing.told(target.name, columns[0])
            remarks.update(noticed)
            reports.append(report)
            continue
        todo.append(number)
        if existing is not None:
            reuse = _reusable(target, existing, job)
            keep = good_columns(kept, replace(target, reuse=reuse), existing, job)
            planned[number] = replace(target, reuse=reuse, keep=keep) if reuse or keep else target
        if existing is not None and not output.overwrite:
            problem = conflict(planned[number], existing, schema, kept, job, output.in_place)
            if problem:
                conflicts.append(f"{target.path}: {problem}")
    if conflicts:
        raise OutputError(
            f"{len(conflicts)} files would be replaced by something else: {conflicts[0]}. Use overwrite=True"
            " (--overwrite) to replace them, or write to another path"
        )
    return planned, todo, remarks, reports


def _is_finished(target: Target, existing: Footer | None, columns: tuple[str, ...], lacking: bool) -> bool:
    wanted = (target.fingerprint, *target.formerly, target.lacking if lacking else None)
    return existing is not None and existing.is_finished(*wanted, columns=columns)


def _reusable(target: Target, existing: Footer, job: Job) -> tuple[str, ...]:
    """Columns in a file that are of the same shard, as it is now, and made alike; scores with their vectors."""
    record, shard = existing.record, target.shard or {}
    needed = {job.id_col, URL_COLUMN, ERROR_COLUMN}
    if record is None or record.id_col != job.id_col or not needed <= {*existing.columns}:
        return ()
    tar = shard.get("tar")
    found = [
        name
        for name, how in job.read_by.items()
        if record.url == shard.get("url")
        and record.run_of(name)["tar"] == tar is not None
        and name in existing.columns
        and record.read_by.get(name) == how
        and (
            name not in job.made
            or describe_difference(record.embeddings.get(name, {}), job.made[name]) is None
        )
    ]
    scores = [
        name
        for name, said in job.scores.items()
        if {*vectors_of(said)} <= {*found}
        and name in existing.columns
        and record.has_score(name, said["recipe"])
    ]
    return (*found, *scores)
