"""Adding fields to a sample's JSON: all its other bytes stay as they are."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

from curator_dask.errors import ShardError


def add_fields(document: bytes, fields: Mapping[str, Any], *, keep: bool = False) -> bytes | None:
    """A JSON object with more fields, put before its closing brace.

    Parameters
    ----------
    document
        As it is in the tar.
    fields
        Names and values. What has them already, of the same value, is not added.
    keep
        A field that is there stays, whatever it holds.

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
