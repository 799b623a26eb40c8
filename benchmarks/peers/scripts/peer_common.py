"""What the peers' scripts share: how they are told what to do, the model, and how Parquet is written.

These scripts run in environments without curator_dask, so they import nothing of it. A script is started once a
run. It reads JSON lines: first its configuration, then a line for each job. It answers each with one line when it is
done, on what was its standard output; whatever libraries print goes to standard error. See `benchmarks.peers.run`.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

Job = Callable[[list[str], str], None]
"""Embeds the images of some shards, given as paths, into a folder that does not exist yet."""

PartJob = Callable[[list[str], str, int, int], None]
"""The same for one part of the shards: its number and the number of parts come last."""

Start = Callable[[dict[str, Any], dict[str, Any]], PartJob]

VERSIONS = (
    "torch", "timm", "webdataset", "clip-retrieval", "daft", "ray", "nemo-curator", "nvidia-dali-cuda130", "pyarrow",
)  # fmt: skip


def serve(start: Callable[[dict[str, Any], dict[str, Any]], Job]) -> None:
    """Do what standard input says until it ends.

    Parameters
    ----------
    start
        Called once with the load and the peer's settings (see `benchmarks.peers.run`); gives what does a job.
    """
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        config = json.loads(sys.stdin.readline())
        job = start(config["load"], config["settings"])
        print(json.dumps({"versions": _versions()}), file=replies, flush=True)
        for line in sys.stdin:
            wanted = json.loads(line)
            job(wanted["shards"], wanted["out"])
            print(json.dumps({"done": wanted["out"]}), file=replies, flush=True)


_job: PartJob | None = None  # of a process that `apart` started


def apart(start: Start, load: dict[str, Any], settings: dict[str, Any]) -> Job:
    """What does a job in ``settings["workers"]`` processes, each with its share of the shards; they live on.

    Parameters
    ----------
    start
        Of a module, called in each of them with the load and the settings.
    """
    count = settings["workers"]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _start_apart, (start, load, settings))

    def job(shards: list[str], out: str) -> None:
        parts = [pool.submit(_run_apart, shards, out, number, count) for number in range(count)]
        for part in parts:
            part.result()

    return job


def _start_apart(start: Start, load: dict[str, Any], settings: dict[str, Any]) -> None:
    global _job
    _job = start(load, settings)


def _run_apart(shards: list[str], out: str, number: int, count: int) -> None:
    assert _job is not None
    _job(shards, out, number, count)


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class MeanColour(torch.nn.Module):
    """The null model: mean over the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From (n, 3, H, W) to (n, 3)."""
        return images.mean(dim=(2, 3))


class Embedder:
    """The model as a user of timm would set it up, and timm's own transform for it.

    Parameters
    ----------
    load
        ``model``: what `timm.create_model` takes, or None for the null model; ``data``: timm's data configuration.
    threads
        Of torch, in this process.
    channels_last
        Lay out weights and pixels so.
    bf16
        Run the model under `torch.autocast`.
    compiled
        By `torch.compile`, with frozen weights: batches of another size are compiled anew.

    Attributes
    ----------
    transform
        From a PIL image to a tensor (3, H, W), float32.
    """

    def __init__(
        self,
        load: dict[str, Any],
        threads: int,
        channels_last: bool = False,
        bf16: bool = False,
        compiled: bool = False,
    ) -> None:
        import timm
        from timm.data import create_transform

        torch.set_num_threads(threads)
        self.transform = create_transform(**load["data"], is_training=False)
        model = MeanColour()
        if load["model"] is not None:
            model = timm.create_model(load["model"], pretrained=True, num_classes=0)
        self.bf16 = bf16
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.eval().to(memory_format=self.layout)
        if compiled:
            from torch._inductor import config

            config.freezing = True
            self.model = torch.compile(self.model, dynamic=False)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """From (n, 3, H, W) to (n, d), both float32."""
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.model(pixels.contiguous(memory_format=self.layout)).float()

    def embed_files(self, files: Sequence[Any]) -> Any:
        """From what PIL opens, n of them, to a NumPy matrix (n, d)."""
        from PIL import Image

        images = [self.transform(Image.open(file).convert("RGB")) for file in files]
        return self.embed(torch.stack(images)).numpy()


class VectorFile:
    """A Parquet file of keys and vectors, written batch by batch: a context manager.

    Parameters
    ----------
    path
        To write.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.writer: Any = None

    def write(self, keys: list[str], vectors: Any) -> None:
        """Append keys and a NumPy matrix of as many rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        table = pa.table({"key": keys, "image_embedding": column})
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def __enter__(self) -> VectorFile:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)  # noqa: PTH103, PTH120
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
