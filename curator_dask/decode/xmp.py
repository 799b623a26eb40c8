"""XMP, the XML in which image files say whose they are: its properties read, and some of them blanked.

It comes from anywhere, so nothing in it is followed: a document type, with which entities would be declared, is
refused, and so is what is longer or deeper than any real packet, or has a namespace that is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from sys import intern
from typing import Any
from xml.parsers import expat

#: Bytes of a packet above which it is not read. Editors that keep their history write some 100 kB.
MOST = 1 << 20
_DEEPEST = 100
_LONGEST = 1024  # characters of a namespace: a parser gives it with each name that has its prefix
_PADDING = b"\0 \t\r\n"

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XML = "http://www.w3.org/XML/1998/namespace"
_TAG = re.compile(rb"""<(?:[^>"']|"[^"]*"|'[^']*')*>""")
_ATTRIBUTE = re.compile(rb"""\s(?P<name>[^\s=/>"']+)\s*=\s*(?:"[^"]*"|'[^']*')""")

Name = tuple[str, str]
"""The namespace of a property, and what it is called there."""


class XmpError(ValueError):
    """A packet that is no XMP, or none that is read here."""


class Xmp:
    """What a packet says.

    Parameters
    ----------
    packet
        UTF-8 or UTF-16.

    Attributes
    ----------
    values
        By property, its texts in their order: of alternatives the default first. Of structures all texts in them.
    names
        All properties and fields, however deep.

    Raises
    ------
    XmpError
        It cannot be read.
    """

    def __init__(self, packet: bytes) -> None:
        self.values: dict[Name, list[str]] = {}
        self.names: set[Name] = set()
        self._open: list[Name] = []
        self._within: list[Name] = []  # the property that is open, if one is
        self._parts: list[list[Any]] = []  # texts of the property: whether the default, and pieces
        parser = _parser()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        _parse(parser, packet)

    def first(self, *names: Name) -> str | None:
        """The first text that one of some properties has; None: none has any."""
        return next((text for name in names for text in self.values.get(name, ())), None)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = _name(tag)
        self._open.append(name)
        if len(self._open) > _DEEPEST:
            raise XmpError(f"elements more than {_DEEPEST} deep")
        known = {_name(each): value for each, value in attributes.items()}
        own = {each: value for each, value in known.items() if each[0] not in ("", RDF, _XML)}
        self.names |= {*own, *([name] if name[0] != RDF else [])}
        described = len(self._open) > 1 and self._open[-2] == (RDF, "Description")
        if not self._within and name == (RDF, "Description"):
            for each, value in own.items():
                self._add(each, [value])
        elif not self._within and described:
            self._within, self._parts = [name], []
        if self._within:
            self._parts += [[False, value] for value in own.values()]
            self._parts.append([known.get((_XML, "lang")) == "x-default", known.get((RDF, "resource"), "")])

    def _end(self, tag: str) -> None:
        closed = self._open.pop()
        if self._within and closed == self._within[0] and self._open[-1:] == [(RDF, "Description")]:
            parts = sorted(self._parts, key=lambda each: not each[0])
            self._add(closed, ["".join(pieces) for _, *pieces in parts])
            self._within = []

    def _text(self, text: str) -> None:
        if self._within:
            self._parts[-1].append(text)

    def _add(self, name: Name, texts: list[str]) -> None:
        self.values.setdefault(name, []).extend(text.strip() for text in texts if text.strip())


def without(packet: bytes, goes: Callable[[Name], bool]) -> bytes | None:
    """The packet with some of its properties and fields overwritten by spaces, of the same length.

    Parameters
    ----------
    packet
        As of `Xmp`.
    goes
        Which of them.

    Returns
    -------
    None: they cannot be told from the rest, so that the packet should go as a whole.
    """
    if b"\0" in packet.rstrip(b"\0"):  # UTF-16, in which a space has two bytes
        return None
    try:
        if not any(map(goes, Xmp(packet).names)):
            return packet
        made = bytearray(packet)
        for start, stop in _extents(packet, goes):
            made[start:stop] = b" " * (stop - start)
        return None if any(map(goes, Xmp(bytes(made)).names)) else bytes(made)
    except XmpError:
        return None


def _extents(packet: bytes, goes: Callable[[Name], bool]) -> Iterator[tuple[int, int]]:
    """Where elements and attributes lie that go."""
    lead = len(packet) - len(packet.lstrip(_PADDING))
    found: list[tuple[int, int]] = []
    spaces: dict[str, list[str]] = {}
    begun: list[int | None] = []
    parser = _parser()

    def declared(prefix: str | None, uri: str) -> None:
        _check_space(prefix, uri)
        spaces.setdefault(prefix or "", []).append(uri)

    def forgotten(prefix: str | None) -> None:
        spaces[prefix or ""].pop()

    def start(tag: str, attributes: dict[str, str]) -> None:
        at = parser.CurrentByteIndex + lead
        begun.append(at if goes(_name(tag)) else None)
        if any(goes(_name(each)) for each in attributes) and (whole := _TAG.match(packet, at)):
            for attribute in _ATTRIBUTE.finditer(packet, at, whole.end()):
                prefix, colon, local = attribute["name"].decode("utf-8", "replace").partition(":")
                if colon and goes(((spaces.get(prefix) or [""])[-1], local)):
                    found.append((attribute.start() + 1, attribute.end()))

    def end(tag: str) -> None:
        if (first := begun.pop()) is not None:
            closing = _TAG.match(packet, parser.CurrentByteIndex + lead)
            found.append((first, closing.end() if closing else len(packet)))

    parser.StartNamespaceDeclHandler, parser.EndNamespaceDeclHandler = declared, forgotten
    parser.StartElementHandler, parser.EndElementHandler = start, end
    _parse(parser, packet)
    yield from found


def _parser() -> Any:
    parser = expat.ParserCreate(namespace_separator="\n")
    parser.buffer_text = True

    def refuse(*_: Any) -> None:
        raise XmpError("a document type, which XMP does not have")

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartNamespaceDeclHandler = _check_space
    return parser


def _check_space(_: str | None, uri: str | None) -> None:
    if len(uri or "") > _LONGEST:
        raise XmpError(f"a namespace of more than {_LONGEST:,} characters")


def _parse(parser: Any, packet: bytes) -> None:
    if len(packet) > MOST:
        raise XmpError(f"{len(packet):,} bytes, over {MOST:,}")
    try:
        parser.Parse(packet.strip(_PADDING), True)
    except expat.ExpatError as error:
        raise XmpError(str(error)) from None


def _name(tag: str) -> Name:
    space, _, local = tag.rpartition("\n")
    return intern(space), local  # one text for all names
