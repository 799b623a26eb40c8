"""What a user's own class does, as a digest: so that finished work is made anew when its code or settings change."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence, Set
from types import CodeType, FunctionType
from typing import Any


def code_digest(settings: Any, written: Sequence[Any], others: Sequence[Any] = ()) -> str:
    """Twelve digits of settings and of what classes and functions say, comments and layout left out.

    The same in every process, also of what the main script or a notebook defines.

    Parameters
    ----------
    settings
        Numbers, text, and containers and objects of them.
    written
        Classes and functions whose code counts.
    others
        Objects whose content counts, as that of settings does.
    """
    said = [_said(settings), *(_said(each) for each in others), *(_said(each) for each in written)]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]


def _said(value: Any, depth: int = 0) -> Any:
    """The value as nested tuples of text, whose order is always the same."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if depth > 20:  # an object that holds itself
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return (
            "map",
            *sorted((repr(_said(key, depth + 1)), _said(each, depth + 1)) for key, each in value.items()),
        )
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(_said(each, depth + 1) for each in value))
    if isinstance(value, Set):
        return ("set", *sorted(repr(_said(each, depth + 1)) for each in value))
    if isinstance(value, type):
        return _class(value, depth)
    if isinstance(value, FunctionType):
        return _function(value, depth)
    if hasattr(value, "__array__"):  # NumPy, torch
        return ("array", str(getattr(value, "dtype", "")), _token(value.__array__()))
    if hasattr(value, "__dict__"):
        return (type(value).__qualname__, _said(vars(value), depth + 1))
    return _token(value)


def _token(value: Any) -> str:
    from curator_dask.tokens import tokenize  # here: digests of files and arguments need no Dask

    return tokenize(value)


def _class(kind: type, depth: int) -> Any:
    functions = [each for each in vars(kind).values() if isinstance(each, FunctionType)]
    around = [_closure(each, depth) for each in functions]
    try:
        return (kind.__qualname__, _source(kind), *around)
    except (OSError, TypeError, SyntaxError):  # typed into a prompt, or built in
        return (kind.__qualname__, *(_code(each.__code__) for each in functions), *around)


def _function(function: FunctionType, depth: int) -> Any:
    try:
        # The source of a lambda is the line that it stands in, with whatever else does.
        is_lambda = function.__name__ == "<lambda>"
        said: Any = _code(function.__code__) if is_lambda else _source(function)
    except (OSError, TypeError, SyntaxError):
        said = _code(function.__code__)
    return (function.__qualname__, said, _closure(function, depth))


def _source(thing: Any) -> str:
    return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(thing))))


def _closure(function: FunctionType, depth: int) -> Any:
    """What a function uses of the functions around it."""
    said = []
    for cell in function.__closure__ or ():
        try:
            inside = cell.cell_contents
        except ValueError:  # not set
            continue
        # A method's own class, which `super` needs, is said already.
        said.append("class" if isinstance(inside, type) else _said(inside, depth + 1))
    return tuple(said)


def _code(code: CodeType) -> Any:
    """What compiled code does, and not where it stands."""
    constants = tuple(_code(each) if isinstance(each, CodeType) else _said(each) for each in code.co_consts)
    return (code.co_code.hex(), constants, code.co_names, code.co_varnames)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON-able parts, whatever their order, as 64 hexadecimal digits."""
    return hashlib.sha256(_as_text(parts)).hexdigest()


def fingerprints(common: Mapping[str, Any], name: str, values: Iterable[Any]) -> list[str]:
    """``[fingerprint({**common, name: value}) for value in values]``, the common parts written down once.

    Parameters
    ----------
    common
        JSON-able parts.
    name
        Of one more part; none of `common`.
    values
        Of that part, JSON-able.
    """
    before = _as_text({key: value for key, value in common.items() if key < name})
    after = _as_text({key: value for key, value in common.items() if key > name})
    begun = hashlib.sha256(before[:-1] + (b"," if len(before) > 2 else b"") + _as_text(name) + b":")
    end = (b"," if len(after) > 2 else b"") + after[1:]
    found = []
    for value in values:
        digest = begun.copy()
        digest.update(_as_text(value) + end)
        found.append(digest.hexdigest())
    return found


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


def _as_text(value: Any) -> bytes:
    return _encode(value).encode()
