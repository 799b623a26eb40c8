"""A run over many small shards, watched: time, memory, and what it leaves open.

The peak is that of the whole family of processes (client, scheduler, workers) while `save_metadata` runs. Open files
and threads of the workers are counted before and after. Shards are links of a few, under names of their own.
`benchmarks.scale` runs it.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
from pathlib import Path

import psutil

from benchmarks.harness import Usage
from benchmarks.photographs import make_photographs


def make_shards(images: int, count: int, folder: Path, sources: int = 4) -> None:
    """Link `count` shards of `images` photographs each into a folder, of which so many are different."""
    source = make_photographs(sources * images, sources)
    for number in range(count):
        for suffix in ("tar", "parquet"):
            path = source / f"{number % sources:05d}.{suffix}"
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
        # What is loaded once, and a pool of threads that stays, is there before the count: in every worker, for
        # which one shard is not enough.
        few = [str(path) for path in sorted(Path(folder).glob("*.tar"))[: 2 * workers]]
        embedder(ImageTextPairDataset.from_webdataset(few)).save_metadata(os.path.join(out, "warm"))  # noqa: PTH118
        before = client.run(_handles)
        with Usage() as usage:
            done = embedder(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out + "/all")
        after = client.run(_handles)
        assert done.written == shards and not done.failed, done
    return {
        "images": done.rows,
        "seconds": usage.seconds,
        "cpu_seconds": usage.cpu_seconds,
        "peak_rss_mib": usage.peak_rss_mib,
        "files_left_open": max(after[worker][0] - before[worker][0] for worker in before),
        "threads_left": max(after[worker][1] - before[worker][1] for worker in before),
    }
