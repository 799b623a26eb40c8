"""What all benchmarks share: the machine's description, repeated runs, JSON files and tables of them.

    python -m benchmarks.harness

writes the tables of ``benchmarks/README.md`` anew from ``benchmarks/results/*.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from curator_dask.cluster.local import MALLOC

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"

PACKAGES = (
    "curator-dask",
    "torch",
    "timm",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "dask",
    "distributed",
    "pandas",
    "pyarrow",
    "numpy",
    "cudf-cu13",
    "dask-cuda",
)
"""Packages whose versions are written down, where they are installed."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_EXTENSIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Sets of instructions that decide how fast a model is, the fastest first. Those in bf16 decide its precision, too."""

START_METHOD = "spawn"
"""How processes are started. Only spawned ones have all settings; tests, which time nothing, fork them."""

_RSS_EVERY = 0.2  # seconds between two looks at memory; a look takes about 1 ms


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpu_names() -> list[str]:
    """Names of the GPUs that the NVIDIA driver shows."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.splitlines() if line.strip()]


def machine() -> dict[str, Any]:
    """What the figures depend on, without a name of the host or a path on it."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpu_names(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "load_average_at_start": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu_model() -> str:
    """The CPU's name, with what of `_EXTENSIONS` it has: a virtual machine's often says no more than the maker's."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), " ".join(value.split()))
    model = found.get("model name") or platform.processor() or platform.machine()
    flags = found.get("flags", "").split()
    extension = next((each for each in _EXTENSIONS if each in flags), None)
    return f"{model} ({extension})" if extension else model


def _commit() -> str:
    """Short commit, with ``+`` where files of the package or the benchmarks differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../curator_dask", "*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


class Usage:
    """Seconds and CPU seconds of a ``with`` block, and the memory of its processes.

    Parameters
    ----------
    pids
        Processes to count; None is this one and all its descendants.

    Attributes
    ----------
    seconds
        Wall time.
    cpu_seconds
        User and system time of the processes. What a process used that ended meanwhile counts if its parent
        is among the processes and has waited for it.
    peak_rss_mib
        Largest sum of the processes' resident memory that was seen; pages that two share count twice.
    """

    def __init__(self, pids: Sequence[int] | None = None):
        self._pids = pids
        self.seconds = self.cpu_seconds = self.peak_rss_mib = 0.0

    def _processes(self) -> list[psutil.Process]:
        if self._pids is None:
            me = psutil.Process()
            return [me, *me.children(recursive=True)]
        return [psutil.Process(pid) for pid in self._pids if psutil.pid_exists(pid)]

    def _cpu(self) -> float:
        total = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])  # user, system, and those of children waited for
        return total

    def _watch(self) -> None:
        while True:
            total = 0
            for process in self._processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
            self.peak_rss_mib = max(self.peak_rss_mib, round(total / 2**20, 1))
            if self._stop.wait(_RSS_EVERY):
                return

    def __enter__(self) -> Usage:
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._cpu_before, self._before = self._cpu(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._before
        self.cpu_seconds = self._cpu() - self._cpu_before
        self._stop.set()
        self._watcher.join()


class Team:
    """Worker processes that do the same work at once, as a cluster's workers do, without a cluster.

    They have the best settings that are known for the work, whatever the workers of a cluster have.

    Parameters
    ----------
    processes
        How many.
    threads
        Threads that OpenMP and the like, so torch too, may use in each.
    """

    def __init__(self, processes: int, threads: int):
        context = multiprocessing.get_context(START_METHOD)
        self._pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(processes)]
        settings = {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), **MALLOC}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            self.pids = [pool.submit(os.getpid).result() for pool in self._pools]
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def run(self, function: Callable[..., int], *arguments: Any) -> int:
        """Call ``function(*arguments, part, parts)`` in every process, wait for all, and add up what they give."""
        count = len(self._pools)
        futures = [pool.submit(function, *arguments, part, count) for part, pool in enumerate(self._pools)]
        return sum(future.result() for future in futures)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


class Case:
    """Something to measure.

    Parameters
    ----------
    run
        Does the work once and gives the number of items (images) done.
    pids
        See `Usage`.
    before
        Done before each run, and not measured.
    """

    def __init__(
        self,
        run: Callable[[], int],
        pids: Sequence[int] | None = None,
        before: Callable[[], object] = lambda: None,
    ):
        self.run = run
        self.pids = pids
        self.before = before


