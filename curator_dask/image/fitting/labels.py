"""What a head is to say, by the labels of some rows: a kind that it tells from the others, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError
from curator_dask.words import counted

LEAST = 5  # rows of each kind
_LARGEST = 1e30  # whose weights float32 still holds
_FEW = 5  # values that an error names


@dataclass(frozen=True)
class Labels:
    """Labels as numbers.

    Attributes
    ----------
    name
        Of their column.
    values
        Float64 (n,): of kinds 1 and 0.
    kind
        The value, as text, that is 1; None: they are numbers.
    """

    name: str
    values: np.ndarray
    kind: str | None


def labels_of(column: pa.Array, name: str, positive: str | float | bool | None) -> Labels:
    """Labels by the values of a column.

    Parameters
    ----------
    column
        Booleans, numbers or text, without nulls.
    name
        Of the column.
    positive
        The value that is told from all others. None: true, or the larger of two numbers; more are numbers.

    Raises
    ------
    ConfigError
        They are neither, or too few.
    """
    texts = _texts(column, name)
    values = sorted(texts.unique().to_pylist())
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    is_number = any(is_kind(column.type) for is_kind in numeric)
    kind: str | None
    if positive is not None:
        kind = _among(values, positive, name)
    elif pa.types.is_boolean(column.type):
        kind = "true"
    elif is_number:
        kind = max(values, key=float) if len(values) <= 2 else None
    else:
        odd = [value for value in values if _number(value) is None]
        with_commas = all(_number(value.replace(",", ".")) is not None for value in odd)
        if odd and (with_commas or (len(values) > 2 and 2 * len(odd) < len(values))):
            raise ConfigError(
                f"{name!r}: {_some(odd)} among numbers: write numbers with a decimal point, or null; or say which value"
                " the head is to tell from the others, by positive (--positive)"
            )
        raise ConfigError(
            f"{name!r}: has the values {_some(values)}: say which of them the head is to tell from the others, by"
            " positive (--positive)"
        )
    if kind is None:
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if outside := int((~(np.abs(numbers) < _LARGEST)).sum()):
            raise ConfigError(
                f"{name!r}: {counted(outside, 'label')} of {_LARGEST:g} or more, or infinite: write numbers, or null"
            )
        if len(numbers) < 2 * LEAST:
            raise ConfigError(
                f"{name!r}: {len(numbers)} rows have a label and a vector: label {2 * LEAST} at least"
            )
        return Labels(name, numbers, None)
    wanted = pc.equal(texts, kind).to_numpy(zero_copy_only=False).astype(np.float64)
    are, others = int(wanted.sum()), int(len(wanted) - wanted.sum())
    if min(are, others) < LEAST:
        raise ConfigError(
            f"{name!r}: of the rows that have a label and a vector {are} are {kind!r} and {others} are not: label"
            f" {LEAST} of each at least"
        )
    return Labels(name, wanted, kind)


def _among(values: Sequence[str], positive: Any, name: str) -> str:
    wanted = str(positive).lower() if isinstance(positive, bool) else str(positive)
    number = _number(wanted)
    alike = [value for value in values if number is not None and _number(value) == number]
    for value in (*(value for value in values if value == wanted), *alike):
        return value
    raise ConfigError(f"{name!r}: has no value {positive!r} (positive, --positive); it has {_some(values)}")


def _texts(column: pa.Array, name: str) -> pa.Array:
    """The values as text."""
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())  # whose values Arrow can tell apart
    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise ConfigError(
            f"{name!r}: expected labels that are booleans, numbers or text, found {column.type}"
        ) from error


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _some(values: Sequence[str]) -> str:
    more = f" and {len(values) - _FEW} more" if len(values) > _FEW else ""
    return ", ".join(map(repr, values[:_FEW])) + more
