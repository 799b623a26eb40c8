"""Scores and measures: how their values spread, and how many rows pass at any of a few hundred thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cluster.mapping import on_cluster
from curator_dask.errors import ConfigError
from curator_dask.report.folder import File, Folder, blocks
from curator_dask.report.looking import Look
from curator_dask.report.rows import numbers_of
from curator_dask.rows.where import Where
from curator_dask.storage import Options

#: Columns that a page takes.
COLUMNS = 24
#: Thresholds of a column at which rows are counted, and bars of its histogram.
STEPS, BARS = 400, 48
_EXACT = (
    1 << 53
)  # larger whole numbers are hashes and ids: no float64 holds them, nor has a threshold a meaning


#: What the numbers of the package's own statistics mean (`curator_dask.image.statistics`).
_MEANINGS = {
    "blurriness": "the smaller the blurrier",
    "brightness": "0 is black, 1 white",
    "entropy": "the smaller the plainer",
    "colourfulness": "0 is grey",
    "border": "the share of the area that plain bars take",
    "clip_score": "cosine of image and caption",
    "neg_clip_loss": "cosine of image and caption, less how well each fits what belongs to others",
    "aesthetic_score": "about 1 to 10, the larger the better",
    "nsfw_score": "0 is safe, 1 is not",
}


@dataclass
class Measure:
    """A column of numbers.

    Attributes
    ----------
    name
        Of the column.
    is_single
        Its values are float32 or float16: a threshold is rounded to float32 before it is compared, as DuckDB does and
        pandas.
    is_whole
        Its values are whole numbers.
    known
        How many there are: not null, not NaN.
    low, high
        The smallest and the largest finite one.
    middle
        Median; of the sample.
    steps
        float64 (steps,), rising: thresholds. Decimal numbers as short as may be, so that they can be written down.
    at_least, at_most
        int64 (steps,): of all rows, how many have such a value.
    bars
        float64 (bars + 1,), rising: where the histogram's bars begin, and the last one ends. What lies beyond the ends
        is counted to the first and the last.
    heights
        int64 (bars,): of all rows.
    """

    name: str
    is_single: bool
    is_whole: bool
    known: int
    low: float
    high: float
    middle: float
    steps: np.ndarray
    bars: np.ndarray
    at_least: np.ndarray
    at_most: np.ndarray
    heights: np.ndarray

    @property
    def sql(self) -> str:
        """Its name in a condition."""
        return sql_name(self.name)

    def as_held(self, values: np.ndarray) -> np.ndarray:
        """Thresholds as they are compared with the column's values."""
        return values.astype(np.float32).astype(np.float64) if self.is_single else values


def sql_name(name: str) -> str:
    """A column's name as a condition takes it: in double quotes where it must be."""
    try:
        if Where(f"{name} >= 0").columns([name]) == [name] and name.isidentifier():
            return name
    except ConfigError:
        pass
    quoted = name.replace('"', '""')
    return f'"{quoted}"'


def find_measures(folder: Folder, look: Look) -> tuple[list[Measure], dict[str, str]]:
    """The columns that a threshold has a meaning for, with steps by the sample; and why others are left out."""
    found, others = [], {}
    for name in folder.numbers:
        low, high = look.low.get(name, 0.0), look.high.get(name, 0.0)
        if low == high:
            others[name] = "one value alone" if name in look.low else "no value"
            continue
        if max(abs(low), abs(high)) >= _EXACT:
            others[name] = "values beyond 2⁵³, as hashes and ids have"
            continue
        kind = folder.types[name]
        sample = look.rows.numbers[name]
        sample = sample[np.isfinite(sample)]
        whole = bool(pa.types.is_integer(kind))
        single = bool(pa.types.is_float16(kind) or pa.types.is_float32(kind))
        steps, bars = steps_of(sample, low, high, whole), bars_of(sample, low, high, whole)
        zeros = np.zeros(len(steps), np.int64)
        middle = float(np.median(sample)) if len(sample) else low
        heights = np.zeros(len(bars) - 1, np.int64)
        found.append(
            Measure(
                *(name, single, whole, look.known[name], low, high, middle, steps, bars),
                *(zeros, zeros.copy(), heights),
            )
        )
    # What the run has made comes first, before what the dataset had.
    made = {name for record in folder.records for name in (*record.scores, *record.derived)}
    found.sort(key=lambda measure: measure.name not in made)
    others.update({each.name: f"the page takes {COLUMNS} columns" for each in found[COLUMNS:]})
    return found[:COLUMNS], others


