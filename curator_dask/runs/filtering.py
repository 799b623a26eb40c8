"""Steps that leave out rows, and count them: those that do not pass a condition, or are not among the best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from curator_dask.cluster.progress import report
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.best import Cut, best_rows
from curator_dask.rows.remarks import EXAMPLES, current_remarks
from curator_dask.rows.where import Where
from curator_dask.webdataset.samples import key_text


class LeavesOut(ABC):
    """Base of steps that leave rows out, and count them; the others stay in their order."""

    #: Column of the keys, for the examples of what was left out.
    id_col: str

    keeps_rows = False
    needs = frozenset({"rows"})

    @property
    @abstractmethod
    def label(self) -> str:
        """What leaves them out."""

    @abstractmethod
    def stay(self, frame: Any) -> np.ndarray:
        """Bool (rows,): which rows of a partition stay."""

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """None are made."""
        return {}

    @property
    def arguments(self) -> Mapping[str, Any]:
        """There is no column to make again."""
        return {}

    @property
    def read_by(self) -> Mapping[str, str]:
        """No vectors are made."""
        return {}

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        """Nothing is loaded."""
        return {}

    def give_up(self, reason: str) -> Self:
        """The same: what kills workers is not this."""
        return self

    def __call__(self, frame: Any) -> Any:
        """The rows that stay."""
        stay = self.stay(frame)
        if stay.all():
            return frame
        report(left_out={self.label: int((~stay).sum())})
        self._remark(frame, ~stay)
        return frame.iloc[np.flatnonzero(stay)]

    def _remark(self, frame: Any, dropped: np.ndarray) -> None:
        if not {URL_COLUMN, self.id_col} <= {*frame.columns}:
            return
        left_out = frame[[URL_COLUMN, self.id_col]].iloc[np.flatnonzero(dropped)]
        urls = [str(url) for url in to_array(left_out[URL_COLUMN]).to_pylist()]
        ids = to_array(left_out[self.id_col]).to_pylist()
        remarks = current_remarks()
        for url, count in Counter(urls).items():
            before = remarks.on([url]).get(url, {}).get("filtered", {"count": 0, "examples": []})
            keys = [key_text(str(key)) for key, of in zip(ids, urls, strict=True) if of == url]
            remarks.add(
                url,
                "filtered",
                {
                    "count": before["count"] + count,
                    "examples": [*before["examples"], *keys][:EXAMPLES],
                },
            )


@dataclass(frozen=True)
class FilterRows(LeavesOut):
    """Leaves out the rows that do not pass a condition.

    Attributes
    ----------
    where
        The condition.
    id_col
        Column of the keys.
    """

    where: Where
    id_col: str

    @property
    def label(self) -> str:
        """The condition."""
        return f"filter {self.where.text!r}"

    @property
    def recipe(self) -> tuple[Any, ...]:
        """The condition."""
        return ("filter", self.where.text)

    def stay(self, frame: Any) -> np.ndarray:
        """Those that pass."""
        # Only what the condition names: vectors need not leave a GPU. What no column has is said by `passes`.
        table = some_columns(frame, self.where.columns(list(frame.columns)) or frame.columns[:1])
        return np.asarray(self.where.passes(table, list(frame.columns)) == 1)


@dataclass(frozen=True)
class BestRows(LeavesOut):
    """Leaves out the rows that are not among the best by a column.

    Attributes
    ----------
    cut
        Where the best end; None: no row has a value.
    id_col
        Column of the keys.
    """

    cut: Cut | None
    id_col: str

    @property
    def label(self) -> str:
        """By what column, down to which value."""
        return "top" if self.cut is None else f"top by {self.cut.column!r}, down to {self.cut.last_value}"

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Where the best end."""
        return ("top", None if self.cut is None else (self.cut.column, self.cut.value, *self.cut.last))

    def stay(self, frame: Any) -> np.ndarray:
        """Those that are among the best."""
        if self.cut is None:
            return np.zeros(len(frame), bool)
        return best_rows(
            some_columns(frame, [self.cut.column, self.id_col, URL_COLUMN]), self.cut, self.id_col, ""
        )


def some_columns(frame: Any, names: Iterable[str]) -> pa.Table:
    """Columns of a frame, those of these that it has."""
    return pa.table({name: to_array(frame[name]) for name in names if name in frame.columns})
