"""Which split a sample goes to: decided by a hash of what it is, so that it stays there.

A sample's unit is its key, or what it must not be parted from: a value of a column, a group of near copies. Each unit
has a number of 64 bits, made of BLAKE2b's of its name under a seed. Where a share is asked for, units whose numbers lie
in an interval of that share go there, whatever other rows there are. Where a number of samples is asked for, the units
that come first go there, in an order that is each split's own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError
from curator_dask.rows.draws import scattered
from curator_dask.rows.where import Where
from curator_dask.words import counted, some_of_these

#: What is left goes here.
REST = "train"
#: What names of units are of: the key of a sample, a value of a column.
KEY, VALUE = b"key", b"value"

#: What Hugging Face's datasets take for a split, and folders are called, which have no longer names everywhere.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_ROOM = 2**64


@dataclass(frozen=True)
class SplitBy:
    """A column, or an expression of columns, whose values are not parted.

    Attributes
    ----------
    text
        The name of a column; or as in SQL's SELECT: ``"regexp_extract(url, '//([^/]+)', 1)"``.
    option
        What names it, for an error.
    """

    text: str
    option: str = "split_by"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise ConfigError(f"{self.said}: expected the name of a column")

    @property
    def said(self) -> str:
        """It, as it is given in Python and on the command line."""
        return f"{self.option}={self.text!r} (--{self.option.replace('_', '-')})"

    def columns(self, names: Iterable[str]) -> list[str]:
        """Which of the columns it names."""
        names = list(names)
        return [self.text] if self.text in names else self._told(lambda where: where.columns(names))

    def values(self, table: pa.Table, columns: Iterable[str]) -> pa.ChunkedArray:
        """The values of rows.

        Parameters
        ----------
        table
            With the columns that it names.
        columns
            All that the rows have, for an error.

        Raises
        ------
        ConfigError
            It does not fit the columns, or gives no single values.
        """
        columns = list(columns)
        if self.text in table.column_names:
            found = table.column(self.text)
        else:
            found = self._told(lambda where: where.values(table, columns))
        if not self.columns(columns):
            raise ConfigError(
                f"{self.said}: names no column, so all rows have one value. There are {some_of_these(columns)}"
            )
        kind = found.type.value_type if pa.types.is_dictionary(found.type) else found.type
        if pa.types.is_nested(kind) or not _is_told(kind):
            raise ConfigError(
                f"{self.said}: expected single values, of which rows may have the same, found {kind}: name a column of"
                " text or numbers"
            )
        if len(found) != len(table):
            raise ConfigError(f"{self.said}: gives one value for all rows together")
        return found

    def _told(self, asked: Any) -> Any:
        try:
            return asked(Where(self.text))
        except ConfigError as error:
            said = (
                str(error)
                .replace("where=", f"{self.option}=", 1)
                .replace("condition", "column, or an expression,")
            )
            raise ConfigError(said) from None


@dataclass(frozen=True)
class Splits:
    """How samples are shared out.

    Attributes
    ----------
    wanted
        By name, the share (a float below 1) or the number (an int) of samples; what is left goes to `REST`.
    by
        Rows of one value stay together.
    groups
        A folder that `dedup` wrote: rows of one group stay together.
    seed
        Of the hashes.

    Raises
    ------
    ConfigError
        They cannot be carried out.
    """

    wanted: Mapping[str, float | int]
    by: SplitBy | None = None
    groups: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        example = "{'val': 0.01, 'test': 1000} (--split val=0.01 --split test=1000)"
        if not isinstance(self.wanted, Mapping) or not self.wanted:
            raise ConfigError(
                f"splits={self.wanted!r}: expected names with a share or a number, as {example}"
            )
        names: set[str] = set()
        for name, size in self.wanted.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() == "all":
                raise ConfigError(
                    f"splits: {name!r}: expected a name of letters, digits and _, 100 at most, which becomes a folder"
                    " (Hugging Face's datasets keep 'all' to themselves)"
                )
            if name.lower() == REST:
                raise ConfigError(f"splits: {name}={size!r}: {REST} has what the others leave: leave it out")
            if name.lower() in names:
                raise ConfigError(f"splits: {name!r}: is there twice, but for upper and lower case")
            names.add(name.lower())
            is_share = isinstance(size, float) and 0 < size < 1
            if not is_share and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ConfigError(
                    f"splits: {name}={size!r}: expected a share between 0 and 1, or a whole number of samples, as"
                    f" {example}"
                )
        if sum(self.shares.values()) > 1 + 1e-9:
            raise ConfigError(f"splits: shares of {dict(self.shares)} are more than all there is")
        if self.groups is not None and (not isinstance(self.groups, str) or not self.groups):
            raise ConfigError(f"split_groups={self.groups!r}: expected the folder that dedup wrote to")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < _ROOM:
            raise ConfigError(f"split_seed={self.seed!r}: expected a whole number of at least 0, of 64 bits")

    @property
    def shares(self) -> dict[str, float]:
        """The splits of which a share is asked for."""
        return {name: size for name, size in self.wanted.items() if isinstance(size, float)}

    @property
    def by_key(self) -> bool:
        """Whether only rows of one key stay together."""
        return self.by is None and self.groups is None

    @property
    def names(self) -> list[str]:
        """All splits in the order of their numbers: first what is left, then as they were given."""
        return [REST, *self.wanted]

    def hashed(self, names: Iterable[bytes], kind: bytes) -> np.ndarray:
        """uint64 (n,): the numbers of units by their names, BLAKE2b's of 8 bytes, little-endian, keyed by the seed."""
        key = self.seed.to_bytes(8, "little")
        digests = (hashlib.blake2b(name, digest_size=8, key=key, person=kind).digest() for name in names)
        return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)

    def of_values(self, values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """uint64 (rows,) numbers of the values; and bool (rows,), whether a row has one."""
        texts, places = distinct(values)
        numbers = np.append(self.hashed(texts, VALUE), np.uint64(0))  # the last of null
        return numbers[places], places >= 0

    def assign(self, units: np.ndarray) -> tuple[np.ndarray, dict[str, SplitCount]]:
        """Share samples out.

        Parameters
        ----------
        units
            uint64 (samples,): the number of each sample's unit.

        Returns
        -------
        numpy.ndarray
            int16 (samples,): the place of each sample's split in `names`.
        dict
            By name, how many samples it has.

        Raises
        ------
        ConfigError
            There are not so many samples.
        """
        values, of_sample, sizes = np.unique(units, return_inverse=True, return_counts=True)
        of = self._by_share(values)
        for place, (name, wanted) in enumerate(self.wanted.items(), 1):
            if isinstance(wanted, float):
                continue
            left = np.flatnonzero(of == 0)
            if (there := int(sizes[left].sum())) < wanted:
                raise ConfigError(
                    f"splits: {name}={wanted:,}: {there:,} of {len(units):,} samples are left for it: ask for fewer,"
                    " or for a share"
                )
            turns = scattered(values[left] ^ self.hashed([name.encode()], b"split"))
            order = left[np.argsort(turns, kind="stable")]
            of[order[_first(sizes[order], wanted)]] = place
        counts = {}
        for place, name in enumerate(self.names):
            mine = sizes[of == place]
            counts[name] = SplitCount(int(mine.sum()), self.wanted.get(name), int(mine.max(initial=0)))
        return of[of_sample], counts

    def _by_share(self, values: np.ndarray) -> np.ndarray:
        """int16 (units,): the splits of which a share is asked for; 0 for all other units."""
        total, places, edges = 0.0, [], []
        for place, size in enumerate(self.wanted.values(), 1):
            if isinstance(size, float):
                total += size
                places.append(place)
                edges.append(min(int(total * _ROOM), _ROOM - 1))
        if places and total > 1 - 1e-9:
            edges[-1] = _ROOM - 1  # the one number beyond is no unit's, or as good as
        # The smallest number of a large group is small, and would lie in the first interval: what is made of it is not.
        found = np.searchsorted(np.array(edges, np.uint64), scattered(values), side="right")
        of: np.ndarray = np.array([*places, 0], np.int16)[found]
        return of


@dataclass
class SplitCount:
    """What a split has.

    Attributes
    ----------
    samples
        In it.
    wanted
        The share or the number that was asked for; None: what is left.
    largest
        Samples of its largest unit, which all went together.
    shards, bytes
        Its tars.
    earlier
        Of the samples, those that were there before the call.
    """

    samples: int
    wanted: float | int | None = None
    largest: int = 0
    shards: int = 0
    bytes: int = 0
    earlier: int = 0

    def told(self, total: int, noun: str = "tar") -> str:
        """In words, of so many samples in all splits; the noun is that of its shards."""
        said = f"{counted(self.samples, 'sample')} in {counted(self.shards, noun)}"
        said += f", {self.samples - self.earlier:,} of them new" * bool(self.earlier)
        if self.wanted is None:
            return said
        share = f"{self.samples / max(1, total):.3g} of all" if isinstance(self.wanted, float) else ""
        asked = f"{self.wanted:.3g} was asked for" if share else f"{self.wanted:,} were asked for"
        large = f"; rows that stay together are {self.largest:,} at the most" if self.largest > 1 else ""
        return f"{said} ({', '.join(filter(None, [share, asked]))}{large})"


def linked(first: np.ndarray, second: np.ndarray, has_both: np.ndarray) -> np.ndarray:
    """uint64 (rows,): the units of rows that may be of two, all rows that hang together by these being of one.

    Parameters
    ----------
    first, second
        uint64 (rows,): numbers of the units.
    has_both
        Bool (rows,): which rows are of a second unit.
    """
    if not has_both.any():
        return first
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, places = np.unique(np.concatenate([first, second[has_both]]), return_inverse=True)
    one, other = places[: len(first)][has_both], places[len(first) :]
    edges = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(names), len(names)))
    _, of = connected_components(edges, directed=False)
    return least_of(names, of)[places[: len(first)]]


