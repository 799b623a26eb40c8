"""The pages of a file of a crawl: of a WAT, which has their links as JSON, or of a WARC, which has their HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO
from urllib.parse import urljoin

import webencodings
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from msgspec import DecodeError, Struct, convert, field
from msgspec.json import Decoder
from selectolax.lexbor import LexborHTMLParser, LexborNode

from curator_dask.crawls.inflating import DamagedError, Inflated
from curator_dask.crawls.rules import Page

#: Bytes of a record, at most; larger ones are passed over, and counted.
MOST_BYTES = 1 << 26
#: Where an image has its address, for those that scripts put in when they come into view.
_SOURCES = ("src", "data-src", "data-original", "data-lazy-src", "data-srcset", "srcset")
_PATHS = frozenset(f"IMG@/{name}" for name in _SOURCES)
_HTML = ("text/html", "application/xhtml+xml")
_META_CHARSET = re.compile(rb"<meta[^>]{0,512}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_DETECTED = "languages-cld2"


class _Link(Struct):
    path: str = ""
    url: str | None = None
    alt: str | None = None


class _Head(Struct, rename={"base": "Base"}):
    base: str | None = None


class _Html(Struct, rename={"head": "Head", "links": "Links"}):
    head: _Head = field(default_factory=_Head)
    links: list[_Link] = []


class _Response(Struct, rename={"headers": "Headers", "html": "HTML-Metadata"}):
    headers: dict[str, Any] = {}
    html: _Html | None = None


class _Entry(Struct, rename={"name": "Name", "value": "Value"}):
    name: str = ""
    value: Any = None


class _Metadata(Struct, rename={"records": "Metadata-Records"}):
    records: list[_Entry] = []


class _Payload(Struct, rename={"response": "HTTP-Response-Metadata", "metadata": "WARC-Metadata-Metadata"}):
    response: _Response | None = None
    metadata: _Metadata | None = None


class _Of(Struct, rename={"uri": "WARC-Target-URI", "date": "WARC-Date"}):
    uri: str | None = None
    date: str | None = None


class _Envelope(Struct, rename={"of": "WARC-Header-Metadata", "payload": "Payload-Metadata"}):
    of: _Of = field(default_factory=_Of)
    payload: _Payload = field(default_factory=_Payload)


class _Wat(Struct, rename={"envelope": "Envelope"}):
    envelope: _Envelope = field(default_factory=_Envelope)


_WAT: Decoder[_Wat] = Decoder(_Wat)


class Pages:
    """The pages of a file, one after the other.

    Parameters
    ----------
    file
        To be read from its beginning.

    Attributes
    ----------
    records
        How many were read.
    passed_over
        Of these, records that are too large, or not what they say they are.
    damage
        Why the file cannot be read to its end; None: it can.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.records = self.passed_over = 0
        self.damage: str | None = None

    def __iter__(self) -> Iterator[Page]:
        last: Page | None = None  # whose language may stand in the next record
        try:
            for record in ArchiveIterator(Inflated(self._file), parse_http=False, stream_detect=False):
                self.records += 1
                page, detected = self._look(record)
                if last is not None and detected is not None and detected[0] == last.url:
                    last.language = detected[1] or last.language
                if page is not None:
                    if last is not None:
                        yield last
                    last = page
        except (DamagedError, OSError) as error:
            self.damage = f"{error}, after {self.records:,} records"
        if last is not None:
            yield last
        if not self.records and self.damage is None:
            self.damage = "it has no record of a WARC"

    def _look(self, record: Any) -> tuple[Page | None, tuple[str, str | None] | None]:
        """The page of a record; or the address and language of one, which it tells."""
        # FastWARC 2.0.1 does not know types in fields written in small letters (`findings/fastwarc_case_of_fields.sh`).
        kind = (record.headers.get("WARC-Type") or "").lower()
        if kind not in ("metadata", "response"):
            return None, None
        said = record.headers.get("Content-Length")
        if said is None or said.strip() != str(record.content_length):
            raise DamagedError(
                f"expected a field Content-Length, written so, found {said!r}, which FastWARC does not read"
            )
        if record.content_length > MOST_BYTES:
            self.passed_over += 1
            return None, None
        if kind == "response":
            try:
                return self._of_html(record), None
            except OSError:  # no HTTP, or chunks that are none: the next record begins where this one says
                self.passed_over += 1
                return None, None
        body = record.reader.read()
        self._check(record, body)
        if (record.headers.get("Content-Type") or "").startswith("application/json"):
            return self._of_wat(record, body)
        return None, _detected(record.headers.get("WARC-Target-URI"), _fields_in(body).get(_DETECTED))

    def _check(self, record: Any, body: bytes) -> None:
        """FastWARC ends a record where the file ends, without a word."""
        if len(body) < record.content_length:
            raise DamagedError(
                f"it was cut: a record of {record.content_length:,} bytes has {len(body):,}"
                f" ({record.headers.get('WARC-Target-URI')})"
            )

    def _of_wat(self, record: Any, body: bytes) -> tuple[Page | None, tuple[str, str | None] | None]:
        try:
            found = _wat_of(body).envelope
        except (
            ValueError,
            RecursionError,
        ):  # msgspec's are of the first; also where something has another type
            self.passed_over += 1
            return None, None
        url = found.of.uri or record.headers.get("WARC-Target-URI") or ""
        if found.payload.metadata is not None:
            entries = {each.name: each.value for each in found.payload.metadata.records}
            return None, _detected(url, entries.get(_DETECTED))
        response = found.payload.response
        if response is None or response.html is None:
            return None, None
        links = response.html.links
        base = response.html.head.base or next((each.url for each in links if each.path == "__base__"), None)
        images = [(each.url, each.alt) for each in links if each.path in _PATHS]
        date = found.of.date or record.headers.get("WARC-Date")
        page = Page(url, _base(url, base), date, _said_language(response.headers), images, are_escaped=True)
        return page, None

    def _of_html(self, record: Any) -> Page | None:
        if not (record.headers.get("Content-Type") or "").startswith("application/http"):
            return None
        whole = record.reader.read()
        self._check(record, whole)
        if not whole.startswith(b"HTTP/"):
            raise OSError("no HTTP")
        # A record of its own: where FastWARC fails at chunks that are none, it does not go on behind them.
        answer = WarcRecord()
        answer.init_headers(record_type=WarcRecordType.response)
        answer.set_bytes_content(whole)
        answer.is_http = True
        answer.parse_http(auto_decode="all")
        headers = {name.lower(): value for name, value in (answer.http_headers or ())}
        content_type = headers.get("content-type", "")
        if content_type and not content_type.lower().startswith(_HTML):
            return None
        body = answer.reader.read(MOST_BYTES)
        tree = LexborHTMLParser(_decoded(body, content_type))
        url = record.headers.get("WARC-Target-URI") or ""
        root, base = tree.root, tree.css_first("base[href]")
        language = (root.attributes.get("lang") if root is not None else None) or _said_language(headers)
        images = [(_source(each), each.attributes.get("alt")) for each in tree.css("img")]
        href = None if base is None else base.attributes.get("href")
        return Page(url, _base(url, href), record.headers.get("WARC-Date"), _code(language), images)


