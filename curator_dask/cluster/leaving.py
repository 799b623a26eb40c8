"""A worker whose GPU is lost ends, and Dask starts another in its place.

Every call on such a GPU fails, so that the worker would fail shard after shard, and faster than the others do them.
"""

from __future__ import annotations

import logging
import os

from curator_dask import backend
from curator_dask.errors import ClusterError

log = logging.getLogger(__name__)

_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


def leave_if_broken(task: str) -> None:
    """End this worker's process if its GPU works no more; what it had under way goes to others.

    Raises
    ------
    ClusterError
        This process is no worker that a nanny would start again.
    """
    why = backend.current().lost()
    if why is not None:
        leave(task, why)


def leave(task: str, why: str) -> None:
    """End this worker's process.

    Parameters
    ----------
    task
        What it was at.
    why
        What its GPU says.

    Raises
    ------
    ClusterError
        This process is no worker that a nanny would start again.
    """
    try:
        from distributed import get_worker

        has_nanny = get_worker().nanny is not None
    except ValueError:  # no worker at all
        has_nanny = False
    if not has_nanny:
        raise ClusterError(
            f"{task}: the GPU of this process is lost ({why}): nothing runs on it until the process is started again."
            " What was saved before is finished; run the same again"
        )
    log.critical("%s: the GPU of this worker is lost (%s): it ends, and another takes its place", task, why)
    logging.shutdown()
    os._exit(_EXIT_CODE)
