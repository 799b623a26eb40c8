#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93: an AVIF file that says how it is to be turned is read lying on its side, or mirrored.
# `imread` and `imdecode` with IMREAD_COLOR turn JPEG, PNG and WebP by their EXIF orientation. In AVIF the same is said
# by the properties `irot` and `imir`, which whoever decodes has to apply, and by EXIF, if there is any: neither counts.
#
# Seen: one picture with each of the eight orientations, saved by Pillow 13.0.0. OpenCV has all of them right in JPEG, PNG
# and WebP, and of AVIF only the one that needs no turn; Pillow and libvips (pyvips-binary 8.18.7) have all upright. So a
# pipeline in OpenCV sees other pictures of a dataset than one in Pillow, by the format alone. Guessed was that WebP would be
# the odd one. curator_dask decodes AVIF with Pillow, and turns it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "opencv-python-headless==5.0.0.93" "pillow==13.0.0" "numpy==2.4.6" \
    "pyvips==3.2.0" "pyvips-binary==8.18.7"
"$folder/venv/bin/python" - <<'PYTHON'
import io

import cv2
import numpy as np
import pyvips
from PIL import Image, ImageOps

colours = {(0, 0): (255, 0, 0), (32, 0): (0, 0, 255), (0, 16): (0, 255, 0), (32, 16): (255, 255, 255)}
picture = Image.new("RGB", (64, 32))
for (left, top), colour in colours.items():  # another in each quarter
    picture.paste(colour, (left, top, left + 32, top + 16))


def alike(pixels, expected):
    return pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).mean() < 8


def readings(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, kind, exif=exif.tobytes(), **({} if kind == "PNG" else {"quality": 95}))
    data = file.getvalue()
    upright = np.asarray(ImageOps.exif_transpose(exif_of(picture, orientation)))
    by_pillow = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    by_vips = pyvips.Image.new_from_buffer(data, "").autorot().numpy()[..., :3]
    return [alike(each, upright) for each in (by_pillow, by_vips, by_opencv)]


def exif_of(image, orientation):
    turned = image.copy()
    turned.getexif()[0x0112] = orientation
    return turned


found = {}
for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
    right = [readings(kind, orientation) for orientation in range(1, 9)]
    found[kind] = [int(sum(some)) for some in zip(*right, strict=True)]
    print(kind, dict(zip(("Pillow", "libvips", "OpenCV"), found[kind], strict=True)), "of 8 orientations right")
if found != {"JPEG": [8] * 3, "PNG": [8] * 3, "WEBP": [8] * 3, "AVIF": [8, 8, 1]}:
    raise SystemExit("changed: expected OpenCV to turn all but AVIF, and there to be right for orientation 1 alone")
PYTHON
