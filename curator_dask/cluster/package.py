"""Whether the workers have this package, in the client's version, and the modules of what a user has written.

A worker that cannot import what a task is made of ends itself, without a word to the client: so it is asked first,
by a function that Python has.
"""

from __future__ import annotations

import io
import pickle
import pkgutil
import sys
from collections.abc import Iterable
from typing import Any

import cloudpickle
from distributed import Client

from curator_dask import __version__
from curator_dask.cluster.presence import ANSWER
from curator_dask.errors import ClusterError


def check_package(client: Client) -> None:
    """Raise ClusterError where a worker that is there now cannot import this package, or has another version.

    Another version is an error, too: what travels to the workers need not fit it, and files would name the client's
    version as what made them.
    """
    try:
        found = client.sync(
            client._run,
            pkgutil.resolve_name,
            "curator_dask:__version__",
            on_error="return",
            callback_timeout=ANSWER,
        )
    except (OSError, TimeoutError):
        return  # who does not answer, and for how long, is `Presence`'s to say
    wrong = {
        address: _said(version)
        for address, version in found.items()
        if version != __version__ and not isinstance(version, OSError | TimeoutError)  # it died meanwhile
    }
    if not wrong:
        return
    address, what = next(iter(wrong.items()))
    others = f" ({len(wrong)} of {len(found)} workers are like it)" if len(wrong) > 1 else ""
    raise ClusterError(
        f"the worker {address} {what}; expected {__version__}, which this client has{others}. Install the same version"
        " of curator-dask where the workers run, in the environment that starts them, and start them again"
    )


def _said(version: object) -> str:
    if isinstance(version, BaseException):
        return f"cannot import curator_dask ({type(version).__name__}: {version})"
    return f"has curator_dask {version}"


_THEIRS = sys.stdlib_module_names | {"curator_dask", "cloudpickle", "dask", "distributed"}


def check_modules(client: Client, things: Iterable[Any]) -> None:
    """Raise ClusterError where scheduler or workers cannot import a module that is needed to load things of a user.

    Parameters
    ----------
    client
        Of the cluster.
    things
        That go to the workers: steps, and functions mapped. What is of the main script, or was registered to go by
        value, needs no module.
    """
    asked: set[str] = set()
    for thing in things:
        for name in _modules_of(thing):
            if name not in asked:
                asked.add(name)
                _check_module(client, name, thing)


def _check_module(client: Client, name: str, thing: Any) -> None:
    what = (pkgutil.resolve_name, f"{name}:__name__")
    try:
        found: dict[str, Any] = client.sync(client._run, *what, on_error="return", callback_timeout=ANSWER)
        try:
            client.sync(client._run_on_scheduler, *what, callback_timeout=ANSWER)
        except ImportError as error:
            found = {f"the scheduler {client.scheduler_info()['address']}": error}
        else:
            found = {f"the worker {address}": said for address, said in found.items()}
    except (OSError, TimeoutError):
        return  # `Presence` says it
    for who, said in found.items():
        if isinstance(said, ImportError):
            label = getattr(thing, "label", None) or getattr(thing, "__qualname__", type(thing).__qualname__)
            raise ClusterError(
                f"{who} cannot import {name}, which {label} needs ({type(said).__name__}: {said}). Install it in the"
                " environment that starts scheduler and workers, or name its folder in their PYTHONPATH, and start them"
                " again; or send it by client.upload_file, which reaches both"
            )


def _modules_of(thing: Any) -> list[str]:
    """The modules that Python imports to load a thing, but for its own and those that each worker has."""
    try:
        finder = _Finder(io.BytesIO(cloudpickle.dumps(thing)))
        finder.load()
    except Exception:  # what cannot travel fails where it is to, with its own reason
        return []
    return sorted(name for name in finder.modules if name.partition(".")[0] not in _THEIRS)


class _Finder(pickle.Unpickler):
    """Notes what is imported."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.modules: set[str] = set()

    def find_class(self, module: str, name: str, /) -> Any:
        """As it is called while a thing is loaded."""
        if module != "__main__":
            self.modules.add(module)
        return super().find_class(module, name)
