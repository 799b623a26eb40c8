"""What runs may leave on the workers of a cluster, and where they write: nothing."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client

from curator_dask import get_client
from curator_dask.outputs.lock import LOCK_NAME

SECONDS = 20.0  # until a worker has heard of it that a result is no longer wanted: soon, but not at once


def check_nothing_left(client: Client, *folders: Path, seconds: float = SECONDS) -> None:
    """Fail where, after some seconds, something is still left: on a worker, on the scheduler, or below a folder."""
    end = time.monotonic() + seconds
    while found := [*left_on_cluster(client), *(name for folder in folders for name in left_in(folder))]:
        assert time.monotonic() < end, f"left behind: {found}"
        gc.collect()  # of this process: what a test held may keep tasks alive in circles
        time.sleep(0.05)


@contextlib.contextmanager
def cluster_that_is_left_clean(*folders: Path, **options: Any) -> Iterator[Client]:
    """A new CPU cluster, and the check, while it is up, that nothing is left on it or below the folders."""
    with get_client("cpu", verbose=False, **options) as client:
        yield client
        check_nothing_left(client, *folders)


def left_on_cluster(client: Client) -> list[str]:
    """What is left on the scheduler and on each of the workers that there are."""
    # Who holds it is said, for a fault that is seen once in hundreds of runs: a future here, or the scheduler alone.
    held = {str(key): count for key, count in client.refcount.items()}
    found = [
        f"task {key} on the scheduler ({state}; {held.get(key, 0)} references of this client)"
        for key, state in client.run_on_scheduler(tasks_of_scheduler).items()
    ]
    for address, left in client.run(left_on_worker).items():
        found += [f"{what} on {address}" for what in left]
    return found


def left_in(folder: Path) -> list[str]:
    """Files that are there only while a run writes."""
    paths = [path for path in folder.rglob("*") if path.suffix == ".tmp" or path.name == LOCK_NAME]
    return [f"file {path}" for path in paths]


def tasks_of_scheduler(dask_scheduler: Any) -> dict[str, str]:
    return {
        str(key): f"{task.state}, wanted by {len(task.who_wants or ())} clients"
        for key, task in dask_scheduler.tasks.items()
    }


def left_on_worker(dask_worker: Any) -> list[str]:
    """In the process of a worker: leases, pipelines, copies of shards, threads at work, results."""
    from curator_dask.cache import ENCODERS, LOADERS
    from curator_dask.dedup.copies import COPIES
    from curator_dask.stages.live import CHAINS
    from curator_dask.webdataset.staging import STAGE

    found = [f"result {key}" for key in dask_worker.data]
    for name, cache in (("model", ENCODERS), ("loader", LOADERS)):
        users = sum(entry.users for entry in cache._entries.values())
        found += [f"{users} leases of a {name}"] if users else []
    found += [f"pipeline of run {spec.run}" for spec in list(CHAINS._entries)]
    found += [f"{len(STAGE)} copies of shards"] if len(STAGE) else []
    found += [f"{len(COPIES)} copies of phases"] if len(COPIES) else []
    if COPIES._folder is not None and COPIES._folder.exists():
        found += [f"copy {path}" for path in COPIES._folder.iterdir()]
    if STAGE._folder is not None and STAGE._folder.exists():
        found += [f"copy {path}" for path in STAGE._folder.iterdir()]
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("curator")]
    # A loader that is kept for the next task keeps its pool.
    pooled = [name for name in threads if name.startswith("curator-decode")]
    if len(pooled) <= sum(spec.num_threads for spec in LOADERS.specs()):
        threads = [name for name in threads if name not in pooled]
    return found + [f"thread {name}" for name in threads]
