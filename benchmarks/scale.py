"""Time and memory against the number of shards, and what a shard costs besides its images.

    python -m benchmarks.scale

Every run is a new family of processes (client with scheduler, workers), after a warm-up on one shard. In turns:

- ``shards``: 4, 16, 64 and 256 small shards (16 photographs each) with the null model, on 1 and 2 workers. The peak
  is that of all processes while `save_metadata` runs.
- ``fixed``: as many photographs in few shards and in many: the slope of time and CPU time is what a shard costs
  besides its images, where several go in a task (`curator_dask.runs.groups`), as they do as long as they take less
  than ten seconds together. It is given as a share of what a shard of 1,000 images takes with the null model.
- ``alone``: the many again, each a task of its own, as those of 1,000 images are with a real model.
- ``no-op``: 1,000, 10,000 and 100,000 shards of one tiny image, whose rows pass through a step that gives them back,
  no image is decoded: what is left is finding, planning, the graph, the scheduler, and reading and writing a Parquet
  file of one row. A `save_metadata` without any step would do as well, but would not tell when the first task ran.
  The larger ones, which take long, are run once.
- ``start``: these again, and 1,000,000, interrupted as soon as a worker has had its first task, in every round.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import memory
from benchmarks.harness import (
    HERE,
    cores,
    machine,
    parser,
    ranged,
    summary,
    write_result,
    write_tables,
)

LITE0_RATE = 110.0
"""Images a second of EfficientNet-Lite0 on a machine of two cores (`benchmarks.compare`)."""

DISTINCT = 4096
"""Different photographs of the fixed cost's cases: the same ones, however many shards they are cut into."""

_LINKS = 10_000  # of one file; ext4 allows 65,000
_ONCE = 1_000  # shards above which a no-op run takes so long that it is not repeated


def make_tiny_shards(count: int, folder: Path) -> None:
    """Write tars and Parquet files of one sample; most are hard links."""
    image = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 100, 50)).save(image, "JPEG")
    rows = pa.table({"key": ["000000000"], "caption": ["a colour"], "width": [32], "height": [32]})
    for number in range(count):
        for suffix in ("tar", "parquet"):
            path = folder / f"{number:06d}.{suffix}"
            first = folder / f"{number - number % _LINKS:06d}.{suffix}"
            if path != first:
                os.link(first, path)
            elif suffix == "parquet":
                pq.write_table(rows, path)
            else:
                with tarfile.open(path, "w") as tar:
                    info = tarfile.TarInfo("000000000.jpg")
                    info.size = len(image.getvalue())
                    tar.addfile(info, io.BytesIO(image.getvalue()))


@dataclass(frozen=True)
class Pass:
    """A step that gives its partition back; each process writes down when it did so first.

    Attributes
    ----------
    place
        Folder to write to.
    """

    place: str

    def __call__(self, frame: Any) -> Any:
        """The frame."""
        path = Path(self.place) / f"first-{os.getpid()}"
        if not path.exists():
            path.write_text(repr(time.time()))
        return frame


def _interrupt_after_first_task(place: Path, found: dict[str, float]) -> None:
    """Note this process's CPU seconds when the first task has run, and interrupt it as Ctrl-C does."""
    while not any(place.glob("first-*")):
        time.sleep(0.05)
    found["cpu"] = time.process_time()
    os.kill(os.getpid(), signal.SIGINT)


