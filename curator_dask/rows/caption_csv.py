"""Tables as text with delimiters: as spreadsheets of all countries write it, and without any quoting."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from curator_dask.rows.key_column import FILES, KeyColumn
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS

_DELIMITERS = ",;\t|"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BLOCK_BYTES = 1 << 24  # a row must fit into one
HEADER_BYTES = 1 << 16  # in which the columns' names are
_SHOWN = 60  # characters that an error gives
_SEPARATOR = re.compile(rb"sep=([\t !#-~])[\r\n]+", re.IGNORECASE)  # Excel's own first line
_SUFFIX = rb"\.(?:" + "|".join(sorted(IMAGE_EXTENSIONS)).encode() + rb")"
EMPTY_IS_NULL = {"null_values": [""], "strings_can_be_null": True, "quoted_strings_can_be_null": False}
_TO_DO = (
    "Close the quotes (a quote within quotes is written twice), or save the table as Parquet or JSON Lines, which need"
    " none"
)


def read_csv(data: bytes, key: KeyColumn = FILES) -> pa.Table:
    """A CSV whose keys and captions are text, also where they look like numbers; other columns are what they look like.

    A cell with nothing in it is null; ``""`` is text that is empty, in columns of text.

    Raises
    ------
    ValueError
        It cannot be read, or a double quote that is not closed would give captions to other images.
    """
    data, delimiter = _start(data, key)
    if wrong := next(swallowed(data, delimiter), None):
        raise ValueError(wrong)
    return _table(data, delimiter, key, quoted=True)


def read_tsv(data: bytes, key: KeyColumn = FILES) -> pa.Table:
    """As `read_csv`; but quotes that do not balance are text there, as in files whose writer knows no quoting."""
    data, delimiter = _start(data, key)
    wrong = next(swallowed(data, delimiter, strict=True), None)
    try:
        return _table(data, delimiter, key, quoted=wrong is None)
    except ValueError as error:
        raise ValueError(wrong or str(error)) from error


def _table(data: bytes, delimiter: str, key: KeyColumn, quoted: bool) -> pa.Table:
    def read(texts: Iterable[str], **how: Any) -> pa.Table:
        return pyarrow.csv.read_csv(
            io.BytesIO(data),
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=quoted, quote_char='"' if quoted else False
            ),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()), **how),
        )

    try:
        table = read(key.texts)
    except pa.ArrowInvalid as error:
        raise ValueError(said_of(error)) from error
    check_kinds(table.schema)
    texts = [
        name
        for name, count in Counter(table.column_names).items()
        if name != key.name and count == 1 and _has_empty(table.column(name))
    ]
    # Again, as the options that make an empty cell of text null change what other columns look like: there NA is null,
    # while a caption or a label may be that word.
    if not texts:
        return table
    nulls = read(texts, include_columns=texts, **EMPTY_IS_NULL)
    for name in texts:
        table = table.set_column(table.column_names.index(name), name, nulls.column(name))
    return table


def said_of(error: pa.ArrowInvalid) -> str:
    """What is wrong with a table that pyarrow cannot read."""
    hint = (
        ". Captions with commas or line ends stand in double quotes" if "columns, got" in str(error) else ""
    )
    if "Empty CSV" in str(error):
        return "it has no rows"
    if "straddling" in str(error):
        return f"a row has more than {BLOCK_BYTES >> 20} MiB, or a quote is not closed"
    hint = ". Save it as UTF-8" if "invalid UTF8" in str(error) else hint
    return f"{error}{hint}"


def check_kinds(schema: pa.Schema) -> None:
    """Raise ValueError where a column is neither text nor what text may look like."""
    if binary := [each.name for each in schema if pa.types.is_binary(each.type)]:
        raise ValueError(f"columns {binary} are not UTF-8: save it as that")


def _has_empty(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) and bool(pc.any(pc.equal(column, "")).as_py())


def _start(data: bytes, key: KeyColumn) -> tuple[bytes, str]:
    """What begins with the columns' names, and what stands between them."""
    start, delimiter = begin(data, key)
    return data[start:], delimiter


def begin(data: bytes, key: KeyColumn) -> tuple[int, str]:
    """Where the columns' names begin, and what stands between them.

    That is a comma, or what spreadsheets write where that is in numbers.

    Raises
    ------
    ValueError
        There are none, or the key is not among them.
    """
    size = len(data)
    if data.startswith(_UTF_16):
        raise ValueError("it is UTF-16: save it as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n")
    given = _SEPARATOR.match(data)
    data = data if given is None else data[given.end() :]
    if not data:
        raise ValueError("it is empty")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    head = decoder.decode(data[:HEADER_BYTES])  # which may end within a letter
    first = io.StringIO(head, newline=None).readline()
    if "\0" in first or "\ufffd" in first:
        raise ValueError("its first line is not text in UTF-8: save it as that")
    found = {
        each: next(csv.reader(io.StringIO(head, newline=""), delimiter=each), [])
        for each in (_DELIMITERS if given is None else given[1].decode("latin-1"))
    }
    names = max(found.values(), key=lambda names: (key.name in names, len(names)))
    key.check(names)
    return size - len(data), next(each for each in found if found[each] is names)


def _shown(text: bytes) -> str:
    return repr(text[:_SHOWN].decode("utf-8", "replace").strip())


def swallowed(data: bytes | memoryview, delimiter: str, strict: bool = False) -> Iterator[str]:
    """Where a double quote that begins a field takes rows with it that are no part of it, in words.

    Parameters
    ----------
    data
        From the columns' names on.
    delimiter
        Between fields.
    strict
        Text between a closing quote and the end of its field, too.
    """
    if re.search(b'"', data) is None:
        return
    between = re.escape(delimiter.encode())
    ends = re.compile(_SUFFIX + rb"(?:\Z|[\r\n]|" + between + rb")", re.IGNORECASE)
    image = re.compile(rb"\S.*" + _SUFFIX, re.IGNORECASE)
    field = re.compile(rb"(?:\A|[\r\n]|" + between + rb')"([^"]*+(?:""[^"]*+)*+)("?)')
    for match in field.finditer(data):
        text, closed = match.groups()
        began = _shown(text)
        if not closed:
            yield f"a double quote is not closed: {began}. {_TO_DO}"
        after = bytes(data[match.end() : match.end() + 1])
        if strict and after and after not in delimiter.encode() + b"\r\n":
            yield f"text follows on a quoted one: {began}. {_TO_DO}"
        if (b"\n" not in text and b"\r" not in text) or ends.search(text) is None:
            continue
        # Where a row begins in it, or one ends, there is the name of an image as it stands in its column.
        for line in text.splitlines():
            cells = line.split(delimiter.encode())
            name = next((cell for cell in cells if len(cells) > 1 and image.fullmatch(cell)), None)
            if name is not None:
                yield (
                    f"a quoted text goes over line ends and the row of another image, {_shown(name)}: {began}. {_TO_DO}"
                )
