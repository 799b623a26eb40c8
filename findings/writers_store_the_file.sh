#!/usr/bin/env bash
# mosaicml-streaming 0.13.0 and litdata 0.2.76: a JPEG that was opened and then changed in place is stored unchanged.
# Their "jpeg" column takes a Pillow image. Where that still has the name of its file, the bytes of the file are stored,
# whatever its pixels are now. `thumbnail` changes an image in place, so after it the shard holds the large, untouched
# photograph, of another width and height than the image had.
#
# And a JPEG opened from bytes has no file: it is encoded again at Pillow's quality 75, in both, without a word and
# without its EXIF orientation. Seen: a file of 64 x 48, made 16 x 12, comes back as 64 x 48; quality 95 opened from
# bytes comes back at about half of its size.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "mosaicml-streaming==0.13.0" "litdata==0.2.76" "pillow==13.0.0"
cat >"$folder/store.py" <<'PYTHON'
import io
import sys
import warnings
from pathlib import Path

import numpy as np
from litdata.streaming.serializers import JPEGSerializer
from PIL import Image
from streaming.base.format.mds.encodings import mds_encode

warnings.simplefilter("ignore")
path = Path(sys.argv[1]) / "a.jpg"
exif = Image.Exif()
exif[0x0112] = 6
noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
Image.fromarray(noise).save(path, quality=95, exif=exif)
data = path.read_bytes()


def small():
    image = Image.open(path)
    image.thumbnail((16, 16))
    return image


for name, store in (
    ("mosaicml-streaming", lambda image: mds_encode("jpeg", image)),
    ("litdata", lambda image: JPEGSerializer().serialize(image)[0]),
):
    changed = store(small())
    again = store(Image.open(io.BytesIO(data)))
    stored = Image.open(io.BytesIO(again))
    print(
        f"{name}: {small().size} is stored as {Image.open(io.BytesIO(changed)).size}, the file's own bytes:"
        f" {changed == data}; opened from {len(data)} bytes: {len(again)} bytes, orientation"
        f" {stored.getexif().get(0x0112)}"
    )
    if changed != data:
        raise SystemExit("changed: expected the bytes of the file, not of the changed image")
    if not len(again) < 0.7 * len(data):
        raise SystemExit("changed: expected a JPEG opened from bytes to be encoded again at quality 75")
    if stored.getexif().get(0x0112) is not None:
        raise SystemExit("changed: expected the orientation to be lost")
PYTHON
"$folder/venv/bin/python" "$folder/store.py" "$folder"
