#!/usr/bin/env bash
# Ray Data 2.60.0, read_webdataset: pixels are what the file stores, not what it shows. A PNG with a palette comes as
# the numbers of its colours, (H, W) uint8, which no type tells from grey; a grey image as (H, W), CMYK as (H, W, 4).
# Only .jpg and .png are decoded: .jpeg and .webp stay bytes.
#
# So a model that is fed row["png"] sees noise where a palette is, without a word; and a shard whose samples are partly
# .png and partly .jpg, as a tar of a folder of files has them, stops the whole read: "Tried to cast column png to the
# TensorArray tensor extension type but the conversion failed". With decoder=None both come, as bytes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "ray[data]==2.60.0" "pillow==13.0.0" "numpy==2.4.6" "pyarrow==25.0.1"
cat >"$folder/pixels.py" <<'PYTHON'
import io
import os
import sys
import tarfile

import numpy as np
from PIL import Image

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

folder = sys.argv[1]
small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
shown = Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC).quantize(64).convert("RGB")


def encoded(image, form):
    data = io.BytesIO()
    image.save(data, form)
    return data.getvalue()


images = {
    "rgb.png": encoded(shown, "PNG"),
    "palette.png": encoded(shown.quantize(64), "PNG"),
    "grey.png": encoded(shown.convert("L"), "PNG"),
    "cmyk.jpg": encoded(shown.convert("CMYK"), "JPEG"),
    "rgb.jpg": encoded(shown, "JPEG"),
    "rgb.jpeg": encoded(shown, "JPEG"),
    "rgb.webp": encoded(shown, "WEBP"),
}


def read(*names, **options):
    with tarfile.open(f"{folder}/shard.tar", "w") as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(f"{number:04d}.{name.split('.')[1]}")
            member.size = len(images[name])
            tar.addfile(member, io.BytesIO(images[name]))
    rows = ray.data.read_webdataset(f"{folder}/shard.tar", **options).take_all()
    return [value for row in rows for key, value in row.items() if not key.startswith("__") and value is not None]


ray.init(num_cpus=1, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
found = {}
for name in images:
    (value,) = read(name)
    found[name] = getattr(value, "shape", type(value).__name__)
    if name == "palette.png":
        same = np.array_equal(value, np.asarray(Image.open(io.BytesIO(images[name]))))
        print("palette.png: numbers of colours:", same, "| as shown:", np.array_equal(value, shown.convert("L")))
        if not same:
            raise SystemExit("changed: expected the numbers of the colours")
print(found)
if found != {
    "rgb.png": (48, 64, 3),
    "palette.png": (48, 64),
    "grey.png": (48, 64),
    "cmyk.jpg": (48, 64, 4),
    "rgb.jpg": (48, 64, 3),
    "rgb.jpeg": "bytes",
    "rgb.webp": "bytes",
}:
    raise SystemExit("changed: expected other shapes")
print("two of one extension:", [value.shape for value in read("rgb.png", "rgb.png")])
try:
    read("rgb.png", "rgb.jpg")
except Exception as error:
    said = "Tried to cast column png to the TensorArray" in str(error)
    print("a .png and a .jpg of one size and mode:", "the read stops" if said else error)
    if not said:
        raise SystemExit("changed: expected another error") from None
else:
    raise SystemExit("changed: expected an error")
if read("rgb.png", "rgb.jpg", decoder=None) != [images["rgb.png"], images["rgb.jpg"]]:
    raise SystemExit("changed: expected the bytes of both")
PYTHON
"$folder/venv/bin/python" "$folder/pixels.py" "$folder"
