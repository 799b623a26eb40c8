"""What a cluster of GPU workers is started with: dask-cuda's options, and the environment of its workers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from curator_dask.errors import ClusterError, ConfigError


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


def with_environment(cluster_class: Any, env: Mapping[str, str]) -> Any:
    """A class of clusters whose workers, those of a later ``scale`` too, have these variables in their environment.

    LocalCUDACluster replaces the option ``env``, and before ``distributed.nanny.environ`` a variable of this process
    goes: neither tells a worker its device where this process has been told another.

    Parameters
    ----------
    cluster_class
        Takes the specs of all its workers from ``new_worker_spec``, as LocalCUDACluster does.
    env
        What the class itself gives, a worker's own device, goes before it.
    """

    class WithEnvironment(cluster_class):  # type: ignore[misc]
        def new_worker_spec(self) -> Any:
            return {name: _with(spec, env) for name, spec in super().new_worker_spec().items()}

    WithEnvironment.__name__ = WithEnvironment.__qualname__ = cluster_class.__name__
    return WithEnvironment


def _with(spec: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    options = spec["options"]
    return {**spec, "options": {**options, "env": {**env, **(options.get("env") or {})}}}
