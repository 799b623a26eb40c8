"""One request to one server: an answer with a body, where to go instead, or why there is none."""

from __future__ import annotations

import asyncio
import email.utils
import re
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from curator_dask.fetching.addresses import kind_of, public_socket
from curator_dask.fetching.bodies import LARGE_TOGETHER, Body, Room
from curator_dask.fetching.descriptors import NO_FILES, TooManyFilesError
from curator_dask.fetching.failures import FailedError, Failure, of_error, of_status, of_timeout
from curator_dask.fetching.lookups import Lookups
from curator_dask.fetching.options import FetchOptions

#: What ``X-Robots-Tag`` says of images that are not to be taken.
DISALLOWED = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
#: The name under which it may speak of this package alone.
ROBOT = "curator-dask"
# Seconds that a connection is kept for another image of its host: of thousands of hosts a second, each is a file.
_KEPT = 1.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PLAIN = re.compile(r"[!-~]+")  # ASCII without blanks: what is percent-encoded stays as it is
_ADDRESS = re.compile(r"(?:0x[0-9a-f]*|\d+|\.)+|\[?[0-9a-fA-F:.]*:[0-9a-fA-F:.%]*\]?")
_HOST = 253  # characters of a name (RFC 1035)
_SHORT = 80  # characters of an address that an error gives


def url_of(text: str | None) -> URL:
    """The URL that a table's text is.

    Raises
    ------
    FailedError
        It is none of http or https.
    """
    text = (text or "").strip()
    if not text:
        raise FailedError("no URL: the row has none")
    try:
        url = URL(text, encoded=_PLAIN.fullmatch(text) is not None)
        host, scheme = url.host, url.scheme.lower()
        _ = url.port
    except (ValueError, UnicodeError) as error:
        raise FailedError(f"no URL: {' '.join(str(error).split())[:_SHORT]}") from None
    if scheme not in ("http", "https"):
        what = f"{scheme}://" if scheme else repr(text[:_SHORT])
        raise FailedError(f"no URL of http or https: {what}")
    if not host:
        raise FailedError("no URL: it names no host")
    if len(host) > _HOST:
        raise FailedError(f"no URL: the name of its host has {len(host):,} characters")
    return url.with_fragment(None)


def host_of(url: URL) -> str:
    """The host of a URL, by which downloads are counted."""
    return (url.raw_host or "").lower().rstrip(".")  # as DNS has it: IDNA of another year means another host


class Asking:
    """Asks servers, within one event loop, for as long as the block lasts.

    Parameters
    ----------
    options
        Limits, and what is allowed.
    """

    def __init__(self, options: FetchOptions) -> None:
        self._options = options
        self._room = Room(max(LARGE_TOGETHER, options.max_bytes))

    async def __aenter__(self) -> Self:
        options = self._options
        self._lookups = Lookups()
        guarded: dict[str, Any] = (
            {} if options.allow_private or options.proxy else {"socket_factory": public_socket}
        )
        connector = aiohttp.TCPConnector(
            limit=0, resolver=self._lookups, use_dns_cache=False, keepalive_timeout=_KEPT, **guarded
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            headers={
                "User-Agent": options.user_agent,
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._lookups.close()

    def body(self) -> Body:
        """What a body is read into; close it."""
        return Body(self._room, self._options.max_bytes)

    async def ask(self, url: URL, body: Body, seconds: float) -> URL | Failure | None:
        """Ask for a URL.

        Parameters
        ----------
        url
            Of http or https.
        body
            What its body is read into.
        seconds
            It may take.

        Returns
        -------
        None: the body is there. A URL: it is elsewhere. A failure: it is not to be had.

        Raises
        ------
        TooManyFilesError
            This process may open no more.
        """
        host, looking_up = host_of(url), False
        try:
            async with asyncio.timeout(seconds) as limit:
                if _ADDRESS.fullmatch(host) is None and self._options.proxy is None:
                    looking_up = True
                    await self._lookups.resolve(host)
                    looking_up = False
                elif self._options.proxy is not None:
                    self._check_address(host)
                return await self._ask(url, body, limit)
        except TimeoutError:
            return of_timeout(self._options.timeout, looking_up)
        except Exception as error:  # aiohttp's, a socket's, of TLS: of many types
            if getattr(error, "errno", None) in NO_FILES:
                raise TooManyFilesError from error
            return of_error(error, host)

    def _check_address(self, host: str) -> None:
        """Raise FailedError where a proxy is asked for an address of one's own network."""
        if self._options.allow_private:
            return
        if host == "localhost" or host.endswith(".localhost"):
            raise FailedError(f"address refused: {host} is loopback")
        if _ADDRESS.fullmatch(host) is None:
            return
        try:
            kind = kind_of(host.strip("[]"))
        except ValueError:
            kind = "no address"
        if kind is not None:
            raise FailedError(f"address refused: {host} is {kind}")

    async def _ask(self, url: URL, body: Body, limit: asyncio.Timeout) -> URL | None:
        async with self._session.get(url, allow_redirects=False, proxy=self._options.proxy) as response:
            if response.status in _REDIRECTS and "Location" in response.headers:
                return _target(url, response.headers["Location"])
            if response.status not in (200, 203):
                raise of_status(response.status, wait_of(response.headers.get("Retry-After")))
            if not self._options.ignore_robots_tags:
                said = disallowed(response.headers.getall("X-Robots-Tag", ()))
                if said:
                    raise FailedError(f"robots: X-Robots-Tag says {said}")
            await body.read(response, limit)
            return None


def _target(url: URL, location: str) -> URL:
    try:
        return url_of(str(url.join(URL(location, encoded=_PLAIN.fullmatch(location) is not None))))
    except FailedError as error:
        raise FailedError(f"bad redirect: {error.failure.reason}") from None
    except (ValueError, UnicodeError):
        raise FailedError(f"bad redirect: {location[:_SHORT]!a}") from None


def wait_of(said: str | None) -> float | None:
    """Seconds that a ``Retry-After`` says, a number or a date; None where it says nothing that is known."""
    said = (said or "").strip()
    if said.isdecimal():
        return float(said[:9])
    try:
        when = email.utils.parsedate_to_datetime(said)
    except (ValueError, TypeError):
        return None
    return max(0.0, when.timestamp() - time.time())


def disallowed(headers: Iterable[str]) -> str:
    """What ``X-Robots-Tag`` headers say against taking an image, with commas between; empty: nothing.

    Directives of a header are meant for all robots, or behind a robot's name and a colon for that one alone.
    """
    found = []
    for header in headers:
        robot = ""
        for part in header.lower().split(","):
            name, mark, rest = (each.strip() for each in part.partition(":"))
            if mark and name not in (
                "unavailable_after",
                "max-snippet",
                "max-image-preview",
                "max-video-preview",
            ):
                robot, name = name, rest
            if name in DISALLOWED and robot in ("", "*", ROBOT):
                found.append(name)
    return ", ".join(dict.fromkeys(found))
