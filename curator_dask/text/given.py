"""Statistics of captions as a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.arguments import make_of
from curator_dask.errors import ConfigError
from curator_dask.text.statistics import TextStatistics


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
