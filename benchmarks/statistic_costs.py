"""What each statistic of an image costs, beside decoding it, in one thread.

    python -m benchmarks.statistic_costs

Milliseconds of processor time an image, the least of some rounds in turn: decoding with Pillow, each statistic alone
and all together, and below them the bare calls of Pillow that they cannot do without: the pixels as a picture, that in
grey, its histogram, and the resize to 64 pixels at which CleanVision looks for edges. Last what imagehash resizes.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.photographs import make_photographs
from curator_dask.decode.pillow import decode
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
from curator_dask.image.statistics.header import read_header
from curator_dask.image.statistics.pixels import PIXELS, Measure
from curator_dask.webdataset.reader import ShardReader


def photographs(count: int, large: bool) -> list[bytes]:
    """JPEG files of some 500 by 375 pixels; or `large`, these drawn at 4,000 by 3,000."""
    found: list[bytes] = []
    for path in sorted(make_photographs(512, 8).glob("*.tar")):
        with ShardReader(str(path)) as reader:
            members = [sample.image() for sample in reader.index.samples[: count - len(found)]]
            found += [bytes(reader.read(member)) for member in members if member is not None]
    return [_enlarged(data) for data in found] if large else found


def _enlarged(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((4000, 3000)).save(file, "JPEG", quality=90)
    return file.getvalue()


def to_64(image: Image.Image) -> Image.Image:
    """The resize before CleanVision's edges."""
    shrink = max(image.size) / 64
    width, height = (int(edge // shrink) for edge in image.size)
    return image.resize((width, height), reducing_gap=3.0)


def costs(files: list[bytes], rounds: int) -> dict[str, float]:
    """Milliseconds an image."""
    pixels = [np.array(decode(data, DEFAULT_MAX_PIXELS)) for data in files]
    images = [Image.fromarray(each) for each in pixels]
    grey = [image.convert("L") for image in images]
    lanczos = Image.Resampling.LANCZOS
    cases: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "decode": (partial(decode, max_pixels=DEFAULT_MAX_PIXELS), files),
        "headers": (partial(read_header, max_pixels=DEFAULT_MAX_PIXELS), files),
        **{name: (Measure((name,)).of_pixels, pixels) for name in PIXELS},
        "all of pixels": (Measure(tuple(PIXELS)).of_pixels, pixels),
        "Pillow: picture": (Image.fromarray, pixels),
        "Pillow: grey": (lambda image: image.convert("L"), images),
        "Pillow: histogram": (lambda image: image.histogram(), images),
        "Pillow: to 64 pixels": (to_64, images),
        "imagehash: phash's resize": (lambda image: image.resize((32, 32), lanczos), grey),
        "imagehash: dhash's resize": (lambda image: image.resize((9, 8), lanczos), grey),
    }
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, (work, items) in cases.items():
            started = time.process_time()
            for item in items:
                work(item)
            least[name] = min(least[name], 1000 * (time.process_time() - started) / len(items))
    return least


def main(given: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--quick", action="store_true", help="few images, to see that the script works")
    options = arguments.parse_args(given)
    count, rounds = (2, 1) if options.quick else (64, 9)
    found = {
        "500 x 375": costs(photographs(count, large=False), rounds),
        "4000 x 3000": costs(photographs(max(1, count // 16), large=True), rounds),
    }
    print(f"{'ms of processor time':26}", *(f"{size:>12}" for size in found))
    for name in found["500 x 375"]:
        print(f"{name:26}", *(f"{each[name]:12.2f}" for each in found.values()))
    return found


if __name__ == "__main__":
    main()
