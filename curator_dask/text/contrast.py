"""Batches of rows that are drawn from a whole output, and put beside it: what a pair is contrasted with.

Each batch is drawn by the rows' own digests, and lies in a file of its own, in the order of these: so it is the same
whatever the files, their order and the workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import DatasetError, OutputError
from curator_dask.frames.columns import list_to_matrix, unit, vectors_to_list
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.models.texts import TextEncoder
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.rows_at import rows_at
from curator_dask.rows.draws import mixed, row_digests
from curator_dask.storage import Options, join
from curator_dask.text.captions import Captions, CaptionVectors
from curator_dask.threads import in_threads
from curator_dask.tokens import tokenize
from curator_dask.words import counted

#: Ends the name of the folder beside an output, and the names of the Parquet files in it, which are none of an output.
SUFFIX, FILE, TEXTS = ".contrast", "{:03d}.batch", "{:03d}.texts"
_GATHERED = 1 << 30  # bytes of vectors that the client holds at a time

_HELD: Remembered[Batch] = POSSESSIONS.add("batches to contrast with", Remembered(1))


@dataclass(frozen=True)
class Batch:
    """Pairs of image and text.

    Attributes
    ----------
    digests
        uint64 (n,): of the rows, ascending (`curator_dask.rows.draws.row_digests`).
    images, texts
        float32 (n, dim), of length 1.
    """

    digests: np.ndarray
    images: np.ndarray
    texts: np.ndarray

    def places(self, digests: np.ndarray) -> np.ndarray:
        """int64: where rows are in this batch, -1 of those that are not."""
        at = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[at] == digests, at, -1)


@dataclass(frozen=True)
class Source:
    """The rows that batches are drawn of.

    Attributes
    ----------
    id_cols
        By path of a file, the column of its keys.
    options
        For fsspec.
    images, texts
        Columns of the images' vectors, and of those of the texts, or of the captions.
    embedded
        Whether `texts` are vectors.
    seed
        Of the draw.
    """

    id_cols: Mapping[str, str]
    options: Options
    images: str
    texts: str
    embedded: bool
    seed: int

    def digests(self, path: str) -> np.ndarray:
        """uint64 (rows,): of the rows of a file.

        Raises
        ------
        OutputError
            It has no keys.
        """
        names, id_col = read_footer(path, self.options).columns, self.id_cols[path]
        if id_col not in names:
            raise OutputError(
                f"{path}: has no column {id_col!r} of keys, by which rows are drawn; it has {names}"
            )
        table = read_rows(path, self.options, [each for each in (id_col, URL_COLUMN) if each in names])
        return row_digests(table, id_col, self.seed)

    def gathered(self, path: str, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
        """Of the rows of a file that are wanted and have both: digests, vectors of images, and those of texts.

        Of captions these are lists of texts.
        """
        digests = self.digests(path)
        rows = np.flatnonzero(np.isin(digests, wanted))
        if not len(rows):
            return digests[:0], np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
        table = rows_at(path, rows, [self.images, self.texts], self.options, beside=False)
        images, good = _directions(path, table, self.images)
        if self.embedded:
            texts, have = _directions(path, table, self.texts)
            return digests[rows][good & have], images[good & have], texts[good & have]
        captions = Captions.of_column(table.column(self.texts), self.texts)
        good &= np.array([each is None for each in captions.lacking], bool)
        lists: list[list[str]] = [[] for _ in rows]
        for row, text in zip(captions.rows.tolist(), captions.texts, strict=True):
            lists[row].append(text)
        return digests[rows][good], images[good], [lists[row] for row in np.flatnonzero(good)]


def _directions(path: str, table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a column, of length 1, and which rows have one that points somewhere."""
    try:
        matrix, valid = list_to_matrix(table.column(column))
    except ValueError as error:
        raise OutputError(
            f"{path}: {column!r}: {error}. Give the column of the vectors (--column)"
        ) from error
    vectors = unit(matrix)
    return vectors, valid & np.isfinite(vectors).all(1) & vectors.any(1)


