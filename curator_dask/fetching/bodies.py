"""Bodies of answers, in bounded memory: of each a part is held, and of large ones few at a time."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from typing import Any

from curator_dask.fetching.failures import FailedError
from curator_dask.words import sized

#: Bytes of a body that are read before it has to wait for its turn among the large ones.
SMALL = 1 << 20
#: Bytes of large bodies that a worker holds at a time.
LARGE_TOGETHER = 1 << 28

_PACKED = frozenset({"gzip", "x-gzip", "deflate"})
_UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})
_MOST_PACKED = 2  # bytes that come, for each that there may be: what is packed is hardly larger
_PARTS = 1000  # of gzip: of each what follows is copied
_HEAD_BYTES = 2  # by which these are told
_GZIP = b"\x1f\x8b"
_IMAGES = (b"\xff\xd8", b"\x89P", b"GI", b"RI", b"II", b"MM", b"BM")  # how images begin


class Room:
    """Bytes that are lent: who comes first gets them first."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, size: int) -> int:
        """Wait for so many bytes, or for all there are; returns what is to be given back."""
        size = min(size, self._size)
        if not self._waiting and self._free >= size:
            self._free -= size
            return size
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                self._waiting.remove((turn, size))
            raise
        return size

    def give(self, size: int) -> None:
        """Give bytes back."""
        self._free += size
        while self._waiting and self._waiting[0][1] <= self._free:
            turn, wanted = self._waiting.popleft()
            if not turn.done():
                self._free -= wanted
                turn.set_result(None)


class Packed:
    """Unpacks gzip and deflate as they come; what a server only says is packed stays as it is."""

    def __init__(self) -> None:
        self._inflate: Any = None
        self._head = b""
        self._is_plain = False
        self._parts = 1

    @property
    def is_whole(self) -> bool:
        """Whether it has ended as it should."""
        return self._is_plain or bool(self._inflate and self._inflate.eof)

    def unpack(self, chunk: bytes, most: int) -> bytes:
        """What more of it becomes, `most` bytes of it.

        Raises
        ------
        zlib.error
            It is damaged.
        """
        if self._inflate is None and not self._is_plain:
            self._head += chunk
            if len(self._head) < _HEAD_BYTES:
                return b""
            chunk, self._head = self._head, b""
            self._begin(chunk)
        found = b""
        while chunk and len(found) < most:
            if self._is_plain:
                return chunk[:most]
            if self._inflate.eof:  # gzip may have several parts (RFC 1952); what else comes is left alone
                if not chunk.startswith(_GZIP):
                    return found
                self._parts += 1
                if self._parts > _PARTS:
                    raise zlib.error("it has too many parts")
                self._begin(chunk)
            found += self._inflate.decompress(chunk, most - len(found))
            chunk = self._inflate.unused_data
        return found

    def _begin(self, start: bytes) -> None:
        if start.startswith(_GZIP):
            wbits = 31
        elif start[0] & 15 == 8 and not int.from_bytes(start[:2], "big") % 31:  # of zlib, RFC 1950
            wbits = 15
        else:  # deflate without it, as some servers have it, or an image
            self._is_plain = start.startswith(_IMAGES)
            wbits = -15
        self._inflate = zlib.decompressobj(wbits=wbits)


class Body:
    """What is read of one answer.

    Parameters
    ----------
    room
        For large ones.
    most
        Bytes that it may have.
    """

    def __init__(self, room: Room, most: int) -> None:
        self._room, self._most, self._lent = room, most, 0
        self.data = bytearray()
        self.received = 0  # bytes as they came

    async def read(self, response: Any, limit: asyncio.Timeout) -> None:
        """Read all of an answer of aiohttp's.

        Parameters
        ----------
        response
            The answer, whose body is not decompressed.
        limit
            Is moved by the seconds that are waited for a turn.

        Raises
        ------
        FailedError
            It is too large, or encoded in a way that is not known, or damaged.
        """
        declared = response.content_length
        if declared is not None and declared > self._most:
            raise self._too_large(f"{sized(declared)}, as the server says")
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if any(each.strip() in _UNREADABLE for each in encoding.split(",")):
            raise FailedError(f"bad answer: its encoding is {encoding[:40]!r}, which was not asked for")
        packed = (
            Packed() if encoding in _PACKED else None
        )  # other words, as "none" or "utf-8", are no encoding
        need = declared if packed is None and declared is not None else self._most
        async for chunk in response.content.iter_any():
            self.received += len(chunk)
            if self.received > _MOST_PACKED * self._most:  # that becomes nothing
                raise self._too_large(f"more than {sized(self._most)}")
            self._add(chunk, packed)
            if len(self.data) > SMALL and not self._lent:
                await self._wait(need, limit)
        if packed is not None and not packed.is_whole:
            raise FailedError("cut short: its compressed body does not end")

    def _add(self, chunk: bytes, packed: Packed | None) -> None:
        room = self._most - len(self.data)
        try:
            self.data += chunk[: room + 1] if packed is None else packed.unpack(chunk, room + 1)
        except zlib.error as error:
            raise FailedError(f"bad answer: its compressed body is damaged ({error})") from None
        if len(self.data) > self._most:
            raise self._too_large(f"more than {sized(self._most)}")

    def _too_large(self, what: str) -> FailedError:
        return FailedError(f"too large: {what} (max_bytes is {self._most:,})")

    async def _wait(self, size: int, limit: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        before, due = loop.time(), limit.when()
        limit.reschedule(None)
        self._lent = await self._room.take(size)
        if due is not None:
            limit.reschedule(due + loop.time() - before)

    def close(self) -> None:
        """Let it go."""
        self.data = bytearray()
        if self._lent:
            self._room.give(self._lent)
            self._lent = 0
