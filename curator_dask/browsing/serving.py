"""The server of the page: on this machine alone, for who has its token, as Jupyter's is.

- Every request needs the token, in the URL of the first and in a cookie from then on.
- The host that a request names must be the server's, and where a browser says from which page it comes, that is its
  own: another site that the same browser shows can ask nothing, not by a name that it has pointed here either.
- A request names rows by number, never a path. Bodies are limited, and of who has no token none is kept.
- The page may load nothing from elsewhere and run no script but its own (Content-Security-Policy).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import tornado.httpserver
import tornado.netutil
import tornado.web

from curator_dask.browsing.looking import MOST_CHOSEN, Browser, Look
from curator_dask.browsing.mixing import parted
from curator_dask.browsing.page import render
from curator_dask.errors import ConfigError, CuratorError
from curator_dask.webdataset.folders import place_of

logger = logging.getLogger("curator_dask")

#: Bytes of a body, at most: of an image that is given; of what else is asked.
MOST_IMAGE, MOST_ASKED = 32 << 20, 256 << 10
#: Rows and pictures of one answer, at most.
MOST_ROWS, MOST_PICTURES = 200, 64
#: Seconds that a connection may be idle, and that a body may take.
_IDLE, _SLOW = 600, 300


class Serving:
    """Serves the page of an output.

    Parameters
    ----------
    browser
        Of the output.
    host, port
        Where to listen; port 0: one that is free.
    token
        That requests need; None: a random one.

    Raises
    ------
    ConfigError
        It cannot listen there.
    """

    def __init__(
        self, browser: Browser, host: str = "127.0.0.1", port: int = 0, token: str | None = None
    ) -> None:
        self.browser, self.host = browser, host
        self.token = token or secrets.token_urlsafe(24)
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="curator-browse")
        #: Of pictures alone: those of a slow store keep no question waiting.
        self.painters = ThreadPoolExecutor(4, thread_name_prefix="curator-paint")
        self._busy, self._lock = 0, threading.Lock()
        try:
            self._sockets = tornado.netutil.bind_sockets(port, host)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--host {host} --port {port}: cannot listen there: {error}. Give another port, or 0 for one that is"
                " free"
            ) from None
        self.port = self._sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """Of the page, with the token."""
        anywhere = self.host in ("0.0.0.0", "::", "")
        name = "127.0.0.1" if anywhere else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}/?token={self.token}"

    @property
    def is_busy(self) -> bool:
        """Whether something that was asked is still being made."""
        return self._busy > 0

    def counted(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is made, and meanwhile this is busy."""
        with self._lock:
            self._busy += 1
        try:
            return make()
        finally:
            with self._lock:
                self._busy -= 1

    @property
    def is_local(self) -> bool:
        """Whether it listens to this machine alone."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    async def run(self, stop: asyncio.Event, ready: Callable[[], None] | None = None) -> None:
        """Serve until `stop` is set."""
        common: dict[str, Any] = {"serving": self}
        application = tornado.web.Application(
            [
                ("/", _Page, common),
                ("/find", _Find, common),
                ("/pictures", _Pictures, common),
                ("/image", _Image, common),
            ],
            default_handler_class=_Nothing,
            default_handler_args=common,
            log_function=lambda handler: None,
        )
        server = tornado.httpserver.HTTPServer(
            application,
            max_body_size=MOST_IMAGE,
            max_buffer_size=2 * MOST_IMAGE,
            idle_connection_timeout=_IDLE,
            body_timeout=_SLOW,
        )
        server.add_sockets(self._sockets)
        try:
            if ready is not None:
                ready()
            await stop.wait()
        finally:
            server.stop()
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.painters.shutdown(wait=False, cancel_futures=True)


def serve(serving: Serving, ready: Callable[[], None]) -> None:
    """Serve in this thread until it is interrupted.

    Raises
    ------
    KeyboardInterrupt
        It was.
    """

    async def forever() -> None:
        await serving.run(asyncio.Event(), ready)

    asyncio.run(forever())


@tornado.web.stream_request_body
class _Handler(tornado.web.RequestHandler):
    """What every request goes through, before its body is read."""

    most = MOST_ASKED  # bytes of a body

    def initialize(self, serving: Serving) -> None:
        self.serving = serving
        self.nonce = secrets.token_urlsafe(16)
        self._is_open = False
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def _cookie(self) -> str:
        return f"curator-dask-{self.serving.port}"  # servers of several ports share the cookies of a host

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")

    def prepare(self) -> None:
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src 'nonce-{self.nonce}'; style-src 'nonce-{self.nonce}'; img-src data:;"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        try:
            host = urlsplit(f"//{self.request.host}").hostname or ""
        except ValueError:
            host = ""
        if self.serving.is_local and host not in ("127.0.0.1", "localhost", "::1"):
            self._refuse("this host is not the server's: open the URL that it has printed")
        origin = self.request.headers.get("Origin")
        if origin is not None and origin != f"http://{self.request.host}":
            self._refuse("another page may ask nothing here")
        from_here = self.request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        if not from_here and (self.request.method != "GET" or self.request.path != "/"):
            self._refuse("another page may ask nothing here")
        given = self.get_query_argument("token", None)
        for token in (given, self.get_cookie(self._cookie)):
            if token is not None and hmac.compare_digest(token.encode(), self.serving.token.encode()):
                self._is_open = True
        if not self._is_open:
            self._refuse("the URL needs the token that curator-dask browse has printed")
        if given is not None:
            self.set_cookie(self._cookie, self.serving.token, httponly=True, samesite="Strict", path="/")
        length = self.request.headers.get("Content-Length", "0")
        if length.isdecimal() and int(length) > self.most:
            raise tornado.web.HTTPError(413)

    def data_received(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= self.most:
            self._parts.append(chunk)

    @property
    def body(self) -> bytes:
        """Of the request, whole."""
        if self._size > self.most:
            raise tornado.web.HTTPError(413)
        return b"".join(self._parts)

    def _refuse(self, why: str) -> None:
        raise tornado.web.HTTPError(403, reason=why)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """In words, without a traceback."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code}: {self._reason}\n")

    def asked(self) -> dict[str, Any]:
        """The JSON object of the body."""
        try:
            found = json.loads(self.body)
            json.dumps(found, ensure_ascii=False).encode()  # halves of signs are no text
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise tornado.web.HTTPError(400, reason="expected a JSON object")
        return found

    async def answer(
        self, make: Callable[[], dict[str, Any]], pool: ThreadPoolExecutor | None = None
    ) -> None:
        """What is made in a thread, or why it cannot be, in words."""
        serving = self.serving
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                pool or serving.pool, serving.counted, make
            )
        except CuratorError as error:
            found = {"error": str(error)}
        except (
            Exception
        ) as error:  # of a library, on data that nobody has thought of: the page says it, the next works
            logger.exception("browse: %s could not be answered", self.request.path)
            found = {"error": f"could not be answered: {error!r}"}
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(json.dumps(found))


