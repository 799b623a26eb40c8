"""Columns that other runs have put into an output, kept by a run that adds its own or makes its own again.

So two models that are run in turn into one output each have their column there. Values go by shard and key, never by
position. What an earlier run has left counts as finished for as long as the file says the same of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import OutputError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.rows.known import StoredRows
from curator_dask.rows.reasons import NOT_MADE, as_stored, reason_for, reasons_in, reasons_of
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
    vectors
        By those that are of vectors, what made them: ``embeddings``, ``settings`` and ``read_by`` of the record.
    own
        Columns that this run makes.
    """

    types: pa.Schema = field(default_factory=lambda: pa.schema([]))
    order: tuple[str, ...] = ()
    vectors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own: tuple[str, ...] = ()

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.types.to_string(), self.order, self.vectors, self.own)

    def __bool__(self) -> bool:
        return bool(self.vectors)

    def reasons(self, whole: pa.Table, errors: pa.Array) -> pa.Array:
        """``image_error`` of the rows as it is of this run's columns alone."""
        if not self:
            return errors
        lacking = {name: whole.column(name).is_null() for name in self.own if name in whole.column_names}
        values: list[str | None] = [None] * len(errors)
        for row in pc.indices_nonzero(pc.is_valid(errors)).to_pylist():
            null = {name: nulls[row].as_py() for name, nulls in lacking.items()}
            values[row] = as_stored(reasons_of(errors[row].as_py(), null, self.vectors))
        return pa.array(values, pa.string())


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
    vectors: dict[str, Mapping[str, Any]] = {}
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
            vectors.setdefault(name, _origin(record, name))
        further = [
            name for name in wanted if mine and name not in schema.names and name not in record.embeddings
        ]
        for name in (*mine, *further):
            sources.setdefault(name, path)
    if not vectors:
        return Kept()
    made = tuple(name for name in schema.names if name in job.made)
    steps = tuple(name for step in job.steps for name in step.columns if name != ERROR_COLUMN)
    return Kept(_types(sources, options), _order(schema, sources, there), vectors, made or steps)


def others_in(footer: Footer, job: Job) -> list[str]:
    """Columns of vectors in a file that this job does not make."""
    record = footer.record
    return [name for name in footer.columns if record and name in record.embeddings and name not in job.made]


