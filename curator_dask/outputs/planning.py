"""What a run of `save_metadata` has to write: files, fingerprints, and what must not be replaced."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

import curator_dask
from curator_dask.errors import OutputError, ShardError
from curator_dask.fingerprint import fingerprints
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, output_schema, read_footer
from curator_dask.frames.record import LACKING, inputs_of
from curator_dask.outputs.conflicts import FORMERLY, conflict, dataset_of, describe_difference, identity
from curator_dask.outputs.keeping import Kept, good_columns
from curator_dask.outputs.writing import Output
from curator_dask.rows.remarks import add_up
from curator_dask.runs.graph import types_read
from curator_dask.runs.sink import Job
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads
from curator_dask.webdataset.shards import ShardRange
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import counted


def plan_schema(job: Job) -> pa.Schema:
    """Types of the columns to write: those of the frame, with the embeddings' lengths."""
    dims = {name: info["dim"] for name, info in job.made.items()}
    made = {name: kind for step in job.steps for name, kind in step.columns.items()}
    return output_schema(job.frame._meta[list(job.kept)], dims, types_read(job.frame), made)


def path_of(job: Job, output: Output, number: int) -> str:
    """Of the file of one of a job's partitions."""
    return join(output.folder, f"{name_of(job, number)}.parquet")


def name_of(job: Job, number: int) -> str:
    """The same without folder and ``.parquet``."""
    ranges = job.lineage.ranges
    return f"part-{number:05d}" if ranges is None else ranges[number].name


def target_maker(
    job: Job, output: Output, schema: pa.Schema, kept: Kept
) -> Callable[[Sequence[int]], list[Target]]:
    """Makes targets of some partitions, by their numbers.

    A target is the file, with the fingerprint of all that decides its content, but what is kept there.
    """
    lineage, options = job.lineage, job.input_options
    described = {name: identity(info) for name, info in job.described.items()}
    own = [column for column in schema if column.name not in kept.types.names]
    common = {
        "package": curator_dask.__version__,
        "embeddings": described,
        "columns": _kinds(own),
        "drop_failed": output.drop_failed,
    }
    dataset = source = None
    if lineage.ranges is None:
        # Partitions were mixed: each depends on all of the input. If that is not known, nothing is ever finished.
        inputs = (
            str(uuid.uuid4())
            if lineage.inputs is None
            else in_threads(lambda part: _look(part, "parquet", output.folder, options), lineage.inputs)
        )
        common |= {"frame": job.frame.expr._name, "inputs": inputs}
        dataset = dataset_of(lineage)
    else:
        common["recipe"] = lineage.recipe
        source = getattr(lineage.reader, "source", None)
    before = {name: identity(info.get(FORMERLY, info)) for name, info in job.described.items()}
    # Earlier versions counted columns that other runs had put into the dataset's own files.
    parts = itertools.product(
        [described] if before == described else [described, before],
        [own] if len(own) == len(schema) else [own, schema],
    )
    others = [
        {**common, "embeddings": infos, "columns": _kinds(columns)}
        for infos, columns in itertools.islice(parts, 1, None)
    ]
    later: frozenset[str] = getattr(lineage.reader, "later_columns", frozenset())
    fewer = [column for column in own if column.name not in later]
    if len(fewer) < len(own):
        others.append({**common, "columns": _kinds(fewer)})

    def make(numbers: Sequence[int]) -> list[Target]:
        shards: Sequence[dict[str, Any] | None] = [None] * len(numbers)
        companions: Sequence[str | None] = [None] * len(numbers)
        what: tuple[str, Sequence[Any]] = ("partition", numbers)
        if lineage.ranges is not None:
            ranges = [lineage.ranges[number] for number in numbers]
            shards = in_threads(lambda part: _look(part, source, output.folder, options), ranges)
            companions = [part.shard.parquet for part in ranges]
            what = ("shard", shards)
        prints, *formerly = (fingerprints(each, *what) for each in (common, *others))
        lacking = formerly.pop() if len(fewer) < len(own) else [None] * len(numbers)
        return [
            Target(
                name=name_of(job, number),
                path=path_of(job, output, number),
                fingerprint=prints[place],
                shard=shards[place],
                companion=companions[place],
                source=source,
                dataset=dataset,
                formerly=tuple(former[place] for former in formerly),
                lacking=lacking[place],
            )
            for place, number in enumerate(numbers)
        ]

    return make


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


