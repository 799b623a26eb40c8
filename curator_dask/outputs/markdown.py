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
#: Of names whose values are nobody else's.
_SECRET = ("storage_options", "token", "secret", "password")


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


def public(value: Any) -> Any:
    """JSON-able, without what is nobody else's: folders of this machine, and what URLs and options say of accounts."""
    if isinstance(value, Mapping):
        pairs = ((str(name), each) for name, each in value.items())
        return {
            name: public(each) for name, each in pairs if not any(word in name.lower() for word in _SECRET)
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [public(each) for each in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        if value is None or isinstance(value, bool | int):
            return value
        return float(value) if isinstance(value, float) else str(value)  # NumPy's is one, too
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
