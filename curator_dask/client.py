"""`get_client`: start a cluster on this machine's GPUs or cores, or connect to one that runs.

Everything here happens on the client. What a worker needs to know (its device, its number of threads) travels
in its environment, so that it also holds for a worker that is restarted.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import inspect
import json
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dask import backend
from curator_dask.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    import distributed
    from distributed.deploy.cluster import Cluster

logger = logging.getLogger(__name__)

# A task is given up after this many deaths of the worker it was on. A bad task takes innocent ones that wait
# on the same worker with it (distributed#1469, #2694), so Dask's 3 blames tasks that did nothing.
ALLOWED_FAILURES = 10

# What a CPU worker needs for Python, torch, one model and a shard's pixels, with room to spare.
MIN_WORKER_MEMORY = 2 * 2**30  # bytes

# A scheduler that does not answer in this many seconds is not there; workers may take longer to come.
CONNECT_LIMIT = 30.0

# Read by OpenMP, MKL and OpenBLAS when they are loaded. distributed sets all three to 1 by default.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_GUARD_HINT = (
    "the script starts a cluster outside `if __name__ == '__main__':`. Each worker is a new Python process "
    "that imports the script first, so it would start clusters of its own. Put the call below that line:\n\n"
    "    if __name__ == '__main__':\n"
    "        client = get_client(...)\n"
    "        ...\n"
)


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
    timeout: float = 120,
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
        Number of workers. Default on GPUs: one each. On CPUs: one a core, fewer if there is less than 2 GiB
        of memory for each (cores and memory as the container's limits give them).
    threads_per_worker
        Tasks that one worker runs at a time. Default on GPUs 2, so that one reads and writes files while the
        other computes; on CPUs 1. It does not change the number of torch threads of a CPU worker, which is
        ``cores // n_workers`` unless ``env={"OMP_NUM_THREADS": ...}`` says otherwise.
    nvlink_only
        GPU: workers talk over NVLink alone. Needs ``protocol="ucx"``.
    protocol
        ``"tcp"``, ``"tls"`` or ``"ucx"``. ucx is for GPU clusters (a CPU one uses tcp then) and
        needs the package ``distributed-ucxx``.
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
    timeout
        Seconds to wait for workers: for all of a new cluster's, for at least one of a running cluster's.
        (For the answer of a running scheduler 30 at most.)
    verbose
        Print one line that says what was started and where its dashboard is.
    **cluster_kwargs
        Further options of `dask_cuda.LocalCUDACluster` (gpu) or `distributed.LocalCluster` (cpu), such as
        ``memory_limit``, ``device_memory_limit``, ``local_directory``, ``dashboard_address``, ``env``.
        ``security`` is also taken when connecting.

    Returns
    -------
    distributed.Client
        Connected, with workers.

    Raises
    ------
    ConfigError
        An unknown option or ``cluster_type``; options that exclude one another; options of a new cluster
        together with a running one.
    ClusterError
        No GPU or no GPU packages for ``"gpu"``; the scheduler or its file cannot be reached or read; no
        workers within the timeout; a script that starts a cluster outside ``if __name__ == "__main__":``.

    Notes
    -----
    Options marked GPU are ignored by a CPU cluster, so that one script runs on both.
    """
    if cluster_type not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"cluster_type={cluster_type!r}: expected 'auto', 'cpu' or 'gpu'")
    if not timeout > 0:
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
        security = cluster_kwargs.pop("security", None)
        _refuse_new_cluster_options(options, cluster_kwargs)
        if scheduler_file is not None:
            scheduler_address = _read_scheduler_file(Path(scheduler_file))
        return _connect(scheduler_address, security, timeout, verbose)

    for name in ("n_workers", "threads_per_worker"):
        value = options[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r}: expected a whole number from 1 up, or None")
    variable = os.environ.get(backend.DEVICE_VARIABLE, "").lower()
    device, reason = choose_device(cluster_type, backend.gpu_count(), _missing_gpu_packages(), variable)
    _check_cluster_kwargs(device, cluster_kwargs)
    _check_main_guard()
    user_env = {name: str(value) for name, value in (cluster_kwargs.pop("env", None) or {}).items()}
    shared = {
        # Bounds how long a worker's process may take to come up; without it a process that dies while it
        # imports the main script is waited for without end.
        "death_timeout": timeout,
        **cluster_kwargs,
        "scheduler_kwargs": {
            "allowed_failures": ALLOWED_FAILURES,
            **(cluster_kwargs.get("scheduler_kwargs") or {}),
        },
    }
    if device == "gpu":
        visible = cluster_kwargs.get("CUDA_VISIBLE_DEVICES")
        if isinstance(visible, str):
            visible = visible.split(",")
        shared |= gpu_options(options, backend.gpu_count() if visible is None else len(visible))
        env = {backend.DEVICE_VARIABLE: "gpu", **user_env}
        torch_threads = ""
    else:
        from dask.system import CPU_COUNT
        from distributed.system import MEMORY_LIMIT

        workers, tasks = cpu_workers(n_workers, threads_per_worker, CPU_COUNT, MEMORY_LIMIT)
        shared |= {"n_workers": workers, "threads_per_worker": tasks}
        if protocol not in ("tcp", "ucx", "ucxx"):  # ucx is for GPUs: left out like the other GPU options
            shared["protocol"] = protocol
        threads = user_env.get("OMP_NUM_THREADS") or str(max(1, CPU_COUNT // workers))
        env = {
            backend.DEVICE_VARIABLE: "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            **dict.fromkeys(_THREAD_VARIABLES, threads),
            **user_env,
        }
        shared["env"] = env
        torch_threads = f", torch threads each {threads}"
    client = _start(device, shared, env, timeout)
    if verbose:
        print(
            f"Dask {device} cluster{reason}: workers {shared['n_workers']}, tasks at a time each "
            f"{shared['threads_per_worker']}{torch_threads}; {_dashboard(client)}"
        )
    return client


def choose_device(cluster_type: str, gpus: int, missing: list[str], variable: str) -> tuple[str, str]:
    """The device of a new cluster, and why, as an addition to the printed line.

    Parameters
    ----------
    cluster_type
        As for `get_client`.
    gpus
        How many GPUs there are.
    missing
        Which packages for GPUs are not installed.
    variable
        The value of ``CURATOR_DASK_DEVICE``, empty if unset.

    Raises
    ------
    ClusterError
        A GPU cluster is asked for and cannot be had.
    """
    reason = ""
    if cluster_type == "auto":
        if variable in ("cpu", "gpu"):
            cluster_type, reason = variable, f" ({backend.DEVICE_VARIABLE}={variable})"
        elif not gpus:
            return "cpu", " (no GPU found)"
        elif missing:
            return "cpu", f" ({gpus} GPUs found, but not the packages for them: {', '.join(missing)})"
        else:
            cluster_type, reason = "gpu", f" ({gpus} GPUs found)"
    if cluster_type == "gpu" and (problem := gpu_problem(gpus, missing)):
        raise ClusterError(problem)
    return cluster_type, reason


def _missing_gpu_packages() -> list[str]:
    return [name for name in ("dask_cuda", "cudf", "rmm") if importlib.util.find_spec(name) is None]


def gpu_problem(gpus: int, missing: list[str]) -> str | None:
    """Why a GPU cluster cannot be started here, or None."""
    if not gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        return (
            f"cluster_type='gpu', but the NVIDIA driver shows no GPU{seen}: check nvidia-smi, and in a "
            "container that it was started with its GPUs. cluster_type='cpu' runs on the cores, 'auto' takes "
            "what is there"
        )
    if missing:
        return (
            f"cluster_type='gpu' needs packages that are not installed: {', '.join(missing)}. "
            'pip install "curator-dask[cuda13]" or "curator-dask[cuda12]", whichever CUDA the driver serves '
            "(nvidia-smi says). cluster_type='cpu' runs without them"
        )
    return None


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


def gpu_options(options: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    """The options of LocalCUDACluster that stand for get_client's.

    Parameters
    ----------
    options
        All options of `get_client` for a new cluster, by name.
    gpus
        How many GPUs there are.

    Raises
    ------
    ConfigError
        More workers than GPUs, or options that exclude one another.
    ClusterError
        ucx without its package.
    """
    n_workers = options["n_workers"]
    if n_workers is not None and n_workers > gpus:
        raise ConfigError(
            f"n_workers={n_workers}: a GPU cluster has one worker a GPU, expected at most {gpus}"
        )
    protocol = options["protocol"]
    if options["nvlink_only"] and protocol not in ("ucx", "ucxx"):
        raise ConfigError(f"nvlink_only=True needs protocol='ucx', got protocol={protocol!r}")
    if protocol in ("ucx", "ucxx") and importlib.util.find_spec("distributed_ucxx") is None:
        raise ClusterError(
            f"protocol={protocol!r} needs a package that is not installed: pip install distributed-ucxx-cu13 "
            "(or -cu12), or use protocol='tcp'"
        )
    # dask-cuda refuses both together; rmm_async is on by default, so that managed memory takes its place.
    rmm_async = options["rmm_async"] and not options["rmm_managed_memory"]
    if options["rmm_release_threshold"] is not None and not rmm_async:
        raise ConfigError(
            f"rmm_release_threshold={options['rmm_release_threshold']!r} is an option of the asynchronous "
            "allocator: it needs rmm_async=True and rmm_managed_memory=False"
        )
    if options["rmm_maximum_pool_size"] is not None and not rmm_async and options["rmm_pool_size"] is None:
        raise ConfigError("rmm_maximum_pool_size needs rmm_async=True or an rmm_pool_size")
    mapped: dict[str, Any] = {
        "n_workers": n_workers or gpus,
        "threads_per_worker": options["threads_per_worker"] or 2,
        "protocol": protocol,
        "enable_cudf_spill": options["enable_spilling"],
        **{name: value for name, value in options.items() if name.startswith("rmm_")},
        "rmm_async": rmm_async,
        # A pool beside the asynchronous allocator is deprecated in dask-cuda 26.10 (rmm#2060).
        "rmm_pool_size": None if rmm_async else options["rmm_pool_size"],
    }
    if options["set_torch_to_use_rmm"]:
        # dask-cuda's worker plugin sets torch's allocator from rmm.allocators.torch before the first task.
        mapped["rmm_allocator_external_lib_list"] = ["torch"]
    if options["nvlink_only"]:
        mapped |= {
            "enable_tcp_over_ucx": True,
            "enable_nvlink": True,
            "enable_infiniband": False,
            "enable_rdmacm": False,
        }
    return mapped


def _start(device: str, options: dict[str, Any], env: dict[str, str], timeout: float) -> distributed.Client:
    """Start the cluster and the client that owns it, and wait for all workers."""
    import dask
    from distributed import LocalCluster

    cluster_class: Any = LocalCluster
    if device == "gpu":
        from dask_cuda import LocalCUDACluster

        cluster_class = LocalCUDACluster
    # A worker's own `env` is set after it has imported the main script, too late if that imports torch. So
    # the variables of the threads are also in this process's environment while the workers are spawned.
    spawning = {name: env[name] for name in _THREAD_VARIABLES if name in env}
    # LocalCUDACluster replaces `env`; this is the other way to the same place.
    nanny_env = {**dask.config.get("distributed.nanny.environ", {}), **env}
    try:
        with (
            _environment(spawning),
            dask.config.set({"distributed.nanny.environ": nanny_env}),
            warnings.catch_warnings(),
        ):
            # The dashboard moves to a free port by itself, and the printed line says where it is.
            warnings.filterwarnings("ignore", message=r"Port \d+ is already in use")
            cluster = cluster_class(**options)
    except Exception as error:
        raise ClusterError(
            f"the {device} cluster did not start: {error or type(error).__name__}. Worker processes print "
            f"above why they ended. If they were only slow, raise timeout (now {timeout:g} s). If the script "
            "calls get_client outside `if __name__ == '__main__':`, put the call below that line"
        ) from error
    client: distributed.Client | None = None
    try:
        client = _owning_client_class()(cluster, timeout=timeout)
        _wait_for_workers(client, options["n_workers"], f"the new {device} cluster", timeout)
    except BaseException:
        if client is not None:
            client.close()
        cluster.close()
        raise
    return client


@functools.cache
def _owning_client_class() -> type[distributed.Client]:
    """A Client that closes its cluster with itself; made on first use, because distributed loads then."""
    import distributed

    class ClusterClient(distributed.Client):
        """A `distributed.Client` that owns its cluster: closing it closes the cluster too."""

        def close(self, *args: Any, **kwargs: Any) -> Any:
            cluster = self.cluster
            result = super().close(*args, **kwargs)
            if cluster is not None:
                cluster.close()
            return result

    return ClusterClient


def _connect(target: Any, security: Any, timeout: float, verbose: bool) -> distributed.Client:
    """A client of the cluster that runs at an address or is a cluster object."""
    from distributed import Client

    if not isinstance(target, str) and not hasattr(target, "scheduler_address"):
        raise ConfigError(
            f"scheduler_address={target!r}: expected an address such as 'tcp://10.0.0.1:8786' or a cluster"
        )
    address = target if isinstance(target, str) else target.scheduler_address
    extra = {} if security is None else {"security": security}
    limit = min(timeout, CONNECT_LIMIT)
    try:
        client = Client(target, timeout=limit, **extra)
    except Exception as error:
        raise ClusterError(
            f"no Dask scheduler answered at {address!r} within {limit:g} s ({error or type(error).__name__})."
            " Check that `dask scheduler` runs there, that the port is open from this machine, and that both "
            "sides have the same dask"
        ) from error
    try:
        _wait_for_workers(client, 1, f"the scheduler at {address}", timeout)
    except BaseException:
        client.close()
        raise
    if verbose:
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        print(f"Dask scheduler at {address}: workers {count}; {_dashboard(client)}")
    return client


def _wait_for_workers(client: distributed.Client, expected: int, whose: str, timeout: float) -> None:
    try:
        client.wait_for_workers(expected, timeout=timeout)
    except TimeoutError:
        came = len(client.scheduler_info(n_workers=-1)["workers"])
        raise ClusterError(
            f"{whose} has {came} workers after {timeout:g} s, expected at least {expected}. Look at the "
            "workers' logs; check that they were started with this scheduler's address and that they have "
            "memory; a cluster that scales itself needs minimum=1; raise timeout if they are only slow"
        ) from None


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


def _check_cluster_kwargs(device: str, cluster_kwargs: Mapping[str, Any]) -> None:
    """Refuse what the cluster would refuse late, in a worker's process, or take with no effect."""
    from distributed import LocalCluster, Nanny, Worker

    for name, needed in (("processes", True), ("asynchronous", False)):
        if cluster_kwargs.get(name, needed) is not needed:
            raise ConfigError(
                f"{name}={cluster_kwargs[name]!r}: get_client starts clusters of processes and uses them "
                "synchronously. Start another kind yourself and pass it as scheduler_address"
            )
    classes: list[type] = [LocalCluster, Nanny, Worker, *Worker.__mro__]
    if device == "gpu":
        from dask_cuda import LocalCUDACluster

        classes.append(LocalCUDACluster)
    known = {name for each in classes for name in inspect.signature(each.__init__).parameters}  # type: ignore[misc]
    known -= {"self", "args", "kwargs", "worker_kwargs"}
    for name in cluster_kwargs:
        if name not in known:
            ours = set(inspect.signature(get_client).parameters)
            near = difflib.get_close_matches(name, sorted(known | ours), n=3)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"unknown option {name}={cluster_kwargs[name]!r} for a {device} cluster{hint}")


def _check_main_guard() -> None:
    """Stop before the first process if workers would run the main script's call to `get_client` again.

    Raises
    ------
    ClusterError
        This process is a worker's that imports the main script, or the line of the main script that led here
        is not below an `if` about ``__name__``.
    """
    import dask

    # Set by multiprocessing while a spawned process imports the main script.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ClusterError(_GUARD_HINT)
    if dask.config.get("distributed.worker.multiprocessing-method") == "fork":
        return
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    spec_name = getattr(getattr(main, "__spec__", None), "name", "") or ""
    # Spawned processes import neither what has no file (python -c, a notebook) nor a package's __main__.
    if main is None or path is None or spec_name.rpartition(".")[2] == "__main__":
        return
    frame = inspect.currentframe()
    while frame is not None and not (
        frame.f_code.co_name == "<module>"
        and frame.f_globals is vars(main)
        and frame.f_code.co_filename == path
    ):
        frame = frame.f_back
    if frame is None:
        return
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    line = frame.f_lineno
    for node in ast.walk(tree):
        # `if` about the process (multiprocessing.parent_process()) also tells script from worker.
        if (
            isinstance(node, ast.If)
            and node.lineno <= line <= (node.end_lineno or node.lineno)
            and any(word in ast.unparse(node.test) for word in ("__name__", "process"))
        ):
            return
    raise ClusterError(f"{path}, line {line}: {_GUARD_HINT}")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Put these variables into this process's environment and put it back on leaving.

    Also takes back what distributed leaves of the same variables when it spawns workers; the next cluster
    would take it for the user's own setting.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
