"""Columns whose values come again and again (labels, formats, true and false): how many rows have each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.cluster.mapping import on_cluster
from curator_dask.frames.names import URL_COLUMN
from curator_dask.report.folder import File, Folder, blocks
from curator_dask.report.looking import Look
from curator_dask.report.measures import sql_name
from curator_dask.report.rows import TEXT
from curator_dask.storage import Options

#: Columns that a page takes, and values of each that it names.
COLUMNS, NAMED = 12, 1000
_FEW = 11  # values that are categories however few rows there are
_SEVERAL = 4  # rows that a value has at the least, in the mean, where there are more


@dataclass
class Category:
    """A column whose values come again and again.

    Attributes
    ----------
    name
        Of the column.
    is_flag
        Its values are true and false.
    counts
        Of all rows, how many have each value.
    """

    name: str
    is_flag: bool
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def sql(self) -> str:
        """Its name in a condition."""
        return sql_name(self.name)

    @property
    def named(self) -> list[tuple[str, int]]:
        """The commonest values, at most `NAMED`, and how many rows have each; by name where these are equal."""
        return sorted(self.counts.items(), key=lambda each: (-each[1], each[0]))[:NAMED]


def find_categories(folder: Folder, look: Look) -> list[Category]:
    """The columns of text, and of true and false, whose values come again and again in the sample.

    What the run has made comes first, before what the dataset had.
    """
    keys = {URL_COLUMN, *(file.id_col for file in folder.files)}
    names = [name for name in folder.texts if name not in keys and _is_category(look.rows.texts[name])]
    made = {name for record in folder.records for name in (*record.scores, *record.derived)}
    names.sort(key=lambda name: name not in made)
    return [Category(name, pa.types.is_boolean(folder.types[name])) for name in names[:COLUMNS]]


def _is_category(texts: Sequence[str | None]) -> bool:
    known = [text for text in texts if text is not None]
    different = set(known)
    # What is cut is not the value.
    return 1 < len(different) <= max(_FEW, len(known) // _SEVERAL) and max(map(len, different)) < TEXT


@dataclass(frozen=True)
class CountValues:
    """Counts the values of a file's columns.

    Attributes
    ----------
    names
        Of the columns.
    options
        For fsspec.
    """

    names: tuple[str, ...]
    options: Options

    def __call__(self, file: File) -> dict[str, Counter[str]]:
        """By column, how many rows have each value; nulls are left out."""
        found: dict[str, Counter[str]] = {name: Counter() for name in self.names}
        for _, table in blocks(file, self.names, self.options):
            for name in table.column_names:
                values, counts = pc.value_counts(table.column(name).drop_null()).flatten()
                texts = values.cast(pa.string()).to_pylist()
                found[name].update(dict(zip(texts, counts.to_pylist(), strict=True)))
        return found


def count_categories(folder: Folder, categories: Sequence[Category]) -> None:
    """Count all rows by their values."""
    if not categories:
        return
    count = CountValues(tuple(each.name for each in categories), folder.options)
    for found in on_cluster(count, folder.files):
        for each in categories:
            each.counts.update(found[each.name])
