"""The rows beside a tar: which columns they have, where these are from, and the keys of their samples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curator_dask.errors import DatasetError
from curator_dask.fetching.options import FetchOptions
from curator_dask.fetching.values import as_text
from curator_dask.frames.names import CAPTION_COLUMN, ERROR_COLUMN, STATUS_COLUMN, URL_COLUMN
from curator_dask.words import none_of_these

#: Columns that each row has, as img2dataset calls them; behind the key, the URL and the caption, before the table's.
MADE = pa.schema(
    [
        (STATUS_COLUMN, pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
    ]
)
KEY, URL = "key", "url"
#: Column of why an image is as it came though it is too large, where images are made smaller.
LEFT = "image_left"
#: Before the names of columns of the table that a fetch has itself.
PREFIX = "table_"
_ID = re.compile(r"[^./\\\s\x00-\x1f\x7f][^./\\\x00-\x1f\x7f]{0,199}")
_SHOWN = 60


@dataclass(frozen=True)
class Layout:
    """What becomes of a table's columns.

    Attributes
    ----------
    read
        Columns of the table that are read, with their types.
    url, caption, key
        Which of them these are; of the caption and the key None: there is none.
    digests
        By a digest's name, which of them has it.
    others
        Names of the other columns in the table, and in the rows.
    is_smaller
        Whether images are made smaller.
    """

    read: pa.Schema
    url: str
    caption: str | None
    key: str | None
    digests: dict[str, str]
    others: tuple[tuple[str, str], ...]
    is_smaller: bool

    @classmethod
    def of(cls, table: pa.Schema, options: FetchOptions, own: Collection[str] = ()) -> Layout:
        """That of a table; columns that are its `own`, as an output's vectors, are taken only where they are named.

        Raises
        ------
        DatasetError
            It has no such columns.
        """
        given = {
            "--url-column": options.url_column,
            "--caption-column": options.caption_column,
            "--id-column": options.id_column,
            "--sha256-column": options.sha256_column,
            "--md5-column": options.md5_column,
        }
        named = [(option, name) for option, name in given.items() if name is not None]
        named += [("--columns", name) for name in options.columns or ()]
        for option, name in named:
            if name not in table.names:
                raise DatasetError(f"the table: {none_of_these(name, table.names)} ({option})")
        for column in given.values():
            if column is not None:
                texts(table.empty_table(), column)  # says what is wrong with it
        used = [
            options.url_column,
            options.caption_column,
            options.id_column if options.id_column == KEY else None,
        ]
        rest = [name for name in table.names if name not in own]
        others = [name for name in (rest if options.columns is None else options.columns) if name not in used]
        needed = {name for name in given.values() if name is not None} | {*others}
        taken = {KEY, URL, CAPTION_COLUMN, *MADE.names, LEFT, URL_COLUMN, ERROR_COLUMN}
        renamed = []
        for name in dict.fromkeys(others):
            new = name
            while new.lower() in taken:  # also for readers to whom capitals are the same
                new = f"{PREFIX}{new}"
            taken.add(new.lower())
            renamed.append((name, new))
        return cls(
            pa.schema([each for each in table if each.name in needed]),
            options.url_column,
            options.caption_column,
            options.id_column,
            options.digests,
            tuple(renamed),
            options.smaller is not None,
        )

    @property
    def renamed(self) -> dict[str, str]:
        """Columns of the table that are called otherwise in the rows."""
        return {name: new for name, new in self.others if name != new}

    def schema(self) -> pa.Schema:
        """Of the rows beside a tar."""
        captions = [] if self.caption is None else [(CAPTION_COLUMN, pa.string())]
        left = [(LEFT, pa.string())] if self.is_smaller else []
        theirs = [(new, self.read.field(name).type) for name, new in self.others]
        return pa.schema([(KEY, pa.string()), (URL, pa.string()), *captions, *MADE, *left, *theirs])

    def rows(self, table: pa.Table, keys: Sequence[str], made: Mapping[str, Sequence[Any]]) -> pa.Table:
        """The rows beside a tar.

        Parameters
        ----------
        table
            The rows of the table, with the columns of `read`.
        keys
            Of their samples.
        made
            Values of the columns of `MADE`, and of `LEFT`.
        """
        columns: dict[str, Any] = {KEY: pa.array(keys, pa.string()), URL: texts(table, self.url)}
        if self.caption is not None:
            columns[CAPTION_COLUMN] = texts(table, self.caption)
        columns |= {name: pa.array(values, self.schema().field(name).type) for name, values in made.items()}
        columns |= {new: table.column(name) for name, new in self.others}
        return pa.table(columns, schema=self.schema())

    def keys(self, table: pa.Table, name: str, digits: int) -> list[str]:
        """The keys of a shard's samples.

        Parameters
        ----------
        table
            Its rows.
        name
            Of the shard.
        digits
            Of a row's number in it.

        Raises
        ------
        DatasetError
            A value of the column of ids can be no key, or is there twice.
        """
        if self.key is None:
            return [f"{name}{number:0{digits}d}" for number in range(len(table))]
        found = [each or "" for each in texts(table, self.key).to_pylist()]
        bad = next((number for number, each in enumerate(found) if _ID.fullmatch(each) is None), None)
        what = f"shard {name}: column {self.key!r} (--id-column)"
        if bad is not None:
            raise DatasetError(
                f"{what}: {found[bad][:_SHOWN]!r} (its row {bad}) can be no key: expected text of 1 to 200 characters"
                " without dots, slashes or control characters. Without --id-column keys are numbers"
            )
        twice, count = Counter(found).most_common(1)[0] if found else ("", 0)
        if count > 1:
            raise DatasetError(
                f"{what}: {twice[:_SHOWN]!r} is there {count} times, and each sample of a shard has a key of its own."
                " Without --id-column keys are numbers"
            )
        return found


def texts(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column as text.

    Raises
    ------
    DatasetError
        It holds something else.
    """
    column = table.column(name)
    try:
        return as_text(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DatasetError(f"the table: column {name!r}: expected text, found {column.type}") from None
