"""At most so many rows of each value of a column: those with the largest values of another, or any.

"Any" is by a digest of key and shard, so the same rows are taken whatever their order and their files.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError
from curator_dask.rows.best import Place, against, comparable, is_number, places_of, values_of


@dataclass(frozen=True)
class Cap:
    """How many rows of each value are kept, and which.

    Attributes
    ----------
    column
        Of text, whole numbers or booleans. Rows without a value do not pass.
    most
        Rows of each value, at most.
    by
        Column of numbers: the largest are kept, and rows without one do not pass. None: any.
    """

    column: str
    most: int
    by: str | None = None


def check_cap(at_most: Any, by: str | None, top: Any = None) -> Cap | None:
    """A column, and how many rows of each of its values; None where that is not limited.

    Raises
    ------
    ConfigError
        It is something else, or goes with `top`.
    """
    if at_most is None and by is not None:
        raise ConfigError(f"by={by!r} (--by) says which rows at_most (--at-most) keeps, which is not given")
    if at_most is None:
        return None
    if top is not None:
        raise ConfigError(
            "top and at_most: expected one of the two; filter what the first has written by the second"
        )
    if isinstance(at_most, tuple | list) and len(at_most) == 2:
        column, most = at_most
        if isinstance(column, str) and column and is_number(most, numbers.Integral) and most > 0:
            return Cap(column, int(most), by)
    raise ConfigError(
        f"at_most: {at_most!r}: expected a column and how many rows of each value, such as label and 100"
    )


@dataclass(frozen=True)
class Members:
    """What one file has of each value.

    Attributes
    ----------
    names
        The values, as text.
    groups
        int32 (rows,): of each row that passes the number of its value.
    order
        (rows,): the larger, the sooner it is kept.
    """

    names: Sequence[str]
    groups: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class End:
    """Where the rows of a value end.

    Attributes
    ----------
    order
        Of the last that is kept.
    last
        Of those of just this order the last that is kept; None: all.
    """

    order: int | float
    last: Place | None = None


@dataclass(frozen=True)
class Ends:
    """Which rows of all files are kept.

    Attributes
    ----------
    values
        How many values there are.
    kept
        How many rows.
    ends
        By value, of those that have more rows than are kept.
    """

    values: int
    kept: int
    ends: Mapping[str, End]


def members_of(table: pa.Table, cap: Cap, id_col: str, passes: np.ndarray) -> tuple[Members, np.ndarray]:
    """What a file has of each value among some of its rows, and the numbers of the rows that count.

    Raises
    ------
    ConfigError
        There is no such column, or it is of another type.
    """
    names, groups = _groups(table, cap.column)
    rows = np.flatnonzero(passes & (groups >= 0))
    if cap.by is None:
        order = _digests(table, id_col, rows)
    else:
        found, valid = values_of(table, cap.by)
        rows = rows[valid[rows]]
        order = found[rows]
    return Members(names, groups[rows], order), rows


def find_ends(
    members: Sequence[Members],
    cap: Cap,
    places: Callable[[int, Mapping[str, int | float]], Iterator[tuple[str, Place]]],
) -> Ends:
    """Where the rows of each value end, over all files.

    Parameters
    ----------
    members
        Of each file.
    cap
        How many are kept.
    places
        Given the number of a file, and some values with the order of their last rows: the rows of just that order.
    """
    numbers_of: dict[str, int] = {}
    for each in members:
        for name in each.names:
            numbers_of.setdefault(name, len(numbers_of))
    groups = np.concatenate(
        [np.zeros(0, np.int64)]
        + [np.array([numbers_of[name] for name in each.names], np.int64)[each.groups] for each in members]
    )
    counts = np.bincount(groups, minlength=len(numbers_of))
    more = counts > cap.most
    said = Ends(int((counts > 0).sum()), int(np.minimum(counts, cap.most).sum()), {})
    if not more.any():
        return said
    rows = np.flatnonzero(more[groups])
    order, groups = np.concatenate(comparable([each.order for each in members]))[rows], groups[rows]
    sorted_by = np.argsort(order, kind="stable")
    sorted_by = sorted_by[np.argsort(groups[sorted_by], kind="stable")]
    last = np.empty(len(counts), order.dtype)
    last[more] = order[sorted_by[np.cumsum(np.where(more, counts, 0))[more] - cap.most]]
    beside = against(order, last[groups])
    larger, equal = (np.bincount(groups[beside == side], minlength=len(counts)) for side in (1, 0))
    names = list(numbers_of)
    values = {names[group]: last[group : group + 1].tolist()[0] for group in np.flatnonzero(more).tolist()}
    tied = {
        names[group]: cap.most - int(larger[group])
        for group in np.flatnonzero(more & (larger + equal > cap.most)).tolist()
    }
    found: dict[str, list[Place]] = {name: [] for name in tied}
    for number, each in enumerate(members):
        wanted = {name: values[name] for name in each.names if name in tied}
        for name, place in places(number, wanted) if wanted else ():
            found[name].append(place)
    lasts = {name: sorted(found[name])[left - 1] for name, left in tied.items()}
    return replace(said, ends={name: End(value, lasts.get(name)) for name, value in values.items()})


def places_in(
    table: pa.Table, cap: Cap, id_col: str, name: str, passes: np.ndarray, wanted: Mapping[str, int | float]
) -> Iterator[tuple[str, Place]]:
    """The rows of some values that are of just an order: the value, and where it is."""
    members, rows = members_of(table, cap, id_col, passes)
    chosen = np.flatnonzero(_against_ends(members, wanted) == 0)
    names = [members.names[group] for group in members.groups[chosen].tolist()]
    yield from zip(names, places_of(table, id_col, name, rows[chosen]), strict=True)


def capped_rows(
    table: pa.Table, cap: Cap, ends: Ends, id_col: str, name: str, passes: np.ndarray
) -> np.ndarray:
    """Bool (rows,): which rows of a file are kept."""
    members, rows = members_of(table, cap, id_col, passes)
    found = [ends.ends.get(text) for text in members.names]
    beside = _against_ends(
        members, {text: end.order for text, end in zip(members.names, found, strict=True) if end is not None}
    )
    kept = np.zeros(len(table), bool)
    kept[rows[beside >= 0]] = True
    lasts = [None if end is None else end.last for end in found]
    tied = np.flatnonzero(
        (beside == 0) & np.array([last is not None for last in lasts], bool)[members.groups]
    )
    for row, group, place in zip(
        rows[tied].tolist(),
        members.groups[tied].tolist(),
        places_of(table, id_col, name, rows[tied]),
        strict=True,
    ):
        last = lasts[group]
        kept[row] = last is None or place <= last
    return kept


def _against_ends(members: Members, orders: Mapping[str, int | float]) -> np.ndarray:
    """int8 (rows,): how the order of each row compares with that of its value; 1 where none is given of that."""
    given = [orders.get(name) for name in members.names]
    beside = np.ones(len(members.groups), np.int8)
    rows = np.flatnonzero(np.array([each is not None for each in given], bool)[members.groups])
    if len(rows):
        values, order = [0 if each is None else each for each in given], members.order[rows]
        if order.dtype.kind == "f":
            alike = all(isinstance(each, float) for each in given if each is not None)
        else:
            least, most = np.iinfo(order.dtype).min, np.iinfo(order.dtype).max
            alike = all(isinstance(each, int) and least <= each <= most for each in values)
        ends = np.array(values, order.dtype if alike else object)
        beside[rows] = against(order if alike else order.astype(object), ends[members.groups[rows]])
    return beside


def _groups(table: pa.Table, column: str) -> tuple[list[str], np.ndarray]:
    """The values of a column as text, and int32 (rows,): the number of each row's, -1 where there is none."""
    if column not in table.column_names:
        raise ConfigError(f"has no column {column!r} of which to keep so many rows a value")
    values, kind = table.column(column), table.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_null,
    )
    if not any(is_kind(kind) for is_kind in known):
        raise ConfigError(
            f"column {column!r} is of {kind}: expected text, whole numbers or booleans, of few values"
        )
    coded = pc.dictionary_encode(values.cast(kind).cast(pa.large_string()).combine_chunks())
    return coded.dictionary.to_pylist(), pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)


def _digests(table: pa.Table, id_col: str, rows: np.ndarray) -> np.ndarray:
    """uint64 (rows,): of key and shard."""
    texts = (place[:2] for place in places_of(table, id_col, "", rows))
    digests = b"".join(
        hashlib.blake2b("\0".join(each).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for each in texts
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)
