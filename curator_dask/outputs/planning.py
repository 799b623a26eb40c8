"""What a run of `save_metadata` has to write: files, fingerprints, and what must not be replaced."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

import curator_dask
from curator_dask.errors import OutputError, ShardError
from curator_dask.fingerprint import fingerprint, fingerprints
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, output_schema, read_footer, read_record
from curator_dask.outputs.writing import ERRORS_FOLDER, Output
from curator_dask.runs.lineage import Lineage
from curator_dask.runs.sink import Job
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, join, walk
from curator_dask.threads import in_threads
from curator_dask.webdataset.shards import ShardRange, stamp

#: In what makes an embedding: what earlier files say of the same.
FORMERLY = "formerly"


def plan_schema(job: Job) -> pa.Schema:
    """Types of the columns to write: those of the frame, with the embeddings' lengths."""
    dims = {name: info["dim"] for name, info in job.made.items()}
    return output_schema(job.frame._meta[list(job.kept)], dims, getattr(job.lineage.reader, "schema", None))


def plan_targets(job: Job, output: Output, schema: pa.Schema) -> list[Target]:
    """The file of each partition, with the fingerprint of all that decides its content."""
    lineage, options = job.lineage, job.input_options
    common = {
        "package": curator_dask.__version__,
        "embeddings": {name: _identity(info) for name, info in job.described.items()},
        "columns": sorted(f"{column.name}: {_kind(column.type)}" for column in schema),
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
        names = [f"part-{number:05d}" for number in range(job.frame.npartitions)]
        prints = fingerprints(common, "partition", range(job.frame.npartitions))
        shards: list[dict[str, Any] | None] = [None] * len(names)
        source = None
        dataset = None if lineage.inputs is None else fingerprint({"shards": _urls_of(lineage)})
    else:
        dataset = None
        common["recipe"] = lineage.recipe
        names = [part.name for part in lineage.ranges]
        source = getattr(lineage.reader, "source", None)
        shards = in_threads(lambda part: _look(part, source, output.folder, options), lineage.ranges)
        prints = fingerprints(common, "shard", shards)
    former: Sequence[str | None] = [None] * len(names)
    if any(FORMERLY in info for info in job.described.values()):
        before = {name: _identity(info.get(FORMERLY, info)) for name, info in job.described.items()}
        former = fingerprints({**common, "embeddings": before}, "shard", shards)
    later: frozenset[str] = getattr(lineage.reader, "later_columns", frozenset())
    fewer = [f"{column.name}: {_kind(column.type)}" for column in schema if column.name not in later]
    lacking: Sequence[str | None] = [None] * len(names)
    if len(fewer) < len(schema):
        lacking = fingerprints({**common, "columns": sorted(fewer)}, "shard", shards)
    return [
        Target(
            name=name,
            path=join(output.folder, f"{name}.parquet"),
            fingerprint=each,
            shard=shard,
            companion=lineage.ranges[number].shard.parquet if lineage.ranges else None,
            source=source,
            dataset=dataset,
            formerly=old,
            lacking=less,
        )
        for number, (name, each, old, less, shard) in enumerate(
            zip(names, prints, former, lacking, shards, strict=True)
        )
    ]


def _urls_of(lineage: Lineage) -> list[str]:
    return sorted({part.shard.url for part in lineage.inputs or ()})


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


def list_files(output: Output) -> frozenset[str]:
    """Paths (or URLs) of the Parquet files below the output's folder.

    Raises
    ------
    OutputError
        The store does not answer.
    """
    try:
        names = walk(output.folder, output.options)
        return frozenset(join(output.folder, name) for name in names if name.endswith(".parquet"))
    except Exception as error:  # a store's own, of many types
        raise OutputError(
            f"{output.folder}: cannot be listed: {error!r}. Check the address and storage_options"
        ) from error


def find_unfinished(
    targets: list[Target],
    there: frozenset[str],
    schema: pa.Schema,
    job: Job,
    output: Output,
) -> tuple[list[Target], list[int], dict[str, Any], list[Mapping[str, Any]]]:
    """The targets with what they can take over, numbers of those to write; remarks on and reports of the others.

    Parameters
    ----------
    targets
        All of them.
    there
        The files below the output's folder.
    schema, job
        What the files have, and what is to be done.
    output
        Where they are.

    Raises
    ------
    OutputError
        Something is in the way that `overwrite` does not allow to replace.
    """
    found = in_threads(lambda it: read_footer(it.path, output.options) if it.path in there else None, targets)
    planned, todo, conflicts = list(targets), [], []
    remarks: dict[str, Any] = {}
    reports: list[Mapping[str, Any]] = []
    finished = [_is_finished(*each, lacking=False) for each in zip(targets, found, strict=True)]
    if not all(finished):
        # Files without the later columns all stay as they are, or are all made anew: of one schema.
        lacking = [_is_finished(*each, lacking=True) for each in zip(targets, found, strict=True)]
        finished = lacking if all(lacking) else finished
    for number, (target, existing) in enumerate(zip(targets, found, strict=True)):
        if existing is not None and finished[number]:
            record = existing.record
            remarks.update(record.remarks if record else {})
            # Of a file whose rows have been tried again it is not known how many failed.
            reports.append((record and record.report) or {"rows": existing.rows, "failed": 0})
            continue
        todo.append(number)
        if existing is not None:
            reuse = _reusable(target, existing, job)
            planned[number] = replace(target, reuse=reuse) if reuse else target
        if existing is not None and not output.overwrite:
            problem = _conflict(target, existing, schema, job.made, output.in_place)
            if problem:
                conflicts.append(f"{target.path}: {problem}")
    if conflicts:
        raise OutputError(
            f"{len(conflicts)} files would be replaced by something else: {conflicts[0]}. Use overwrite=True"
            " (--overwrite) to replace them, or write to another path"
        )
    return planned, todo, remarks, reports


def _is_finished(target: Target, existing: Footer | None, lacking: bool) -> bool:
    wanted = (target.fingerprint, target.formerly, target.lacking if lacking else None)
    return existing is not None and existing.is_finished(*wanted)


def _reusable(target: Target, existing: Footer, job: Job) -> tuple[str, ...]:
    """Columns of vectors in a file that are of the same shard, as it is now, and made in the same way."""
    record, shard = existing.record, target.shard or {}
    needed = {job.id_col, URL_COLUMN, ERROR_COLUMN}
    if record is None or record.id_col != job.id_col or not needed <= {*existing.columns}:
        return ()
    same = (record.shard or {}).get("tar") == shard.get("tar") is not None and record.url == shard.get("url")
    return tuple(
        name
        for name, how in job.read_by.items()
        if same
        and name in existing.columns
        and record.read_by.get(name) == how
        and describe_difference(record.embeddings.get(name, {}), job.made[name]) is None
    )


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


_PART = re.compile(r"\.part-\d{5}$")
_MIXED = re.compile(r"part-\d{5}")


def find_strays(lineage: Lineage, targets: list[Target], there: frozenset[str], output: Output) -> list[str]:
    """Files that an earlier run wrote of the same shards, cut in another way, and what it dropped from them.

    Only what surely holds the same rows: other datasets may have their outputs below the same folder.

    Raises
    ------
    OutputError
        There are some, and `overwrite` does not allow to remove them.
    """
    inputs = {part.shard.name: part.shard for part in lineage.inputs or ()}
    expected = {target.path for target in targets} | {shard.parquet for shard in inputs.values()}
    expected |= {target.companion for target in targets}
    dataset = None if lineage.inputs is None else fingerprint({"shards": _urls_of(lineage)})
    names = {path: path.removeprefix(output.folder).lstrip("/").removesuffix(".parquet") for path in there}
    found = []
    for path in sorted(there - expected):
        shard = inputs.get(_PART.sub("", names[path]))
        if shard is None and not _MIXED.fullmatch(names[path]):
            continue
        record = read_record(path, output.options)
        if record is None:
            continue
        if record.url == shard.url if shard else not record.shard and record.dataset == dataset:
            found.append(path)
    if found and not output.overwrite:
        raise OutputError(
            f"{output.folder} has {len(found)} files of the same rows in other partitions, {found[0]} for example: a"
            " reader of the folder would see rows twice. Give the same rows_per_partition as before, write to another"
            " path, or use overwrite=True (--overwrite), which removes them when all is written"
        )
    errors = {join(output.folder, f"{ERRORS_FOLDER}/{names[path]}.parquet") for path in found}
    return [*found, *sorted(errors & there)]


def _conflict(
    target: Target,
    existing: Footer,
    schema: pa.Schema,
    made: Mapping[str, Any],
    in_place: bool,
) -> str | None:
    record, columns = existing.record, existing.columns
    embeddings = {} if record is None else record.embeddings
    for name, info in made.items():
        difference = name in embeddings and describe_difference(embeddings[name], info)
        if difference:
            return f"column {name!r} {difference}"
        if name in columns and name not in embeddings:
            return f"has a column {name!r} that was not made by curator_dask"
    if record is not None:
        mine = (target.shard or {}).get("url")
        if record.url is not None and mine is not None and record.url != mine:
            return f"was made of {record.url}, not of {mine}"
        if record.url is None and mine is None and record.dataset != target.dataset:
            return "was made of other shards"
    taken = [name for name in (URL_COLUMN, ERROR_COLUMN) if name in columns and name in schema.names]
    if record is None and taken:
        return f"has columns {taken} of its own, whose names curator_dask uses"
    lost = sorted(name for name in embeddings if name not in schema.names)
    if lost:
        return f"has embeddings {lost} that this run would not write"
    if record is None and not (in_place and target.path == target.companion):
        return "was not written by curator_dask"
    return None


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How two embeddings were made differently, in words; None if they are the same."""
    if FORMERLY in now and _identity(before) == _identity(now[FORMERLY]):
        return None
    keys = [key for key in _identity(now) if before.get(key) != now[key]]
    if not keys and _identity(before).keys() == _identity(now).keys():
        return None
    was, has = (", ".join(f"{key} {_short(info.get(key))}" for key in keys) for info in (before, now))
    return f"was made with {was}; this run has {has}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for two embeddings to be the same: all but the name the model was asked for by."""
    return {key: value for key, value in info.items() if key not in ("source", FORMERLY)}
