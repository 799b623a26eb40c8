"""Where a partition goes, and what must be known of it for that."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from curator_dask.fingerprint import fingerprint
from curator_dask.storage import join

T = TypeVar("T")

_BLOCK = 1000  # targets that are made at once: whose files a store is asked for side by side
_BLOCKS = 8  # that are kept
_REMEMBERED = 100_000  # of so many, at most, the fingerprints are kept


@dataclass(frozen=True, slots=True)  # there may be many
class Target:
    """Where a partition goes.

    Attributes
    ----------
    name
        Of the shard or its part.
    path
        Of the Parquet file.
    fingerprint
        Of all that decides the content.
    shard
        State of the shard when the run was planned; None where partitions were mixed.
    companion
        The shard's own Parquet file, if it has one.
    source
        ``"parquet"`` or ``"tar"``: where the rows came from; None where partitions were mixed.
    dataset
        Where partitions were mixed, a digest of all shards that they came from, if these are known.
    formerly
        Other fingerprints by which earlier versions know the same content.
    lacking
        That of the same content without columns that rows from tars did not have earlier.
    reuse
        Columns of vectors in the file that is there now, which are taken over.
    keep
        Columns of other runs in that file whose values are good for these rows.
    """

    name: str
    path: str
    fingerprint: str
    shard: dict[str, Any] | None
    companion: str | None
    source: str | None
    dataset: str | None = None
    formerly: tuple[str, ...] = ()
    lacking: str | None = None
    reuse: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @classmethod
    def of_file(cls, folder: str, name: str) -> Target:
        """A Parquet file that is made of another of the same name, not of a shard."""
        return cls(name.removesuffix(".parquet"), join(folder, name), "", None, None, None)

    def to_json(self) -> str:
        """All of it, as text."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str) -> Target:
        """The target of which this is `to_json`."""
        return cls(**json.loads(text))


class Picked(Sequence[T]):
    """Some items of a sequence, which are asked for only when these are.

    Parameters
    ----------
    items
        All of them.
    numbers
        Of those that are picked.
    """

    def __init__(self, items: Sequence[T], numbers: Sequence[int]) -> None:
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        return self._items[self._numbers[number]]


class LateTargets(Sequence[Target]):
    """Targets that are made when they are asked for, and not kept: of 1,000,000 shards the first run at once.

    Parameters
    ----------
    count
        Of all.
    make
        Makes some of them, by their numbers.
    known
        Those that are kept, by their numbers.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[Sequence[int]], Sequence[Target]],
        known: Mapping[int, Target],
    ) -> None:
        self._count, self._make, self._known = count, make, known
        self._blocks: OrderedDict[int, Sequence[Target]] = OrderedDict()
        self._given: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        number = range(self._count)[number]
        target = self._known.get(number) or self._late(number)
        if self._count <= _REMEMBERED:
            self._given[number] = target.name, target.fingerprint
        return target

    @property
    def fingerprint(self) -> str:
        """Of all of them together, as they were last given; empty where one was not, or they are too many."""
        for number, target in self._known.items():
            self._given.setdefault(number, (target.name, target.fingerprint))
        return fingerprint(dict(self._given.values())) if len(self._given) == self._count else ""

    def _late(self, number: int) -> Target:
        block, place = divmod(number, _BLOCK)
        if block not in self._blocks:
            while len(self._blocks) >= _BLOCKS:
                self._blocks.popitem(last=False)
            numbers = range(block * _BLOCK, min(self._count, (block + 1) * _BLOCK))
            self._blocks[block] = self._make(numbers)
        return self._blocks[block][place]


class TargetTexts(Sequence[str]):
    """`Target.to_json` of each target, made when it is asked for: 100,000 at once would be in the way.

    Parameters
    ----------
    targets
        Of the partitions of a graph, in their order.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: Any) -> Any:
        return self.targets[number].to_json()

    def __dask_tokenize__(self) -> Any:
        said = "\n".join(f"{it.name}\0{it.path}\0{it.fingerprint}" for it in self.targets)
        return (type(self).__name__, hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest())


def target_frame(text: str) -> pd.DataFrame:
    """A target, as JSON, as a partition that Dask can carry."""
    return pd.DataFrame({"target": [text]}, dtype="str")
