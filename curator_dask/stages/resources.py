"""`Resources`: what a stage takes of a machine, in the form in which stages of NeMo Curator 1.x say it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from curator_dask.errors import ConfigError


@dataclass(frozen=True)
class Resources:
    """What a task with this stage in it takes; the stages of a pipeline are one task, whose share is the largest.

    Parameters
    ----------
    cpus, nvdecs, nvencs, host_memory_gb
        Taken for the sake of scripts of NeMo Curator 1.x, and not used: threads and memory are those of the worker.
    gpu_memory_gb
        Must be 0: how much of a GPU that is differs from machine to machine. Give `gpus`.
    entire_gpu
        The same as ``gpus=1``.
    gpus
        Share of a GPU. 0.25: four tasks share one. Ignored on CPUs.

    Raises
    ------
    ConfigError
        A share is no number of at least 0, or is said by `gpu_memory_gb`.
    """

    cpus: float = 1.0
    gpu_memory_gb: float = 0.0
    nvdecs: int = 0
    nvencs: int = 0
    entire_gpu: bool = False
    gpus: float = 0.0
    host_memory_gb: float = 0.0

    def __post_init__(self) -> None:
        if self.gpu_memory_gb:
            raise ConfigError(
                f"gpu_memory_gb={self.gpu_memory_gb!r}: expected 0. Say which share of a GPU a task takes, as in"
                " gpus=0.25"
            )
        check_share("gpus", self.gpus)

    @property
    def share(self) -> float:
        """Of a GPU."""
        return 1.0 if self.entire_gpu else self.gpus


def check_share(name: str, share: object) -> None:
    """Refuse what is no share of GPUs.

    Raises
    ------
    ConfigError
        It is no number of at least 0.
    """
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < math.inf:
        raise ConfigError(f"{name}={share!r}: expected a number of at least 0")
