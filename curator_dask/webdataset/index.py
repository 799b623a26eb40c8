"""Where each sample's bytes lie in a shard: from the tar's headers, or from DALI's index file.

An index file is never believed: it may be older than the tar, or another tar's. `ShardIndex.read_idx`
compares it with the tar, and `ShardReader` compares the header before each member that it reads.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator_dask.errors import ShardError
from curator_dask.storage import check_regular
from curator_dask.webdataset import idx
from curator_dask.webdataset.headers import Member, TarWalk
from curator_dask.webdataset.idx import StaleIndex
from curator_dask.webdataset.keys import KeyTable
from curator_dask.webdataset.links import Unread, follow
from curator_dask.webdataset.samples import Sample, group_members, split_name

logger = logging.getLogger(__name__)


@dataclass
class ShardIndex:
    """The samples of a shard.

    Attributes
    ----------
    samples
        In the order of their first members in the tar; members of one key are one sample even where others
        lie between them. Links to files of the same tar are members as these are. Directories, hidden files
        (``._x.jpg``), ``__MACOSX/`` and names without an extension are passed over.
    problem
        What is wrong with the tar, None if nothing is; `samples` then holds what lies whole before the fault.
    duplicates
        Names that occurred again; `samples` has the first. An index file may not list all of them.
    unread
        What has a sample's name and cannot be read: links to what is not in the tar, sparse files.
    scanned
        Whether this comes from the tar's own headers, all of them.
    """

    samples: Sequence[Sample]
    problem: str | None = None
    duplicates: tuple[str, ...] = ()
    scanned: bool = True
    unread: tuple[Unread, ...] = ()

    @classmethod
    def scan(cls, path: str | os.PathLike[str]) -> ShardIndex:
        """Read the headers of a local tar.

        A tar that is cut or damaged gives what lies before that, and a `problem`.

        Raises
        ------
        ShardError
            The file cannot be read, is empty, or is no plain tar.
        """
        with _opened(path) as file:
            walk = TarWalk(file, path)
            members, unread = follow(list(walk.members()), walk.others)
        samples, duplicates = group_members(members)
        return cls(samples, walk.problem, duplicates, unread=unread)

    @classmethod
    def read_idx(cls, idx_path: str | os.PathLike[str], tar_path: str | os.PathLike[str]) -> ShardIndex:
        """Read DALI's index file (v1.1 or v1.2) of a local tar and compare it with the tar.

        Compared are the file's structure and count, every place where two members do not touch (there the tar
        is scanned, links too), that no sample follows the last member, and some headers, or all where the index file
        is older than the tar. An index of v1.1 has no names: its tar is scanned, and the index compared with that.

        Raises
        ------
        StaleIndex
            The index file cannot be read, or is not this tar's.
        ShardError
            The tar itself cannot be read.
        """
        has_names, listed = idx.read_members(Path(idx_path))
        if has_names:
            with _opened(tar_path) as file:
                older = Path(idx_path).stat().st_mtime_ns < os.fstat(file).st_mtime_ns
                seen = idx.compare(listed, file, tar_path, every_header=older)
            samples, doubled = group_members(seen.members)
            wrong = seen.wrong
            index = cls(samples, None, doubled + seen.repeated, scanned=False, unread=seen.unread)
        else:
            index = cls.scan(tar_path)
            places = {(member.offset, member.size) for member in listed}
            strange = [m.name for m in index.by_name.values() if (m.offset, m.size) not in places]
            wrong = index.problem or (f"it does not have member {strange[0]!r}" if strange else None)
        if wrong:
            raise StaleIndex(f"{idx_path}: the index file does not fit {tar_path}: {wrong}")
        return index

    @classmethod
    def open(cls, tar_path: str | os.PathLike[str], use_index_files: bool = True) -> ShardIndex:
        """Index of a local tar: from the ``.idx`` beside it if that fits the tar, else by a scan.

        An index file that does not fit is logged once and left as it is.

        Raises
        ------
        ShardError
            The tar cannot be read.
        """
        idx_path = Path(tar_path).with_suffix(".idx")
        if use_index_files and idx_path.exists():
            try:
                return cls.read_idx(idx_path, tar_path)
            except StaleIndex as error:
                warn_once(f"{error}; the tar is scanned instead")
        return cls.scan(tar_path)

    def write_idx(self, idx_path: str | os.PathLike[str]) -> None:
        """Write DALI's index file, v1.2; under its name it is there whole or not at all.

        Raises
        ------
        ShardError
            There is no sample (DALI takes no empty index), or a name cannot be put down: one that has white
            space or nothing after its dot. Nothing is written then.
        """
        idx.write_samples(Path(idx_path), self.samples)

    def find(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Positions in `samples` of the samples with these ids, -1 where there is none; see `KeyTable.find`."""
        return self._keys.find(ids)

    def why_unread(self, item: Any) -> str | None:
        """What in the tar has this id's key but cannot be read, and why; None if there is no such thing."""
        if not self.unread:
            return None
        position = int(KeyTable(list(self._unread_by_key)).find([item])[0])
        return None if position < 0 else str([*self._unread_by_key.values()][position])

    @functools.cached_property
    def by_name(self) -> dict[str, Member]:
        """The members of all samples by their names."""
        return {member.name: member for sample in self.samples for member in sample.members}

    @functools.cached_property
    def _unread_by_key(self) -> dict[str, Unread]:
        """The first of each key."""
        named = ((split_name(each.name), each) for each in reversed(self.unread))
        return {parts[0]: each for parts, each in named if parts is not None}

    @functools.cached_property
    def _keys(self) -> KeyTable:
        return KeyTable([sample.key for sample in self.samples])


@functools.lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Log a warning, in one process only once."""
    logger.warning(message)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[int]:
    """Descriptor of a local tar, its faults as `ShardError`."""
    try:
        check_regular(path)
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield file
        finally:
            os.close(file)
    except OSError as error:
        raise ShardError(f"{os.fspath(path)}: the shard cannot be read: {error}") from error


def last_sample(index: ShardIndex) -> int:
    """Position of the sample that the last member belongs to; -1 where there is none."""
    ends = {
        position: max(member.offset for member in sample.members)
        for position, sample in enumerate(index.samples)
    }
    return max(ends, key=ends.__getitem__, default=-1)
