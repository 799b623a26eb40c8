"""The client's time and memory for datasets of many shards.

    python -m benchmarks.many_shards

For 1,000, 10,000 and 100,000 shards (tiny tars with Parquet files, hard links of a few), each in a process of
its own: find them and build the dataset, embed it lazily, trace where the partitions come from, plan the run
(look at every input and output, fingerprint), and make the graph that would go to the scheduler. Nothing is run.
The files that the client opens are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.harness import HERE, machine, parser, ranged, summary, write_result, write_tables

STEPS = ("build", "embed", "trace", "plan", "graph")
_LINKS = 10_000  # of one file; ext4 allows 65,000


def make_shards(count: int, folder: Path) -> None:
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


def client_steps(folder: str) -> dict[str, float]:
    """Seconds of each of `STEPS`, the process's memory after each, and the tars opened to build."""
    from benchmarks.bare import NullEmbedder
    from curator_dask.datasets import ImageTextPairDataset, planning, saving
    from curator_dask.datasets.writing import Output, WritePartition
    from curator_dask.frames.lineage import trace

    embedder = NullEmbedder()
    found: dict[str, float] = {"rss_mib_before": _rss()}
    opened: list[str] = []
    counting = True

    def on_audit(event: str, arguments: tuple) -> None:
        if counting and event == "open" and str(arguments[0]).startswith(folder):
            opened.append(str(arguments[0]))

    sys.addaudithook(on_audit)

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        before = time.perf_counter()
        yield
        found[name] = time.perf_counter() - before
        found[f"rss_mib_{name}"] = _rss()

    with step("build"), contextlib.redirect_stdout(io.StringIO()):
        dataset = ImageTextPairDataset.from_webdataset(folder)
    counting = False
    with step("embed"):
        frame = embedder(dataset).metadata
    with step("trace"):
        lineage = trace(frame)
    out = Output(os.path.join(folder, "out"), None, in_place=False, overwrite=False, drop_failed=False)  # noqa: PTH118
    made = {"image_embedding": {"dim": 3, "model": "null"}}
    with step("plan"):
        schema = planning.plan_schema(frame, list(frame.columns), made, lineage)
        targets = planning.plan_targets(frame, lineage, out, schema, made, None)
        there = planning.list_files(out)
        todo, _ = planning.find_unfinished(targets, there, schema, made, out)
    write = WritePartition(schema, out, "key", made)
    with step("graph"):
        graph = saving.write_graph(frame, targets, todo, write)
        tasks = len(graph.optimize().__dask_graph__())
    assert len(todo) == dataset.npartitions <= tasks
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    found["tars_opened"] = sum(path.endswith(".tar") for path in opened)
    return found


def _rss() -> float:
    return psutil.Process().memory_info().rss / 2**20


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Summaries of what `client_steps` gives in new processes."""
    runs = []
    for _ in range(repeats):
        command = [sys.executable, "-m", "benchmarks.many_shards", "--in-process", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print("  " + ", ".join(f"{name} {value:.3g}" for name, value in runs[-1].items()), flush=True)
    return {name: summary([run[name] for run in runs]) for name in runs[0]}


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--shards", type=int, nargs="+", help="default 1000 10000 100000")
    arguments.add_argument("--in-process", metavar="FOLDER", help=argparse.SUPPRESS)
    options = arguments.parse_args(given)
    if options.in_process:
        print(json.dumps(client_steps(options.in_process)))
        return
    described = machine()
    counts = options.shards or ([200] if options.quick else [1_000, 10_000, 100_000])
    repeats = options.repeats or (1 if options.quick else 3)
    cases = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            make_shards(count, Path(folder))
            print(f"{count} shards")
            cases[str(count)] = measure(Path(folder), repeats)
    rows = [["shards", *(f"{name} s" for name in STEPS), "peak MiB", "of that for imports"]]
    for count, case in cases.items():
        rows.append([f"{int(count):,}", *(ranged(case[name]) for name in STEPS)])
        rows[-1] += [f"{case[name]['median']:.0f}" for name in ("peak_rss_mib", "rss_mib_before")]
    results = {
        "what": f"The client alone, nothing is run; median (span) of {repeats} processes.",
        "settings": {"shards": counts, "repeats": repeats},
        "cases": cases,
        "table": rows,
    }
    if write_result("many_shards", options, described, results) and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
