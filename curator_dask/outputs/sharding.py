"""Which samples go into which new shard.

It is decided from counts, before anything is written. So tasks need not wait for each other, and the result does not
depend on who does them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class NewShard:
    """The samples of a shard that is to be written.

    Attributes
    ----------
    split, number
        Its split, empty where there are none, and its number in it.
    files
        Names of the tables of samples that it draws from.
    marks
        What each of these was made of.
    runs
        int64 (runs, 3): its samples in their order, as runs of rows that follow one another: place of the table in
        `files`, first row, how many.
    """

    number: int
    files: tuple[str, ...]
    marks: tuple[str, ...]
    runs: np.ndarray
    split: str = ""

    def __len__(self) -> int:
        return int(self.runs[:, 2].sum())

    @property
    def which(self) -> np.ndarray:
        """int64 (samples,): of each sample, the place of its table in `files`."""
        return np.repeat(self.runs[:, 0], self.runs[:, 2])

    @property
    def rows(self) -> np.ndarray:
        """int64 (samples,): of each sample, its row in its table."""
        _, starts, lengths = self.runs.T
        ends = np.cumsum(lengths)
        rows: np.ndarray = np.arange(len(self)) + np.repeat(starts - (ends - lengths), lengths)
        return rows

    def in_order(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Rows of several tables, each with its own in order, in the order of the shard."""
        table = pa.concat_tables(tables, promote_options="permissive")
        if not (np.diff(self.which) < 0).any():
            return table
        return table.take(pa.array(np.argsort(np.argsort(self.which, kind="stable"), kind="stable")))

    @property
    def digest(self) -> str:
        """Of which rows of which of its tables there are; not of what is in them."""
        return hashlib.sha256(np.ascontiguousarray(self.runs, "<i8").tobytes()).hexdigest()

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.split, self.number, self.files, self.marks, self.digest)


