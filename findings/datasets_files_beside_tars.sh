#!/usr/bin/env bash
# datasets 5.2.0 (Hugging Face): what `load_dataset(folder)` gives of WebDataset tars depends on the files beside them.
#
# Seen, with two tars of three images each: alone, six rows with images. With img2dataset's `00000_stats.json` beside each,
# two rows, the counts of these files, and no image. With a `.parquet` beside each (the form that img2dataset writes, too)
# the rows of the Parquet files, and no image. Nothing is said. `load_dataset("webdataset", data_dir=folder)` takes all
# files for tars: it ends with "truncated header" at a DALI index (`.idx`), a Parquet file or a JSON file.
# `data_files="folder/*.tar"` gives six rows with images each time.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "datasets==5.2.0" "pillow==13.0.0"
cat >"$folder/beside.py" <<'PYTHON'
import io
import sys
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


datasets.disable_progress_bars()


def write(folder):
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(3):
                picture = io.BytesIO()
                Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(picture, "PNG")
                member = tarfile.TarInfo(f"{shard}{number}.png")
                member.size = picture.getbuffer().nbytes
                tar.addfile(member, io.BytesIO(picture.getvalue()))


def loaded(cache, *arguments, **options):
    try:
        rows = datasets.load_dataset(*arguments, split="train", cache_dir=str(cache), **options)
    except Exception as error:
        return f"{error} {error.__cause__}"
    return rows.num_rows, "png" in rows.column_names


def stats(folder, shard):
    (folder / f"{shard:05d}_stats.json").write_text('{"count": 3, "successes": 3}')


def parquet(folder, shard):
    pq.write_table(pa.table({"key": [f"{shard}{n}" for n in range(3)]}), folder / f"{shard:05d}.parquet")


def index(folder, shard):
    (folder / f"{shard:05d}.idx").write_text(f"v1.2 3\npng 512 73 {shard}0.png\n")


root, changed = Path(sys.argv[1]) / "data", False
root.mkdir()
for name, beside, whole in (
    ("alone", None, (6, True)),
    ("stats", stats, (2, False)),
    ("parquet", parquet, (6, False)),
    ("index", index, (6, True)),
):
    folder, cache = root / name, root / f"{name}-cache"
    write(folder)
    for shard in range(2 if beside else 0):
        beside(folder, shard)
    found = loaded(cache / "1", str(folder))
    by_folder = loaded(cache / "2", "webdataset", data_dir=str(folder))
    by_name = loaded(cache / "3", "webdataset", data_files=f"{folder}/*.tar")
    print(name, "| the folder:", found, "| data_dir:", by_folder, "| data_files:", by_name)
    fails = isinstance(by_folder, str) and "truncated header" in by_folder
    changed |= found != whole or by_name != (6, True) or fails is not (beside is not None)
if changed:
    raise SystemExit("changed: see above")
PYTHON
"$folder/venv/bin/python" "$folder/beside.py" "$folder"
