"""Brace patterns such as ``{00000..00099}``, expanded as bash does."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from curator_dask.errors import DatasetError

MAX_EXPANSION = 10_000_000
"""A pattern that stands for more names than this is taken for a slip of the pen."""

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])")


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand ``{a,b}``, ``{0..9}``, ``{000..010}``, ``{0..10..2}`` and ``{a..e}``, nested too, as bash does.

    Braces that hold neither a comma nor a range, or are not closed, stand for themselves.

    Raises
    ------
    DatasetError
        A range stands for more than `MAX_EXPANSION` names.
    """
    start = pattern.find("{")
    while start >= 0:
        commas, depth, end = [], 0, -1
        for at in range(start, len(pattern)):
            if pattern[at] == "{":
                depth += 1
            elif pattern[at] == "}":
                depth -= 1
                if depth == 0:
                    end = at
                    break
            elif pattern[at] == "," and depth == 1:
                commas.append(at)
        choices: Iterable[str] | None = None
        if commas and end > 0:
            edges = [start, *commas, end]
            parts = [pattern[a + 1 : b] for a, b in itertools.pairwise(edges)]
            choices = (choice for part in parts for choice in expand_braces(part))
        elif end > 0:
            choices = _expanded_range(pattern[start + 1 : end])
        if choices is not None:
            tails = list(expand_braces(pattern[end + 1 :]))
            yield from (pattern[:start] + choice + tail for choice in choices for tail in tails)
            return
        start = pattern.find("{", start + 1)
    yield pattern


def _expanded_range(text: str) -> list[str] | None:
    match = _RANGE.fullmatch(text)
    if not match:
        return None
    first, last, step, low, high = match.groups()
    if low:
        first, last = str(ord(low)), str(ord(high))
    a, b, width = int(first), int(last), abs(int(step or 1)) or 1
    if abs(b - a) // width >= MAX_EXPANSION:
        raise DatasetError(f"{{{text}}}: expected at most {MAX_EXPANSION} names, found more: is it a typo?")
    numbers = range(a, b + 1, width) if a <= b else range(a, b - 1, -width)
    if low:
        return [chr(number) for number in numbers]
    # Leading zeros on either end pad all, as in bash.
    padded = any(end.lstrip("-").startswith("0") and len(end.lstrip("-")) > 1 for end in (first, last))
    digits = max(len(first), len(last)) if padded else 0
    return [f"{number:0{digits}d}" for number in numbers]
