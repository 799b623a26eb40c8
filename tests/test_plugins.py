"""HEIC is decoded where Pillow's plugin for it is installed, without a call of the user's; else the reason says how."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pillow_heif
from PIL import Image

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.statistics import ImageStatistics

SCRIPT = """
import json, sys
if sys.argv[1] == "without":
    sys.modules["pillow_heif"] = sys.modules["pi_heif"] = None
from curator_dask.decode.pillow import decode
from curator_dask.errors import ImageError
data = open(sys.argv[2], "rb").read()
try:
    image = decode(data, 10_000)
    print(json.dumps([image.size, image.mode, [image.getpixel(at) for at in ((4, 4), (4, 55), (35, 4))]]))
except ImageError as error:
    print(json.dumps(str(error)))
"""


def write_heic(path):
    """A photograph as a phone held upright takes it: red at the left, to be shown with red at the top."""
    stored = np.full((40, 60, 3), (20, 40, 220), np.uint8)
    stored[:, :20] = 220, 20, 40
    exif = Image.Exif()
    exif[0x0112] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    heic = pillow_heif.from_pillow(Image.fromarray(stored))
    heic.save(path, quality=95, exif=exif.tobytes(), chroma=444)


def looked_at(how, path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, path], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


def test_a_plugin_that_is_installed_is_used(tmp_path):
    write_heic(tmp_path / "a.heic")
    size, mode, (top, bottom, top_right) = looked_at("with", tmp_path / "a.heic")
    assert (size, mode) == ([40, 60], "RGB")
    for found, wanted in ((top, (220, 20, 40)), (bottom, (20, 40, 220)), (top_right, (220, 20, 40))):
        assert np.abs(np.subtract(found, wanted)).max() < 12, (top, bottom, top_right)
    assert looked_at("without", tmp_path / "a.heic") == (
        "unsupported: HEIF, which Pillow does not decode here: pip install pillow-heif where the workers run"
    )


def test_a_folder_of_a_phone(tmp_path, client):
    """Workers use it: statistics know the upright size. A tar gets the file as it was."""
    write_heic(tmp_path / "photographs/IMG_0001.HEIC")
    dataset = ImageTextPairDataset.from_images(tmp_path / "photographs")
    ImageStatistics(["width", "height", "format"])(dataset).save_metadata(tmp_path / "out")
    row = pd.read_parquet(tmp_path / "out").iloc[0]
    assert (row["width"], row["height"], row["format"]) == (40, 60, "HEIF") and pd.isna(row["image_error"])
    dataset.to_webdataset(tmp_path / "tars")
    with tarfile.open(tmp_path / "tars/00000.tar") as tar:
        assert (
            tar.extractfile("IMG_0001.HEIC").read() == (tmp_path / "photographs/IMG_0001.HEIC").read_bytes()
        )
