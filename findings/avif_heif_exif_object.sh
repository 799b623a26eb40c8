#!/usr/bin/env bash
# Pillow 13.0.0 and pillow-heif 1.8.1: save(..., exif=image.getexif()), as one keeps EXIF when a photograph is written
# anew, and what becomes of its orientation.
#
# - AVIF: the file is right, but Pillow takes the orientation out of the object that it was given, and that is the opened
#   image's own. Whatever is saved of this image after it (a WebP or PNG beside the AVIF) lies on its side, and so does
#   the image itself for exif_transpose.
# - HEIF (pillow-heif): the orientation is lost; the file says 1 and is shown lying on its side. Given as bytes
#   (image.getexif().tobytes()) or not at all (then that of the opened file is taken), it is kept, as a rotation.
# Seen: of a photograph of 64 x 48 with orientation 6, to be seen as 48 x 64.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "pillow==13.0.0" "pillow-heif==1.8.1"
cat >"$folder/exif.py" <<'PYTHON'
import io

import pillow_heif
from PIL import Image, ImageOps

pillow_heif.register_heif_opener()
exif = Image.Exif()
exif[0x0112] = 6  # shown, it is to be turned by 90 degrees clockwise
photograph = io.BytesIO()
Image.new("RGB", (64, 48), "red").save(photograph, "JPEG", exif=exif)


def opened():
    return Image.open(io.BytesIO(photograph.getvalue()))


def shown(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return ImageOps.exif_transpose(Image.open(data)).size


found = {}
for form in ("WEBP", "PNG", "AVIF", "HEIF"):
    image = opened()
    found[form] = shown(image, form, exif=image.getexif()), ImageOps.exif_transpose(image).size
image = opened()
found["HEIF, bytes"] = shown(image, "HEIF", exif=image.getexif().tobytes()), ImageOps.exif_transpose(image).size
image = opened()
shown(image, "AVIF", exif=image.getexif())
found["WEBP after AVIF"] = shown(image, "WEBP", exif=image.getexif()), ImageOps.exif_transpose(image).size
for name, (file, itself) in found.items():
    print(f"{name}: the file is seen as {file}, the image that was saved as {itself}")
upright, on_its_side = (48, 64), (64, 48)
if found != {
    "WEBP": (upright, upright),
    "PNG": (upright, upright),
    "AVIF": (upright, on_its_side),
    "HEIF": (on_its_side, upright),
    "HEIF, bytes": (upright, upright),
    "WEBP after AVIF": (on_its_side, on_its_side),
}:
    raise SystemExit("changed")
PYTHON
"$folder/venv/bin/python" "$folder/exif.py"
