"""What was scanned, all files together: rows, and distinct vectors among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.dedup.phases import Phase
from curator_dask.dedup.scanning import FAULTS, Source, dim_of
from curator_dask.errors import ConfigError, OutputError


@dataclass(frozen=True)
class Rows:
    """The rows of all files whose vectors can be compared.

    Attributes
    ----------
    table
        ``id``, ``__url__`` and what orders them.
    fixed
        bool (rows,): of a dataset that stays as it is.
    distinct
        int64 (rows,): the number of each row's vector among the distinct ones.
    carriers
        int64 (distinct,): the first row that has each.
    slots, firsts
        By file, places of its carriers among its good vectors; and the number of the first of them.
    counts
        Of all rows by fault; see `FAULTS`.
    total
        All rows that are not fixed, whatever their vectors.
    dim
        Length of a vector.
    """

    table: pa.Table
    fixed: np.ndarray
    distinct: np.ndarray
    carriers: np.ndarray
    slots: list[np.ndarray]
    firsts: np.ndarray
    counts: dict[str, int]
    total: int
    dim: int


def gather_rows(scan: Phase, sources: Sequence[Source], path: str) -> Rows:
    """Read what was said of the rows of all files.

    Raises
    ------
    OutputError
        No row can be compared.
    ConfigError
        Vectors of two lengths.
    """
    tables, fixed = [], []
    dims: dict[int, str] = {}
    counts = np.zeros(len(FAULTS), np.int64)
    total = 0
    for source in sources:
        file = scan.path(f"{source.name}.parquet")
        table = pq.read_table(file, partitioning=None).replace_schema_metadata(None)
        fault = table.column("fault").to_numpy()
        if not source.fixed:
            counts += np.bincount(fault, minlength=len(FAULTS))
            total += len(fault)
        good = table.filter(pa.array(fault == 0)).drop_columns("fault")
        if len(good):
            dims.setdefault(dim_of(file), source.path)
        tables.append(good)
        fixed.append(np.full(len(good), source.fixed))
    if len(dims) > 1:
        lengths = ", ".join(f"{file} of {dim} values" for dim, file in dims.items())
        raise ConfigError(f"vectors of two lengths cannot be compared: {lengths}. Give those of one model")
    said = {name: int(count) for name, count in zip(FAULTS, counts, strict=True)}
    if not total:
        raise OutputError(f"{path}: has no rows")
    if not said["good"]:
        why = ", ".join(f"{count} {name}" for name, count in said.items() if count)
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
            f"what says which duplicate stays (keep) has one type in some files and another in others: {error}. Write"
            " the column with one type"
        ) from None
    for number, field in enumerate(whole.schema):
        if pa.types.is_null(field.type):  # no row has a value
            whole = whole.set_column(number, field.name, pa.nulls(len(whole), pa.float64()))
    first = whole.column("digest0").to_numpy()
    second = whole.column("digest1").to_numpy()
    order = np.lexsort((second, first))  # stable: of equal ones the first row comes first
    new = np.ones(len(order), bool)
    new[1:] = (first[order][1:] != first[order][:-1]) | (second[order][1:] != second[order][:-1])
    of_class = np.cumsum(new) - 1
    heads = order[new]
    numbers = np.empty(len(heads), np.int64)
    numbers[np.argsort(heads)] = np.arange(len(heads))
    distinct = np.empty(len(order), np.int64)
    distinct[order] = numbers[of_class]
    carriers = np.sort(heads)
    ends = np.cumsum([len(table) for table in tables])
    starts = ends - [len(table) for table in tables]
    firsts = np.searchsorted(carriers, starts)
    lasts = np.searchsorted(carriers, ends)
    slots = [carriers[a:b] - start for a, b, start in zip(firsts, lasts, starts, strict=True)]
    table = whole.drop_columns(["digest0", "digest1"])
    return Rows(
        table, np.concatenate(fixed), distinct, carriers, slots, firsts, said, total, next(iter(dims))
    )
