"""A look at every file of an output: what is counted of all rows, and what is taken of a few."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.cluster.mapping import on_cluster
from curator_dask.errors import OutputError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.names import CAPTION_COLUMN, ERROR_COLUMN, URL_COLUMN
from curator_dask.report.folder import File, Folder, blocks
from curator_dask.report.rows import Rows, column_values, join_rows, numbers_of, short
from curator_dask.rows.reasons import reasons_in
from curator_dask.storage import Options

#: Failed rows of each reason that are shown.
EXAMPLES = 6


class Failure(NamedTuple):
    """A row that failed."""

    key: str
    url: str | None
    reason: str
    caption: str | None


@dataclass
class Look:
    """What a file says of its rows.

    Attributes
    ----------
    valid, broken
        Rows with a vector, and those whose vector has a value that is not finite.
    reasons, examples
        How many rows failed for each reason, and a few of them.
    known, low, high
        By column of numbers: how many there are (not null, not NaN), and the smallest and the largest finite one.
    rows
        Those that were asked for.
    """

    valid: int = 0
    broken: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Failure]] = field(default_factory=dict)
    known: Counter[str] = field(default_factory=Counter)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)

    def add(self, other: Look) -> None:
        """Count another file's, but for its rows."""
        self.valid += other.valid
        self.broken += other.broken
        self.reasons.update(other.reasons)
        self.known.update(other.known)
        for reason, some in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine += some[: EXAMPLES - len(mine)]
        for name in other.low:
            self.low[name] = min(other.low[name], self.low.get(name, np.inf))
            self.high[name] = max(other.high[name], self.high.get(name, -np.inf))


@dataclass(frozen=True)
class LookAt:
    """Looks at a file, block after block.

    Attributes
    ----------
    numbers, texts, vectors
        Columns.
    options
        For fsspec.
    """

    numbers: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: str | None
    options: Options

    def __call__(self, task: tuple[File, np.ndarray]) -> Look:
        """Look; the rows are numbered from the file's first, in rising order."""
        file, wanted = task
        look, parts = Look(), []
        for start, table in blocks(file, self._read(file), self.options):
            self._count(look, table, file.id_col)
            end = start + table.num_rows
            inside = wanted[(wanted >= start) & (wanted < end)] - start
            if len(inside):
                parts.append(self._rows(table.take(pa.array(inside)), file.id_col))
        look.rows = join_rows(parts, self.numbers, self.texts)
        return look

    def _read(self, file: File) -> list[str]:
        more = [file.id_col, URL_COLUMN, ERROR_COLUMN, *([self.vectors] if self.vectors else [])]
        return [*self.numbers, *self.texts, *more]

    def _count(self, look: Look, table: pa.Table, id_col: str) -> None:
        if self.vectors is not None and self.vectors in table.column_names:
            vectors, valid = self._vectors(table)
            finite = np.isfinite(vectors).all(axis=1)  # zeros where there is none
            look.valid += int((valid & finite).sum())
            look.broken += int((~finite).sum())
        for name in self.numbers:
            if name not in table.column_names:
                continue
            values = numbers_of(table.column(name))
            values = values[~np.isnan(values)]
            look.known[name] += len(values)
            values = values[np.isfinite(values)]
            if len(values):
                look.low[name] = min(float(values.min()), look.low.get(name, np.inf))
                look.high[name] = max(float(values.max()), look.high.get(name, -np.inf))
        count_failures(look, table, id_col)

    def _rows(self, table: pa.Table, id_col: str) -> Rows:
        nothing: list[str | None] = [None] * table.num_rows
        names = table.column_names
        found = Rows(
            keys=column_values(table, id_col),
            urls=[None if each is None else str(each) for each in column_values(table, URL_COLUMN)],
            numbers={name: numbers_of(table.column(name)) for name in self.numbers if name in names},
            texts={name: [short(each) for each in column_values(table, name)] for name in self.texts},
            errors=column_values(table, ERROR_COLUMN) if ERROR_COLUMN in names else nothing,
        )
        if self.vectors is not None and self.vectors in names:
            found.vectors, found.valid = self._vectors(table)
        else:
            found.valid = np.zeros(table.num_rows, bool)
        return found

    def _vectors(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 (rows, dim) and bool (rows,): where there is one."""
        try:
            return list_to_matrix(table.column(self.vectors))
        except ValueError as error:
            raise OutputError(f"{self.vectors!r}: {error}") from error


def count_failures(look: Look, table: pa.Table, id_col: str) -> None:
    """Count the rows that failed, and keep some of each reason."""
    if ERROR_COLUMN not in table.column_names:
        return
    errors = table.column(ERROR_COLUMN)
    labels: dict[str, str] = {}
    for said in pc.value_counts(errors.drop_null()).to_pylist():
        labels[said["values"]] = label = reasons_in(said["values"])[0].label
        look.reasons[label] += said["counts"]
    if not labels:
        return
    enough = {label for label, some in look.examples.items() if len(some) >= EXAMPLES}
    for row in pc.indices_nonzero(pc.is_valid(errors)).to_pylist():
        if len(enough) == len(look.reasons):
            break
        reason = errors[row].as_py()
        some = look.examples.setdefault(labels[reason], [])
        if len(some) < EXAMPLES:
            one = table.slice(row, 1)
            key, url, caption = (column_values(one, name)[0] for name in (id_col, URL_COLUMN, CAPTION_COLUMN))
            some.append(Failure(str(key), url, reason, short(caption)))
        if len(some) >= EXAMPLES:
            enough.add(labels[reason])


def pick_rows(rows: int, most: int, seed: int) -> np.ndarray:
    """int64: numbers of rows in rising order, all of them or a random sample; the same for the same seed."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def look_at(folder: Folder, picked: np.ndarray) -> Look:
    """What all files say of their rows, with the rows that were picked."""
    look_of = LookAt(tuple(folder.numbers), tuple(folder.texts), folder.vectors, folder.options)
    tasks = []
    for file in folder.files:
        start, end = np.searchsorted(picked, [file.first, file.first + file.rows])
        tasks.append((file, picked[start:end] - file.first))
    total, parts = Look(), []
    for each in on_cluster(look_of, tasks):
        total.add(each)
        parts.append(each.rows)
    total.rows = join_rows(parts, look_of.numbers, look_of.texts)
    return total


def look_aside(folder: Folder) -> Look:
    """Reasons and examples of the failed rows that are not among the others."""
    total = Look()
    for file in folder.aside:
        look = Look()
        for _, table in blocks(file, [file.id_col, URL_COLUMN, ERROR_COLUMN, CAPTION_COLUMN], folder.options):
            count_failures(look, table, file.id_col)
        total.add(look)
    return total
