"""Memory against the number of shards.

    python -m benchmarks.memory

Embeds 20 and 200 shards with the null model on a cluster of two workers, each run in new processes, in turns. The
peak is that of the whole family of processes (client, scheduler, workers) while `save_metadata` runs. Open files
and threads of the workers are counted before and after. Shards are hard links of a few, under names of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import (
    HERE,
    Usage,
    machine,
    parser,
    ranged,
    summary,
    write_result,
    write_tables,
)
from benchmarks.photographs import make_photographs

_SOURCES = 4  # shards of photographs, of which the others are links


def make_shards(images: int, count: int, folder: Path) -> None:
    """Link `count` shards of `images` photographs each into a folder."""
    source = make_photographs(_SOURCES * images, _SOURCES)
    for number in range(count):
        for suffix in ("tar", "parquet"):
            path = source / f"{number % _SOURCES:05d}.{suffix}"
            (folder / f"{number:05d}.{suffix}").symlink_to(path)


def _handles() -> tuple[int, int]:
    process = psutil.Process()
    return process.num_fds(), threading.active_count()


def one_run(folder: str, workers: int) -> dict[str, float]:
    """Peak memory of a run over all shards of a folder, and what it left open."""
    from benchmarks.bare import NullEmbedder
    from curator_dask import get_client
    from curator_dask.datasets import ImageTextPairDataset

    shards = len(list(Path(folder).glob("*.tar")))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory() as out,
        get_client("cpu", n_workers=workers, verbose=False) as client,
    ):
        embedder = NullEmbedder(batch_size=64)
        first = str(sorted(Path(folder).glob("*.tar"))[0])
        # What is loaded once, and a pool of threads that stays, is there before the count.
        embedder(ImageTextPairDataset.from_webdataset(first)).save_metadata(os.path.join(out, "warm"))  # noqa: PTH118
        before = client.run(_handles)
        with Usage() as usage:
            done = embedder(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out + "/all")
        after = client.run(_handles)
        assert done.written == shards and not done.failed, done
    return {
        "images": done.rows,
        "seconds": usage.seconds,
        "peak_rss_mib": usage.peak_rss_mib,
        "files_left_open": max(after[worker][0] - before[worker][0] for worker in before),
        "threads_left": max(after[worker][1] - before[worker][1] for worker in before),
    }


def _in_new_process(folder: str, workers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--in-process", folder, "--workers", str(workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
    return json.loads(done.stdout.splitlines()[-1])


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--shards", type=int, nargs="+", help="default 20 200")
    arguments.add_argument("--images", type=int, help="of a shard; default 32")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--in-process", metavar="FOLDER", help=argparse.SUPPRESS)
    options = arguments.parse_args(given)
    if options.in_process:
        print(json.dumps(one_run(options.in_process, options.workers)))
        return
    described = machine()
    counts = options.shards or ([2, 6] if options.quick else [20, 200])
    images = options.images or (8 if options.quick else 32)
    repeats = options.repeats or (1 if options.quick else 5)
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as place:
        for count in counts:
            folder = Path(place) / str(count)
            folder.mkdir()
            make_shards(images, count, folder)
        for number in range(repeats):
            for count in counts if number % 2 == 0 else reversed(counts):
                runs[count].append(_in_new_process(str(Path(place) / str(count)), options.workers))
                print(f"  round {number + 1}: {count} shards: {runs[count][-1]}", flush=True)
    cases: dict[str, Any] = {
        str(count): {name: summary([run[name] for run in each]) for name in each[0]}
        for count, each in runs.items()
    }
    least, most = runs[min(counts)], runs[max(counts)]
    ratio = summary([b["peak_rss_mib"] / a["peak_rss_mib"] for a, b in zip(least, most, strict=True)])
    rows = [["shards", "images", "peak MiB", "files left open", "threads left"]]
    for count, case in cases.items():
        left = (f"{case[name]['max']:.0f}" for name in ("files_left_open", "threads_left"))
        rows.append([count, f"{case['images']['median']:.0f}", ranged(case["peak_rss_mib"]), *left])
    name = f"peak of {max(counts)} shards ÷ that of {min(counts)}"
    results = {
        "what": f"Null model, {options.workers} workers, {images} photographs a shard, {repeats} interleaved runs.",
        "settings": {"shards": counts, "images": images, "workers": options.workers, "repeats": repeats},
        "cases": cases,
        "ratios": {name: ratio},
        "table": rows,
        "notes": [f"{name}: **{ranged(ratio)}**"],
    }
    if write_result("memory", options, described, results) and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
