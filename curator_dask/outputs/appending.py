"""Tars that are added to an export are like those that are there: by which settings, and with which columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.outputs.encoded import Encoded
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_place import WITHOUT, ExportPlace
from curator_dask.outputs.groups import GROUPS
from curator_dask.outputs.latents import SETTING, asked_of
from curator_dask.outputs.text_states import SETTING as STATES_SETTING
from curator_dask.outputs.text_states import asked_of_states
from curator_dask.outputs.vector_members import VectorMember
from curator_dask.words import counted

#: Options that may differ: which rows pass, in which order, and what is done besides the tars.
_MAY_DIFFER = frozenset(
    [
        "where",
        "filter_column",
        "without",
        "next_best",
        "shuffle",
        "split_groups",
        "by_most",
        "overwrite",
        "append",
        "dry_run",
        "sizes",
        "card",
    ]
)
#: What is known of the tars besides: digits of a sample's number in its key, fields of each sample's JSON, and of which
#: numbers members are that vectors became.
DIGITS, FIELDS, VECTORS = "sample_digits", "json_fields", "vector_kinds"


def settings_of(
    options: ExportOptions, encoded: Encoded | None, digits: int | None, fields: Sequence[str]
) -> dict[str, Any]:
    """What tars must have in common, JSON-able.

    Parameters
    ----------
    options
        Of the export.
    encoded
        Images that are not those of the source.
    digits
        Of a sample's number in its key; None: keys are as they were.
    fields
        Of each sample's JSON.
    """
    said = {name: value for name, value in vars(options).items() if name not in _MAY_DIFFER}
    said |= {"keys": "sequential" if options.sequential else "original"}
    said |= {"layout": "portable" if options.portable else "original"}
    for name in ("columns", "npy"):
        said[name] = None if (given := getattr(options, name)) is None else [*given]
    said["blur_only"] = [*options.blur_only]
    said["latents"], said["text_states"] = asked_of(options.encoding), asked_of_states(options.states)
    said |= {"splits": None if options.splits is None else [[*pair] for pair in options.splits.items()]}
    if options.shard_bytes is not None or options.shards is not None:
        said["samples_per_shard"] = None
    said["encoded"] = None if encoded is None else fingerprint(vars(encoded))
    return {**said, DIGITS: digits, FIELDS: [*fields]}


def settings_before(place: ExportPlace, options: ExportOptions, encoded: Encoded | None) -> Mapping[str, Any]:
    """Those of the tars that stay, which `options` and `encoded` fit.

    Raises
    ------
    OutputError
        They do not fit, or are not noted.
    """
    before: Mapping[str, Any] | None = place.told.get("settings")
    path = place.target.path
    if before is None:
        raise OutputError(
            f"{path}: its tars are of an earlier version, which has not noted by which settings they were written:"
            " run the same export once more without append (--append), which notes them"
        )
    check_settings(path, before, settings_of(options, encoded, None, ()))
    return before


def check_settings(path: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise OutputError where new tars would be unlike those that are there.

    Parameters
    ----------
    path
        Of the tars.
    before, now
        As `settings_of` gives them.
    """
    default = json.loads(json.dumps(settings_of(ExportOptions(), None, None, ())))
    other = {
        name: (was, value)
        for name, value in json.loads(json.dumps(now)).items()
        if name not in (DIGITS, FIELDS, VECTORS, WITHOUT, GROUPS, SETTING, STATES_SETTING)
        and (was := before.get(name, default.get(name))) != value
    }
    if other:
        said = " and ".join(f"{name}={was!r}" for name, (was, _) in other.items())
        asked = " and ".join(f"{name}={value!r}" for name, (_, value) in other.items())
        raise OutputError(
            f"{path}: its tars were written with {said}, and this call has {asked}: tars that are added are like those"
            " that are there. Give the same, or write to another path"
        )