def good_columns(kept: Kept, target: Target, footer: Footer, id_col: str) -> tuple[str, ...]:
    """Columns in the file that is there whose values are still those of the target's rows."""
    record, shard = footer.record, target.shard or {}
    if not kept or record is None or not pairs_with(target, footer, id_col):
        return ()
    tar = shard.get("tar")  # None where it cannot be looked at, which does not say that it has changed
    vectors = {name for name in record.embeddings if tar is None or record.run_of(name)["tar"] == tar}
    same = tar is not None and record.shard == shard
    return tuple(
        name
        for name in kept.types.names
        if name in footer.columns and (name in vectors if name in kept.vectors else same)
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
    every = {"embeddings": record.embeddings, "settings": record.settings, "read_by": record.read_by}
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


@dataclass(frozen=True)
class Joined:
    """A partition's rows with the columns of other runs.

    Attributes
    ----------
    table
        The rows.
    failed
        bool (rows,): whether the image failed in any run's eyes.
    said
        What a record says of the columns of the other runs.
    not_made
        Columns of vectors of which rows have none, for want of a run.
    """

    table: pa.Table
    failed: np.ndarray
    said: FileRecord
    not_made: tuple[str, ...]


class Joining:
    """Gives the rows of a partition the columns of other runs.

    Parameters
    ----------
    kept
        These columns.
    target
        Where the rows go.
    stored
        The rows that are there, if `target` says that something of them is to be kept.
    record
        Of the file that is there.
    id_col
        Column of the keys.
    """

    def __init__(
        self, kept: Kept, target: Target, stored: StoredRows, record: FileRecord | None, id_col: str
    ) -> None:
        self._kept, self._target, self._id_col = kept, target, id_col
        self._stored = stored if target.keep else None
        self._record = record if target.keep else None

    def join(self, table: pa.Table, errors: pa.Array, overwrite: bool, drops: bool) -> Joined:
        """The rows with all columns.

        Parameters
        ----------
        table
            What this run has made of the rows.
        errors
            ``image_error`` of its own columns.
        overwrite
            Rows that are not among these may be lost.
        drops
            Rows whose image failed go elsewhere.

        Raises
        ------
        OutputError
            Rows would be lost.
        """
        kept, stored, before = self._kept, self._stored, self._record
        places = np.full(len(table), -1)
        if stored is not None:
            found = stored.places(*(table.column(name).to_pylist() for name in (self._id_col, URL_COLUMN)))
            places[:] = found
            lost = len(stored) - len({*found} - {-1})
            if lost and not overwrite:
                raise OutputError(
                    f"{self._target.path} has {lost} rows with values of {list(self._target.keep)} that this run would"
                    " not write. Write to another path, or use overwrite=True (--overwrite) to drop these rows"
                )
        columns = {name: table.column(name) for name in table.column_names}
        for name, kind in zip(kept.types.names, kept.types.types, strict=True):
            columns[name] = self._column(name, kind, places)
        merged, failed, lacking = self._reasons(columns, errors, places)
        columns[ERROR_COLUMN] = merged
        joined = pa.table({name: columns[name] for name in kept.order})
        stays = ~failed if drops else np.full(len(table), True)
        same = self._says_the_same(table, places, stays)
        earlier: dict[str, Any] = {}
        for name in kept.vectors:
            run = before.run_of(name) if before is not None and name in self._target.keep else None
            tar = (self._target.shard or {}).get("tar") if run is None else run["tar"]
            earlier[name] = run if same and run is not None else {"tar": tar}
        said = FileRecord(
            "",
            embeddings=self._said("embeddings"),
            settings=self._said("settings"),
            read_by=self._said("read_by"),
            scores={
                column: made
                for column, made in (before.scores if before is not None else {}).items()
                if column in self._target.keep
            },
            derived=before.derived if before is not None else (),
            earlier=earlier,
        )
        return Joined(joined, failed, said, tuple(lacking))

    def _column(self, name: str, kind: pa.DataType, places: np.ndarray) -> Any:
        if self._stored is None or name not in self._target.keep:
            return pa.nulls(len(places), kind)
        column = self._stored.table.column(name).combine_chunks()
        return column.take(pa.array(places, mask=places < 0))

    def _reasons(
        self, columns: Mapping[str, Any], errors: pa.Array, places: np.ndarray
    ) -> tuple[pa.Array, np.ndarray, list[str]]:
        """``image_error`` of all columns; whether an image failed; columns that some row lacks for want of a run."""
        kept = self._kept
        null = {name: np.asarray(columns[name].is_null()) for name in kept.vectors}
        own = {name: np.asarray(columns[name].is_null()) for name in kept.own if name in columns}
        said = self._stored.table.column(ERROR_COLUMN) if self._stored is not None else None
        values: list[str | None] = [None] * len(errors)
        failed, lacking = np.asarray(pc.is_valid(errors)).copy(), []
        for row in np.flatnonzero(np.any([failed, *null.values()], axis=0)).tolist():
            place = int(places[row])
            old = reasons_in(said[place].as_py()) if said is not None and place >= 0 else []
            reasons: dict[str, str | None] = {}
            for name, nulls in null.items():
                there = place >= 0 and name in self._target.keep
                reasons[name] = (reason_for(name, old) if there else _not_made(name)) if nulls[row] else None
                made = not (reasons[name] or "").startswith(NOT_MADE)
                failed[row] |= reasons[name] is not None and made
                lacking += [] if made or name in lacking else [name]
            mine = reasons_of(errors[row].as_py(), {name: bool(each[row]) for name, each in own.items()})
            values[row] = as_stored({**reasons, **mine})
        return pa.array(values, pa.string()), failed, lacking

    def _says_the_same(self, table: pa.Table, places: np.ndarray, stays: np.ndarray) -> bool:
        """Whether the file will still have the rows that it has, and the values that this run writes too."""
        if self._stored is None or self._record is None:
            return False
        old, here = self._stored.table, places[stays]
        if sorted(here.tolist()) != list(range(self._record.rows)):
            return False
        kept = self._kept
        shared = [
            name for name in old.column_names if name not in (ERROR_COLUMN, *kept.types.names, *kept.own)
        ]
        if any(name not in table.column_names for name in shared):
            return False
        now, before = table.filter(pa.array(stays)), old.select(shared).take(pa.array(here))
        return all(_equal(now.column(name), before.column(name)) for name in shared)

    def _said(self, kind: str) -> dict[str, Any]:
        """What is known of how the columns of vectors were made: by the file that is there, or by another."""
        found = {name: origin[kind] for name, origin in self._kept.vectors.items() if kind in origin}
        if self._record is not None:
            of_the_file: Mapping[str, Any] = getattr(self._record, kind)
            for name in self._kept.vectors:
                if name in self._target.keep:
                    found.pop(name, None)
                    found |= {name: of_the_file[name]} if name in of_the_file else {}
        return found


def _not_made(column: str) -> str:
    return (
        f"{NOT_MADE}: the model of this column has not seen the shard as it is now. Run it again, or retry"
        f" (curator-dask retry --column {column})"
    )


def _equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if one.type != other.type:
        try:
            other = other.cast(one.type)
        except pa.ArrowException:
            return False
    # As text NaN equals NaN.
    return bool(one.equals(other)) or str(one.to_pylist()) == str(other.to_pylist())
