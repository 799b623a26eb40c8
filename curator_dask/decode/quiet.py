"""What libpng and libtiff would write to stderr, where no line names its image: prevented, or caught.

stderr itself is left as it is. It belongs to all threads and child processes, and what a crash says last goes there.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
"""PNG's type of colour whose pixels are places in the PLTE chunk."""
_LONGEST = 300
"""Bytes of a line of libtiff's that are kept."""
_NAME = "tempfile.tif"
"""By which Pillow calls every file."""


def essential_png(data: bytes) -> bytes | None:
    """The chunks of a PNG of 8 bits or less that its red, green and blue are made of; None where others are damaged.

    Of others (colour profiles, text, times) libpng says what it does not like; no decoder here uses them. But where one
    has a wrong checksum Pillow refuses some images.

    Parameters
    ----------
    data
        The file, which is whole.
    """
    wanted = {b"IHDR", b"IDAT", b"IEND"} | ({b"PLTE"} if data[25] == _PALETTE else set())
    kept, at, name = [_SIGNATURE], len(_SIGNATURE), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name in wanted:
            kept.append(data[at:end])
        elif zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        at = end
    return b"".join(kept)


class _Here(threading.local):
    """Where this thread's lines of libtiff go; None: to stderr."""

    lines: list[str] | None = None


_here = _Here()
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


@contextlib.contextmanager
def libtiff_lines() -> Iterator[list[str]]:
    """Collect the errors that Pillow's libtiff tells in this thread; those of others go to stderr as ever."""
    _catch()
    lines: list[str] = []
    _here.lines = lines
    try:
        yield lines
    finally:
        _here.lines = None


_caught: list[Any] = []
_catching = threading.Lock()


def _catch() -> None:
    """Have libtiff call us, once a process: what it calls must live as long, so no thread may do it again."""
    with _catching:
        if not _caught:
            _caught.append(_installed())


def _installed() -> Any:
    from PIL import _imaging

    try:
        # Found among what Pillow's module was linked with: Pillow itself offers no way.
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        write = ctypes.CDLL(None).vsnprintf
    except (AttributeError, OSError, TypeError):  # a Pillow without libtiff, another system
        return None
    write.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
    set_handler.argtypes, set_handler.restype = [_Handler], _Handler
    before: Any = None

    def handle(module: bytes | None, form: bytes, arguments: int) -> None:
        if _here.lines is not None:
            line = ctypes.create_string_buffer(_LONGEST)
            write(line, _LONGEST, form, arguments)
            of = module.decode(errors="replace") if module else _NAME
            said = line.value.decode(errors="replace")
            _here.lines.append(said if of == _NAME else f"{of}: {said}")
        elif before:
            before(module, form, arguments)

    kept = _Handler(handle)
    before = set_handler(kept)
    return kept
