"""A dataset whose images say which key they belong to, and an embedder that reads it back.

Every image is of one colour; the colour is the key's number. An embedding is that colour, so a vector that got
to another row, or was lost, shows.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from curator_dask.decode.transforms import TransformSpec
from curator_dask.image.embedders import ImageEmbedder
from curator_dask.runs.step import ColumnStep


def colour_of(key: str) -> tuple[int, int, int]:
    """The colour of a key that ends in digits: its number in base 64, spread over 0 to 255."""
    number = int("".join(sign for sign in key if sign.isdigit())) % 64**3
    return (number // 4096 * 4, number // 64 % 64 * 4, number % 64 * 4)


def image_of(key: str, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24 + len(key) % 5, 20), colour_of(key)).save(file, form)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members_of(key: str, image: bytes | None = None) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.png", image_of(key) if image is None else image),
        (f"{key}.txt", f"caption of {key}".encode()),
        (f"{key}.json", json.dumps({"key": key, "width": 24, "score": 0.5, "tags": ["a"]}).encode()),
    ]


def write_dataset(
    folder: Path,
    shards: int = 3,
    samples: int = 10,
    *,
    parquet: bool = True,
    bad: dict[str, bytes] | None = None,
    shuffle: bool = True,
    key: str = "{shard:05d}{sample:04d}",
) -> list[str]:
    """Write shards (and Parquet files) in a random order of samples and rows; returns the keys."""
    rng, keys = random.Random(7), []
    for shard in range(shards):
        mine = [key.format(shard=shard, sample=sample) for sample in range(samples)]
        keys += mine
        order = rng.sample(mine, len(mine)) if shuffle else mine
        members = [member for name in order for member in members_of(name, (bad or {}).get(name))]
        write_tar(folder / f"{shard:05d}.tar", members)
        if parquet:
            order = rng.sample(mine, len(mine)) if shuffle else mine
            rows = {
                "key": order,
                "caption": [f"caption of {name}" for name in order],
                "width": [24] * len(order),
            }
            pq.write_table(pa.table(rows), folder / f"{shard:05d}.parquet")
    return keys


class ColourReader(ImageEmbedder):
    """Embeds an image as its mean colour, 0 to 255."""

    transform = TransformSpec((16, 16), "bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __init__(self, **settings):
        super().__init__(**{"batch_size": 4, "normalize_embeddings": False, "autocast": False, **settings})

    def load_embedding_model(self, device):
        return MeanColour().to(device)


class MeanColour(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3)) * 255


def check_colours(keys, vectors, bad=()) -> None:
    """Every vector is the colour of its key; the bad keys have none."""
    keys, vectors = list(keys), list(vectors)
    assert len(keys) == len(vectors)
    for key, vector in zip(keys, vectors, strict=True):
        if key in bad:
            assert vector is None or vector is pd.NA, key
        else:
            assert vector is not None, key
            np.testing.assert_allclose(np.asarray(vector, float), colour_of(key), atol=0.51, err_msg=key)


def read_output(folder: Path) -> pa.Table:
    """All Parquet files of a folder, read by pyarrow alone."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


class SlowColourReader(ColourReader):
    """Takes its time, so that a run can be interrupted."""

    def __init__(self, seconds=0.05, **settings):
        super().__init__(**settings)
        self.seconds = seconds

    def load_embedding_model(self, device):
        return SlowMeanColour(self.seconds).to(device)


class SlowMeanColour(MeanColour):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, images):
        time.sleep(self.seconds)
        return super().forward(images)


class Gate(ColumnStep):
    """Waits until there is a file."""

    columns = {"waited": pa.bool_()}  # noqa: RUF012

    def __init__(self, path):
        self.path = str(path)

    def compute(self, rows):
        while not Path(self.path).exists():
            time.sleep(0.02)
        return {"waited": [True] * len(rows)}
