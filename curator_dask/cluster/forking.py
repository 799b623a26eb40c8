"""Workers that are forked from one process, in which all that they need is loaded once, and shared.

Each worker that is spawned imports torch, timm and DALI for itself: seconds of a core, and half a gigabyte. A command
that is going to embed starts one process that does (`begin`), while it looks at its shards; its workers are copies of
that. It is multiprocessing's fork server, which has no thread and touches no GPU.

A fork has the environment that this process was started with, which OpenMP and malloc have read. So only a cluster
whose workers want that very environment gets them so; another's are spawned. So are those of `get_client` in a script:
one that embeds nothing would wait for torch, modules would come from another path than the script's, and a
``memory_limit`` would be used up by pages that are shared, which Dask counts for each worker.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from multiprocessing import forkserver, set_forkserver_preload
from pathlib import Path

from curator_dask.cluster.dask_settings import Held
from curator_dask.cluster.interrupts import spared

_METHOD = "distributed.worker.multiprocessing-method"
_VARIABLE = "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"

#: How nannies start workers while clusters are up whose workers are forked; also those that are started again.
FORKED = Held(_METHOD, "forkserver", over_user=True)

#: Variable with the process that it is for, which may be gone before it can ask to be told.
OWNER = "_CURATOR_DASK_FORKS_FOR"

_begun_with: dict[str, str] = {}

#: Keeps the current folder out of the path of Python's modules.
_SAFE_PATH, _OURS = "PYTHONSAFEPATH", "of curator_dask's fork server"


def begin(environment: Mapping[str, str]) -> None:
    """Start the process, with this environment and no other; it loads what it has to on its own.

    Nothing is done where there is such a process already, another program's perhaps, or where the user's configuration
    says how workers are to be started.
    """
    import dask

    server = getattr(forkserver, "_forkserver", None)  # that one runs already can be seen nowhere else
    chosen = _VARIABLE in os.environ or dask.config.get(_METHOD, "spawn") != "spawn"
    if chosen or getattr(server, "_forkserver_pid", 0) is not None:
        return
    set_forkserver_preload(["curator_dask.cluster.warm"])
    before, own = dict(os.environ), {**environment, OWNER: str(os.getpid())}
    # Else a file random.py, or timm.py, where the command is given would be imported for the module of that name.
    with contextlib.suppress(OSError):  # a folder that is gone has no files
        if not {"", str(Path.cwd())} & {*sys.path}:
            own.setdefault(_SAFE_PATH, _OURS)
    with spared():
        try:
            os.environ.update(own)
            forkserver.ensure_running()
        finally:
            for name in own.keys() - before.keys():
                os.environ.pop(name, None)
            os.environ.update(before)
    _begun_with.update(environment)


def is_for(environment: Mapping[str, str]) -> bool:
    """Whether workers that want this environment may be forked."""
    return bool(_begun_with) and _begun_with == {**environment}
