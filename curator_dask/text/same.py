"""`SameCaptions`: how many rows of an output have the very same caption.

A caption that stands beside thousands of images is no caption of any: a shop's name, "image not found". What comes
again can be known of all rows together alone, so it is counted before: each caption by a digest of 64 bits. Those that
come several times are put beside the output, for the workers.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import ConfigError, DatasetError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import CAPTION_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer, write_table
from curator_dask.frames.record import BALANCE, TEXTS, FileRecord
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work
from curator_dask.storage import Options, is_remote, join
from curator_dask.text.captions import Captions
from curator_dask.threads import in_threads

#: Ends the name of the folder beside an output, and the name of the Parquet file in it. That has another ending, for an
#: output's files may all be in one folder of it, and what ends so there is taken for one of them.
SUFFIX, REPEATED = ".captions", "repeated.counts"

_BATCH = 1 << 16  # rows that are read at once
_FILES = 64  # that are read together
_PENDING = 1 << 22  # digests that are not sorted before there are so many, or as many as are sorted
#: Rows that one reading counts: 16 bytes each, and as many again while they are sorted.
_ROWS = 100_000_000

_KNOWN: Remembered[Repeated] = POSSESSIONS.add("repeated captions", Remembered(2))


@dataclass(frozen=True)
class Repeated:
    """Captions that come several times.

    Attributes
    ----------
    digests
        uint64 (n,): of each, ascending.
    counts
        int64 (n,): how many rows have it.
    """

    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def sum_of(cls, parts: Iterable[Repeated]) -> Repeated:
        """What is in several, each caption once."""
        every = [*parts]
        if not every:
            return cls()
        digests, places = np.unique(np.concatenate([each.digests for each in every]), return_inverse=True)
        counts = np.zeros(len(digests), np.int64)
        np.add.at(counts, places, np.concatenate([each.counts for each in every]))
        return cls(digests, counts)

    @property
    def digest(self) -> str:
        """SHA-256 of all."""
        found = hashlib.sha256(self.digests.astype("<u8").tobytes())
        found.update(self.counts.astype("<i8").tobytes())
        return found.hexdigest()

    def of(self, digests: np.ndarray) -> np.ndarray:
        """int64: how many rows have each of some captions; 1 of those that are not among these."""
        if not len(self.digests):
            return np.ones(len(digests), np.int64)
        places = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[places] == digests, self.counts[places], 1)


def caption_digests(captions: Captions) -> tuple[np.ndarray, np.ndarray]:
    """uint64 (n,) of the captions of some rows, and int64 (n,), whose each is: of several the first."""
    rows, first = np.unique(captions.rows, return_index=True)
    texts = (captions.texts[number].encode("utf-8", "surrogatepass") for number in first)
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8"), rows


class SameCaptions:
    """Adds to the files of an output how many rows of all of them have the very same caption.

    The column is int64, 1 where no other row has the caption, and null where there is none. Of several captions of a
    row it is the first that is not blank. Where files come or go the counts of all rows may be others; the same call
    again makes them anew. It goes to `curator_dask.image.classifiers.score_output`.

    Parameters
    ----------
    text
        Column of the captions.
    prefix
        Before the column's name, ``same_captions``.

    Raises
    ------
    ConfigError
        The column would take the captions' place.
    """

    #: Of no part of a run: its files' counts are of others' rows, too.
    of_all_rows = True

    def __init__(self, text: str = CAPTION_COLUMN, *, prefix: str = "text_") -> None:
        self.text, self.prefix = text, prefix
        if self.pred_column == text:
            raise ConfigError(f"prefix={prefix!r}: the column {text!r} of the captions would be lost")

    @property
    def pred_column(self) -> str:
        """Of the counts."""
        return f"{self.prefix}same_captions"

    def look(self) -> None:
        """Nothing is to be seen before the rows are there."""

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> CountSame:
        """The step for files, whose captions are counted; `options` are for fsspec.

        Raises
        ------
        ShardError
            A file cannot be read: without it the counts would be wrong.
        """
        return self.of_files_to(records, options, shared_folder(list(records)), options)

    def of_files_to(
        self, records: Mapping[str, FileRecord | None], options: Options, folder: str, folder_options: Options
    ) -> CountSame:
        """The same for files that go to a folder, beside which the counts are put; with its own options for fsspec."""
        paths = list(records)
        rows = sum(in_threads(lambda path: read_footer(path, options).rows, paths))
        found = count_captions(paths, self.text, options, -(-rows // _ROWS) or 1)
        path = join(beside(folder, SUFFIX), REPEATED)
        if not read_footer(path, folder_options).is_finished(found.digest):
            table = pa.table({"digest": found.digests, "rows": found.counts})
            write_table(path, table, FileRecord(found.digest), folder_options)
        return CountSame(path, folder_options, found.digest, self.text, self.pred_column)


def shared_folder(paths: Sequence[str]) -> str:
    """The folder that files have in common."""
    parts = [path.split("/")[:-1] for path in paths]
    shared = itertools.takewhile(lambda names: len({*names}) == 1, zip(*parts, strict=False))
    return "/".join(names[0] for names in shared)


def beside(folder: str, suffix: str) -> str:
    """The folder beside another for what is known of all its rows.

    Raises
    ------
    ConfigError
        It is a bucket.
    """
    if is_remote(folder) and "/" not in folder.partition("://")[2]:
        raise ConfigError(f"{folder}: nothing can be beside a bucket, where counts go: use a folder in it")
    return f"{folder}{suffix}"


def count_captions(paths: Sequence[str], column: str, options: Options, readings: int = 1) -> Repeated:
    """The captions that come several times in files.

    Parameters
    ----------
    paths, options
        Of the files.
    column
        Of the captions; files that have none have no captions.
    readings
        How often all is read; each counts a share of the digests, so that memory is bounded.
    """
    ends = [(number << 64) // readings for number in range(readings + 1)]
    found = []
    for low, high in itertools.pairwise(ends):
        count = partial(_count, column=column, options=options, low=low, high=high)
        total, pending = Repeated(), list[Repeated]()
        for start in range(0, len(paths), _FILES):
            pending += in_threads(count, paths[start : start + _FILES])
            if sum(len(each.digests) for each in pending) > max(_PENDING, len(total.digests)):
                total, pending = Repeated.sum_of([total, *pending]), []
        total = Repeated.sum_of([total, *pending])
        several = total.counts > 1
        found.append(Repeated(total.digests[several], total.counts[several]))
    return Repeated.sum_of(found)


def _count(path: str, column: str, options: Options, low: int, high: int) -> Repeated:
    return Repeated.sum_of(_batches(path, column, options, low, high))


def _batches(path: str, column: str, options: Options, low: int, high: int) -> Iterator[Repeated]:
    with faults_told(path, ShardError), open_parquet(path, options) as file:
        if column not in file.schema_arrow.names:
            return
        for batch in file.iter_batches(_BATCH, columns=[column]):
            try:
                captions = Captions.of_column(batch.column(0), column)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            digests, _ = caption_digests(captions)
            mine = (digests >= np.uint64(low)) & (digests <= np.uint64(high - 1))
            yield Repeated(*np.unique(digests[mine], return_counts=True))


@dataclass(frozen=True)
class CountSame(RowStep):
    """The step that says of rows how many have their caption.

    Attributes
    ----------
    path, options
        Where the captions are that come several times.
    digest
        Of these and their counts.
    text_column, column
        Of the captions, and of the counts.
    """

    path: str
    options: Options
    digest: str
    text_column: str
    column: str
    given_up: str | None = None

    label = "same captions"
    may_kill = False
    needs = frozenset({"rows"})

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The counts."""
        return {self.column: pa.int64()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """The counts by their content."""
        return ("same captions", 1, self.text_column, self.column, self.digest)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """What the record of a file says of the column."""
        recipe = fingerprint({"recipe": self.recipe})
        return {
            self.column: {"head": self.label, TEXTS: self.text_column, BALANCE: "captions", "recipe": recipe}
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Have the counts in memory; of vectors it makes none."""
        self._counts()
        return {}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Find the captions of some rows."""
        counts = np.zeros(len(rows), np.int64)
        if len(rows):
            digests, places = caption_digests(Captions.of(rows, self.text_column))
            counts[places] = self._counts().of(digests)
        yield Known(Made({self.column: pa.array(counts, mask=counts == 0)}))

    def _counts(self) -> Repeated:
        return _KNOWN.get(self.digest, self._read)

    def _read(self) -> Repeated:
        with faults_told(self.path, DatasetError), open_parquet(self.path, self.options) as file:
            table = file.read()
        found = Repeated(*(table.column(name).to_numpy() for name in ("digest", "rows")))
        if found.digest != self.digest:
            raise DatasetError(
                f"{self.path}: has other counts than the client has put there. All workers must see that folder; if"
                " another run writes there, let it end, and run again"
            )
        return found
