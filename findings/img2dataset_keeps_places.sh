#!/usr/bin/env bash
# img2dataset 1.47.0: the picture loses its EXIF, as it is encoded anew, and yet the dataset says where it was taken: the
# `exif` text of each .json in the tar, and of the Parquet beside it, has all of EXIF, with the coordinates (GPS), the
# name of the photographer and the number of the camera. That is the default (extract_exif).
#
# So who looks at the images of such a dataset and finds no EXIF publishes it all the same. With --extract_exif False there
# is no such text. Seen: a picture with latitude 48°8'30.5" N; the file has no EXIF, JSON and Parquet have the latitude.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "img2dataset==1.47.0" pillow
cat >"$folder/places.py" <<'PYTHON'
import http.server
import io
import json
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
exif[0x013B] = "Ana"
place = exif.get_ifd(0x8825)
place[1], place[2], place[3], place[4] = "N", (48.0, 8.0, 30.5), "E", (11.0, 34.0, 0.0)
(folder / "web").mkdir()
Image.new("RGB", (300, 200), "red").save(folder / "web" / "photo.jpg", exif=exif)
handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder / "web")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
(folder / "urls.txt").write_text(f"http://127.0.0.1:{server.server_port}/photo.jpg")
for name, options, expected in (
    ("by default", [], (0, True, True)),
    ("without extract_exif", ["--extract_exif", "False"], (0, False, False)),
):
    out = folder / name
    command = [Path(sys.executable).with_name("img2dataset"), "--url_list", folder / "urls.txt", "--output_folder", out]
    command += ["--output_format", "webdataset", "--processes_count", "1", "--thread_count", "1", *options]
    here = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    subprocess.run(command, check=True, capture_output=True, env={**here, "NO_ALBUMENTATIONS_UPDATE": "1"})
    with tarfile.open(out / "00000.tar") as tar:
        members = {each.name.rpartition(".")[2]: tar.extractfile(each).read() for each in tar}
    tags = len(Image.open(io.BytesIO(members["jpg"])).getexif())
    row = pq.read_table(out / "00000.parquet").to_pylist()[0]
    texts = [json.loads(members["json"]).get("exif"), row.get("exif")]
    found = tags, *("GPS GPSLatitude" in (text or "") for text in texts)
    print(f"{name}: {tags} EXIF tags in the image; {texts[1]}")
    if found != expected:
        raise SystemExit(f"changed: expected {expected}, found {found}")
PYTHON
"$folder/venv/bin/python" "$folder/places.py" "$folder"
