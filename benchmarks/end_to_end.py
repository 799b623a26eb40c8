"""A whole run on a cluster, against what the machine could do.

    python -m benchmarks.end_to_end --device cpu
    python -m benchmarks.end_to_end --device cpu --null-model
    python -m benchmarks.end_to_end --device gpu

Measured in turns, in the same layout of processes and threads:

- ``end to end``: `save_metadata` of a dataset through `get_client`'s cluster, Parquet files written; the models
  are loaded and the pipelines built (steady state).
- ``decode``: bare DALI and torch's resize, or on a GPU bare DALI, pixels dropped. With ``--null-model`` on a CPU also
  ``decode in DALI alone``, its resize with it.
- ``model``: the bare timm model on a batch that stays where it is; the null model has the pixels' normalisation in it.

The ceiling of a CPU is ``1 / (1 / decode + 1 / model)``, which is ``cores / (t_decode + t_model)`` in core-seconds an
image; of a GPU ``min(decode, model)``. A cold start, from the start of Python to the end of the first shard, is
measured apart, in new processes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import bare
from benchmarks.ceiling import IN_DALI, IN_DALI_ALONE, ON_CPU, decode_case, in_turn, model_case, slowest
from benchmarks.harness import (
    HERE,
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
from benchmarks.photographs import make_photographs
from curator_dask import backend, get_client
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.embedders import ImageEmbedder, TimmImageEmbedder

LITE0 = "efficientnet-lite0"
GPU_MODEL = "vit_large_patch14_clip_quickgelu_224.openai"


def embedder_of(options: argparse.Namespace) -> ImageEmbedder:
    """The embedder under test, the same in warm-up, run and cold start."""
    common: dict[str, Any] = {
        "batch_size": options.batch_size,
        "num_threads_per_worker": options.decode_threads,
    }
    if options.null_model:
        return bare.NullEmbedder(**common)
    # Not compiled: "auto" may do so after minutes of work, in the midst of a round.
    return TimmImageEmbedder(options.model, pretrained=options.pretrained, compile=False, **common)


def pretrained_efficientnet() -> str:
    """The EfficientNet-Lite0 that a package carries, as a model name for timm."""
    import importlib.util

    path = HERE.parent / "scripts" / "pretrained_efficientnet.py"
    spec = importlib.util.spec_from_file_location("pretrained_efficientnet", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = Path(tempfile.gettempdir()) / "curator-dask-efficientnet-lite0"
    return f"local-dir:{module.write_model_folder(out)}"


def parse_layout(text: str) -> tuple[int, int]:
    """``"2x1"`` as 2 workers of 1 thread each."""
    workers, _, threads = text.partition("x")
    return int(workers), int(threads)


def start_cluster(options: argparse.Namespace, layout: tuple[int, int]) -> Any:
    """A client of a new cluster; on a GPU the layout has no meaning."""
    if options.device == "gpu":
        return get_client(cluster_type="gpu", verbose=False)
    workers, threads = layout
    env = {"OMP_NUM_THREADS": str(threads)}
    return get_client(cluster_type="cpu", n_workers=workers, verbose=False, env=env)


def save(options: argparse.Namespace, source: Any) -> int:
    """Embed and save into a new folder; gives the number of rows."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        dataset = ImageTextPairDataset.from_webdataset(source)
        saved = embedder_of(options)(dataset).save_metadata(out)
    assert not saved.failed and not saved.failed_shards, saved
    return saved.rows


def cold_start(options: argparse.Namespace) -> None:
    """The first shard in a new process; prints JSON of seconds since the process was started."""
    marks = {"imports": time.time() - options.started}
    layout = parse_layout(options.layouts[0])
    with start_cluster(options, layout):
        marks["cluster"] = time.time() - options.started
        folder = make_photographs(options.images, options.shards)
        rows = save(options, str(folder / "00000.tar"))
        marks["first shard"] = time.time() - options.started
    marks["closed"] = time.time() - options.started
    print("\n" + json.dumps({"rows": rows, **marks}))


def measure_cold_start(options: argparse.Namespace, layout: str, repeats: int) -> dict[str, Any]:
    """Summaries of seconds from the start of Python to each stage."""
    runs = []
    for _ in range(repeats):
        command = [sys.executable, "-m", "benchmarks.end_to_end", *options.given, "--layouts", layout]
        command += ["--cold-start", "--started", str(time.time())]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"  cold start, {layout}: {runs[-1]}", flush=True)
    return {name: summary([run[name] for run in runs]) for name in runs[0]}


