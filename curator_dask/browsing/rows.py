"""Rows as a page shows them: read by their numbers, and remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import CAPTION_COLUMN, ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.passing import Passing
from curator_dask.outputs.rows_at import rows_at
from curator_dask.rows.images import values_of
from curator_dask.threads import in_threads
from curator_dask.webdataset.keys import id_text

_KEPT = 50_000  # rows that are remembered
_LONG = 400  # signs of a text that are shown
_BLOCK = 65_536  # rows that are read at once


class Rows:
    """The rows of an output, numbered over its files.

    Parameters
    ----------
    files
        Of the output.
    caption
        Column of the captions.

    Raises
    ------
    ConfigError
        There is no such column, and it is not the usual one.

    Attributes
    ----------
    firsts
        int64 (files + 1,): number of the first row of each, and how many there are.
    types
        Arrow type by column, of those that can be shown: neither lists nor bytes.
    """

    def __init__(self, files: VectorFiles, caption: str = CAPTION_COLUMN) -> None:
        self.files, self.caption = files, caption
        self.paths = list(files.records)
        sizes, self.types = [], dict[str, pa.DataType]()
        for path in self.paths:
            with faults_told(path), open_parquet(path, files.options) as file:
                sizes.append(file.metadata.num_rows)
                for field in file.schema_arrow:
                    if _is_shown(field.type):
                        self.types.setdefault(field.name, field.type)
        if caption not in (CAPTION_COLUMN, *self.types):
            raise ConfigError(f"caption={caption!r}: there is no such column; those are {list(self.types)}")
        self.firsts = np.cumsum([0, *sizes])
        self._known: OrderedDict[tuple[int, tuple[str, ...]], dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def id_col(self) -> str:
        """Column of the keys."""
        return self.files.id_col(self.paths[0])

    @property
    def numbers(self) -> list[str]:
        """Columns by which rows can be put in order."""
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        return [
            name
            for name, kind in self.types.items()
            if any(is_kind(kind) for is_kind in kinds) and name != self.id_col
        ]

    def number(self, file: int, row: int) -> int:
        """Of a row of a file."""
        return int(self.firsts[file]) + row

    def place(self, number: int) -> tuple[int, int]:
        """Number of the file, and of the row in it."""
        if not 0 <= number < len(self):
            raise ConfigError(f"row {number}: there are {len(self)}")
        file = int(np.searchsorted(self.firsts, number, side="right")) - 1
        return file, number - int(self.firsts[file])

    def read(self, numbers: Sequence[int], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Rows in the order of their numbers.

        Parameters
        ----------
        numbers
            Of rows.
        columns
            That are shown; others than `types` has are an error.

        Returns
        -------
        list
            Of dictionaries: ``number``, ``id`` (as it is stored), ``key`` (its text), ``url``, ``caption``, ``error``,
            and ``values``, texts of the columns.
        """
        wanted = tuple(columns)
        unknown = [name for name in wanted if name not in self.types]
        if unknown:
            raise ConfigError(
                f"{unknown[0]!r}: there is no such column to show; those are {list(self.types)}"
            )
        with self._lock:
            there = {n: self._known[n, wanted] for n in numbers if (n, wanted) in self._known}
        lacking: dict[int, list[int]] = {}
        for number in dict.fromkeys(numbers):
            if number not in there:
                lacking.setdefault(self.place(number)[0], []).append(number)
        for some in in_threads(lambda item: self._read(*item, wanted), list(lacking.items())):
            there.update(some)
        with self._lock:
            for number in numbers:
                self._known[number, wanted] = there[number]
                self._known.move_to_end((number, wanted))
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return [there[number] for number in numbers]

    def _read(self, file: int, numbers: list[int], columns: tuple[str, ...]) -> dict[int, dict[str, Any]]:
        path, first = self.paths[file], int(self.firsts[file])
        id_col = self.files.id_col(path)
        some = [id_col, URL_COLUMN, self.caption, ERROR_COLUMN, *columns]
        table = rows_at(path, np.array(numbers) - first, some, self.files.options)
        there = {name: values_of(table.column(name)) for name in table.column_names}
        nothing: list[Any] = [None] * len(numbers)
        found = {}
        for at, number in enumerate(numbers):
            ids, urls = there.get(id_col, nothing), there.get(URL_COLUMN, nothing)
            found[number] = {
                "number": number,
                "id": ids[at],
                "key": "" if ids[at] is None else id_text(ids[at])[0] or str(ids[at]),
                "url": None if urls[at] is None else str(urls[at]),
                "caption": _text(there.get(self.caption, nothing)[at]),
                "error": _text(there.get(ERROR_COLUMN, nothing)[at]),
                "values": {name: _text(there.get(name, nothing)[at]) for name in columns},
            }
        return found

    def in_order(self, column: str, descending: bool, passing: Passing | None) -> np.ndarray:
        """int64 (n,): numbers of rows by a column of numbers; those without one, or with NaN, are left out.

        Of equal ones the first goes before.
        """
        if column not in self.numbers:
            raise ConfigError(f"{column!r}: there is no such column of numbers; those are {self.numbers}")
        parts = []
        for path in self.paths:
            with faults_told(path), open_parquet(path, self.files.options) as file:
                if column not in file.schema_arrow.names:
                    parts.append(np.full(file.metadata.num_rows, np.nan))
                    continue
                for batch in file.iter_batches(_BLOCK, columns=[column]):
                    values = batch.column(0).cast(pa.float64(), safe=False)
                    parts.append(values.to_numpy(zero_copy_only=False))
        values = np.concatenate(parts)
        left = ~np.isnan(values)
        if passing is not None:
            left &= np.concatenate(list(passing.masks.values()))
        numbers = np.flatnonzero(left)
        values = values[numbers]
        found: np.ndarray = numbers[np.argsort(-values if descending else values, kind="stable")]
        return found


def _is_shown(kind: pa.DataType) -> bool:
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not pa.types.is_nested(kind) and not any(is_kind(kind) for is_kind in binary)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
