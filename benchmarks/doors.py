"""The stage door against the dataset door: what a pipeline of stages costs over the dataset API.

    python -m benchmarks.doors --device cpu
    python -m benchmarks.doors --device gpu

The same shards go through the same model on one cluster, in turns, Parquet files written, models loaded and
pipelines built (steady state):

- ``stages``: `Pipeline.run`: partitioning, reader, embedding with ``remove_image_data=True``, writer.
- ``dataset``: `ImageTextPairDataset`, the embedder, `save_metadata`.
- ``bare model``, of a CLIP with ``--bare`` or on a GPU: transformers' own class on a batch that stays where it is.

Before that each door is the first to use a cluster, for the peak memory of the workers, and what the two wrote is
compared: the same rows in the same order, with the same vectors. If they differ nothing is timed.

The models: ``null`` only averages the pixels, so that what is left is decoding and the framework; EfficientNet-Lite0
has its pretrained weights; the CLIPs have random ones, made once with transformers' own classes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import bare
from benchmarks.end_to_end import LITE0, parse_layout, pretrained_efficientnet, start_cluster
from benchmarks.harness import (
    Case,
    Team,
    Usage,
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
from benchmarks.random_clip import BASE, CLIPS, LARGE, TINY, clip_folder, forward
from curator_dask import backend
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.frames.columns import list_to_matrix
from curator_dask.image.embedders import ClipImageEmbedder, ImageEmbedder, TimmImageEmbedder
from curator_dask.models.encoders import EncoderSpec
from curator_dask.pipeline import Pipeline
from curator_dask.runs.summary import SaveSummary
from curator_dask.stages.base import Stage
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageEmbeddingStage,
    ImageParquetWriterStage,
    ImageReaderStage,
)

NULL = "null"
IMAGES = {NULL: 4096, LITE0: 512, BASE: 256, LARGE: 32}
"""Photographs a run on a CPU: some seconds of work, of the large model half a minute."""

LEAST_COSINE = 0.9999
"""Between a row's vectors from the two doors. On a CPU they are the same to the last bit; on a GPU the doors resize in
two ways, and bf16 rounds (against float32 it gave 0.99997, ViT-B/32 with these weights on a CPU)."""

MOST_ALIKE = 0.99
"""Median cosine of two different photographs, above which vectors are too much alike to tell rows apart by."""


class SharedModelStage(ImageEmbeddingStage):
    """Embeds with the model of an `ImageEmbedder`, so that both doors share one.

    Parameters
    ----------
    spec
        What builds the encoder.
    batch_size
        Images a forward pass.
    """

    def __init__(self, spec: EncoderSpec, batch_size: int) -> None:
        super().__init__(model_inference_batch_size=batch_size, remove_image_data=True)
        self.spec = spec

    def encoder_spec(self) -> EncoderSpec:
        """The embedder's."""
        return self.spec


@dataclass(frozen=True)
class Load:
    """A model, and how it is fed through either door.

    Attributes
    ----------
    name
        Of the model.
    embedder
        Of the dataset door.
    stage
        Of the stage door; the same model and batch size.
    read_batch
        Images that the reader decodes together.
    decode_threads
        A worker's, at most.
    """

    name: str
    embedder: ImageEmbedder
    stage: ImageEmbeddingStage
    read_batch: int
    decode_threads: int


def load_of(name: str, options: argparse.Namespace) -> Load:
    """The load of a model's name: ``null``, ``efficientnet-lite0`` or one of `CLIPS`."""
    common: dict[str, Any] = {
        "batch_size": options.batch_size,
        "num_threads_per_worker": options.decode_threads,
    }
    embedder: ImageEmbedder
    stage: ImageEmbeddingStage
    if name in CLIPS:
        folder = str(clip_folder(name))
        embedder = ClipImageEmbedder(folder, **common)
        stage = ImageEmbeddingStage(
            model_name=folder, model_inference_batch_size=options.batch_size, remove_image_data=True
        )
    else:
        embedder = (
            bare.NullEmbedder(**common)
            if name == NULL
            # Not compiled: "auto" may do so after minutes of work, in the midst of a round.
            else TimmImageEmbedder(pretrained_efficientnet(), compile=False, **common)
        )
        stage = SharedModelStage(embedder.encoder_spec(), options.batch_size)
    assert stage.encoder_spec() == embedder.encoder_spec(), "each door would load a model of its own"
    return Load(name, embedder, stage, options.batch_size * options.batches_a_read, options.decode_threads)


def by_stages(load: Load, source: str, out: str) -> SaveSummary:
    """Embed and save through a pipeline of stages."""
    stages: list[Stage] = [
        FilePartitioningStage(source),
        ImageReaderStage(load.read_batch, num_threads=load.decode_threads),
        load.stage,
        ImageParquetWriterStage(out),
    ]
    return Pipeline("doors", stages=stages).run().summary


