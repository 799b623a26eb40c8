"""JSON Lines that are larger than memory should be: read in pieces, and as `read_json` reads them.

What a field is, all lines say. So they are read once before the pieces are given, a block at a time, and what blocks
say of a field is put together as pyarrow's own inference does it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa

from curator_dask.rows import caption_json
from curator_dask.rows.caption_files import tidy
from curator_dask.rows.caption_json import NOTHING, faults_in, parse, parse_as, said_of
from curator_dask.rows.key_column import KeyColumn


class _MisfitError(Exception):
    """Two blocks have a field of two kinds."""


@dataclass(frozen=True)
class JsonPieces:
    """JSON Lines, of which each piece is read when it is asked for.

    Attributes
    ----------
    file
        Open for reading, with nothing else in it.
    key
        The column of keys.
    found
        All columns, as pyarrow reads them.
    rows
        How many there are.
    """

    file: BinaryIO
    key: KeyColumn
    found: pa.Schema = field(default_factory=lambda: pa.schema([]))
    rows: int = 0

    @classmethod
    def of(cls, file: BinaryIO, key: KeyColumn) -> JsonPieces:
        """Look all of it over.

        Raises
        ------
        ValueError
            As of `read_json`.
        """
        kinds: dict[str, pa.DataType] = {}
        rows = 0
        try:
            for block in _blocks(file):
                table = parse(block, None)
                kinds = _merged(kinds, {each.name: each.type for each in table.schema})
                rows += len(table)
        except (pa.ArrowException, UnicodeDecodeError, _MisfitError) as error:
            raise ValueError(faults_in(_lines(file)) or said_of(error)) from error
        if not kinds:
            raise ValueError(NOTHING)
        texts = {name for name in key.texts if pa.types.is_timestamp(kinds.get(name, pa.null()))}
        found = pa.schema([(name, pa.string() if name in texts else kind) for name, kind in kinds.items()])
        key.check(tidy(found.empty_table()).column_names)
        return cls(file, key, found, rows)

    @property
    def schema(self) -> pa.Schema:
        """Of the pieces."""
        return tidy(self.found.empty_table()).schema.remove_metadata()

    def __iter__(self) -> Iterator[pa.Table]:
        """The pieces, with the columns that `read_table` gives."""
        try:
            for block in _blocks(self.file):
                yield tidy(parse_as(block, self.found)).replace_schema_metadata()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(faults_in(_lines(self.file)) or said_of(error)) from error


def _cut(file: BinaryIO) -> Iterator[bytes]:
    """What is in a file in blocks that end with a line, but where a line is longer than a block."""
    file.seek(0)
    left = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
    size = caption_json.BLOCK_BYTES
    while True:
        block = left + file.read(size + 1 - len(left))
        end = block.rfind(b"\n", 0, size) + 1 or size + 1 if len(block) > size else len(block)
        if block:
            yield block[:end]
        left = block[end:]
        if len(block) <= size:
            return


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    return (block for block in _cut(file) if block.strip())


def _lines(file: BinaryIO) -> Iterator[bytes]:
    for block in _cut(file):
        yield from block.removesuffix(b"\n").split(b"\n")


def _merged(before: dict[str, pa.DataType], found: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    return {
        **before,
        **{name: _kind_of(before[name], kind) if name in before else kind for name, kind in found.items()},
    }


def _kind_of(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type of a field that two blocks see as two (cpp/src/arrow/json/converter.cc, Arrow 26)."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        kinds = [{each.name: each.type for each in kind} for kind in (one, other)]
        return pa.struct([*_merged(*kinds).items()])
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_kind_of(one.value_type, other.value_type))
    if all(pa.types.is_integer(each) or pa.types.is_floating(each) for each in (one, other)):
        return pa.float64()
    if all(pa.types.is_timestamp(each) for each in (one, other)):
        return pa.timestamp("ns")
    if all(pa.types.is_timestamp(each) or pa.types.is_string(each) for each in (one, other)):
        return pa.string()
    raise _MisfitError(f"a field is {one} in some lines and {other} in others")
