"""What a C2PA manifest asserts of AI, read out of its boxes; no signature is checked.

A manifest store is made of JUMBF boxes (ISO/IEC 19566-5): superboxes, each with a description that has a label, then
the assertions as CBOR or JSON. Of these the texts that matter are found as they stand.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

#: Bytes of a manifest store that are looked at. With pictures of what went into an image it has some 100 kB each.
MOST = 1 << 24
_DEEPEST = 16
_BOXES = 10_000
_SOURCE = re.compile(rb"https?://(?:cv\.iptc\.org/newscodes|c2pa\.org)/digitalsourcetype/")
_JSON_WORD = re.compile(rb"[A-Za-z]+")
#: Labels of the assertion by which training is forbidden: C2PA 1 has it, then the Creator Assertions Working Group.
_MINING = ("c2pa.training-mining", "cawg.training-mining")
_FORBIDDEN = re.compile(rb"notAllowed|constrained")


class Asserted(NamedTuple):
    """What is asserted, in any manifest of a store: of the image, or of one that it was made of.

    Attributes
    ----------
    sources
        Digital source types, as IPTC calls them: ``"trainedAlgorithmicMedia"``.
    forbidden
        ``"notAllowed"`` or ``"constrained"``, as an entry on training or mining says; None: none says so.
    """

    sources: tuple[str, ...]
    forbidden: str | None


def asserted(store: bytes) -> Asserted:
    """What a manifest store asserts, as far as its boxes can be read."""
    sources: dict[str, None] = {}
    forbidden = None
    for label, content in _assertions(store[:MOST]):
        if label.startswith("c2pa.actions"):
            sources |= dict.fromkeys(_sources(content))
        elif label.startswith(_MINING) and (found := _FORBIDDEN.findall(content)):
            forbidden = min(found, key=lambda word: word != b"notAllowed").decode()
    return Asserted(tuple(sources), forbidden)


def _assertions(store: bytes) -> Iterator[tuple[str, bytes]]:
    """Labels of superboxes, each with the content of one of their boxes."""
    todo = [(0, len(store), "", 0)]
    left = _BOXES
    while todo:
        at, stop, label, depth = todo.pop()
        while at + 8 <= stop and left:
            left -= 1
            size, kind = struct.unpack_from(">I4s", store, at)
            start = at + 8
            if size == 1 and at + 16 <= stop:
                (size,) = struct.unpack_from(">Q", store, start)
                start += 8
            end = stop if size == 0 else min(stop, at + size)
            if end < start:
                break
            if kind == b"jumd":  # a type of 16 bytes, flags, and a label where these say so
                name = store[start + 17 : end].split(b"\0", 1)[0]
                label = name.decode("utf-8", "replace")
            elif kind == b"jumb":
                if depth < _DEEPEST:
                    todo.append((start, end, "", depth + 1))
            elif label:
                yield label, store[start:end]
            at = end


def _sources(content: bytes) -> Iterator[str]:
    for found in _SOURCE.finditer(content):
        start, end = found.span()
        # Text of 24 to 255 bytes begins in CBOR with 0x78 and its length; in JSON it has an end of its own.
        if start >= 2 and content[start - 2] == 0x78 and start + content[start - 1] > end:
            word = content[end : start + content[start - 1]]
        else:
            text = _JSON_WORD.match(content, end)
            word = text[0] if text else b""
        if word.isalpha():
            yield word.decode()
