"""Calls whose arguments do not fit, told with what to write: Python's own words name neither."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from curator_dask.errors import ConfigError

Given = ParamSpec("Given")
Made = TypeVar("Made")


def called_as(example: str) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """What makes a method tell wrong arguments with an example.

    Parameters
    ----------
    example
        A call that is right, with the arguments that are put in a wrong place most easily.
    """

    def decorate(method: Callable[Given, Made]) -> Callable[Given, Made]:
        signature = inspect.signature(method)

        @functools.wraps(method)
        def checked(*given: Given.args, **named: Given.kwargs) -> Made:
            try:
                signature.bind(*given, **named)
            except TypeError as error:
                raise ConfigError(
                    _told(method.__name__, signature, given[1:], named, error, example)
                ) from None
            return method(*given, **named)

        return checked

    return decorate


def _told(
    name: str,
    signature: inspect.Signature,
    given: tuple[object, ...],
    named: dict[str, object],
    error: TypeError,
    example: str,
) -> str:
    """What is wrong with a call of a method, whose first parameter is its object or class."""
    _, *parameters = signature.parameters.values()
    placed = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    names = [each.name for each in parameters]
    if unknown := [each for each in named if each not in names]:
        near = difflib.get_close_matches(unknown[0], names, n=2)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        said = f"has no argument {unknown[0]!r}{hint}; it has {', '.join(names)}"
    elif len(given) > len(placed):
        others = [each for each in names if each not in placed]
        said = f"takes {', '.join(placed)} by position, got {', '.join(map(repr, given))}. "
        said += (
            f"Name the others: {', '.join(f'{each}=' for each in others)}" if others else "It has no others"
        )
    else:
        said = str(error)
    return f"{name} {said}. Write for example {example}"