def least_of(numbers: np.ndarray, of: np.ndarray) -> np.ndarray:
    """uint64 (n,): of each group its smallest number, for all that are in it: a group that grows rarely has another.

    Parameters
    ----------
    numbers
        uint64 (n,).
    of
        int (n,): the group of each.
    """
    groups, places = np.unique(of, return_inverse=True)
    least = np.full(len(groups), _ROOM - 1, np.uint64)
    np.minimum.at(least, places, numbers)
    chosen: np.ndarray = least[places]
    return chosen


def distinct(values: pa.ChunkedArray) -> tuple[list[bytes], np.ndarray]:
    """What the distinct values are called; and int64 (rows,): the place of each row's among them, -1 of null or NaN."""
    if pa.types.is_null(values.type):
        return [], np.full(len(values), -1)
    if _is_of_bytes(values.type):
        values = values.cast(pa.large_binary())  # views have no dictionary
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    flat = values.unify_dictionaries().combine_chunks()
    texts = _texts(flat.dictionary)
    names = list(dict.fromkeys(text for text in texts if text is not None))
    of = {None: -1} | {name: place for place, name in enumerate(names)}
    known = np.array([*(of[text] for text in texts), -1], np.int64)  # the last of null
    return names, known[flat.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)]


def _texts(values: pa.Array) -> list[bytes | None]:
    """What distinct values are called: text as it is, numbers as they are written."""
    if pa.types.is_floating(values.type):  # whole numbers are such where a file has nulls among them
        return [
            None if each is None or each != each else str(int(each) if each.is_integer() else each).encode()
            for each in values.cast(pa.float64()).to_pylist()
        ]
    if not _is_of_bytes(values.type):
        values = pc.cast(values, pa.large_string())
    found: list[bytes | None] = pc.cast(values, pa.large_binary()).to_pylist()
    return found


def _is_of_bytes(kind: pa.DataType) -> bool:
    of = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    )
    return any(is_such(kind) for is_such in of) and not pa.types.is_decimal(kind)


def _is_told(kind: pa.DataType) -> bool:
    """Whether values of a type can be told apart as they are written."""
    try:
        _texts(pa.array([], kind))
    except pa.ArrowNotImplementedError:
        return False
    return True


def _first(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Places of the units that are taken, one after the other, each that still has room."""
    taken, left = [], np.arange(len(sizes))
    while wanted and len(left):
        left = left[sizes[left] <= wanted]
        fit = int(np.searchsorted(np.cumsum(sizes[left]), wanted, side="right"))
        taken.append(left[:fit])
        wanted -= int(sizes[left[:fit]].sum())
        left = left[fit:]
    return np.concatenate([np.empty(0, np.int64), *taken])
