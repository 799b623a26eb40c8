"""What it costs that the dashboard follows a run.

    python -m benchmarks.watching --device cpu

The same shards go through the same model on one cluster, in turns, steady state: once with all that the page of the
dashboard and Prometheus show, once without the stopwatches of tasks and without the scheduler's part. Images are
counted in both, as the line of progress needs them. The model is ``null``, which only averages the pixels: beside a
real one the share is smaller.

So small a difference is lost in what two rounds differ by. So in one run more the stopwatches and the scheduler's part
are timed where they are called: the processor time of their threads, that of timing them included.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.doors import NULL, load_of, run
from benchmarks.end_to_end import parse_layout, start_cluster
from benchmarks.harness import (
    Case,
    case_rows,
    cores,
    machine,
    parser,
    per_round,
    ranged,
    run_interleaved,
    summary,
    write_result,
    write_tables,
)
from benchmarks.memory import make_shards
from curator_dask.cluster.timing import Stopwatch
from curator_dask.dashboard.following import Runs


def watch_time(yes: bool) -> None:
    """In a worker's process, whether stopwatches run."""
    kept = vars(Stopwatch).get("kept") or (Stopwatch.turn_to, Stopwatch.tell)
    Stopwatch.kept = kept  # type: ignore[attr-defined]
    Stopwatch.turn_to, Stopwatch.tell = kept if yes else (_nothing, _nothing)  # type: ignore[method-assign]


def _nothing(*_: Any) -> None:
    return None


def follow(client: Any, runs: Runs, yes: bool) -> None:
    """Have a cluster's runs followed, or not."""
    client.run(watch_time, yes)
    scheduler = client.cluster.scheduler
    if yes and Runs.name not in scheduler.plugins:
        scheduler.add_plugin(runs, name=Runs.name)
    if not yes and Runs.name in scheduler.plugins:
        scheduler.remove_plugin(name=Runs.name)


def time_calls(owner: Any, names: tuple[str, ...]) -> list[float]:
    """Have the calls of methods timed; where their seconds of processor time are added up."""
    total = [0.0]

    def timed(method: Any) -> Any:
        def call(*given: Any) -> Any:
            before = time.thread_time()
            try:
                return method(*given)
            finally:
                total[0] += time.thread_time() - before

        return call

    for name in names:
        setattr(owner, name, timed(getattr(owner, name)))
    return total


def time_stopwatches() -> None:
    """On a worker, from now on."""
    Stopwatch.total = time_calls(Stopwatch, ("__init__", "turn_to", "tell"))  # type: ignore[attr-defined]


def read_stopwatches() -> tuple[float, float]:
    """Of a worker, seconds of its stopwatches, and of the process."""
    return Stopwatch.total[0], time.process_time()  # type: ignore[attr-defined]


def share_of_time(client: Any, runs: Runs, work: Any) -> float:
    """Of the processor time of workers, what following one more run costs them and the scheduler."""
    client.run(time_stopwatches)
    scheduler = time_calls(runs, ("log_event",))
    before = client.run(read_stopwatches)
    work()
    after = client.run(read_stopwatches)
    spent = [sum(after[each][at] - before[each][at] for each in after) for at in (0, 1)]
    return (spent[0] + scheduler[0]) / spent[1]


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """Both cases, in turns; then the share."""
    load = load_of(NULL, options)
    with contextlib.ExitStack() as stack:
        source = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_shards(options.images // options.shards, options.shards, source)
        client = start_cluster(options, parse_layout(options.layout))
        stack.callback(client.close)
        runs = client.cluster.scheduler.plugins[Runs.name]
        work = partial(run, "dataset", load, str(source))
        pids = [os.getpid(), *client.run(os.getpid).values()]
        cases = {
            "followed": Case(work, pids, partial(follow, client, runs, True)),
            "not followed": Case(work, pids, partial(follow, client, runs, False)),
        }
        found = run_interleaved(cases, options.repeats)
        follow(client, runs, True)
        return found, share_of_time(client, runs, work)


def options_of_command_line(given: list[str] | None) -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, help="photographs (default 4096; quick 64)")
    arguments.add_argument("--shards", type=int, help="shards of these (default 16; quick 2)")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--batches-a-read", type=int, default=2, help=argparse.SUPPRESS)
    arguments.add_argument("--decode-threads", type=int, default=16, help="a worker's, at most (default 16)")
    arguments.add_argument("--layout", help="workers x threads; default one worker a core, of 1 thread")
    options = arguments.parse_args(given)
    options.images = options.images or (64 if options.quick else 4096)
    options.shards = options.shards or (2 if options.quick else 16)
    options.repeats = options.repeats or (2 if options.quick else 5)
    options.layout = options.layout or ("1x1" if options.device == "gpu" or options.quick else f"{cores()}x1")
    return options


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    options = options_of_command_line(given)
    described = machine()
    found, share = measure(options)
    followed, not_followed = found["followed"], found["not followed"]
    cpu = [case["cpu_ms_per_item"]["runs"] for case in (followed, not_followed)]
    ratios = {
        "images/s, followed ÷ not": per_round(lambda a, b: a / b, followed, not_followed),
        "CPU time, followed ÷ not": summary([a / b for a, b in zip(*cpu, strict=True)]),
    }
    notes = [f"{name}: **{ranged(value)}**" for name, value in ratios.items()]
    notes.append(f"stopwatches and the scheduler's part, of the workers' CPU time: **{share:.2%}**")
    print("\n".join(notes))
    results = {
        "what": f"{options.images} photographs in {options.shards} shards through the null model, with all that the"
        f" dashboard shows and without; workers x threads {options.layout}, batches of {options.batch_size}, median of"
        f" {options.repeats} interleaved runs.",
        "settings": {
            name: getattr(options, name) for name in ("images", "shards", "batch_size", "layout", "repeats")
        },
        "cases": found,
        "ratios": ratios,
        "share": share,
        "table": case_rows(found),
        "notes": notes,
    }
    if write_result("watching", options, described, results) and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