def options_of_command_line(given: list[str] | None) -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--model", help=f"timm model (default: {LITE0} on a CPU, ViT-L/14 on a GPU)")
    arguments.add_argument("--null-model", action="store_true", help="only average the pixels")
    arguments.add_argument("--pretrained", action=argparse.BooleanOptionalAction, help="load weights")
    arguments.add_argument("--images", type=int, help="photographs (default 512; null model and gpu 4096)")
    arguments.add_argument("--shards", type=int, help="shards of these (default 4; quick 2)")
    arguments.add_argument("--batch-size", type=int, help="default 64, on a GPU 1024")
    arguments.add_argument("--layouts", nargs="+", help="workers x threads; default 2x1 1x2 with 2 cores")
    arguments.add_argument("--decode-threads", type=int, default=16, help="a worker's, at most (default 16)")
    arguments.add_argument("--cold-repeats", type=int, help="cold starts for each layout (default 3)")
    arguments.add_argument("--cold-start", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = arguments.parse_args(given)
    on_gpu, quick = options.device == "gpu", options.quick
    options.images = options.images or (64 if quick else 4096 if on_gpu or options.null_model else 512)
    options.shards = options.shards or (2 if quick else 4)
    options.batch_size = options.batch_size or (1024 if on_gpu else 64)
    options.repeats = options.repeats or (2 if quick else 5)
    if options.cold_repeats is None:
        options.cold_repeats = 0 if quick else 3
    count = cores()
    layouts = ["1x1"] if on_gpu else [f"1x{count}"] if quick or count == 1 else [f"{count}x1", f"1x{count}"]
    options.layouts = options.layouts or layouts
    options.label = "null model" if options.null_model else options.model or (GPU_MODEL if on_gpu else LITE0)
    options.model = options.label
    if options.pretrained is None:
        options.pretrained = options.model == LITE0
    # What a cold start in another process must be told.
    options.given = [
        *("--device", options.device),
        *(["--null-model"] if options.null_model else ["--model", options.model]),
        "--pretrained" if options.pretrained else "--no-pretrained",
        *(
            f"--{name}={getattr(options, name.replace('-', '_'))}"
            for name in ("images", "shards", "batch-size", "decode-threads")
        ),
    ]
    if options.model == LITE0:
        options.model = pretrained_efficientnet()
    return options


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    options = options_of_command_line(given)
    if options.cold_start:
        cold_start(options)
        return
    described = machine()
    os.environ[backend.DEVICE_VARIABLE] = options.device  # for the processes of the teams
    folder = make_photographs(options.images, options.shards)
    cold = {
        layout: measure_cold_start(options, layout, options.cold_repeats)
        for layout in options.layouts
        if options.cold_repeats
    }
    with contextlib.ExitStack() as stack:
        cases: dict[str, Case] = {}
        for layout in options.layouts:
            cases |= cases_of(options, layout, folder, stack)
        found = run_interleaved(cases, options.repeats)

    ratios = {}
    for layout in options.layouts:
        parts = [found[f"{name}, {layout}"] for name in ("decode", "model")]
        ours = found[f"end to end, {layout}"]
        ceiling = slowest if options.device == "gpu" else in_turn
        ratios[f"ceiling, {layout}, images/s"] = per_round(ceiling, *parts)
        ratios[f"end to end ÷ ceiling, {layout}"] = per_round(
            lambda rate, *bounds, ceiling=ceiling: rate / ceiling(*bounds), ours, *parts
        )
        for name in ("decode", IN_DALI_ALONE) if options.null_model else ():
            if f"{name}, {layout}" in found:
                bare_case = found[f"{name}, {layout}"]
                ratios[f"end to end ÷ {name}, {layout}"] = per_round(operator.truediv, ours, bare_case)
    notes = [f"{name}: **{ranged(value)}**" for name, value in ratios.items()]
    for layout, stages in cold.items():
        rows = stages.pop("rows")["median"]
        text = ", ".join(f"{name} {ranged(value)}" for name, value in stages.items())
        notes.append(f"cold start, {layout}, seconds since Python was started ({rows:.0f} images): {text}")
    print("\n".join(notes))
    kind = "random weights" if not options.pretrained else "pretrained weights"
    settings = {"images": options.images, "shards": options.shards, "batch_size": options.batch_size}
    settings |= {"model": options.label, "pretrained": options.pretrained, "repeats": options.repeats}
    results = {
        "what": f"{options.label}{'' if options.null_model else ' with ' + kind}: {options.images} photographs in"
        f" {options.shards} shards, batches of {options.batch_size}, median of {options.repeats} interleaved runs.",
        "settings": {**settings, "layouts": options.layouts},
        "cases": found,
        "ratios": ratios,
        "cold_start": cold,
        "table": case_rows(found),
        "notes": notes,
    }
    script = f"end_to_end-{options.label.replace(' ', '-').replace('/', '-')}"
    if write_result(script, options, described, results) and options.out is None:
        write_tables()


def cases_of(
    options: argparse.Namespace, layout: str, folder: Path, stack: contextlib.ExitStack
) -> dict[str, Case]:
    """End to end, decode and model in one layout."""
    workers, threads = parse_layout(layout)
    on_gpu = options.device == "gpu"
    decode_threads = min(options.decode_threads, cores()) if on_gpu else threads
    cases = {}

    client = start_cluster(options, (workers, threads))
    stack.callback(client.close)
    pids = [os.getpid(), *client.run(os.getpid).values()]

    def end_to_end() -> int:
        with client.as_current():
            return save(options, str(folder))

    cases[f"end to end, {layout}"] = Case(end_to_end, pids)
    kind = IN_DALI if on_gpu else ON_CPU
    cases[f"decode, {layout}"] = decode_case(
        kind, workers, threads, decode_threads, folder, options.images, stack
    )
    if options.null_model and not on_gpu:
        cases[f"{IN_DALI_ALONE}, {layout}"] = decode_case(
            IN_DALI, workers, threads, decode_threads, folder, options.images, stack
        )
    images = max(options.images // 2, options.batch_size * workers)
    model = None if options.null_model else options.model
    cases[f"model, {layout}"] = model_case(
        model, options.pretrained, workers, threads, options.batch_size, images, stack
    )
    return cases


if __name__ == "__main__":
    main()
