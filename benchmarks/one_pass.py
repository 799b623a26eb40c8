"""What several things made of the same images cost in one pass, and in runs one after the other.

    python -m benchmarks.one_pass

The same shards, one cluster, in turns, steady state: two models, a head on the vectors of the first and the statistics
of the images, in one pass; and as four runs, the head by `score` on the finished vectors. Once with two models that do
nothing much, as beside a GPU the decoding is what takes time, and once with pretrained EfficientNet-Lite0 and a
MobileNetV3 of random weights, whose forward passes have to be paid either way.

    python -m benchmarks.one_pass --beside

measures instead what two heads and the statistics cost beside EfficientNet-Lite0, by the processor time of all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare import NullEmbedder, SecondNullEmbedder
from benchmarks.end_to_end import parse_layout, pretrained_efficientnet, start_cluster
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
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.classifiers import ImageClassifier, score_output
from curator_dask.image.embedders import ImageEmbedder, TimmImageEmbedder
from curator_dask.image.statistics import STATISTICS, ImageStatistics
from curator_dask.image.statistics.header import HEADER


class MeanHead(ImageClassifier):
    """A head that takes the mean of a vector."""

    def load_model(self, device: torch.device) -> Any:
        """The mean."""
        return lambda vectors: vectors.mean(dim=1)


class DeepHead(ImageClassifier):
    """A head of random weights, as large as that of LAION's NSFW detector."""

    def load_model(self, device: torch.device) -> Any:
        """Four layers."""
        torch.manual_seed(0)
        sizes = [self.embedding_size, 64, 512, 256, 1]
        layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        return torch.nn.Sequential(*(each for layer in layers for each in (layer, torch.nn.ReLU()))).to(
            device
        )


#: What stands beside the model: whether two heads do, and which statistics.
BESIDE: dict[str, tuple[bool, list[str]]] = {
    "the model alone": (False, []),
    "two heads": (True, []),
    "statistics of headers": (False, [*HEADER]),
    "both hashes": (False, ["phash", "dhash"]),
    "two heads, all statistics": (True, [*STATISTICS]),
}


def run_beside(quick: bool, heads: bool, names: list[str], source: str) -> int:
    """The model, and what is made beside it; gives the number of images."""
    model, _, length = models_of("real", quick)
    dataset = model(ImageTextPairDataset.from_webdataset(source))
    if heads:
        dataset = MeanHead("mean", pred_column="mean", embedding_size=length)(dataset)
        dataset = DeepHead("deep", pred_column="deep", embedding_size=length)(dataset)
    if names:
        dataset = ImageStatistics(names, prefix="image_")(dataset)
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        return _saved(dataset, out)


def models_of(kind: str, quick: bool) -> tuple[ImageEmbedder, ImageEmbedder, int]:
    """Two embedders, and how long the first one's vectors are."""
    column = "second"
    if kind == "null":
        return NullEmbedder(), SecondNullEmbedder(image_embedding_column=column), 3
    small = TimmImageEmbedder(
        "mobilenetv3_small_050", pretrained=False, image_embedding_column=column, compile=False
    )
    if quick:
        return TimmImageEmbedder("test_vit", pretrained=False, compile=False), small, 64
    return TimmImageEmbedder(pretrained_efficientnet(), compile=False), small, 1280


def run(kind: str, quick: bool, apart: bool, source: str) -> int:
    """All of it, in one pass or one after the other; gives the number of images."""
    first, second, length = models_of(kind, quick)
    head = MeanHead("mean", pred_column="mean", embedding_size=length)
    dataset = ImageTextPairDataset.from_webdataset(source)
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        if not apart:
            return _saved(ImageStatistics(prefix="image_")(second(head(first(dataset)))), f"{out}/all")
        rows = _saved(first(dataset), f"{out}/first")
        score_output(f"{out}/first", [head])
        _saved(second(dataset), f"{out}/second")
        _saved(ImageStatistics(prefix="image_")(dataset), f"{out}/statistics")
        return rows


def _saved(dataset: ImageTextPairDataset, out: str) -> int:
    summary = dataset.save_metadata(out)
    assert not summary.failed and not summary.failed_shards, summary
    return summary.rows


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, help="photographs (default 1024; quick 16)")
    arguments.add_argument("--shards", type=int, help="shards of these (default 16; quick 2)")
    arguments.add_argument(
        "--beside", action="store_true", help="heads and statistics beside one model, instead"
    )
    arguments.add_argument("--layout", help="workers x threads; default one worker a core, of 1 thread")
    options = arguments.parse_args(given)
    options.images = options.images or (16 if options.quick else 1024)
    options.shards = options.shards or (2 if options.quick else 16)
    options.repeats = options.repeats or (1 if options.quick else 5)
    options.layout = options.layout or ("1x1" if options.device == "gpu" or options.quick else f"{cores()}x1")
    described = machine()
    found = measure(options)
    if options.beside:
        name, what = "one_pass-beside", "EfficientNet-Lite0, and what is made beside it"
        base = found["the model alone"]["cpu_ms_per_item"]["runs"]
        ratios = {
            f"processor time with {case} ÷ without": summary(
                [one / alone for one, alone in zip(its["cpu_ms_per_item"]["runs"], base, strict=True)]
            )
            for case, its in found.items()
            if case != "the model alone"
        }
    else:
        name, what = "one_pass", "two models, a head and statistics"
        ratios = {
            f"one pass ÷ one after the other, {kind}": per_round(
                lambda pass_, runs: runs / pass_,
                found[f"{kind}, one pass"],
                found[f"{kind}, one after the other"],
            )
            for kind in ("null", "real")
        }
    results = {
        "what": f"{options.images} photographs in {options.shards} shards: {what}; workers x"
        f" threads {options.layout}, median of {options.repeats} interleaved runs.",
        "settings": {each: getattr(options, each) for each in ("images", "shards", "layout", "repeats")},
        "cases": found,
        "ratios": ratios,
        "table": case_rows(found),
        "notes": [f"{ratio}: **{ranged(value)}**" for ratio, value in ratios.items()],
    }
    print("\n".join(results["notes"]))
    if write_result(name, options, described, results) and options.out is None:
        write_tables()


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All ways, in turns."""
    with contextlib.ExitStack() as stack:
        source = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_shards(options.images // options.shards, options.shards, source)
        client = start_cluster(options, parse_layout(options.layout))
        stack.callback(client.close)
        pids = [os.getpid(), *client.run(os.getpid).values()]
        runs = {
            f"{kind}, {name}": partial(run, kind, options.quick, apart, str(source))
            for kind in ("null", "real")
            for name, apart in (("one pass", False), ("one after the other", True))
        }
        if options.beside:
            runs = {
                name: partial(run_beside, options.quick, *beside, str(source))
                for name, beside in BESIDE.items()
            }
        return run_interleaved({name: Case(each, pids) for name, each in runs.items()}, options.repeats)


if __name__ == "__main__":
    main()
