"""The package's environment variables: each with its default, its unit and what it means.

They are read when they are used, so that a change holds from then on, and a bad value is an error of the call that
looks for shards or starts a cluster, not of the import. `curator_dask.backend` has the one besides these:
``CURATOR_DASK_DEVICE``.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from curator_dask.errors import ConfigError

# As given, or as `Path` writes it, with one slash.
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")


@dataclass(frozen=True)
class Variable:
    """A quantity that an environment variable sets, for this process.

    Attributes
    ----------
    name
        Of the variable.
    default
        Where it is not set, or empty; written as its value would be.
    unit
        ``"bytes"`` or ``"seconds"``: of `value`, and of a plain number.
    meaning
        What it sets.
    positive
        Whether 0 is refused, too.
    """

    name: str
    default: str
    unit: str
    meaning: str
    positive: bool = False

    def value(self) -> int | float:
        """What holds now, in `unit`.

        Raises
        ------
        ConfigError
            The variable has a value that is no such quantity, or a negative one.
        """
        return _parsed(self, os.environ.get(self.name, "").strip() or self.default)


STAGE_BYTES = Variable(
    "CURATOR_DASK_STAGE_BYTES",
    "16 GB",
    "bytes",
    "copies of remote shards that a process keeps on disk, and of what is compared for duplicates, those in use aside",
)
STALL_SECONDS = Variable(
    "CURATOR_DASK_STALL_SECONDS",
    "60 s",
    "seconds",
    "after which a call to a store, of 8 MiB of data at most, that has not come back counts as failed",
    positive=True,
)
# Workers that are started again need seconds, nodes that a cluster asks for need minutes.
PATIENCE = Variable(
    "CURATOR_DASK_PATIENCE",
    "600 s",
    "seconds",
    "without any worker, or any answer of the scheduler, after which a run ends",
)
VARIABLES = (STAGE_BYTES, STALL_SECONDS, PATIENCE)
"""All of them."""


def home() -> Path:
    """Where weights that this package fetches are, and its notes: ``CURATOR_DASK_HOME``, else ``~/.curator_dask``."""
    return absolute(os.environ.get("CURATOR_DASK_HOME") or "~/.curator_dask")


def check_local(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError where a path of this machine is expected, and a URL is given: no folder ``s3:`` is made."""
    text = os.fspath(path)
    if found := _URL.match(text):
        url = f"{found['scheme']}://{text[found.end() :].lstrip('/')}"
        raise ConfigError(
            f"{url}: expected a path of this machine, found a URL: of a store are shards, embeddings, tables and"
            " exports. Copy what is read here first, and what is written here afterwards"
        )


def absolute(path: str | os.PathLike[str]) -> Path:
    """A local path made absolute, ``~`` its owner's home: a worker may have another working directory.

    Raises
    ------
    ConfigError
        The path begins with ``~``, and there is no such user, or no home; or it is a URL.
    """
    check_local(path)
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise ConfigError(
            f"{os.fspath(path)}: {user} is the home of nobody on this machine. Write the path out; a name that begins"
            " with ~ is ./~name"
        ) from error


def check_variables() -> None:
    """Raise ConfigError where one of them is set to a bad value: before work begins, not somewhere within."""
    for variable in VARIABLES:
        if variable.name in os.environ:
            variable.value()


@functools.lru_cache(maxsize=64)
def _parsed(variable: Variable, text: str) -> int | float:
    from dask.utils import parse_bytes, parse_timedelta

    value: int | float | None
    try:
        if not re.match(r"[.\d]", text):  # Dask reads a unit without a number as one of it
            value = None
        elif variable.unit == "bytes":
            value = parse_bytes(text)
        else:  # it knows a minute as "m" and "minute" only
            value = parse_timedelta(re.sub(r"(?<=[\d. ])(min|sec)s?$", lambda found: found[1][0], text))
    except (ValueError, KeyError, OverflowError):
        value = None
    if value is None or (variable.positive and not value):
        least = "a positive number" if variable.positive else "a number"
        other = "16GB, 500MiB or 16e9" if variable.unit == "bytes" else "90s, 1min or 600"
        raise ConfigError(
            f"{variable.name}={text!r}: expected {least} of {variable.unit} ({variable.meaning}), with or without a"
            f" unit, such as {other}; without the variable it is {variable.default}"
        )
    return value
