#!/usr/bin/env bash
# webdataset 1.0.2: `WebDataset(shardshuffle=100)` has one order of shards for all epochs. It gives its shuffle a seed that
# is drawn once, when the dataset is made; 0.2.86 drew a new order each time. `detshuffle=True`, whose seed counts epochs,
# does so in this process and with persistent workers alone: other workers begin each epoch with a copy that counts from 0.
#
# And it splits shards among ranks first and shuffles then: with `nodesplitter=split_by_node` a rank has the same shards in
# every epoch, in both versions. So of a crawl that lies sorted by site a rank sees its sites alone, and in the same order.
# Seen: eight shards; three epochs have one order with 1.0.2, with 0 and with 2 workers, and are of several orders with
# 0.2.86; rank 0 of 2 has shards 0, 2, 4 and 6 each time. To have a new order, make the list of shards anew for each epoch,
# `random.Random(epoch).sample(shards, len(shards))`, and give it with `shardshuffle=False`.
# Guessed before it was run, from webdataset/compat.py, and so it is. Seen with torch 2.11.0.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.11.0" "numpy==2.4.6"
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/old" "webdataset==0.2.86"
"$folder/venv/bin/pip" install -q "webdataset==1.0.2"
cat >"$folder/epochs.py" <<'PYTHON'
import io
import json
import os
import sys
import tarfile
import warnings

import webdataset

warnings.simplefilter("ignore")
folder = sys.argv[1]
shards = [f"{folder}/{number}.tar" for number in range(8)]
for shard in shards:
    with tarfile.open(shard, "w") as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.txt")
            tar.addfile(member, io.BytesIO())


def orders(workers, epochs=6, **options):
    dataset = webdataset.WebDataset(shards, shardshuffle=100, **options).map(lambda sample: sample["__url__"])
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)
    return ["".join(url[-5] for url in dict.fromkeys(loader)) for _ in range(epochs)]


found = {
    "in this process": orders(0),
    "two workers": orders(2),
    "detshuffle, in this process": orders(0, detshuffle=True),
    "detshuffle, two workers": orders(2, detshuffle=True),
}
os.environ |= {"RANK": "0", "WORLD_SIZE": "2"}
ranks = orders(0, nodesplitter=webdataset.split_by_node)
found["shards of rank 0 of 2"] = ["".join(sorted(order)) for order in ranks]
print(webdataset.__version__)
for name, some in found.items():
    print(f"  {name}: {some[:3]}, {len(set(some))} different of {len(some)}")
new = webdataset.__version__ == "1.0.2"
expected = [new, new, False, True, True]  # one order for all epochs
if [len(set(some)) == 1 for some in found.values()] != expected:
    raise SystemExit(f"changed: expected one order for all epochs: {dict(zip(found, expected, strict=True))}")
PYTHON
PYTHONPATH="$folder/old" "$folder/venv/bin/python" "$folder/epochs.py" "$folder"
"$folder/venv/bin/python" "$folder/epochs.py" "$folder"
