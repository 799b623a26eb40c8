#!/usr/bin/env bash
# img2dataset 1.47.0: a photograph with an EXIF orientation is stored lying on its side (or mirrored) wherever it is
# re-encoded: it decodes with OpenCV's IMREAD_UNCHANGED, which does not turn, and writes a file without EXIF. That is the
# default, in every resize mode. Only the `exif` text of JSON and Parquet ("Image Orientation": "Rotated 90 CW") says so.
#
# So every reader that applies EXIF, as it should, sees such pictures as they are not, and width and height are swapped
# for half of the orientations. Without re-encoding (skip_reencode, and no resize needed) the file keeps its EXIF.
# Seen: a picture of 300 x 200, orientation 6, is stored as 128 x 192 without EXIF.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "img2dataset==1.47.0" pillow
cat >"$folder/side.py" <<'PYTHON'
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

folder = Path(sys.argv[1])
exif = Image.Exif()
exif[0x0112] = 6  # shown, it is to be turned by 90 degrees clockwise
(folder / "web").mkdir()
Image.new("RGB", (300, 200), "red").transpose(Image.Transpose.ROTATE_90).save(folder / "web" / "6.jpg", exif=exif)
handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder / "web")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
(folder / "urls.txt").write_text(f"http://127.0.0.1:{server.server_port}/6.jpg")
for name, options, expected in (
    ("resized", ["--image_size", "128", "--resize_mode", "keep_ratio"], ((128, 192), None)),
    ("not resized", ["--resize_mode", "no"], ((200, 300), None)),
    ("not re-encoded", ["--resize_mode", "no", "--skip_reencode", "True"], ((200, 300), 6)),
):
    out = folder / name
    command = [Path(sys.executable).with_name("img2dataset"), "--url_list", folder / "urls.txt", "--output_folder", out]
    command += ["--output_format", "webdataset", "--processes_count", "1", "--thread_count", "1", *options]
    here = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    subprocess.run(command, check=True, capture_output=True, env={**here, "NO_ALBUMENTATIONS_UPDATE": "1"})
    with tarfile.open(out / "00000.tar") as tar:
        data = next(tar.extractfile(each).read() for each in tar if each.name.endswith(".jpg"))
    image = Image.open(io.BytesIO(data))
    found = image.size, image.getexif().get(0x0112)
    print(name, *found, pq.read_table(out / "00000.parquet")["exif"][0].as_py()[:60])
    if found != expected:
        raise SystemExit(f"changed: expected {expected}")
PYTHON
"$folder/venv/bin/python" "$folder/side.py" "$folder"
