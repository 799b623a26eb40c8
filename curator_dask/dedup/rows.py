"""What was scanned, all files together: rows, and distinct vectors among them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator_dask.dedup.hashes import LEAST_QUALITY, PLAIN, words
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.scanning import FAULTS, NO_COLUMN, Source, dim_of
from curator_dask.errors import ConfigError, OutputError

#: The place of a row whose vector cannot be compared.
NOWHERE = -1


@dataclass(frozen=True)
class Rows:
    """The rows of all files that can be compared, by their vectors or by hashes.

    Attributes
    ----------
    table
        ``id``, ``__url__`` and what orders them.
    fixed
        bool (rows,): that stay as they are.
    apart
        bool (rows,): of these, the rows of another dataset.
    hashes
        Of each column of hashes uint64 (rows, 1, 2 or 4), and bool (rows,): whether there is a value.
    distinct
        int64 (rows,): the number of each row among the distinct ones, those with another vector or other hashes; those
        without a vector come last.
    first
        int64 (distinct,): the first row of each.
    carriers
        The same of those with a vector.
    slots, firsts
        By file, places of its carriers among its good vectors; and the number of the first of them.
    counts
        Of all rows by fault; see `FAULTS`.
    total
        All rows that are not fixed, whatever their vectors.
    dim
        Length of a vector; 0 where no row has one.
    plain
        Of `total`, those whose PDQ is left out, as there is too little to see; None: no file says how much there is.
    """

    table: pa.Table
    fixed: np.ndarray
    apart: np.ndarray
    hashes: list[tuple[np.ndarray, np.ndarray]]
    distinct: np.ndarray
    first: np.ndarray
    carriers: np.ndarray
    slots: list[np.ndarray]
    firsts: np.ndarray
    counts: dict[str, int]
    total: int
    dim: int
    plain: int | None = None

    @property
    def stays(self) -> dict[str, str]:
        """What identifies the rows that stay, of those that are asked for; empty where none does."""
        some = np.flatnonzero(self.fixed & ~self.apart)
        return {"stay": hashlib.sha256(some.astype("<i8").tobytes()).hexdigest()} if len(some) else {}


def gather_rows(
    scan: Phase, sources: Sequence[Source], path: str, stay: Mapping[str, np.ndarray] | None = None
) -> Rows:
    """Read what was said of the rows of all files.

    Parameters
    ----------
    scan
        Where that is.
    sources
        The files.
    path
        Of the output, for messages.
    stay
        By name of a file, int64 (n,): rows that stay whatever they are like.

    Raises
    ------
    OutputError
        No row can be compared, or some files have no column of vectors.
    ConfigError
        Vectors of two lengths.
    """
    tables, fixed, apart, places = [], [], [], []
    dims: dict[int, str] = {}
    with_column: dict[bool, str] = {}  # a file that has one of vectors, and one that has none
    counts = np.zeros(len(FAULTS), np.int64)
    total = 0
    plain: int | None = None
    scan.fetch([f"{source.name}.parquet" for source in sources])
    for source in sources:
        table = scan.table(f"{source.name}.parquet")
        dim, table = dim_of(table), table.replace_schema_metadata(None)
        fault = table.column("fault").to_numpy()
        if not source.fixed:
            counts += np.bincount(fault, minlength=len(FAULTS))
            total += len(fault)
            if PLAIN in table.column_names:
                plain = (plain or 0) + int(table.column(PLAIN).to_numpy().sum())
        if len(fault):
            with_column.setdefault(bool(fault[0] != NO_COLUMN), source.path)
        good = fault == 0
        if good.any():
            dims.setdefault(dim, source.path)
        place = np.where(good, np.cumsum(good) - 1, NOWHERE)
        for name in _hash_names(table):
            good = good | np.asarray(table.column(name).is_valid())
        dropped = [name for name in ("fault", PLAIN) if name in table.column_names]
        tables.append(table.filter(pa.array(good)).drop_columns(dropped))
        places.append(place[good])
        apart.append(np.full(len(places[-1]), source.fixed))
        stays = np.full(len(fault), source.fixed)
        stays[(stay or {}).get(source.name, np.empty(0, np.int64))] = True
        fixed.append(stays[good])
    if len(dims) > 1:
        lengths = ", ".join(f"{file} of {dim} values" for dim, file in dims.items())
        raise ConfigError(f"vectors of two lengths cannot be compared: {lengths}. Give those of one model")
    if len(with_column) > 1:
        raise OutputError(
            f"{with_column[False]}: has no column of vectors, and {with_column[True]} has one. Give files that all have"
            " it: the same embed again makes what is missing; or files without it, which are compared by hashes alone"
        )
    said = {name: int(count) for name, count in zip(FAULTS, counts, strict=True)}
    if not said[FAULTS[NO_COLUMN]]:
        del said[FAULTS[NO_COLUMN]]
    if not total:
        raise OutputError(f"{path}: has no rows")
    if not said["good"] and not sum(map(len, tables)):  # hashes serve where there are no vectors
        why = ", ".join(f"{count} {name}" for name, count in said.items() if count)
        why += f"; {plain} with a PDQ of a quality below {LEAST_QUALITY}" if plain else ""
        hint = (
            " Vectors that were embedded with normalize_embeddings=False are compared with normalize=True"
            if said["not of unit length"]
            else " Give files whose rows have vectors"
        )
        raise OutputError(f"{path}: of {total} rows none has a vector that can be compared ({why}).{hint}")
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise OutputError(
            "what says which rows are duplicates (exact) or which of them stays (keep) has one type in some files and"
            f" another in others: {error}. Write the column with one type"
        ) from None
    for number, field in enumerate(whole.schema):
        if pa.types.is_null(field.type):  # no row has a value
            whole = whole.set_column(number, field.name, pa.nulls(len(whole), pa.float64()))
    names = _hash_names(whole)
    hashes = [words(whole.column(name)) for name in names]
    place = np.concatenate(places)
    columns = [whole.column(name).to_numpy() for name in ("digest0", "digest1")]
    for values, there in hashes:
        columns += [there, *values.T]
    first, distinct = _distinct(columns, place != NOWHERE)
    carriers = first[place[first] != NOWHERE]
    ends = np.cumsum([len(table) for table in tables])
    starts = ends - [len(table) for table in tables]
    firsts = np.searchsorted(carriers, starts)
    lasts = np.searchsorted(carriers, ends)
    slots = [place[carriers[a:b]] for a, b in zip(firsts, lasts, strict=True)]
    return Rows(
        whole.drop_columns(["digest0", "digest1", *names]),
        np.concatenate(fixed),
        np.concatenate(apart),
        hashes,
        distinct,
        first,
        carriers,
        slots,
        firsts,
        said,
        total,
        next(iter(dims), 0),
        plain,
    )


def _hash_names(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name.startswith("hash")]


def _distinct(columns: list[np.ndarray], has_vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of rows that are the same in all columns, and the number of each row's; see `Rows`."""
    order = np.lexsort(columns[::-1])  # stable: of equal ones the first row comes first
    new = np.zeros(len(order), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[order][1:] != column[order][:-1]
    heads = order[new]
    in_order = np.lexsort((heads, ~has_vector[heads]))
    numbers = np.empty(len(heads), np.int64)
    numbers[in_order] = np.arange(len(heads))
    distinct = np.empty(len(order), np.int64)
    distinct[order] = numbers[np.cumsum(new) - 1]
    return heads[in_order], distinct
