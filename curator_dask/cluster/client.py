"""`get_client`: start a cluster on this machine's GPUs or cores, or connect to one that runs.

Everything here happens on the client. What a worker needs to know (its device, its number of threads) travels
in its environment, so that it also holds for a worker that is restarted.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dask import backend
from curator_dask.cluster import forking
from curator_dask.cluster.dask_settings import SHUFFLE, client_class, hold, open_clients
from curator_dask.cluster.device import device_of_new_workers
from curator_dask.cluster.gpu import gpu_options
from curator_dask.cluster.limits import Limits, limits_here, scratch_of_job
from curator_dask.cluster.local import (
    THREAD_VARIABLES,
    cpu_workers,
    spawn_environment,
    start_cluster,
)
from curator_dask.cluster.main_guard import check_main_guard
from curator_dask.cluster.options import check_cluster_kwargs, check_security
from curator_dask.console import show_in_notebook
from curator_dask.errors import ClusterError, ConfigError
from curator_dask.settings import check_variables
from curator_dask.words import counted

if TYPE_CHECKING:
    import distributed
    from distributed.deploy.cluster import Cluster
    from distributed.security import Security

logger = logging.getLogger("curator_dask")

# A scheduler that does not answer in this many seconds is not there; workers may take longer to come.
CONNECT_LIMIT = 30.0
# Workers that this process starts are there in seconds.
START_LIMIT = 120.0


def get_client(
    cluster_type: str = "auto",
    scheduler_address: str | Cluster | None = None,
    scheduler_file: str | os.PathLike[str] | None = None,
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    nvlink_only: bool = False,
    protocol: str = "tcp",
    rmm_pool_size: str | int | float | None = "1024M",
    enable_spilling: bool = True,
    set_torch_to_use_rmm: bool = False,
    rmm_async: bool = True,
    rmm_maximum_pool_size: str | int | float | None = None,
    rmm_managed_memory: bool = False,
    rmm_release_threshold: str | int | float | None = None,
    *,
    security: Security | bool | None = None,
    timeout: float | None = None,
    verbose: bool = True,
    **cluster_kwargs: Any,
) -> distributed.Client:
    """A Dask client, of a new cluster on this machine or of one that runs already.

    Closing the client (``client.close()`` or the end of its ``with`` block) closes the cluster if this call
    started it, and leaves it alone if it was running before. Each call without an address starts a new
    cluster, and its client becomes Dask's default (inside another client's ``with`` block that one stays it);
    earlier clusters stay up until their clients are closed.

    Parameters
    ----------
    cluster_type
        ``"gpu"``: one worker a GPU. ``"cpu"``: workers x torch threads = cores. ``"auto"``: what the
        environment variable ``CURATOR_DASK_DEVICE`` says, else gpu where a GPU and the GPU packages are
        found, else cpu. Without a meaning when a running cluster is given.
    scheduler_address
        Connect to this cluster: an address such as ``"tcp://10.0.0.1:8786"``, or a Dask cluster object.
        Options of a new cluster are then refused where they differ from their defaults.
    scheduler_file
        The same, by the JSON file that ``dask scheduler --scheduler-file`` writes.
    n_workers
        Number of workers. Default on GPUs: one each. On CPUs: one a core, fewer if there is less than 3 GiB
        of memory for each (cores and memory as the limits of the container or of Slurm's job give them).
    threads_per_worker
        Tasks that one worker runs at a time. Default on GPUs 2, so that one reads and writes files while the
        other computes; on CPUs 1. It does not change the number of torch threads of a CPU worker, which is
        ``cores // n_workers`` unless ``env={"OMP_NUM_THREADS": ...}`` says otherwise.
    nvlink_only
        GPU: workers talk over NVLink alone. Needs ``protocol="ucx"``.
    protocol
        ``"tcp"``, ``"tls"`` (with `security`) or ``"ucx"``. ucx is for GPU clusters (a CPU one uses tcp then)
        and needs the package ``distributed-ucxx``.
    rmm_pool_size
        GPU: initial size of RMM's pool in each worker: bytes, text such as ``"10GB"``, a fraction of the
        device's memory, or None for no pool. Used with ``rmm_async=False`` only; the asynchronous allocator
        grows as needed.
    enable_spilling
        GPU: cuDF moves frames to host memory when the device is full.
    set_torch_to_use_rmm
        GPU: torch allocates through RMM too, so that both share one pool.
    rmm_async
        GPU: RMM uses CUDA's asynchronous allocator.
    rmm_maximum_pool_size
        GPU: upper limit of what RMM allocates in each worker.
    rmm_managed_memory
        GPU: RMM uses managed memory, in place of the asynchronous allocator.
    rmm_release_threshold
        GPU: the asynchronous allocator gives memory above this size back. Needs ``rmm_async``.
    security
        Certificates for TLS, of a new cluster or to connect to one: `distributed.security.Security`. True makes
        temporary ones for a new cluster (its ``client.security`` lets others connect). None: those of Dask's
        configuration (``distributed.comm.tls``), if it has any.
    timeout
        Seconds to wait for workers: for all of a new cluster's, by default 120; for one of a running cluster's, by
        default what the environment variable ``CURATOR_DASK_PATIENCE`` says, 600 without it. (For the answer of a
        running scheduler 30 at most.)
    verbose
        Log one line that says what was started and where its dashboard is.
    **cluster_kwargs
        Further options of `dask_cuda.LocalCUDACluster` (gpu) or `distributed.LocalCluster` (cpu), such as
        ``memory_limit``, ``device_memory_limit``, ``local_directory``, ``dashboard_address``, ``env``.

    Returns
    -------
    distributed.Client
        Connected, with workers.

    Raises
    ------
    ConfigError
        An unknown option or ``cluster_type``; a bad value of an environment variable; options that exclude one
        another; options of a new cluster together with a running one.
    ClusterError
        No GPU or no GPU packages for ``"gpu"``; the scheduler or its file cannot be reached or read; no
        workers within the timeout; a script that starts a cluster outside ``if __name__ == "__main__":``.

    Notes
    -----
    Options marked GPU are ignored by a CPU cluster, so that one script runs on both.
    """
    show_in_notebook()
    check_variables()
    if cluster_type not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"cluster_type={cluster_type!r}: expected 'auto', 'cpu' or 'gpu'")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"timeout={timeout!r}: expected a positive number of seconds")
    options = {
        "n_workers": n_workers,
        "threads_per_worker": threads_per_worker,
        "nvlink_only": nvlink_only,
        "protocol": protocol,
        "enable_spilling": enable_spilling,
        "set_torch_to_use_rmm": set_torch_to_use_rmm,
        "rmm_pool_size": rmm_pool_size,
        "rmm_async": rmm_async,
        "rmm_maximum_pool_size": rmm_maximum_pool_size,
        "rmm_managed_memory": rmm_managed_memory,
        "rmm_release_threshold": rmm_release_threshold,
    }
    if scheduler_address is not None or scheduler_file is not None:
        if scheduler_address is not None and scheduler_file is not None:
            raise ConfigError(
                f"scheduler_address={scheduler_address!r} and scheduler_file={str(scheduler_file)!r} were "
                "both given: give one of them"
            )
        if security is True:
            raise ConfigError(
                "security=True makes certificates for a new cluster; to connect to one give the Security that its"
                " scheduler was started with"
            )
        check_security(security, "")
        _refuse_new_cluster_options(options, cluster_kwargs)
        if scheduler_file is not None:
            scheduler_address = _read_scheduler_file(Path(scheduler_file))
        return _connect(scheduler_address, security, timeout, verbose)

    timeout = START_LIMIT if timeout is None else timeout
    for name in ("n_workers", "threads_per_worker"):
        value = options[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r}: expected a whole number from 1 up, or None")
    device, reason = device_of_new_workers(cluster_type)
    limits = limits_here(backend.gpu_count() if device == "gpu" else 0)
    check_cluster_kwargs(device, cluster_kwargs, set(inspect.signature(get_client).parameters))
    check_security(security, protocol)
    check_main_guard()
    user_env = {name: str(value) for name, value in (cluster_kwargs.pop("env", None) or {}).items()}
    shared = {
        # Bounds how long a worker's process may take to come up; without it a process that dies while it
        # imports the main script is waited for without end.
        "death_timeout": timeout,
        **cluster_kwargs,
        **({} if security is None else {"security": security}),
    }
    if device == "gpu":
        visible = cluster_kwargs.get("CUDA_VISIBLE_DEVICES")
        if isinstance(visible, str):
            visible = visible.split(",")
        shared |= gpu_options(options, backend.gpu_count() if visible is None else len(visible))
        # What a pipeline stage's num_gpus_per_worker is a share of.
        shared["resources"] = {"GPU": 1, **(cluster_kwargs.get("resources") or {})}
        env = {backend.DEVICE_VARIABLE: "gpu", **user_env}
        torch_threads = ""
    else:
        workers, tasks, env = _cpu_workers(n_workers, threads_per_worker, user_env, limits)
        shared |= {"n_workers": workers, "threads_per_worker": tasks}
        if protocol not in ("tcp", "ucx", "ucxx"):  # ucx is for GPUs: left out like the other GPU options
            shared["protocol"] = protocol
        shared["env"] = env
        torch_threads = f" and {env['OMP_NUM_THREADS']} torch threads"
    if limits.why:  # Dask would share what the machine has
        shared.setdefault("memory_limit", limits.memory // shared["n_workers"])
        reason += f" ({limits.why})"
    if (scratch := scratch_of_job()) is not None:
        shared.setdefault("local_directory", scratch)
    for other in open_clients():
        if other.cluster is not None and other.scheduler is not None:
            logger.warning(
                "the cluster at %s that get_client() started before is still up: its workers keep their memory, and"
                " their GPUs, until its client is closed (client.close())",
                other.scheduler.address,
            )
    client = start_cluster(device, shared, env, timeout)
    from curator_dask.cluster.watching import offer_dashboard  # loads distributed

    offer_dashboard(client)
    if verbose:
        logger.info(
            "Dask %s cluster%s: %s, %s%s each; %s",
            device,
            reason,
            counted(shared["n_workers"], "worker"),
            counted(shared["threads_per_worker"], "task"),
            torch_threads,
            _dashboard(client),
        )
    return client


def load_ahead(cluster_type: str, n_workers: int | None) -> None:
    """Begin to load what workers embed with; `get_client` with these arguments then has them forked from there.

    For a caller that goes on to other things meanwhile, and is sure to embed. Workers of GPUs are spawned.
    """
    if device_of_new_workers(cluster_type)[0] == "cpu":
        import distributed  # noqa: F401 - its configuration says what environment workers begin with

        forking.begin(spawn_environment(_cpu_workers(n_workers, None, {}, limits_here())[2]))


def _cpu_workers(
    n_workers: int | None, threads_per_worker: int | None, user_env: Mapping[str, str], limits: Limits
) -> tuple[int, int, dict[str, str]]:
    """Number of CPU workers, of the tasks that each runs at a time, and their environment."""
    workers, tasks = cpu_workers(n_workers, threads_per_worker, limits.cores, limits.memory)
    threads = user_env.get("OMP_NUM_THREADS") or str(max(1, limits.cores // workers))
    env = {
        backend.DEVICE_VARIABLE: "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        **dict.fromkeys(THREAD_VARIABLES, threads),
        **user_env,
    }
    return workers, tasks, env


def _connect(target: Any, security: Any, timeout: float | None, verbose: bool) -> distributed.Client:
    """A client of the cluster that runs at an address or is a cluster object."""
    if not isinstance(target, str) and not hasattr(target, "scheduler_address"):
        raise ConfigError(
            f"scheduler_address={target!r}: expected an address such as 'tcp://10.0.0.1:8786' or a cluster"
        )
    address = target if isinstance(target, str) else target.scheduler_address
    extra = {} if security is None else {"security": security}
    from curator_dask.cluster.watching import offer_dashboard  # loads distributed
    from curator_dask.cluster.workers import wait_for_a_worker

    limit = CONNECT_LIMIT if timeout is None else min(timeout, CONNECT_LIMIT)
    held = hold([SHUFFLE])
    try:
        client = client_class()(target, timeout=limit, held=held, **extra)
    except BaseException as error:
        held.close()
        if not isinstance(error, Exception):
            raise
        secured = address.startswith("tls") or "TLS" in str(error)
        raise ClusterError(
            f"no Dask scheduler answered at {address!r} within {limit:g} s ({error or type(error).__name__}). "
            + (_TLS if secured else _NO_TLS)
        ) from error
    try:
        wait_for_a_worker(client, timeout)
        offer_dashboard(client)
    except BaseException:
        client.close()
        raise
    if verbose:
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        logger.info("Dask scheduler at %s: workers %d; %s", address, count, _dashboard(client))
    return client


_TLS = (
    "It speaks TLS: give security=, a distributed.security.Security with the certificates that scheduler and workers"
    " were started with (--tls-ca-file, --tls-cert, --tls-key), or name them in Dask's configuration"
    " (distributed.comm.tls)"
)
_NO_TLS = (
    "Check that `dask scheduler` runs there, that the port is open from this machine, that both sides have the same"
    " dask, and that it does not speak TLS (its address is then tls://…, and needs security=)"
)


def _read_scheduler_file(path: Path) -> str:
    try:
        address = json.loads(path.read_text(encoding="utf-8"))["address"]
    except FileNotFoundError:
        raise ClusterError(
            f"scheduler_file={str(path)!r} does not exist. `dask scheduler --scheduler-file {path}` writes "
            "it when it starts: check that it runs and that this machine sees the same folder"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"scheduler_file={str(path)!r} cannot be used ({type(error).__name__}: {error}): expected the "
            "JSON with an 'address' that `dask scheduler --scheduler-file` writes"
        ) from error
    return str(address)


def _refuse_new_cluster_options(options: Mapping[str, Any], cluster_kwargs: Mapping[str, Any]) -> None:
    defaults = inspect.signature(get_client).parameters
    given = [name for name, value in options.items() if value != defaults[name].default]
    given += cluster_kwargs
    if given:
        raise ConfigError(
            f"{', '.join(sorted(given))}: only for a new cluster, but scheduler_address or scheduler_file "
            "names a running one. Leave them out here and give them where that cluster is started"
        )


def _dashboard(client: distributed.Client) -> str:
    try:
        link = client.dashboard_link
    except (KeyError, ValueError):  # a scheduler that was started without one
        link = None
    if link and (client.cluster is None or importlib.util.find_spec("bokeh")):
        return f"dashboard: {link}"
    address = client.scheduler.address if client.scheduler else "?"
    why = "" if importlib.util.find_spec("bokeh") else " (pip install bokeh)"
    return f"no dashboard{why}, scheduler: {address}"