def read_footers(paths: Sequence[str], there: Collection[str], output: Output) -> dict[str, Footer]:
    """What those of some files that are there say of themselves, by path."""
    found = [path for path in paths if path in there] if there else []
    return dict(zip(found, in_threads(lambda path: read_footer(path, output.options), found), strict=True))


def find_unfinished(
    count: int,
    existing: Mapping[int, tuple[Target, Footer]],
    schema: pa.Schema,
    kept: Kept,
    job: Job,
    output: Output,
) -> tuple[dict[int, Target], list[int], dict[str, Any], list[Mapping[str, Any]]]:
    """Those targets that can take something over, numbers of those to write; remarks on and reports of the others.

    Parameters
    ----------
    count
        Of all targets.
    existing
        The targets of files that are there, by their numbers, with what these say of themselves.
    schema, kept, job
        What the files have, what of it other runs have made, and what is to be done.
    output
        Where they are.

    Raises
    ------
    OutputError
        Something is in the way that `overwrite` does not allow to replace.
    """
    columns = tuple(job.models) or ("",)
    known, conflicts = {number: target for number, (target, _) in existing.items()}, []
    remarks: dict[str, Any] = {}
    reports: list[Mapping[str, Any]] = []
    finished = {number for number, pair in existing.items() if _is_finished(*pair, columns, lacking=False)}
    # Files without the later columns all stay as they are, or are all made anew: of one schema.
    if len(finished) < len(existing) == count and all(
        _is_finished(*pair, columns, lacking=True) for pair in existing.values()
    ):
        finished = {*existing}
    for number, (target, footer) in existing.items():
        if number in finished:
            noticed, report = footer.told(target.name, columns[0])
            add_up(remarks, noticed)
            reports.append(report)
            continue
        reuse = _reusable(target, footer, job)
        keep = good_columns(kept, replace(target, reuse=reuse), footer, job)
        if reuse or keep:
            known[number] = target = replace(target, reuse=reuse, keep=keep)
        if not output.overwrite:
            problem = conflict(target, footer, schema, kept, job, output.in_place)
            if problem:
                conflicts.append(f"{target.path}: {problem}")
    if conflicts:
        raise OutputError(
            f"{counted(len(conflicts), 'file')} would be replaced: {conflicts[0]}. Use overwrite=True (--overwrite)"
            " to replace them, or write to another path"
        )
    return known, [number for number in range(count) if number not in finished], remarks, reports


def _is_finished(target: Target, existing: Footer, columns: tuple[str, ...], lacking: bool) -> bool:
    wanted = (target.fingerprint, *target.formerly, target.lacking if lacking else None)
    scores = {} if existing.record is None else existing.record.scores
    whole = not any(LACKING in scores.get(name, {}) for name in columns)
    return whole and existing.is_finished(*wanted, columns=columns)


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
        if LACKING not in record.scores.get(name, {})
        and record.url == shard.get("url")
        and record.run_of(name)["tar"] == tar is not None
        and name in existing.columns
        and record.read_by.get(name) == how
        and (
            name not in job.models
            or describe_difference(record.models.get(name, {}), job.models[name]) is None
        )
    ]
    scores = [
        name
        for name, said in job.scores.items()
        if "vectors"
        in said  # what a table gives is found again sooner than read; classes are among those above
        and {name for name in inputs_of(said) if name in job.described or name == said["vectors"]} <= {*found}
        and name in existing.columns
        and record.has_score(name, said["recipe"])
    ]
    return (*found, *scores)
