"""Options of a new cluster, checked before anything is started."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curator_dask.errors import ConfigError
from curator_dask.words import meant


def check_security(security: Any, protocol: str) -> None:
    """Refuse certificates that are not there, of which Dask says no more than that a scheduler failed.

    Parameters
    ----------
    security
        A `distributed.security.Security`, True (made for a new cluster), or None (those of Dask's configuration).
    protocol
        Of the cluster.

    Raises
    ------
    ConfigError
        A file is not there, or TLS is to be spoken without any.
    """
    from distributed.security import Security

    found: Any = security if isinstance(security, Security) else Security()
    for name in (
        "ca_file",
        *(f"{role}_{kind}" for role in ("client", "scheduler", "worker") for kind in _KINDS),
    ):
        text = getattr(found, f"tls_{name}")
        if text and "\n" not in text and not Path(text).is_file():  # else it is the certificate itself
            raise ConfigError(f"security: tls_{name}={text!r} is not a file on this machine")
    if protocol == "tls" and not security and not found.tls_ca_file:
        raise ConfigError(
            f"protocol='tls' with security={security!r}: TLS needs certificates. security=True makes temporary ones"
            " for this cluster (and chooses TLS by itself); for your own give distributed.security.Security("
            "tls_ca_file=…, tls_client_cert=…, …), or name them in Dask's configuration (distributed.comm.tls)"
        )


_KINDS = ("cert", "key")


def check_cluster_kwargs(device: str, cluster_kwargs: Mapping[str, Any], ours: set[str]) -> None:
    """Refuse what the cluster would refuse late, in a worker's process, or take with no effect.

    Parameters
    ----------
    device
        ``"cpu"`` or ``"gpu"``.
    cluster_kwargs
        Options for Dask's cluster.
    ours
        Names of our own options, for a hint at what was meant.

    Raises
    ------
    ConfigError
        One that no cluster knows, or that makes another kind of cluster.
    """
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
            hint = meant(name, sorted(known | ours))
            raise ConfigError(f"unknown option {name}={cluster_kwargs[name]!r} for a {device} cluster{hint}")
