"""How many captions contain each concept: counted a file a task, and remembered of each file.

Beside an output, in the folder ``OUTPUT.balance``, lies a small file for each of its files. It says which state of that
it was counted of, so a file that is new or has changed costs only itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import DatasetError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet, read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.writing import Output
from curator_dask.runs.reports import report_frame
from curator_dask.storage import Options, join
from curator_dask.text.captions import Captions
from curator_dask.text.concepts import ConceptFile, HeldConcepts
from curator_dask.text.contained import once
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp

#: Ends the name of the folder beside an output, and names of what is in it.
BALANCE_SUFFIX = ".balance"
LIST, COUNTS, FILES = "list.parquet", "concepts.parquet", "files"
#: What is counted of rows: all, those without a caption, those whose captions contain no concept.
_ROWS = ("rows", "without_caption", "unmatched")

_KNOWN: Remembered[np.ndarray] = POSSESSIONS.add("counts of concepts", Remembered(2))


@dataclass(frozen=True)
class Found:
    """The concepts of some rows.

    Attributes
    ----------
    rows, concepts
        int64 (n,): numbers of rows and of the concepts that their captions contain, each pair once, in this order.
    captions
        Of the rows.
    """

    rows: np.ndarray
    concepts: np.ndarray
    captions: Captions

    @classmethod
    def of(cls, captions: Captions, held: HeldConcepts) -> Found:
        """Those of the rows of a file: of several captions a row, what any of them contains."""
        which, concepts = held.matcher.find(captions.texts)
        rows = captions.rows[which]
        if len(captions.texts) > len(once(captions.rows)):
            pairs = once(rows << 32 | concepts)
            rows, concepts = pairs >> 32, pairs & 0xFFFFFFFF
        return cls(rows, concepts, captions)


@dataclass(frozen=True)
class Counts:
    """What was counted over all files.

    Attributes
    ----------
    concepts
        int64 (concepts,): of how many rows the captions contain each.
    rows, without_caption, unmatched
        All rows, and of these those without a caption, and those with one that contains no concept.
    """

    concepts: np.ndarray
    rows: int
    without_caption: int
    unmatched: int

    @property
    def digest(self) -> str:
        """Of how many rows contain each."""
        return digest_of(self.concepts)


def digest_of(counts: np.ndarray) -> str:
    """SHA-256 of int64 numbers."""
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class CountFile:
    """Counts that were saved for workers, and for users: concepts, and how many rows contain each.

    Attributes
    ----------
    path, options
        Where.
    digest
        Of the counts.
    """

    path: str
    options: Options
    digest: str

    def read(self) -> np.ndarray:
        """int64 (concepts,).

        Raises
        ------
        DatasetError
            They are others by now.
        """
        return _KNOWN.get(self.digest, self._read)

    def _read(self) -> np.ndarray:
        with faults_told(self.path, DatasetError), open_parquet(self.path, self.options) as file:
            found: np.ndarray = file.read(columns=["count"]).column(0).to_numpy()
        if digest_of(found) != self.digest:
            raise DatasetError(
                f"{self.path}: has other counts than the client has put there. All workers must see that folder; if"
                " another run writes there, give this one another (counts=, --counts)"
            )
        return found


@dataclass(frozen=True)
class Counting:
    """Counts the concepts of a file.

    Attributes
    ----------
    concepts
        Which.
    source
        Where the files are.
    place, options
        Folder of what is remembered.
    text_column
        Of the captions.
    given_up
        The file kills workers: it is not counted, for this reason.
    """

    concepts: ConceptFile
    source: Output
    place: str
    options: Options
    text_column: str
    given_up: str | None = None

    def give_up(self, reason: str) -> Counting:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def path(self, name: str) -> str:
        """Where what is known of a file is remembered."""
        return join(self.place, f"{FILES}/{name}")

    def mark(self, name: str) -> str:
        """What tells which state of a file was counted, and how."""
        state = vars(stamp(join(self.source.folder, name), self.source.options))
        return fingerprint({"concepts": self.concepts.digest, "text": self.text_column, "file": state})

    def captions(self, name: str) -> Captions:
        """Of the rows of a file."""
        path = join(self.source.folder, name)
        table = read_rows(path, self.source.options, [self.text_column])
        return Captions.of_column(table.column(0), self.text_column)

    def __call__(self, name: str) -> pd.DataFrame:
        """Count one file; returns a report."""
        if self.given_up is not None:
            raise ShardError(f"{join(self.source.folder, name)}: {self.given_up}")
        mark, captions = self.mark(name), self.captions(name)
        with self.concepts.held() as held:
            found = Found.of(captions, held)
        numbers, counts = np.unique(found.concepts, return_counts=True)
        without = sum(each is not None for each in captions.lacking)
        rows = len(captions.lacking)
        said = {
            **dict(zip(_ROWS, (rows, without, rows - without - len(once(found.rows))), strict=True)),
            "digest": digest_of(np.concatenate([numbers, counts])),
        }
        table = pa.table({"number": numbers.astype(np.int32), "count": counts.astype(np.int64)})
        write_table(self.path(name), table, FileRecord(mark, report=said), self.options)
        return report_frame(plain_report(name, rows))

    @contextmanager
    def renewing(self, name: str) -> Iterator[None]:
        """Within the block the file is written anew with the same captions: what is known of it stays known."""
        path, before = self.path(name), self.mark(name)
        known = read_footer(path, self.options).is_finished(before)
        yield
        if known and (now := self.mark(name)) != before:
            table, said = self._remembered(name)
            write_table(path, table, FileRecord(now, report=said), self.options)

    def todo(self, names: Sequence[str]) -> list[str]:
        """Names of the files of whose state nothing is known."""
        known = in_threads(
            lambda name: read_footer(self.path(name), self.options).is_finished(self.mark(name)), names
        )
        return [name for name, finished in zip(names, known, strict=True) if not finished]

    def total(self, names: Sequence[str], texts: Sequence[str]) -> tuple[Counts, CountFile]:
        """What was counted over all files, which is saved for workers, too."""
        path = join(self.place, COUNTS)
        footers = in_threads(lambda name: read_footer(self.path(name), self.options), names)
        every = fingerprint(
            {
                "concepts": self.concepts.digest,
                # Not the states of the files: those are others once they have their columns.
                "files": [footer.record.report if footer.record else None for footer in footers],
            }
        )
        if read_footer(path, self.options).is_finished(every):
            with faults_told(path), open_parquet(path, self.options) as file:
                table = file.read()
            record = FileRecord.parse(table.schema.metadata)
            counts = Counts(table.column("count").to_numpy(), **dict((record and record.report) or {}))
            return counts, CountFile(path, self.options, counts.digest)
        sums, rows = np.zeros(len(texts), np.int64), dict.fromkeys(_ROWS, 0)
        for start in range(0, len(names), 64):  # of many files some at a time
            for table, said in in_threads(self._remembered, names[start : start + 64]):
                sums[table.column("number").to_numpy()] += table.column("count").to_numpy()
                rows = {each: count + said[each] for each, count in rows.items()}
        counts = Counts(sums, **rows)
        table = pa.table({"concept": pa.array(texts, pa.large_string()), "count": sums})
        write_table(path, table, FileRecord(every, report=rows), self.options)
        return counts, CountFile(path, self.options, counts.digest)

    def _remembered(self, name: str) -> tuple[pa.Table, dict[str, Any]]:
        path = self.path(name)
        with faults_told(path), open_parquet(path, self.options) as file:
            table = file.read()
        record = FileRecord.parse(table.schema.metadata)
        return table, dict((record and record.report) or {})


def plain_report(name: str, rows: int, **more: Any) -> dict[str, Any]:
    """The report of a file of which rows are looked at."""
    counts = {"failed": 0, "dropped": 0, "reasons": {}, "examples": {}}
    return {"name": name, "rows": rows, **counts, **more}
