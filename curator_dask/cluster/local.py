"""Starting a local cluster: what `get_client`'s options mean to Dask and dask-cuda.

What a worker needs to know (its device, its number of threads) travels in its environment, so that it also
holds for a worker that is restarted.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from curator_dask.cluster import forking
from curator_dask.cluster.dask_settings import LOST_WORKER, SHUFFLE, client_class, hold
from curator_dask.cluster.gpu import with_environment
from curator_dask.cluster.interrupts import spared
from curator_dask.errors import ClusterError
from curator_dask.words import counted

if TYPE_CHECKING:
    import distributed
    from distributed.deploy.cluster import Cluster

# What a CPU worker needs for Python, torch, one model and a shard's pixels, with room to spare.
MIN_WORKER_MEMORY = 3 * 2**30  # bytes

# glibc gives each large tensor back to the kernel, and dask's nanny makes it more eager to: more than half of the time
# of a CNN on a CPU are then page faults (EfficientNet-Lite0 end to end: 38 images/s so, 102 with these).
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

_START_LIMIT = 10.0  # seconds that closing waits for a worker that is just starting
_SPAWN_LIMIT = 0.5  # seconds after an interrupt in which a worker's process may still appear
_LOAD_LIMIT = 600.0  # seconds in which the process that workers are forked from is ready
_CLOSE_LIMIT = 20.0  # seconds that closing itself may take
_AFTER = 60.0  # seconds after the end of our patience in which nannies still have theirs

# By the variable that a user would set. Dask's profiler of workers wakes a hundred times a second to look at every
# thread: 3 % of a CNN on one core. All its event loops wake fifty times a second to see if they are late, workers and
# nannies ten times to look at their memory, and all twice to take the system's figures for the dashboard. Those of two
# workers, their nannies and the scheduler took 9 % of a core while nothing was done, 1.5 % so.
_QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": ("distributed.worker.profile.enabled", False),
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": ("distributed.admin.tick.interval", "500ms"),
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": ("distributed.admin.system-monitor.interval", "2s"),
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": (
        "distributed.worker.memory.monitor-interval",
        "500ms",
    ),
}

# Read by OpenMP, MKL and OpenBLAS when they are loaded. distributed sets all three to 1 by default.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


_HASH_SEED = "6640"  # distributed's
_PARENT = "__DASK_PARENT_PID"  # by which distributed gives processes a name, not by that of their own


def cpu_workers(
    n_workers: int | None, threads_per_worker: int | None, cores: int, memory: int
) -> tuple[int, int]:
    """Number of CPU workers, and of the tasks that each runs at a time.

    Many workers of one torch thread each, not the reverse: EfficientNet-Lite0 embeds about 1.27 times as many
    images per second of processor time with one thread as with two that share a batch (15.4 to 12.1, median
    of 7 alternating runs on a busy 2-core AVX2 machine).

    Parameters
    ----------
    n_workers, threads_per_worker
        As for `get_client`.
    cores
        Cores to share.
    memory
        Bytes to share.
    """
    if n_workers is None:
        n_workers = min(cores // (threads_per_worker or 1), memory // MIN_WORKER_MEMORY)
    return max(1, n_workers), threads_per_worker or 1


def spawn_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment that the process of a CPU worker begins with, whose own is `env`; as nannies make it."""
    import dask

    pre_spawn = {**dask.config.get("distributed.nanny.pre-spawn-environ", {}), **MALLOC}
    wanted = {name: str(value) for name, value in pre_spawn.items() if value is not None}
    threads = {name: env[name] for name in THREAD_VARIABLES if name in env}
    own = {name: value for name, value in os.environ.items() if name != _PARENT}
    if own.get("PYTHONHASHSEED", "0") == "0":  # all workers are to have one
        own["PYTHONHASHSEED"] = _HASH_SEED
    return {**wanted, **own, **threads}


def start_cluster(
    device: str, options: dict[str, Any], env: dict[str, str], timeout: float
) -> distributed.Client:
    """Start the cluster and the client that owns it, and wait for all workers."""
    from dask.utils import parse_timedelta

    forked = device == "cpu" and forking.is_for(spawn_environment(env))
    if forked:  # a nanny that gives up while the process that is to be forked still loads would be waited for for ever
        options = {**options, "death_timeout": max(options.get("death_timeout", 0), _LOAD_LIMIT)}
        patience = None
    else:  # so would one that gives up while its worker still imports
        patience = min(timeout, parse_timedelta(options.get("death_timeout") or timeout))
        options = {**options, "death_timeout": patience + _AFTER}
    held = hold((LOST_WORKER, SHUFFLE, *([forking.FORKED] if forked else [])))
    try:
        cluster = _started(device, options, env, timeout, patience)
        client: distributed.Client | None = None
        try:
            client = _owning_client_class()(cluster, timeout=timeout, held=held)
            _wait_for_workers(client, options["n_workers"], device, timeout)
        except BaseException:
            if client is not None:
                client.close()
            cluster.close()
            raise
    except BaseException:
        held.close()
        raise
    return client