def run_interleaved(
    cases: Mapping[str, Case], repeats: int, warm_up: bool = True
) -> dict[str, dict[str, Any]]:
    """Run all cases in turn, several times over, so that a slow spell of the machine meets them all.

    Parameters
    ----------
    cases
        What to run, by name. Every second round goes through them backwards.
    repeats
        Rounds that count.
    warm_up
        Run every case once before.

    Returns
    -------
    dict
        For each case, summaries (`summary`) of ``items_per_second``, ``seconds`` and ``cpu_ms_per_item``, and
        the largest ``peak_rss_mib``.
    """
    if warm_up:
        for case in cases.values():
            case.before()
            case.run()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for number in range(repeats):
        for name in list(cases) if number % 2 == 0 else reversed(list(cases)):
            case = cases[name]
            case.before()
            with Usage(case.pids) as usage:
                items = case.run()
            runs[name].append(
                {
                    "items_per_second": items / usage.seconds,
                    "seconds": usage.seconds,
                    "cpu_ms_per_item": 1000 * usage.cpu_seconds / items,
                    "peak_rss_mib": usage.peak_rss_mib,
                }
            )
            print(f"  round {number + 1}: {name}: {items / usage.seconds:.1f}/s", flush=True)
    found: dict[str, dict[str, Any]] = {}
    for name, each in runs.items():
        found[name] = {
            figure: summary([run[figure] for run in each])
            for figure in ("items_per_second", "seconds", "cpu_ms_per_item")
        }
        found[name]["peak_rss_mib"] = max(run["peak_rss_mib"] for run in each)
    return found


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and largest of some values, and the values in the order they were measured."""
    return {
        "median": _short(statistics.median(values)),
        "min": _short(min(values)),
        "max": _short(max(values)),
        "runs": [_short(value) for value in values],
    }


def per_round(function: Callable[..., float], *cases: Mapping[str, Any]) -> dict[str, Any]:
    """Summary of a figure that is made of the rates of several cases in one and the same round."""
    rates = [case["items_per_second"]["runs"] for case in cases]
    return summary([function(*values) for values in zip(*rates, strict=True)])


def _short(value: float) -> float:
    return float(digits(value, 4))


def digits(value: float, count: int) -> str:
    """So many digits of a value; of a larger one all that stand before the point."""
    return f"{value:.0f}" if abs(value) >= 10**count else f"{value:.{count}g}"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Command line options that all scripts have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where to decode and compute")
    made.add_argument("--repeats", type=int, help="rounds that count")
    made.add_argument("--quick", action="store_true", help="smallest case, to see that the script works")
    made.add_argument("--out", type=Path, help="JSON file to write (default: in benchmarks/results)")
    return made


def write_result(
    script: str, options: argparse.Namespace, described: Mapping[str, Any], results: Mapping[str, Any]
) -> Path | None:
    """Write a benchmark's JSON.

    Parameters
    ----------
    script
        Name of the benchmark.
    options
        Of `parser`. A quick run without ``--out`` is not written.
    described
        `machine` as it was at the start.
    results
        JSON-able; what was measured, and with which settings.

    Returns
    -------
    The file, or None if there is none.
    """
    if options.out is None and options.quick:
        return None
    name = f"{script}-{options.device}-{_machine_name(described, options.device)}.json"
    path = options.out or RESULTS / name
    whole = {
        "script": script,
        "device": options.device,
        "quick": options.quick,
        "machine": described,
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"written: {path}")
    return path


def _machine_name(described: Mapping[str, Any], device: str) -> str:
    gpus = described["gpus"]
    text = (
        f"{len(gpus)}x {gpus[0]}"
        if device == "gpu" and gpus
        else f"{described['cpu']} {described['cores']} cores"
    )
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# The tables of README.md


def write_tables(readme: Path = README, results: Path = RESULTS) -> None:
    """Put a table of each result, and its chart, into the README, between the two lines that mark the place."""
    begin, end = "<!-- tables: begin -->", "<!-- tables: end -->"
    before, _, rest = readme.read_text().partition(begin)
    _, _, after = rest.partition(end)
    tables = []
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        tables.append(table(result))
        if (chart := path.with_suffix(".svg")).exists():
            tables.append(f"\n![{result['script']}]({chart.relative_to(readme.parent)})")
    readme.write_text("\n".join([before + begin, *tables, end + after]))


def table(result: Mapping[str, Any]) -> str:
    """A result as Markdown: a heading, the machine, a table of the cases and a list of the figures."""
    described = result["machine"]
    where = ", ".join([*described["gpus"], f"{described['cpu']}", f"{described['cores']} cores"])
    lines = [
        "",
        f"### `{result['script']}`, {result['device']}: {where}",
        "",
        f"{result['what']} Commit {described['commit']}, load average at the start"
        f" {described['load_average_at_start'][0]}.",
        "",
        *_rows(result["table"]),
        "",
    ]
    lines += [f"- {line}" for line in result.get("notes", ())]
    return "\n".join(lines)


def case_rows(cases: Mapping[str, Mapping[str, Any]], unit: str = "images/s") -> list[list[str]]:
    """Table of the cases of `run_interleaved`, heading first."""
    rows = [["case", unit, "span", f"CPU ms per {unit.removesuffix('/s').removesuffix('s')}", "peak RSS MiB"]]
    for name, case in cases.items():
        rate = case["items_per_second"]
        rows.append(
            [
                name,
                digits(rate["median"], 4),
                f"{digits(rate['min'], 4)} to {digits(rate['max'], 4)}",
                f"{case['cpu_ms_per_item']['median']:.3g}",
                f"{case['peak_rss_mib']:.0f}",
            ]
        )
    return rows


def ranged(value: Mapping[str, Any]) -> str:
    """A summary as text: median, and the span in brackets."""
    median, least, largest = (digits(value[which], 3) for which in ("median", "min", "max"))
    return f"{median} ({least} to {largest})"


def _rows(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    head, *body = rows
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" + "---:|" * (len(head) - 1)
    for row in body:
        yield "| " + " | ".join(row) + " |"


if __name__ == "__main__":
    write_tables()
