"""The rows of a partition, as the steps of a pass see them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.frames.columns import to_array, with_columns
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.known import known_vectors
from curator_dask.rows.reasons import reason_for, reasons_in
from curator_dask.rows.remarks import OF_TARS


class Rows:
    """The rows of a partition, for the steps of a pass.

    Parameters
    ----------
    frame
        pandas or cuDF.
    """

    def __init__(self, frame: Any) -> None:
        self.frame = frame
        self._made: dict[str, pa.Array] = {}
        self._reasons: dict[str, list[str | None]] = {}
        self._known: dict[str, tuple[np.ndarray, list[str | None]] | None] = {}

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def names(self) -> list[str]:
        """Of the columns that there are, those that steps before have made too."""
        return list(dict.fromkeys([*self.frame.columns, *self._made]))

    def column(self, name: str) -> pa.Array:
        """A column, of the frame or made by a step before this one in the same pass.

        Raises
        ------
        ShardError
            There is none of this name.
        """
        if name in self._made:
            return self._made[name]
        if name not in self.frame.columns:
            raise ShardError(
                f"expected a column {name!r}, found {self.names}: put the step that makes it before"
            )
        return to_array(self.frame[name])

    def image_of(self, row: int, id_col: str) -> str:
        """A row's image, for messages: its shard and its key."""
        url = self.column(URL_COLUMN)[row].as_py()
        return f"{url}: image of {id_col}={exact_ids(self.column(id_col))[row]!r}"

    def known(self, column: str, id_col: str) -> tuple[np.ndarray, list[str | None]] | None:
        """The vectors that an earlier run has made of all of these rows, and reasons; None: they are to be made."""
        known = known_vectors()
        if known is None:
            return None
        if column not in self._known:
            ids = exact_ids(self.column(id_col))
            urls = self.column(URL_COLUMN).to_pylist()
            found = known.find(column, ids, urls)
            if found is not None:
                known.remind(urls, OF_TARS)
            self._known[column] = found
        return self._known[column]

    def has_same_texts(self, column: str, id_col: str) -> bool:
        """Whether an earlier run had the same texts in all of these rows; what it noticed of them is said again."""
        known = known_vectors()
        if known is None or not len(self) or column not in self.names:
            return False
        urls = self.column(URL_COLUMN).to_pylist()
        same = known.has_same(column, self.column(column), exact_ids(self.column(id_col)), urls)
        if same:
            known.remind(urls, ["text-truncated"])
        return same

    def known_columns(
        self,
        types: Mapping[str, pa.DataType],
        label: str,
        *,
        nullable: Collection[str] = (),
        vectors: str | None = None,
    ) -> tuple[dict[str, pa.Array], list[str | None]] | None:
        """The columns that an earlier run has made of all of these rows, and reasons; None: they are to be made.

        Parameters
        ----------
        types, label, nullable
            See `KnownVectors.find_columns`.
        vectors
            Of which they were made, and which must be known, too.
        """
        known = known_vectors()
        if known is None or not len(self) or (vectors and self.known(vectors, known.id_col) is None):
            return None
        ids = exact_ids(self.column(known.id_col))
        return known.find_columns(types, label, nullable, ids, self.column(URL_COLUMN).to_pylist())

    def reasons(self, column: str) -> list[str | None]:
        """Why rows lack a vector: by the step of this pass that makes the column, or by ``image_error``."""
        if column in self._reasons:
            return self._reasons[column]
        if ERROR_COLUMN not in self.frame.columns:
            return [None] * len(self)
        return [
            reason_for(column, reasons_in(each)) for each in to_array(self.frame[ERROR_COLUMN]).to_pylist()
        ]

    def add(
        self, columns: Mapping[str, pa.Array], reasons: Mapping[str, list[str | None]] | None = None
    ) -> None:
        """Take the columns that a step has made, and why rows lack their values."""
        self._made.update(columns)
        self._reasons.update(reasons or {})

    def arrange(self, names: Sequence[str]) -> None:
        """Have what steps have made in this order, of the names that there are."""
        self._made = {
            name: self._made[name] for name in dict.fromkeys([*names, *self._made]) if name in self._made
        }

    def finished(self) -> Any:
        """The frame with all columns that steps have made last."""
        return with_columns(self.frame, self._made) if self._made else self.frame