def steps_of(sample: np.ndarray, low: float, high: float, whole: bool) -> np.ndarray:
    """Thresholds: each of the sample's values where they are few, else as many values lie between any two of them."""
    values = np.unique(np.concatenate([sample, [low, high]]))
    if whole and high - low < STEPS:
        return np.arange(low, high + 1)
    if len(values) > STEPS:
        even = np.linspace(low, high, STEPS // 4)
        values = np.unique(np.concatenate([np.quantile(values, np.linspace(0, 1, 3 * STEPS // 4)), even]))
    if whole:
        return np.unique(np.floor(values))
    befores = np.concatenate([[np.nextafter(values[0], -np.inf)], values[:-1]])
    return np.unique(shortest_between(befores, values))


def shortest_between(after: np.ndarray, upto: np.ndarray) -> np.ndarray:
    """float64: for each pair, the number of the fewest decimals above the first and not above the second."""
    found = upto.astype(np.float64).copy()
    todo = np.ones(len(found), bool)
    for digits in range(-int(np.ceil(np.log10(max(1.0, np.abs(upto).max())))), 16):
        unit = 10.0 ** abs(digits)
        rounded = np.floor(upto * unit) / unit if digits >= 0 else np.floor(upto / unit) * unit
        fits = todo & (rounded > after) & (rounded <= upto)
        found[fits] = rounded[fits]
        todo &= ~fits
    return found


def bars_of(sample: np.ndarray, low: float, high: float, whole: bool) -> np.ndarray:
    """Where bars begin and end: of one width, over all but the few values that are far from all others."""
    if len(sample) > 2:
        first, last = np.quantile(sample, [0.005, 0.995])
        if (high - low) > 2 * (last - first) > 0:
            low, high = float(first), float(last)
    if whole:
        width = max(1.0, np.ceil((high - low + 1) / BARS))
        return np.arange(np.floor(low), high + 1 + width, width)
    return np.linspace(low, high, BARS + 1)


@dataclass(frozen=True)
class CountRows:
    """Counts the values of a file on both sides of thresholds.

    Attributes
    ----------
    places
        By column, thresholds as they are compared, in rising order.
    options
        For fsspec.
    """

    places: dict[str, np.ndarray]
    options: Options

    def __call__(self, file: File) -> dict[str, np.ndarray]:
        """int64 (2, thresholds) by column: values below each, and values not above it."""
        found = {name: np.zeros((2, len(at)), np.int64) for name, at in self.places.items()}
        for _, table in blocks(file, list(self.places), self.options):
            for name in table.column_names:
                values = np.sort(numbers_of(table.column(name)))
                values = values[: len(values) - int(np.isnan(values).sum())]
                for side, into in zip(("left", "right"), found[name], strict=True):
                    into += np.searchsorted(values, self.places[name], side)  # type: ignore[call-overload]
        return found


def count_measures(folder: Folder, measures: Sequence[Measure]) -> None:
    """Count all rows at each measure's steps and bars."""
    places = {each.name: np.concatenate([each.as_held(each.steps), each.bars[1:-1]]) for each in measures}
    count = CountRows(places, folder.options)
    totals: dict[str, Any] = {name: np.zeros((2, len(at)), np.int64) for name, at in places.items()}
    for found in on_cluster(count, folder.files):
        for name, counts in found.items():
            totals[name] += counts
    for each in measures:
        below, upto = totals[each.name]
        cut = len(each.steps)
        each.at_least, each.at_most = each.known - below[:cut], upto[:cut]
        each.heights = np.diff(np.concatenate([[0], below[cut:], [each.known]]))


def meaning_of(name: str) -> str:
    """What a column's numbers mean, as far as that is known by its name; a prefix does not matter."""
    return next((said for own, said in _MEANINGS.items() if name.endswith(own)), "")
