#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata are not the same file. Its map of metadata has an order of
# its own in each process, so with two entries and more the header differs, and with it the digest by
# which weights are pinned, cached, or compared. With one entry, as timm and transformers write, files are the same.
#
# Seen: eight processes that save two small tensors, one entry: one digest; with six entries: eight digests. What is read
# back is the same.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "safetensors==0.8.0" "numpy==2.4.6"
cat >"$folder/save.py" <<'PYTHON'
import hashlib
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

said = {name: name.upper() for name in "abcdef"[: int(sys.argv[1])]}
data = save({"weight": np.zeros((2, 3), np.float32), "bias": np.ones(2, np.float32)}, said)
with open(sys.argv[2], "wb") as file:
    file.write(data)
with safe_open(sys.argv[2], "numpy") as opened:
    assert opened.metadata() == said and sorted(opened.keys()) == ["bias", "weight"]
print(hashlib.sha256(data).hexdigest())
PYTHON
for entries in 1 6; do
    for _ in 1 2 3 4 5 6 7 8; do
        "$folder/venv/bin/python" "$folder/save.py" "$entries" "$folder/saved.safetensors"
    done | sort -u | wc -l >"$folder/$entries"
    echo "metadata of $entries: $(cat "$folder/$entries") digests of 8 files"
done
[[ $(cat "$folder/1") == 1 ]] || { echo "changed: one entry gives several files" && exit 1; }
[[ $(cat "$folder/6") != 1 ]] || { echo "changed: the order of metadata is fixed" && exit 1; }
