"""`FilterRows`: the step that leaves out rows which do not pass a condition, and counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.frames.columns import to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.remarks import EXAMPLES, current_remarks
from curator_dask.rows.where import Where
from curator_dask.webdataset.samples import key_text


@dataclass(frozen=True)
class FilterRows:
    """Leaves out the rows that do not pass; the others stay in their order.

    Attributes
    ----------
    where
        The condition.
    id_col
        Column of the keys, for the examples of what was left out.
    """

    where: Where
    id_col: str

    keeps_rows = False
    needs = frozenset({"rows"})

    @property
    def label(self) -> str:
        """The condition."""
        return f"filter {self.where.text!r}"

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """None are made."""
        return {}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """The condition."""
        return ("filter", self.where.text)

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

    def give_up(self, reason: str) -> FilterRows:
        """The same: what kills workers is not this."""
        return self

    def __call__(self, frame: Any) -> Any:
        """The rows that pass."""
        names = self.where.columns(list(frame.columns))
        # Only what the condition names: vectors need not leave a GPU. What no column has is said by `passes`.
        table = pa.table({name: to_array(frame[name]) for name in names or frame.columns[:1]})
        passes = self.where.passes(table, list(frame.columns)) == 1
        if passes.all():
            return frame
        self._remark(frame, ~passes)
        return frame.iloc[np.flatnonzero(passes)]

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