def by_dataset(load: Load, source: str, out: str) -> SaveSummary:
    """Embed and save through the dataset API."""
    return load.embedder(ImageTextPairDataset.from_webdataset(source)).save_metadata(out)


DOORS = {"stages": by_stages, "dataset": by_dataset}


def run(door: str, load: Load, source: str, out: str | None = None) -> int:
    """Embed and save, into a folder that is removed unless one is given; the number of rows."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        saved = DOORS[door](load, source, out or stack.enter_context(tempfile.TemporaryDirectory()))
    assert not saved.failed and not saved.failed_shards, saved
    return saved.rows


def first_run(door: str, load: Load, source: str, out: Path, client: Any) -> float:
    """Run on a cluster that has done nothing yet, and keep the output; peak memory of the workers in MiB."""
    with Usage(list(client.run(os.getpid).values())) as usage:
        run(door, load, source, str(out))
    return usage.peak_rss_mib


def compare(one: str | Path, other: str | Path, column: str = "image_embedding") -> dict[str, float]:
    """Refuse two outputs that are not the same.

    Parameters
    ----------
    one, other
        Folders of Parquet files.
    column
        Of the vectors.

    Returns
    -------
    dict
        ``rows``, ``files``; the ``least_cosine`` of a row's two vectors and the ``largest_difference`` of a value of
        theirs; and ``neighbours``, the median cosine of one row's vector with the next one's: far from 1, or else the
        first figure would say nothing.

    Raises
    ------
    SystemExit
        Files, columns, rows or their order differ, vectors are missing, or they differ by more than rounding.
    """
    names = [sorted(path.name for path in Path(folder).glob("*.parquet")) for folder in (one, other)]
    if not names[0] or names[0] != names[1]:
        raise SystemExit(f"error: expected the same files from both doors, found {names[0]} and {names[1]}")
    matrices: list[list[np.ndarray]] = [[], []]
    for name in names[0]:
        tables = [pq.read_table(Path(folder) / name) for folder in (one, other)]
        if tables[0].column_names != tables[1].column_names:
            raise SystemExit(
                f"error: {name}: expected the same columns from both doors, found {tables[0].column_names} and"
                f" {tables[1].column_names}"
            )
        rest = [table.drop_columns([column]) for table in tables]
        if not rest[0].equals(rest[1]):
            raise SystemExit(f"error: {name}: the rows of the two doors differ, or their order")
        for table, into in zip(tables, matrices, strict=True):
            if table.column(column).null_count:
                raise SystemExit(f"error: {name}: {table.column(column).null_count} vectors are missing")
            into.append(list_to_matrix(table.column(column))[0])
    a, b = (np.concatenate(each) for each in matrices)
    found = {
        "rows": len(a),
        "files": len(names[0]),
        "least_cosine": float(_cosines(a, b).min()),
        "largest_difference": float(np.abs(a - b).max()),
        "neighbours": float(np.median(_cosines(a[1:], a[:-1]))),
    }
    if found["least_cosine"] < LEAST_COSINE:
        raise SystemExit(
            f"error: the vectors of the two doors differ: least cosine {found['least_cosine']:.6f}, expected"
            f" {LEAST_COSINE} or more"
        )
    if found["neighbours"] > MOST_ALIKE:
        raise SystemExit(
            f"error: all vectors are alike (median cosine of neighbours {found['neighbours']:.4f}, expected"
            f" {MOST_ALIKE} or less): comparing them would tell nothing"
        )
    return found


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def measure(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare the outputs of the two doors, then run them in turns.

    Returns
    -------
    The cases of a model by name, and what the comparison found.
    """
    images = options.images or IMAGES.get(name, 64)
    load = load_of(name, options)
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = place / "shards"
        source.mkdir()
        make_shards(images // options.shards, options.shards, source)
        print(f"{name}: {images} photographs in {options.shards} shards", flush=True)
        layout = parse_layout(options.layout)
        first, second = DOORS
        with start_cluster(options, layout) as client:
            peaks = {first: first_run(first, load, str(source), place / first, client)}
        client = start_cluster(options, layout)
        stack.callback(client.close)
        peaks[second] = first_run(second, load, str(source), place / second, client)
        same = compare(place / first, place / second, load.embedder.image_embedding_column)
        print(f"  outputs compared: {same}", flush=True)
        pids = [os.getpid(), *client.run(os.getpid).values()]
        cases = {f"{door}, {name}": Case(partial(run, door, load, str(source)), pids) for door in DOORS}
        if options.bare and name in CLIPS:
            team = Team(*layout)
            stack.callback(team.close)
            most = max(images // 2, options.batch_size * layout[0])
            work = partial(team.run, forward, str(clip_folder(name)), options.batch_size, most)
            cases[f"bare model, {name}"] = Case(work, team.pids)
        found = run_interleaved(cases, options.repeats)
    for door, peak in peaks.items():  # the larger one's, twice, had both been seen on the same workers
        found[f"{door}, {name}"]["peak_rss_mib"] = peak
    return found, same


def ratios_of(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The figures of a model, each from runs of the same round."""
    stages, dataset = (found[f"{door}, {name}"] for door in DOORS)

    def divide(top: float, bottom: float) -> float:
        return top / bottom

    cpu = [case["cpu_ms_per_item"]["runs"] for case in (stages, dataset)]
    ratios = {
        f"stages ÷ dataset, {name}": per_round(divide, stages, dataset),
        f"CPU time, stages ÷ dataset, {name}": summary(list(map(divide, *cpu))),
    }
    if f"bare model, {name}" in found:
        for door, case in (("stages", stages), ("dataset", dataset)):
            ratios[f"{door} ÷ bare model, {name}"] = per_round(divide, case, found[f"bare model, {name}"])
    return ratios


def options_of_command_line(given: list[str] | None) -> argparse.Namespace:
    arguments = parser(__doc__)
    names = [NULL, LITE0, *CLIPS]
    arguments.add_argument(
        "--model",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"one after the other, of {', '.join(names)} (default on a CPU the first three, on a GPU {LARGE})",
    )
    arguments.add_argument("--images", type=int, help="photographs (default 32 to 4096 by model; gpu 8192)")
    arguments.add_argument("--shards", type=int, help="shards of these (default 4; gpu 8; quick 2)")
    arguments.add_argument(
        "--batch-size", type=int, help="of the model, in both doors; default 64, on a GPU 128"
    )
    arguments.add_argument(
        "--batches-a-read", type=int, default=2, help="batches that the reader decodes together (default 2)"
    )
    arguments.add_argument("--layout", help="workers x threads; default one worker a core, of 1 thread")
    arguments.add_argument("--decode-threads", type=int, default=16, help="a worker's, at most (default 16)")
    arguments.add_argument("--bare", action="store_true", help="the bare model also on a CPU")
    options = arguments.parse_args(given)
    on_gpu, quick = options.device == "gpu", options.quick
    defaults = [NULL, TINY] if quick else [LARGE] if on_gpu else [NULL, LITE0, BASE]
    options.model = options.model or defaults
    options.images = options.images or (32 if quick else 8192 if on_gpu else None)
    options.shards = options.shards or (2 if quick else 8 if on_gpu else 4)
    # A batch of whole photographs holds 350 at most, which is why it is not 1024 as in end_to_end.
    options.batch_size = options.batch_size or (8 if quick else 128 if on_gpu else 64)
    options.repeats = options.repeats or (2 if quick else 5)
    options.layout = options.layout or ("1x1" if on_gpu else f"1x{cores()}" if quick else f"{cores()}x1")
    options.bare = options.bare or on_gpu
    return options


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    options = options_of_command_line(given)
    described = machine()
    os.environ[backend.DEVICE_VARIABLE] = options.device  # for the processes of the teams
    found: dict[str, Any] = {}
    compared: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for name in options.model:
        cases, compared[name] = measure(name, options)
        found |= cases
        ratios |= ratios_of(name, cases)
    notes = [f"{name}: **{ranged(value)}**" for name, value in ratios.items()]
    for name, same in compared.items():
        notes.append(
            f"{name}: both doors wrote the same {same['rows']} rows in {same['files']} files, least cosine of the"
            f" vectors {same['least_cosine']:.6f}, largest difference of a value {same['largest_difference']:.2g}"
            f" (median cosine of two photographs {same['neighbours']:.2g})"
        )
    print("\n".join(notes))
    where = "a GPU cluster" if options.device == "gpu" else f"workers x threads {options.layout}"
    results = {
        "what": f"The same photographs, in {options.shards} shards, through the same model: as stages, and as a"
        f" dataset; {where}, batches of {options.batch_size}, median of {options.repeats} interleaved runs; the peak"
        " is the workers', in the first run of a door on a fresh cluster.",
        "settings": {
            "models": options.model,
            "shards": options.shards,
            "batch_size": options.batch_size,
            "read_batch": options.batch_size * options.batches_a_read,
            "layout": options.layout,
            "repeats": options.repeats,
        },
        "compared": compared,
        "cases": found,
        "ratios": ratios,
        "table": case_rows(found),
        "notes": notes,
    }
    if write_result("doors", options, described, results) and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
