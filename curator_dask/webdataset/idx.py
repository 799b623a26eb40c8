"""DALI's index files (``.idx``, v1.1 and v1.2): read, compared with their tars, written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curator_dask.errors import ShardError
from curator_dask.storage import check_regular
from curator_dask.webdataset.headers import BLOCK, Member, TarWalk, encoded, header_problem, padded
from curator_dask.webdataset.samples import Sample, split_name

_HEADERS_CHECKED = 16  # evenly spread headers by which an index file is compared with the tar


class StaleIndex(ShardError):
    """An index file that does not fit its tar. A scan of the tar helps."""


def read_members(path: Path) -> tuple[bool, list[Member]]:
    """Read an index file.

    Returns
    -------
    Whether it has names (v1.2), and its members by their offsets; their names are empty if it has none.

    Raises
    ------
    StaleIndex
        The file cannot be read, or is no index file.
    """
    try:
        # White space is ASCII's alone, as for DALI: bytes.splitlines and bytes.split know no other.
        check_regular(path)
        head, *lines = path.read_bytes().splitlines() or [b""]
    except OSError as error:
        raise StaleIndex(f"{path}: the index file cannot be read: {error}") from error
    version, *count = head.split()[:2] or [b""]
    if version not in (b"v1.1", b"v1.2"):
        raise StaleIndex(f"{path}: expected an index file of version v1.1 or v1.2, found {head[:40]!r}")
    width = 4 if version == b"v1.2" else 3
    lines = [line for line in lines if line.strip()]
    if count != [b"%d" % len(lines)] or not lines:
        raise StaleIndex(f"{path}: expected as many samples as its first line says, found {len(lines)}")
    members: list[Member] = []
    for line in lines:
        words = line.split()
        try:
            offsets, sizes = [*map(int, words[1::width])], [*map(int, words[2::width])]
        except ValueError:
            offsets = sizes = []
        if not offsets or len(words) != len(offsets) * width or min(*offsets, *sizes) < 0:
            raise StaleIndex(f"{path}: expected {width} words a component, found the line {line[:80]!r}")
        names = [word.decode("utf-8", "surrogateescape") for word in words[3::4]] if width == 4 else []
        members += map(Member, names or [""] * len(offsets), offsets, sizes)
    return width == 4, sorted(members, key=lambda member: member.offset)


def compare(
    listed: Sequence[Member], file: int, path: str | os.PathLike[str], every_header: bool
) -> tuple[str | None, tuple[str, ...]]:
    """Compare the members of an index file that has names with the tar.

    Parameters
    ----------
    listed
        Members by their offsets.
    file, path
        Descriptor of the open tar, and its name for errors.
    every_header
        Compare all headers, not only a few.

    Returns
    -------
    What in the tar does not fit the members listed, None if all does; and names that the tar repeats.
    """
    known = {split_name(member.name) for member in listed}
    count = len(listed) if every_header else _HEADERS_CHECKED
    checked = set(np.linspace(0, len(listed) - 1, count, dtype=int).tolist())
    walk = TarWalk(file, path)
    length = os.fstat(file).st_size
    repeated: list[str] = []
    end = 0  # of the data so far
    for position, member in enumerate(listed):
        if member.offset + member.size > length:
            return f"member {member.name!r} ends behind the tar's {length} bytes", ()
        if member.offset != end + BLOCK:  # something lies between: another header, a member left out
            between = list(walk.members(end, until=member.offset))
            left_out = [other.name for other in between[:-1] if split_name(other.name)]
            if between[-1:] != [member] or not {*map(split_name, left_out)} <= known:
                return f"between bytes {end} and {member.offset} the tar has other members", ()
            repeated += left_out
        elif position in checked:
            wrong = header_problem(os.pread(file, BLOCK, end), member)
            if wrong:
                return f"member {member.name!r} at byte {member.offset}: {wrong}", ()
        end = member.offset + padded(member.size)
    behind = [member.name for member in walk.members(end) if split_name(member.name)]
    if walk.problem or not {*map(split_name, behind)} <= known:
        return walk.problem or f"the tar goes on with member {behind[0]!r}", ()
    return None, (*repeated, *behind)


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write an index file, v1.2; under its name it is there whole or not at all.

    Raises
    ------
    ShardError
        There is no sample, or a name cannot be put down. Nothing is written then.
    """
    if not samples:
        raise ShardError(f"{path}: expected at least one sample, found none: DALI takes no empty index")
    lines = [b"v1.2 %d\n" % len(samples)]
    for sample in samples:
        words = []
        for name, offset, size in sample.members:
            raw = encoded(name)
            extension = raw[raw.index(b".", raw.rfind(b"/") + 1) + 1 :]
            if raw.split() != [raw] or not extension:
                raise ShardError(
                    f"{path}: expected names without white space and with an extension, found "
                    f"{name!r}, which DALI's index cannot hold: rename it or do without an index file"
                )
            words.append(b"%s %d %d %s" % (extension, offset, size, raw))
        lines.append(b" ".join(words) + b"\n")
    _write_whole(path, b"".join(lines))


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its name and rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "wb") as file:  # noqa: PTH123
            file.write(content)
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o666 & ~mask)  # mkstemp's own mode lets nobody else read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
