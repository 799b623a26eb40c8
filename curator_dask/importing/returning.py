"""`return_vectors`: rows whose images were fetched get the vectors by which they were chosen; none is made anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cluster.setup import OpenWorkers
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import EMBEDDING_TYPE, list_to_matrix, vectors_to_list
from curator_dask.frames.names import ERROR_COLUMN, STATUS_COLUMN
from curator_dask.frames.parquet import whole_footers
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.importing.finding import MOST_ROWS, Index, rows_of
from curator_dask.outputs.given import given_files
from curator_dask.outputs.placing import locate
from curator_dask.rows.ids import id_texts
from curator_dask.rows.reasons import MISSING, NO_VECTOR, reason_for, reasons_in
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Made, Rows, Work
from curator_dask.runs.summary import SaveSummary
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import none_of_these

_SHOWN = 60  # characters of a value that an error shows


def return_vectors(
    path: str | os.PathLike[str],
    shards: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    on: str,
    id_col: str = "key",
    overwrite: bool = False,
    storage_options: Options = None,
    shard_storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> SaveSummary:
    """Make an output of shards, with the vectors that an output without their images has of the same rows.

    A row whose image was not fetched has none, nor one that is not found, or several times: ``image_error`` says why.
    What the record says of the vectors, a claim among it, goes with them.

    Parameters
    ----------
    path
        The output with the vectors, as of `import_vectors` or a filter of it.
    shards
        Tars with Parquet beside them, as of ``fetch``, or any other dataset.
    output
        Where the Parquet files go, one a shard.
    on
        Column of the rows, and behind ``=`` that of the output where it is called otherwise: ``"uid"``, ``"key=uid"``.
        Values match by their text.
    id_col
        Column of the keys of the shards' rows.
    overwrite
        Replace files in `output` that something else has made.
    storage_options, shard_storage_options, output_storage_options
        For fsspec, where `path`, `shards` and `output` are URLs; without the others the first.
    workers
        Opens the cluster to work on; else it is the one that is there.

    Raises
    ------
    ConfigError
        There are no such columns.
    DatasetError
        There are no shards, or the output has vectors of several models.
    OutputError
        There are no vectors, or something would be replaced.
    """
    column, _, theirs = on.partition("=")
    folder = locate(os.fspath(path), storage_options)
    options = storage_options if shard_storage_options is None else shard_storage_options
    target_options = storage_options if output_storage_options is None else output_storage_options
    dataset = ImageTextPairDataset.from_webdataset(os.fspath(shards), id_col, storage_options=options)
    names = list(dataset.metadata.columns)
    if column not in names:
        raise ConfigError(f"on={on!r} (--on): the shards' rows: {none_of_these(column, names)}")
    step = FoundVectors.of(folder, column, theirs or column, storage_options)
    with workers():
        return dataset.apply(step).save_metadata(output, overwrite=overwrite, storage_options=target_options)


@dataclass(frozen=True)
class FoundVectors(RowStep):
    """The step that gives rows the vectors of others that have the same value in a column.

    Attributes
    ----------
    files, options
        Of the output that has them; for fsspec.
    on, theirs
        The rows' column, and the output's.
    made
        JSON of what its records say, by column of vectors.
    token
        Of the states of the files.
    given_up
        See `RowStep`.
    """

    files: tuple[str, ...]
    options: Options
    on: str
    theirs: str
    made: str
    token: str
    given_up: str | None = None

    needs = frozenset({"rows"})

    @classmethod
    def of(cls, folder: str, on: str, theirs: str, options: Options) -> FoundVectors:
        """That of an output."""
        files = [join(folder, name) for name in given_files(folder, options)]
        footers = whole_footers(files, options)
        records = {file: footer.record for file, footer in footers.items()}
        names = list(dict.fromkeys(name for each in records.values() if each for name in each.embeddings))
        if not names:
            raise OutputError(
                f"{folder}: its files do not say which columns are vectors: import them first, and give that output"
            )
        for file, footer in footers.items():
            if lacking := [name for name in (theirs, *names) if name not in footer.columns]:
                raise ConfigError(f"{file}: {none_of_these(lacking[0], footer.columns)} (--on)")
        made = {name: one_origin(name, records).info() for name in names}
        states = in_threads(lambda file: vars(stamp(file, options)), files)
        token = fingerprint({"files": [name.removeprefix(folder) for name in files], "states": states})
        return cls(tuple(files), options, on, theirs, json.dumps(made, sort_keys=True), token)

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"vectors by {self.theirs}"

    @property
    def names(self) -> list[str]:
        """Of the columns of vectors."""
        return list(json.loads(self.made))

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """The vectors, and why there is none."""
        return {**dict.fromkeys(self.names, EMBEDDING_TYPE), ERROR_COLUMN: pa.string()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Which vectors, and by what they are found."""
        return ("found", 1, self.token, self.on, self.theirs)

    def describe(self) -> dict[str, dict[str, Any]]:
        """What their records say: no model is loaded."""
        found: dict[str, dict[str, Any]] = json.loads(self.made)
        return found

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the index ready."""
        yield _Finding(self, rows)


class _Finding(Work):
    """The vectors of the rows of one partition."""

    def __init__(self, step: FoundVectors, rows: Rows) -> None:
        self._step, self._rows = step, rows

    def finish(self) -> Made:
        """The vectors, null where there is a reason."""
        step, count = self._step, len(self._rows)
        if step.given_up is not None or not count:
            nulls = {name: pa.nulls(count, EMBEDDING_TYPE) for name in step.names}
            return Made(nulls, {name: [step.given_up] * count for name in step.names})
        dims = {name: int(info["dim"]) for name, info in step.describe().items()}
        matrices = {name: np.zeros((count, dim), np.float32) for name, dim in dims.items()}
        reasons: dict[str, list[str | None]] = {name: self._not_fetched() for name in dims}
        texts = pa.array(id_texts(self._rows.column(step.on)), pa.string())
        matches = np.zeros(count, np.int64)
        index = Index.of(step.files, step.theirs, step.options, step.token)
        at, files, places = index.candidates(texts)
        for number in np.unique(files).tolist():
            own, where = at[files == number], places[files == number]
            wanted, back = np.unique(where, return_inverse=True)
            table = rows_of(
                step.files[number], wanted, [step.theirs, *dims, ERROR_COLUMN], step.options
            ).take(pa.array(back))
            asked = texts.take(pa.array(own)).to_pylist()
            has = id_texts(table.column(step.theirs).combine_chunks())
            # Others may have the same digest.
            same = np.array([one == other for one, other in zip(has, asked, strict=True)], bool)
            own, table = own[same], table.filter(pa.array(same))
            np.add.at(matches, own, 1)
            self._put(own, table, matrices, reasons)
        for said in reasons.values():
            for row in np.flatnonzero(matches != 1).tolist():
                said[row] = said[row] or self._why(texts[row].as_py(), int(matches[row]))
        return Made(
            {
                name: vectors_to_list(matrix, np.array([why is None for why in reasons[name]], bool))
                for name, matrix in matrices.items()
            },
            reasons,
        )

    def _put(
        self,
        own: np.ndarray,
        table: pa.Table,
        matrices: Mapping[str, np.ndarray],
        reasons: Mapping[str, list[str | None]],
    ) -> None:
        errors = (
            table.column(ERROR_COLUMN).to_pylist()
            if ERROR_COLUMN in table.column_names
            else [None] * len(own)
        )
        for name, matrix in matrices.items():
            vectors, valid = list_to_matrix(table.column(name), matrix.shape[1])
            matrix[own[valid]] = vectors[valid]
            for place in np.flatnonzero(~valid).tolist():
                why = (
                    reason_for(name, reasons_in(errors[place]))
                    or f"{NO_VECTOR}: it is null among the vectors"
                )
                row = int(own[place])
                reasons[name][row] = reasons[name][row] or why

    def _why(self, value: str | None, matches: int) -> str:
        step = self._step
        if value is None:
            return f"{NO_VECTOR}: {step.on} is null"
        shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
        number = f"{matches} or more" if matches >= MOST_ROWS else f"{matches}"
        how = f"stands in {number} rows of the vectors" if matches else "is in no row of the vectors"
        return f"{NO_VECTOR}: {step.on} {shown!r} {how}"

    def _not_fetched(self) -> list[str | None]:
        """Why rows have no image, by what a fetch says of them."""
        if STATUS_COLUMN not in self._rows.names:
            return [None] * len(self._rows)
        said = self._rows.column(STATUS_COLUMN).to_pylist()
        return [
            f"{MISSING}: no image was fetched ({each})"
            if isinstance(each, str) and each.startswith("failed")
            else None
            for each in said
        ]
