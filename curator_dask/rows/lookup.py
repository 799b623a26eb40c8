"""Which row of a table has a value, for many values at a time: by their text, as keys are matched elsewhere.

A whole number (42 or 42.0) also matches the text that is this number with leading zeros, whichever side has the number.
"""

from __future__ import annotations

import binascii
import contextlib
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.columns import to_array
from curator_dask.holding import BYTES, held_type, restore
from curator_dask.webdataset.keys import id_text

TEXT = pa.large_string()  # also of more than 2 GB
_BLOCK = 1 << 16  # values that are Python's objects at a time
_EXACT = 2.0**53
#: A number with leading zeros; behind a zero byte may stand within what it is a key, such as a shard.
_PADDED = r"^0[0-9]+(\x00|$)"
_WHOLE = r"^(0|[1-9][0-9]*)$"
_HYPHENS = (8, 13, 18, 23)  # of a UUID's text


def key_texts(values: Any) -> tuple[pa.Array, bool]:
    """The texts of values, null where one has none that could be a key's; and whether the values are numbers.

    Parameters
    ----------
    values
        An Arrow array: text, bytes, whole numbers, dates or UUIDs.

    Raises
    ------
    ValueError
        They are of another type: booleans, times, lists.
    """
    array = to_array(values)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == BYTES:  # as which cuDF holds them
        array = restore(array, pa.binary())
    if isinstance(array, pa.ExtensionArray):
        is_uuid, array = array.type.extension_name == "arrow.uuid", array.storage
        if is_uuid:
            return _hex(array, hyphens=True), False
    kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), TEXT), False
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(TEXT), False
    if pa.types.is_integer(kind):
        return array.cast(TEXT), True
    if pa.types.is_floating(kind):
        numbers = array.cast(pa.float64())
        # A float of 2**53 or more stands for several whole numbers: which one the key has is lost.
        whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), _EXACT))
        numbers = pc.if_else(whole, numbers, pa.scalar(None, pa.float64()))
        return numbers.cast(pa.int64()).cast(TEXT), True
    if kind == held_type(pa.date32()):  # as which cuDF holds dates
        with contextlib.suppress(pa.ArrowInvalid):  # of a time that is not midnight
            return array.cast(pa.date32()).cast(TEXT), False
    if pa.types.is_date(kind):
        return array.cast(pa.date32()).cast(TEXT), False
    if pa.types.is_decimal(kind):
        return pa.array([id_text(each)[0] for each in array.to_pylist()], TEXT), True
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        try:
            return array.cast(pa.large_binary()).cast(TEXT), False
        except pa.ArrowInvalid:  # no UTF-8
            if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
                return _hex(array, hyphens=True), False
            return pa.array([_plain(each) for each in array.to_pylist()], TEXT), False
    raise ValueError(f"expected text, bytes, whole numbers, dates or UUIDs, found {kind}")


def with_shards(keys: pa.Array, urls: pa.Array) -> pa.Array:
    """Key and shard as one text; null where one is."""
    return pc.binary_join_element_wise(keys.cast(TEXT), urls.cast(TEXT), pa.scalar("\0", TEXT))


def looks_whole(texts: pa.Array) -> bool:
    """Whether texts are whole numbers without leading zeros, all that there are: in a CSV these are numbers."""
    return bool(len(texts) > texts.null_count and pc.all(pc.match_substring_regex(texts, _WHOLE)).as_py())


def pairs_to_hex(pairs: np.ndarray) -> pa.Array:
    """Texts of 32 digits of pairs of uint64, as DataComp writes its uids."""
    first, second = (pairs[name] for name in pairs.dtype.names or ())
    # Of a whole: NumPy gives arrays that it has put together the machine's order of bytes.
    data = np.stack([first, second], 1).astype(">u8").tobytes()
    return _hex(pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(pairs), [None, pa.py_buffer(data)]))


def _hex(array: pa.Array, hyphens: bool = False) -> pa.Array:
    """16 bytes each as their text."""
    filled = array.fill_null(bytes(16)) if array.null_count else array
    filled = pa.concat_arrays([filled])  # without an offset
    data = (
        np.frombuffer(filled.buffers()[1], np.uint8)[: 16 * len(array)] if len(array) else np.empty(0, "u1")
    )
    signs = np.frombuffer(binascii.hexlify(data.tobytes()), np.uint8).reshape(-1, 32)
    if hyphens:
        signs = np.insert(signs, [place - number for number, place in enumerate(_HYPHENS)], ord("-"), axis=1)
    width = 36 if hyphens else 32
    offsets = pa.py_buffer(np.arange(len(array) + 1, dtype=np.int64) * width)
    texts = pa.Array.from_buffers(TEXT, len(array), [None, offsets, pa.py_buffer(signs.tobytes())])
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, TEXT)) if array.null_count else texts


