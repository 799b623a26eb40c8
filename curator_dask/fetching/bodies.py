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
        plain = encoding in ("", "identity")
        if not plain and encoding not in ("gzip", "x-gzip", "deflate"):
            raise FailedError(f"bad answer: its encoding is {encoding[:40]!r}, which was not asked for")
        inflate = None if plain else zlib.decompressobj(wbits=47 if "gzip" in encoding else 15)
        need = declared if plain and declared is not None else self._most
        async for chunk in response.content.iter_any():
            self.received += len(chunk)
            self._add(chunk, inflate)
            if len(self.data) > SMALL and not self._lent:
                await self._wait(need, limit)
        if inflate is not None and not inflate.eof:
            raise FailedError("cut short: its compressed body does not end")

    def _add(self, chunk: bytes, inflate: Any) -> None:
        room = self._most - len(self.data)
        if inflate is None:
            self.data += chunk[: room + 1]
        else:
            try:
                self.data += inflate.decompress(chunk, room + 1)
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
