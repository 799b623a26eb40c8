"""Columns that other runs have put into an output, kept by a run that adds its own or makes its own again.

So two models that are run in turn into one output each have their column there. Values go by shard and key, never by
position. What an earlier run has left counts as finished for as long as the file says the same of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, open_parquet
from curator_dask.frames.record import FIELDS, FileRecord, inputs_of
from curator_dask.rows.reasons import as_stored, reasons_in, reasons_of, said_once
from curator_dask.runs.sink import Job
from curator_dask.runs.targets import Target
from curator_dask.storage import Options


@dataclass(frozen=True)
class Kept:
    """The columns of other runs, the same for all files that a run writes.

    Attributes
    ----------
    types
        Of the columns.
    order
        Of all columns of a file.
    models
        By those that models have made of images, what made them: ``embeddings``, ``settings``, ``read_by`` and
        ``scores`` of the record.
    own
        Columns that models make in this run.
    followers
        Of all these columns those that have their values, and lack them, together with another of theirs: the reason
        is said of that one alone.
    label
        What else this run makes of images; empty: nothing.
    """

    types: pa.Schema = field(default_factory=lambda: pa.schema([]))
    order: tuple[str, ...] = ()
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    followers: tuple[str, ...] = ()
    label: str = ""

    def __dask_tokenize__(self) -> Any:
        names = (self.order, self.models, self.own, self.followers, self.label)
        return (type(self).__name__, self.types.to_string(), *names)

    def __bool__(self) -> bool:
        return bool(self.types.names)

    def reasons(self, whole: pa.Table, errors: pa.Array) -> pa.Array:
        """``image_error`` of the rows as it is of this run's columns alone."""
        if not self:
            return errors
        lacking = {name: whole.column(name).is_null() for name in self.own if name in whole.column_names}
        values: list[str | None] = [None] * len(errors)
        for row in pc.indices_nonzero(pc.is_valid(errors)).to_pylist():
            null = {name: nulls[row].as_py() for name, nulls in lacking.items()}
            reasons = self.own_reasons(errors[row].as_py(), null)
            values[row] = as_stored(said_once(reasons, self.followers))
        return pa.array(values, pa.string())

    def own_reasons(self, stored: str | None, lacking: Mapping[str, bool]) -> dict[str, str | None]:
        """What a value of ``image_error`` says of what this run makes, given which of its columns have no value."""
        if not lacking and self.label and any(each.column is None for each in reasons_in(stored)):
            return {self.label: stored}
        return reasons_of(stored, lacking, self.models)


def find_kept(
    job: Job,
    schema: pa.Schema,
    there: Mapping[str, Footer],
    in_place: bool,
    options: Options,
) -> Kept:
    """What other runs have put into the files that a run would write.

    Parameters
    ----------
    job, schema
        What is to be done, and the columns that come of it.
    there
        The files that are there already, by path.
    in_place
        They are the dataset's own.
    options
        For fsspec, of the files.
    """
    # Where rows are not known by the keys that they were read with, nothing can be given to them.
    known_rows = job.lineage.ranges is not None and job.keeps_vectors
    if not known_rows or not {job.id_col, URL_COLUMN} <= {*schema.names}:
        return Kept()
    read = getattr(job.lineage.reader, "schema", schema).names
    urls = {part.shard.url for part in job.lineage.ranges or ()}
    models: dict[str, Mapping[str, Any]] = {}
    sources: dict[str, str] = {}  # of the columns, a file that has it
    for path, footer in there.items():
        record = footer.record
        if record is None or record.url not in urls or not _has_keys(footer, job.id_col):
            continue
        # Not what comes with the rows from elsewhere, nor what was read here and is not wanted any more.
        wanted = [
            name
            for name in footer.columns
            if (in_place if name in schema.names else not (in_place and name in read))
        ]
        mine = [name for name in others_in(footer, job) if name in wanted]
        for name in mine:
            models.setdefault(name, _origin(record, name))
        # What stands beside them, or beside what this run adds, is of other runs too, and so are scores and
        # statistics of the images.
        adds = not {*job.models} <= {*record.models}
        further = [
            name
            for name in wanted
            if (mine or adds or name in record.scores or name in record.read_by)
            and name not in schema.names
            and name not in record.models
        ]
        for name in (*mine, *further):
            sources.setdefault(name, path)
    if not sources:
        return Kept()
    own = tuple(name for name in schema.names if name in job.models)
    looks = [
        step for step in job.steps if step.needs & {"bytes", "pixels"} and not {*step.columns} & {*job.models}
    ]
    label = looks[0].label if looks else ""
    # A model's settings are with the first of its columns.
    others = [name for name, said in models.items() if not {"settings", "embeddings"} & {*said}]
    return Kept(
        _types(sources, options),
        _order(schema, sources, there),
        models,
        own,
        (*others, *job.followers),
        label,
    )


