"""Adding fields to a sample's JSON: all its other bytes stay as they are."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from curator_dask.errors import ShardError

_MARK = "\ufeff"  # that some programs begin a file of UTF-8 with


def add_fields(
    document: bytes, fields: Mapping[str, Any], *, keep: bool = False, anew: Collection[str] = ()
) -> bytes | None:
    """A JSON object with more fields, put before its closing brace.

    Parameters
    ----------
    document
        As it is in the tar.
    fields
        Names and values. What has them already, of the same value, is not added.
    keep
        A field that is there stays, whatever it holds.
    anew
        Fields whose values take the place of those that an earlier export has written.

    Returns
    -------
    The document; None where it is no JSON object.

    Raises
    ------
    ShardError
        A field is there with another value.
    """
    try:
        there = json.loads(document.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(there, dict):
        return None
    new = {name: json_value(value) for name, value in fields.items()}
    for name in (each for each in anew if each in new and each in there):
        document, there[name] = with_field(document, name, new[name]), new[name]
    clash = [name for name, value in new.items() if name in there and not keep and there[name] != value]
    if clash:
        raise ShardError(
            f"its JSON has a field {clash[0]!r} already, {there[clash[0]]!r}, which is to be {new[clash[0]]!r}: give"
            " the column another name, or leave it out of columns= (--columns)"
        )
    new = {name: value for name, value in new.items() if name not in there}
    if not new:
        return document
    end = document.rindex(b"}")
    before = document[:end].rstrip(b" \t\r\n")
    comma = b", " if there else b""
    return before + comma + json.dumps(new, ensure_ascii=False)[1:-1].encode() + document[len(before) :]


def with_field(document: bytes, name: str, value: Any) -> bytes:
    """A JSON object with another value of a field that it has: all its other bytes stay, where they can."""
    text = document.decode("utf-8")
    plain = text.removeprefix(_MARK)
    expected = {**json.loads(plain), name: value}
    for found in re.finditer(rf"{re.escape(json.dumps(name))}\s*:\s*", text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, found.end())
            made = text[: found.end()] + json.dumps(value, ensure_ascii=False) + text[end:]
            if json.loads(made.removeprefix(_MARK)) == expected:
                return made.encode()
        except ValueError:
            continue
    return json.dumps(expected, ensure_ascii=False).encode()


def json_value(value: Any) -> Any:
    """A value as JSON can have it: NaN and infinity are null, dates and decimals text, bytes hexadecimal."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)
