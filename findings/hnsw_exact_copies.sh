#!/usr/bin/env bash
# hnswlib 0.8.0, usearch 2.26.6, faiss-cpu 1.15.1: many exact copies of one vector hide the others from an HNSW index.
# A web dataset has them: one "image not available" picture, thousands of times.
#
# 5,000 different unit vectors of 64 values; each of the first 1,000 is looked for, and is itself in the index. Without
# copies all three find all of them. After 5,000 copies of one more vector, added first, hnswlib finds none, usearch
# 76 % and faiss 80 %; with 1,000 copies 95, 81 and 90 %. The links of a row go to its nearest, and those of a copy to
# other copies: the search starts among them and does not get out. A larger ef does not help where nothing links out.
# Seen with one thread. Exact copies are to be found, by a hash of their bytes, before an index is built.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "hnswlib==0.8.0" "usearch==2.26.6" "faiss-cpu==1.15.1" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import faiss
import hnswlib
import numpy as np
from usearch.index import Index

DIM, ROWS, ASKED = 64, 5000, 1000
random = np.random.default_rng(0)
faiss.omp_set_num_threads(1)


def unit(rows):
    values = random.normal(size=(rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def by_hnswlib(vectors, asked):
    index = hnswlib.Index("cosine", DIM)
    index.init_index(len(vectors), ef_construction=200, M=16, random_seed=1)
    index.set_num_threads(1)
    index.add_items(vectors)
    index.set_ef(64)
    return index.knn_query(asked, k=1)[0][:, 0]


def by_usearch(vectors, asked):
    index = Index(ndim=DIM, metric="cos")
    index.add(np.arange(len(vectors)), vectors, threads=1)
    return np.asarray(index.search(asked, 1, threads=1).keys).reshape(-1)


def by_faiss(vectors, asked):
    index = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 200, 64
    index.add(vectors)
    return index.search(asked, 1)[1][:, 0]


others, one = unit(ROWS), unit(1)
for copies in (0, 1000, 5000):
    vectors = np.concatenate([np.repeat(one, copies, axis=0), others])
    found = {
        by.__name__[3:]: float((by(vectors, others[:ASKED]) == copies + np.arange(ASKED)).mean())
        for by in (by_hnswlib, by_usearch, by_faiss)
    }
    print(f"{copies} copies: share of rows that find themselves:", found)
    if copies == 0 and min(found.values()) < 0.999:
        raise SystemExit("changed: expected all rows to find themselves without copies")
    if copies and max(found.values()) > 0.97:
        raise SystemExit("changed: expected each to lose more than 3 % of the rows")
if found["hnswlib"] > 0.1:
    raise SystemExit("changed: expected hnswlib to lose nearly all rows after 5,000 copies")
PYTHON
