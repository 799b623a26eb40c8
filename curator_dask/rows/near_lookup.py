"""Which row of a list of perceptual hashes is nearest to a hash, if it is within some bits: none is missed."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.columns import to_array
from curator_dask.rows.lookup import TEXT, key_texts

#: Bits of hashes: imagehash's, and PDQ.
WIDTHS = (64, 256)
_DIGITS = r"^([0-9a-fA-F]{16}|[0-9a-fA-F]{64})$"
_BAND = 16  # bits by which candidates are found
_FEW = 1 << 11  # hashes of a list that are compared one by one in the time in which bands are looked up
_SHARE = 0.2  # of a list: where bands leave more of it, or would by chance, it is compared one by one
_PAIRS = 1 << 21  # pairs that are compared at a time: 64 MB of PDQ by bands, 22 MB one by one
_ROWS = 1 << 12


def hash_words(values: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Hashes as words.

    Parameters
    ----------
    values
        An Arrow array: whole numbers (64 bits), or text of 16 or 64 hexadecimal digits; null is none.
    what
        Where they are from, for errors.

    Returns
    -------
    tuple
        uint64 (n, 1) or (n, 4), zero where there is none; and bool (n,), where there is one.

    Raises
    ------
    ValueError
        They are no hashes, or of several lengths.
    """
    array = to_array(values)
    if pa.types.is_integer(array.type):
        try:
            numbers = array.cast(pa.uint64())
        except (
            pa.ArrowInvalid
        ):  # a negative one: the same bits, as databases without unsigned numbers hold them
            numbers = array.cast(pa.int64()).view(pa.uint64())
        valid = np.asarray(numbers.is_valid())
        return np.asarray(numbers.fill_null(0), np.uint64).reshape(-1, 1), valid
    texts, _ = key_texts(array)
    texts = pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), pa.scalar(None, TEXT), texts)
    good = pc.match_substring_regex(texts, _DIGITS)
    if not pc.all(good).as_py() and len(texts) > texts.null_count:
        row = pc.index(good, False).as_py()
        raise ValueError(
            f"{what} has no hash in row {row} (from 0): expected 16 or 64 hexadecimal digits, found"
            f" {texts[row].as_py()!r}"
        )
    valid = np.asarray(texts.is_valid())
    lengths = pc.unique(pc.utf8_length(texts.drop_null())).to_pylist()
    if len(lengths) > 1:
        raise ValueError(f"{what} has hashes of several lengths, {min(lengths)} and {max(lengths)} digits")
    digits = lengths[0] if lengths else WIDTHS[0] // 4
    data = bytes.fromhex("".join(texts.fill_null("0" * digits).to_pylist()))
    return np.frombuffer(data, ">u8").reshape(-1, digits // 16).astype(np.uint64), valid


class NearLookup:
    """Finds the hashes of a list that are nearest to others.

    Two hashes within r bits are, in one of k bands, within r / k bits (the pigeonhole principle): only those of the
    list that are so in some band are compared.

    Parameters
    ----------
    values
        As of `hash_words`, a hash a row; null is never found. Of several that are as near the first is.
    within
        Bits in which a hash that is found may differ.

    Raises
    ------
    ValueError
        As of `hash_words`.
    """

    def __init__(self, values: Any, within: int) -> None:
        #: The list's values, as they are.
        self.values: pa.Array = to_array(values)
        self.within = within
        words, valid = hash_words(values, "the list")
        self._all, self._valid = words, valid
        # Each hash once: lists have some, as that of a flat colour, in very many rows.
        self._rows = np.flatnonzero(valid)[_first_of_each(words[valid])]
        self._words = words[self._rows]

    def find(self, values: Any) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows of the list.

        Returns
        -------
        tuple
            int64 (n,), -1 where there is none; and int32 (n,), in how many bits it differs.

        Raises
        ------
        ValueError
            As of `hash_words`, or these hashes are of another length than those of the list.
        """
        words, valid = hash_words(values, "the column")
        rows, bits = np.full(len(words), -1), np.zeros(len(words), np.int32)
        asked = np.flatnonzero(valid)
        if not len(asked) or not len(self._words):
            return rows, bits
        if words.shape[1] != self._words.shape[1]:
            ours, theirs = (64 * each.shape[1] for each in (words, self._words))
            raise ValueError(f"the rows have hashes of {ours} bits, the list of {theirs}")
        for start in range(0, len(asked), _ROWS):
            some = asked[start : start + _ROWS]
            best = self._nearest(words[some])
            found = best >= 0
            rows[some[found]] = self._rows[best[found] & _ROW]
            bits[some[found]] = best[found] >> _BITS
        return rows, bits

    @cached_property
    def firsts(self) -> np.ndarray:
        """Of each row of the list the first that has its hash; -1 of null."""
        rows, words = np.flatnonzero(self._valid), self._all[self._valid]
        _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
        firsts = np.full(len(self._valid), -1)
        firsts[rows] = rows[first[inverse.reshape(-1)]]
        return firsts

    def _nearest(self, words: np.ndarray) -> np.ndarray:
        """Bits and place in one number of each hash's nearest; -1 where there is none."""
        none = (self.within + 1) << _BITS
        best = np.full(len(words), none, np.int64)
        if self._bands is None or self._bands.count(words) > _SHARE * len(words) * len(self._words):
            block = max(1, _PAIRS // len(words))
            for start in range(0, len(self._words), block):
                some = self._words[start : start + block]
                off = np.zeros((len(words), len(some)), np.uint16)
                for ours, theirs in zip(words.T, some.T, strict=True):
                    off += np.bitwise_count(ours[:, None] ^ theirs)
                place = off.argmin(axis=1)
                bits = off[np.arange(len(off)), place].astype(np.int64)
                best = np.minimum(best, (bits << _BITS) + start + place)
        else:
            for rows, places in self._bands.candidates(words):
                bits = np.bitwise_count(words[rows] ^ self._words[places]).sum(axis=1, dtype=np.int64)
                near = bits <= self.within
                np.minimum.at(best, rows[near], (bits[near] << _BITS) + places[near])
        return np.where(best < none, best, -1)

    @cached_property
    def _bands(self) -> _Bands | None:
        count = self._words.shape[1] * 64 // _BAND
        masks = _masks(self.within // count)
        if len(self._words) < _FEW or count * len(masks) > _SHARE * (1 << _BAND):
            return None
        return _Bands(self._words, masks)


_BITS = 40  # above which the number of bits stands, beside a place in a list
_ROW = (1 << _BITS) - 1


class _Bands:
    """The places of hashes by the values of their bands."""

    def __init__(self, words: np.ndarray, masks: np.ndarray) -> None:
        self._masks = masks
        self._orders, self._starts = [], []
        for band in _banded(words).T:
            self._orders.append(np.argsort(band, kind="stable").astype(np.uint32))
            self._starts.append(np.concatenate([[0], np.cumsum(np.bincount(band, minlength=1 << _BAND))]))

    def count(self, words: np.ndarray) -> int:
        """How many pairs `candidates` gives."""
        return sum(
            int((starts[values + 1] - starts[values]).sum())
            for band, starts in zip(_banded(words).T, self._starts, strict=True)
            for values in (band ^ mask for mask in self._masks)
        )

    def candidates(self, words: np.ndarray) -> Any:
        """Pairs of a hash and a place that are near in a band, many at a time; some come several times."""
        for band, order, starts in zip(_banded(words).T, self._orders, self._starts, strict=True):
            for mask in self._masks:
                values = band ^ mask
                first = starts[values]
                counts = starts[values + 1] - first
                ends = np.cumsum(counts)
                # In pieces: a value that much of a list has may come with all hashes.
                cuts = np.searchsorted(ends, np.arange(_PAIRS, ends[-1] + _PAIRS, _PAIRS), side="left") + 1
                at = 0
                for cut in np.unique(np.minimum(cuts, len(values))):
                    number = counts[at:cut]
                    rows = np.repeat(np.arange(at, cut), number)
                    within = np.arange(len(rows)) - np.repeat(np.cumsum(number) - number, number)
                    yield rows, order[np.repeat(first[at:cut], number) + within].astype(np.int64)
                    at = int(cut)


def _first_of_each(words: np.ndarray) -> np.ndarray:
    """int64, ascending: the first row of each hash."""
    order = np.lexsort(words.T)
    ordered = words[order]
    new = np.ones(len(words), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    return np.sort(order[new])  # lexsort keeps the order of equals


def _banded(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words).view(np.uint16).astype(np.int64)


def _masks(bits: int) -> np.ndarray:
    """All values of a band with so many bits, and fewer."""
    found = [
        sum(1 << at for at in each) for count in range(bits + 1) for each in combinations(range(_BAND), count)
    ]
    return np.array(found, np.int64)
