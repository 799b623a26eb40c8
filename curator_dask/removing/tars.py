"""A tar without some of its samples: all else is copied as it lies, headers too, byte for byte."""

from __future__ import annotations

import bisect
import os
import posixpath
import tarfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from curator_dask.errors import ShardError
from curator_dask.outputs.selecting import Folder
from curator_dask.storage import is_remote, local_path
from curator_dask.webdataset.headers import BLOCK
from curator_dask.webdataset.idx import index_or_reason
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.samples import Sample, key_text, split_name
from curator_dask.webdataset.staging import STAGE
from curator_dask.webdataset.stamps import stamp


@dataclass(frozen=True)
class Cut:
    """What stays of a tar.

    Attributes
    ----------
    path
        Of the tar, or its local copy.
    stays
        Ranges of bytes that are copied, ascending.
    samples
        That stay, with the places of their members in the new tar.
    gone
        Keys of the samples that go, as text.
    """

    path: Path
    stays: tuple[tuple[int, int], ...]
    samples: tuple[Sample, ...]
    gone: tuple[str, ...]

    def write(self, file: int) -> None:
        """Write it to a descriptor.

        Raises
        ------
        ShardError
            The tar changes meanwhile.
        """
        before, end = stamp(self.path), 0
        with open(self.path, "rb") as source:  # noqa: PTH123
            for start, stop in self.stays:
                end += stop - start
                while start < stop:
                    count = os.sendfile(file, source.fileno(), start, min(stop - start, 1 << 30))
                    if not count:
                        raise ShardError(
                            f"{self.path}: was cut while it was read: run again when nobody writes to it"
                        )
                    start += count
        tail = memoryview(bytes(2 * BLOCK + -(end + 2 * BLOCK) % tarfile.RECORDSIZE))
        while tail:
            tail = tail[os.write(file, tail) :]
        if stamp(self.path) != before:
            raise ShardError(
                f"{self.path}: was changed while it was read: run again when nobody writes to it"
            )

    def index(self, path: str) -> bytes | None:
        """DALI's index of it; None where there can be none: no sample stays, or a name cannot be put down."""
        members = [member for sample in self.samples for member in sample.members]
        ends = [*accumulate((len(sample.members) for sample in self.samples), initial=0)]
        places = ([m.name for m in members], [m.offset for m in members], [m.size for m in members])
        return index_or_reason(path, *places, ends)[0]


@contextmanager
def local_tar(folder: Folder, name: str) -> Iterator[Path]:
    """A tar, or a copy of a remote one."""
    url = folder.file(name)
    with ExitStack() as stack:
        yield (
            stack.enter_context(STAGE.lease(url, folder.options)) if is_remote(url) else Path(local_path(url))
        )


def cut_tar(path: Path, gone: Collection[str], called: str) -> Cut:
    """What stays of a tar without the samples of some keys, as text; where it has none of these, all.

    Parameters
    ----------
    path, gone
        The tar, and the keys.
    called
        The tar's path or URL, for errors.

    Raises
    ------
    ShardError
        It is damaged; or a member that stays is a link to one that goes.
    """
    index = ShardIndex.scan(path)
    if index.problem is not None:
        raise ShardError(
            f"{called}: is damaged ({index.problem}), and was left as it is: what is behind the damage cannot be looked"
            " at. Put a whole tar in its place, or remove it, and run again"
        )
    holes: list[tuple[int, int]] = []
    keys: dict[str, None] = {}
    names: set[str] = set()
    links: list[tuple[str, str]] = []
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            members = list(tar)
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{called}: cannot be read: {error}. It was left as it is") from error
    for member, after in zip(members, [*(each.offset for each in members[1:]), end], strict=True):
        if (key := _key_in(member.name, gone)) is None:
            if member.islnk() or member.issym():
                links.append((member.name, member.linkname))
            continue
        keys[key] = None
        names.add(member.name)
        # A global header of pax lies behind the member before it: it stays.
        stop = member.offset_data + -(-member.size // BLOCK) * BLOCK if member.isreg() else member.offset_data
        holes.append((member.offset, min(stop, after) if not member.issparse() else after))
    for name, target in links:
        if not {target, posixpath.normpath(posixpath.join(posixpath.dirname(name), target))}.isdisjoint(
            names
        ):
            raise ShardError(
                f"{called}: {name!r} is a link to {target!r}, which is to go, and has the same bytes: name its sample"
                " in the list, too. The tar was left as it is"
            )
    starts = [start for start, _ in holes]
    lost = [0, *accumulate(stop - start for start, stop in holes)]
    samples = tuple(
        Sample(
            sample.key,
            tuple(
                each._replace(offset=each.offset - lost[bisect.bisect_left(starts, each.offset)])
                for each in sample.members
            ),
        )
        for sample in index.samples
        if key_text(sample.key) not in gone
    )
    edges = [0, *(edge for hole in holes for edge in hole), end]
    stays = tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)
    return Cut(path, stays, samples, tuple(keys))


def _key_in(name: str, gone: Collection[str]) -> str | None:
    """The key of a member that goes: of one of these samples, or what a Mac has put beside such a one (``._x.jpg``)."""
    folder, _, last = name.rpartition("/")
    plain = name
    if last.startswith("._"):
        folder = folder.removeprefix("__MACOSX").lstrip("/")
        plain = f"{folder}/{last[2:]}" if folder else last[2:]
    parts = split_name(plain)
    return key_text(parts[0]) if parts is not None and key_text(parts[0]) in gone else None
