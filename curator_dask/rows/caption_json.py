"""Tables as JSON Lines: an object a line, told by its line where it is none."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.json

from curator_dask.rows.key_column import FILES, KeyColumn

BLOCK_BYTES = 1 << 24  # a row must fit into one
_SHOWN = 60  # characters that an error gives
_EXPECTED = 'expected an object in each line, such as {"file_name": "cat.jpg", "caption": "a cat"}'
NOTHING = f"it is empty: {_EXPECTED}"
_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def read_json(data: bytes, key: KeyColumn = FILES) -> pa.Table:
    """A table of objects, one a line; a key or a caption is text also where it looks like a time.

    Raises
    ------
    ValueError
        A line is no object, or a field is not of one kind in all of them: with the line, and what to do.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise ValueError(NOTHING)
    try:
        table = parse(data, None)
        times = [each.name for each in table.schema if pa.types.is_timestamp(each.type)]
        texts = [name for name in key.texts if name in times]
        if texts or any("list" in str(each.type) for each in table.schema):
            kinds = {each.name: pa.string() if each.name in texts else each.type for each in table.schema}
            return parse_as(data, pa.schema(kinds))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(faults_in(data.split(b"\n")) or said_of(error)) from error
    return table


def parse(data: bytes, schema: pa.Schema | None) -> pa.Table:
    """The table of some lines; of fields that the schema does not say, types are as they look."""
    return pyarrow.json.read_json(
        pa.BufferReader(data),
        read_options=pyarrow.json.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema),
    )


def parse_as(data: bytes, schema: pa.Schema) -> pa.Table:
    """The table of some lines with all columns of a schema, whose types `parse` has found.

    Asked for by their types lists have their first values also where these are null, which inference (Arrow 26) loses
    (apache/arrow#51305).
    """
    asked = pa.schema([(each.name, _known(each.type)) for each in schema])
    table = parse(data, asked)
    columns = [
        table.column(each.name)
        if kind == each.type
        else pa.chunked_array([pa.array(table.column(each.name).to_pylist(), each.type)])
        for each, kind in zip(schema, asked.types, strict=True)
    ]
    return pa.table(columns, schema)


def _known(kind: pa.DataType, inside: bool = False) -> pa.DataType:
    """A type that can be asked for: of lists that are all empty it cannot be said of what they are."""
    if pa.types.is_struct(kind):
        return pa.struct([(each.name, _known(each.type, inside)) for each in kind])
    if pa.types.is_list(kind):
        return pa.list_(_known(kind.value_type, inside=True))
    return pa.string() if inside and pa.types.is_null(kind) else kind


def said_of(error: Exception) -> str:
    """What is wrong where no line is found that is."""
    return f"{error}. It is to be JSON Lines: {_EXPECTED}"


def faults_in(lines: Iterable[bytes]) -> str | None:
    """The first line that does not fit, in words; pyarrow counts rows of its own blocks, and names no line."""
    first: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and (wrong := _wrong(line, number, first)):
            return f"line {number}{wrong}"
    return None


def _wrong(line: bytes, number: int, first: dict[str, tuple[int, str]]) -> str | None:
    """What is wrong with a line; of each field, `first` gets the line that has it first, and its kind there."""
    if len(line) > BLOCK_BYTES:
        return f" has more than {BLOCK_BYTES >> 20} MiB: {_EXPECTED}"
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return " is not UTF-8: save it as that"
    array = ". Write each element of the array on a line of its own" if text.lstrip().startswith("[") else ""
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        return f": {_EXPECTED}, found {_shown(text)} ({error.msg} at character {error.pos + 1}){array}"
    except _TwiceError as error:
        return f": {str(error)!r} stands in it twice: leave one"
    if not isinstance(found, dict):
        return f": {_EXPECTED}, found {_kind(found)}: {_shown(text)}{array}"
    for name, value in found.items():
        if value is None:
            continue
        before, kind = first.setdefault(name, (number, _kind(value)))
        if _kind(value) != kind:
            return (
                f": {name!r} is {_kind(value)} ({_shown(json.dumps(value))}), and {kind} in line {before}: make it"
                f" {kind} in every line"
            )
    return None


class _TwiceError(Exception):
    """A field that stands twice in an object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise _TwiceError(name)
        names.add(name)
    return dict(pairs)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


def _shown(text: str) -> str:
    return text.strip() if len(text.strip()) <= _SHOWN else f"{text.strip()[:_SHOWN]}…"
