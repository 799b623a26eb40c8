"""Which sample an id means: ids of rows are found among the keys of a shard."""

from __future__ import annotations

import datetime
import decimal
import functools
import numbers
import uuid
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from curator_dask.webdataset.samples import key_text

_UUID_BYTES = 16


class KeyTable:
    """The keys of a shard, to find ids among.

    An id matches the key that is its text. A whole number (42 or 42.0, not "42") also matches the key that is
    that number with leading zeros, if only one is. Where no whole key fits, the same holds for the last parts
    of keys in folders (``"00042"`` finds ``"a/00042"``), as far as they are unique. The text of a UUID is that with
    hyphens in lower case, of a date ``2024-05-31``; 16 bytes that are no key themselves are taken for a UUID.

    Parameters
    ----------
    keys
        Each once.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys

    def find(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Positions of ids among the keys.

        Parameters
        ----------
        ids
            Text, bytes, numbers, dates, UUIDs, None or NaN: a list, an array or a pandas Series.

        Returns
        -------
        numpy.ndarray
            int64, as long as `ids`; -1 where there is no such key.
        """
        items = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        by_key = self._by_key
        positions = [by_key.get(item, -1) for item in items]
        for row, position in enumerate(positions):
            if position < 0:
                positions[row] = -1 if position < -1 else self._find_otherwise(items[row])
        return np.asarray(positions, dtype=np.int64)

    def _find_otherwise(self, item: Any) -> int:
        text, is_number = id_text(item)
        if text is None:
            return -1
        position = self._find_text(text, is_number)
        if position < 0 and isinstance(item, bytes) and len(item) == _UUID_BYTES:
            return self._find_text(str(uuid.UUID(bytes=item)), False)
        return position

    def _find_text(self, text: str, is_number: bool) -> int:
        for by_text, by_number in ((self._by_key, self._by_number), self._by_last_part):
            position = by_text.get(text, -1)
            if position == -1 and is_number:
                position = by_number.get(text, -1)
            if position != -1:
                return max(position, -1)  # below -1: there are several, so none
        return -1

    @functools.cached_property
    def _by_key(self) -> dict[Hashable, int]:
        keys: dict[Hashable, int] = {key: position for position, key in enumerate(self._keys)}
        # A key that is not UTF-8 is also found by the text that stands for it in a column.
        odd = [(key, position) for position, key in enumerate(self._keys) if not _is_text(key)]
        for key, position in odd:
            keys[key_text(key)] = -2 if key_text(key) in keys else position
        return keys

    @functools.cached_property
    def _by_number(self) -> dict[Hashable, int]:
        return _unique((_digits(key), position) for position, key in enumerate(self._keys))

    @functools.cached_property
    def _by_last_part(self) -> tuple[dict[Hashable, int], dict[Hashable, int]]:
        keys = enumerate(self._keys)
        parts = [(key.rpartition("/")[2], position) for position, key in keys if "/" in key]
        return _unique(parts), _unique((_digits(part), position) for part, position in parts)


def _is_text(key: str) -> bool:
    return key.isascii() or not any("\udc80" <= sign <= "\udcff" for sign in key)


def _digits(key: str) -> str | None:
    """A key of decimal digits without its leading zeros, None for any other key."""
    return (key.lstrip("0") or "0") if key.isascii() and key.isdigit() else None


def _unique(pairs: Iterable[tuple[str | None, int]]) -> dict[Hashable, int]:
    """Positions by text; -2 where a text has several."""
    found: dict[Hashable, int] = {}
    for text, position in pairs:
        if text is not None:
            found[text] = -2 if text in found else position
    return found


def id_text(item: Any) -> tuple[str | None, bool]:
    """Text of an id, None if there is none that could be a key's; and whether it is a number."""
    if type(item) is int:  # by far the most common of those that come here
        return str(item), True
    if isinstance(item, str):
        return item, False
    if isinstance(item, bytes):
        return item.decode("utf-8", "surrogateescape"), False
    if isinstance(item, uuid.UUID):
        return str(item), False
    if isinstance(item, datetime.datetime):  # as which cuDF holds dates
        item = item.date() if item.time() == datetime.time() else None
    if isinstance(item, datetime.date):
        return item.isoformat(), False
    if isinstance(item, numbers.Number) and not isinstance(item, bool):
        try:
            whole = int(item)  # type: ignore[call-overload]
        except (ValueError, OverflowError, TypeError):  # NaN, infinity, complex
            return None, False
        # A float of 2**53 or more stands for several whole numbers: which one the key has is lost.
        is_exact = isinstance(item, numbers.Rational | decimal.Decimal)
        exact = whole == item and (is_exact or abs(whole) < 2**53)
        return (str(whole) if exact else None), True
    return None, False