def _plain(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


class Lookup:
    """Finds the rows of a table by their values.

    Its hashes are made once, 16 bytes a value; what is asked then costs by what is asked, not by the table.

    Parameters
    ----------
    texts
        ``large_string``, a value a row; null is never found. Of several rows with one value the first is.
    is_number
        Whether the values are numbers.
    """

    def __init__(self, texts: pa.Array, is_number: bool) -> None:
        self.texts, self.is_number = texts, is_number
        rows = np.flatnonzero(np.asarray(texts.is_valid()))
        hashes = _hashes(texts if len(rows) == len(texts) else texts.take(pa.array(rows)))
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], rows[order]

    def find(self, values: Any) -> np.ndarray:
        """The row of each value, int64; -1 where no row has it.

        Raises
        ------
        ValueError
            These are no values that could be keys.
        """
        return self.find_texts(*key_texts(values))

    def find_texts(self, texts: pa.Array, is_number: bool) -> np.ndarray:
        """The same of values as `key_texts` gives them."""
        found = self._places(texts)
        if is_number == self.is_number or not len(texts) or (found >= 0).all():
            return found
        if is_number:
            more = self._without_zeros.find_texts(texts)
        else:
            padded = pc.match_substring_regex(texts, _PADDED).fill_null(False)
            more = np.full(len(texts), -1)
            more[np.asarray(padded)] = self._places(_stripped(texts.filter(padded)))
        return np.where(found < 0, more, found)

    @cached_property
    def firsts(self) -> np.ndarray:
        """Of each row the first that has its value; -1 of null."""
        return self._places(self.texts)

    @cached_property
    def _without_zeros(self) -> _Padded:
        return _Padded(self.texts)

    def _places(self, texts: pa.Array) -> np.ndarray:
        if not len(self._rows) or not len(texts):
            return np.full(len(texts), -1)
        valid = np.asarray(texts.is_valid())
        hashes = _hashes(texts.fill_null(""))
        places = np.searchsorted(self._hashes, hashes)
        found = np.full(len(texts), -1)
        open_ = np.flatnonzero(valid)  # whose hash is looked at further
        while len(open_):
            at = places[open_]
            inside = at < len(self._hashes)
            open_, at = open_[inside], at[inside]
            same = self._hashes[at] == hashes[open_]
            open_, at = open_[same], at[same]
            rows = self._rows[at]
            equal = np.asarray(
                pc.equal(self.texts.take(pa.array(rows)), texts.take(pa.array(open_))).fill_null(False), bool
            )
            found[open_[equal]] = rows[equal]
            open_ = open_[~equal]  # another text of the same hash: look at the next
            places[open_] += 1
        return found


class _Padded:
    """The rows whose texts are numbers with leading zeros, by these without; where several are one number, none."""

    def __init__(self, texts: pa.Array) -> None:
        rows = np.flatnonzero(np.asarray(pc.match_substring_regex(texts, _PADDED).fill_null(False)))
        padded = texts.take(pa.array(rows))
        stripped = _stripped(padded)
        inner = Lookup(stripped, is_number=False)
        first = inner.firsts
        other = np.flatnonzero(
            ~np.asarray(pc.equal(padded, padded.take(pa.array(first))), bool)
            if len(rows)
            else np.zeros(0, bool)
        )
        self._inner, self._rows = inner, rows
        self._several = np.unique(first[other])

    def find_texts(self, texts: pa.Array) -> np.ndarray:
        places = self._inner._places(texts)
        places[np.isin(places, self._several)] = -1
        rows = np.append(self._rows, -1)
        found: np.ndarray = rows[places]  # -1 is the last
        return found


def _stripped(texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(texts, r"^0+([0-9])", r"\1").cast(TEXT)


def _hashes(texts: pa.Array) -> np.ndarray:
    """Uint64 of texts none of which is null."""
    blocks = [
        pd.util.hash_array(texts.slice(start, _BLOCK).to_numpy(zero_copy_only=False), categorize=False)
        for start in range(0, len(texts), _BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.uint64)
