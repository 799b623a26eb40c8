"""Writing the rows that were retrieved: those of each file of the pool into a file of the same name, and the pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from curator_dask.dedup.nearest import NOWHERE, Best
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer, write_table
from curator_dask.frames.record import FILTERED, FileRecord
from curator_dask.outputs.given import Names
from curator_dask.outputs.placing import locate
from curator_dask.outputs.taken_down import without_taken_down
from curator_dask.outputs.writing import Output
from curator_dask.runs.reports import errors_of, report_frame, report_of, report_since
from curator_dask.storage import is_remote, join

#: Columns that rows get: how many queries have found them, and the largest cosine with one of these.
BY, SIMILARITY = "retrieved_by", "retrieved_similarity"
#: In what a record says of the first: what was counted over all files.
FOUND = "found"


class Chosen(NamedTuple):
    """Rows of a file that were found.

    Attributes
    ----------
    name
        Of the file.
    mark
        The fingerprint of what is written.
    rows
        int64 (n,): their numbers, which rise.
    queries
        int32 (n,): how many have found each.
    cosines
        float32 (n,): the largest.
    """

    name: str
    mark: str
    rows: np.ndarray
    queries: np.ndarray
    cosines: np.ndarray


@dataclass(frozen=True)
class WriteRetrieved:
    """Writes the rows of a file that were found, with two columns more.

    Attributes
    ----------
    source, target
        Where the pool's files are, and where they go.
    column
        Of the vectors.
    top, least, queries
        How many rows a query has, at most; their cosine, at least; how many queries there are.
    said
        Of the queries, in words.
    recipe
        What identifies what is found.
    found
        What was counted, for the record: a call that has nothing left to do tells it again.
    given_up
        The file kills workers: it is not written, for this reason.
    """

    source: Output
    target: Output
    column: str
    top: int
    least: float
    queries: int
    said: str
    recipe: str
    found: Mapping[str, Any] = field(default_factory=dict)
    given_up: str | None = None

    def give_up(self, reason: str) -> WriteRetrieved:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, chosen: Chosen) -> pd.DataFrame:
        """Do it; returns a report as `WritePartition` does."""
        path = join(self.source.folder, chosen.name)
        if self.given_up is not None:
            raise ShardError(f"{path}: {self.given_up}")
        kept, rows, record = self._read(path, chosen.rows)
        kept = kept.drop_columns([name for name in (BY, SIMILARITY) if name in kept.column_names])
        kept = kept.append_column(BY, pa.array(chosen.queries, pa.int32()))
        kept = kept.append_column(SIMILARITY, pa.array(chosen.cosines, pa.float32()))
        shown, id_col = chosen.name.removesuffix(".parquet"), record.id_col or "key"
        kept = without_taken_down(self.target.folder, self.target.options, kept, id_col)
        filtered = {**dict.fromkeys(("where", "top", "at_most", "by")), "nearest": [self.top, self.queries]}
        made = {"head": f"nearest to {self.said}", "vectors": self.column, "recipe": self.recipe}
        record = replace(
            record,
            fingerprint=chosen.mark,
            complete_as="",
            removed=0,
            scores={**record.scores, BY: {**made, FOUND: self.found}, SIMILARITY: made},
            report=report_of(shown, kept, id_col),
            earlier={},
            # A retry would bring rows back that were not found.
            derived=tuple(dict.fromkeys([*record.derived, FILTERED])),
            filters=(*record.filters, {**filtered, "rows": rows, "kept": len(kept)}),
        )
        write_table(join(self.target.folder, chosen.name), kept, record, self.target.options)
        return report_frame(report_since(shown, kept, id_col, errors_of(kept)))

    def _read(self, path: str, rows: np.ndarray) -> tuple[pa.Table, int, FileRecord]:
        """Those rows, of how many, and what the file says of itself; row groups without them are not read."""
        parts, first = [], 0
        with faults_told(path, ShardError), open_parquet(path, self.source.options) as file:
            schema = file.schema_arrow
            for number in range(file.metadata.num_row_groups):
                last = first + file.metadata.row_group(number).num_rows
                start, end = np.searchsorted(rows, [first, last])
                if end > start:
                    parts.append(file.read_row_group(number).take(pa.array(rows[start:end] - first)))
                first = last
        plain = schema.remove_metadata()
        kept = pa.concat_tables(
            [plain.empty_table(), *(each.replace_schema_metadata(None) for each in parts)]
        )
        return kept, first, FileRecord.parse(schema.metadata) or FileRecord("")


def place_of_pairs(pairs: str | os.PathLike[str], folders: Sequence[str]) -> str:
    """Where the pairs go: not among files that are read as rows.

    Parameters
    ----------
    pairs
        The file.
    folders
        Of the pool, the output and the queries, each as `locate` has it.

    Raises
    ------
    ConfigError
        It is in one of the folders, or has no name of a Parquet file.
    """
    path = locate(os.fspath(pairs), None)
    if not path.endswith(".parquet"):
        raise ConfigError(
            f"pairs={path!r}: expected the name of a Parquet file, such as pairs.parquet (--pairs)"
        )
    place = _plain(path)
    for folder in folders:
        if place.startswith(f"{_plain(folder)}/"):
            raise ConfigError(
                f"pairs={path!r}: who reads {folder} would take its rows for those: give a place outside (--pairs)"
            )
    return path


def _plain(path: str) -> str:
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def check_pairs_free(path: str | None, mark: str, overwrite: bool) -> None:
    """Raise OutputError where the pairs would replace a file of something else."""
    if path is None or overwrite:
        return
    footer = read_footer(path)
    if not footer.is_finished(mark) and (footer.columns or footer.fault):
        why = footer.fault or "has other things than these pairs"
        raise OutputError(
            f"{path}: is there, and {why}. Give another name, or use overwrite=True (--overwrite)"
        )


def pairs_table(best: Best, queries: Names, rows: Names, places: np.ndarray) -> pa.Table:
    """A row for each pair, by query and rank.

    Parameters
    ----------
    best
        What was found.
    queries
        Of the queries, those that can be compared.
    rows, places
        Of the rows found, and where these are: their places rise.
    """
    of, rank = np.nonzero(best.places != NOWHERE)
    at = np.searchsorted(places, best.places[of, rank])
    return pa.table(
        {
            "query": _taken(queries.keys, of),
            "query_url": _taken(queries.urls, of),
            "key": _taken(rows.keys, at),
            URL_COLUMN: _taken(rows.urls, at),
            "rank": pa.array(rank + 1, pa.int32()),
            "similarity": pa.array(best.cosines[of, rank], pa.float32()),
        }
    )


def _taken(values: Sequence[Any], places: np.ndarray) -> pa.Array:
    return pa.array([None if each is None else _text(each) for each in values], pa.string()).take(
        pa.array(places)
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
