"""Rows of one value in tars of their own, in a folder of that value: languages, licences, classes, clusters, buckets.

A folder is named as its value is, as far as that is safe: values are of the data, which may say anything. So a name has
letters, digits, dots, - and _ of ASCII alone, no path is made of it, and no two of them differ in upper and lower case
alone. Of values that would have one name, those that are not called so themselves get a hash behind it. Tars that are
added go to the folders that their values have already.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.outputs.splits import SplitBy, SplitCount
from curator_dask.words import counted

#: Folders of rows whose value is null or NaN, and of those whose text is empty.
NULL, EMPTY = "null", "empty"
#: Values that are folders, where no other number is given: each has a tar of its own at the least.
MOST = 1000
#: In what is noted of an export: the folders, by value; that of null is named by null.
GROUPS = "groups"

_UNSAFE = re.compile(r"(?:[^A-Za-z0-9._-]|\.{2,})+")
# What readers of a folder take for a file of theirs, and Windows for a device.
_OTHERS = re.compile(
    r".*\.(tar|idx|parquet|json|md)|(con|prn|aux|nul|com\d|lpt\d)(\..*)?|null|empty", re.IGNORECASE
)
_LONGEST = 80  # signs of a name, without a hash
_SHOWN = 5
_LINES = 20  # of a summary


@dataclass(frozen=True)
class GroupBy:
    """What parts rows into folders.

    Attributes
    ----------
    by
        A column, or an expression of columns.
    most
        More values are refused.

    Raises
    ------
    ConfigError
        It is no whole number above 0.
    """

    by: SplitBy
    most: int = MOST

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 1:
            raise ConfigError(
                f"by_most={self.most!r} (--by-most): expected a whole number of at least 1: so many folders"
            )


@dataclass(frozen=True)
class Grouped:
    """Where samples go.

    Attributes
    ----------
    of
        int64 (samples,): the place of each sample's folder in `folders`.
    folders
        Names of those that get samples, in the order of their values; null and empty text come last.
    names
        By value, the names of these and of earlier ones.
    """

    of: np.ndarray
    folders: list[str]
    names: dict[str | None, str]

    @classmethod
    def by(
        cls,
        groups: GroupBy,
        found: Sequence[tuple[list[bytes], np.ndarray]],
        earlier: Mapping[str | None, str],
    ) -> Grouped:
        """Of the samples of some files: `distinct` of each; and by value, the folders that there are.

        Raises
        ------
        ConfigError
            There are too many values.
        """
        counts: Counter[bytes | None] = Counter()
        for values, places in found:
            keyed: list[bytes | None] = [*values, None]
            numbers = np.bincount(np.where(places < 0, len(values), places), minlength=len(keyed))
            counts.update({value: int(count) for value, count in zip(keyed, numbers, strict=True) if count})
        folders = folder_names(counts, {_raw(value): name for value, name in earlier.items()})
        _check_most(groups, counts, len(folders))
        order = sorted(counts, key=lambda value: (not value, _numbers_in(value or b""), value is None))
        place = {value: number for number, value in enumerate(order)}
        parts = [np.empty(0, np.int64)]
        for values, places in found:
            of = np.array([*(place.get(value, -1) for value in values), place.get(None, -1)], np.int64)
            parts.append(of[places])
        mine = {_text(value): folders[value] for value in order}
        return cls(np.concatenate(parts), [folders[value] for value in order], {**earlier, **mine})


def in_groups(of: np.ndarray, splits: Sequence[str], grouped: Grouped) -> tuple[np.ndarray, dict[str, int]]:
    """Share out splits among folders.

    Parameters
    ----------
    of
        int (samples,): the place of each sample's split.
    splits
        Their names; of no split empty.
    grouped
        The folders.

    Returns
    -------
    numpy.ndarray
        int64 (samples,): the place of each sample's folder.
    dict
        By name, ``train/en``, how many samples each has: of those that have some.
    """
    width = max(1, len(grouped.folders))
    wide = of.astype(np.int64) * width + grouped.of
    there, places, counts = np.unique(wide, return_inverse=True, return_counts=True)
    parts = {}
    for number, count in zip(there.tolist(), counts.tolist(), strict=True):
        split, folder = splits[number // width], grouped.folders[number % width]
        parts[f"{split}/{folder}" if split else folder] = count
    return places, parts or {"": 0}


def folder_names(
    values: Iterable[bytes | None], earlier: Mapping[bytes | None, str] | None = None
) -> dict[bytes | None, str]:
    """By value, the name of its folder; see above.

    Parameters
    ----------
    values
        Bytes of text, UTF-8 or not; None is null.
    earlier
        By value, names that are taken, and stay.
    """
    found = dict(earlier or {})
    taken = {name.lower() for name in found.values()}
    new = sorted({*values} - {*found}, key=lambda value: (value is not None, value or b""))
    plain = {value: _plain(value) for value in new}
    # First those that are called as their value is, in lower case before others.
    for value in sorted(new, key=lambda value: _own_name(value, plain[value])):
        name = plain[value]
        own = value is None or value == b""
        if (not own and _OTHERS.fullmatch(name)) or len(name) > _LONGEST or name.lower() in taken:
            digest = hashlib.blake2b(b"null" if value is None else b"=" + value, digest_size=8).hexdigest()
            name = f"{name[:_LONGEST]}-{digest}"
        found[value] = name
        taken.add(name.lower())
    return found


def _own_name(value: bytes | None, name: str) -> tuple[bool, bool]:
    return value is not None and name.encode() != value, name != name.lower()


def _plain(value: bytes | None) -> str:
    """A name that is safe, though others may have it, too."""
    if not value:
        return NULL if value is None else EMPTY
    name = _UNSAFE.sub("_", value.decode("utf-8", "replace")).rstrip(".")
    # Some readers leave out what begins with . or _, and a command takes - for an option.
    return name if name[:1].isalnum() else f"x{name}"


def _raw(value: str | None) -> bytes | None:
    return None if value is None else value.encode("utf-8", "surrogateescape")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


def _numbers_in(value: bytes) -> list[tuple[bool, int, bytes]]:
    """By which 9 comes before 10."""
    parts = re.split(rb"(\d{1,18})", value)
    return [(not each.isdigit(), int(each) if each.isdigit() else 0, each) for each in parts]


def _check_most(groups: GroupBy, counts: Mapping[bytes | None, int], folders: int) -> None:
    if folders <= groups.most:
        return
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0] or b""))
    some = ", ".join(
        f"{'null' if value is None else _shown(value.decode('utf-8', 'replace'))} {count:,}"
        for value, count in ranked[:_SHOWN]
    )
    single = sum(count == 1 for count in counts.values())
    raise ConfigError(
        f"{groups.by.said}: {counted(folders, 'value')}, and each is a folder of tars: more than"
        f" {groups.most:,} are refused (by_most, --by-most). The largest have {some} samples;"
        f" {counted(single, 'value', 'has', 'have')} a single one. Give a coarser expression, or allow more"
    )


def _shown(value: str) -> str:
    """A value in a message: captions, say, are cut."""
    return repr(value) if len(value) <= _LONGEST else f"{value[:_LONGEST]!r}..."


@dataclass
class GroupCount(SplitCount):
    """What a folder of one value has, of each split.

    Attributes
    ----------
    value
        As text; None: null or NaN.
    """

    value: str | None = None


def counts_of(
    parts: Mapping[str, int], grouped: Grouped, earlier: Iterable[tuple[str, Mapping[str, Any]]]
) -> dict[str, GroupCount]:
    """By folder, what it has, with the tars that stay: their folders and reports; `parts` are of `in_groups`."""
    values = {name: value for value, name in grouped.names.items()}
    there: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for folder, report in earlier:
        there[folder] += report["rows"]
        size[folder] += report["bytes"]
    found = {}
    for name in sorted({*parts, *there} - {""}, key=lambda name: _numbers_in(name.encode())):
        value = values.get(name.rpartition("/")[2])
        new = parts.get(name, 0) + there[name]
        found[name] = GroupCount(new, bytes=size[name], earlier=there[name], value=value)
    return found


def group_lines(groups: Mapping[str, GroupCount], total: int, noun: str) -> list[str]:
    """What a summary says of folders, by their names: of the largest, and of all others together."""
    ranked = sorted(groups.items(), key=lambda item: -item[1].samples)
    shown = [(name, count) for name, count in groups.items() if (name, count) in ranked[:_LINES]]
    lines = []
    for name, count in shown:
        folder = name.rpartition("/")[2]
        value = "" if count.value in (folder, None, "") else f" ({_shown(count.value or '')})"
        lines.append(f"  {name}{value}: {count.told(total, noun)}")
    if rest := [count for _, count in ranked[_LINES:]]:
        samples, tars = (sum(getattr(each, what) for each in rest) for what in ("samples", "shards"))
        lines.append(
            f"  {counted(len(rest), 'smaller folder')}: {counted(samples, 'sample')} in {counted(tars, noun)}"
        )
    return lines
