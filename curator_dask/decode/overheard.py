"""What DALI's decoders would write to stderr about an image, where no line names it: kept, to be told with its key.

libjpeg, libpng and libtiff write to C's `stderr`, and DALI offers no handler for that. Each of its libraries has a slot
in which the loader has put where that variable is. There, and nowhere else, the address of another one is put, whose
stream ends in memory. All else in this process, what a crash says last too, goes to stderr as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

_LIBRARIES = "/nvimgcodec/extensions/"
"""In the paths of the libraries with which DALI decodes."""
_LOAD, _DYNAMIC, _RELRO = 1, 2, 0x6474E552
"""Kinds of segment of an ELF file."""
_STRTAB, _SYMTAB, _RELA, _RELASZ = 5, 6, 7, 8
"""Entries of the dynamic segment."""
_READ, _WRITE = 1, 2
_UNBUFFERED = 2
_OTHER_SYSTEM = (AttributeError, OSError, ValueError, KeyError, IndexError, StopIteration, struct.error)
"""What is raised where C's library or the decoders' are not as on Linux of 64 bits."""


class Run(Protocol):
    """What may have the decoders write until it has ended."""

    def settle(self) -> None:
        """Wait until it does so no more, and `Overheard.end` it; any thread may ask for that."""


class Overheard:
    """The lines that the decoders write while runs last, in several threads at a time.

    A line does not say whose it is: of runs that last at the same time each gets what any has caused. What is heard
    while one thread is alone was caused by this one.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._file: int | None = None
        self._stream: ctypes.c_void_p | None = None
        self._marks: dict[Run, int] = {}
        self._alone: int | None = None

    def listen(self) -> None:
        """Take what the libraries that are loaded write; where that cannot be done they go on as ever.

        They are loaded with a process's first pipeline, and let go with its last: call it after each was built.
        """
        with self._turn, contextlib.suppress(*_OTHER_SYSTEM):
            library = ctypes.CDLL(None)
            stderr = ctypes.addressof(ctypes.c_void_p.in_dll(library, "stderr"))
            for slot, sealed in _slots():
                if ctypes.c_void_p.from_address(slot).value == stderr:
                    if self._stream is None:
                        self._file, self._stream = _memory(library)
                    _set(library, slot, ctypes.addressof(self._stream), sealed)

    def begin(self, run: Run, start: Callable[[], None]) -> None:
        """Start a run, as soon as no other thread is alone; `start` returns at once."""
        with self._turn:
            self._turn.wait_for(lambda: self._alone in (None, threading.get_ident()))
            mark = self._size()
            start()
            self._marks[run] = mark

    def end(self, run: Run) -> list[str]:
        """The lines since a run began."""
        with self._turn:
            mark, size = self._marks.pop(run), self._size()
            text = os.pread(self._file, size - mark, mark) if self._file is not None and size > mark else b""
            if size and self._file is not None and not self._marks:
                os.ftruncate(self._file, 0)
        return [line for line in text.decode(errors="replace").splitlines() if line.strip()]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have no run but this thread's own in the block, which is to wait for no other thread.

        The runs of others are settled first, and not waited for: who began one may itself be waiting for this thread.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._alone is None)
            self._alone = threading.get_ident()
            others = [*self._marks]
        try:
            for run in others:
                run.settle()
            yield
        finally:
            with self._turn:
                self._alone = None
                self._turn.notify_all()

    def _size(self) -> int:
        return 0 if self._file is None else os.fstat(self._file).st_size


overheard = Overheard()
"""Of this process."""


def _memory(library: ctypes.CDLL) -> tuple[int, ctypes.c_void_p]:
    """A file in memory, and C's stream that writes to it at once."""
    library.fdopen.restype = ctypes.c_void_p
    library.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
    file = os.memfd_create("curator-dask decoders")
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
    stream = ctypes.c_void_p(library.fdopen(file, b"a"))
    if not stream.value or library.setvbuf(stream, None, _UNBUFFERED, 0):
        raise OSError("no stream for what DALI's libraries write")
    return file, stream


def _slots() -> Iterator[tuple[int, bool]]:
    """Where in DALI's libraries in this process the address of `stderr` is, and whether that page is sealed."""
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            addresses, _, offset, _, _, *path = line.split(maxsplit=5)
            if path and _LIBRARIES in path[0] and int(offset, 16) == 0:
                start = int(addresses.partition("-")[0], 16)
                yield from ((start + at, sealed) for at, sealed in _places(path[0].rstrip("\n")))


@functools.cache
def _places(path: str) -> list[tuple[int, bool]]:
    """The same for a library's file of 64 bits, counted from its first byte in memory."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        (headers,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        parts: dict[int, list[tuple[int, int, int]]] = {}
        for number in range(count):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, headers + size * number)
            parts.setdefault(kind, []).append((address, offset, length))

        def place(address: int) -> int:
            return next(o + address - a for a, o, length in parts[_LOAD] if a <= address < a + length)

        _, offset, length = parts[_DYNAMIC][0]
        where = dict(struct.iter_unpack("<QQ", data[offset : offset + length]))
        names, symbols, table = (place(where[each]) for each in (_STRTAB, _SYMTAB, _RELA))
        found = []
        for at, info, _ in struct.iter_unpack("<QQq", data[table : table + where[_RELASZ]]):
            (name,) = struct.unpack_from("<I", data, symbols + 24 * (info >> 32))
            if data[names + name : names + name + 7] == b"stderr\0":
                sealed = any(a <= at < a + length for a, _, length in parts.get(_RELRO, ()))
                found.append((at - min(parts[_LOAD])[0], sealed))
        return found


def _set(library: ctypes.CDLL, slot: int, address: int, sealed: bool) -> None:
    """Put an address into a slot; a page that the loader made read-only is that again."""
    page = slot - slot % mmap.PAGESIZE
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if sealed and library.mprotect(page, mmap.PAGESIZE, _READ | _WRITE):
        raise OSError(f"page {page:#x} cannot be written to")
    ctypes.c_void_p.from_address(slot).value = address
    if sealed:
        library.mprotect(page, mmap.PAGESIZE, _READ)
