"""Checks of the arguments that the names of NeMo Curator 0.9 and 1.x share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from curator_dask.errors import ConfigError
from curator_dask.outputs.placing import locate
from curator_dask.settings import check_local
from curator_dask.storage import is_remote

#: By which a row goes: it is near one before it, or near one that stays.
RULES = ("semdedup", "stars")


def check_rule(rule: str, which_to_keep: str) -> None:
    """See that there is such a rule.

    Raises
    ------
    ConfigError
        There is none.
    """
    if rule not in RULES:
        raise ConfigError(f"rule={rule!r}: expected one of {list(RULES)}")
    if rule == "stars" and which_to_keep == "random":
        raise ConfigError("which_to_keep='random': with rule='stars' it is 'hard' or 'easy'")


def check_eps(name: str, eps: Any) -> float:
    """A number from 0 up and below 1.

    Raises
    ------
    ConfigError
        It is none.
    """
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise ConfigError(f"{name}={eps!r}: expected a number from 0 up and below 1, such as 0.07")
    return float(eps)


def local_folder(name: str, path: str | os.PathLike[str]) -> str:
    """Absolute path of a folder of this machine.

    Raises
    ------
    ConfigError
        It is in a store.
    """
    if isinstance(path, Path):  # to which a URL has one slash
        check_local(path)
    folder = locate(os.fspath(path), None)
    if is_remote(folder):
        raise ConfigError(f"{name}={folder!r}: expected a folder of this machine that all workers see")
    return folder
