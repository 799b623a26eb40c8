"""Lists of concepts: what users give, and what workers hold of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from curator_dask.cache import POSSESSIONS, SpecCache
from curator_dask.errors import DatasetError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet, read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.rows.caption_files import TABLES
from curator_dask.rows.user_tables import UserTable, faults
from curator_dask.storage import Options, is_remote, looked_for, read_bytes
from curator_dask.text.contained import RULE, Matcher, spaced

#: The column of a table that has the concepts, unless another is named.
CONCEPT_COLUMN = "concept"


@dataclass(frozen=True)
class ConceptList:
    """Concepts, each once, in the order in which they were given.

    Attributes
    ----------
    texts
        As they were written; of several that are the same to the rule the first.
    words
        What is looked for (`curator_dask.text.contained.spaced`).
    match_case
        Whether case counts.
    repeated, blank
        How many more were given that are the same as one before, or have no word.
    """

    texts: list[str]
    words: list[bytes]
    match_case: bool
    repeated: int
    blank: int

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        column: str = CONCEPT_COLUMN,
        match_case: bool = False,
        options: Options = None,
    ) -> ConceptList:
        """The concepts of a file.

        Parameters
        ----------
        path
            ``.txt`` with one a line, ``.json`` with a list of texts, or a table: on this machine, or a URL.
        column
            Of a table.
        match_case
            Whether case counts.
        options
            For fsspec, where `path` is a URL.

        Raises
        ------
        DatasetError
            There is no such file, it cannot be read, or it has no concept.
        """
        given = _texts_in(os.fsdecode(path), column, options)
        for text in given:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DatasetError(
                    f"{os.fsdecode(path)}: {text!r} is no text: half of a UTF-16 pair stands alone in it"
                ) from None
        each = [spaced([text], match_case) for text in given]
        first: dict[bytes, str] = {}
        for words, text in zip(each, given, strict=True):
            if words.strip():
                first.setdefault(words, " ".join(text.split()))
        if not first:
            raise DatasetError(f"{os.fsdecode(path)}: there is no concept in it. Give one a line")
        blank = sum(not words.strip() for words in each)
        return cls([*first.values()], [*first], match_case, len(each) - blank - len(first), blank)

    @cached_property
    def digest(self) -> str:
        """Of what is looked for, and how."""
        said = json.dumps([RULE, self.match_case, self.texts]).encode()
        return hashlib.sha256(said).hexdigest()

    def save(self, path: str, options: Options) -> ConceptFile:
        """Have them where workers read them."""
        if not read_footer(path, options).is_finished(self.digest):
            columns = {
                "concept": pa.array(self.texts, pa.large_string()),
                "words": pa.array(self.words, pa.large_binary()),
            }
            write_table(path, pa.table(columns), FileRecord(self.digest), options)
        return ConceptFile(path, options, self.digest, self.match_case)


@dataclass(frozen=True)
class HeldConcepts:
    """Concepts as a worker holds them.

    Attributes
    ----------
    texts
        large_string (concepts,).
    matcher
        Finds them.
    """

    texts: pa.Array
    matcher: Matcher


#: Those of this process.
_HELD: SpecCache[HeldConcepts] = POSSESSIONS.add("concepts", SpecCache(capacity=1))


@dataclass(frozen=True)
class ConceptFile:
    """Concepts that were saved for workers.

    Attributes
    ----------
    path, options
        Where.
    digest, match_case
        See `ConceptList`.
    """

    path: str
    options: Options
    digest: str
    match_case: bool

    @contextmanager
    def held(self) -> Iterator[HeldConcepts]:
        """Them, in memory; they stay there.

        Raises
        ------
        DatasetError
            They are others by now.
        """
        with _HELD.lease(self.digest, self._build) as held:
            yield held

    def _build(self) -> HeldConcepts:
        with faults_told(self.path, DatasetError), open_parquet(self.path, self.options) as file:
            table = file.read()
        record = FileRecord.parse(table.schema.metadata)
        if record is None or record.fingerprint != self.digest:
            raise DatasetError(
                f"{self.path}: has other concepts than the client has put there. All workers must see that folder; if"
                " another run writes there, give this one another (counts=, --counts)"
            )
        words = table.column("words").to_pylist()
        return HeldConcepts(table.column("concept").combine_chunks(), Matcher(words, self.match_case))


def _texts_in(path: str, column: str, options: Options) -> list[str]:
    suffix = Path(path).suffix.lower()
    if suffix in (".txt", ".json"):
        if not is_remote(path) and not Path(path).is_file():
            raise DatasetError(
                f"{path}: there is no such file{looked_for(path)}. Give concepts: one a line, a JSON list, or a"
                " table"
            )
        with faults(path):
            text = read_bytes(path, options if is_remote(path) else None).decode("utf-8-sig")
            if suffix == ".txt":
                return text.removesuffix("\n").split("\n")
            found = json.loads(text)
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise DatasetError(f'{path}: expected a list of texts, such as ["cat", "black cat"]')
        return found
    if suffix not in TABLES and Path(path).is_file():
        raise DatasetError(f"{path}: expected concepts as .txt, .json, or a table: {', '.join(TABLES)}")
    table = UserTable.find(path, column, options, hint="Give the name of the concepts' (--concept-column)")
    texts, _ = table.keys()
    return [text or "" for text in texts.to_pylist()]
