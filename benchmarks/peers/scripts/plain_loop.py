"""The loop that users write: webdataset and timm, decoding in DataLoader workers, one process with the model.

With the setting ``apart`` there are several such processes instead, each with its share of the shards, that decode too.
"""

from __future__ import annotations

from typing import Any

import webdataset as wds
from peer_common import Embedder, Job, PartJob, VectorFile, apart, serve


def start(load: dict[str, Any], settings: dict[str, Any]) -> Job:
    """Load the model; the DataLoader's workers are new in every job."""
    if settings.get("apart"):
        return apart(loop, load, settings)
    whole = loop(load, settings, settings["workers"])
    return lambda shards, out: whole(shards, out, 0, 1)


def loop(load: dict[str, Any], settings: dict[str, Any], workers: int = 0) -> PartJob:
    """The loop in this process, with so many DataLoader workers."""
    embedder = Embedder(
        load,
        settings["threads"],
        settings.get("channels_last", False),
        settings.get("bf16", False),
        settings.get("compiled", False),
    )

    def job(shards: list[str], out: str, number: int, count: int) -> None:
        dataset = (
            wds.WebDataset(shards[number::count], shardshuffle=False, empty_check=False)
            .decode("pilrgb")
            .to_tuple("__key__", "jpg")
            .map_tuple(str, embedder.transform)
            .batched(settings["batch_size"])
        )
        loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers)
        with VectorFile(f"{out}/embeddings-{number}.parquet") as file:
            for keys, pixels in loader:
                file.write(list(keys), embedder.embed(pixels).numpy())

    return job


if __name__ == "__main__":
    serve(start)
