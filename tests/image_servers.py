"""A server of pictures whose one colour is a number, with all that servers of the web do besides."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import threading
import zlib
from collections import Counter

import numpy as np
from PIL import Image
from tars import picture

FORMS = ("PNG", "JPEG", "WEBP", "GIF")
SUFFIXES = ("png", "jpg", "webp", "gif")


def picture_of(number: int) -> bytes:
    """The bytes of a number's picture, of one of four formats."""
    return picture(number, FORMS[number % 4])


def big_picture() -> bytes:
    """A PNG of more than two megabytes."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (900, 900, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class ImageServer:
    """Serves, from a thread, ``/n/NUMBER.jpg`` and what else `_answer` knows.

    Attributes
    ----------
    asked
        How often each path was asked for.
    agents
        What they said they are.
    most
        Requests that were under way at the same time, at most.
    held
        Beginnings of paths that get no answer until they are taken out.
    broken
        Beginnings of paths that get status 503.
    pause
        Seconds that each answer takes.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.held: set[str] = set()
        self.broken: set[str] = set()
        self.pause = 0.0
        self.most = self._now = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ImageServer:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    def url(self, path: str | int) -> str:
        name = f"n/{path}.jpg" if isinstance(path, int) else path
        return f"http://127.0.0.1:{self.port}/{name}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while first := await reader.read(1):
                if first == b"\x16":  # of TLS, which it does not speak
                    writer.write(b"HTTP/1.1 400 said\r\n\r\n")
                    return
                head = first + await reader.readuntil(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                path = lines[0].split()[1].partition("://")[2] or lines[0].split()[1]
                path = path[path.find("/") + 1 :]
                self.asked[path] += 1
                self.agents |= {line[12:] for line in lines if line.startswith("User-Agent: ")}
                self._now += 1
                self.most = max(self.most, self._now)
                try:
                    await asyncio.sleep(self.pause)
                    while any(path.startswith(each) for each in self.held):
                        await asyncio.sleep(0.01)
                    if not await self._answer(path, writer):
                        return
                finally:
                    self._now -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> bool:
        """Answer; False where the connection is closed then."""

        def send(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> None:
            lines = [
                f"HTTP/1.1 {status} said",
                f"Content-Length: {len(body) if length is None else length}",
                *headers,
            ]
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)

        kind, _, rest = path.partition("/")
        digits = rest.partition("?")[0].partition(".")[0]
        number = int(digits) if digits.isdecimal() else 1
        image = picture_of(number)
        if any(path.startswith(each) for each in self.broken):
            send(503)
        elif kind == "n":
            send(200, image, "Content-Type: text/plain")
        elif kind == "status":
            send(number)
        elif kind == "flaky":
            send(*((500,) if self.asked[path] == 1 else (200, image)))
        elif kind == "busy":
            send(*((429, b"", "Retry-After: 1") if self.asked[path] == 1 else (200, image)))
        elif kind == "closed":
            send(429, b"", "Retry-After: 3600")
        elif kind == "hop":
            send(302, b"", f"Location: {'../n/7.jpg' if number == 0 else f'/hop/{number - 1}'}")
        elif kind == "loop":
            send(301, b"", f"Location: /{path}")
        elif kind == "elsewhere":
            send(302, b"", "Location: http://169.254.169.254/latest/meta-data")
        elif kind == "file":
            send(302, b"", "Location: file:///etc/passwd")
        elif kind == "html":
            send(200, b"\n<!DOCTYPE html><html><body>no such page</body></html>", "Content-Type: image/jpeg")
        elif kind == "empty":
            send(200)
        elif kind == "cut":
            send(200, picture(1, "PNG")[:-40])
        elif kind == "short":
            send(200, image, length=len(image) + 100)
            return False
        elif kind == "gzip":
            send(200, gzip.compress(image), "Content-Encoding: gzip")
        elif kind == "parts":
            send(200, gzip.compress(image[:9]) + gzip.compress(image[9:]) + b"rest", "Content-Encoding: gzip")
        elif kind == "bare":
            packed = zlib.compressobj(wbits=-15)
            send(200, packed.compress(image) + packed.flush(), "Content-Encoding: deflate")
        elif kind == "unpacked":
            send(200, image, "Content-Encoding: gzip")
        elif kind == "utf-8":
            send(200, image, "Content-Encoding: utf-8")
        elif kind == "secret":
            send(302, b"", "Location: http://user:secret@127.0.0.1:99999/")
        elif kind == "bomb":
            send(200, gzip.compress(bytes(30_000_000)), "Content-Encoding: gzip")
        elif kind == "brotli":
            send(200, image, "Content-Encoding: br")
        elif kind == "noai":
            send(200, image, "X-Robots-Tag: googlebot: noindex", "X-Robots-Tag: max-snippet: 5, NoAI")
        elif kind == "others":
            send(200, image, "X-Robots-Tag: googlebot: noindex, noai")
        elif kind == "big":
            send(200, big_picture())
        elif kind == "declared":
            send(200, b"", length=1 << 40)
            return False
        elif kind == "odd":
            writer.write(b"SSH-2.0-OpenSSH\r\n")
            return False
        elif kind == "more":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n")
            writer.write(gzip.compress(image))
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(bytes(65536))
                    await writer.drain()
        elif kind in ("drip", "endless"):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"1\r\nx\r\n" if kind == "drip" else b"10000\r\n" + bytes(65536) + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.05 if kind == "drip" else 0)
        else:
            send(404)
        await writer.drain()
        return True
