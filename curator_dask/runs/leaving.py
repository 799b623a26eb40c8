"""`LeaveOut`: the step that leaves out rows by shard and key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.frames.columns import to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.ids import id_texts
from curator_dask.runs.filtering import LeavesOut


@dataclass(frozen=True)
class LeaveOut(LeavesOut):
    """Leaves out the rows that a table names; the others stay in their order.

    Attributes
    ----------
    what
        For messages.
    identity
        Of the table, as text.
    id_col
        Column of the keys.
    read
        Given the shards of some rows, gives the keys of those that go, by shard.
    """

    what: str
    identity: str
    id_col: str
    read: Callable[[Sequence[str]], Mapping[str, set[str]]]

    @property
    def label(self) -> str:
        """What it leaves out."""
        return f"without {self.what}"

    @property
    def recipe(self) -> tuple[Any, ...]:
        """The table."""
        return ("without", self.identity)

    def stay(self, frame: Any) -> np.ndarray:
        """Whether each row is not named."""
        if not len(frame):
            return np.ones(0, bool)
        urls = to_array(frame[URL_COLUMN]).cast(pa.string()).to_pylist()
        going = self.read(sorted({url for url in urls if url is not None}))
        keys = id_texts(to_array(frame[self.id_col]))
        return np.array([key not in going.get(url, ()) for key, url in zip(keys, urls, strict=True)], bool)
