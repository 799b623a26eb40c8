"""curator_dask itself, through its dataset API, told what to do as the peers are."""

from __future__ import annotations

from typing import Any

from peer_common import Job, serve

from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.embedders import ImageEmbedder, TimmImageEmbedder


def start(load: dict[str, Any], settings: dict[str, Any]) -> Job:
    """Start the cluster, which stays."""
    threads = settings["threads"]
    get_client(
        cluster_type="cpu",
        n_workers=settings["workers"],
        verbose=False,
        env={"OMP_NUM_THREADS": str(threads)},
    )
    common: dict[str, Any] = {"batch_size": settings["batch_size"], "num_threads_per_worker": 16}
    embedder: ImageEmbedder
    if load["model"] is None:
        from benchmarks.bare import NullEmbedder

        embedder = NullEmbedder(**common)
    else:
        chosen = {name: settings[name] for name in ("compile", "autocast") if name in settings}
        embedder = TimmImageEmbedder(load["model"], output="pooled", **chosen, **common)

    def job(shards: list[str], out: str) -> None:
        saved = embedder(ImageTextPairDataset.from_webdataset(shards)).save_metadata(out)
        assert not saved.failed and not saved.failed_shards, saved

    return job


if __name__ == "__main__":
    serve(start)
