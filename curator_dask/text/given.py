"""Statistics of captions, and a balance of them, as a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curator_dask.arguments import check_names, make_of
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.text.statistics import TextStatistics

_TYPES = {str: "text", int: "a whole number", bool: "true or false"}
#: Arguments of a balance that a recipe gives, and their types.
BALANCE: dict[str, type] = {
    "concepts": str,
    "most": int,
    "text_column": str,
    "concept_column": str,
    "match_case": bool,
    "keep_unmatched": bool,
    "seed": int,
    "prefix": str,
}


def text_statistics_of(given: Any) -> list[TextStatistics]:
    """What measures captions.

    Parameters
    ----------
    given
        Names of statistics; or arguments of `TextStatistics`, or a list of such arguments. Of none there are none.

    Raises
    ------
    ConfigError
        It is nothing of these, or two make one column.
    """
    every: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if every in ([], [None]):
        return []
    if all(isinstance(each, Mapping) for each in every):
        found = [make_of("text_statistics", TextStatistics, each) for each in every]
    elif not isinstance(given, str) and all(isinstance(each, str) for each in every):
        found = [TextStatistics(every)]
    else:
        raise ConfigError(
            f"text_statistics={given!r}: expected a list of names, or {{names: [words], text: COLUMN}}, or a list of"
            " several of these"
        )
    columns = [column for each in found for column in each.columns]
    if len(columns) > len({*columns}):
        twice = next(name for at, name in enumerate(columns) if name in columns[:at])
        raise ConfigError(
            f"text_statistics: two would make {twice!r}: give one a prefix of its own, as prefix: new_"
        )
    return found


def check_balance(balance: Any) -> None:
    """Raise ConfigError where the arguments of a balance are others than it takes, or lack one."""
    if balance is None:
        return
    if not isinstance(balance, Mapping):
        raise ConfigError(f"balance: expected {{concepts: FILE, most: ROWS}}, found {balance!r}")
    check_names("balance", balance, BALANCE)
    if lacking := [name for name in ("concepts", "most") if balance.get(name) is None]:
        raise ConfigError(
            f"balance: expected concepts, a file, and most, a number of rows; {' and '.join(lacking)} is not given"
        )
    for name, value in balance.items():
        wanted = (str, Path) if name == "concepts" else BALANCE[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise ConfigError(f"balance: {name}={value!r}: expected {_TYPES[BALANCE[name]]}")
    check_counts(most=balance["most"])