def kinds_of(
    path: str, before: Mapping[str, Any], vectors: Sequence[VectorMember], schema: pa.Schema
) -> dict[str, Any]:
    """By suffix, of which numbers the members are that vectors became, and of how many (null: of any number).

    Parameters
    ----------
    path
        Of the tars.
    before
        The same of the tars that stay.
    vectors, schema
        The members, and the columns of the rows.

    Raises
    ------
    OutputError
        New ones would not be like those.
    """
    found = dict(before)
    for member in vectors:
        kind = schema.field(member.column).type
        if pa.types.is_null(kind):  # there are none
            continue
        count = kind.list_size if pa.types.is_fixed_size_list(kind) else None
        was_dtype, was_count = before.get(member.suffix, [member.dtype, count])
        if was_dtype != member.dtype or (None not in (was_count, count) and was_count != count):
            raise OutputError(
                f"{path}: members .{member.suffix} of its tars are {_numbers(was_dtype, was_count)}, and the rows have"
                f" {_numbers(member.dtype, count)} now: readers put those of a batch into one array. Write the column"
                " as it was, or write to another path"
            )
        found[member.suffix] = [was_dtype, was_count if count is None else count]
    return found


def _numbers(dtype: str, count: int | None) -> str:
    return f"{np.dtype(dtype).name} numbers" if count is None else f"{count} {np.dtype(dtype).name} numbers"


def as_before(
    path: str,
    options: ExportOptions,
    before: Mapping[str, Any],
    there: pa.Schema,
    fields: tuple[str, ...],
    beside: pa.Schema,
) -> tuple[tuple[str, ...], pa.Schema, list[str]]:
    """Fields of each sample's JSON and columns beside the tars, those of the tars that stay; and what they lack.

    Parameters
    ----------
    path, options
        Of the tars.
    before, there
        By which settings they were written, and which columns are beside one of them.
    fields, beside
        What there would be else.

    Raises
    ------
    OutputError
        The rows lack some of them, or have them as another type.
    """
    left: list[str] = []
    if options.metadata == "json" and FIELDS in before:
        left += check_columns_of(path, before[FIELDS], fields, "the JSON of its samples has")
        fields = tuple(before[FIELDS])
    if options.metadata == "parquet":
        beside, more = fitted(path, there, beside)
        left += more
    return fields, beside, left


def check_columns_of(path: str, before: Sequence[str], now: Sequence[str], where: str) -> list[str]:
    """Names of those columns that tars before lack.

    Raises
    ------
    OutputError
        There is no such column any more.
    """
    if gone := [name for name in before if name not in now]:
        raise OutputError(
            f"{path}: {where} {counted(len(gone), 'column')} that the rows lack now: {gone}. Add what is missing, as it"
            " was made before (curator-dask score, join, ...), or write to another path"
        )
    return [name for name in now if name not in before]


def fitted(path: str, before: pa.Schema, now: pa.Schema) -> tuple[pa.Schema, list[str]]:
    """The columns for the Parquet beside new tars: those beside the tars before; and those that are left out for it.

    Parameters
    ----------
    path
        Of the tars.
    before, now
        The columns beside the tars that are there, and those that there would be.

    Raises
    ------
    OutputError
        A column is gone, or has another type.
    """
    left = check_columns_of(path, before.names, now.names, "the Parquet beside its tars has")
    fields = []
    for field in before:
        mine = now.field(field.name)
        if pa.types.is_null(field.type):  # no row had a value
            fields.append(mine)
            continue
        try:
            both = pa.unify_schemas([pa.schema([field]), pa.schema([mine])], promote_options="permissive")
            fits = both.field(0).type == field.type or (_is_text(field.type) and _is_text(mine.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            fits = False
        if not fits:
            raise OutputError(
                f"{path}: {field.name!r} is {field.type} beside its tars, and {mine.type} in the rows now: readers take"
                " the type of the first file for that of all. Write the column as it was, or write to another path"
            )
        fields.append(field)
    return pa.schema(fields), left


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_such(kind) for is_such in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )
