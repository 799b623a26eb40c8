"""Groups of duplicates, as `curator-dask dedup` has found them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.removed import DUPLICATES, check_removed
from curator_dask.report.folder import Folder, told
from curator_dask.storage import absolute, join

#: Groups that are shown of each kind, and rows of one.
GROUPS, MEMBERS = 12, 8


@dataclass
class Twin:
    """A row of a group; `similarity` is None for the one that stays."""

    key: str
    url: str | None
    kept: bool
    similarity: float | None


@dataclass
class Group:
    """A group: how many rows it has, how alike the least alike are, and some of them, the one that stays first."""

    number: int
    rows: int
    least: float
    twins: list[Twin]


@dataclass
class Twins:
    """What a deduplication found.

    Attributes
    ----------
    path
        Where its table is.
    groups, going
        How many groups, and how many rows go.
    largest, doubtful
        Groups with the most rows, and those with the lowest similarity, of which it is least sure.
    eps
        Of the run; None where the table does not say.
    curve
        By eps, rows that go; at most so many where it is larger than that of the run.
    rows
        That were compared.
    """

    path: str
    groups: int
    going: int
    largest: list[Group] = field(default_factory=list)
    doubtful: list[Group] = field(default_factory=list)
    eps: float | None = None
    curve: list[tuple[float, int]] = field(default_factory=list)
    rows: int = 0

    @property
    def shown(self) -> Iterable[Twin]:
        """All rows that are shown."""
        return (twin for group in (*self.largest, *self.doubtful) for twin in group.twins)


def read_twins(path: str, folder: Folder) -> Twins:
    """Read the table of a deduplication.

    Raises
    ------
    OutputError
        There is none, or it is of other shards than the output's.
    """
    where = absolute(path)
    check_removed(where)
    file = join(where, DUPLICATES)
    with told(file), open_parquet(file) as opened:
        record = FileRecord.parse(opened.schema_arrow.metadata)
        needed = ["id", URL_COLUMN, "group", "similarity", "kept"]
        if not {*needed} <= {*opened.schema_arrow.names}:
            raise OutputError(
                f"{file}: was not made by dedup: it has the columns {opened.schema_arrow.names}"
            )
        table = opened.read(columns=needed)
    _check_shards(file, table, folder)
    said: dict[str, Any] = dict((record and record.report) or {})
    groups = table.group_by("group").aggregate([("id", "count"), ("similarity", "min")])
    numbers = groups.column("group").to_numpy()
    sizes = groups.column("id_count").to_numpy()
    least = groups.column("similarity_min").to_numpy(zero_copy_only=False).astype(np.float64)
    of_some = {
        number: (int(size), float(low)) for number, size, low in zip(numbers, sizes, least, strict=True)
    }
    largest = numbers[np.lexsort((numbers, -sizes))][:GROUPS]
    doubtful = numbers[np.lexsort((numbers, np.nan_to_num(least, nan=np.inf)))][:GROUPS]
    found = _members(table, np.union1d(largest, doubtful), of_some)
    return Twins(
        where,
        len(numbers),
        int(pc.sum(pc.invert(table.column("kept"))).as_py() or 0),
        [found[number] for number in largest.tolist()],
        [found[number] for number in doubtful.tolist()],
        said.get("eps"),
        sorted((float(eps), int(count)) for eps, count in dict(said.get("table", {})).items()),
        int(said.get("rows", 0)),
    )


def _check_shards(file: str, table: pa.Table, folder: Folder) -> None:
    known = {record.url for record in folder.records if record.url}
    there = set(pc.unique(table.column(URL_COLUMN)).to_pylist())
    if known and there and not known & there:
        raise OutputError(
            f"{file}: is of other shards, {sorted(map(str, there))[0]} for example, than {folder.path}: give the folder"
            " of its own duplicates"
        )


def _members(table: pa.Table, wanted: np.ndarray, of_some: dict[int, tuple[int, float]]) -> dict[int, Group]:
    """The groups by number; of a large one the row that stays, and those that are the least like it."""
    groups = {number: Group(number, *of_some[number], []) for number in wanted.tolist()}
    for row in table.filter(pc.is_in(table.column("group"), pa.array(wanted))).to_pylist():
        groups[row["group"]].twins.append(
            Twin(str(row["id"]), row[URL_COLUMN], row["kept"], row["similarity"])
        )
    for group in groups.values():
        group.twins.sort(key=lambda twin: (not twin.kept, twin.similarity or 0.0, twin.key))
        del group.twins[MEMBERS:]
    return groups
