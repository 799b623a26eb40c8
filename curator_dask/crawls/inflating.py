"""The bytes of a crawl's file, which is gzip of many members, one a record."""

from __future__ import annotations

import io
import os
import zlib
from typing import BinaryIO

# A member of Common Crawl's has about 8 KB: what is left of a block when one ends is copied.
_BLOCK = 1 << 16
_MOST = 1 << 20  # bytes that are inflated at once, however small they were
_MAGIC = b"\x1f\x8b"


class DamagedError(Exception):
    """A file cannot be read any further."""


class Inflated(io.RawIOBase):
    """What a file holds, inflated where it is gzip.

    FastWARC 2.0.1 takes a member without content for the end of the file, and a file that was cut for one that ends
    there; both are valid, or common, in what is put together of parts (`findings/fastwarc_empty_member.sh`).

    Parameters
    ----------
    file
        To be read from its beginning.

    Raises
    ------
    DamagedError
        By `read`: it is cut, or no gzip from some byte on.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._at, self._given = file, 0, 0
        self._left = self._block()
        self._is_gzip = self._left.startswith(_MAGIC)
        self._decoder: zlib._Decompress | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Where it is, which is all that FastWARC asks by it."""
        if (offset, whence) not in ((0, os.SEEK_CUR), (self._given, os.SEEK_SET)):
            raise io.UnsupportedOperation(f"seek to {offset} by {whence}")
        return self._given

    def tell(self) -> int:
        """How many bytes were read."""
        return self._given

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or fewer; none at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_MOST), b""))
        found = self._read(size)
        self._given += len(found)
        return found

    def _read(self, size: int) -> bytes:
        while size:
            if not self._left:
                self._left = self._block()
            if not self._is_gzip:
                found, self._left = self._left[:size], self._left[size:]
                return found
            if not self._left and self._decoder is None:
                return b""
            if found := self._inflate(min(size, _MOST)):
                return found
        return b""

    def _inflate(self, most: int) -> bytes:
        if self._decoder is None:
            self._left = self._left.lstrip(
                b"\0"
            )  # which may stand behind a member (RFC 1952's programs write it)
            if not self._left:
                return b""
            self._decoder = zlib.decompressobj(31)
        is_last = not self._left
        try:
            found = self._decoder.decompress(self._left, most)
        except zlib.error as error:
            raise DamagedError(f"it is no gzip any more about byte {self._at:,} ({error})") from error
        if self._decoder.eof:
            self._left, self._decoder = self._decoder.unused_data, None
        else:
            self._left = self._decoder.unconsumed_tail
            if is_last and not found:
                raise DamagedError(f"it was cut: it ends at byte {self._at:,}, in the middle of a record")
        return found

    def _block(self) -> bytes:
        found = self._file.read(_BLOCK)
        self._at += len(found)
        return found
