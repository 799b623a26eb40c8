"""Build a WebDataset of real photographs, laid out as img2dataset lays it out, without a network.

    python scripts/make_demo_dataset.py OUT

The photographs are those that the scikit-image and scikit-learn wheels carry, each whole and as crops,
mirrored, rescaled, recompressed and toned versions, so that every image has near-duplicates, in other shards
too. Two images are broken and a few rows failed to download, as in datasets of the wild. The bytes are the
same on every run. Crop boxes and original sizes are in pixels of the photograph shrunk to `MAX_SIDE`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance, ImageOps

SEED = 20260101
N_SHARDS = 5
N_CROPS = 6
MAX_SIDE, MIN_SIDE = 700, 200  # pixels
MTIME = 1_700_000_000  # of every member: the bytes of a tar must not depend on the clock

# File of the wheel -> caption. Left out: drawings, masks, charts, and files below 150 pixels a side.
PHOTOGRAPHS = {
    "skimage/data/astronaut.png": "portrait of an astronaut in an orange space suit in front of a flag",
    "skimage/data/brick.png": "a brick wall",
    "skimage/data/camera.png": "a man with a film camera on a tripod, black and white",
    "skimage/data/cell.png": "a single cell under a microscope",
    "skimage/data/chelsea.png": "a tabby cat looking into the camera",
    "skimage/data/clock_motion.png": "a clock blurred by motion",
    "skimage/data/coffee.png": "a cup of espresso on a wooden table",
    "skimage/data/coins.png": "ancient greek coins from Pompeii",
    "skimage/data/grass.png": "a lawn seen from above",
    "skimage/data/gravel.png": "grey gravel",
    "skimage/data/hubble_deep_field.jpg": "galaxies in the Hubble deep field",
    "skimage/data/ihc.png": "stained tissue of a colon under a microscope",
    "skimage/data/moon.png": "the surface of the moon",
    "skimage/data/motorcycle_left.png": "a red motorcycle in a garage, seen by the left camera",
    "skimage/data/motorcycle_right.png": "a red motorcycle in a garage, seen by the right camera",
    "skimage/data/page.png": "a printed page of a book",
    "skimage/data/retina.jpg": "the retina of a human eye",
    "skimage/data/rocket.jpg": "a rocket on its launch pad at dusk",
    "skimage/data/text.png": "handwriting on ruled paper",
    "sklearn/datasets/images/china.jpg": "the tower of a Chinese temple above a lake",
    "sklearn/datasets/images/flower.jpg": "an orange dahlia in bloom",
}

_COLUMNS: dict[str, pa.DataType] = {
    "url": pa.string(),
    "caption": pa.string(),
    "key": pa.string(),
    "status": pa.string(),
    "error_message": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "sha256": pa.string(),
    "source": pa.string(),
    "variant": pa.string(),
    "crop_box": pa.list_(pa.int32(), 4),
}
SCHEMA = pa.schema(_COLUMNS)


@dataclass
class Sample:
    """One row of a shard.

    Attributes
    ----------
    row
        Values by the names of `SCHEMA`; the key is added when the row gets its place.
    jpeg
        Bytes of the image component; None for a row that failed to download.
    """

    row: dict[str, Any]
    jpeg: bytes | None = field(repr=False)


def _photograph(name: str) -> Image.Image:
    """The photograph, RGB or grey, and no larger than `MAX_SIDE`."""
    package = name.partition("/")[0]
    spec = importlib.util.find_spec(package)  # importing the package would take seconds
    if spec is None or spec.origin is None:
        raise SystemExit(f"error: {package} is not installed: install curator-dask with the extra demo")
    file = Path(spec.origin).parent.parent / name
    if not file.is_file():
        raise SystemExit(
            f"error: {file} is missing: this release of {package} does not carry it in its wheel"
        )
    with Image.open(file) as opened:
        image = opened.convert("L" if opened.mode == "L" else "RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    """The image rescaled; its shorter side stays at least `MIN_SIDE`, its longer one at most `MAX_SIDE`."""
    factor = min(max(factor, MIN_SIDE / min(image.size)), MAX_SIDE / max(image.size))
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 88, **options})
    return buffer.getvalue()


def _versions(
    image: Image.Image, rng: random.Random
) -> Iterator[tuple[str, tuple[int, int, int, int], Image.Image, dict]]:
    """Yield name, crop box (left, top, right, bottom), image and JPEG options of every version."""
    whole = (0, 0, *image.size)
    yield "whole", whole, image, {}
    yield "mirrored", whole, ImageOps.mirror(image), {}
    yield "rescaled", whole, _scaled(image, 0.6), {"progressive": True}
    yield "recompressed", whole, image, {"quality": 25}
    if image.mode == "L":
        yield "darkened", whole, ImageEnhance.Brightness(image).enhance(0.6), {}
    else:
        yield "in black and white", whole, image.convert("L"), {}
    for number in range(1, N_CROPS + 1):
        part = rng.uniform(0.5, 0.85)
        width, height = round(image.width * part), round(image.height * part)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        box = (left, top, left + width, top + height)
        crop = _scaled(image.crop(box), rng.uniform(0.8, 1.2))
        mirrored = number % 3 == 0
        yield f"crop {number}{', mirrored' * mirrored}", box, ImageOps.mirror(crop) if mirrored else crop, {}


def _good_samples() -> Iterator[Sample]:
    for name, caption in PHOTOGRAPHS.items():
        image = _photograph(name)
        rng = random.Random(f"{SEED} {name}")  # a photograph's crops do not depend on the others
        for variant, box, version, options in _versions(image, rng):
            jpeg = _jpeg(version, **options)
            left, top, right, bottom = box
            row = {
                "url": f"wheel:{name}#xywh={left},{top},{right - left},{bottom - top}",
                "caption": caption if variant == "whole" else f"{caption} ({variant})",
                "status": "success",
                "width": version.width,
                "height": version.height,
                "original_width": image.width,
                "original_height": image.height,
                "sha256": hashlib.sha256(jpeg).hexdigest(),
                "source": name,
                "variant": variant,
                "crop_box": list(box),
            }
            yield Sample(row, jpeg)


def _bad_samples() -> Iterator[Sample]:
    """Two images that cannot be decoded, then three that were never fetched."""
    # Cut in the middle of the pixels: the header is whole and gives a size.
    cut = _jpeg(_photograph("skimage/data/coffee.png"))
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
    for name, caption, data in (
        ("truncated.jpg", "a cup of espresso whose download was cut off", cut[: len(cut) // 3]),
        ("page.html", "a picture that was taken down", page),
    ):
        digest = hashlib.sha256(data).hexdigest()
        url = f"https://photographs.invalid/{name}"
        yield Sample(
            {"url": url, "caption": caption, "status": "success", "sha256": digest, "source": url}, data
        )
    for number in range(1, 4):
        url = f"https://photographs.invalid/lost-{number}.jpg"
        row = {
            "url": url,
            "caption": f"a picture that was never fetched, number {number}",
            "status": "failed_to_download",
            "error_message": "HTTP Error 404: Not Found",
            "source": url,
        }
        yield Sample(row, None)


def _tar_bytes(samples: list[Sample]) -> bytes:
    import webdataset

    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False, mtime=MTIME) as writer:
        for sample in samples:
            if sample.jpeg is not None:
                row = {key: sample.row.get(key) for key in SCHEMA.names}
                writer.write(
                    {
                        "__key__": row["key"],
                        "jpg": sample.jpeg,
                        "txt": str(row["caption"]).encode(),
                        "json": json.dumps(row, indent=1).encode(),
                    }
                )
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write, unless the file holds these bytes: its time then stays, and a rerun has nothing to embed."""
    if not (path.exists() and path.read_bytes() == data):
        path.write_bytes(data)


