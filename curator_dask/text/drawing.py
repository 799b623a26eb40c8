"""Which rows are kept so that no concept has too many: MetaCLIP's balancing (Xu et al. 2023, arXiv 2309.16671).

A concept that `n` rows contain draws each of them with the probability ``min(1, most / n)``, and a row is kept where at
least one of its concepts draws it (Algorithm 1): with the probability ``1 - prod(1 - p)`` over its concepts. Here a row
draws one number for all of them, from a digest of its key, its captions and a seed: the same wherever the row is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.record import BALANCE, ON, TEXTS
from curator_dask.rows.draws import text_digests
from curator_dask.runs.passes import RowStep
from curator_dask.runs.reports import report_frame
from curator_dask.runs.step import Known, Made, Rows, Work
from curator_dask.storage import join
from curator_dask.text.captions import Captions
from curator_dask.text.concepts import ConceptFile
from curator_dask.text.counting import CountFile, Counting, Found, plain_report

#: The columns of a row's probability, and of whether it is drawn.
CHANCE, DRAWN = "balance", "balanced"
#: All, with how many concepts a row has, and the one that fewest rows have.
COLUMNS = {
    "concepts": pa.int32(),
    "rarest_concept": pa.string(),
    CHANCE: pa.float32(),
    DRAWN: pa.bool_(),
}


def keep_probability(found: Found, counts: np.ndarray, most: int, rows: int) -> np.ndarray:
    """float64 (rows,): with what probability each row is kept; 0 where it has no concept.

    It never falls where `most` rises: the same numbers are multiplied in the same order.
    """
    missed = np.ones(rows)
    if len(found.rows):
        starts = _starts(found.rows)
        # A file may have changed since it was counted, and has what no row had.
        by_one = 1 - np.minimum(1, most / np.maximum(1, counts[found.concepts]))
        missed[found.rows[starts]] = np.multiply.reduceat(by_one, starts)
    return 1 - missed


def draws(ids: Sequence[Any], captions: Captions, seed: int) -> np.ndarray:
    """float64 (rows,): a number in [0, 1) that each row draws, by its key, its captions and the seed alone.

    Captions are taken too, for some datasets have a key in every shard.
    """
    texts: list[list[str]] = [[] for _ in ids]
    for row, text in zip(captions.rows.tolist(), captions.texts, strict=True):
        texts[row].append(text)
    said = ("\0".join([str(seed), str(key), *own]) for key, own in zip(ids, texts, strict=True))
    return (text_digests(said) >> np.uint64(11)) * 2.0**-53


def _starts(rows: np.ndarray) -> np.ndarray:
    """Where the pairs of each row begin."""
    return np.flatnonzero(np.diff(rows, prepend=-1))


@dataclass(frozen=True, eq=False)
class BalanceRows(RowStep):
    """The step that says of rows with what probability they are kept, and whether they are.

    Attributes
    ----------
    concepts, counts
        Which concepts, and how many rows of the whole dataset contain each.
    text_column, id_col
        Of the captions, and of the keys.
    most
        Rows of a concept above which not all of them are drawn.
    seed
        Of the draw.
    prefix
        Before the columns' names.
    keep_unmatched
        Rows without any concept are kept.
    label
        The name of the file of concepts.
    """

    concepts: ConceptFile
    counts: CountFile
    text_column: str
    id_col: str
    most: int
    seed: int
    prefix: str
    keep_unmatched: bool
    label: str
    given_up: str | None = None

    may_kill = False
    needs = frozenset({"rows"})

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.recipe, self.counts.path)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """`COLUMNS`, each with the prefix."""
        return {f"{self.prefix}{name}": kind for name, kind in COLUMNS.items()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Concepts and counts by their content, and what is made of them."""
        what = (self.concepts.digest, self.counts.digest, self.text_column, self.id_col)
        return ("balance", 1, *what, self.most, self.seed, self.prefix, self.keep_unmatched)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of it."""
        said = {
            "head": self.label,
            TEXTS: self.text_column,
            ON: self.id_col,
            BALANCE: "concepts",
            "recipe": fingerprint({"recipe": self.recipe}),
            "most": self.most,
            "seed": self.seed,
        }
        return {name: dict(said) for name in self.columns}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Have the concepts in memory; of vectors it makes none."""
        with self.concepts.held():
            return {}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Find the concepts of some rows."""
        if not len(rows):
            yield Known(Made.of_no_rows(self.columns))
            return
        captions, counts = Captions.of(rows, self.text_column), self.counts.read()
        with self.concepts.held() as held:
            found = Found.of(captions, held)
            rarest = held.texts.take(_rarest(found, counts, len(rows)))
        chance = self._chance(found, counts, len(rows))
        drawn = draws(rows.column(self.id_col).to_pylist(), captions, self.seed)
        made = (
            pa.array(np.bincount(found.rows, minlength=len(rows)).astype(np.int32)),
            rarest.cast(pa.string()),
            pa.array(chance),
            pa.array(drawn < chance),
        )
        yield Known(Made(dict(zip(self.columns, made, strict=True))))

    def _chance(self, found: Found, counts: np.ndarray, rows: int) -> np.ndarray:
        chance = keep_probability(found, counts, self.most, rows).astype(np.float32)
        if self.keep_unmatched:
            chance[~np.isin(np.arange(rows), found.rows)] = 1
        return chance


def _rarest(found: Found, counts: np.ndarray, rows: int) -> pa.Array:
    """int64 (rows,): the concept that fewest rows have, of equal ones the first in the list; null where none is."""
    order = np.lexsort((found.concepts, counts[found.concepts], found.rows))
    best = order[_starts(found.rows)]  # the rows are in order as they are
    numbers = np.full(rows, -1)
    numbers[found.rows[best]] = found.concepts[best]
    return pa.array(numbers, mask=numbers < 0)


@dataclass(frozen=True)
class Expect:
    """Says of a file how many rows are to be expected by several thresholds.

    Attributes
    ----------
    counting, counts
        What was counted, and what came of it.
    levels
        The thresholds.
    """

    counting: Counting
    counts: CountFile
    levels: tuple[int, ...]
    given_up: str | None = None

    def give_up(self, reason: str) -> Expect:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, name: str) -> pd.DataFrame:
        """Look at one file; the report says under ``expected`` how many rows each threshold keeps, a float."""
        if self.given_up is not None:
            raise ShardError(f"{join(self.counting.source.folder, name)}: {self.given_up}")
        captions, counts = self.counting.captions(name), self.counts.read()
        with self.counting.concepts.held() as held:
            found = Found.of(captions, held)
        rows = len(captions.lacking)
        expected = [float(keep_probability(found, counts, level, rows).sum()) for level in self.levels]
        return report_frame(plain_report(name, rows, expected=expected))


def levels_of(counts: np.ndarray) -> tuple[int, ...]:
    """Thresholds to choose from, the largest first: 1, 2 or 5 times a power of ten, from where all rows are kept."""
    steps = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    largest, levels = int(counts.max(initial=1)), [next(steps)]
    while levels[-1] < largest:
        levels.append(next(steps))
    return tuple(reversed(levels))


def expected_of(reports: Sequence[Mapping[str, Any]], levels: Sequence[int]) -> dict[int, float]:
    """By threshold, how many rows of all files are to be expected."""
    sums = np.sum([report["expected"] for report in reports], axis=0) if reports else np.zeros(len(levels))
    return dict(zip(levels, sums.tolist(), strict=True))
