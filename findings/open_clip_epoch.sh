#!/usr/bin/env bash
# open_clip_torch 3.3.0 (webdataset 0.2.86): two surprises of `--dataset-type webdataset` without `--train-num-samples`.
#
# Of two datasets, `--train-data "a/{0..2}.tar::b/{0..2}.tar"`, each with a sizes.json, it looks up the shards of both, by
# their names, in the first one's. Seen: a has 300 samples, b has 60; an epoch is 600 long, not 360. Where b has a name
# that a has not it is a KeyError. The number has to be told.
#
# And an epoch shows each sample once only where all workers of all ranks have as many. Each yields the same number of
# batches: one with fewer samples begins anew, one with more is cut off. Seen: 3 shards of 100 samples, 2 workers; the
# epoch has 300 samples, of which 50 come twice, and 50 never. With 4 shards of 75 each comes once. So shards are to be
# equal, and as many as a multiple of workers x ranks.
# Both guessed from open_clip_train/data.py before it was run (of the first, that b would count as a). Seen with torch 2.11.0.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.11.0" "torchvision==0.26.0" "numpy==2.4.6" "pandas==3.0.6"
"$folder/venv/bin/pip" install -q "open_clip_torch==3.3.0" "webdataset==0.2.86" "pillow==13.0.0"
cat >"$folder/epoch.py" <<'PYTHON'
import argparse
import collections
import io
import json
import os
import sys
import tarfile
import warnings

import torch
from open_clip_train.data import get_dataset_size, get_wds_dataset
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

warnings.simplefilter("ignore")
folder = sys.argv[1]
picture = io.BytesIO()
Image.new("RGB", (8, 8)).save(picture, "PNG")


def write(name, *sizes):
    os.mkdir(f"{folder}/{name}")
    sample = 0
    for number, size in enumerate(sizes):
        with tarfile.open(f"{folder}/{name}/{number}.tar", "w") as tar:
            for sample in range(sample, sample + size):
                for suffix, data in (("png", picture.getvalue()), ("txt", str(sample).encode())):
                    member = tarfile.TarInfo(f"{sample:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            sample += 1
    with open(f"{folder}/{name}/sizes.json", "w") as file:
        json.dump({f"{number}.tar": size for number, size in enumerate(sizes)}, file)
    return f"{folder}/{name}/{{0..{len(sizes) - 1}}}.tar"


def epoch(shards):
    said = argparse.Namespace(train_data=shards, train_num_samples=None, dataset_resampled=False, seed=0)
    said.__dict__ |= {"train_data_upsampling_factors": None, "workers": 2, "world_size": 1, "batch_size": 10}
    data = get_wds_dataset(said, pil_to_tensor, True, tokenizer=lambda text: torch.tensor([[int(text)]]))
    shown = collections.Counter(text for _, texts in data.dataloader for text in texts[:, 0].tolist())
    return shown.total(), len(shown), max(shown.values())


a, b, even = write("a", 100, 100, 100), write("b", 20, 20, 20), write("even", 75, 75, 75, 75)
sizes = [get_dataset_size(each)[0] for each in (a, b, f"{a}::{b}")]
print("samples of a, of b, of both:", sizes)
found = {name: epoch(each) for name, each in (("3 shards of 100", a), ("4 shards of 75", even))}
for name, (shown, different, most) in found.items():
    print(f"{name}, 2 workers: {shown} shown, {different} different, {most} times at most")
if sizes != [300, 60, 600]:
    raise SystemExit("changed: expected the second dataset to have the sizes of the first")
if found != {"3 shards of 100": (300, 250, 2), "4 shards of 75": (300, 300, 1)}:
    raise SystemExit("changed: expected 50 of 300 samples never to come, of four equal shards each to come once")
PYTHON
"$folder/venv/bin/python" "$folder/epoch.py" "$folder"
