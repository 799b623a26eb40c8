"""Large JPEGs decoded at a smaller scale (``decode_scale="fast"``) against whole: time, and what it does to vectors.

    python -m benchmarks.decode_scale

Photographs at 1.9 and at 12 megapixels of two kinds, in memory, go through the loader in turns: *enlarged* ones with
noise, as smooth as a camera's at full size, and *montages* of sharp crops, the other extreme. Then EfficientNet-Lite0
with its own weights, in float32, embeds the pixels of both: the cosines are between them, image by image.
"""

from __future__ import annotations

import io
import random
from functools import partial

import numpy as np
import torch
from PIL import Image

from benchmarks.end_to_end import pretrained_efficientnet
from benchmarks.harness import (
    Case,
    case_rows,
    machine,
    parser,
    per_round,
    ranged,
    run_interleaved,
    write_result,
    write_tables,
)
from benchmarks.photographs import PHOTOGRAPHS, SEED, open_photograph
from curator_dask.decode.loader import Loader
from curator_dask.decode.spec import LoaderSpec
from curator_dask.image.embedders import TimmImageEmbedder

SIZES = ((1600, 1200), (4000, 3000))
TILE = 400  # pixels of a montage's crop
QUALITY = 88


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, help="of each kind and size (default 24)")
    options = arguments.parse_args(given)
    images = options.images or (2 if options.quick else 24)
    repeats = options.repeats or (1 if options.quick else 5)
    described = machine()

    model = pretrained_efficientnet()
    encoder = TimmImageEmbedder(model, autocast=False, compile=False).encoder_spec().build()
    cases, kinds = {}, []
    pictures = {}
    for width, height in SIZES[:1] if options.quick else SIZES:
        for make in (enlarged, montage):
            kind = f"{width}x{height}, {make.__name__}"
            kinds.append(kind)
            rng = random.Random(SEED)
            pictures[kind] = [_jpeg(make(width, height, rng)) for _ in range(images)]
    loaders = {}
    for kind in kinds:
        for scale in ("exact", "fast"):
            spec = LoaderSpec((encoder.transform,), (256,), 2, decode_scale=scale)
            loaders[scale] = loaders.get(scale) or Loader(spec)
            cases[f"{kind}, {scale}"] = Case(partial(_count, loaders[scale], pictures[kind]))
    found = run_interleaved(cases, repeats)

    ratios, notes = {}, []
    for kind in kinds:
        pixels = (torch.from_numpy(_pixels(loaders[scale], pictures[kind])) for scale in ("exact", "fast"))
        exact, fast = (encoder(each) for each in pixels)
        cosines = (exact * fast).sum(axis=1)
        ratios[kind] = per_round(lambda a, b: b / a, found[f"{kind}, exact"], found[f"{kind}, fast"])
        notes.append(
            f"{kind}: fast ÷ exact **{ranged(ratios[kind])}**, cosine {cosines.mean():.5f} on average, "
            f"{cosines.min():.5f} at least"
        )
    for loader in loaders.values():
        loader.close()
    print("\n".join(notes))
    results = {
        "what": f"{images} JPEGs of quality {QUALITY} of each kind, 2 threads, median of {repeats} interleaved runs.",
        "settings": {"images": images, "repeats": repeats},
        "cases": found,
        "ratios": ratios,
        "table": case_rows(found),
        "notes": notes,
    }
    if write_result("decode-scale", options, described, results) and options.out is None:
        write_tables()


def enlarged(width: int, height: int, rng: random.Random) -> Image.Image:
    """A photograph made larger, with a sensor's noise."""
    source = open_photograph(rng.choice(PHOTOGRAPHS))
    kept = min(source.width, source.height * width // height)
    picture = source.crop((0, 0, kept, kept * height // width)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = np.random.default_rng(rng.randrange(1 << 30)).integers(-6, 7, (height, width, 1))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def montage(width: int, height: int, rng: random.Random) -> Image.Image:
    """Crops of photographs side by side, sharp at every pixel."""
    sources = [open_photograph(name) for name in PHOTOGRAPHS]
    picture = Image.new("RGB", (width, height))
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            source = rng.choice(sources)
            x, y = (rng.randrange(max(1, edge - TILE)) for edge in source.size)
            picture.paste(source.crop((x, y, x + TILE, y + TILE)), (left, top))
    return picture


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _count(loader: Loader, images: list[bytes]) -> int:
    return len(_pixels(loader, images))


def _pixels(loader: Loader, images: list[bytes]) -> np.ndarray:
    made: dict[int, np.ndarray] = {}
    for batch in loader.load(enumerate(images)):
        made |= zip(batch.positions.tolist(), np.asarray(batch.pixels), strict=True)
    return np.stack([made[number] for number in range(len(images))])


if __name__ == "__main__":
    main()
