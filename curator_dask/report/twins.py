"""Groups of duplicates, as `curator-dask dedup` has found them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.removed import DUPLICATES, check_removed
from curator_dask.report.folder import Folder
from curator_dask.storage import absolute, join

#: Groups that are shown of each kind, and rows of one.
GROUPS, MEMBERS = 12, 8

_FOUND_BY = "found_by"  # the column of the table that says it, where hashes were looked at
_HASH, _ALIKE = "hash", "alike"


@dataclass
class Twin:
    """A row of a group; `similarity` is None for the one that stays, `by` the hash that found it, if one did."""

    key: str
    url: str | None
    kept: bool
    similarity: float | None
    by: str | None = None

    @property
    def said(self) -> str:
        """What stands below its picture."""
        if self.kept:
            return "stays"
        cosine = "" if self.similarity is None else f"{self.similarity:.4f}"
        return f"{cosine} by {self.by}".strip() if self.by else cosine


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
        By eps, rows that go, and whether it is about so many, by a sample.
    rows
        That were compared.
    by_hash
        Of the rows that go, how many a hash has found, by its name.
    """

    path: str
    groups: int
    going: int
    largest: list[Group] = field(default_factory=list)
    doubtful: list[Group] = field(default_factory=list)
    eps: float | None = None
    curve: list[tuple[float, int, bool]] = field(default_factory=list)
    rows: int = 0
    by_hash: dict[str, int] = field(default_factory=dict)

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
    where = absolute(path, folder.options)
    check_removed(where, folder.options)
    file = join(where, DUPLICATES)
    with faults_told(file), open_parquet(file, folder.options) as opened:
        record = FileRecord.parse(opened.schema_arrow.metadata)
        needed = ["id", URL_COLUMN, "group", "similarity", "kept"]
        if not {*needed} <= {*opened.schema_arrow.names}:
            raise OutputError(
                f"{file}: was not made by dedup: it has the columns {opened.schema_arrow.names}"
            )
        by = [_FOUND_BY] if _FOUND_BY in opened.schema_arrow.names else []
        table = opened.read(columns=[*needed, *by])
    said: dict[str, Any] = dict((record and record.report) or {})
    # The first are the vectors. How alike rows are that a hash has found is another matter.
    _, *hashes = said.get("by") or [""]
    found_by = table.column(_FOUND_BY) if by else pa.nulls(len(table), pa.string())
    of_hash = pc.fill_null(pc.is_in(found_by, pa.array(hashes, pa.string())), False)
    table = table.append_column(_HASH, pc.if_else(of_hash, found_by, pa.scalar(None, pa.string())))
    alike = pc.if_else(of_hash, pa.scalar(None, pa.float32()), table.column("similarity").cast(pa.float32()))
    table = table.append_column(_ALIKE, alike)
    _check_shards(file, table, folder)
    groups = table.group_by("group").aggregate([("id", "count"), (_ALIKE, "min")])
    numbers = groups.column("group").to_numpy()
    sizes = groups.column("id_count").to_numpy()
    least = groups.column(f"{_ALIKE}_min").to_numpy(zero_copy_only=False).astype(np.float64)
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
        sorted(
            (float(eps), int(count), eps in said.get("about", ()) or float(eps) > said.get("eps", 1))
            for eps, count in dict(said.get("table", {})).items()
        ),
        int(said.get("rows", 0)),
        {name: count for name, count in (said.get("by") or {}).items() if name in hashes and count},
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
            Twin(str(row["id"]), row[URL_COLUMN], row["kept"], row["similarity"], row[_HASH])
        )
    for group in groups.values():
        group.twins.sort(key=lambda twin: (not twin.kept, twin.similarity or 0.0, twin.key))
        del group.twins[MEMBERS:]
    return groups
