#!/usr/bin/env bash
# imagehash 4.3.2: the pHash of a flag is chance. The same French flag as PNG and as WebP differs in 28 of 64 bits, as
# much as two pictures that have nothing in common; the German one in 29, and as JPEG in 9.
#
# A picture of plain stripes has only a few cosine waves. All others are zero but for rounding, their median is zero,
# and whether a bit is set (larger than the median) is decided by the last bit of the codec. So logos, flags, charts of
# plain blocks and blank pages are lost as duplicates by any radius that is of use, and a picture made
# of many waves, here soft noise, differs in 2 at most. A cosine of embeddings or a dHash does better with them.
# Seen with Pillow 13.0.0, quality 80.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "imagehash==4.3.2" "pillow==13.0.0"
"$folder/venv/bin/python" - <<'PYTHON'
import io

import imagehash
import numpy as np
from PIL import Image

soft = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
stripes = {
    "French flag": ([(0, 35, 149), (255, 255, 255), (237, 41, 57)], (3, 1)),
    "German flag": ([(0, 0, 0), (221, 0, 0), (255, 206, 0)], (1, 3)),
}
pictures = {"soft noise": Image.fromarray(soft).resize((300, 200), Image.Resampling.BICUBIC)}
for name, (colours, size) in stripes.items():
    small = Image.new("RGB", size)
    small.putdata(colours)
    pictures[name] = small.resize((300, 200), Image.Resampling.NEAREST)


def through(picture, format, hash_of):
    data = io.BytesIO()
    picture.save(data, format, quality=80)
    return hash_of(Image.open(data))


for name, picture in pictures.items():
    bits, rows = (
        {format: int(hash_of(picture) - through(picture, format, hash_of)) for format in ("PNG", "JPEG", "WEBP")}
        for hash_of in (imagehash.phash, imagehash.dhash)
    )
    print(f"{name}: bits of the pHash that differ {bits}, of the dHash {rows}")
    if name == "soft noise" and max(bits.values()) > 2:
        raise SystemExit("changed: expected 2 bits at most")
    if name != "soft noise" and not (bits["PNG"] == 0 and bits["WEBP"] >= 20):
        raise SystemExit("changed: expected 20 bits and more between PNG and WebP")
PYTHON
