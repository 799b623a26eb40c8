"""Two checkouts of curator_dask beside each other: whether one is faster, or smaller, than the other.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.builds /tmp/before . --jobs lite0 null stages clip two-models

Each job is a new process with a new cluster, in turns, so that neither build has the machine's better hour. A job warms
its cluster up, then runs some times; its figure is the median. Printed are the second build's figures divided by the
first's, round by round.

The jobs: ``lite0`` and ``null`` embed with pretrained EfficientNet-Lite0 and with no model; ``clip`` and ``stages``
with a small random CLIP, through the dataset and through a pipeline. ``two-models`` is of one build alone: what two
models in one pass cost, divided by what they must: one decoding with a resize for each, known from a run with two
models that do nothing much, and both forward passes, known from runs with one model and with none.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOBS = ("lite0", "null", "clip", "stages", "two-models")
_LOOK_EVERY = 0.25  # seconds between two looks at the memory
_PASSES = {
    "lite0": 1,
    "null": 6,
    "clip": 2,
    "stages": 2,
    "two-models": 1,
}  # over the photographs, in a timed run


def main(given: list[str] | None = None) -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("builds", nargs=2, help="folders of the two checkouts")
    arguments.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--repeats", type=int, default=3, help="timed runs of a job")
    arguments.add_argument("--images", type=int, default=1024)
    arguments.add_argument("--shards", type=int, default=16)
    arguments.add_argument("--out", type=Path, help="JSON file for all figures")
    options = arguments.parse_args(given)
    from benchmarks.end_to_end import pretrained_efficientnet
    from benchmarks.photographs import make_photographs
    from benchmarks.random_clip import TINY, clip_folder

    inputs = {
        "photographs": str(make_photographs(options.images, options.shards)),
        "lite0": pretrained_efficientnet(),
        "clip": str(clip_folder(TINY)),
    }
    found: dict[str, list[list[dict[str, float]]]] = {job: [] for job in options.jobs}
    for number in range(options.rounds):
        for job in options.jobs:
            builds = options.builds[1:] if job == "two-models" else options.builds
            turns = list(enumerate(builds))[:: 1 if number % 2 else -1]
            figures = {place: _run(build, job, inputs, options.repeats) for place, build in turns}
            found[job].append([figures[place] for place in sorted(figures)])
            print(f"round {number + 1}: {job}: {_told(found[job][-1])}", flush=True)
    for job, rounds in found.items():
        print(f"{job}: {_compared(rounds)}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


def _run(build: str, job: str, inputs: dict[str, str], repeats: int) -> dict[str, float]:
    root = Path(build).resolve()
    done = subprocess.run(
        [sys.executable, __file__, "--job", job, json.dumps(inputs), str(repeats)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _told(figures: list[dict[str, float]]) -> str:
    return " | ".join(", ".join(f"{name} {value:.4g}" for name, value in each.items()) for each in figures)


def _compared(rounds: list[list[dict[str, float]]]) -> str:
    if len(rounds[0]) == 1:
        ratios = {name: [each[0][name] for each in rounds] for name in rounds[0][0]}
    else:
        ratios = {f"{name} ratio": [new[name] / old[name] for old, new in rounds] for name in rounds[0][0]}
    return ", ".join(
        f"{name} {statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})"
        for name, each in ratios.items()
    )


# In a process of its own, with the package of a checkout


def job_main(job: str, inputs: dict[str, str], repeats: int) -> None:
    """Run one job, and print its figures as JSON."""
    import curator_dask
    from curator_dask import get_client

    assert Path(curator_dask.__file__).is_relative_to(Path.cwd()), curator_dask.__file__
    with tempfile.TemporaryDirectory() as out, get_client("cpu", verbose=False):
        folder = _linked(Path(inputs["photographs"]), Path(out, "in"), _PASSES[job])
        if job == "two-models":
            figures = _two_models(folder, inputs, repeats, out)
        else:
            run = _runner(job, folder, inputs)
            _timed(run, Path(out, "warm"))
            with MemoryWatch() as watch:
                rates = [_timed(run, Path(out, f"{number}")) for number in range(repeats)]
            figures = {"images/s": statistics.median(rates), "peak PSS MiB": watch.peak / 2**20}
    print(json.dumps(figures))


def _linked(photographs: Path, folder: Path, passes: int) -> str:
    """The shards so many times, under names of their own."""
    folder.mkdir()
    for tar in sorted(photographs.glob("*.tar")):
        for number in range(passes):
            for path in (tar, tar.with_suffix(".parquet")):
                (folder / f"{number}{path.name}").symlink_to(path)
    return str(folder)


def _runner(job: str, folder: str, inputs: dict[str, str]) -> Callable[[Path], Any]:
    from benchmarks.bare import NullEmbedder
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.image.embedders import ClipImageEmbedder, TimmImageEmbedder
    from curator_dask.pipeline import Pipeline
    from curator_dask.stages.image import (
        FilePartitioningStage,
        ImageEmbeddingStage,
        ImageParquetWriterStage,
        ImageReaderStage,
    )

    if job == "stages":

        def through_stages(out: Path) -> Any:
            stages = [
                FilePartitioningStage(folder),
                ImageReaderStage(dali_batch_size=64),
                ImageEmbeddingStage(model_name=inputs["clip"], remove_image_data=True, compile=False),
                ImageParquetWriterStage(str(out)),
            ]
            return Pipeline("builds", stages=stages).run().summary

        return through_stages
    embedder: Any = {
        "lite0": lambda: TimmImageEmbedder(inputs["lite0"], compile=False),
        "null": lambda: NullEmbedder(batch_size=64),
        "clip": lambda: ClipImageEmbedder(inputs["clip"], compile=False),
    }[job]()
    return lambda out: embedder(ImageTextPairDataset.from_webdataset(folder)).save_metadata(str(out))


def _two_models(folder: str, inputs: dict[str, str], repeats: int, out: str) -> dict[str, float]:
    """Seconds of both models in one pass, over those of one decoding, a resize for each and both forward passes."""
    from benchmarks.bare import NullEmbedder, SecondNullEmbedder
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.image.embedders import ClipImageEmbedder, TimmImageEmbedder

    first = TimmImageEmbedder(inputs["lite0"], compile=False)
    second = ClipImageEmbedder(inputs["clip"], image_embedding_column="second", compile=False)
    none = NullEmbedder(batch_size=64)
    chains: dict[str, list[Any]] = {
        "first": [first],
        "second": [second],
        "none": [none],
        "resized twice": [none, SecondNullEmbedder(batch_size=64, image_embedding_column="second")],
        "both": [first, second],
    }

    def run(chain: list[Any], place: Path) -> Any:
        dataset = ImageTextPairDataset.from_webdataset(folder)
        for embedder in chain:
            dataset = embedder(dataset)
        return dataset.save_metadata(str(place))

    seconds: dict[str, list[float]] = {name: [] for name in chains}
    for number in range(repeats + 1):
        for name, chain in chains.items():
            rate = _timed(lambda place, chain=chain: run(chain, place), Path(out, f"{name}{number}"))  # type: ignore[misc]
            if number:  # the first warms up
                seconds[name].append(1 / rate)
    a, b, nothing, decoded, both = (statistics.median(each) for each in seconds.values())
    return {
        "both / (decode + resizes + forwards)": both / (decoded + a + b - 2 * nothing),
        "second resize / both": (decoded - nothing) / both,
        "both / one after the other": both / (a + b),
    }


def _timed(run: Callable[[Path], Any], out: Path) -> float:
    """Images a second of a run, which is removed."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        summary = run(out)
    seconds = time.perf_counter() - started
    assert not summary.failed and not summary.failed_shards, summary
    shutil.rmtree(out)
    return float(summary.rows / seconds)


class MemoryWatch:
    """The most that this process and its children have together, each shared page counted once."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        while not self._stop.wait(_LOOK_EVERY):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak = max(self.peak, total)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job_main(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
