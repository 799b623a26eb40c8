"""Duplicates whose better twin does not pass itself: of such a group nothing would be left.

A table of duplicates says who stays among all rows. Where only some of these are exported, by a condition or as a
filter came before, the one that stays may not be among them. This is seen before samples are looked up, as it depends
on all files together; 25 bytes are held meanwhile of each row that passes and has a better twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_record, read_whole
from curator_dask.frames.record import FILTERED
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.removed import DUPLICATES, read_duplicates
from curator_dask.outputs.selecting import Folder, passing_rows
from curator_dask.rows.where import Where
from curator_dask.storage import absolute, join
from curator_dask.threads import in_threads

_COLUMNS = ["id", URL_COLUMN, "group", "kept"]


@dataclass(frozen=True)
class Twins:
    """What becomes of the groups whose best row does not pass.

    Attributes
    ----------
    lost
        Rows that pass, and go for a twin that does not.
    next_best
        By file, int64 (n,): in order, those of them that stay in its place, the best of each group that pass. None:
        none are to.
    """

    lost: int = 0
    next_best: Mapping[str, np.ndarray] | None = None

    def of(self, name: str) -> np.ndarray | None:
        """The rows of a file that stay in the place of another; None: none are to."""
        return None if self.next_best is None else self.next_best.get(name, np.empty(0, np.int64))

    @property
    def staying(self) -> int:
        """How many rows stay in the place of a better twin."""
        return sum(map(len, (self.next_best or {}).values()))


@dataclass(frozen=True)
class _Look:
    """Groups of the rows of a file that stay; and of others that pass or are in tars (`fixed`) number, group, rank."""

    there: np.ndarray
    rows: np.ndarray
    groups: np.ndarray
    ranks: np.ndarray
    fixed: np.ndarray

    @classmethod
    def nothing(cls) -> _Look:
        none = np.empty(0, np.int64)
        return cls(none, none, none, none, np.empty(0, bool))


def find_twins(
    rows: Folder, names: Sequence[str], taken: Mapping[str, np.ndarray], options: ExportOptions, id_col: str
) -> Twins:
    """Look for rows that pass, and would go for a twin that does not.

    Parameters
    ----------
    rows, names
        The files of rows.
    taken
        By file, rows that are in tars that stay: there they are, whatever passes.
    options
        Of the export.
    id_col
        Column of the keys, where a file does not say it.

    Raises
    ------
    OutputError
        The best of the others are asked for, and the table does not say which these are.
    """
    if options.without is None:
        return Twins()
    nothing = Twins(0, {} if options.next_best else None)
    place = absolute(options.without, rows.options)
    file = join(place, DUPLICATES)
    has = {*read_whole(file, rows.options).columns}
    if options.next_best and not {"group", "rank"} <= has:
        raise OutputError(
            f"{file}: does not say which row of a group is the next best (column 'rank'), as it is of an earlier"
            " version or made by something else. Run the same dedup again, which compares nothing anew, or leave out"
            " next_best (--next-best)"
        )
    where = None if options.condition is None else Where(options.condition)
    some_pass = where is not None or options.filter_column is not None or _is_filtered(rows, names)
    if "group" not in has or not some_pass:
        return nothing
    columns = [*_COLUMNS, *(["rank"] if "rank" in has else [])]

    def look(name: str) -> _Look:
        return _look(rows.file(name), rows, where, options, id_col, place, columns, taken.get(name))

    # Of all rows: one that is no row of these files stays elsewhere, or was filtered out before.
    every = read_duplicates(place, ["group", "kept"], rows.options)
    heads = np.unique(every.filter(every["kept"])["group"].to_numpy())
    looks = in_threads(look, names)
    there = np.unique(np.concatenate([each.there for each in looks] or [np.empty(0, np.int64)]))
    gone = np.setdiff1d(heads, there, assume_unique=True)
    lost = [np.isin(each.groups, gone) for each in looks]
    if not options.next_best:
        left = [each.groups[some & each.fixed] for each, some in zip(looks, lost, strict=True)]
        with_one = np.unique(np.concatenate([*left, np.empty(0, np.int64)]))
        none_left = [some & ~np.isin(each.groups, with_one) for each, some in zip(looks, lost, strict=True)]
        return Twins(sum(int(each.sum()) for each in none_left))
    return Twins(0, _best_of(names, looks, lost))


def _is_filtered(rows: Folder, names: Sequence[str]) -> bool:
    record = read_record(rows.file(names[0]), rows.options) if names else None
    return record is not None and FILTERED in record.derived


def _best_of(
    names: Sequence[str], looks: Sequence[_Look], lost: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """By file, of the rows that are lost the best of each group; where some are in tars, these."""
    if not looks:
        return {}
    files = np.repeat(np.arange(len(looks)), [int(each.sum()) for each in lost])
    rows, groups, ranks, fixed = (
        np.concatenate([getattr(look, name)[some] for look, some in zip(looks, lost, strict=True)])
        for name in ("rows", "groups", "ranks", "fixed")
    )
    order = np.lexsort((rows, files, ranks, ~fixed, groups))
    first = order[np.unique(groups[order], return_index=True)[1]]
    first = np.union1d(first, np.flatnonzero(fixed))
    return {names[number]: np.sort(rows[first[files[first] == number]]) for number in np.unique(files[first])}


def _look(
    path: str,
    source: Folder,
    where: Where | None,
    options: ExportOptions,
    id_col: str,
    duplicates: str,
    columns: Sequence[str],
    taken: np.ndarray | None,
) -> _Look:
    footer = read_whole(path, source.options)
    id_col = (footer.record.id_col if footer.record else None) or id_col
    if id_col not in footer.columns or URL_COLUMN not in footer.columns:
        return _Look.nothing()  # who looks up its samples says what is wrong
    named = [*(where.columns(footer.columns) if where else ()), id_col, URL_COLUMN]
    named += [] if options.filter_column not in footer.columns else [options.filter_column]
    table = read_rows(path, source.options, list(dict.fromkeys(named)))
    passes = passing_rows(table, where, options.filter_column, footer.columns, path)[0]
    if taken is not None:
        passes[taken] = True
    pairs = pa.table(
        {
            "id": table[id_col].cast(pa.string()),
            URL_COLUMN: table[URL_COLUMN].cast(pa.string()),
            "row": pa.array(np.arange(len(table))),
        }
    ).filter(pa.array(passes))
    urls = [url for url in pairs[URL_COLUMN].unique().to_pylist() if url is not None]
    if not urls:
        return _Look.nothing()
    said = read_duplicates(duplicates, columns, source.options, urls)
    if "rank" not in said.column_names:
        said = said.append_column("rank", pa.array(np.zeros(len(said), np.int64)))
    for name in ("id", URL_COLUMN):  # a table of pandas may be of large strings
        said = said.set_column(said.column_names.index(name), name, said[name].cast(pa.string()))
    found = pairs.join(said, ["id", URL_COLUMN], join_type="inner")
    kept = found["kept"].to_numpy()
    numbers, groups, ranks = (found[name].to_numpy() for name in ("row", "group", "rank"))
    # A row that is there twice stays, once it does.
    others, first = np.unique(numbers, return_index=True)
    first = first[~np.isin(others, numbers[kept])]
    fixed = np.zeros(len(first), bool) if taken is None else np.isin(numbers[first], taken)
    return _Look(np.unique(groups[kept]), numbers[first], groups[first], ranks[first], fixed)
