"""Which links of a page are taken: its images with a caption, and why the others are not."""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from curator_dask.errors import ConfigError

#: Why an image is not taken, in the order in which they are looked at.
NO_CAPTION = "without a caption"
NO_URL = "without an address"
NOT_HTTP = "within the page, or not of http"
NOT_DECODED = "SVG or an icon"
TOO_LONG = "with a caption or address that is too long"
TOO_SHORT = "with a caption that is too short"
LANGUAGE = "of a page in another language"
REASONS = (NO_CAPTION, NO_URL, NOT_HTTP, NOT_DECODED, TOO_LONG, TOO_SHORT, LANGUAGE)

_LONGEST_URL = 2_048  # servers and browsers take no more, mostly
_LONGEST_CAPTION = 4_096
_NOT_DECODED = (".svg", ".svgz", ".ico")
# What browsers take out of an address, and what they write otherwise (https://url.spec.whatwg.org).
_BREAKS = re.compile(r"[\t\n\r]")
_UNITS = ("pair", "url")


@dataclass(frozen=True)
class LinkRules:
    """Which images are taken.

    Attributes
    ----------
    min_characters, min_words
        That a caption has at least, once white space is one space. LAION-400M and LAION-5B took no caption below
        5 characters (arXiv:2111.02114, arXiv:2210.08402).
    languages
        Codes such as ``"en"``; images of pages in others are left out, and of pages whose language is not known. None:
        of all.
    unique
        What is taken once: ``"pair"``, an address with a caption, or ``"url"``, an address with its first caption.

    Raises
    ------
    ConfigError
        One of them is none of these.
    """

    min_characters: int = 5
    min_words: int = 1
    languages: tuple[str, ...] | None = None
    unique: str = "pair"

    def __post_init__(self) -> None:
        for name in ("min_characters", "min_words"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r}: expected a whole number from 1")
        if self.unique not in _UNITS:
            raise ConfigError(f"unique={self.unique!r}: expected one of {', '.join(_UNITS)}")
        if isinstance(self.languages, str):
            raise ConfigError(f"languages={self.languages!r}: expected a list of codes, as ['en', 'de']")
        if self.languages is not None:
            codes = tuple(dict.fromkeys(str(code).strip().lower() for code in self.languages))
            if not codes or not all(re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]+)*", code) for code in codes):
                raise ConfigError(
                    f"languages={[*self.languages]}: expected codes such as 'en', 'de', 'zh-hant'"
                )
            object.__setattr__(self, "languages", codes)

    def takes(self, language: str | None) -> bool:
        """Whether pages of a language are taken: ``"zh"`` takes ``"zh-hant"``, too."""
        if self.languages is None:
            return True
        parts = (language or "").lower().split("-")
        return any("-".join(parts[: n + 1]) in self.languages for n in range(len(parts)))


@dataclass
class Page:
    """What a page of a crawl says of its images.

    Attributes
    ----------
    url
        Its own.
    base
        What its relative addresses are relative to.
    date
        When it was crawled, as ISO 8601; None: not known.
    language
        A code; None: not known.
    images
        Address and caption of each, as they stand there; None for what is not there.
    are_escaped
        Captions and addresses may have entities of HTML.
    """

    url: str
    base: str
    date: str | None
    language: str | None
    images: list[tuple[str | None, str | None]]
    are_escaped: bool = False


@dataclass
class Found:
    """Images that were taken, a list a column.

    Attributes
    ----------
    uids, urls, captions, pages, languages, dates
        Of each, in the order in which they stand there, none twice.
    counts
        ``pages``, ``images``, ``again`` (of these stand there a second time), and by reason what was not taken.
    """

    uids: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    languages: list[str | None] = field(default_factory=list)
    dates: list[str | None] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def take(pages: Iterable[Page], rules: LinkRules, into: Found) -> None:
    """Put the images of pages that are taken into lists; what is counted is right after each page."""
    seen = set(into.uids)
    for page in pages:
        into.counts["pages"] += 1
        into.counts["images"] += len(page.images)
        if page.images and not rules.takes(page.language):
            into.counts[LANGUAGE] += len(page.images)
            continue
        address = _Address(page.base or page.url)
        for url, caption in page.images:
            reason, url, caption = _looked_at(url, caption, page, address, rules)
            if reason is not None:
                into.counts[reason] += 1
                continue
            uid = uid_of(url, caption if rules.unique == "pair" else None)
            if uid in seen:
                into.counts["again"] += 1
                continue
            seen.add(uid)
            into.uids.append(uid)
            into.urls.append(url)
            into.captions.append(caption)
            into.pages.append(page.url)
            into.languages.append(page.language)
            into.dates.append(page.date)


def uid_of(url: str, caption: str | None) -> str:
    """32 hexadecimal digits that tell an address and a caption from all others: 128 bits of BLAKE2b."""
    text = url if caption is None else f"{url}\0{caption}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _looked_at(
    url: str | None, caption: str | None, page: Page, address: _Address, rules: LinkRules
) -> tuple[str | None, str, str]:
    """Why an image is not taken, or None; and its address and caption as they are written."""
    if caption and page.are_escaped and "&" in caption:
        caption = html.unescape(caption)
    caption = " ".join((caption or "").split())
    if not caption:
        return NO_CAPTION, "", ""
    if url and page.are_escaped and "&" in url:
        url = html.unescape(url)
    url = _BREAKS.sub("", url or "").strip()
    if not url:
        return NO_URL, "", ""
    url = address.absolute(url)
    if not url.startswith(("http://", "https://")) or len(url) < 10:
        return NOT_HTTP, "", ""
    if _path_of(url).endswith(_NOT_DECODED):
        return NOT_DECODED, "", ""
    if len(url) > _LONGEST_URL or len(caption) > _LONGEST_CAPTION:
        return TOO_LONG, "", ""
    if len(caption) < rules.min_characters or caption.count(" ") + 1 < rules.min_words:
        return TOO_SHORT, "", ""
    return None, _encodable(url), _encodable(caption)


def _path_of(url: str) -> str:
    """The path of an address, in small letters, without what follows ``?``."""
    return url.partition("?")[0].lower()


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


class _Address:
    """What a page's addresses are relative to."""

    def __init__(self, base: str) -> None:
        self._base = base
        try:
            parts = urlsplit(base)
        except ValueError:  # of an address in brackets that is none
            parts = urlsplit("")
        self._scheme, self._host = parts.scheme, f"{parts.scheme}://{parts.netloc}"
        self._has_host = bool(parts.scheme and parts.netloc)

    def absolute(self, url: str) -> str:
        """An address as a whole, without what follows ``#``; white space in it is written ``%20``, as browsers do."""
        url = url.partition("#")[0]
        start = url[:8].lower()
        if start.startswith(("http://", "https://")):
            scheme, _, rest = url.partition("://")
            url = f"{scheme.lower()}://{rest}"
        elif self._has_host and url.startswith("//"):
            url = f"{self._scheme}:{url}"
        elif self._has_host and url.startswith("/") and "/." not in url:
            url = f"{self._host}{url}"
        elif not start.startswith(("data:", "blob:", "about:")):
            try:
                url = urljoin(self._base, url)
            except ValueError:
                return ""
        return url.replace(" ", "%20")
