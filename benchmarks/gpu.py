"""All figures of one GPU in one run of under ten minutes: the bare parts, the whole, and what is left between.

    python -m benchmarks.gpu --device gpu --out gpu.json
    python -m benchmarks.gpu --device cpu --quick

Sections, the most important first; one for which no time is left is skipped, one that fails is noted with its reason,
and the JSON is written after each, so that a run that is cut off leaves its figures:

- ``ViT-L/14``: end to end with one and with two tasks a GPU, in turns with the bare forward pass of the same batch in
  every way of `benchmarks.bare_gpu.WAYS`; last, end to end with the embedder's ``compile=True``.
- ``ViT-B/32``: the same, and bare DALI (decode and the package's two-pass transform) with the same threads.
- ``trace``: both under torch's profiler: operators, kernels, gaps, and every copy between host and device.
- ``decode sweep``: bare DALI's settings. ``forward sweep``: batch sizes, in all ways.

Weights are random: no speed depends on them. End to end goes through ``get_client(cluster_type="gpu")``, or where
dask-cuda is not installed through a plain cluster with a worker on the GPU; the JSON says which. With ``--device cpu``
the same runs on small models, to see that the script works; the goals are then not judged.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import bare_gpu, gpu_cluster, gpu_trace
from benchmarks.gpu_run import Run
from benchmarks.harness import Case, cores, gpu_names, parser, write_tables
from benchmarks.photographs import make_photographs
from curator_dask import backend
from curator_dask.decode.transforms import TransformSpec
from curator_dask.image.embedders import TimmImageEmbedder

MODELS = {
    "gpu": {
        "ViT-L/14": "vit_large_patch14_clip_quickgelu_224.openai",
        "ViT-B/32": "vit_base_patch32_clip_quickgelu_224.openai",
    },
    "cpu": {"test_vit": "test_vit.r160_in1k", "test_resnet": "test_resnet.r160_in1k"},
}
"""timm's names of a large and a small model, by what they are called in the figures; small ones stand in on a CPU."""

_GPU = {"batch_size": 256, "ways": list(bare_gpu.WAYS), "tasks": [1, 2]}  # the embedders' default batch
_CPU = {"batch_size": 16, "repeats": 1, "sweep_seconds": 0.05}
SIZES = {
    ("gpu", False): _GPU
    | {"photographs": 2048, "images": (16384, 32768), "repeats": 3, "sweep_seconds": 1.5}
    | {"batch_sweep": [64, 128, 256, 512, 1024]},
    ("gpu", True): _GPU
    | {"photographs": 512, "images": (1024, 2048), "repeats": 1, "sweep_seconds": 0.3, "batch_sweep": [256]},
    ("cpu", False): _CPU
    | {"photographs": 64, "images": (128, 256), "tasks": [1, 2], "batch_sweep": [8, 32]}
    | {"ways": ["eager, autocast", "compiled, autocast"]},
    ("cpu", True): _CPU
    | {"photographs": 16, "images": (16, 32), "tasks": [1], "batch_sweep": [8], "ways": ["eager, autocast"]},
}
"""By device and ``--quick``; end to end the images of the large and of the small model."""


