"""Pairs of rows whose hashes differ in a few bits.

Two hashes that differ in r bits are the same in at least k - r of k parts. So for each choice of k - r parts, rows that
are the same there are compared, and others are not. Of hashes of 256 bits see `curator_dask.dedup.bands`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from curator_dask.dedup.bands import BANDS, find_in_band
from curator_dask.dedup.memory import NO_LIMIT, Memory
from curator_dask.dedup.pairing import FEW, PAIR, Again, Held
from curator_dask.dedup.phases import Phase

#: Stands for the cosine of a pair that hashes make: it is one whatever eps is.
BY_HASH = np.inf
_BITS = 64
_WIDE = 4  # words of a hash of 256 bits
_SORTED = 64  # rows that are compared in the time in which one is sorted


@dataclass(frozen=True)
class HammingPairs:
    """Finds pairs by hashes.

    Attributes
    ----------
    order
        With ``hash-ranks.npy``: the place of each row in the order of who stays; ``hashK.npy``, uint64 (n, 1, 2 or 4),
        and ``hashK-there.npy``, whether there is a value.
    phase
        Where the files go. What is looked at again is there, too; see `Again`.
    radii
        In how many bits two values may differ, by hash.
    fixed
        Rows of a lower rank stay whatever they are like: two of them are no pair.
    memory
        What is held at a time, of pairs.
    """

    order: Phase
    phase: Phase
    radii: tuple[int, ...]
    fixed: int = 0
    memory: Memory = NO_LIMIT

    def names(self) -> list[str]:
        """Of the files: the number of a hash and that of a choice of parts, or of a band."""
        return [
            f"{hash_}-{choice}"
            for hash_, bits in enumerate(self.radii)
            for choice in range(self._choices(hash_, bits))
        ]

    def _choices(self, hash_: int, bits: int) -> int:
        values, there = self.order.load(f"hash{hash_}.npy"), self.order.load(f"hash{hash_}-there.npy")
        if values.shape[1] == _WIDE:
            return BANDS
        return len(masks(len(values), bits)) if there.any() else 0

    def make(self, name: str) -> int:
        """Write a file's pairs, ``NAME.npy``, and rows that may have more betters, ``NAME-more.npy``."""
        hash_, choice = map(int, name.split("-"))
        ranks = self.order.load("hash-ranks.npy")
        values, there = self.order.load(f"hash{hash_}.npy"), self.order.load(f"hash{hash_}-there.npy")
        wanted = there & (np.asarray(ranks) >= self.fixed)
        rows = np.asarray(there)
        again = Again.read(self.phase)
        if again is not None:
            wanted = wanted & again.wanted
            rows = rows if again.rows is None else rows & again.rows
        at = np.flatnonzero(rows)
        labels = at if again is None or again.labels is None else again.labels[at]
        bits = self.radii[hash_]
        if values.shape[1] == _WIDE:
            held = Held(self.phase, np.asarray(ranks), self.memory.held(0))
            for better, worse, full in find_in_band(values[at], ranks[at], wanted[at], labels, choice, bits):
                held.add(_pairs(at[better], at[worse]))
                held.more.append(at[full].astype(np.int32))
            held.save(name)
            return len(at)
        better, worse, full = find(
            values[at], np.asarray(ranks[at]), wanted[at], labels, masks(len(ranks), bits), choice, bits
        )
        self.phase.save(f"{name}-more.npy", at[full].astype(np.int32))
        self.phase.save(f"{name}.npy", _pairs(at[better], at[worse]))
        return len(at)


def _pairs(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    found = np.empty(len(better), PAIR)
    found["better"], found["worse"], found["cosine"] = better, worse, BY_HASH
    return found


def masks(rows: int, bits: int) -> list[int]:
    """Parts of 64 bits of which hashes that differ in so many have at least one whole; the cheapest for the rows."""
    if not bits:
        return [2**_BITS - 1]

    def cost(parts: int) -> float:
        same = _BITS * (parts - bits) / parts
        return math.comb(parts, bits) * (_SORTED + rows / 2**same)

    parts = min(range(bits + 1, bits + 5), key=cost)
    edges = [round(_BITS * part / parts) for part in range(parts + 1)]
    pieces = [(1 << stop) - (1 << start) for start, stop in pairwise(edges)]
    return [sum(chosen) for chosen in combinations(pieces, parts - bits)]


def first_near(
    hashes: Sequence[tuple[np.ndarray, np.ndarray]],
    radii: Sequence[tuple[str, int]],
    left: np.ndarray,
    right: np.ndarray,
) -> np.ndarray:
    """int64 (n,): the first of the hashes by which each pair of rows is one."""
    found = np.full(len(left), len(hashes))
    for number, ((values, there), (_, bits)) in enumerate(zip(hashes, radii, strict=True)):
        differ = np.bitwise_count(values[left] ^ values[right]).sum(axis=1)
        near = (differ <= bits) & there[left] & there[right]
        found[near] = np.minimum(found[near], number)
    return found


def find(
    values: np.ndarray,
    ranks: np.ndarray,
    wanted: np.ndarray,
    labels: np.ndarray,
    choices: list[int],
    choice: int,
    bits: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows that one choice of parts finds first, and the rows that may have more betters.

    Parameters
    ----------
    values
        uint64 (n, 1 or 2).
    ranks
        int64 (n,): the better of two has the lower.
    wanted
        bool (n,): the rows whose betters are looked for.
    labels
        int64 (n,): two rows with the same need no pair.
    choices, choice
        Masks of all choices, and which of them.
    bits
        In which two values may differ.

    Returns
    -------
    tuple
        int64 (pairs,) the better, and the worse of each; int64 (rows,) those with at least `FEW` betters.
    """
    mask = np.uint64(choices[choice])
    earlier = np.array(choices[:choice], np.uint64)
    parts = (values & mask).T
    order = np.lexsort((ranks, *parts))
    same = np.ones(len(order), bool)
    same[:1] = False
    for part in parts:
        same[1:] &= part[order][1:] == part[order][:-1]
    heads = np.flatnonzero(~same)
    starts = np.repeat(heads, np.diff(heads, append=len(order)))
    ordered, labelled = values[order, 0], labels[order]
    active = np.flatnonzero(wanted[order] & same)
    count = np.zeros(len(order), np.int64)
    better, worse, full = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    step = 0
    while len(active):  # all rows with the best of their own, then with the second of it, and so on
        other = starts[active] + step
        differ = ordered[active] ^ ordered[other]
        hit = (np.bitwise_count(differ) <= bits) & (labelled[active] != labelled[other])
        count[active[hit]] += 1
        first = hit.copy()
        first[hit] = (differ[hit][:, None] & earlier != 0).all(axis=1)
        better.append(order[other[first]])
        worse.append(order[active[first]])
        done = count[active] >= FEW
        full.append(order[active[done]])
        step += 1
        active = active[~done & (starts[active] + step < active)]
    return np.concatenate(better), np.concatenate(worse), np.concatenate(full)
