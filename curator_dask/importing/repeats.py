"""Keys that several rows of a table have which is cut into several files: each of these would not see the others'.

Digests of all keys are sorted, a share of them at a time: what does not fit into memory lies in temporary files, by the
digests' first bits. Rows of one digest are read again, and told by their keys.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.importing.checking import row_range
from curator_dask.importing.finding import digests_of
from curator_dask.rows.ids import id_texts
from curator_dask.storage import Options
from curator_dask.words import counted

#: Digests that are sorted at once: 32 MiB.
HELD = 1 << 22
_MOST_BUCKETS = 1 << 8  # open files; of tables above a milliard rows more is sorted at once
_LOOKED_AT = 1 << 10  # digests whose rows are compared by their keys
_FEW = 3  # keys that an error names


class Keys(NamedTuple):
    """The keys of a table.

    Attributes
    ----------
    path, options
        Of the Parquet file; for fsspec.
    column
        In which they are.
    rows
        How many there are.
    """

    path: str
    column: str
    rows: int
    options: Options


def repeated(keys: Keys) -> str | None:
    """Why a table cannot be taken: keys that several of its rows have, or what keeps it from being read; else None."""
    try:
        found = _digests_again(keys)
        return _told(keys, found) if len(found) else None
    except ShardError as error:
        return str(error).removeprefix(f"{keys.path}: ")


def _texts(keys: Keys) -> Iterator[tuple[np.ndarray, pa.Array, np.ndarray]]:
    """Rows that have a key, some at a time: their numbers, texts and digests."""
    for at, batch in row_range(keys.path, [keys.column], 0, keys.rows, keys.options):
        if not batch.num_columns:
            return  # it is told when the rows are read
        texts = pa.array(id_texts(batch.column(0)), pa.string())
        there = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
        texts = texts.take(pa.array(there))
        yield at + there, texts, digests_of(texts)


def _digests_again(keys: Keys) -> np.ndarray:
    """uint64 (n,): digests that several rows have, `_LOOKED_AT` at most."""
    bits = min(_MOST_BUCKETS, -(-keys.rows // HELD)).bit_length() if keys.rows > HELD else 0
    with ExitStack() as stack:
        if not bits:
            return _again([digests for _, _, digests in _texts(keys)])
        buckets: list[IO[bytes]] = [
            stack.enter_context(tempfile.TemporaryFile(buffering=1 << 16)) for _ in range(1 << bits)
        ]
        for _, _, digests in _texts(keys):
            digests = np.sort(digests)
            ends = np.searchsorted(digests >> np.uint64(64 - bits), np.arange(len(buckets)), "right")
            for bucket, mine in zip(buckets, np.split(digests, ends[:-1]), strict=True):
                bucket.write(mine.tobytes())
        # A share that is far larger than the others has digests again: the first of them tell it.
        most = 4 * max(HELD, keys.rows >> bits)
        found = np.empty(0, np.uint64)
        for bucket in buckets:
            bucket.seek(0)
            found = np.append(found, _again([np.frombuffer(bucket.read(8 * most), np.uint64)]))
            if len(found) >= _LOOKED_AT:
                break
        return found[:_LOOKED_AT]


def _again(parts: list[np.ndarray]) -> np.ndarray:
    digests = np.sort(np.concatenate([np.empty(0, np.uint64), *parts]))
    return np.unique(digests[1:][digests[1:] == digests[:-1]])[:_LOOKED_AT]


def _told(keys: Keys, again: np.ndarray) -> str | None:
    """The rows of digests, by their keys; None: no two have one key."""
    rows_of: dict[str, list[int]] = {}
    for rows, texts, digests in _texts(keys):
        at = np.flatnonzero(np.isin(digests, again))
        for row, text in zip(rows[at].tolist(), texts.take(pa.array(at)).to_pylist(), strict=True):
            places = rows_of.setdefault(text, [])
            places += [row] if len(places) <= _FEW else []
    doubled = {text: rows for text, rows in rows_of.items() if len(rows) > 1}
    if not doubled:
        return None
    some = "; ".join(f"{text!r} in rows {_listed(rows)}" for text, rows in [*doubled.items()][:_FEW])
    number = counted(len(doubled), "key") + (" or more" if len(again) == _LOOKED_AT else "")
    return (
        f"{number} of the column {keys.column!r} in several rows: {some}. Which vector is whose could not be told any"
        " more: leave one row of each, or name another column of keys (id_column=, --id-column)"
    )


def _listed(rows: list[int]) -> str:
    return f"{', '.join(f'{row:,}' for row in rows[:_FEW])}{', …' if len(rows) > _FEW else ''}"
