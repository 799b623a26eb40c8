"""clip-retrieval's own reader, writer and runner, with a timm model where it would load a CLIP.

Its logger is left out: it starts a process that imports everything anew, which a short run would pay for.
"""

from __future__ import annotations

from typing import Any

import torch
from clip_retrieval.clip_inference.reader import WebdatasetReader
from clip_retrieval.clip_inference.runner import Runner
from clip_retrieval.clip_inference.writer import NumpyWriter
from peer_common import Embedder, Job, PartJob, apart, serve

PARTS = {"enable_text": False, "enable_image": True, "enable_metadata": False}


class NoLogger:
    """Takes the statistics of each batch and drops them."""

    def start(self) -> None:
        """Nothing to start."""

    def end(self) -> None:
        """Nothing to end."""

    def __call__(self, stats: dict[str, Any]) -> None:
        """Drop them."""


def start(load: dict[str, Any], settings: dict[str, Any]) -> Job:
    """Load the model; the DataLoader's workers are new in every job."""
    if settings.get("apart"):  # as its PySpark distributor has it
        return apart(run, load, settings)
    whole = run(load, settings, settings["workers"])
    return lambda shards, out: whole(shards, out, 0, 1)


def run(load: dict[str, Any], settings: dict[str, Any], workers: int = 0) -> PartJob:
    """Its runner in this process, with so many DataLoader workers."""
    embedder = Embedder(load, settings["threads"])

    def mapper(item: dict[str, Any]) -> dict[str, Any]:
        # As its ClipMapper does: vectors of length 1, in float16.
        vectors = torch.nn.functional.normalize(embedder.embed(item["image_tensor"]), dim=-1)
        return {"image_embs": vectors.to(torch.float16).numpy(), "image_filename": item["image_filename"]}

    def job(shards: list[str], out: str, number: int, count: int) -> None:
        Runner(
            reader_builder=lambda sampler: WebdatasetReader(
                sampler,
                embedder.transform,
                None,
                shards,
                settings["batch_size"],
                workers,
                **PARTS,
            ),
            mapper_builder=lambda: mapper,
            writer_builder=lambda part: NumpyWriter(part, out, output_partition_count=count, **PARTS),
            logger_builder=lambda _: NoLogger(),
            output_partition_count=count,
        )(number)

    return job


if __name__ == "__main__":
    serve(start)
