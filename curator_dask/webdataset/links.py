"""What the links of a tar stand for: files of the same tar, found by name, never on a disk."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from curator_dask.webdataset.headers import Member, Other
from curator_dask.webdataset.samples import split_name

_HOPS = 40  # from a symbolic link to the next, as many as Linux follows
_SHOWN = 100  # characters of a target that a reason shows
_HARD, _SYMBOLIC, _SPARSE = "1", "2", "S"
_WHAT = {
    _SPARSE: "a sparse file, of which a tar holds pieces only",
    "3": "a device",
    "4": "a device",
    "6": "a pipe",
    "M": "the rest of a file that begins in another tar",
}


class Unread(NamedTuple):
    """An entry of a tar that has a sample's name and cannot be read.

    Attributes
    ----------
    name
        As the tar has it.
    why
        What it is.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} is {self.why}"


def follow(members: Sequence[Member], others: Iterable[Other]) -> tuple[list[Member], tuple[Unread, ...]]:
    """Give each link the bytes of the file that it points to.

    A hard link is the file of that name before it, as when the tar is unpacked; a symbolic link the last of that
    name, by its path from the link's folder.

    Parameters
    ----------
    members
        The files, in tar order.
    others
        What else the tar has.

    Returns
    -------
    The files and the links in tar order; and what cannot be read, of what has a sample's name.
    """
    kept = list(others)
    if not kept:
        return list(members), ()
    named: dict[str, Member | Other | None] = {}
    found: list[tuple[int, Member | Other]] = [(member.offset, member) for member in members]
    found = sorted([*found, *((other.at, other) for other in kept)], key=lambda each: each[0])
    hard: dict[int, Member | Other | None] = {}
    for at, entry in found:
        if isinstance(entry, Member) or entry.kind == _SYMBOLIC:
            named[posixpath.normpath(entry.name)] = entry
        else:
            hard[at] = named.get(posixpath.normpath(entry.target)) if entry.kind == _HARD else None
            named[posixpath.normpath(entry.name)] = hard[at]
    read: list[Member] = []
    unread: list[Unread] = []
    for at, entry in found:
        if isinstance(entry, Member):
            read.append(entry)
            continue
        file = _followed(hard.get(at, entry), named)
        if file is not None:
            read.append(Member(entry.name, file.offset, file.size, file.target or file.name))
        elif split_name(entry.name) is not None:
            unread.append(Unread(entry.name, _why(entry)))
    return read, tuple(unread)


def _followed(entry: Member | Other | None, named: dict[str, Member | Other | None]) -> Member | None:
    """The file at the end of symbolic links; None if there is none in the tar, or they go in circles."""
    for _ in range(_HOPS):
        if not isinstance(entry, Other):
            return entry
        folder = posixpath.dirname(entry.name)
        entry = named.get(posixpath.normpath(posixpath.join(folder, entry.target)))
    return None


def _why(entry: Other) -> str:
    if entry.kind not in (_HARD, _SYMBOLIC):
        return _WHAT.get(entry.kind, f"an entry of the type {entry.kind!r}")
    kind = "hard" if entry.kind == _HARD else "symbolic"
    return f"a {kind} link to {entry.target[:_SHOWN]!r}, which is no file of this tar"