@dataclass(frozen=True)
class Batches:
    """Batches in files, for workers.

    Attributes
    ----------
    folder, options
        Where the files are.
    digests
        SHA-256 of the content of each.
    sizes
        How many rows each has.
    embedded
        Whether texts are there as vectors; else as captions, which the first worker that needs them embeds.
    """

    folder: str
    options: Options
    digests: tuple[str, ...]
    sizes: tuple[int, ...]
    embedded: bool

    def read(self, number: int, encoder: TextEncoder | None, batch_size: int, model: str) -> Batch:
        """One of them, which this process keeps until it reads another.

        Parameters
        ----------
        number
            Which.
        encoder, batch_size, model
            What embeds captions, how many at a time, and what it is; of no use where these are vectors.

        Raises
        ------
        DatasetError
            It is another than the client has put there.
        """
        key = tokenize(self.digests[number], model)
        return _HELD.get(key, lambda: self._read(number, encoder, batch_size, key))

    def _read(self, number: int, encoder: TextEncoder | None, batch_size: int, key: str) -> Batch:
        path = join(self.folder, FILE.format(number))
        if not read_footer(path, self.options).is_finished(self.digests[number]):
            raise DatasetError(
                f"{path}: is not the batch that the client has put there. All workers must see that folder; if another"
                " run writes there, let it end, and run again"
            )
        with faults_told(path, DatasetError), open_parquet(path, self.options) as file:
            table = file.read()
        digests, images = table.column("digest").to_numpy(), list_to_matrix(table.column("image"))[0]
        if self.embedded:
            return Batch(digests, images, list_to_matrix(table.column("text"))[0])
        assert encoder is not None
        texts = self._embedded(number, table.column("text"), encoder, batch_size, key)
        good = np.isfinite(texts).all(1) & texts.any(1)
        return Batch(digests[good], images[good], texts[good])

    def _embedded(
        self, number: int, column: pa.ChunkedArray, encoder: TextEncoder, batch_size: int, key: str
    ) -> np.ndarray:
        """The vectors of captions, which lie beside them once a worker has made them."""
        path = join(self.folder, TEXTS.format(number))
        if read_footer(path, self.options).is_finished(key):
            with faults_told(path, DatasetError), open_parquet(path, self.options) as file:
                return list_to_matrix(file.read().column("text"))[0]
        captions = Captions.of_column(column, "text")
        made = encoder(captions.texts, batch_size)
        vectors = unit(CaptionVectors(made.vectors, captions.rows, captions.lacking).by_row(False))
        table = pa.table({"text": _fixed(np.nan_to_num(vectors, nan=0, posinf=0, neginf=0))})
        write_table(path, table, FileRecord(key), self.options)
        return list_to_matrix(table.column("text"))[0]


def draw_batches(source: Source, size: int, number: int, folder: str, options: Options) -> Batches:
    """Draw batches of rows that have both vectors, and put them into a folder.

    Parameters
    ----------
    source
        The rows.
    size, number
        Rows of a batch, and how many batches. Where there are not more rows, all are in one batch.
    folder, options
        Where they go.

    Raises
    ------
    OutputError
        No row has both.
    """
    paths, rows = list(source.id_cols), 0
    wanted = size + size // 8 + 64  # some have no vectors
    while True:
        nearest, rows = _drawn(source, paths, wanted, number)
        found = _put(source, paths, nearest, wanted >= rows, size, folder, options)
        if found is not None:
            break
        wanted *= 4
    if not found:
        raise OutputError(
            f"{paths[0]}: no row of {counted(len(paths), 'file')} has a vector in {source.images!r} and"
            f" {'one' if source.embedded else 'a caption'} in {source.texts!r}"
        )
    digests, sizes = zip(*found, strict=True)
    return Batches(folder, options, digests, sizes, source.embedded)


