"""The simplest program that embeds shards: no build of the package can need less time or memory than it.

    python -m benchmarks.bare_embed FOLDER MODEL OUT --processes 2

One process imports timm, torch and DALI; those that embed are forked from it, each with every n-th shard (or it embeds
itself, with one). It knows no keys, no bad images and no captions, and writes one file each. With several the most
memory that all of them have together is printed, each shared page counted once (PSS), beside images/s without the
imports.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any

BATCH = 16


def main(given: list[str] | None = None) -> None:
    """Embed, and print the figures."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("model", help="a name for timm")
    arguments.add_argument("out")
    arguments.add_argument("--processes", type=int, default=1)
    options = arguments.parse_args(given)
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import timm  # noqa: F401
    import torch
    from nvidia.dali import fn, pipeline_def, types  # noqa: F401

    torch.set_num_threads(1)
    shards = sorted(options.folder.glob("*.tar"))
    if options.processes == 1:
        embed(shards, options.model, options.out)
        return
    from benchmarks.builds import MemoryWatch

    started = time.perf_counter()
    with MemoryWatch() as memory:
        children = []
        for part in range(options.processes):
            if not (child := os.fork()):
                embed(shards[part :: options.processes], options.model, f"{options.out}{part}")
                os._exit(0)
            children.append(child)
        assert not any(os.waitpid(child, 0)[1] for child in children)
    seconds = time.perf_counter() - started
    images = sum(len(_images(path)) for path in shards)
    print(json.dumps({"images/s": images / seconds, "peak PSS MiB": memory.peak / 2**20}))


def embed(shards: list[Path], name: str, out: str) -> None:
    """Embed the JPEGs of some tars, a batch after the other."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import timm
    import torch
    from nvidia.dali import fn, pipeline_def, types

    model = (
        timm.create_model(name, pretrained=True, num_classes=0).eval().to(memory_format=torch.channels_last)
    )

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decoding() -> Any:
        image = fn.decoders.image(fn.external_source(name="jpeg"), device="cpu", output_type=types.RGB)
        image = fn.resize(image, size=(224, 224), interp_type=types.INTERP_CUBIC)
        mean, std = ([255 * each for each in some] for some in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return fn.crop_mirror_normalize(image, mean=mean, std=std, output_layout="CHW")

    decoder = decoding()
    decoder.build()
    vectors: list[Any] = []
    with torch.inference_mode():
        for path in shards:
            images = _images(path)
            for start in range(0, len(images) // BATCH * BATCH, BATCH):
                decoder.feed_input(
                    "jpeg", [np.frombuffer(each, np.uint8) for each in images[start : start + BATCH]]
                )
                pixels = torch.from_numpy(decoder.run()[0].as_array()).contiguous(
                    memory_format=torch.channels_last
                )
                vectors += [*model(pixels).numpy()]
    pq.write_table(pa.table({"vector": vectors}), out)


def _images(path: Path) -> list[bytes]:
    with tarfile.open(path) as tar:
        files = [tar.extractfile(each) for each in tar if each.name.endswith(".jpg")]
        return [file.read() for file in files if file is not None]


if __name__ == "__main__":
    main()
