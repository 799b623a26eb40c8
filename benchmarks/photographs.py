"""Photographs of about 500×375 pixels for benchmarks, made from those that scikit-image's wheel carries.

    python -m benchmarks.photographs OUT --images 1024 --shards 4

Crops at several scales and JPEG qualities of nine colour photographs, as WebDataset shards with companion
Parquet files in img2dataset's layout. The same seed gives the same pictures; no network.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import random
import shutil
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

SEED = 2
SIZE = (500, 375)  # width, height: about what ImageNet's photographs have
LAYOUT = 1  # raised when the pictures change, so that a cache of old ones is not used

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
"""Files of ``skimage/data``: the colour photographs, since gray ones would decode faster than most do."""


def make_photographs(images: int, shards: int, out: str | Path | None = None) -> Path:
    """Write the shards, unless they are there.

    Parameters
    ----------
    images
        Number of images; spread over the shards as evenly as it goes.
    shards
        Number of tars, each with a Parquet file beside it.
    out
        Folder; None is a folder of its own for these numbers in the system's temporary directory, which the
        next call finds again.

    Returns
    -------
    pathlib.Path
        The folder.
    """
    name = f"curator-dask-photographs-{LAYOUT}-{images}-{shards}"
    folder = Path(tempfile.gettempdir()) / name if out is None else Path(out)
    if (folder / "finished").exists():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng = random.Random(SEED)
    sources = [open_photograph(file) for file in PHOTOGRAPHS]
    for shard in range(shards):
        count = images // shards + (shard < images % shards)
        _write_shard(partial / f"{shard:05d}", shard, [_picture(sources, rng) for _ in range(count)])
    (partial / "finished").touch()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def open_photograph(file: str) -> Image.Image:
    """One of `PHOTOGRAPHS`, RGB."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("error: scikit-image is not installed: install curator-dask with the extra demo")
    with Image.open(Path(spec.origin).parent / "data" / file) as image:
        return image.convert("RGB")


def _picture(sources: list[Image.Image], rng: random.Random) -> tuple[bytes, int, int]:
    """A JPEG, its width and its height."""
    source = rng.choice(sources)
    wanted = [round(side * rng.uniform(0.85, 1.15)) for side in SIZE]
    if rng.random() < 0.25:
        wanted.reverse()  # portrait
    width, height = wanted
    # Between 0.7 and 1.5 pixels of the photograph for one of the picture, as far as it has them.
    scale = min(rng.uniform(0.7, 1.5), source.width / width, source.height / height)
    crop = (round(width * scale), round(height * scale))
    left, top = rng.randint(0, source.width - crop[0]), rng.randint(0, source.height - crop[1])
    image = source.resize(
        (width, height), Image.Resampling.BICUBIC, (left, top, left + crop[0], top + crop[1])
    )
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=rng.randint(75, 95), progressive=rng.random() < 0.05)
    return file.getvalue(), width, height


def _write_shard(path: Path, shard: int, pictures: list[tuple[bytes, int, int]]) -> None:
    rows = []
    with tarfile.open(path.with_suffix(".tar"), "w") as tar:
        for number, (jpeg, width, height) in enumerate(pictures):
            row = {
                "key": f"{shard:05d}{number:04d}",
                "caption": f"picture {number} of shard {shard}",
                "status": "success",
                "width": width,
                "height": height,
            }
            rows.append(row)
            parts = {"jpg": jpeg, "txt": row["caption"].encode(), "json": json.dumps(row).encode()}  # type: ignore[attr-defined]
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{row['key']}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args(given)
    print(make_photographs(options.images, options.shards, options.out))


if __name__ == "__main__":
    main()
