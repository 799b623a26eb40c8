"""Tables as JSON Lines: an object a line, told by its line where it is none."""

from __future__ import annotations

import codecs
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.json

from curator_dask.rows.key_column import FILES, KeyColumn

_BLOCK_BYTES = 1 << 24  # a row must fit into one
_SHOWN = 60  # characters that an error gives
_EXPECTED = 'expected an object in each line, such as {"file_name": "cat.jpg", "caption": "a cat"}'
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
        raise ValueError(f"it is empty: {_EXPECTED}")
    try:
        table = _read(data, None)
        times = [each.name for each in table.schema if pa.types.is_timestamp(each.type)]
        if texts := [name for name in key.texts if name in times]:
            return _read(data, pa.schema(dict.fromkeys(texts, pa.string())))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(_why(data) or f"{error}. It is to be JSON Lines: {_EXPECTED}") from error
    return table


def _read(data: bytes, schema: pa.Schema | None) -> pa.Table:
    return pyarrow.json.read_json(
        io.BytesIO(data),
        read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema),
    )


def _why(data: bytes) -> str | None:
    """The first line that does not fit, in words; pyarrow counts rows of its own blocks, and names no line."""
    first: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip() and (wrong := _wrong(line, number, first)):
            return f"line {number}{wrong}"
    return None


def _wrong(line: bytes, number: int, first: dict[str, tuple[int, str]]) -> str | None:
    """What is wrong with a line; of each field, `first` gets the line that has it first, and its kind there."""
    if len(line) > _BLOCK_BYTES:
        return f" has more than {_BLOCK_BYTES >> 20} MiB: {_EXPECTED}"
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
