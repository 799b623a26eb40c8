#!/usr/bin/env bash
# timm 1.0.31 and datasets 5.2.0: one dataset of the hub, two pictures. `datasets` turns an image by its EXIF orientation
# when it decodes it, and so does timm's streaming reader of the same files ("hfids/NAME"), which lets it. timm's other
# reader ("hfds/NAME") asks for the bytes (Image(decode=False)) and opens them with Pillow, which does not turn.
#
# So a model that timm trains or validates by "hfds/" on photographs sees those of phones lying on their side, and by
# "hfids/", or with vectors of what `datasets` gives, upright; nothing says so.
# Seen: a photograph of 64 x 48 with orientation 6 is 48 x 64 by `datasets` and "hfids/", 64 x 48 by "hfds/".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "timm==1.0.31" "datasets==5.2.0" "torch==2.11.0" "torchvision==0.26.0" "pillow==13.0.0"
cat >"$folder/side.py" <<'PYTHON'
import io
import sys
from pathlib import Path

import datasets
import timm
from PIL import Image

folder = Path(sys.argv[1])
datasets.disable_progress_bars()
exif = Image.Exif()
exif[0x0112] = 6  # shown, it is to be turned by 90 degrees clockwise
photograph = io.BytesIO()
Image.new("RGB", (64, 48), "red").save(photograph, "JPEG", exif=exif)
columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["only"])}
rows = {"image": [{"bytes": photograph.getvalue(), "path": None}], "label": [0]}
table = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
table.to_parquet(folder / "photographs/data/train-00000-of-00001.parquet")

name = str(folder / "photographs")
found = {"datasets": datasets.load_dataset(name, split="train")[0]["image"].size}
for reader in ("hfds", "hfids"):
    images = timm.data.create_dataset(f"{reader}/{name}", root=None, split="train", num_samples=1)
    found[f"timm {reader}"] = next(iter(images))[0].size
print(found)
if found != {"datasets": (48, 64), "timm hfds": (64, 48), "timm hfids": (48, 64)}:
    raise SystemExit("changed")
PYTHON
HF_HOME="$folder/hub" "$folder/venv/bin/python" "$folder/side.py" "$folder"
