"""Markdown of what is in data: whatever it holds, it is shown, and is no markup."""

from __future__ import annotations

import html
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

_LONG = 2000  # signs of a text that are shown
_MARKUP = "&<>\\`*_[]#|~$:@"
_MARKS = re.compile(r"([\\`*_\[\]#|~$]|^[-+=])")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.+", re.DOTALL)
_LOCAL = ("file", "local")  # schemes of this machine's folders
#: Words of names whose values are nobody else's; "max_new_tokens" has none of them.
_SECRET = {"token", "key", "secret", "secrets", "password", "passwords", "credentials", "apikey"}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of a name in snake_case or camelCase


def line(text: object) -> str:
    """One line of it, without signs that cannot be seen."""
    shown = "".join(sign if sign.isprintable() else " " for sign in str(text))
    shown = " ".join(shown.split())
    return shown if len(shown) <= _LONG else f"{shown[:_LONG]} …"


def code(text: object) -> str:
    """As code, in a cell of a table, too."""
    shown = line(text)
    if "\\|" in shown:  # no two readers agree what ends a cell here
        return f"<code>{''.join(f'&#{ord(sign)};' if sign in _MARKUP else sign for sign in shown)}</code>"
    shown = shown.replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def cell(text: object) -> str:
    """As plain text, without markup of Markdown or HTML."""
    return _MARKS.sub(r"\\\1", html.escape(line(text), quote=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def block(text: str, language: str) -> str:
    """Lines of code."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def is_secret(name: str) -> bool:
    """Whether the values of this name are nobody else's."""
    return "storage_options" in name or any(word.lower() in _SECRET for word in _WORDS.findall(name))


def public(value: Any, left_out: list[str] | None = None, at: str = "") -> Any:
    """JSON-able, without what is nobody else's: folders of this machine, and what URLs and options say of accounts.

    Parameters
    ----------
    value
        JSON-able, but for paths and NumPy's numbers.
    left_out
        Gets the places where something was left out, as ``join.0.storage_options``.
    at
        The place of `value`.
    """
    begin = f"{at}." if at else ""
    if isinstance(value, Mapping):
        found = {}
        for name, each in ((str(name), each) for name, each in value.items()):
            if is_secret(name):
                _note(left_out, begin + name)
            else:
                found[name] = public(each, left_out, begin + name)
        return found
    if isinstance(value, list | tuple | set | frozenset):
        return [public(each, left_out, f"{begin}{place}") for place, each in enumerate(value)]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        if value is None or isinstance(value, bool | int):
            return value
        return float(value) if isinstance(value, float) else str(value)  # NumPy's is one, too
    if (shown := _public_text(value)) != value:
        _note(left_out, at)
    return shown


def _note(left_out: list[str] | None, at: str) -> None:
    if left_out is not None:
        left_out.append(at)


def _public_text(value: str) -> str:
    begin = "local-dir:" if value.startswith("local-dir:") else ""
    rest = value.removeprefix(begin)
    chain = rest.split("::")  # by which fsspec gets to a file: "simplecache::s3://bucket/file"
    if any(map(_URL.fullmatch, chain)):
        return begin + "::".join(map(_public_url, chain))
    if rest.startswith(("/", "~")):
        return f"{begin}{posixpath.basename(rest.rstrip('/'))}"
    return value


def _public_url(url: str) -> str:
    """Without account, query and fragment; of a file here its name alone."""
    if (found := _URL.fullmatch(url)) is None:
        return url
    scheme = found[1]
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL after all
        return f"{scheme}://"
    if scheme.lower() in _LOCAL:
        return f"{scheme}://{posixpath.basename(parts.path.rstrip('/'))}"
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