def make_dataset(out: str | Path) -> dict[str, int]:
    """Write ``00000.tar``, ``00000.parquet``, ``00000_stats.json`` and so on.

    Parameters
    ----------
    out
        Folder to write into; made when missing.

    Returns
    -------
    dict
        Counts: ``shards``, ``samples`` (in the tars), ``broken`` (of them, cannot be decoded), ``rows`` (in
        the Parquet files), ``bytes`` (of the tars).
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    bad = list(_bad_samples())
    samples = [*_good_samples(), *bad]
    rng = random.Random(SEED)
    rng.shuffle(samples)  # near-duplicates end up in different shards
    size = 0
    for shard in range(N_SHARDS):
        part = samples[shard::N_SHARDS]
        for number, sample in enumerate(part):
            sample.row["key"] = f"{shard:05d}{number:04d}"  # img2dataset's keys; failed rows take one too
        tar = _tar_bytes(part)
        size += len(tar)
        _write(out / f"{shard:05d}.tar", tar)
        # img2dataset writes rows as downloads complete: their order is not the tar's.
        rows = rng.sample([sample.row for sample in part], len(part))
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        _write(out / f"{shard:05d}.parquet", buffer.getvalue())
        successes = sum(sample.jpeg is not None for sample in part)
        stats = {"count": len(part), "successes": successes, "failed_to_download": len(part) - successes}
        _write(out / f"{shard:05d}_stats.json", json.dumps(stats, indent=4).encode())
    in_tars = [sample for sample in samples if sample.jpeg is not None]
    broken = sum(sample.jpeg is not None for sample in bad)
    return {
        "shards": N_SHARDS,
        "samples": len(in_tars),
        "broken": broken,
        "rows": len(samples),
        "bytes": size,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=Path)
    out = parser.parse_args(arguments).out
    made = make_dataset(out)
    print(
        f"{out}: {made['samples']} images of {len(PHOTOGRAPHS)} photographs in {made['shards']} shards"
        f" ({made['bytes'] / 1e6:.1f} MB), {made['broken']} of them broken;"
        f" {made['rows'] - made['samples']} more rows failed to download"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