def in_order(shard: NewShard, tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of several tables, each with its own in order, in the order of the shard."""
    table = pa.concat_tables(tables, promote_options="permissive")
    if not (np.diff(shard.which) < 0).any():
        return table
    return table.take(pa.array(np.argsort(np.argsort(shard.which, kind="stable"), kind="stable")))


class NewShards(Sequence[NewShard]):
    """All shards that are to be written, each made when it is asked for.

    Parameters
    ----------
    names, marks, counts
        Of the tables of samples, in order: name, what it was made of, and how many samples it has.
    ends
        int64 (shards,): behind the last sample of each shard, counted over all.
    order
        int64 (samples,): number of the sample at each place; None: as they come.
    numbers
        Of some of the shards; None: all.
    splits
        Where there are such: names, and how many of the shards, one after the other, are of each.
    at
        By split the numbers that its shards get, where these do not begin with 0.
    """

    def __init__(
        self,
        names: Sequence[str],
        marks: Sequence[str],
        counts: Sequence[int],
        ends: np.ndarray,
        order: np.ndarray | None = None,
        numbers: Sequence[int] | None = None,
        splits: Sequence[tuple[str, int]] = (),
        at: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._at = {split: tuple(numbers) for split, numbers in (at or {}).items()}
        self._splits = tuple(splits) or (("", len(ends)),)
        self._names, self._marks, self._counts = tuple(names), tuple(marks), tuple(counts)
        self._ends, self._order = ends, order
        self._numbers = range(len(ends)) if numbers is None else numbers
        self._begins = np.cumsum([0, *counts], dtype=np.int64)

    def only(self, numbers: Sequence[int]) -> NewShards:
        """Some of them."""
        return NewShards(
            self._names, self._marks, self._counts, self._ends, self._order, numbers, self._splits, self._at
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, at: Any) -> Any:
        number = self._numbers[at]
        start = int(self._ends[number - 1]) if number else 0
        places = np.arange(start, int(self._ends[number]), dtype=np.int64)
        samples = places if self._order is None else self._order[places]
        tables = np.searchsorted(self._begins, samples, side="right") - 1
        used, which = np.unique(tables, return_inverse=True)
        begins = np.flatnonzero(np.diff(samples, prepend=-2) != 1)
        begins = np.union1d(begins, np.flatnonzero(np.diff(tables, prepend=-1) != 0))
        lengths = np.diff(begins, append=len(samples))
        rows = (samples - self._begins[tables])[begins]
        runs = np.stack([which[begins], rows, lengths], axis=1).astype(np.int64)
        names, marks = ([each[table] for table in used] for each in (self._names, self._marks))
        split, place = self.place(number)
        return NewShard(place, tuple(names), tuple(marks), runs, split)

    def place(self, number: int) -> tuple[str, int]:
        """The split of a shard, by its number among all, and its number in it."""
        for split, count in self._splits:
            if number < count:
                return split, self._at[split][number] if split in self._at else number
            number -= count
        raise IndexError(number)

    @property
    def in_order(self) -> bool:
        """Whether samples go into shards in the order of the tables."""
        return self._order is None

    def by_table(self) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Of each table that is drawn from: what goes where.

        Yields
        ------
        name, rows, shards, ends
            Its name; int64 (rows,): rows of it, those of a shard side by side, as `NewShard.rows` has them; int64
            (shards,): places of these shards among all, and behind the last row of each.
        """
        numbers = np.asarray(self._numbers, np.int64)
        starts = np.concatenate([[0], self._ends])[numbers].astype(np.int64)
        lengths = self._ends[numbers] - starts
        shards = np.repeat(np.arange(len(numbers)), lengths)
        samples = np.arange(len(shards)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        samples = samples if self._order is None else self._order[samples]
        tables = np.searchsorted(self._begins, samples, side="right") - 1
        by_table = np.argsort(tables, kind="stable")
        stops = np.searchsorted(tables, np.arange(len(self._names)), side="right", sorter=by_table)
        for table, (start, stop) in enumerate(itertools.pairwise([0, *stops.tolist()])):
            if start < stop:
                some = by_table[start:stop]
                used, begins = np.unique(shards[some], return_index=True)
                rows = samples[some] - self._begins[table]
                yield self._names[table], rows, used, np.append(begins[1:], stop - start)

    def __dask_tokenize__(self) -> Any:
        order = b"" if self._order is None else self._order.tobytes()
        said = hashlib.sha256(self._ends.tobytes() + order).hexdigest()
        return (
            type(self).__name__,
            self._names,
            self._marks,
            self._counts,
            said,
            list(self._numbers),
            self._splits,
            self._at,
        )

    @property
    def totals(self) -> dict[str, int]:
        """By split, how many shards it has."""
        return dict(self._splits)

    def largest(self) -> int:
        """Samples of the largest."""
        return int(np.diff(self._ends, prepend=0).max(initial=0))


def ends_in_parts(counts: Sequence[int], ends_of: Callable[[int, int], np.ndarray]) -> list[np.ndarray]:
    """Ends of shards of which none has samples of two parts: of each part, counted over all.

    Parameters
    ----------
    counts
        Samples of each part.
    ends_of
        Gives the ends of samples from one to another, counted from the first.
    """
    stops = np.cumsum([0, *counts]).tolist()
    return [start + ends_of(start, stop) for start, stop in itertools.pairwise(stops)]


def ends_by_count(total: int, samples_per_shard: int) -> np.ndarray:
    """int64 (shards,): ends of shards of so many samples, but for the last."""
    return np.minimum(np.arange(samples_per_shard, total + samples_per_shard, samples_per_shard), total)


def ends_evenly(total: int, shards: int) -> np.ndarray:
    """int64 (shards,): ends of so many shards, whose numbers of samples differ by one at the most."""
    return np.arange(1, shards + 1, dtype=np.int64) * total // shards


def ends_by_bytes(sizes: np.ndarray, shard_bytes: int) -> np.ndarray:
    """int64 (shards,): ends of shards of at most so many bytes; a sample that is larger is a shard by itself.

    Parameters
    ----------
    sizes
        int64 (samples,): bytes of each.
    shard_bytes
        The limit.
    """
    totals = np.cumsum(sizes)
    ends = []
    start = 0
    while start < len(sizes):
        before = int(totals[start - 1]) if start else 0
        start = max(start + 1, int(np.searchsorted(totals, before + shard_bytes, side="right")))
        ends.append(start)
    return np.asarray(ends, np.int64)


def ends_of_at_most(ends: np.ndarray, most: int) -> np.ndarray:
    """int64 (shards,): the same ends, with others between where a shard would have more samples."""
    parts = [
        [*range(start + most, stop, most), stop] for start, stop in itertools.pairwise([0, *ends.tolist()])
    ]
    return np.asarray([end for part in parts for end in part], np.int64)


def shuffled(total: int, seed: int) -> np.ndarray:
    """int64 (total,): a random order, every one as likely, and the same for a seed wherever and whenever it is made."""
    # NumPy keeps what a bit generator gives the same over its versions, not so what is made of it.
    return np.argsort(np.random.PCG64(seed).random_raw(total), kind="stable").astype(np.int64)