def _wat_of(body: bytes) -> _Wat:
    try:
        return _WAT.decode(body)
    except DecodeError:  # of half a surrogate pair, which Python's takes
        return convert(json.loads(body), _Wat)


def _base(url: str, base: str | None) -> str:
    """What addresses of a page are relative to: its own, or what it says, which may be relative itself."""
    if not base:
        return url
    try:
        return urljoin(url, base.strip())
    except ValueError:
        return url


def _source(image: LexborNode) -> str | None:
    """The address of an image: that which is no placeholder; of a ``srcset`` the last, which is the largest mostly."""
    attributes = image.attributes
    first = None
    for name in _SOURCES:
        value = (attributes.get(name) or "").strip()
        if name.endswith("srcset"):
            value = value.rpartition(", ")[2].split(" ", 1)[0]
        if value and not value.lower().startswith("data:"):
            return value
        first = first or value or None
    return first


def _decoded(body: bytes, content_type: str) -> str:
    """The text of a page, by what the server says of it, else what it says of itself, as browsers do."""
    said = _CHARSET.search(content_type)
    within = None if said else _META_CHARSET.search(body[:1024])
    label = said[1] if said else within[1].decode("ascii", "replace") if within else ""
    fallback: Any = webencodings.lookup(label)
    if fallback is None:
        try:
            return body.decode("utf-8-sig")
        except UnicodeDecodeError:
            fallback = webencodings.lookup("windows-1252")
    text: str = webencodings.decode(body, fallback)[0]
    return text


def _fields_in(body: bytes) -> dict[str, str]:
    """Those of a record of ``application/warc-fields``."""
    lines = (line.partition(":") for line in body.decode("utf-8", "replace").splitlines())
    return {name.strip().lower(): value.strip() for name, mark, value in lines if mark}


def _detected(url: str | None, told: Any) -> tuple[str, str | None] | None:
    """The address of a page, and the language that CLD2 has seen most of in it."""
    if not url or not told:
        return None
    try:
        found = json.loads(told) if isinstance(told, str) else told
        return url, _code(found["languages"][0]["code"])
    except (ValueError, LookupError, TypeError):
        return None


def _said_language(headers: Any) -> str | None:
    """Of a page, by ``Content-Language``."""
    items: Iterable[tuple[str, Any]] = headers.items()
    for name, value in items:
        if name.lower() == "content-language" and isinstance(value, str):
            return _code(value.partition(",")[0])
    return None


def _code(language: str | None) -> str | None:
    """``en-us`` of `` en_US ``; None of what is no code."""
    code = (language or "").strip().lower().replace("_", "-")
    return code if re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]{1,8})*", code) else None