def no_op_run(folder: str, workers: int, whole: bool = True) -> dict[str, float]:
    """A run of `save_metadata` over tiny shards, as the client sees it.

    Parameters
    ----------
    folder
        Of the shards.
    workers
        Processes.
    whole
        False interrupts the run at the first task: only the figures up to there are given.

    Returns
    -------
    dict
        Seconds: ``build`` (find the shards, learn the columns), ``first_task`` (from the beginning until a worker
        had one) and ``seconds`` of all. CPU seconds of the client's process, in which the scheduler runs too:
        ``client_cpu``. Its memory in MiB: ``client_before_mib`` and ``client_peak_mib``. ``ms_a_shard``: the seconds
        after the first task. And the ``tars_opened`` by the client.
    """
    from curator_dask import get_client
    from curator_dask.datasets import ImageTextPairDataset

    opened: list[str] = []
    found: dict[str, float] = {}

    def on_audit(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(folder) and str(arguments[0]).endswith(".tar"):
            opened.append(str(arguments[0]))

    def save(source: str, out: str) -> Any:
        started = time.time()
        dataset = ImageTextPairDataset.from_webdataset(source)
        found["build"] = time.time() - started
        frame = dataset.metadata
        passed = frame.map_partitions(Pass(str(Path(out).parent)), meta=frame._meta, enforce_metadata=False)
        return dataset.with_metadata(passed).save_metadata(out)

    with (
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory() as out,
        get_client("cpu", n_workers=workers, verbose=False),
    ):
        for name in ("warm", "timed"):
            (Path(out) / name).mkdir()
        save(min(map(str, Path(folder).glob("*.tar"))), f"{out}/warm/rows")
        sys.addaudithook(on_audit)
        before = psutil.Process().memory_info().rss
        started, cpu = time.time(), time.process_time()
        if whole:
            done = save(folder, f"{out}/timed/rows")
            assert done.written == done.rows and not done.failed_shards, done
            found["seconds"], found["cpu"] = time.time() - started, time.process_time()
        else:
            watch = threading.Thread(target=_interrupt_after_first_task, args=(Path(out, "timed"), found))
            watch.start()
            with contextlib.suppress(KeyboardInterrupt):
                save(folder, f"{out}/timed/rows")
                watch.join()  # where all was done before it looked
                time.sleep(1)
            watch.join()
        first = min(float(path.read_text()) for path in Path(out, "timed").glob("first-*")) - started
    figures = {
        "build": found["build"],
        "first_task": first,
        "client_cpu": found["cpu"] - cpu,
        "client_before_mib": before / 2**20,
        "client_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "tars_opened": len(opened),
    }
    if whole:
        a_shard = 1000 * (found["seconds"] - first) / done.written
        figures |= {"shards": done.written, "seconds": found["seconds"], "ms_a_shard": a_shard}
    return figures


def _in_new_process(kind: str, folder: Path, workers: int) -> dict[str, float]:
    # Not with -m: a class of the main script goes with every task as code, which one of a package does not.
    code = f"from benchmarks.scale import in_process; in_process({kind!r}, {str(folder)!r}, {workers})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
    return json.loads(done.stdout.splitlines()[-1])


def in_process(kind: str, folder: str, workers: int) -> None:
    """Run a case in this process and print JSON."""
    # A shell that runs a script in the background (`&`) has it ignore Ctrl-C, which is how ``start`` ends.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if kind == "alone":
        from curator_dask.runs import groups

        groups.MOST_SHARDS = 1
    if kind in ("shards", "fixed", "alone"):
        figures = memory.one_run(folder, workers)
    else:
        figures = no_op_run(folder, workers, whole=kind == "no-op")
    print("\n" + json.dumps(figures))


@dataclass(frozen=True)
class Plan:
    """One case: its kind, its shards (in `folder`) and its workers."""

    kind: str
    shards: int
    workers: int
    folder: Path

    @property
    def name(self) -> str:
        """Of the case, in results."""
        return f"{self.kind}, {self.shards} shards, {self.workers}w"


def plans_of(options: argparse.Namespace, place: Path) -> Iterator[Plan]:
    """The cases, with their shards made."""
    for count in options.shards:
        folder = place / f"shards-{count}"
        folder.mkdir()
        memory.make_shards(options.shard_images, count, folder)
        for workers in options.workers:
            yield Plan("shards", count, workers, folder)
    for count in options.fixed:
        folder = place / f"fixed-{count}"
        folder.mkdir()
        each = options.images // count
        memory.make_shards(each, count, folder, sources=min(options.images, DISTINCT) // each)
        yield Plan("fixed", count, max(options.workers), folder)
        if count == max(options.fixed):
            yield Plan("alone", count, max(options.workers), folder)
    for count in options.no_op:
        folder = place / f"no-op-{count}"
        folder.mkdir()
        make_tiny_shards(count, folder)
        yield Plan("no-op", count, max(options.workers), folder)
        if count > _ONCE or options.quick:
            yield Plan("start", count, max(options.workers), folder)
    for count in options.start:
        folder = place / f"start-{count}"
        folder.mkdir()
        make_tiny_shards(count, folder)
        yield Plan("start", count, max(options.workers), folder)


def measure(plans: Sequence[Plan], repeats: int) -> dict[str, dict[str, Any]]:
    """Summaries of what the cases give, run in turns; every second round goes backwards."""
    runs: dict[str, list[dict[str, float]]] = {plan.name: [] for plan in plans}
    for number in range(repeats):
        for plan in plans if number % 2 == 0 else reversed(plans):
            if number and plan.kind == "no-op" and plan.shards > _ONCE:
                continue
            run = _in_new_process(plan.kind, plan.folder, plan.workers)
            runs[plan.name].append(run)
            figures = ", ".join(f"{name} {value:.4g}" for name, value in run.items())
            print(f"  round {number + 1}: {plan.name}: {figures}", flush=True)
    return {
        case: {name: summary([run[name] for run in each]) for name in each[0]} for case, each in runs.items()
    }


def ratios_of(options: argparse.Namespace, cases: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be kept: how memory grows, and the share of a shard's fixed cost."""

    def each(kind: str, shards: int, workers: int, figure: str) -> list[float]:
        return cases[f"{kind}, {shards} shards, {workers}w"][figure]["runs"]

    found = {}
    small, large = sorted(options.shards)[-2 if len(options.shards) < 4 else 1], max(options.shards)
    for workers in options.workers:
        peaks = [each("shards", count, workers, "peak_rss_mib") for count in (large, small)]
        name = f"peak memory of {large} shards ÷ that of {small}, {workers}w"
        found[name] = summary([a / b for a, b in zip(*peaks, strict=True)])
    few, many = min(options.fixed), max(options.fixed)
    workers = max(options.workers)
    for figure, word, lite0 in (
        ("seconds", "time", 1000 / options.lite0_rate),
        ("cpu_seconds", "CPU time", 1000 / options.lite0_rate * cores()),
    ):
        first = each("fixed", few, workers, figure)
        null = [1000 * whole / options.images for whole in first]
        for kind, of_what, model, wholes in (
            ("fixed", "a shard", "null model", null),
            ("alone", "a shard that is a task of its own", "EfficientNet-Lite0", [lite0] * len(first)),
        ):
            last = each(kind, many, workers, figure)
            costs = [(end - start) / (many - few) for start, end in zip(first, last, strict=True)]
            found[f"{word} of {of_what} besides its images, ms"] = summary([1000 * cost for cost in costs])
            found[f"share of it in a shard of 1,000 images, {model}, {word}, %"] = summary(
                [100 * cost / whole for cost, whole in zip(costs, wholes, strict=True)]
            )
    return found


def rows_of(cases: Mapping[str, Any]) -> list[list[str]]:
    """Table of the cases with images, heading first."""
    rows = [
        ["case", "images", "seconds", "CPU ms per image", "peak RSS MiB", "files left open", "threads left"]
    ]
    for name, case in cases.items():
        if "seconds" not in case or name.startswith("no-op"):
            continue
        images = case["images"]["median"]
        milliseconds = 1000 * case["cpu_seconds"]["median"] / images
        left = (f"{case[figure]['max']:.0f}" for figure in ("files_left_open", "threads_left"))
        row = [name, f"{images:.0f}", ranged(case["seconds"]), f"{milliseconds:.3g}"]
        rows.append([*row, ranged(case["peak_rss_mib"]), *left])
    return rows


def no_op_lines(cases: Mapping[str, Any]) -> Iterator[str]:
    """What the tiny shards cost, as text."""
    for name, case in cases.items():
        if "first_task" not in case:
            continue
        line = f"{name}: first task after {ranged(case['first_task'])} s (of these build {ranged(case['build'])})"
        if "seconds" in case:
            line += f", all after {ranged(case['seconds'])} s, {ranged(case['ms_a_shard'])} ms a shard"
        yield (
            f"{line}; client's CPU {ranged(case['client_cpu'])} s, its peak {case['client_peak_mib']['max']:.0f} MiB,"
            f" {case['client_before_mib']['max']:.0f} of them before"
        )


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--shards", type=int, nargs="+", help="small shards; default 4 16 64 256")
    arguments.add_argument("--shard-images", type=int, default=16, help="photographs in each of these")
    arguments.add_argument("--workers", type=int, nargs="+", help="default 1 2")
    arguments.add_argument("--images", type=int, help="photographs, for the fixed cost; default 16384")
    arguments.add_argument("--fixed", type=int, nargs=2, help="shards that they are in; default 16 256")
    arguments.add_argument("--no-op", type=int, nargs="+", help="tiny shards; default 1000 10000 100000")
    arguments.add_argument("--start", type=int, nargs="*", help="more of these, begun alone; default 1000000")
    arguments.add_argument("--lite0-rate", type=float, default=LITE0_RATE, help="images/s of the real model")
    options = arguments.parse_args(given)
    quick = options.quick
    options.shards = options.shards or ([1, 3] if quick else [4, 16, 64, 256])
    options.workers = options.workers or ([1] if quick else [1, 2])
    options.images = options.images or (24 if quick else 16384)
    options.fixed = options.fixed or ([2, 6] if quick else [16, 256])
    options.no_op = options.no_op or ([30] if quick else [1_000, 10_000, 100_000])
    if options.start is None:
        options.start = [] if quick else [1_000_000]
    if options.device != "cpu" or len(options.shards) < 2 or len({*options.fixed}) < 2:
        raise SystemExit("error: --device cpu, and at least two different numbers of --shards and --fixed")
    if any(options.images % count for count in options.fixed):
        raise SystemExit("error: --images has to be a multiple of both numbers of --fixed")
    repeats = options.repeats or (1 if quick else 5)
    described = machine()
    with tempfile.TemporaryDirectory() as place:
        cases = measure(list(plans_of(options, Path(place))), repeats)
    ratios = ratios_of(options, cases)
    results = {
        "what": (
            f"Null model: small shards of {options.shard_images} photographs, and {options.images} photographs in"
            f" {min(options.fixed)} and {max(options.fixed)} shards; {repeats} interleaved runs."
        ),
        "settings": {
            "shards": options.shards,
            "shard_images": options.shard_images,
            "workers": options.workers,
            "images": options.images,
            "fixed": options.fixed,
            "no_op": options.no_op,
            "start": options.start,
            "lite0_rate": options.lite0_rate,
            "repeats": repeats,
        },
        "cases": cases,
        "ratios": ratios,
        "table": rows_of(cases),
        "notes": [*(f"{name}: **{ranged(value)}**" for name, value in ratios.items()), *no_op_lines(cases)],
    }
    if write_result("scale", options, described, results) and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
