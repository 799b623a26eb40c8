"""Daft: `read_webdataset`, a class of Daft's with the model, `write_parquet`."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import daft
from peer_common import Embedder, Job, serve


def start(load: dict[str, Any], settings: dict[str, Any]) -> Job:
    """Set up Daft; the model is loaded anew in every job."""
    # Each shard that is read holds one of Daft's threads, one a core; with all of them held none is left to fetch
    # bytes, and 0.7.26 waits for ever (seen with 2 cores and 2 shards).
    daft.set_execution_config(scantask_max_parallel=max(1, len(os.sched_getaffinity(0)) - 1))
    vectors = daft.DataType.fixed_size_list(daft.DataType.float32(), load["dim"])

    @daft.cls(max_concurrency=settings["workers"], use_process=settings["workers"] > 1)
    class Embed:
        def __init__(self) -> None:
            self.embedder = Embedder(load, settings["threads"])

        @daft.method.batch(return_dtype=vectors, batch_size=settings["batch_size"])
        def embed(self, images: daft.Series) -> Any:
            with contextlib.ExitStack() as stack:
                # By default 16 MB are read for each; Daft's own decoding of images asks for as much as this does.
                files = [stack.enter_context(file.open(buffer_size=1 << 20)) for file in images.to_pylist()]
                return list(self.embedder.embed_files(files))

    embed = Embed()

    def job(shards: list[str], out: str) -> None:
        images = daft.read_webdataset(shards, batch_size=settings["batch_size"])
        images.select(
            images["__key__"].alias("key"), embed.embed(images["jpg"]).alias("image_embedding")
        ).write_parquet(out)

    return job


if __name__ == "__main__":
    serve(start)
