"""Imported last by the process that tests' workers are forked from, as `curator_dask.cluster.warm` ends for users."""

import atexit
import gc
import os

# In a worker it would look at all that was imported, and so copy the pages that the processes share.
gc.freeze()
# It has imported, and no more: there is nothing to tear down.
atexit.register(os._exit, 0)