class _Nothing(_Handler):
    def prepare(self) -> None:
        super().prepare()
        raise tornado.web.HTTPError(404)


class _Page(_Handler):
    async def get(self) -> None:
        if self.get_query_argument("token", None) is not None:
            self.redirect("/")  # so that the token is in no history
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(render(self.serving.browser, self.nonce))


class _Find(_Handler):
    async def post(self) -> None:
        asked = self.asked()
        look = Look(
            kind=_said(asked, "kind", str, "random"),
            text=_said(asked, "text", str, ""),
            number=_said(asked, "number", int, -1),
            image=_said(asked, "image", str, ""),
            column=_said(asked, "column", str, ""),
            descending=_said(asked, "descending", bool, True),
            where=_said(asked, "where", str, ""),
            seed=max(0, _said(asked, "seed", int, 0)),
            likes=_numbers(asked, "likes"),
            unlikes=_numbers(asked, "unlikes"),
        )
        start, count = _said(asked, "start", int, 0), _said(asked, "count", int, 48)
        columns = _said(asked, "columns", list, [])
        if start < 0 or not 0 < count <= MOST_ROWS or not all(isinstance(each, str) for each in columns):
            raise tornado.web.HTTPError(400, reason="no such rows")
        browser = self.serving.browser

        def make() -> dict[str, Any]:
            seen = browser.find(look, start, count)
            rows = browser.rows.read(seen.numbers.tolist(), columns)
            scores = [None] * len(rows) if seen.scores is None else seen.scores.tolist()
            return {
                "rows": [_row(row, score) for row, score in zip(rows, scores, strict=True)],
                "whole": seen.whole,
                "passing": seen.passing,
                "parts": parted(look.text),
            }

        await self.answer(make)


class _Pictures(_Handler):
    async def post(self) -> None:
        numbers = _said(self.asked(), "numbers", list, [])
        if len(numbers) > MOST_PICTURES or not all(type(each) is int for each in numbers):
            raise tornado.web.HTTPError(400, reason="no such rows")
        await self.answer(
            lambda: {"pictures": dict(self.serving.browser.pictures(numbers))}, self.serving.painters
        )


class _Image(_Handler):
    most = MOST_IMAGE

    async def post(self) -> None:
        data = self.body
        await self.answer(lambda: {"image": self.serving.browser.take_image(data)})


def _row(row: dict[str, Any], score: float | None) -> dict[str, Any]:
    """Of a row what the page shows."""
    url = row["url"]
    shown = {name: row[name] for name in ("number", "key", "url", "caption", "error", "values")}
    return {**shown, "place": None if url is None else place_of(url), "score": score}


def _numbers(asked: dict[str, Any], name: str) -> tuple[int, ...]:
    """Numbers of rows in a request."""
    found = _said(asked, name, list, [])
    if len(found) > MOST_CHOSEN:
        raise tornado.web.HTTPError(400, reason=f"{MOST_CHOSEN} chosen rows are the most to look by")
    if not all(type(each) is int for each in found):
        raise tornado.web.HTTPError(400, reason="no such rows")
    return tuple(found)


def _said(asked: dict[str, Any], name: str, kind: type, otherwise: Any) -> Any:
    """A value of a request, of its type."""
    found = asked.get(name, otherwise)
    if type(found) is not kind:
        raise tornado.web.HTTPError(400, reason=f"{name} is no {kind.__name__}")
    return found
