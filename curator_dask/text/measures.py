"""What is measured of a caption: its length, its language, what it is made of, and whether it is one at all."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from curator_dask.text.personal import PERSONAL

#: All statistics of captions, with the Arrow types of their columns.
TEXT_STATISTICS: Mapping[str, pa.DataType] = {
    "words": pa.int32(),
    "characters": pa.int32(),
    "language": pa.string(),
    "language_confidence": pa.float32(),
    "alphanumeric": pa.float32(),
    "digits": pa.float32(),
    "non_ascii": pa.float32(),
    "repeated_characters": pa.float32(),
    "repeated_words": pa.float32(),
    "has_url": pa.bool_(),
    "is_file_name": pa.bool_(),
}
#: And those that have to be asked for.
EVERY_TEXT: Mapping[str, pa.DataType] = {**TEXT_STATISTICS, **PERSONAL}
#: What stands for several.
GROUPS: Mapping[str, Mapping[str, pa.DataType]] = {"all": TEXT_STATISTICS, "personal": PERSONAL}
#: Those that a model says.
OF_LANGUAGE = ("language", "language_confidence")

#: Characters in which repetition is looked for: of all pieces of what is longer there is a table of gigabytes.
MOST = 100_000
_LENGTH = 10  # characters of a piece: data-juicer's default, and about that of the ROOTS corpus

#: A scheme or "www." with something behind it; not within a word of Latin letters.
_URL = re.compile(r"(?<![a-z0-9])(?:(?:https?|ftp)://|www\d?\.)[^\s]", re.IGNORECASE)

_IMAGE_FILE = re.compile(
    r"[^\n]*[^\s.]\.(?:jpe?g|jpe|jfif|png|gif|webp|avif|hei[cf]|bmp|tiff?|svg|psd|cr2|nef|dng|arw|mp4|mov|avi|webm)"
    r"(?:[?#]\S*)?",
    re.IGNORECASE,
)
_LONGEST_NAME = 255  # characters, as file systems have it
#: Cameras name by the standard DCF (JEITA CP-3461): four letters, digits or underscores, then four digits.
_DCF = re.compile(r"[a-z0-9_]{4}[0-9]{4}", re.IGNORECASE)
#: What telephones and programs name: a word and then numbers, dates and times, as in "IMG_20190812_123456". Each part
#: is taken whole (``++``), or else long numbers would take for ever.
_NUMBERED = re.compile(
    r"(?:img|dsc[nf]?|pict|pxl|vid|mvimg|image|photo|picture|pic|scan|screen ?shot|whatsapp image|untitled)"
    r"(?:[\s_.,-]*+(?:[0-9]++|\([0-9]++\)|wa[0-9]++|at\b|[ap]m\b))++",
    re.IGNORECASE,
)


def words(text: str) -> int:
    """Parts between white space (DataComp's count)."""
    return len(text.split())


def characters(text: str) -> int:
    """Unicode's code points (DataComp's count)."""
    return len(text)


def alphanumeric(text: str) -> float:
    """The share of characters that are letters or digits, of any script (data-juicer's ``alphanumeric_ratio``)."""
    return sum(map(str.isalnum, text)) / len(text)


def digits(text: str) -> float:
    """The share of characters that are digits, of any script."""
    return sum(map(str.isdigit, text)) / len(text)


def non_ascii(text: str) -> float:
    """The share of characters that are not ASCII."""
    return 0.0 if text.isascii() else 1 - len(text.encode("ascii", "ignore")) / len(text)


def repeated_characters(text: str) -> float:
    """How much of a text its most repeated pieces of ten characters take: data-juicer's ``char_rep_ratio``.

    Of n different pieces (they overlap) the commonest are looked at, √n at most, and no more than come several times:
    their share of all pieces. It is the filter of the ROOTS corpus (Laurençon et al. 2022, arXiv 2303.03915). Of a
    longer text the first `MOST` characters are measured.
    """
    text = text[:MOST]
    counts = Counter(text[start : start + _LENGTH] for start in range(len(text) - _LENGTH + 1))
    if not counts:
        return 0.0
    several = [count for count in counts.values() if count > 1]
    most = min(math.isqrt(len(counts)), len(several))
    return sum(sorted(several, reverse=True)[:most]) / counts.total()


def repeated_words(text: str) -> float:
    """The share of words that stand in the text before, whatever their case.

    A high rate of token repetition is what Conceptual Captions leaves out (Sharma et al. 2018, section 3.2). Of a
    longer text the first `MOST` characters are measured.
    """
    found = text[:MOST].casefold().split()
    return 1 - len({*found}) / len(found) if found else 0.0


def has_url(text: str) -> bool:
    """Whether there is an address: ``http://``, ``https://``, ``ftp://`` or ``www.``, and something behind it."""
    return _URL.search(text) is not None


def is_file_name(text: str) -> bool:
    """Whether the whole text is what a file is called, without the white space around it.

    It ends in the ending of an image's or a film's file (``my cat.jpg``); or it is what a camera (``DSC_0012``,
    ``P1010023``), a telephone or a program calls one (``IMG_20190812_123456``, ``Screenshot 2021-03-01 at 10.11.12``,
    ``image 3``).
    """
    text = text.strip()
    if len(text) > _LONGEST_NAME:
        return False
    return any(each.fullmatch(text) for each in (_IMAGE_FILE, _DCF, _NUMBERED))


#: Of a text that is not blank; those of language have a model.
MEASURES: Mapping[str, Callable[[str], Any]] = {
    "words": words,
    "characters": characters,
    "alphanumeric": alphanumeric,
    "digits": digits,
    "non_ascii": non_ascii,
    "repeated_characters": repeated_characters,
    "repeated_words": repeated_words,
    "has_url": has_url,
    "is_file_name": is_file_name,
}
