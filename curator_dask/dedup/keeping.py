"""Which of several duplicates stays: an order of all rows, the best first."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, OutputError
from curator_dask.fingerprint import code_digest
from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.where import Where
from curator_dask.words import meant

#: By the distance from the centroid of its cluster.
CENTRES = ("hard", "easy")
_PLAIN = (bool, int, float, str, bytes, list, tuple, dict, set, frozenset, np.ndarray, FunctionType)
_DIRECTION = re.compile(r"^(?P<what>.*?)(?:\s+(?P<way>asc|desc))?$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Keep:
    """What decides who stays.

    Attributes
    ----------
    by
        Expressions, each with ``asc`` or ``desc`` behind it or nothing; ``hard`` or ``easy``; or a function of a pandas
        frame that gives a number a row, of which the largest is the best.
    """

    by: tuple[str, ...] | Callable[[pd.DataFrame], Any]

    @classmethod
    def of(cls, keep: Any) -> Keep:
        """From what a user gives.

        Raises
        ------
        ConfigError
            It is none of the forms.
        """
        if keep is None or keep == "":
            return cls(())
        if isinstance(keep, str):
            return cls((keep,))._checked()
        if callable(keep):
            return cls(keep)
        if isinstance(keep, Sequence) and all(isinstance(each, str) and each.strip() for each in keep):
            return cls(tuple(keep))._checked()
        raise ConfigError(
            f"keep={keep!r}: expected a column, such as 'aesthetic_score', a list of expressions, such as"
            " ['width * height desc', 'key'], 'hard' or 'easy', or a function of a frame"
        )

    def _checked(self) -> Keep:
        if self.centre is None:
            for what, _ in self._parsed:
                _expression(what)
        return self

    @property
    def centre(self) -> str | None:
        """``"hard"``: the row farthest from its centroid is the best, ``"easy"``: the nearest; None: neither."""
        return self.by[0] if isinstance(self.by, tuple) and self.by and self.by[0] in CENTRES else None

    @property
    def identity(self) -> Any:
        """What decides the order, as JSON."""
        if isinstance(self.by, tuple):
            return list(self.by)
        used = _used(self.by)
        return code_digest((), [self.by], [used] if used else [])

    @property
    def words(self) -> str:
        """For messages."""
        return (
            ", ".join(self.by) if isinstance(self.by, tuple) else getattr(self.by, "__name__", "a function")
        )

    @cached_property
    def _parsed(self) -> list[tuple[str, str]]:
        """Expressions and the way they go, lower case; empty where that is not said."""
        if not isinstance(self.by, tuple) or self.centre is not None:
            return []
        found = [_DIRECTION.match(text.strip()) for text in self.by]
        return [(each["what"], (each["way"] or "").lower()) for each in found if each]

    def columns(self, names: Sequence[str], path: str) -> list[str]:
        """Which columns of a file are needed.

        Raises
        ------
        OutputError
            One is not there.
        """
        if not isinstance(self.by, tuple):
            return list(names)
        wanted = []
        for what, _ in self._parsed:
            if what in names:
                wanted.append(what)
                continue
            if what.isidentifier():
                raise OutputError(
                    f"{path}: has no column {what!r}{meant(what, names)} to say which duplicate stays (keep); it has"
                    f" {list(names)}"
                )
            wanted += _expression(what).columns(names)
        return list(dict.fromkeys(wanted))

    def terms(self, rows: pa.Table, path: str) -> dict[str, pa.ChunkedArray | pa.Array]:
        """The values that order rows: whole numbers as they are, others as float64, all else as text.

        Raises
        ------
        OutputError
            They do not fit the rows, or a function did not give a number a row.
        """
        if not isinstance(self.by, tuple):
            return {"term0": self._asked(rows, path)}
        found = {}
        for number, (what, _) in enumerate(self._parsed):
            try:
                column = rows.column(what) if what in rows.column_names else _expression(what).values(rows)
            except ConfigError as error:
                raise OutputError(f"{path}: {str(error).replace('where=', 'keep=', 1)}") from None
            try:
                found[f"term{number}"] = column.cast(_order_type(column.type), safe=False)
            except pa.ArrowException as error:
                raise OutputError(f"{path}: keep={what!r}: rows cannot be ordered by it: {error}") from None
        return found

    def _asked(self, rows: pa.Table, path: str) -> pa.Array:
        assert not isinstance(self.by, tuple)
        frame = rows.to_pandas()
        try:
            values = np.asarray(self.by(frame), np.float64)
        except Exception as error:  # a user's own
            raise OutputError(
                f"{path}: keep: {self.words} failed: {type(error).__name__}: {error}"
            ) from error
        if values.shape != (len(frame),):
            raise OutputError(
                f"{path}: keep: {self.words} gave {list(values.shape)}, expected a number for each of {len(frame)} rows"
            )
        return pa.array(values, from_pandas=True)

    def blank(self, rows: int) -> dict[str, pa.Array]:
        """The same of rows that need no order."""
        count = 1 if not isinstance(self.by, tuple) else len(self._parsed)
        return {f"term{number}": pa.nulls(rows) for number in range(count)}

    def order(self, rows: pa.Table, fixed: np.ndarray, centres: np.ndarray | None) -> np.ndarray:
        """int64 (rows,): the place of each row, 0 the best. Rows that stay come first; ties go by key, then shard.

        Parameters
        ----------
        rows
            With ``id``, ``__url__`` and the terms.
        fixed
            bool (rows,): which stay whatever they are like.
        centres
            float64 (rows,): cosine of each to its centroid, where `centre` asks for it.
        """
        table = {"fixed": pa.array((~fixed).astype(np.int8))}
        ways = [("fixed", "ascending")]
        if self.centre is not None:
            table["centre"] = pa.array(centres)
            ways.append(("centre", "ascending" if self.centre == "hard" else "descending"))
        said = self._parsed if isinstance(self.by, tuple) else [("", "desc")]
        for number, (_, way) in enumerate(said):
            column = rows.column(f"term{number}")
            best = way or ("asc" if pa.types.is_string(column.type) else "desc")
            table[f"term{number}"] = column
            ways.append((f"term{number}", {"asc": "ascending", "desc": "descending"}[best]))
        for name in ("id", URL_COLUMN):
            table[name] = rows.column(name)
            ways.append((name, "ascending"))
        table["at"] = pa.array(np.arange(len(rows)))
        ways.append(("at", "ascending"))
        order = np.asarray(pc.sort_indices(pa.table(table), sort_keys=ways))
        places = np.empty(len(rows), np.int64)
        places[order] = np.arange(len(rows))
        return places

    def unknown(self, rows: pa.Table) -> dict[str, int]:
        """By expression, how many rows have no value: these come last."""
        said = [what for what, _ in self._parsed] if isinstance(self.by, tuple) else [self.words]
        counts = {}
        for number, what in enumerate(said):
            column = rows.column(f"term{number}")
            missing = pc.is_null(column, nan_is_null=True)
            counts[what] = int(pc.sum(missing).as_py() or 0)
        return counts


def _used(function: Any) -> dict[str, Any]:
    """Plain values, arrays and functions of its module that a function reads, by name."""
    if not inspect.isfunction(function):
        return {}
    found = inspect.getclosurevars(function).globals
    return {name: value for name, value in found.items() if isinstance(value, _PLAIN)}


def _order_type(kind: pa.DataType) -> pa.DataType:
    """As what a column orders rows; a file without any value leaves that to the others."""
    if pa.types.is_boolean(kind):
        return pa.int8()
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return kind  # as a float, whole numbers beyond 2**53 would be ties
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    return pa.string()


def _expression(what: str) -> Where:
    try:
        return Where(what)
    except ConfigError as error:
        raise ConfigError(str(error).replace("where=", "keep=", 1)) from None
