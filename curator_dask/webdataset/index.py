"""Where each sample's bytes lie in a shard: from the tar's headers, or from DALI's index file.

An index file is never believed: it may be older than the tar, or another tar's. `ShardIndex.read_idx`
compares it with the tar, and `ShardReader` compares the header before each member that it reads.
"""

from __future__ import annotations

import functools
import logging
import numbers
import os
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curator_dask.errors import ShardError
from curator_dask.storage import check_regular
from curator_dask.webdataset.headers import BLOCK, Member, TarWalk, encoded, header_problem, padded

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset(
    """jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff avif heic heif jxl jp2 j2k jpx
    ppm pgm pbm pnm tga ico""".split()  # noqa: SIM905
)
"""Extensions, in lower case, by which a component is taken for an image."""

_HEADERS_CHECKED = 16  # evenly spread headers by which an index file is compared with the tar


class StaleIndex(ShardError):
    """An index file that does not fit its tar. A scan of the tar helps."""


class Sample(NamedTuple):
    """The members of one key.

    Attributes
    ----------
    key
        Name up to the first dot of its last part, folders included, a leading ``./`` not.
    members
        In tar order.
    """

    key: str
    members: tuple[Member, ...]

    def component(self, *suffixes: str) -> Member | None:
        """The member whose name is the key, a dot and one of the suffixes (``"txt"``, ``"1.jpg"``).

        Case does not matter. Earlier suffixes win over later ones. None if there is no such member.
        """
        for suffix in suffixes:
            for member in self.members:
                if _suffix(member) == suffix.lower():
                    return member
        return None

    def image(self) -> Member | None:
        """The image: ``key.ext`` if there is one, else the first member whose last extension is an image's.

        `IMAGE_EXTENSIONS` says which these are. None if there is no image.
        """
        images = [m for m in self.members if _suffix(m).rpartition(".")[2] in IMAGE_EXTENSIONS]
        plain = (member for member in images if "." not in _suffix(member))
        return next(plain, images[0] if images else None)


