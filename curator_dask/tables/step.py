"""The step that gives rows columns of a table."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curator_dask.errors import DatasetError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.record import BY_SHARD, ON, TABLE
from curator_dask.rows.lookup import key_texts, with_shards
from curator_dask.rows.near_lookup import NearLookup
from curator_dask.rows.user_tables import UserTable
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work
from curator_dask.tables.held import HELD, HeldTable
from curator_dask.tokens import tokenize


@dataclass(frozen=True, eq=False)
class JoinTable(RowStep):
    """The step that adds columns of a table.

    Attributes
    ----------
    table
        Which.
    on
        Column of the rows by which they find theirs.
    kinds
        Names and types of the columns.
    mark
        Name of the column that says whether a row was found; None: there is none.
    digest
        Of the table's content, which every worker must find.
    within
        Bits in which hashes may differ; None: values are the same.
    """

    table: UserTable
    on: str
    kinds: tuple[tuple[str, pa.DataType], ...]
    mark: str | None
    digest: str
    given_up: str | None = None
    within: int | None = None

    may_kill = False
    needs = frozenset({"rows"})

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.recipe, self.table.path)

    @property
    def label(self) -> str:
        """The table's name."""
        return posixpath.basename(self.table.path.rstrip("/"))

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Those of the table, the mark, and in how many bits it is off."""
        return {
            **dict(self.kinds),
            **dict(zip(marks_of(self.mark, self.within), (pa.bool_(), pa.int32()), strict=False)),
        }

    @property
    def recipe(self) -> tuple[Any, ...]:
        """The table's content, and what is taken of it."""
        kinds = tuple((name, str(kind)) for name, kind in self.kinds)
        return ("join", self.digest, self.on, self.table.key, kinds, self.mark or "", *self._how)

    @property
    def _how(self) -> list[str]:
        """What tells a join by key and shard, or by near hashes, from others; nothing of one by the key alone."""
        near = [] if self.within is None else [f"within {self.within} bits"]
        return [*near, *([URL_COLUMN] if self.table.by_shard else [])]

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of the table."""
        said = {"head": self.label, ON: self.on, TABLE: self.table.path}
        said |= {BY_SHARD: URL_COLUMN} if self.table.by_shard else {}
        recipe = ("join", self.digest, self.on, self.table.key, *self._how)
        return {
            name: {**said, "recipe": fingerprint({"recipe": (*recipe, str(kind), name == self.mark or name)})}
            for name, kind in self.columns.items()
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Have the table in memory; of vectors it makes none."""
        with HELD.lease(self._spec, self._build):
            return {}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the table ready for some rows."""
        if not len(rows):
            yield Known(Made.of_no_rows(self.columns))
            return
        with HELD.lease(self._spec, self._build) as held:
            yield _Joining(self, rows, held)

    @property
    def _spec(self) -> Any:
        return tokenize(self)

    def _build(self) -> HeldTable:
        with self.table.steady():
            if self.table.digest() != self.digest:
                raise DatasetError(
                    f"{self.table.path}: is not what the client has found there. Give every node the same files; if"
                    " they have changed since, run again"
                )
            return HeldTable.read(self.table, [name for name, _ in self.kinds], self.within)


class _Joining(Work):
    """The columns of the rows of one partition."""

    def __init__(self, step: JoinTable, rows: Rows, held: HeldTable) -> None:
        self._step, self._rows, self._held = step, rows, held

    def finish(self) -> Made:
        """Null where nothing is found; the mark never is."""
        step, lookup, bits = self._step, self._held.lookup, None
        try:
            if isinstance(lookup, NearLookup):
                found, bits = lookup.find(self._rows.column(step.on))
            else:
                texts, is_number = key_texts(self._rows.column(step.on))
                if step.table.by_shard:
                    texts = with_shards(texts, to_array(self._rows.column(URL_COLUMN)))
                found = lookup.find_texts(texts, is_number)
        except ValueError as error:
            raise ShardError(f"on={step.on!r}: {error}. Give another column") from None
        marks = (pa.array(found >= 0), None if bits is None else pa.array(bits, mask=found < 0))
        return Made(
            {**self._held.take(found), **dict(zip(marks_of(step.mark, step.within), marks, strict=False))}
        )


def marks_of(mark: str | None, within: int | None) -> list[str]:
    """The columns that say what was found: whether, and of hashes in how many bits they differ."""
    if mark is None:
        return []
    return [mark] if within is None else [mark, f"{mark}_distance"]
