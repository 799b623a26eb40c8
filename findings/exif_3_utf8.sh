#!/usr/bin/env bash
# Pillow 13.0.0 and piexif 1.1.3: who took a photograph is lost where its EXIF says so as EXIF 3.0 (2023) has it. That
# version has a type for UTF-8 (129), for names that ASCII has no letters for. Pillow knows no such type and leaves the
# tag out without a word; piexif gives none of the tags, not the place either, but an error.
#
# So a dataset that takes names of creators, copyright or coordinates by them takes such a file for one that says nothing.
# In the old type (2, ASCII), in which most programs write UTF-8 all the same, Pillow gives "ZoÃ«", as it reads Latin 1.
# Seen: Artist "Zoë" and latitude 48 degrees; Pillow has the latitude and no artist, piexif raises ValueError.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "pillow==13.0.0" "piexif==1.1.3"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct

import piexif
from PIL import Image


def photograph(kind):
    """A JPEG with an artist of this type, and a latitude."""
    text = "Zoë".encode() + b"\0"
    entries = struct.pack("<HHII", 0x013B, kind, len(text), 38) + struct.pack("<HHII", 0x8825, 4, 1, 43)
    place = struct.pack("<H", 1) + struct.pack("<HHII", 2, 5, 3, 61) + struct.pack("<I", 0)
    tiff = struct.pack("<4sIH", b"II*\0", 8, 2) + entries + struct.pack("<I", 0) + text
    tiff += place + struct.pack("<6I", 48, 1, 8, 1, 30, 1)
    segment = b"Exif\0\0" + tiff
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "JPEG")
    data = file.getvalue()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def by_pillow(data):
    exif = Image.open(io.BytesIO(data)).getexif()
    return exif.get(0x013B), float(exif.get_ifd(0x8825)[2][0])


def by_piexif(data):
    try:
        found = piexif.load(data)
    except ValueError as error:
        return type(error).__name__
    return found["0th"][0x013B].decode(), found["GPS"][2][0][0]


for kind, expected in ((2, (("ZoÃ«", 48.0), ("Zoë", 48))), (129, ((None, 48.0), "ValueError"))):
    data = photograph(kind)
    found = by_pillow(data), by_piexif(data)
    print(f"type {kind}: Pillow {found[0]}, piexif {found[1]}")
    if found != expected:
        raise SystemExit(f"changed: expected {expected}")
PYTHON
