"""How many rows of an output a table has: a table that has none is joined by a wrong column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.frames.columns import to_array
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.rows.lookup import Lookup, key_texts, with_shards
from curator_dask.rows.near_lookup import NearLookup
from curator_dask.storage import Options
from curator_dask.threads import in_threads
from curator_dask.words import counted, none_of_these

_FEW = 3  # values that an error gives


@dataclass
class FoundRows:
    """What rows and a table have of each other.

    Attributes
    ----------
    table
        Path or URL of the table.
    on
        Column of the rows by which they find theirs, and that of the table: ``"key=id"``.
    found, without
        Rows that the table has, and that it has not.
    unasked
        Rows of the table that no row asked for.
    without_key
        Rows of the table that were left out, for they have no value to be found by.
    by_shard
        They find theirs by key and shard together.
    within
        They find theirs by hashes that differ in so many bits; None: by what is the same.
    examples_of_both
        Where no row was found, some values of the rows and of the table, in words; else empty.
    """

    table: str = ""
    on: str = ""
    found: int = 0
    without: int = 0
    unasked: int = 0
    without_key: int = 0
    by_shard: bool = False
    within: int | None = None
    examples_of_both: str = ""

    @property
    def told(self) -> str:
        """The counts in words."""
        how = " by key and shard" if self.by_shard else ""
        how += "" if self.within is None else f" within {counted(self.within, 'bit')}"
        asked = "no row asked for" if self.within is None else "no row is nearest to"
        left = f"; {counted(self.without_key, 'row')} of it without a value there, left out"
        return (
            f"{counted(self.found, 'row')} found in the table{how}, {self.without:,} without;"
            f" {counted(self.unasked, 'row')} of the table that {asked}"
            f"{left if self.without_key else ''}"
        )

    def __str__(self) -> str:
        return f"{self.told}{f'. {self.none_told}' if self.none_told else ''}"

    @property
    def none_told(self) -> str:
        """That no row was found, in words; empty where one was."""
        return f"NONE found: {self.examples_of_both}" if self.examples_of_both else ""


def count_found(
    summary: FoundRows, lookup: Lookup | NearLookup, paths: Sequence[str], options: Options
) -> None:
    """Count what rows of files find.

    Parameters
    ----------
    summary
        What the counts are put in; it says by what rows are found.
    lookup
        Finds the table's rows.
    paths
        Of the files.
    options
        For fsspec, where they are URLs.

    Raises
    ------
    OutputError
        A file has no such column, or it has no values that could be keys.
    """
    own, _, other = summary.on.partition("=")
    asked = np.zeros(len(lookup.firsts), bool)

    def look(path: str) -> tuple[int, int, list[Any]]:
        with faults_told(path), open_parquet(path, options) as file:
            names = file.schema_arrow.names
            if own not in names:
                raise OutputError(f"{path}: {none_of_these(own, names)} (--on)")
            table = file.read(columns=[own, *([URL_COLUMN] if summary.by_shard else [])])
            column = table.column(own)
        try:
            if isinstance(lookup, NearLookup):
                rows, _ = lookup.find(column)
            else:
                texts, is_number = key_texts(column)
                if summary.by_shard:
                    texts = with_shards(texts, to_array(table.column(URL_COLUMN)))
                rows = lookup.find_texts(texts, is_number)
        except ValueError as error:
            raise OutputError(f"{path}: column {own!r}: {error}. Give another column (--on)") from None
        found = rows[rows >= 0]
        asked[found] = True
        return len(found), len(rows), column.slice(0, _FEW).to_pylist()

    looked = in_threads(look, paths)
    summary.found = sum(found for found, _, _ in looked)
    summary.without = sum(rows for _, rows, _ in looked) - summary.found
    # Of rows with one value any is asked for where one is.
    firsts = lookup.firsts
    there = firsts >= 0
    summary.without_key = int(np.count_nonzero(~there))
    summary.unasked = int(np.count_nonzero(~asked[firsts[there]]))
    if not summary.found:
        ours = next((some for _, _, some in looked if some), [])
        given = lookup.values if isinstance(lookup, NearLookup) else lookup.texts
        theirs = given.filter(pa.array(there))[:_FEW].to_pylist()
        summary.examples_of_both = (
            f"column {own!r} of the rows has {_told(ours)}, {other!r} of the table {_told(theirs)}. By"
            " another column it is --on COLUMN=TABLE_COLUMN (on: in a recipe, on= in Python)"
        )


def _told(values: Sequence[Any]) -> str:
    return ", ".join(map(repr, values)) or "no values"
