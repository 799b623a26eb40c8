"""Files that a process may have open: each connection is one, and where there can be no more it is no host's fault."""

from __future__ import annotations

import errno

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

#: Errors of a process, or of a machine, that has as many files open as it may.
NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_OTHERS = 512  # of Dask, and of the shard that is written
_EACH = 2  # one that is in use, one that is kept for a moment


class TooManyFilesError(Exception):
    """A connection that there was no file for."""


def connections_for(wanted: int) -> int:
    """How many connections there may be at a time, of those that are wanted.

    The process gets leave to open as many files as these need, as far as it may; where that is not enough, there are
    fewer.
    """
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _EACH * wanted + _OTHERS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else max(soft, min(needed, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wanted = min(wanted, max(1, (soft - min(_OTHERS, soft // 2)) // _EACH))
    return wanted
