"""Calls whose arguments do not fit, told with what to write: Python's own words name neither."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

from curator_dask.errors import ConfigError
from curator_dask.words import meant

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


def names_of(make: Callable[..., object]) -> tuple[str, ...]:
    """The arguments that a class or function takes by name; not those that it takes as others' (``**options``)."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(each.name for each in inspect.signature(make).parameters.values() if each.kind in named)


def check_names(what: str, given: Collection[Any], names: Collection[str]) -> None:
    """Raise ConfigError where one of the given names is not among those that there are.

    Parameters
    ----------
    what
        Whose arguments they are, for the error.
    given, names
        The names that a user gives, and all that there are.
    """
    for name in given:
        if name not in names:
            hint = meant(str(name), [*names])
            raise ConfigError(f"{what}: there is no argument {name!r}{hint}. There are {', '.join(names)}")


def make_of(
    what: str, make: Callable[..., Made], given: Mapping[Any, Any], taken: Collection[str] = (), **more: Any
) -> Made:
    """What a class or function makes of the arguments that a user's file gives.

    Parameters
    ----------
    what
        The name in the file, for the error.
    make
        The class or function.
    given
        Its arguments by name.
    taken
        Names among its arguments that a file does not give.
    more
        Other arguments, but for those that the file gives.

    Raises
    ------
    ConfigError
        It takes no such arguments, or lacks one.
    """
    check_names(what, given, [name for name in names_of(make) if name not in taken])
    try:
        return make(**{**more, **given})
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from None


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
        said = f"has no argument {unknown[0]!r}{meant(unknown[0], names)}; it has {', '.join(names)}"
    elif len(given) > len(placed):
        others = [each for each in names if each not in placed]
        said = f"takes {', '.join(placed)} by position, got {', '.join(map(repr, given))}. "
        said += (
            f"Name the others: {', '.join(f'{each}=' for each in others)}" if others else "It has no others"
        )
    else:
        said = str(error)
    return f"{name} {said}. Write for example {example}"