def others_in(footer: Footer, job: Job) -> list[str]:
    """Columns in a file that models have made, and not those of this job."""
    record = footer.record
    return [name for name in footer.columns if record and name in record.models and name not in job.models]


def good_columns(kept: Kept, target: Target, footer: Footer, job: Job) -> tuple[str, ...]:
    """Columns in the file that is there whose values are still those of the target's rows."""
    record, shard = footer.record, target.shard or {}
    if not kept or record is None or not pairs_with(target, footer, job.id_col):
        return ()
    tar = shard.get("tar")  # None where it cannot be looked at, which does not say that it has changed
    models = {name for name in record.models if tar is None or record.run_of(name)["tar"] == tar}
    same = tar is not None and record.shard == shard
    # What rows say may have changed with their Parquet.
    models -= set() if same else {name for name in models if FIELDS in record.scores.get(name, {})}
    # What was made of vectors does not go with those that are made anew; of which it was is known of scores alone.
    anew = [name for name in job.made if name in record.embeddings and name not in target.reuse]
    old = {
        name
        for name in record.derived
        if anew and (name not in record.scores or {*inputs_of(record.scores[name])} & {*anew})
    }
    return tuple(
        name
        for name in kept.types.names
        if name in footer.columns and (name in models if name in kept.models else same and name not in old)
    )


def pairs_with(target: Target, footer: Footer, id_col: str) -> bool:
    """Whether the rows of a file can be found by those of a target: of the same range of the same shard."""
    record, shard = footer.record, target.shard
    if record is None or record.shard is None or shard is None or record.id_col != id_col:
        return False
    return _has_keys(footer, id_col) and all(record.shard.get(k) == shard.get(k) for k in ("url", "rows"))


def _has_keys(footer: Footer, id_col: str) -> bool:
    return {id_col, URL_COLUMN, ERROR_COLUMN} <= {*footer.columns}


def _origin(record: FileRecord, name: str) -> dict[str, Any]:
    kinds = ("embeddings", "settings", "read_by", "scores")
    every: dict[str, Mapping[str, Any]] = {kind: getattr(record, kind) for kind in kinds}
    return {kind: values[name] for kind, values in every.items() if name in values}


def _types(sources: Mapping[str, str], options: Options) -> pa.Schema:
    schemas = {}
    for path in dict.fromkeys(sources.values()):
        with open_parquet(path, options) as file:
            schemas[path] = file.schema_arrow
    return pa.schema([pa.field(name, schemas[path].field(name).type) for name, path in sources.items()])


def _order(schema: pa.Schema, sources: Mapping[str, str], there: Mapping[str, Footer]) -> tuple[str, ...]:
    """That of the file which has most of the columns; what it lacks stands before ``image_error``."""
    names = list(dict.fromkeys([*schema.names, *sources]))
    fullest = max(there.values(), key=lambda footer: len({*footer.columns} & {*names}))
    order = [name for name in fullest.columns if name in names]
    at = order.index(ERROR_COLUMN) if ERROR_COLUMN in order else len(order)
    return (*order[:at], *(name for name in names if name not in order), *order[at:])
