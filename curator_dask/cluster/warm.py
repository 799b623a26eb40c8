"""Imported by the process that workers are forked from: what every worker that embeds loads, loaded once.

Not to be imported elsewhere.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import signal

from curator_dask.collector import look_rarely

#: What takes longest first. What is not installed, or broken, is for the worker that needs it to say.
HEAVY = (
    "torch",
    "timm",
    "nvidia.dali.fn",
    "dask.dataframe",
    "pyarrow.dataset",
    "distributed.nanny",
    "curator_dask.image.embedders",
    "curator_dask.runs.run",
)

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

# Ended with the command: by itself it looks whether that is still there only once all is imported.
ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(os.environ.pop("_CURATOR_DASK_FORKS_FOR", os.getppid())):
    os._exit(0)  # it ended before that
if os.environ.get("PYTHONSAFEPATH", "").startswith("of curator_dask"):
    del os.environ["PYTHONSAFEPATH"]  # which is for this process, and not for what users' code starts
usual = gc.get_threshold()
look_rarely()
for name in HEAVY:
    with contextlib.suppress(Exception):
        importlib.import_module(name)
# In a worker it would write to every object that it looks at, and so copy the pages that are shared.
gc.freeze()
gc.set_threshold(*usual)
# There is nothing to put in order: it has imported, and no more. Python would take seconds to tear all of it down.
atexit.register(os._exit, 0)