def model_section(run: Run, label: str, images: int, minutes: float) -> None:
    """End to end in turns with its bounds; bare DALI is one of them where decoding is, for the small model."""
    options = run.options
    model = options.models[label]
    cases: dict[str, Case] = {}

    def add(tasks: int, compiles: bool) -> None:
        words = f"{tasks} task{'s' if tasks > 1 else ''}{', compile=True' if compiles else ''}"
        name = f"{label}: end to end, {words}"
        with run.part(name):
            cases[name] = end_to_end(run, name, tasks, model, images, compiles)

    for tasks in options.tasks:
        add(tasks, False)
    if label != next(iter(options.models)):
        settings = bare_gpu.Decoding(options.decode_threads, transform_of(model))
        case = run.bare(_decoders(options), bare_gpu.decode, settings, photographs(run), images // 2)
        cases[f"{label}: DALI, {settings.label()}"] = case
    for way in options.ways:
        case = run.bare(way, bare_gpu.forward, model, way, options.batch_size, max(1, images // 4))
        cases[f"{label}: forward, {way}"] = case
    if options.compile:
        add(1, True)  # the last to be warmed up, and so the first to be left out
    run.measure(cases, 60 * minutes)


def _decoders(options: argparse.Namespace) -> str:
    """Bare DALI runs in the process of the first way, which waits meanwhile: one process less to start."""
    return options.ways[0]


def transform_of(model: str) -> TransformSpec:
    """What a model expects of its input."""
    return TransformSpec.from_timm(bare_gpu.data_config(model))


def end_to_end(run: Run, name: str, tasks: int, model: str, images: int, compiles: bool) -> Case:
    """A whole run on a cluster with one worker, Parquet files written."""
    options = run.options
    client, run.results["through"][name] = run.cluster(tasks)
    embedder = TimmImageEmbedder(
        model,
        pretrained=False,
        batch_size=options.batch_size,
        num_threads_per_worker=options.decode_threads,
        compile=True if compiles else "auto",
    )
    return gpu_cluster.end_to_end(client, embedder, options.device, shards(run, images))


def trace_section(run: Run, label: str) -> None:
    """The photographs once under torch's profiler."""
    options = run.options
    work = (options.models[label], options.batch_size, options.decode_threads, photographs(run))
    run.results["traces"][label] = gpu_trace.in_a_process(gpu_trace.trace, *work)


def forward_sweep(run: Run) -> None:
    """The bare forward pass by batch size, in all ways.

    Those that compile come last, since they compile each batch size anew, and leave out the one that has been measured
    end to end.
    """
    options = run.options
    for way, label in [(way, label) for way in options.ways for label in options.models]:
        compiled = way.startswith("compiled")
        for batch in options.batch_sweep:
            if compiled and batch == options.batch_size:
                continue
            with run.part(f"{label}: forward, {way}, batch {batch}"):
                run.require(60 if compiled else 15)
                rates = run.timed(way, bare_gpu.forward, options.models[label], way, batch)
                entry = {"model": label, "way": way, "batch": batch, **rates}
                run.results["sweeps"]["forward"].append(entry)


def decode_sweep(run: Run) -> None:
    """Bare DALI, one setting after the other varied."""
    options = run.options
    transform = transform_of(list(options.models.values())[-1])
    most = options.decode_threads
    settings = [
        bare_gpu.Decoding(number, spec) for number in options.thread_sweep for spec in (transform, None)
    ]
    if options.device == "gpu":
        loads = (0.0, 0.35, 0.8, 1.0)
        settings += [bare_gpu.Decoding(most, spec, load) for load in loads for spec in (transform, None)]
        hints = ((640, 640), (2048, 2048))
        settings += [bare_gpu.Decoding(most, transform, preallocate=hint) for hint in hints]
        settings += [bare_gpu.Decoding(most, transform, load, fancy=False) for load in (None, 1.0)]
    for each in settings:
        with run.part(f"decode sweep: {each.label()}"):
            run.require(10)
            rates = run.timed(_decoders(options), bare_gpu.decode, each, photographs(run))
            entry = {**vars(each), "transform": each.transform is not None, **rates}
            run.results["sweeps"]["decode"].append({"settings": each.label(), **entry})


def photographs(run: Run) -> Path:
    """Some distinct photographs, in shards of about 1,000."""
    return make_photographs(run.options.photographs, max(1, run.options.photographs // 1024))


def shards(run: Run, images: int) -> Path:
    """The photographs under further names until there are so many images; nothing is copied where links work."""
    source = photographs(run)
    folder = source.with_name(f"{source.name}-{images}")
    if (folder / "finished").exists():
        return folder
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir()
    for again in range(images // run.options.photographs):
        for file in sorted([*source.glob("*.tar"), *source.glob("*.parquet")]):
            try:
                (partial_folder / f"{again:03d}{file.name}").hardlink_to(file)
            except OSError:
                shutil.copy(file, partial_folder / f"{again:03d}{file.name}")
    (partial_folder / "finished").touch()
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.rename(folder)
    return folder


def options_of_command_line(given: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what follows from the device and from ``--quick``."""
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=9.0, help="time for all of it (default 9)")
    arguments.add_argument("--batch-size", type=int, help="of both models (default 256; cpu: 16)")
    arguments.add_argument("--decode-threads", type=int, help="a worker's (default: the cores, at most 16)")
    arguments.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = arguments.parse_args(given)
    options.models = MODELS[options.device]
    options.decode_threads = options.decode_threads or min(16, cores())
    for name, value in SIZES[options.device, options.quick].items():
        setattr(options, name, getattr(options, name, None) or value)
    options.images = dict(zip(options.models, options.images, strict=True))
    options.compile = not options.no_compile
    options.ways = [way for way in options.ways if options.compile or not way.startswith("compiled")]
    fewer = [number for number in (1, 2, 4, 8) if number < options.decode_threads]
    options.thread_sweep = [*([] if options.quick else fewer), options.decode_threads]
    return options


def main(given: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = options_of_command_line(given)
    on_gpu = options.device == "gpu"
    if on_gpu and not gpu_names():
        raise SystemExit(
            "error: nvidia-smi shows no GPU: check the driver, or run the small case (--device cpu)"
        )
    before = os.environ.get(backend.DEVICE_VARIABLE)
    os.environ[backend.DEVICE_VARIABLE] = options.device  # for the processes of teams and clusters
    needs = 30 * on_gpu
    large, small = options.models
    try:
        with Run(options) as run:
            run.section("photographs", 0, lambda: print(f"  {photographs(run).name}"))
            for label, share in ((large, 0.35), (small, 0.25)):
                work = partial(model_section, run, label, options.images[label], share * options.minutes)
                run.section(label, 2 * needs, work)
            for label in (large,) if options.quick else (large, small):
                run.section(f"trace, {label}", needs, partial(trace_section, run, label))
            run.section("decode sweep", needs, partial(decode_sweep, run))
            run.section("forward sweep", needs, partial(forward_sweep, run))
    finally:
        os.environ.pop(backend.DEVICE_VARIABLE)
        if before is not None:
            os.environ[backend.DEVICE_VARIABLE] = before
    if not on_gpu:
        nothing = "utilisation, copies, kernels, hw_decoder_load, preallocation"
        run.results["not_run"][nothing] = "there is no GPU in this run"
        run.write()
    print("\n".join(run.notes()))
    if on_gpu and options.out is None and not options.quick:
        write_tables()


if __name__ == "__main__":
    main()
