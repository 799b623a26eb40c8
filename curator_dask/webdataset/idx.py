"""DALI's index files (``.idx``, v1.1 and v1.2): read, compared with their tars, written."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curator_dask.errors import ShardError
from curator_dask.storage import check_regular
from curator_dask.webdataset.headers import BLOCK, Member, TarWalk, encoded, header_problem, padded
from curator_dask.webdataset.links import Unread, follow
from curator_dask.webdataset.samples import Sample, split_name

_SPACE = re.compile(r"\s", re.ASCII)  # DALI knows no other white space
_HEADERS_CHECKED = 16  # evenly spread headers by which an index file is compared with the tar


class StaleIndex(ShardError):
    """An index file that does not fit its tar. A scan of the tar helps."""


def read_members(path: Path) -> tuple[bool, list[Member]]:
    """Read an index file.

    Returns
    -------
    Whether it has names (v1.2), and its members in its order; their names are empty if it has none.

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
    return width == 4, members


class Compared(NamedTuple):
    """What a comparison of an index file with its tar showed.

    Attributes
    ----------
    members
        Those of the index file, links with what they point to.
    repeated
        Names that the tar repeats.
    unread
        What in the tar cannot be read.
    wrong
        What in the tar does not fit the index file; None if all does.
    """

    members: Sequence[Member] = ()
    repeated: tuple[str, ...] = ()
    unread: tuple[Unread, ...] = ()
    wrong: str | None = None


def compare(
    listed: Sequence[Member], file: int, path: str | os.PathLike[str], every_header: bool
) -> Compared:
    """Compare the members of an index file that has names with the tar.

    Parameters
    ----------
    listed
        Members in the index file's order.
    file, path
        Descriptor of the open tar, and its name for errors.
    every_header
        Compare all headers, not only a few.
    """
    known = {split_name(member.name) for member in listed}
    at_place: dict[tuple[int, int], list[Member]] = {}  # the file itself, and links to it
    for member in listed:
        at_place.setdefault((member.offset, member.size), []).append(member)
    places = sorted(at_place)
    walk = TarWalk(file, path)
    length = os.fstat(file).st_size
    there: dict[tuple[int, int], Member] = {}
    left_out: list[Member] = []
    end = 0  # of the data so far
    for offset, size in places:
        if offset + size > length:
            wrong = f"member {at_place[offset, size][0].name!r} ends behind the tar's {length} bytes"
            return Compared(wrong=wrong)
        if offset != end + BLOCK:  # something lies between: another header, a member left out
            between = list(walk.members(end, until=offset))
            if not between or between[-1][1:3] != (offset, size) or not _are_known(between, known):
                return Compared(wrong=f"between bytes {end} and {offset} the tar has other members")
            left_out += between[:-1]
            there[offset, size] = between[-1]
        end = offset + padded(size)
    behind = list(walk.members(end))
    if walk.problem or not _are_known(behind, known):
        strange = next((each.name for each in behind if split_name(each.name) not in known), "")
        return Compared(wrong=walk.problem or f"the tar goes on with member {strange!r}")
    # All links were passed: their headers lie between two members, or behind the last.
    linked = {other.name for other in walk.others}
    count = len(places) if every_header else _HEADERS_CHECKED
    checked = set(np.linspace(0, len(places) - 1, count, dtype=int).tolist())
    for position, place in enumerate(places):
        names = at_place[place]
        if place in there:
            continue
        there[place] = names[0]
        if position in checked or len(names) > 1 or names[0].name in linked:
            start = place[0] - BLOCK
            header = os.pread(file, BLOCK, start)
            fitting = [each for each in names if not header_problem(header, each)]
            if not fitting and names[0].name in linked:  # links to what is no sample's
                fitting = [each for each in walk.members(start, until=place[0]) if each[1:3] == place]
            if not fitting or not _are_known(fitting, known):
                wrong = header_problem(header, names[0]) or ""
                return Compared(wrong=f"member {names[0].name!r} at byte {place[0]}: {wrong}")
            there[place] = fitting[0]
    files = sorted([*there.values(), *left_out, *behind], key=lambda each: each.offset)
    read, unread = follow(files, walk.others)
    links = {each[:3]: each for each in read if each.target}
    if not _are_known(links.values(), known):
        strange = next(each.name for each in links.values() if split_name(each.name) not in known)
        return Compared(wrong=f"it does not have the link {strange!r}")
    of_files, taken = set(there.values()), {each[:3] for each in listed}
    invented = [each.name for each in listed if each not in of_files and each[:3] not in links]
    if invented or len(taken) < len(listed):
        return Compared(
            wrong=f"the tar has no member {invented[0]!r}" if invented else "it has a member twice"
        )
    members = [each if each in of_files else links[each[:3]] for each in listed]
    repeated = [each.name for each in read if split_name(each.name) and each[:3] not in taken]
    return Compared(members, tuple(repeated), unread)


def _are_known(members: Iterable[Member], known: Set[tuple[str, str] | None]) -> bool:
    """Whether an index has what has a sample's name of these."""
    return {split_name(member.name) for member in members} - {None} <= known


def index_content(
    path: str | os.PathLike[str],
    names: Sequence[str],
    offsets: Sequence[int],
    sizes: Sequence[int],
    ends: Sequence[int],
) -> bytes:
    """What an index file, v1.2, says.

    Parameters
    ----------
    path
        Its own, for errors.
    names, offsets, sizes
        Of the members of all samples.
    ends
        Behind the last member of each sample; 0 before them.

    Raises
    ------
    ShardError
        There is no sample, or a name cannot be put down.
    """
    if len(ends) < 2:
        raise ShardError(f"{path}: expected at least one sample, found none: DALI takes no empty index")
    extensions = [name[name.index(".", name.rfind("/") + 1) + 1 :] for name in names]
    if not all(extensions) or _SPACE.search("".join(names)):
        odd = next(
            name
            for name, extension in zip(names, extensions, strict=True)
            if not extension or _SPACE.search(name)
        )
        raise ShardError(
            f"{path}: expected names without white space and with an extension, found "
            f"{odd!r}, which DALI's index cannot hold: rename it or do without an index file"
        )
    words = [
        f"{extension} {offset} {size} {name}"
        for extension, offset, size, name in zip(extensions, offsets, sizes, names, strict=True)
    ]
    lines = [" ".join(words[start:stop]) for start, stop in itertools.pairwise(ends)]
    return encoded("\n".join([f"v1.2 {len(lines)}", *lines, ""]))


def index_or_reason(
    path: str | os.PathLike[str],
    names: Sequence[str],
    offsets: Sequence[int],
    sizes: Sequence[int],
    ends: Sequence[int],
) -> tuple[bytes | None, str | None]:
    """The content of an index file, as `index_content` has it; where there can be none, why."""
    try:
        return index_content(path, names, offsets, sizes, ends), None
    except ShardError as error:
        return None, str(error)


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write an index file, v1.2; under its name it is there whole or not at all.

    Raises
    ------
    ShardError
        There is no sample, or a name cannot be put down. Nothing is written then.
    """
    members = [member for sample in samples for member in sample.members]
    names = [member.name for member in members]
    offsets, sizes = [member.offset for member in members], [member.size for member in members]
    ends = [*itertools.accumulate((len(sample.members) for sample in samples), initial=0)]
    _write_whole(path, index_content(path, names, offsets, sizes, ends))


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
