"""What of a machine is this process's to use: where a scheduler of jobs gave it a part, that and not the machine.

Dask asks the affinity of processes, and the groups (cgroups) of a container. Slurm's groups are not where it looks:
without a container a process sees the groups of all jobs and is in one far below, and where a site has Slurm watch
cores or memory without binding them nothing but Slurm's variables say what a job was given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
#: Of version 2 of the groups, and of version 1: files with a limit in bytes.
_V2: tuple[str, ...] = ("memory.max", "memory.high")
_V1: tuple[str, ...] = ("memory.limit_in_bytes",)
_MIB = 1 << 20  # Slurm's M


@dataclass(frozen=True)
class Limits:
    """Cores and bytes of memory that a new cluster shares among its workers.

    Attributes
    ----------
    cores, memory
        How many.
    why
        What says that it is less than Dask sees, in words; empty where it is not.
    """

    cores: int
    memory: int
    why: str = ""


def limits_here(gpus: int = 0) -> Limits:
    """What this process may use.

    Parameters
    ----------
    gpus
        Devices that it sees: Slurm may have given memory by their number.
    """
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    own = Path("/proc/self/cgroup")
    text = own.read_text(encoding="utf-8") if own.exists() else ""
    return find_limits(CPU_COUNT, MEMORY_LIMIT, os.environ, text, _GROUPS, gpus)


def find_limits(
    cores: int, memory: int, environment: Mapping[str, str], groups: str, root: Path, gpus: int = 0
) -> Limits:
    """The same of a process.

    Parameters
    ----------
    cores, memory
        As Dask sees them.
    environment
        Its variables.
    groups
        Its groups, as ``/proc/self/cgroup`` has them.
    root
        Folder of the groups' files.
    gpus
        Devices that it sees.
    """
    said = []
    tasks = _tasks_here(environment)
    shared = f" for {tasks} tasks" if tasks > 1 else ""
    if "SLURM_JOB_ID" in environment:
        given, name = _first(environment, "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
        mine = max(1, given // tasks) if name == "SLURM_CPUS_ON_NODE" else given
        if 0 < mine < cores:
            cores = mine
            said.append(f"{name}={given}{shared if mine < given else ''}")
        each = {"SLURM_MEM_PER_NODE": 1 / tasks, "SLURM_MEM_PER_CPU": cores, "SLURM_MEM_PER_GPU": gpus}
        given, name = _first(environment, *each)
        bytes_ = int(given * each.get(name, 0) * _MIB)
        if 0 < bytes_ < memory:
            memory = bytes_
            said.append(f"{name}={given}{shared if each[name] < 1 else ''}")
    # Where memory is not said otherwise, a job's group is that of all its tasks.
    least = min(_limits_of(groups, root), default=memory * tasks) // tasks
    if least < memory:
        memory = least
        said.append(f"the memory of its cgroup{shared}")
    return Limits(cores, memory, ", ".join(said))


def scratch_of_job() -> str | None:
    """The folder on the node's own disk that a job of Slurm's was given for temporary files; None: it is not known.

    Not where Dask's configuration names another.
    """
    import dask

    folder = os.environ.get("SLURM_TMPDIR", "")
    if dask.config.get("temporary-directory", None) or not folder or not os.access(folder, os.W_OK):
        return None
    return folder


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Of a step of Slurm's how many tasks are on this node, that share what it was given; else 1.

    As in ``4(x2),3``: four on each of two nodes, and three on the next.
    """
    said, node = environment.get("SLURM_STEP_TASKS_PER_NODE", ""), environment.get("SLURM_NODEID", "0")
    if "SLURM_JOB_ID" not in environment or not re.fullmatch(
        r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", said, re.ASCII
    ):
        return 1
    nodes = [
        int(tasks) for tasks, many in re.findall(r"(\d+)(?:\(x(\d+)\))?", said) for _ in range(int(many or 1))
    ]
    place = int(node) if node.isdecimal() else 0
    return max(1, nodes[place] if place < len(nodes) else max(nodes))


def _first(environment: Mapping[str, str], *names: str) -> tuple[int, str]:
    """The first of some variables that is a number above 0, and its name; 0 of none."""
    for name in names:
        match = re.fullmatch(r"\s*(\d+)\s*", environment.get(name, ""), re.ASCII)
        if match and int(match[1]):
            return int(match[1]), name
    return 0, ""


def _limits_of(groups: str, root: Path) -> Iterator[int]:
    """Bytes that a process's group, and each that this is in, may have."""
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0" and not kinds:
            top, names = root, _V2
        elif "memory" in kinds.split(","):
            top, names = root / "memory", _V1
        else:
            continue
        parts = [each for each in path.split("/") if each not in ("", "..", ".")]
        for depth in range(len(parts) + 1):
            for name in names:
                try:
                    text = top.joinpath(*parts[:depth], name).read_text(encoding="utf-8")
                except OSError:
                    continue
                if text.strip().isdecimal() and int(text):
                    yield int(text)