def _drawn(source: Source, paths: Sequence[str], wanted: int, number: int) -> tuple[list[np.ndarray], int]:
    """By batch, the digests of the rows that come first in its order, at most `wanted`; and how many rows there are."""
    every: list[np.ndarray] = [np.zeros(0, np.uint64)] * number
    rows = 0
    for start in range(0, len(paths), 64):  # of many files some at a time
        some = np.concatenate(in_threads(source.digests, paths[start : start + 64]))
        rows += len(some)
        for each in range(number):
            together = np.concatenate([every[each], some])
            if len(together) > wanted:
                together = together[np.argpartition(mixed(together, each), wanted - 1)[:wanted]]
            every[each] = together
    return [np.unique(each) for each in every], rows


def _put(
    source: Source,
    paths: Sequence[str],
    drawn: Sequence[np.ndarray],
    are_all: bool,
    size: int,
    folder: str,
    options: Options,
) -> list[tuple[str, int]] | None:
    """Write the batches, and say what digest and size each has; None where too few of the drawn rows have vectors."""
    done: list[tuple[str, int]] = []
    for number, (rows, images, texts) in enumerate(_gathered(source, paths, drawn)):
        # Of rows that have key and shard in common one.
        rows, first = np.unique(rows, return_index=True)
        if len(rows) < size and not are_all:
            return None
        if not len(rows):
            return []
        order = np.sort(np.argsort(mixed(rows, number), kind="stable")[:size])
        places = first[order]
        columns = {"digest": pa.array(rows[order]), "image": _fixed(images[places])}
        columns["text"] = (
            _fixed(texts[places])
            if source.embedded
            else pa.array([texts[place] for place in places.tolist()], pa.list_(pa.string()))
        )
        digest, path = _digest_of(columns), join(folder, FILE.format(number))
        if not read_footer(path, options).is_finished(digest):
            write_table(path, pa.table(columns), FileRecord(digest), options)
        done.append((digest, len(order)))
        if are_all and len(rows) <= size:
            break  # any other would be the same
    return done


def _gathered(
    source: Source, paths: Sequence[str], drawn: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """What `Source.gathered` has, of each batch over all files; files are read once for some batches."""
    dim = 1024
    while drawn:
        some = max(1, _GATHERED // (8 * dim * max(1, max(map(len, drawn)))))
        wanted = np.unique(np.concatenate(drawn[:some]))
        found = in_threads(partial(source.gathered, wanted=wanted), paths)
        parts = [part for part in found if len(part[0])]
        widths = {matrix.shape[1] for part in parts for matrix in part[1 : 2 + source.embedded]}
        if len(widths) > 1:
            raise OutputError(
                f"{paths[0]}: vectors of {source.images!r} and {source.texts!r} have lengths {sorted(widths)}: expected"
                " those of one model"
            )
        for batch in drawn[:some]:
            inside = [np.flatnonzero(np.isin(part[0], batch)) for part in parts]
            pairs = [*zip(parts, inside, strict=True)]
            if not pairs:
                yield np.zeros(0, np.uint64), np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)
                continue
            texts: Any = [part[2][row] for part, rows in pairs for row in rows.tolist()]
            yield (
                np.concatenate([part[0][rows] for part, rows in pairs]),
                np.concatenate([part[1][rows] for part, rows in pairs]),
                np.concatenate([part[2][rows] for part, rows in pairs]) if source.embedded else texts,
            )
        drawn = drawn[some:]


def _fixed(matrix: np.ndarray) -> pa.Array:
    found = vectors_to_list(matrix, np.ones(len(matrix), bool))
    return found.cast(pa.list_(pa.float32(), matrix.shape[1]))


def _digest_of(columns: Mapping[str, pa.Array]) -> str:
    found = hashlib.sha256()
    for name, column in columns.items():
        found.update(name.encode())
        if pa.types.is_list(column.type):
            for texts in column.to_pylist():
                found.update("\0".join([str(len(texts)), *texts]).encode("utf-8", "surrogatepass"))
        else:
            values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
            found.update(np.ascontiguousarray(values.to_numpy()).data)
    return found.hexdigest()
