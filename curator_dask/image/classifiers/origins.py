"""What made a column of vectors: the step that does, or the records of the files that it was read from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.frames.columns import embedding_columns
from curator_dask.frames.parquet import open_parquet, read_footer, read_record
from curator_dask.models.families import Kind, said_of, unchecked
from curator_dask.runs.lineage import trace
from curator_dask.runs.step import Step
from curator_dask.storage import Options
from curator_dask.threads import in_threads

#: Files that are looked at, spread evenly over the dataset.
LOOKED_AT = 16


@dataclass(frozen=True)
class Origin:
    """What made the vectors that a head is put on.

    Attributes
    ----------
    column
        Of the vectors.
    step
        That makes them in the same run; None: there is none.
    record
        JSON of what the record of their file says (`FileRecord.embeddings`); None: nothing.
    dim
        Their length by the type of the column, where a file has no record.
    """

    column: str
    step: Step | None = None
    record: str | None = None
    dim: int | None = None

    @classmethod
    def of(cls, column: str, info: Mapping[str, Any] | None) -> Origin:
        """By a record."""
        return cls(column, record=None if info is None else json.dumps(info, sort_keys=True))

    def info(self) -> Mapping[str, Any] | None:
        """What made them, as `EncoderInfo` has it; asked for on a worker, which then has the model."""
        if self.step is not None:
            return self.step.describe().get(self.column)
        found: Mapping[str, Any] | None = None if self.record is None else json.loads(self.record)
        return found

    def check_length(self, dim: int | None, head: str) -> None:
        """Refuse vectors of another length than a head takes, where both are known.

        Raises
        ------
        ConfigError
            They are.
        """
        found = (self.info() or {"dim": self.dim}).get("dim") if dim is not None else None
        if found not in (None, dim):
            raise ConfigError(
                f"{head}: expected vectors of {dim} values in {self.column!r}, found {found}. Take the head that"
                " belongs to them"
            )

    def check(self, kind: Kind, head: str) -> None:
        """Refuse what is not of the kind that a head is for.

        Raises
        ------
        ConfigError
            It is not, or nothing says what it is.
        """
        info = self.info()
        override = unchecked("its vectors are such", (info or {}).get("dim", self.dim), kind.dim)
        if info is None:
            raise ConfigError(
                f"{head} is for vectors of {kind}; nothing says what made {self.column!r}. {kind.remedy}{override}"
            )
        differences = kind.differences(info)
        if differences:
            raise ConfigError(
                f"{head} is for vectors of {kind}; {self.column!r} has those of {said_of(info)}:"
                f" {'; '.join(differences)}. {kind.remedy}; or take a head that was trained on the vectors that are"
                f" there{override}"
            )


def find_origin(dataset: ImageTextPairDataset, column: str) -> Origin:
    """What makes a column of vectors of a dataset.

    Raises
    ------
    DatasetError
        There is no such column of vectors, or its files do not have them of one model.
    """
    vectors = embedding_columns(dataset.metadata._meta)
    if column not in vectors:
        raise DatasetError(
            f"embedding_column={column!r}: the metadata has no such column of vectors, it has {vectors or 'none'}"
            f" ({list(dataset.metadata.columns)}): call an embedder first, or give the name of its column"
        )
    lineage = trace(dataset.metadata)
    for step in reversed((*dataset.steps, *lineage.steps)):
        if column in step.columns:
            return Origin(column, step)
    paths = [part.shard.parquet for part in lineage.inputs or () if part.shard.parquet is not None]
    stride = max(1, -(-len(paths) // LOOKED_AT))
    looked = list(dict.fromkeys([*paths[::stride], *paths[-1:]]))
    records = in_threads(lambda path: read_record(path, dataset.storage_options), looked)
    return one_origin(column, dict(zip(looked, records, strict=True)))


def one_origin(column: str, records: Mapping[str, Any]) -> Origin:
    """What made a column of vectors by the records of its files, which must say the same.

    Parameters
    ----------
    column
        Of the vectors.
    records
        By path; None where a file has none.

    Raises
    ------
    DatasetError
        They differ.
    """
    origins = {
        path: Origin.of(column, record.embeddings.get(column) if record is not None else None)
        for path, record in records.items()
    }
    first = next(iter(origins), None)
    if first is None:
        return Origin(column)
    for path, origin in origins.items():
        if _model(origin) != _model(origins[first]):
            one, other = (said_of(each.info() or {}) for each in (origins[first], origin))
            raise DatasetError(
                f"{column!r} is not of one model: in {first} it is of {one}, in {path} of {other}. A head is for the"
                " vectors of one: score the files of each alone, or embed all with one"
            )
    return origins[first]


def origin_in_files(column: str, records: Mapping[str, Any], options: Options = None) -> Origin:
    """What made the vectors in files; where no record says it, their length at least, by the type in the first file.

    Raises
    ------
    DatasetError
        They are not of one model.
    """
    origin = one_origin(column, records)
    path = next(iter(records), None)
    if origin.record is not None or path is None or column not in read_footer(path, options).columns:
        return origin  # that there is no such column is told by the one who reads it
    with open_parquet(path, options) as file:
        kind = file.schema_arrow.field(column).type
    return replace(origin, dim=kind.list_size if pa.types.is_fixed_size_list(kind) else None)


def _model(origin: Origin) -> dict[str, Any] | None:
    """What must be equal: all but the name by which a model was asked for."""
    info = origin.info()
    return None if info is None else {name: value for name, value in info.items() if name != "source"}
