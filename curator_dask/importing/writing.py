"""Writing one file of an output from a table and the vectors of its rows, on the worker that does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.importing.checking import check_rows, row_range, take_vectors
from curator_dask.importing.layouts import Pair
from curator_dask.outputs.taken_down import without_taken_down
from curator_dask.outputs.writing import Output
from curator_dask.rows.ids import check_ids
from curator_dask.rows.reasons import as_stored
from curator_dask.runs.reports import report_frame, report_of
from curator_dask.storage import Options, join
from curator_dask.webdataset.parquet import ParquetShard, numbered_keys
from curator_dask.webdataset.stamps import check_planned, stamp

#: Of how vectors are taken: part of the fingerprint.
_VERSION = 1


@dataclass(frozen=True)
class Piece:
    """Rows of a table that go into one file.

    Attributes
    ----------
    pair
        The table, and its vectors.
    rows
        Of the whole table; None: it cannot be read.
    start, stop
        Of the piece.
    part
        Its number; None: it is all of the table.
    fault
        Why nothing of the table is taken.
    """

    pair: Pair
    rows: int | None
    start: int
    stop: int
    part: int | None = None
    fault: str | None = None

    @property
    def name(self) -> str:
        """Of the file."""
        return self.pair.name if self.part is None else f"{self.pair.name}.part-{self.part:05d}"

    @property
    def file(self) -> str:
        """The same, with its suffix."""
        return f"{self.name}.parquet"

    def __dask_tokenize__(self) -> Any:
        return (
            type(self).__name__,
            self.pair.table,
            self.pair.vectors,
            self.rows,
            self.start,
            self.stop,
            self.part,
            self.fault,
        )


@dataclass(frozen=True)
class ImportFile:
    """Writes one file.

    Attributes
    ----------
    schema
        Of the tables' columns that are kept, key and shard among them, if they have these.
    id_col, numbered
        Column of the keys, and whether they are made of the rows' numbers.
    claims
        By column of vectors, what the record says of them.
    normalize
        Divide each vector by its L2 norm.
    options
        For fsspec, of what is read.
    target
        Where it goes.
    stored
        Of the vectors' numbers.
    given_up
        The file kills workers: it is not written, for this reason.
    """

    schema: pa.Schema
    id_col: str
    numbered: bool
    claims: Mapping[str, Mapping[str, Any]]
    normalize: bool
    options: Options
    target: Output
    stored: str = "float32"
    given_up: str | None = None

    def __dask_tokenize__(self) -> Any:
        said = {**vars(self), "schema": self.schema.to_string(), "target": vars(self.target)}
        return (type(self).__name__, sorted(said.items(), key=lambda each: each[0]))

    def give_up(self, reason: str) -> ImportFile:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def shard(self, piece: Piece) -> dict[str, Any]:
        """The state of the table, as records have that of a shard."""
        stop = piece.stop if piece.part is not None else None
        return {
            "url": self.url(piece.pair),
            "rows": [piece.start, stop],
            "tar": self._stamp(piece.pair.table),
        }

    def url(self, pair: Pair) -> str:
        """The shard of a table's rows, as `from_parquet` calls it: where the file has images, rows find theirs."""
        return ParquetShard(pair.table, None, None if self.numbered else self.id_col).url

    def read_by(self, piece: Piece) -> dict[str, str]:
        """By column of vectors, how they are taken."""
        how = "normalized" if self.normalize else "as they are"
        how += f" {self.stored}" * (self.stored != "float32")
        return {column: f"import {source.name or 'npy'} {how}" for column, source in piece.pair.vectors}

    @property
    def made(self) -> dict[str, dict[str, Any]]:
        """By column of vectors, what parts of one import must say alike; as JSON has it."""
        how = {"normalized": self.normalize, "id_col": self.id_col, "numbered": self.numbered}
        how |= {"stored": self.stored}
        columns = sorted(f"{each.name}: {each.type}" for each in self.schema)
        return {name: {**each, **how, "columns": columns} for name, each in self.claims.items()}

    def mark(self, piece: Piece) -> str:
        """The fingerprint of what is written."""
        said = {
            "import": _VERSION,
            "shard": self.shard(piece),
            "vectors": [self._stamp(each) for each in piece.pair.arrays],
            "claims": {name: dict(each) for name, each in self.claims.items()},
            "read_by": self.read_by(piece),
            "key": [self.id_col, self.numbered],
            "columns": sorted(f"{each.name}: {each.type}" for each in self.schema),
        }
        return fingerprint(said)

    def replaces(self, piece: Piece, footer: Footer) -> bool:
        """Whether a file is what the same call has made of the same table, which has changed since."""
        record = footer.record
        return (
            record is not None
            and record.url == self.url(piece.pair)
            and record.id_col == self.id_col
            and record.read_by == self.read_by(piece)
            and record.embeddings == self.claims
        )

    def _stamp(self, path: str) -> dict[str, Any] | None:
        try:
            return vars(stamp(path, self.options))
        except ShardError:  # it is not there: who reads it says so
            return None

    def __call__(self, piece: Piece) -> pd.DataFrame:
        """Do it; returns a report as `WritePartition` does."""
        if why := self.given_up or piece.fault:
            raise ShardError(f"{piece.pair.table}: {why}")
        # Before anything is read: a file that changes meanwhile is not taken for what it was.
        shard, mark = self.shard(piece), self.mark(piece)
        check_rows(piece.pair.table, piece.rows, self.options)
        table, reasons = self._rows(piece), {}
        for column, source in piece.pair.vectors:
            dim = int(self.claims[column]["dim"])
            span = (piece.start, piece.stop, piece.rows or 0)  # None is refused above
            taken = take_vectors(
                source, piece.pair.table, *span, dim, self.normalize, self.options, self.stored
            )
            table = table.append_column(column, taken.column())
            reasons[column] = taken.reasons
        errors = [
            as_stored(dict(zip(reasons, row, strict=True))) for row in zip(*reasons.values(), strict=True)
        ]
        if ERROR_COLUMN in table.column_names:
            before = table.column(ERROR_COLUMN).to_pylist()
            errors = [new or old for new, old in zip(errors, before, strict=True)]
            table = table.drop_columns([ERROR_COLUMN])
        table = table.append_column(ERROR_COLUMN, pa.array(errors, pa.string()))
        if self.mark(piece) != mark:
            raise ShardError(
                f"{piece.pair.table}: this file or its vectors were changed while they were read: run again when they"
                " are whole"
            )
        check_planned({"url": piece.pair.table, "tar": shard["tar"]})
        table = without_taken_down(self.target.folder, self.target.options, table, self.id_col)
        report = report_of(piece.name, table, self.id_col)
        record = FileRecord(
            fingerprint=mark,
            complete_as=mark,
            id_col=self.id_col,
            shard=shard,
            source="parquet",
            embeddings=self.claims,
            settings=dict.fromkeys(self.claims),
            read_by=self.read_by(piece),
            report=report,
        )
        write_table(join(self.target.folder, piece.file), table, record, self.target.options)
        return report_frame(report)

    def _rows(self, piece: Piece) -> pa.Table:
        """The rows of the table, with key and shard."""
        path, count = piece.pair.table, piece.stop - piece.start
        names = [each.name for each in self.schema]
        batches = [batch for _, batch in row_range(path, names, piece.start, piece.stop, self.options)]
        found = pa.Table.from_batches(batches) if batches else pa.table({})
        if batches and len(found) != count:
            raise ShardError(f"{path}: expected {count} rows, found {len(found)}: it was changed. Run again")
        columns: dict[str, pa.Array | pa.ChunkedArray] = {}
        if self.numbered:
            columns[self.id_col] = pa.array(
                numbered_keys(piece.pair.name, range(piece.start, piece.stop)), pa.string()
            )
        for each in self.schema:
            if each.name not in found.column_names:
                columns[each.name] = pa.nulls(count, each.type)
                continue
            try:
                columns[each.name] = found.column(each.name).cast(each.type)
            except pa.ArrowException as error:
                raise ShardError(
                    f"{path}: the column {each.name!r} is {found.column(each.name).type}, and {each.type} in other"
                    f" files ({error}). Write it with their type, or leave it out (columns=, --columns)"
                ) from error
        if not self.numbered:
            if count and self.id_col not in found.column_names:
                raise ShardError(f"{path}: expected the column {self.id_col!r} of the keys, found none")
            check_ids(columns[self.id_col], self.id_col, path)
        columns.setdefault(URL_COLUMN, pa.array([self.url(piece.pair)] * count, pa.string()))
        url = columns.pop(URL_COLUMN)
        return pa.table({**columns, URL_COLUMN: url})
