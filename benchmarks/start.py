"""How long users wait before anything is done, with two checkouts of curator_dask beside each other.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.start /tmp/before .

Measured are whole processes, in turns: ``finished`` is ``embed`` of an output in which nothing is left to do, ``cold``
the same command of 128 photographs in two shards into a new output, ``dataset`` the import and ``from_webdataset`` of
five shards. Beside them bare programs, which no build can be faster than: ``dask`` imports what a lazy frame is made
of, ``worker`` what a worker needs to embed. Of each are printed the wall time, and the processor time of all its
processes, which is the steadier one where a machine has other work; but that of forked workers is not told to anyone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Figures = dict[str, dict[str, tuple[float, float]]]
"""By the case and the build, wall and processor seconds."""

_BARE = {
    "dask": "import dask.dataframe, distributed",
    "worker": "import dask.dataframe, distributed, torch, timm, nvidia.dali.fn",
}
CASES = ("finished", "cold", "dataset", *_BARE, "bare")
_SUBREAPER = 36  # of linux/prctl.h
_DATASET = "from curator_dask.datasets import ImageTextPairDataset as D; D.from_webdataset({!r})"


def main(given: list[str] | None = None) -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("builds", nargs=2, help="folders of the two checkouts")
    arguments.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--images", type=int, default=128)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--out", type=Path, help="JSON file for all figures")
    options = arguments.parse_args(given)
    from benchmarks.end_to_end import pretrained_efficientnet
    from benchmarks.photographs import make_photographs

    few, five = (str(make_photographs(options.images, shards)) for shards in (2, 5))
    common = ["--model", pretrained_efficientnet(), "--cluster", "cpu", "--workers", str(options.workers)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CURATOR_DASK_HOME"] = folder
        outputs = {
            build: str(Path(folder, f"finished-{place}")) for place, build in enumerate(options.builds)
        }

        def finished(build: str) -> tuple[float, float]:
            return _timed(build, "-m", "curator_dask.cli", "embed", few, outputs[build], *common)

        def cold(build: str) -> tuple[float, float]:
            out = Path(folder, "cold")
            shutil.rmtree(out, ignore_errors=True)
            return _timed(build, "-m", "curator_dask.cli", "embed", few, str(out), *common)

        def dataset(build: str) -> tuple[float, float]:
            return _timed(build, "-c", _DATASET.format(five))

        cases: dict[str, Callable[[str], tuple[float, float]]] = {
            "finished": finished,
            "cold": cold,
            "dataset": dataset,
        }
        for build in (
            options.builds if "finished" in options.cases else ()
        ):  # the outputs are made, and all is in the page cache
            finished(build)
            finished(build)
        rounds = []
        for number in range(options.rounds):
            figures: Figures = {}
            for name in (each for each in options.cases if each in cases):
                turns = options.builds[:: 1 if number % 2 else -1]
                figures[name] = {build: cases[name](build) for build in turns}
            figures |= {
                name: {"": _timed(".", "-c", script)}
                for name, script in _BARE.items()
                if name in options.cases
            }
            if "bare" in options.cases:
                bare = ("-m", "benchmarks.bare_embed", few, common[1], str(Path(folder, "bare")))
                figures["bare"] = {
                    f"{count} processes": _timed(".", *bare, "--processes", str(count))
                    for count in (1, options.workers)
                }
            rounds.append(figures)
            print(f"round {number + 1}: {json.dumps(figures)}", flush=True)
    print(_told(rounds, options.builds))
    if options.out:
        options.out.write_text(json.dumps(rounds, indent=1))


def _timed(build: str, *arguments: str) -> tuple[float, float]:
    """Wall and processor seconds of a program of Python with the package of a checkout."""
    root = Path(build).resolve()
    # What a process leaves behind when it ends, as the one that workers are forked from, is waited for here.
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    wall = time.perf_counter() - started
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _told(rounds: list[Figures], builds: list[str]) -> str:
    """The medians, and the second build's figures divided by the first's, round by round."""
    lines = []
    for name, first in rounds[0].items():
        for which, kind in enumerate(("wall", "processor")):
            seconds = {build: [each[name][build][which] for each in rounds] for build in first}
            told = ", ".join(f"{statistics.median(each):.2f} s {build}" for build, each in seconds.items())
            if {*first} == {*builds}:
                ratios = [new / old for old, new in zip(*(seconds[build] for build in builds), strict=True)]
                told += f", ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            lines.append(f"{name}, {kind}: {told}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