@dataclass
class ShardIndex:
    """The samples of a shard.

    Attributes
    ----------
    samples
        In the order of their first members in the tar; members of one key are one sample even where others
        lie between them. Directories, links, hidden files (``._x.jpg``), ``__MACOSX/`` and names without an
        extension are passed over.
    problem
        What is wrong with the tar, None if nothing is; `samples` then holds what lies whole before the fault.
    duplicates
        Names that occurred again; `samples` has the first. An index file may not list all of them.
    scanned
        Whether this comes from the tar's own headers, all of them.
    """

    samples: list[Sample]
    problem: str | None = None
    duplicates: tuple[str, ...] = ()
    scanned: bool = True

    @classmethod
    def scan(cls, path: str | os.PathLike) -> ShardIndex:
        """Read the headers of a local tar.

        A tar that is cut or damaged gives what lies before that, and a `problem`.

        Raises
        ------
        ShardError
            The file cannot be read, is empty, or is no plain tar.
        """
        with _opened(path) as file:
            walk = TarWalk(file, path)
            samples, duplicates = _grouped(walk.members())
        return cls(samples, walk.problem, duplicates)

    @classmethod
    def read_idx(cls, idx_path: str | os.PathLike, tar_path: str | os.PathLike) -> ShardIndex:
        """Read DALI's index file (v1.1 or v1.2) of a local tar and compare it with the tar.

        Compared are the file's structure and count, every place where two members do not touch (there the tar
        is scanned), that no sample follows the last member, and some headers, or all where the index file is
        older than the tar. An index of v1.1 has no names: its tar is scanned, and the index compared with that.

        Raises
        ------
        StaleIndex
            The index file cannot be read, or is not this tar's.
        ShardError
            The tar itself cannot be read.
        """
        has_names, listed = _parsed_idx(Path(idx_path))
        if has_names:
            with _opened(tar_path) as file:
                older = Path(idx_path).stat().st_mtime_ns < os.fstat(file).st_mtime_ns
                wrong, repeated = _compared(listed, file, tar_path, every_header=older)
            samples, doubled = _grouped(listed)
            index = cls(samples, None, doubled + repeated, scanned=False)
        else:
            index = cls.scan(tar_path)
            places = {(member.offset, member.size) for member in listed}
            strange = [m.name for m in index.by_name.values() if (m.offset, m.size) not in places]
            wrong = index.problem or (f"it does not have member {strange[0]!r}" if strange else None)
        if wrong:
            raise StaleIndex(f"{idx_path}: the index file does not fit {tar_path}: {wrong}")
        return index

    @classmethod
    def open(cls, tar_path: str | os.PathLike, use_index_files: bool = True) -> ShardIndex:
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

    def write_idx(self, idx_path: str | os.PathLike) -> None:
        """Write DALI's index file, v1.2; under its name it is there whole or not at all.

        Raises
        ------
        ShardError
            There is no sample (DALI takes no empty index), or a name cannot be put down: one that has white
            space or nothing after its dot. Nothing is written then.
        """
        if not self.samples:
            raise ShardError(
                f"{idx_path}: expected at least one sample, found none: DALI takes no empty index"
            )
        lines = [b"v1.2 %d\n" % len(self.samples)]
        for sample in self.samples:
            words = []
            for name, offset, size in sample.members:
                raw = encoded(name)
                extension = raw[raw.index(b".", raw.rfind(b"/") + 1) + 1 :]
                if raw.split() != [raw] or not extension:
                    raise ShardError(
                        f"{idx_path}: expected names without white space and with an extension, found "
                        f"{name!r}, which DALI's index cannot hold: rename it or do without an index file"
                    )
                words.append(b"%s %d %d %s" % (extension, offset, size, raw))
            lines.append(b" ".join(words) + b"\n")
        _write_whole(Path(idx_path), b"".join(lines))

    def find(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Positions in `samples` of the samples with these ids.

        An id matches the key that is its text. A whole number (42 or 42.0, not "42") also matches the key
        that is that number with leading zeros, if only one is. Where no whole key fits, the same holds for
        the last parts of keys in folders (``"00042"`` finds ``"a/00042"``), as far as they are unique.

        Parameters
        ----------
        ids
            Text, numbers, None or NaN: a list, an array or a pandas Series.

        Returns
        -------
        numpy.ndarray
            int64, as long as `ids`; -1 where there is no such sample.
        """
        items = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        by_key = self._by_key
        positions = [by_key.get(item, -1) for item in items]
        for row, position in enumerate(positions):
            if position < 0:
                positions[row] = -1 if position < -1 else self._find_otherwise(items[row])
        return np.asarray(positions, dtype=np.int64)

    def _find_otherwise(self, item: Any) -> int:
        text, is_number = _id_text(item)
        if text is None:
            return -1
        for by_text, by_number in ((self._by_key, self._by_number), self._by_last_part):
            position = by_text.get(text, -1)
            if position == -1 and is_number:
                position = by_number.get(text, -1)
            if position != -1:
                return max(position, -1)  # below -1: there are several, so none
        return -1

    @functools.cached_property
    def by_name(self) -> dict[str, Member]:
        """The members of all samples by their names."""
        return {member.name: member for sample in self.samples for member in sample.members}

    @functools.cached_property
    def _by_key(self) -> dict[Hashable, int]:
        keys: dict[Hashable, int] = {sample.key: position for position, sample in enumerate(self.samples)}
        # A key that is not UTF-8 is also found by the text that stands for it in a column.
        odd = [(str(key), position) for key, position in keys.items() if not _is_text(str(key))]
        for key, position in odd:
            keys[key_text(key)] = -2 if key_text(key) in keys else position
        return keys

    @functools.cached_property
    def _by_number(self) -> dict[Hashable, int]:
        return _unique((_digits(sample.key), position) for position, sample in enumerate(self.samples))

    @functools.cached_property
    def _by_last_part(self) -> tuple[dict[Hashable, int], dict[Hashable, int]]:
        keys = enumerate(sample.key for sample in self.samples)
        parts = [(key.rpartition("/")[2], position) for position, key in keys if "/" in key]
        return _unique(parts), _unique((_digits(part), position) for part, position in parts)


def key_text(key: str) -> str:
    """The key as text that every column can hold: bytes that are not UTF-8 in hexadecimal, after a backslash."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_text(key: str) -> bool:
    return key.isascii() or not any("\udc80" <= sign <= "\udcff" for sign in key)


def split_name(name: str) -> tuple[str, str] | None:
    """Key and suffix of a member's name, by webdataset's rule; None for what is not part of a sample.

    ``"a.b/c.1.jpg"`` has the key ``"a.b/c"`` and the suffix ``"1.jpg"``. Hidden files, files in ``__MACOSX``
    and names without a dot are not part of a sample.
    """
    name = name.removeprefix("./")
    last = name.rfind("/") + 1
    dot = name.find(".", last)
    if dot <= last or name.startswith("__MACOSX/") or "/__MACOSX/" in name:
        return None
    return name[:dot], name[dot + 1 :]


@functools.lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Log a warning, in one process only once."""
    logger.warning(message)


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[int]:
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


def _grouped(members: Iterable[Member]) -> tuple[list[Sample], tuple[str, ...]]:
    """Samples of the members, and the names of those whose name came before."""
    groups: dict[str, dict[str, Member]] = {}
    repeated = []
    for member in members:
        parts = split_name(member.name)
        if parts is None:
            continue
        group = groups.setdefault(parts[0], {})
        if group.setdefault(parts[1], member) is not member:
            repeated.append(member.name)
    return [Sample(key, tuple(group.values())) for key, group in groups.items()], tuple(repeated)


def _parsed_idx(path: Path) -> tuple[bool, list[Member]]:
    """Whether an index file has names, and its members by their offsets; names are empty if it has none."""
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


def _compared(
    listed: list[Member], file: int, path: str | os.PathLike, every_header: bool
) -> tuple[str | None, tuple[str, ...]]:
    """What in the tar does not fit the members listed, if anything; and names that the tar repeats."""
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


def _suffix(member: Member) -> str:
    parts = split_name(member.name)
    return parts[1].lower() if parts else ""


def _digits(key: str) -> str | None:
    """A key of decimal digits without its leading zeros, None for any other key."""
    return (key.lstrip("0") or "0") if key.isascii() and key.isdigit() else None


def _unique(pairs: Iterable[tuple[str | None, int]]) -> dict[Hashable, int]:
    """Positions by text; -2 where a text has several."""
    found: dict[Hashable, int] = {}
    for text, position in pairs:
        if text is not None:
            found[text] = -2 if text in found else position
    return found


def _id_text(item: Any) -> tuple[str | None, bool]:
    """Text of an id, None if there is none that could be a key's; and whether it is a number."""
    if type(item) is int:  # by far the most common of those that come here
        return str(item), True
    if isinstance(item, str):
        return item, False
    if isinstance(item, bytes):
        return item.decode("utf-8", "surrogateescape"), False
    if isinstance(item, numbers.Number) and not isinstance(item, bool):
        try:
            whole = int(item)  # type: ignore[call-overload]
        except (ValueError, OverflowError, TypeError):  # NaN, infinity, complex
            return None, False
        # A float of 2**53 or more stands for several whole numbers: which one the key has is lost.
        exact = whole == item and (isinstance(item, numbers.Rational) or abs(whole) < 2**53)
        return (str(whole) if exact else None), True
    return None, False
