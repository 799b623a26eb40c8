#!/usr/bin/env bash
# embedding-reader 1.8.1 (file_format="parquet_npy"): behind an array without rows, embeddings come with others' rows.
#
# Arrays and tables are paired by their places in two lists. Arrays of no rows are left out of the one, and their tables,
# of no rows either, stay in the other. So of pairs that belong together, one of them empty, each array behind that has
# the table of the pair before its own. Who reads a part that begins there, as workers that share a folder do, gets the
# ids of other rows without an error; who reads all gets a ValueError about shapes.
# Seen with NumPy 2.4.6 and PyArrow 26.0.1.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "embedding-reader==1.8.1"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from embedding_reader import EmbeddingReader

root = Path(sys.argv[1])
for name in ("img_emb", "metadata"):
    (root / name).mkdir()
# The values of each embedding are the number of its row, and so is the row's id.
for file, numbers in enumerate(([0, 1], [], [10, 11], [20, 21])):
    array = np.array(numbers, np.float32).reshape(-1, 1).repeat(4, axis=1)
    np.save(root / "img_emb" / f"img_emb_{file}.npy", array)
    table = pd.DataFrame({"id": np.array(numbers, np.int64)})
    table.to_parquet(root / "metadata" / f"metadata_{file}.parquet")
reader = EmbeddingReader(
    str(root / "img_emb"),
    file_format="parquet_npy",
    metadata_folder=str(root / "metadata"),
    meta_columns=["id"],
)
((embeddings, rows),) = reader(batch_size=2, start=4, end=6, show_progress=False)
found = embeddings[:, 0].astype(int).tolist(), rows["id"].tolist()
print("embeddings of rows", found[0], "come with the ids", found[1])
if found != ([20, 21], [10, 11]):
    raise SystemExit("changed: expected the ids [10, 11]")
PYTHON
