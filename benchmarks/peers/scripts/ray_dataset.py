"""Ray Data: `read_webdataset`, actors that decode and embed, `write_parquet`."""

from __future__ import annotations

import io
import os
from typing import Any

import ray
from peer_common import Embedder, Job, serve


class Embed:
    """An actor with the model, that decodes too: in tasks of their own before it that was slower."""

    def __init__(self, load: dict[str, Any], threads: int) -> None:
        self.embedder = Embedder(load, threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """From keys and JPEGs to keys and vectors."""
        vectors = self.embedder.embed_files([io.BytesIO(image) for image in batch["jpg"]])
        return {"key": batch["__key__"], "image_embedding": vectors}


def start(load: dict[str, Any], settings: dict[str, Any]) -> Job:
    """Start Ray; the actors are new in every job."""
    # Its CPUs are for scheduling only: with as many as there are cores the actors would leave none to read with.
    ray.init(
        address="local",  # or else it looks for one that is running
        num_cpus=2 * len(os.sched_getaffinity(0)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False

    def job(shards: list[str], out: str) -> None:
        images = ray.data.read_webdataset(shards, decoder=None, suffixes=["jpg"])
        images.map_batches(
            Embed,
            fn_constructor_kwargs={"load": load, "threads": settings["threads"]},
            batch_size=settings["batch_size"],
            compute=ray.data.ActorPoolStrategy(size=settings["workers"]),
        ).write_parquet(out)

    return job


if __name__ == "__main__":
    serve(start)
