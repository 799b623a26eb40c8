"""Tables as text with delimiters that are larger than memory should be: read in pieces, and as `read_table` reads them.

What a column is, all of its values say. So they are read before the pieces are given: a type that a value does not fit
is exchanged for the next of those that pyarrow's own inference tries, until all fit.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.csv

from curator_dask.rows import caption_csv
from curator_dask.rows.caption_csv import EMPTY_IS_NULL, begin, check_kinds, said_of, swallowed
from curator_dask.rows.caption_files import tidy
from curator_dask.rows.key_column import KeyColumn

#: In the order in which pyarrow's inference tries them (cpp/src/arrow/csv/inference_internal.h, Arrow 26).
_KINDS = (
    pa.null(),
    pa.int64(),
    pa.bool_(),
    pa.date32(),
    pa.time32("s"),
    pa.timestamp("s"),
    pa.timestamp("ns"),
    pa.timestamp("s", "UTC"),
    pa.timestamp("ns", "UTC"),
    pa.float64(),
    pa.string(),
    pa.binary(),
)
_MISFIT = re.compile(r"In CSV column #(\d+): CSV conversion error to ")


@dataclass(frozen=True)
class CsvPieces:
    """A CSV or TSV, of which each piece is read when it is asked for.

    Attributes
    ----------
    data
        Its bytes, from the columns' names on: a view of what is mapped.
    delimiter, quoted
        Between fields; and whether double quotes are more than text.
    key
        The column of keys.
    names
        Of all columns; those that have none have one that no column has.
    kinds
        Of all that have a name, by it.
    rows
        How many there are.
    """

    data: memoryview
    delimiter: str
    quoted: bool
    key: KeyColumn
    names: tuple[str, ...] = ()
    kinds: Mapping[str, pa.DataType] = field(default_factory=dict)
    rows: int = 0

    @classmethod
    def of(cls, data: memoryview, key: KeyColumn, is_tsv: bool) -> CsvPieces:
        """Look all of it over.

        Raises
        ------
        ValueError
            As of `read_csv` and `read_tsv`.
        """
        start, delimiter = begin(bytes(data[: caption_csv.HEADER_BYTES]), key)
        data = data[start:]
        wrong = next(swallowed(data, delimiter, strict=is_tsv), None)
        if wrong is not None and not is_tsv:
            raise ValueError(wrong)
        try:
            return cls(data, delimiter, wrong is None, key)._settled()
        except ValueError as error:
            raise ValueError(wrong or str(error)) from error

    @property
    def schema(self) -> pa.Schema:
        """Of the pieces."""
        found: pa.Schema = tidy(pa.schema(list(self.kinds.items())).empty_table()).schema
        return found.remove_metadata()

    def __iter__(self) -> Iterator[pa.Table]:
        """The pieces, with the columns that `read_table` gives."""
        texts = [
            name for name, kind in self.kinds.items() if pa.types.is_string(kind) and name != self.key.name
        ]
        others = [name for name in self.kinds if name not in texts]  # the key at least
        nulls = self._open(texts, **EMPTY_IS_NULL) if texts else _nothing()
        for batch, other in zip(self._open(others), nulls, strict=bool(texts)):
            columns = [(other if name in texts else batch).column(name) for name in self.kinds]
            yield tidy(pa.table(columns, list(self.kinds)))

    def _open(self, columns: Sequence[str], **how: Any) -> pyarrow.csv.CSVStreamingReader:
        kinds = {name: self.kinds[name] for name in columns if name in self.kinds}
        options = pyarrow.csv.ReadOptions(block_size=caption_csv.BLOCK_BYTES)
        if self.names:
            options.column_names, options.skip_rows_after_names = self.names, 1
            how["include_columns"] = columns
        return pyarrow.csv.open_csv(
            pa.BufferReader(pa.py_buffer(self.data)),
            read_options=options,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self.delimiter,
                newlines_in_values=self.quoted,
                quote_char='"' if self.quoted else False,
            ),
            convert_options=pyarrow.csv.ConvertOptions(column_types=kinds, **how),
        )

    def _settled(self) -> CsvPieces:
        """The same with types that all values fit."""
        try:
            names = self._open(()).schema.names
        except pa.ArrowInvalid as error:
            raise ValueError(said_of(error)) from error
        kept = tidy(pa.schema([(name, pa.null()) for name in names]).empty_table()).column_names
        own = tuple(name if name in kept else f"\0{number}" for number, name in enumerate(names))
        kinds: dict[str, pa.DataType] = {name: pa.string() for name in self.key.texts if name in kept}
        while True:
            found = replace(self, names=own, kinds=kinds)
            try:
                reader = found._open(kept)
                kinds = {each.name: each.type for each in reader.schema}
                rows = sum(batch.num_rows for batch in reader)
            except pa.ArrowInvalid as error:
                misfit = _MISFIT.match(str(error))
                name = own[int(misfit[1])] if misfit is not None else None
                if name is None or name in self.key.texts or kinds.get(name) not in _KINDS[:-1]:
                    raise ValueError(said_of(error)) from error
                kinds[name] = _KINDS[_KINDS.index(kinds[name]) + 1]
            else:
                check_kinds(reader.schema)
                return replace(found, kinds=kinds, rows=rows)


def _nothing() -> Iterator[None]:
    while True:
        yield None


def text_lines(file: Any, size: int) -> Iterator[list[str]]:
    r"""The lines of a text, some at a time, as ``str.splitlines`` tells them apart, without those of white space.

    Parameters
    ----------
    file
        Open for reading bytes. What is no UTF-8 becomes ``\ufffd``.
    size
        Bytes that are read at a time.
    """
    text, decode = "", codecs.getincrementaldecoder("utf-8-sig")("replace").decode
    while True:
        data = file.read(size)
        text += decode(data, final=not data)
        lines = text.splitlines(keepends=True)
        text = "" if not data else "".join(lines[-1:])  # its end, or another half of it, may be yet to come
        yield [line for each in (lines if not data else lines[:-1]) if (line := each.splitlines()[0]).strip()]
        if not data:
            return
