"""Tar headers: one checked and read, or all of a tar walked through.

A shard's index needs only names, offsets and sizes; a small reader of its own gets them several times as fast
as `tarfile` does. Formats: v7, POSIX.1-1988 (ustar), POSIX.1-2001 (pax), and GNU tar's own (its manual,
"Basic Tar Format").
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from curator_dask.errors import ShardError

BLOCK = 512
"""Bytes of a header; data is padded to a multiple of it."""

_END = bytes(BLOCK)
_WINDOW = 3072  # bytes that are read at a time: the small files of a sample lie close together
_OCTAL = 8 ** np.arange(5, -1, -1)
_FIRST, _MANY = 16, 1024  # headers that are checked together: few of a walk that may end soon
SIZE_LIMIT = 8**11  # from here on the size field's octal digits do not suffice
_MAX_EXTENSION = 1 << 24  # bytes of a long name or of pax records; real ones have hundreds
_CHUNK = 1 << 20  # bytes of the padding behind the end mark that are looked at together
_MUCH_PADDING = 1 << 20  # bytes: GNU tar fills up to 10 KiB, or to the blocking factor that it is given
_TRACE = 16  # bytes: a picture or a text does not end in so many zeros
_KINDS = (  # how common files that are no tar begin
    (b"\x1f\x8b", "gzip-compressed data", "unpack it with gunzip"),
    (b"BZh", "bzip2-compressed data", "unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "xz-compressed data", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data", "unpack it with unzstd"),
    (b"PK\x03\x04", "a zip archive", "pack its files as a tar"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with git lfs pull"),
)


class Member(NamedTuple):
    """One file in a tar.

    Attributes
    ----------
    name
        As the tar has it, a leading ``./`` too; bytes that are not UTF-8 as surrogates.
    offset
        Of the file's first byte in the tar, in bytes. Its header fills the 512 bytes before.
    size
        Bytes.
    target
        Of a link to another file of the tar, the name of the file whose bytes these are; else empty.
    """

    name: str
    offset: int
    size: int
    target: str = ""


class Other(NamedTuple):
    """An entry of a tar that has no bytes of its own, or none that can be read as they lie: links, sparse files, pipes.

    Attributes
    ----------
    at
        Byte at which its header starts.
    kind
        The header's type: ``"1"`` hard link, ``"2"`` symbolic link, ``"S"`` sparse file, ...
    name, target
        Its name, and where a link points; bytes that are not UTF-8 as surrogates.
    """

    at: int
    kind: str
    name: str
    target: str


class TarWalk:
    """A walk through the headers of a tar.

    Parameters
    ----------
    file
        Descriptor of the open tar.
    path
        Its name, for errors.

    Attributes
    ----------
    problem
        What ended the last walk before the tar's end mark; None if nothing did.
    others
        What the walks passed by that is neither a regular file nor a directory.
    """

    def __init__(self, file: int, path: str | os.PathLike[str]) -> None:
        self.problem: str | None = None
        self.others: list[Other] = []
        self._file, self._path = file, path
        self._length = os.fstat(file).st_size

    def members(self, start: int = 0, until: int | None = None) -> Iterator[Member]:
        """The regular files, whatever their names, whose headers start before byte `until`.

        Parameters
        ----------
        start
            Byte at which a header starts.
        until
            Byte at which to stop; None: the tar's end mark.

        Raises
        ------
        ShardError
            The file does not begin as a tar does.
        """
        at, most = start, _FIRST
        shared: dict[bytes, bytes] = {}  # pax records for all members that follow
        own: dict[bytes, bytes] = {}  # and for the next one only
        content = (start, 0)  # place and size of the last entry's data
        while until is None or at < until:
            plain = [] if shared or own else self._plain(at, until, most)
            if plain:
                yield from plain
                content = (plain[-1].offset, plain[-1].size)
                at = content[0] + padded(content[1])
                most = _MANY if len(plain) == most else _FIRST
                continue
            header = os.pread(self._file, BLOCK, at)
            if header == _END:
                self._check_end(at, *content)
                return
            size = header_size(header)
            if size is None:
                if at == 0:
                    raise not_a_tar(self._path, header)
                self._stop_at_header(at, header)
                return
            kind, data = header[156], at + BLOCK
            if kind in b"xXgLK":
                records = self._extension(chr(kind), data, size)
                if records is None:
                    return
                (shared if kind == ord("g") else own).update(records)
                at = data + padded(size)
                continue
            is_file = kind in b"0\x007"
            target, type_ = header[157:257].partition(b"\0")[0], chr(kind)
            if shared or own:
                records, own = shared | own, {}
                name = records.get(b"path") or header_name(header)
                target = records.get(b"linkpath") or target
                size = _to_int(records[b"size"]) if b"size" in records else size
                # What is stored of a sparse file is not its content.
                if is_file and any(keyword.startswith(b"GNU.sparse") for keyword in records):
                    is_file, type_ = False, "S"
                    name = records.get(b"GNU.sparse.name") or name
            else:
                name = header_name(header)
            text = name.decode("utf-8", "surrogateescape")
            if not is_file and kind != ord("5"):
                self.others.append(Other(at, type_, text, target.decode("utf-8", "surrogateescape")))
            if kind in b"123456":  # links, devices, directories, pipes: no data, whatever the size says
                at = data
                continue
            if kind == ord("S"):
                data = self._behind_sparse_maps(header, data)
            if size < 0 or data + size > self._length:
                self._stop_in_data(f"member {text!r}", data, size)
                return
            at, content = data + padded(size), (data, size)
            if is_file:
                yield Member(text, data, size)

    def _plain(self, at: int, until: int | None, most: int) -> list[Member]:
        """The members from a byte on, up to the first whose header is not as most are, or to one with a fault.

        The headers are looked at one by one only for where the next is; then all of them are checked.
        """
        length = self._length
        stop = length if until is None else min(until, length)
        window, first, last = b"", 0, -1  # and the last place at which a header is whole in it
        headers: list[bytes] = []
        offsets: list[int] = []
        sizes: list[int] = []
        try:
            while at < stop and len(headers) < most:
                if at > last:
                    window, first = os.pread(self._file, _WINDOW, at), at
                    last = first + len(window) - BLOCK
                    if at > last:
                        break
                header = window[at - first : at - first + BLOCK]
                size, at = int(header[124:136].rstrip(b"\0 "), 8), at + BLOCK
                if header[156] not in b"0\0" or size < 0 or at + size > length:
                    break
                headers.append(header)
                offsets.append(at)
                sizes.append(size)
                at -= -size // BLOCK * BLOCK
        except ValueError:  # the size is empty, as at the end of the tar, or in base 256
            pass
        if not headers:
            return []
        names = _names_of_whole(headers)
        return [*map(Member, names, offsets, sizes)]

    def _extension(self, kind: str, data: int, size: int) -> dict[bytes, bytes] | None:
        """What an extended header says about other headers; None if it cannot be read."""
        if not 0 <= size <= _MAX_EXTENSION or data + size > self._length:
            self._stop_in_data(f"an extended header (type {kind})", data, size)
            return None
        content = os.pread(self._file, size, data)
        if kind in "LK":  # a name, and where a link points
            return {b"path" if kind == "L" else b"linkpath": content.partition(b"\0")[0]}
        records = _pax_records(content)
        if records is None:
            self.problem = f"damaged: the extended header at byte {data} is not made of pax records"
        return records

    def _behind_sparse_maps(self, header: bytes, data: int) -> int:
        more = header[482] != 0
        while more and data < self._length:
            more = os.pread(self._file, BLOCK, data)[504:505] not in (b"", b"\0")
            data += BLOCK
        return data

    def _check_end(self, at: int, data: int, size: int) -> None:
        # Zeros are padding, whatever their length: GNU tar fills up its last record, which may have many megabytes.
        # But a download that was given its space beforehand and broke off has them from the midst of a file on.
        end, tail = at, os.pread(self._file, min(size, _TRACE), data + size - min(size, _TRACE))
        if self._length - at > _MUCH_PADDING and (at == 0 or tail == bytes(_TRACE)):
            where = f"to its end at byte {self._length}"
            self.problem = f"damaged: zeros from the midst of a file {where}: it was not fetched whole"
            return
        while at < self._length:
            try:
                at = os.lseek(self._file, at, os.SEEK_DATA)  # a hole, however large, takes no time
            except OSError:
                return  # there is nothing but a hole
            rest = os.pread(self._file, _CHUNK, at)
            if rest.count(0) != len(rest):
                self.problem = (
                    f"damaged: the tar's end mark stands at byte {end}, but the file has {self._length} bytes"
                )
                return
            at += len(rest) or _CHUNK

    def _stop_at_header(self, at: int, header: bytes) -> None:
        if len(header) < BLOCK:
            self.problem = f"truncated: the file ends after {self._length} bytes, without a tar's end mark"
        else:
            self.problem = f"damaged: there is no valid tar header at byte {at} of {self._length}"

    def _stop_in_data(self, what: str, data: int, size: int) -> None:
        rest = max(self._length - data, 0)
        if size <= rest:
            self.problem = f"damaged: {what} at byte {data} cannot have {size} bytes"
        else:
            self.problem = (
                f"truncated: {what} at byte {data} needs {size} bytes, the file ends after {rest} of them"
            )


def header_size(header: bytes) -> int | None:
    """Size field of a header in bytes; None if this is no header (cut, or its checksum is wrong)."""
    if len(header) < BLOCK:
        return None
    field, stored = header[124:136], _to_int(header[148:156], 8)
    total = stored - 8 * ord(" ") + sum(header[148:156])  # the checksum takes its own field for blanks
    # The low half of Adler-32 is 1 + the sum of all bytes, modulo 65521, in a tenth of the time of sum().
    if (total + 1) % 65521 != zlib.adler32(header) & 0xFFFF and total != _signed_sum(header):
        return None
    if field[0] >= 0x80:  # base 256; 0xff begins a negative number
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    return _to_int(field, 8) if field.strip(b"\0 ") else 0


def _names_of_whole(headers: Sequence[bytes]) -> list[str]:
    """The names in headers, up to the first that is none: its checksum is wrong."""
    table = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
    field = table[:, 148:156]
    digits = field[:, :6] - np.uint8(ord("0"))
    total = table.sum(axis=1, dtype=np.int64) - field.sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    usual = (digits < 8).all(axis=1) & (field[:, 6] == 0) & (field[:, 7] == ord(" "))
    sure = usual & (digits @ _OCTAL == total)
    # Other tars write six digits in another way, or have another sum.
    wrong = (at for at in np.flatnonzero(~sure).tolist() if header_size(headers[at]) is None)
    count = next(wrong, len(headers))
    if not count:
        return []
    names = np.ascontiguousarray(table[:count, :100]).view("S100")[:, 0].tolist()
    whole = b"\0".join(names)
    if (
        table[:count, 345].any() or whole.count(0) != count - 1
    ):  # a name in two parts, or with something behind it
        whole = b"\0".join(map(header_name, headers[:count]))
    return whole.decode("utf-8", "surrogateescape").split("\0")


def header_name(header: bytes) -> bytes:
    """Name in a header itself, without what a header before it may say."""
    name = header[:100].partition(b"\0")[0]
    # In GNU's own format ("ustar  ") this field holds times.
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def header_problem(header: bytes, member: Member) -> str | None:
    """What speaks against `header`, the 512 bytes before a member's data, being that member's.

    None if nothing does: the checksum holds, it is a regular file's, and size and name are the member's, as
    far as a header can hold them (of a long name the beginning, of a size from 8 GiB on nothing).
    """
    size = header_size(header)
    if size is None:
        return "there is no valid tar header before it"
    if header[156] not in b"0\x007":
        return "the header before it is not that of a file"
    if size != member.size and member.size < SIZE_LIMIT:
        return f"the header before it gives {size} bytes"
    written = member.target or member.name
    found, name = header_name(header), encoded(written)
    # After a long-name header GNU tar repeats the first 100 bytes; Python's tarfile writes "?" for what only
    # pax records can hold.
    if found not in (name, name[:100], written.encode("ascii", "replace")[:100]):
        return f"the header before it is that of {found.decode('utf-8', 'replace')!r}"
    return None


def not_a_tar(path: str | os.PathLike[str], head: bytes) -> ShardError:
    """The error for a file that starts with `head` and is no tar."""
    if not head:
        return ShardError(f"{path}: expected a tar, found an empty file (0 bytes): fetch the shard again")
    for magic, kind, remedy in _KINDS:
        if head.startswith(magic):
            return ShardError(f"{path}: expected a plain tar, found {kind}: {remedy} first")
    length = f"only {len(head)} bytes" if len(head) < BLOCK else "a file"
    return ShardError(
        f"{path}: expected a tar, found {length} starting with {head[:32]!r}: "
        "fetch the shard again or leave it out"
    )


def padded(size: int) -> int:
    """The size rounded up to whole blocks, in bytes."""
    return -(-size // BLOCK) * BLOCK


def encoded(name: str) -> bytes:
    """The bytes of a member's name."""
    return name.encode("utf-8", "surrogateescape")


def _to_int(field: bytes, base: int = 10) -> int:
    """Number in a text field that NULs or blanks may end; -1 if it is none."""
    try:
        return int(field.rstrip(b"\0 "), base)
    except ValueError:
        return -1


def _signed_sum(header: bytes) -> int:
    """Sum of the bytes taken as signed, which some old tars have for a checksum."""
    return sum(header) - 256 * sum(byte >= 0x80 for byte in header)


def _pax_records(content: bytes) -> dict[bytes, bytes] | None:
    """Records ``<length> <keyword>=<value>``, each with its line's end; None if these are none."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content) and content[at] != 0:
        digits = content[at : at + 20].partition(b" ")[0]
        end = at + _to_int(digits)
        keyword, equals, value = content[at + len(digits) + 1 : end - 1].partition(b"=")
        if not at < end <= len(content) or not equals:
            return None
        records[keyword] = value
        at = end
    return records
