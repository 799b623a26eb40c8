"""How many workers one scheduler feeds: its processor time while many workers take tasks that last as real ones do.

    python -m benchmarks.scheduler

A scheduler of its own process, and in a few processes hundreds of real workers of Dask, each with a thread. A task is
a shard, as of shards in a store: its rows are read, then it sleeps as long as a GPU would compute, and tells of its
images as often as one would, and it writes its Parquet file. So the scheduler hears and hands out what it would on a
cluster.

Its busy share is the processor time of its process over the time from when every worker has had a task until the first
finds no more. The same of the client, which in a run of `get_client()` is the process of the scheduler, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import psutil

from benchmarks.harness import HERE, machine, parser, ranged, summary, write_result, write_tables
from benchmarks.scale import make_tiny_shards
from curator_dask.cluster.progress import report

_BATCH = 0.25  # seconds that a GPU takes for a batch
_TASKS = 6  # of each worker


@dataclass(frozen=True)
class Shift:
    """Sleeps as long as a GPU would compute for a shard, and tells of its images.

    Attributes
    ----------
    seconds
        Of the shard.
    images
        Of a batch.
    """

    seconds: float
    images: int = 512

    def __call__(self, frame: Any) -> Any:
        """The frame."""
        end = time.monotonic() + self.seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(_BATCH, left))
            report(images=self.images, seconds={"forward": _BATCH, "decode": _BATCH, "fetch": 0.01})
        return frame


def host_workers(address: str, count: int) -> None:
    """Be so many workers, until the scheduler is gone."""

    async def run() -> None:
        from distributed import Worker

        workers = [Worker(address, nthreads=1, memory_limit=0, dashboard=False) for _ in range(count)]
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(run())


@contextlib.contextmanager
def cluster(workers: int, processes: int, place: Path) -> Iterator[tuple[Any, int]]:
    """A client, and the process of its scheduler."""
    from distributed import Client

    dask.config.set({"distributed.comm.timeouts.connect": "300s", "distributed.comm.timeouts.tcp": "300s"})
    environment = {
        **os.environ,
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "300s",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "300s",
        "DASK_TEMPORARY_DIRECTORY": str(place),
    }
    started = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(
            subprocess.Popen([sys.executable, *command], cwd=HERE.parent, env=environment, **quiet)  # type: ignore[call-overload]
        )
        return started[-1]

    try:
        file = place / "scheduler.json"
        command = (
            "-m",
            "distributed.cli.dask_scheduler",
            "--port",
            "0",
            "--dashboard-address",
            "127.0.0.1:0",
        )
        scheduler = start(*command, "--host", "127.0.0.1", "--scheduler-file", str(file))
        with Client(scheduler_file=str(file), timeout=120) as client:
            address = client.scheduler.address
            for number in range(processes):
                count = workers * (number + 1) // processes - workers * number // processes
                start(
                    "-c", f"from benchmarks.scheduler import host_workers; host_workers({address!r}, {count})"
                )
            client.wait_for_workers(workers, timeout=600)
            yield client, scheduler.pid
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def one_run(workers: int, seconds: float, processes: int) -> dict[str, float]:
    """Busy shares of scheduler and client, and tasks a second, of a run with so many workers."""
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.outputs.saving import save
    from curator_dask.runs.groups import Layout

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "data").mkdir()
        make_tiny_shards(_TASKS * workers, place / "data")
        with cluster(workers, processes, place) as (_, pid):
            watched = {"scheduler": psutil.Process(pid), "client": psutil.Process()}
            marks: list[dict[str, float]] = []

            def mark() -> None:
                times = {name: sum(process.cpu_times()[:2]) for name, process in watched.items()}
                marks.append({"at": time.monotonic(), **times})

            dataset = ImageTextPairDataset.from_webdataset(place / "data")
            frame = dataset.metadata.map_partitions(
                Shift(seconds), meta=dataset.metadata._meta, enforce_metadata=False
            )
            stop = _look_at(place / "out", [workers, (_TASKS - 1) * workers], mark)
            summary = save(
                frame,
                (),
                str(place / "data"),
                str(place / "out"),
                id_col="key",
                columns=None,
                overwrite=False,
                drop_failed=False,
                input_options=None,
                output_options=None,
                layout=Layout(group=1),
            )
            stop()
            assert summary.written == _TASKS * workers and not summary.failed_shards, summary
    first, last = marks
    took = last["at"] - first["at"]
    tasks = (_TASKS - 2) * workers
    return {
        "scheduler_busy": (last["scheduler"] - first["scheduler"]) / took,
        "client_busy": (last["client"] - first["client"]) / took,
        "tasks_a_second": tasks / took,
        "of_what_was_due": tasks / took * seconds / workers,
    }


def _look_at(out: Path, counts: list[int], mark: Any) -> Any:
    """Call `mark` when a folder has so many files, from a thread; what is given back waits for its end."""
    import threading

    def look() -> None:
        for count in counts:
            while not out.exists() or sum(name.endswith(".parquet") for name in os.listdir(out)) < count:  # noqa: PTH208
                time.sleep(0.2)
            mark()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread.join


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--workers", type=int, nargs="+", help="default 64 256 512")
    arguments.add_argument("--seconds", type=float, help="of a task; default 10")
    arguments.add_argument("--processes", type=int, default=4, help="that the workers are in")
    options = arguments.parse_args(given)
    options.workers = options.workers or ([4] if options.quick else [64, 256, 512])
    options.seconds = options.seconds or (0.5 if options.quick else 10.0)
    repeats = options.repeats or (1 if options.quick else 3)
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in options.workers}
    for number in range(repeats):
        for count in options.workers if number % 2 == 0 else reversed(options.workers):
            run = one_run(count, options.seconds, min(options.processes, count))
            runs[count].append(run)
            figures = ", ".join(f"{name} {value:.3g}" for name, value in run.items())
            print(f"  round {number + 1}: {count} workers: {figures}", flush=True)
    cases = _cases(runs)
    results = {
        "what": f"One scheduler, tasks of {options.seconds:g} s; {repeats} runs each, in turns.",
        "settings": vars(argparse.Namespace(workers=options.workers, seconds=options.seconds)),
        "cases": cases,
        "table": [
            ["case", "scheduler busy", "client busy", "tasks/s", "share of the tasks that were due"],
            *([name, *map(ranged, figures.values())] for name, figures in cases.items()),
        ],
        "notes": [],
        "ratios": {},
    }
    if write_result("scheduler", options, machine(), results) and options.out is None:
        write_tables()


def _cases(runs: dict[int, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    return {
        f"{count} workers": {name: summary([run[name] for run in each]) for name in each[0]}
        for count, each in runs.items()
    }


if __name__ == "__main__":
    main()
