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
import sys
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

#: Of the rule. Counts that were made by another are made anew.
RULE = 1
#: Characters of captions that are looked through at a time: what is found in them is held as Python's objects.
_BLOCK = 1 << 18
#: Scripts without spaces between words, by code points (Unicode's Blocks.txt): Han and its radicals, kana, bopomofo;
#: Thai, Lao, Tibetan, Myanmar, Khmer.
_UNSPACED = (
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3040, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x323AF),
    (0x0E00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x19E0, 0x19FF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
)
_ASCII_WORDS = re.compile(r"\n|\w+|[^\w\s]", re.ASCII)


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
        words = _ASCII_WORDS.findall(text if match_case else text.lower())
    else:
        text = unicodedata.normalize("NFKC", text)
        if not match_case:
            text = unicodedata.normalize("NFKC", text.casefold())
        unspaced, word = _patterns()
        words = word.findall(unspaced.sub(r" \g<0> ", text))
    return f" {' '.join(words)} ".encode("utf-8", "surrogatepass")


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    r"""A character of a script without spaces, and a word of a text that has spaces around those.

    To Python's ``\w`` marks are none, and many scripts write vowels with them.
    """
    unspaced = "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED)
    alone = re.compile(f"[{unspaced}]")
    marks = (
        each for each in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(each).startswith("M")
    )
    inside = "".join(re.escape(each) for each in marks if not alone.match(each))
    return alone, re.compile(rf"\n|[\w{inside}]+|[^\w\s]")


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
            pairs = np.unique(np.searchsorted(ends, starts) << 32 | concepts)
            found.append(np.stack([(pairs >> 32) + start, pairs & 0xFFFFFFFF]))
        rows, numbers = np.concatenate(found, axis=1)
        return rows, numbers


def _blocks(captions: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Some captions at a time, with the number of the first of them."""
    start, size = 0, 0
    for number, caption in enumerate(captions, 1):
        size += len(caption)
        if size >= _BLOCK or number == len(captions):
            yield start, captions[start:number]
            start, size = number, 0
