"""Which rows of each cluster stay: those that come first in an order, until there are as many as it keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError, OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.frames.record import BALANCE, BY_SHARD, FIELDS, ON
from curator_dask.outputs.choosing import read_rows
from curator_dask.rows.best import values_of
from curator_dask.rows.draws import row_digests
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work
from curator_dask.storage import Options
from curator_dask.threads import in_threads

#: Column of what is kept, the orders by the distance to the centroid, and the order by chance.
DRAWN, FAR, NEAR, RANDOM = "balanced", "far", "near", "random"
_LAST = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Order:
    """By what the rows of a cluster are kept.

    Attributes
    ----------
    clusters
        Column of the clusters' numbers.
    column
        Of numbers; None: by chance.
    sign
        1: the largest first; -1: the smallest.
    seed
        Of the digests by which rows of one value are told apart: of the draw, where it goes by chance.
    """

    clusters: str
    column: str | None
    sign: int = 1
    seed: int = 0

    @property
    def columns(self) -> list[str]:
        """Those that it looks at."""
        return [self.clusters, *([] if self.column is None else [self.column])]

    def of(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """int64 (rows,), each row's cluster, -1 where it cannot be kept; and float64 (rows,), the larger the sooner.

        Raises
        ------
        ConfigError
            There is no such column of numbers.
        """
        groups, has_group = values_of(table, self.clusters)
        if self.column is None:
            return np.where(has_group, groups, -1).astype(np.int64), np.zeros(len(groups))
        values, has_value = values_of(table, self.column)
        return np.where(has_group & has_value, groups, -1).astype(np.int64), self.sign * values.astype(
            np.float64
        )


@dataclass(frozen=True)
class Ends:
    """Where the rows of each cluster end that are kept.

    Attributes
    ----------
    values
        float64 (clusters,): the last that is kept, in the order; NaN where none is.
    ties
        uint64 (clusters,): of rows of just that value the last digest that is kept.
    """

    values: np.ndarray
    ties: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of both."""
        said = self.values.astype("<f8").tobytes() + self.ties.astype("<u8").tobytes()
        return hashlib.sha256(said).hexdigest()

    def keeps(self, groups: np.ndarray, order: np.ndarray, digests: Any) -> np.ndarray:
        """Bool (rows,): which rows are kept; `digests` gives uint64 of some rows, by their numbers."""
        at = np.maximum(groups, 0)
        known = (groups >= 0) & (groups < len(self.values))
        last = self.values[np.minimum(at, len(self.values) - 1)]
        kept: np.ndarray = known & (order > last)
        tied = np.flatnonzero(known & (order == last))
        if len(tied):
            kept[tied] = digests(tied) <= self.ties[groups[tied]]
        return kept


def find_ends(
    paths: Sequence[str], options: Options, order: Order, quotas: np.ndarray, id_cols: Mapping[str, str]
) -> Ends:
    """Where the rows of each cluster end, over all files: 16 bytes a row are held, and as many where all are drawn.

    Parameters
    ----------
    paths, options
        The files.
    order, quotas
        In what order how many are kept of each cluster.
    id_cols
        By path, the column of the keys, by which rows of one value are told apart.
    """
    looked = in_threads(lambda path: order.of(read_rows(path, options, order.columns)), paths)
    groups = np.concatenate([each for each, _ in looked])
    values = np.concatenate([each for _, each in looked])
    rows = np.flatnonzero(groups >= 0)
    rows = rows[np.lexsort((-values[rows], groups[rows]))]
    counts = np.bincount(groups[rows], minlength=len(quotas))
    starts = np.cumsum(counts) - counts
    some = np.flatnonzero((quotas > 0) & (counts > 0))
    last = np.full(len(quotas), np.nan)  # which nothing equals, as an infinite value would infinity
    last[some] = values[rows[starts[some] + np.minimum(quotas, counts)[some] - 1]]
    ties = np.full(len(quotas), _LAST, np.uint64)
    own = last[groups[rows]]
    above = np.bincount(groups[rows][values[rows] > own], minlength=len(quotas))
    equal = np.bincount(groups[rows][values[rows] == own], minlength=len(quotas))
    several = (quotas > 0) & (above + equal > quotas)
    if several.any():
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for path, (of, given) in zip(paths, looked, strict=True):
            tied = np.flatnonzero((of >= 0) & several[np.maximum(of, 0)] & (given == last[np.maximum(of, 0)]))
            if len(tied):
                digests = _digests(path, options, id_cols[path], order.seed)
                found.append((of[tied], digests[tied]))
        of, digests = (np.concatenate(each) for each in zip(*found, strict=True))
        digests = digests[np.lexsort((digests, of))]
        counts = np.bincount(of, minlength=len(quotas))
        ties[several] = digests[(np.cumsum(counts) - counts + quotas - above - 1)[several]]
    return Ends(last, ties)


def _digests(path: str, options: Options, id_col: str, seed: int) -> np.ndarray:
    names = read_footer(path, options).columns
    if id_col not in names:
        raise OutputError(
            f"{path}: has no column {id_col!r} of keys, by which rows are told apart; it has {names}"
        )
    table = read_rows(path, options, [n for n in (id_col, URL_COLUMN) if n in names])
    return row_digests(table, id_col, seed)


@dataclass(frozen=True, eq=False)
class DrawClusters(RowStep):
    """The step that says of rows whether they are kept.

    Attributes
    ----------
    column
        Of that.
    order, ends
        In what order rows are kept, and where each cluster ends.
    id_col, by_shard
        Column of the keys, and whether rows have their shards.
    how
        What was asked for, in words.
    """

    column: str
    order: Order
    ends: Ends
    id_col: str
    by_shard: bool
    how: str
    given_up: str | None = None

    label = "balance by clusters"
    may_kill = False
    needs = frozenset({"rows"})

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.recipe)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Whether a row is kept."""
        return {self.column: pa.bool_()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """The order, and the ends by their content."""
        order = self.order
        of = (order.clusters, order.column, order.sign, *([order.seed] if order.column is None else []))
        return ("balance clusters", 1, self.column, *of, self.id_col, self.ends.digest)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """What the record of a file says of the column."""
        said: dict[str, Any] = {
            "head": self.how,
            ON: self.id_col,
            FIELDS: self.order.columns,
            BALANCE: "clusters",
            "recipe": fingerprint({"recipe": self.recipe}),
        }
        return {self.column: {**said, BY_SHARD: URL_COLUMN} if self.by_shard else said}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """See which rows are kept."""
        if not len(rows):
            yield Known(Made.of_no_rows(self.columns))
            return
        names = self.order.columns + [name for name in (self.id_col, URL_COLUMN) if name in rows.names]
        table = pa.table({name: rows.column(name) for name in dict.fromkeys(names)})
        groups, order = self.order.of(table)

        def digests(some: np.ndarray) -> np.ndarray:
            return row_digests(table.take(pa.array(some)), self.id_col, self.order.seed)

        yield Known(Made({self.column: pa.array(self.ends.keeps(groups, order, digests))}))


def order_of(order: str, clusters: str, distance: str, columns: Sequence[str], seed: int = 0) -> Order:
    """What ``far``, ``near``, ``random`` or the name of a column means.

    Raises
    ------
    ConfigError
        There is no such column.
    """
    if order == RANDOM:
        return Order(clusters, None, seed=seed)
    if order in (FAR, NEAR):
        return Order(clusters, distance, 1 if order == FAR else -1)
    if order not in columns:
        raise ConfigError(
            f"order={order!r}: expected {FAR}, {NEAR}, {RANDOM} or a column of numbers, of {list(columns)}"
        )
    return Order(clusters, order)
