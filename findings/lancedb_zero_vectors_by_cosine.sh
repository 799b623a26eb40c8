#!/usr/bin/env bash
# lancedb 0.40.0: by cosine, a row whose vector is zero is in no result, however many are asked for, and without a word.
# Of 1,000 rows with two zero vectors a search for 1,000 gives 998, with no index, row by row; by l2 and by dot all 1,000.
# A search with a zero vector gives none at all.
#
# Its distance is not a number (0 / 0), and such rows are left out. usearch 2.26.6 says 1 for them, as far as a vector at a
# right angle. So who counts rows by a search, or excludes what was found, loses them; models give zero vectors where their
# last layer is cut at zero (ReLU), as for blank images. Guessed before it was run, and so it is.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "lancedb==0.40.0" "usearch==2.26.6" "numpy==2.4.6" "pyarrow==26.0.1"
cat >"$folder/zero.py" <<'PYTHON'
import sys

import lancedb
import numpy as np
import pyarrow as pa
from usearch.index import Index

vectors = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
vectors[[10, 20]] = 0
column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 16)
table = lancedb.connect(sys.argv[1]).create_table("t", pa.table({"id": range(1000), "vector": column}))
found = {
    metric: [
        table.search(vectors[asked]).distance_type(metric).limit(1000).to_arrow().num_rows for asked in (0, 10)
    ]
    for metric in ("cosine", "l2", "dot")
}
print("rows found by a vector, and by a zero vector, of 1000:", found)
index = Index(ndim=16, metric="cos", dtype="f32")
index.add(np.arange(1000), vectors, threads=1)
matches = index.search(vectors[0], 1000, exact=True)
zeros = {int(key): float(far) for key, far in zip(matches.keys, matches.distances) if key in (10, 20)}
print("usearch, of zero vectors:", zeros)
if found != {"cosine": [998, 0], "l2": [1000, 1000], "dot": [1000, 1000]} or zeros != {10: 1.0, 20: 1.0}:
    raise SystemExit("changed: expected zero vectors to be in no result by cosine, and at 1 in usearch")
PYTHON
"$folder/venv/bin/python" "$folder/zero.py" "$folder/lance"
