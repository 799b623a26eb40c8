"""The columns that two outputs have in common, side by side: how numbers, classes and the lengths of texts spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, NoColumnError, OutputError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.info.footers import FileFacts
from curator_dask.info.values import EXACT, Look, Part, kind_of, pick_parts, plain_values, read_values
from curator_dask.report.rows import short
from curator_dask.storage import Options
from curator_dask.words import none_of_these

#: Values of a column up to which they are classes; of more, or where few come twice, lengths are compared.
CLASSES = 200
#: Bars of a histogram.
BARS = 40
#: Values of a column of classes that are kept: those whose shares differ most.
VALUES = 5
#: Of the Kolmogorov-Smirnov distance: what two samples of one kind stay below in 95 of 100 cases (Smirnov 1948).
_KOLMOGOROV = 1.358
_BYTES = 1 << 28  # that numbers of both outputs may take at a time
_NONE = "none"  # the kind of a column of which each value is null, so that its type says nothing
QUANTILES = (0.05, 0.5, 0.95)


@dataclass
class ColumnDifference:
    """A column of both outputs; in pairs that of A is first.

    Attributes
    ----------
    name
        Of the column; of the lengths of texts with what is counted behind it.
    kind
        ``number``, ``class`` or ``length``.
    filled
        Shares of the rows that have a value, which is finite.
    looked
        Values that the following is of.
    mean, quantiles
        Of numbers and lengths: their means, and 5 %, median and 95 % of each.
    distance
        Of numbers and lengths the Kolmogorov-Smirnov distance, the largest difference of shares below any value. Of
        classes half the sum of the differences of their shares (total variation). 0 to 1; None: one has no value.
    chance
        Of a Kolmogorov-Smirnov distance: what two samples of one kind, and of so many, stay below in 95 of 100 cases.
    values
        Of classes those that differ most: value, share in A, share in B.
    bars
        Of numbers and lengths a histogram: its ends, which are the outermost quantiles of 1 %, and the shares of A and
        of B in each of its bars; what lies beyond is in the outermost.
    """

    name: str
    kind: str
    filled: tuple[float | None, float | None]
    looked: tuple[int, int] = (0, 0)
    mean: tuple[float, float] | None = None
    quantiles: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    distance: float | None = None
    chance: float | None = None
    values: list[tuple[str, float, float]] = field(default_factory=list)
    bars: tuple[float, float, list[float], list[float]] | None = None

    @property
    def is_constant(self) -> bool:
        """Whether nearly all values are one, the same in both: digests are as long as one another."""
        ends = [] if self.quantiles is None else [side[at] for side in self.quantiles for at in (0, -1)]
        return self.distance == 0 and len({*ends}) == 1

    @property
    def apart(self) -> float:
        """By which columns are sorted: the distance, or the difference of filled shares where that is larger."""
        filled = [0.0 if each is None else each for each in self.filled]
        return max(self.distance or 0.0, abs(filled[0] - filled[1]))


@dataclass
class Columns:
    """What both outputs have, and what one has alone.

    Attributes
    ----------
    both
        The most different first.
    only
        Names of those that A, or B, has alone.
    unlike
        Names of those that are of numbers in one and something else in the other, and so not compared.
    others
        Names of those that are neither numbers nor text in both, such as lists and dates, and so not compared.
    hashes
        Names of those whose numbers are hashes or ids (2**53 and more), of which neither a mean nor an order means
        anything; compared only where they are asked for.
    looked
        Rows of A and of B that values were read of.
    """

    both: list[ColumnDifference] = field(default_factory=list)
    only: tuple[list[str], list[str]] = ((), ())  # type: ignore[assignment]
    unlike: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    looked: tuple[int, int] = (0, 0)


class TextLook(Look):
    """The values of a column of texts, and how long these are."""

    def __init__(self) -> None:
        super().__init__("text")
        self.characters: list[np.ndarray] = []
        self.words: list[np.ndarray] = []

    def add(self, values: pa.Array) -> None:
        """Count some values."""
        super().add(values)
        values = plain_values(values).drop_null()
        is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        if not is_text or not len(values):  # booleans, and bytes in a dictionary
            return
        self.characters.append(_numbers(pc.utf8_length(values)))
        # White space at the ends makes no word.
        words = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(values)))
        self.words.append(
            np.where(_numbers(pc.utf8_length(pc.utf8_trim_whitespace(values))) > 0, _numbers(words), 0)
        )


def _numbers(values: pa.Array) -> np.ndarray:
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))


def compare_columns(
    files: tuple[Sequence[FileFacts], Sequence[FileFacts]],
    names: Sequence[str] | None,
    options: tuple[Options, Options],
    paths: tuple[str, str],
) -> Columns:
    """Compare the columns that both have, but for keys, shards and vectors.

    Parameters
    ----------
    files
        Of A and of B, by their footers.
    names
        Columns to compare; None: all.
    options
        For fsspec, of A and of B.
    paths
        Of both, for errors.

    Raises
    ------
    NoColumnError
        One of `names` is not in both.
    ConfigError
        One is of no type that is compared.
    OutputError
        A file cannot be read.
    """
    kinds = _kinds(files[0]), _kinds(files[1])
    for name in kinds[0].keys() & kinds[1].keys():  # of what is null in one, the other says what it is
        for one in (0, 1):
            if kinds[one][name] == _NONE:
                kinds[one][name] = kinds[1 - one][name]
    for name in names or ():
        for known, path in zip(kinds, paths, strict=True):
            if name not in known:
                raise NoColumnError(f"{path}: {none_of_these(name, list(known))}")
    own = {URL_COLUMN, ERROR_COLUMN, *(each.id_col for side in files for each in side)}
    compared = ("number", "text")
    for name in names or ():
        if name in own or (kinds[0][name] == kinds[1][name] and kinds[0][name] not in compared):
            raise ConfigError(
                f"columns={name!r}: numbers, booleans, classes and texts are compared, but for keys and shards, and"
                " this is none of these (columns=, --columns)"
            )
    shared = [name for name in kinds[0] if name in kinds[1] and name not in own]
    shared = [name for name in shared if names is None or name in names]
    found = Columns(only=tuple([n for n in kinds[one] if n not in kinds[1 - one]] for one in (0, 1)))  # type: ignore[arg-type]
    found.unlike = [name for name in shared if kinds[0][name] != kinds[1][name]]
    found.others = [name for name in shared if kinds[0][name] == kinds[1][name] == "other"]
    parts = tuple(pick_parts(each, False) for each in files)
    found.looked = tuple(sum(part.rows for part in each) for each in parts)  # type: ignore[assignment]
    same = [name for name in shared if kinds[0][name] == kinds[1][name] and kinds[0][name] in compared]
    most = max(1, _BYTES // max(1, 8 * sum(found.looked)))
    for start in range(0, len(same), most):
        some = same[start : start + most]
        looks = [
            _look({name: kinds[0][name] for name in some}, parts[side], options[side], paths[side])
            for side in (0, 1)
        ]
        for name in some:
            if names is None and any(_is_hash(look[name]) for look in looks):
                found.hashes.append(name)
                continue
            filled = (_filled(name, files[0]), _filled(name, files[1]))
            found.both += _differences(name, (looks[0][name], looks[1][name]), filled)
    found.both.sort(key=lambda each: (-each.apart, each.name))
    return found


def _kinds(files: Sequence[FileFacts]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files:
        for name, kind in file.types.items():
            if pa.types.is_null(kind):
                found.setdefault(name, _NONE)
            elif found.get(name, _NONE) in (_NONE, "other"):
                found[name] = kind_of(kind)
    return found


def _filled(name: str, files: Sequence[FileFacts]) -> float | None:
    counts = [file.filled.get(name) if name in file.types else 0 for file in files]
    rows = sum(file.rows for file in files)
    if not rows or any(count is None for count in counts):
        return None
    return sum(count or 0 for count in counts) / rows


def _look(kinds: dict[str, str], parts: Sequence[Part], options: Options, path: str) -> dict[str, Look]:
    looks = {name: TextLook() if kind == "text" else Look(kind) for name, kind in kinds.items()}
    faults: dict[str, str] = {}
    read_values(looks, parts, options, faults)
    if faults:
        name = min(faults)
        raise OutputError(f"{path}: {name}: {faults[name]}")
    return looks


def _differences(
    name: str, looks: tuple[Look, Look], filled: tuple[float | None, float | None]
) -> list[ColumnDifference]:
    one, other = looks
    filled = (_finite(filled[0], one), _finite(filled[1], other))
    if not (isinstance(one, TextLook) and isinstance(other, TextLook)):
        return [_of_numbers(name, "number", filled, one.numbers, other.numbers)]
    if not any(_is_free(each) for each in (one, other)):
        return [_of_classes(name, filled, (one.texts, other.texts))]
    lengths = [
        _of_numbers(f"{name} ({what})", "length", filled, getattr(one, what), getattr(other, what))
        for what in ("characters", "words")
    ]
    return [each for each in lengths if not each.is_constant]


def _is_hash(look: Look) -> bool:
    return any(math.isfinite(each) and abs(each) >= EXACT for each in look.bounds)


def _finite(filled: float | None, look: Look) -> float | None:
    """The share that has a value, where NaN and infinity are none."""
    if filled is None or not look.known or look.kind != "number":
        return filled
    return filled * sum(int(np.isfinite(each).sum()) for each in look.numbers) / look.known


def _is_free(look: Look) -> bool:
    """Whether texts are no names of classes: there are many, or nearly each is of one row alone."""
    return look.more or len(look.texts) > min(CLASSES, max(2, look.known // 2))


def _of_numbers(
    name: str,
    kind: str,
    filled: tuple[float | None, float | None],
    one: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
) -> ColumnDifference:
    sides = [np.sort(np.concatenate([np.zeros(0), *each])) for each in (one, other)]
    left, right = (each[np.isfinite(each)] for each in sides)
    found = ColumnDifference(name, kind, filled, (len(left), len(right)))
    if len(left) and len(right):
        found.mean = (float(left.mean()), float(right.mean()))
        found.quantiles = tuple(tuple(np.quantile(each, QUANTILES).tolist()) for each in (left, right))  # type: ignore[assignment]
        found.distance = kolmogorov(left, right)
        found.bars = _bars(left, right)
        found.chance = _KOLMOGOROV * math.sqrt(1 / len(left) + 1 / len(right))
    return found


def _bars(one: np.ndarray, other: np.ndarray) -> tuple[float, float, list[float], list[float]]:
    """A histogram of two sorted arrays."""
    low = float(min(np.quantile(each, 0.01) for each in (one, other)))
    high = float(max(np.quantile(each, 0.99) for each in (one, other)))
    inner = np.linspace(low, high, BARS + 1)[1:-1]
    shares = []
    for each in (one, other):
        counts = np.diff(np.searchsorted(each, inner, side="left"), prepend=0, append=len(each))
        shares.append((counts / len(each)).tolist())
    return low, high, shares[0], shares[1]


def kolmogorov(one: np.ndarray, other: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of two sorted arrays: the largest difference of their shares up to a value."""
    every = np.concatenate([one, other])
    shares = [np.searchsorted(each, every, side="right") / len(each) for each in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def _of_classes(
    name: str, filled: tuple[float | None, float | None], counts: tuple[Counter[str], Counter[str]]
) -> ColumnDifference:
    totals = (counts[0].total(), counts[1].total())
    found = ColumnDifference(name, "class", filled, totals)
    if all(totals):
        shares = [
            (text, counts[0][text] / totals[0], counts[1][text] / totals[1])
            for text in sorted({*counts[0], *counts[1]})
        ]
        found.distance = min(1.0, sum(abs(left - right) for _, left, right in shares) / 2)
        shares.sort(key=lambda each: (-abs(each[1] - each[2]), -each[1], each[0]))
        found.values = [(short(text) or "", left, right) for text, left, right in shares[:VALUES]]
    return found