def _started(
    device: str, options: dict[str, Any], env: dict[str, str], timeout: float, patience: float | None
) -> Cluster:
    """The cluster, whose workers are up; those that are not after `patience` seconds are killed."""
    import dask
    from distributed import LocalCluster

    from curator_dask.cluster.setup import quiet_scratch

    cluster_class: Any = LocalCluster
    if device == "gpu":
        from dask_cuda import LocalCUDACluster

        cluster_class = with_environment(LocalCUDACluster, env)
    # A worker's own `env` is set after it has imported the main script, too late if that imports torch. So
    # the variables of the threads are also in this process's environment while the workers are spawned.
    spawning = {name: env[name] for name in THREAD_VARIABLES if name in env}
    pre_spawn = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    # For the event loops of scheduler and nannies, and for workers: their nannies keep it for those started again.
    quiet = dict(setting for variable, setting in _QUIET.items() if variable not in os.environ)
    if device == "cpu":  # also for workers of nannies that a scaled cluster adds
        options = {**options, "config": {**quiet, **(options.get("config") or {})}}
    others, children = set(LocalCluster._instances), multiprocessing.active_children()
    quiet_scratch()
    try:
        with (
            _uninterrupted_loop(timeout) as loop,
            _killed_if_late(others, patience),
            _environment(spawning),
            dask.config.set(
                {
                    **quiet,
                    # What malloc reads must be there before the process is; the user's own environment wins.
                    "distributed.nanny.pre-spawn-environ": {
                        **pre_spawn,
                        **(MALLOC if device == "cpu" else {}),
                    },
                }
            ),
            warnings.catch_warnings(),
        ):
            # The dashboard moves to a free port by itself, and the line that is logged says where it is.
            warnings.filterwarnings("ignore", message=r"Port \d+ is already in use")
            cluster: Cluster = cluster_class(**{"loop": loop, **options})
            return cluster
    except KeyboardInterrupt:
        _abandon(others, children)
        raise
    except Exception as error:
        raise ClusterError(
            f"the {device} cluster did not start: {str(error) or type(error).__name__}. Worker processes print "
            f"above why they ended. If they were only slow, raise timeout (now {timeout:g} s). If the script "
            "calls get_client outside `if __name__ == '__main__':`, put the call below that line"
        ) from error


