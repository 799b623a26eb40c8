"""The loop that users write: webdataset and timm, decoding in DataLoader workers, one process with the model."""

from __future__ import annotations

from typing import Any

import webdataset as wds
from peer_common import Embedder, Job, VectorFile, serve


def start(load: dict[str, Any], settings: dict[str, Any]) -> Job:
    """Load the model; the DataLoader's workers are new in every job."""
    embedder = Embedder(
        load, settings["threads"], settings.get("channels_last", False), settings.get("bf16", False)
    )

    def job(shards: list[str], out: str) -> None:
        dataset = (
            wds.WebDataset(shards, shardshuffle=False, empty_check=False)
            .decode("pilrgb")
            .to_tuple("__key__", "jpg")
            .map_tuple(str, embedder.transform)
            .batched(settings["batch_size"])
        )
        loader = wds.WebLoader(dataset, batch_size=None, num_workers=settings["workers"])
        with VectorFile(f"{out}/embeddings.parquet") as file:
            for keys, pixels in loader:
                file.write(list(keys), embedder.embed(pixels).numpy())

    return job


if __name__ == "__main__":
    serve(start)
