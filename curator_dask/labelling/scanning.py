"""A look at every row of an output: which may be shown, how many may not and why, and what decides among the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.cluster.mapping import on_cluster
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.image.fitting.sources import Asked, LabelTables
from curator_dask.report.folder import File, Folder, blocks
from curator_dask.report.rows import numbers_of
from curator_dask.rows.where import Where
from curator_dask.storage import Options


@dataclass(frozen=True)
class Decision:
    """Where heads decide: a row near that is the one whose label says most.

    Attributes
    ----------
    columns
        Of scores: one, or of several classes one each.
    at
        Of one column the score at which it decides.
    """

    columns: tuple[str, ...]
    at: float = 0.5

    def of(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """How far each row is from the decision, and its score; float64 (rows,), NaN where a score is lacking.

        Of several columns both are the margin: the largest score less the second.
        """
        missing = np.full(table.num_rows, np.nan)
        names = table.column_names
        scores = np.stack(
            [numbers_of(table.column(name)) if name in names else missing for name in self.columns]
        )
        scores[:, ~np.isfinite(scores).all(axis=0)] = np.nan
        if len(scores) == 1:
            return np.abs(scores[0] - self.at), scores[0]
        second, first = np.sort(scores, axis=0)[-2:]
        return first - second, first - second


@dataclass
class Smallest:
    """Of rows those of the smallest values; of equal ones the first rows.

    Attributes
    ----------
    most
        How many are kept.
    rows, values, scores
        int64 (n,), their numbers in the output; float64 (n,); float64 (n,), what else is known of them.
    """

    most: int
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, rows: np.ndarray, values: np.ndarray, scores: np.ndarray) -> None:
        """Take more rows into account."""
        self.rows = np.concatenate([self.rows, rows])
        self.values = np.concatenate([self.values, values])
        self.scores = np.concatenate([self.scores, scores])
        if len(self.rows) > 2 * self.most:
            self.cut()

    def cut(self) -> None:
        """Leave those that are kept, the smallest first."""
        order = np.lexsort((self.rows, self.values))[: self.most]
        self.rows, self.values, self.scores = self.rows[order], self.values[order], self.scores[order]


@dataclass
class Scan:
    """What a file's rows have come to; each row is counted once, by the first that is so.

    Attributes
    ----------
    drawn
        Of the rows that may be shown some, drawn by chance: the values are random numbers.
    doubtful
        Of these rows those nearest to a decision.
    known
        Of the rows that have a label some, drawn by chance.
    rows
        Of the file.
    filtered
        That do not pass the condition.
    failed
        Whose image failed.
    labelled
        That have a label.
    unscored
        Without a score.
    low, high
        The smallest score and the largest, of all rows.
    asked
        Which labels its rows have.
    """

    drawn: Smallest
    doubtful: Smallest
    known: Smallest
    rows: int = 0
    filtered: int = 0
    failed: int = 0
    labelled: int = 0
    unscored: int = 0
    low: float = np.inf
    high: float = -np.inf
    asked: Asked | None = None

    @property
    def left(self) -> int:
        """Rows that may be shown."""
        return self.rows - self.filtered - self.failed - self.labelled - self.unscored

    def cut(self) -> None:
        """Leave the rows that are kept."""
        for each in (self.drawn, self.doubtful, self.known):
            each.cut()

    def add(self, other: Scan) -> None:
        """Count another file's."""
        for name in ("rows", "filtered", "failed", "labelled", "unscored"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        both = (
            (self.drawn, other.drawn),
            (self.doubtful, other.doubtful),
            (self.known, other.known),
        )
        for mine, its in both:
            mine.add(its.rows, its.values, its.scores)


@dataclass(frozen=True)
class ScanFile:
    """Scans a file.

    Attributes
    ----------
    where
        Condition that rows must pass, or None.
    labels
        What is labelled, or None.
    decision
        None: no score plays a part.
    drawn, doubtful, known
        How many rows to keep.
    types
        Of all columns of the output.
    seed, options
        Of the random numbers; for fsspec.
    """

    where: Where | None
    labels: LabelTables | None
    decision: Decision | None
    drawn: int
    doubtful: int
    known: int
    types: dict[str, pa.DataType]
    seed: int
    options: Options

    def begin(self) -> Scan:
        """That of no rows."""
        return Scan(Smallest(self.drawn), Smallest(self.doubtful), Smallest(self.known))

    def __call__(self, file: File) -> Scan:
        """Read the columns that are needed, block after block."""
        scan = self.begin()
        labels = None if self.labels is None else self.labels.fresh()
        named = [] if self.where is None else self.where.columns(list(self.types))
        scored = [] if self.decision is None else self.decision.columns
        of_labels = [] if labels is None else labels.columns
        read = [file.id_col, ERROR_COLUMN, *named, *scored, *of_labels]
        random = np.random.default_rng([self.seed, file.first])
        for start, table in blocks(file, read, self.options):
            numbers = np.arange(start, start + table.num_rows) + file.first
            self._count(scan, table, numbers, labels, named, random.random(table.num_rows), file.path)
        scan.cut()
        scan.asked = None if labels is None else labels.asked
        return scan

    def _count(
        self,
        scan: Scan,
        table: pa.Table,
        numbers: np.ndarray,
        labels: LabelTables | None,
        named: Sequence[str],
        draws: np.ndarray,
        path: str,
    ) -> None:
        left = np.ones(table.num_rows, bool)

        def leave_out(out: np.ndarray) -> int:
            count = int((left & out).sum())
            left[out] = False
            return count

        scan.rows += table.num_rows
        if self.where is not None:
            scan.filtered += leave_out(self.where.passes(self._with(table, named), list(self.types)) != 1)
        if ERROR_COLUMN in table.column_names:
            scan.failed += leave_out(np.asarray(pc.is_valid(table.column(ERROR_COLUMN)), bool))
        if labels is not None:
            for batch in table.to_batches():  # there is one
                known = np.asarray(labels.labels(batch, path).is_valid(), bool)
                scan.known.add(numbers[known], draws[known], draws[known])
                scan.labelled += leave_out(known)
        scores = np.zeros(table.num_rows)
        if self.decision is not None:
            doubts, scores = self.decision.of(table)
            scored = ~np.isnan(scores)
            if scored.any():
                scan.low, scan.high = (
                    min(scan.low, scores[scored].min()),
                    max(scan.high, scores[scored].max()),
                )
            scan.unscored += leave_out(~scored)
            scan.doubtful.add(numbers[left], doubts[left], scores[left])
        scan.drawn.add(numbers[left], draws[left], scores[left])

    def _with(self, table: pa.Table, names: Sequence[str]) -> pa.Table:
        """Columns that other files have are null in this one."""
        for name in names:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, self.types[name]))
        return table


def scan_rows(folder: Folder, scan_file: ScanFile) -> Scan:
    """All rows of an output; what they ask of the labels is counted there."""
    total = scan_file.begin()
    for scan in on_cluster(scan_file, folder.files):
        total.add(scan)
        if scan_file.labels is not None and scan.asked is not None:
            scan_file.labels.count(scan.asked)
    total.cut()
    return total