@contextmanager
def _killed_if_late(others: set[Any], patience: float | None) -> Iterator[None]:
    """Kill workers of a new cluster that are still starting after a while: their nannies say so then.

    A nanny whose own patience ends first closes itself, which fails while its worker is starting (distributed's
    WorkerProcess.kill), and then waits for ever to be closed.
    """
    from distributed import LocalCluster

    def kill() -> None:
        # A copy each time: the loop adds others meanwhile.
        for nanny in [
            each for cluster in {*LocalCluster._instances} - others for each in [*cluster._created]
        ]:
            process = getattr(nanny, "process", None)
            starting = getattr(getattr(process, "status", None), "name", "") == "starting"
            if starting and (pid := getattr(process, "pid", None)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    if patience is None:
        yield
        return
    timer = threading.Timer(patience, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def _owning_client_class() -> type[distributed.Client]:
    """A Client that closes its cluster with itself; made on first use, because distributed loads then."""
    import distributed

    class ClusterClient(client_class()):  # type: ignore[misc]
        """A `distributed.Client` that owns its cluster: closing it closes the cluster too."""

        def close(self, *args: Any, **kwargs: Any) -> Any:
            cluster = self.cluster
            self.forget()
            with self._held_settings.pop_all():  # until the cluster is closed, too
                result = distributed.Client.close(self, *args, **kwargs)
                if cluster is not None:
                    _close_quietly(cluster)
            return result

    return ClusterClient


def _close_quietly(cluster: Cluster) -> None:
    # A worker that has torch loaded takes seconds to end; that it is killed then does no harm.
    _wait_for_starting_workers(cluster)
    logs = [logging.getLogger(name) for name in ("distributed", "tornado.application")]
    levels = [log.level for log in logs]
    logs[0].setLevel(logging.ERROR)
    logs[1].setLevel(logging.CRITICAL)  # tracebacks of what was under way in the loop
    try:
        _close(cluster)
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _abandon(others: set[Any], children: list[Any]) -> None:
    """End what a cluster has started that was interrupted meanwhile; it cannot be closed before it is up.

    Parameters
    ----------
    others, children
        Clusters and processes that were there before it.
    """
    from distributed import LocalCluster
    from distributed.core import Status

    abandoned = set(LocalCluster._instances) - others
    for cluster in abandoned:
        cluster.shutdown_on_close = False  # at the end of this process, where it would fail
    logging.getLogger("asyncio").addFilter(_not_of_a_killed_start)
    # A nanny's thread may be about to start another: that would find its parent gone, and say so with a traceback.
    end = time.monotonic() + _SPAWN_LIMIT
    while time.monotonic() < end:
        # A nanny that was up would start a worker in place of each that ends.
        with contextlib.suppress(RuntimeError):  # the loop makes another just now: the next time then
            for nanny in [each for cluster in abandoned for each in cluster._created]:
                nanny.status = Status.closing
        for process in multiprocessing.active_children():
            if process not in children:
                process.kill()
        time.sleep(0.02)


def _not_of_a_killed_start(record: logging.LogRecord) -> bool:
    """False for the traceback of a nanny whose worker was killed before it was up."""
    return not (record.exc_info and str(record.exc_info[1]) == "Nanny failed to start.")


def _close(cluster: Any) -> None:
    """Close a cluster in bounded time: a nanny whose worker died while it started may wait for it for ever."""
    processes = [getattr(nanny, "process", None) for nanny in cluster.workers.values()]
    try:
        cluster.close(timeout=_CLOSE_LIMIT)
    except (TimeoutError, AssertionError):  # the latter from Nanny.kill, of a worker that is starting again
        cluster.shutdown_on_close = False  # at the end of this process, where it would fail again
        for process in processes:
            if pid := getattr(process, "pid", None):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _wait_for_starting_workers(cluster: Any) -> None:
    """Let workers come up that are being started again: a nanny cannot close before (distributed's Nanny.kill)."""
    end = time.monotonic() + _START_LIMIT
    processes = [getattr(nanny, "process", None) for nanny in cluster.workers.values()]
    # By its name: a client that was never closed is when Python ends, where nothing can be imported any more.
    while any(getattr(getattr(each, "status", None), "name", "") == "starting" for each in processes):
        if time.monotonic() > end:
            return
        time.sleep(0.05)


def _wait_for_workers(client: distributed.Client, expected: int, device: str, timeout: float) -> None:
    """Wait until a new cluster has so many workers.

    Raises
    ------
    ClusterError
        It has not after `timeout` seconds.
    """
    try:
        client.wait_for_workers(expected, timeout=timeout)
    except TimeoutError:
        came = len(client.scheduler_info(n_workers=-1)["workers"])
        raise ClusterError(
            f"the new {device} cluster has {counted(came, 'worker')} after {timeout:g} s, expected {expected}."
            f" Look at the "
            "workers' logs, and that they have memory; raise timeout if they are only slow"
        ) from None


@contextmanager
def _uninterrupted_loop(timeout: float) -> Iterator[Any]:
    """An event loop in a thread that Ctrl-C does not reach, nor the workers that it starts, now and later (`spared`).

    Raises
    ------
    TimeoutError
        The machine is so slow that no loop runs after `timeout` seconds.
    """
    with spared():
        runner = _started_loop(timeout)
    try:
        yield runner.loop
    finally:
        runner.stop()  # which it does when the cluster, too, has stopped it


def _started_loop(timeout: float) -> Any:
    """An event loop in a thread of its own, by the `LoopRunner` of distributed that started it.

    distributed gives the loop's thread ten seconds and then fails an assertion; a machine that stands still for so
    long, as virtual ones do, has the thread ready a moment later. So it is tried again, with a new thread: the late
    one waits in a loop of its own, without work, until the process ends.
    """
    from distributed.utils import LoopRunner

    end = time.monotonic() + timeout
    while True:
        runner = LoopRunner()
        try:
            runner.start()
        except AssertionError:
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"no event loop runs after {timeout:g} s, this machine is too slow"
                ) from None
        else:
            return runner


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Put these variables into this process's environment and put it back on leaving.

    Also takes back what distributed leaves of the same variables when it spawns workers; the next cluster
    would take it for the user's own setting.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
