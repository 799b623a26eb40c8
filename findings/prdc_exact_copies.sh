#!/usr/bin/env bash
# prdc 0.2 (Naeem et al. 2020, scikit-learn 1.9.0): exact copies are never covered, so a set has not precision 1 against
# itself. A web dataset has them: one "image not available" picture, thousands of times.
#
# 1,500 vectors of 64 values, k = 5. Of a set and itself precision, recall and coverage are 1: each vector is there. With
# 300 of the 1,500 copies of one vector all of them are 0.80: a vector with more copies than k has a ball without width,
# and compute_prdc asks for `distance < radius`, where Kynkäänniemi et al. (2019), whose precision and recall these are,
# ask for `<=`. Guessed before it was run, and so it is. curator_dask counts the edge of a ball to it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "prdc==0.2" "scikit-learn==1.9.0" "numpy==2.4.6"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from prdc import compute_prdc

vectors = np.random.default_rng(0).normal(size=(1500, 64))
found = {}
for copies in (1, 300):
    vectors[:copies] = vectors[0]
    said = compute_prdc(vectors, vectors.copy(), nearest_k=5)
    found[copies] = {name: round(float(value), 4) for name, value in said.items()}
    print(f"{copies} copies, against itself:", found[copies])
for name in ("precision", "recall", "coverage"):
    if found[1][name] != 1:
        raise SystemExit(f"changed: expected {name} 1 without copies")
    if found[300][name] != 0.8:
        raise SystemExit(f"changed: expected {name} 0.8 with 300 copies")
PYTHON
