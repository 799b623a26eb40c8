"""What it means that a caption contains a concept, and which of many concepts captions contain.

A text is taken as its words, one after the other. A word is a run of letters, digits, marks and underscores; any other
character that is no white space is a word of its own, and so is each character of a script that is written without
spaces. A caption contains a concept where the concept's words stand in it one behind the other. So ``cat`` is in
``a cat.`` and in ``(cat)``, not in ``category``; ``St. Louis`` is in ``St. Louis, Missouri``.

It is the rule of MetaCLIP (Xu et al. 2023, arXiv 2309.16671; facebookresearch/MetaCLIP, ``substr_matching.py``), which
looks for the concept with a space on either side in a text that has spaces around ``,.;:?!`` and the backtick, but for
these: all punctuation parts words, also within a concept, and case is ignored unless it is asked for. As in its
successor's, scripts without spaces need none.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

#: Of the rule. Counts that were made by another are made anew.
RULE = 1
#: Characters of captions that are looked through at a time: what is found in them is held as Python's objects.
_BLOCK = 1 << 18
#: Scripts without spaces between words, by code points (Unicode's Blocks.txt): Han and its radicals, kana, bopomofo;
#: Thai, Lao, Tibetan, Myanmar, Khmer.
_UNSPACED = re.compile(
    "[\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\U0001aff0-\U0001b16f"
    "\u0e00-\u0fff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff\u19e0-\u19ff]"
)

#: What chooses how the character before it is drawn (Variation Selectors, and their Supplement): it parts no words.
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def spaced(texts: Sequence[str], match_case: bool = False) -> bytes:
    r"""The words of texts with a space around each, the texts parted by a newline: UTF-8.

    One text contains another where its words contain the other's as bytes. Words are compared in Unicode's normal
    form NFKC, and without `match_case` as `str.casefold` has them.

    Examples
    --------
    >>> spaced(["A cat, (black)", "C++"])
    b' a cat , ( black ) \n c + + '
    """
    text = "\n".join([" ".join(each.split()) for each in texts])
    if text.isascii():
        text = text if match_case else text.lower()
        apart: Iterable[str] = _ASCII_APART
    else:
        text = unicodedata.normalize("NFKC", _SELECTORS.sub("", text))
        if not match_case:
            text = unicodedata.normalize("NFKC", text.casefold())
        text = _UNSPACED.sub(r" \g<0> ", text)
        apart = filter(_is_apart, set(text))
    # Over all texts together, which is many times as fast as a regular expression for words.
    for each in apart:
        if each in text:
            text = text.replace(each, f" {each} ")
    text = f" {text} "
    while "  " in text:
        text = text.replace("  ", " ")
    return text.encode("utf-8", "surrogatepass")


@functools.lru_cache(1 << 14)
def _is_apart(character: str) -> bool:
    """Whether a character is a word of its own: no letter, digit, mark or underscore."""
    if character.isspace():
        return character == "\n"
    return not (character.isalnum() or character == "_" or unicodedata.category(character).startswith("M"))


_ASCII_APART = tuple(filter(_is_apart, map(chr, range(128))))


class Matcher:
    """Finds which of many concepts captions contain, all of them, also where they overlap.

    Parameters
    ----------
    words
        Of each concept, as `spaced` has them, all different.
    match_case
        As they were made.
    """

    def __init__(self, words: Sequence[bytes], match_case: bool) -> None:
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        # 500,000 concepts take 60 MB so, and 250 MB for the seconds in which it is made.
        self._automaton = BytesAhoCorasick(words, implementation=Implementation.ContiguousNFA)
        self._match_case = match_case

    def find(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of captions and of the concepts that they contain, each pair once, in this order; int64 (n,)."""
        found = [np.zeros((2, 0), np.int64)]
        for start, block in _blocks(captions):
            text = spaced(block, self._match_case)
            matches = self._automaton.find_matches_as_indexes(text, overlapping=True)
            flat = itertools.chain.from_iterable(matches)
            concepts, starts, _ = np.fromiter(flat, np.int64, 3 * len(matches)).reshape(-1, 3).T
            ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
            pairs = once(np.searchsorted(ends, starts) << 32 | concepts)
            found.append(np.stack([(pairs >> 32) + start, pairs & 0xFFFFFFFF]))
        rows, numbers = np.concatenate(found, axis=1)
        return rows, numbers


def once(numbers: np.ndarray) -> np.ndarray:
    """Numbers that are mostly in order, each once: faster than `numpy.unique`, which hashes them."""
    numbers = np.sort(numbers, kind="stable")
    found: np.ndarray = numbers[np.diff(numbers, prepend=-1) != 0]
    return found


def _blocks(captions: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Some captions at a time, with the number of the first of them."""
    start, size = 0, 0
    for number, caption in enumerate(captions, 1):
        size += len(caption)
        if size >= _BLOCK or number == len(captions):
            yield start, captions[start:number]
            start, size = number, 0
