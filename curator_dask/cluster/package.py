"""Whether the workers have this package, in the client's version.

A worker that cannot import what a task is made of ends itself, without a word to the client: so it is asked first,
by a function that Python has.
"""

from __future__ import annotations

import pkgutil

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
