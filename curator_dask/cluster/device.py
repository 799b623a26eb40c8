"""Whether new workers are of GPUs or of cores, and why."""

from __future__ import annotations

import importlib.util
import os

from curator_dask import backend
from curator_dask.errors import ClusterError


def device_of_new_workers(cluster_type: str) -> tuple[str, str]:
    """What `choose_device` says of this machine."""
    variable = os.environ.get(backend.DEVICE_VARIABLE, "").lower()
    return choose_device(cluster_type, backend.gpu_count(), _missing_packages(), variable)


def choose_device(cluster_type: str, gpus: int, missing: list[str], variable: str) -> tuple[str, str]:
    """The device of a new cluster, and why, as an addition to the line that is logged.

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


def _missing_packages() -> list[str]:
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
