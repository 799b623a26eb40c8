#!/usr/bin/env bash
# datasets 5.2.0 (Hugging Face): its "webdataset" builder takes the columns, and the types within a `.json`, from the
# first five samples of the first shard. What comes later and was not there is left out, and numbers are made to fit.
#
# Seen: eight samples; the sixth and later have a caption (`.txt`), a key `nsfw` in their `.json`, and a score of 1.75
# where the first five have 1. Loaded without an error: no column `txt`, no `nsfw`, and the score is 1. To keep them, a
# writer gives every sample every field, every key, and its floats as 1.0.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "datasets==5.2.0" "pillow==13.0.0"
cat >"$folder/five.py" <<'PYTHON'
import io
import json
import sys
import tarfile

import datasets
from PIL import Image

folder = sys.argv[1]
with tarfile.open(f"{folder}/00000.tar", "w") as tar:
    for number in range(8):
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(picture, "PNG")
        said = {"score": 1} if number < 5 else {"score": 1.75, "nsfw": 0.9}
        members = {"png": picture.getvalue(), "json": json.dumps(said).encode()}
        members |= {} if number < 5 else {"txt": b"a caption"}
        for suffix, data in members.items():
            member = tarfile.TarInfo(f"{number:03d}.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
rows = datasets.load_dataset(
    "webdataset", data_files=f"{folder}/00000.tar", split="train", cache_dir=f"{folder}/cache"
)
print(rows.num_rows, rows.column_names, rows[7]["json"])
if rows.num_rows != 8 or "txt" in rows.column_names or rows[7]["json"] != {"score": 1}:
    raise SystemExit("changed: expected no captions, no nsfw, and 1 for a score of 1.75")
PYTHON
"$folder/venv/bin/python" "$folder/five.py" "$folder"
