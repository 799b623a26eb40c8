"""Finding duplicates against the ways users have, on this machine's cores.

    python -m benchmarks.dedup [--rows N]

Vectors of 512 float32 are a mixture of clusters of unequal size; every fifth row is a near copy of another one, made
the same each time. Two rows are duplicates with a cosine of at least 0.95. Cases with faiss are left out where the
package ``faiss-cpu`` is not installed.

- ``dedup``: `curator_dask.dedup.SemanticDeduplication` from Parquet to the table, on a cluster that is there.
- ``SemDeDup``: its procedure as users run it: faiss's spherical k-means with as many clusters, then the product of each
  cluster's vectors with themselves, rows near an earlier one go. Vectors are in memory. Pairs across clusters are lost.
- ``faiss IVF``: `IndexIVFFlat` with as many lists and ``range_search`` of all rows, with the fewest probes whose recall
  is that of ``dedup``. Vectors are in memory; it ends with pairs, not with who stays.
- ``products``: as many products as ``dedup`` has made, by one matrix multiplication after another, and nothing else.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.harness import (
    Case,
    case_rows,
    cores,
    machine,
    parser,
    per_round,
    ranged,
    run_interleaved,
    write_result,
    write_tables,
)
from curator_dask import backend, get_client
from curator_dask.dedup import SemanticDeduplication

EPS, DIM = 0.05, 512
_FILE = 50_000  # rows
_SAMPLE = 1000
_BLOCK = 8192


def make_vectors(rows: int) -> np.ndarray:
    """float32 (rows, DIM), of unit length."""
    random = np.random.default_rng(0)
    clusters = max(4, rows // 400)
    means = random.normal(size=(clusters, DIM)).astype(np.float32)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    sizes = random.dirichlet(np.full(clusters, 0.7))
    found = np.empty((rows, DIM), np.float32)
    of = random.choice(clusters, rows, p=sizes)
    first = rows - rows // 5
    for start in range(0, rows, _FILE):
        noise = random.standard_normal((min(_FILE, rows - start), DIM), np.float32)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        part = slice(start, start + len(noise))
        copied = np.arange(part.start, part.start + len(noise)) >= first
        found[part] = means[of[part]] + 0.7 * noise
        originals = random.choice(first, int(copied.sum()))
        vectors = found[originals] / np.linalg.norm(found[originals], axis=1, keepdims=True)
        # At 0.33 the cosine is 0.95: most copies are within eps, some are not.
        found[part][copied] = vectors + 0.4 * random.random((len(vectors), 1), np.float32) * noise[copied]
        found[part] /= np.linalg.norm(found[part], axis=1, keepdims=True)
    return found[random.permutation(rows)]


def write(folder: Path, vectors: np.ndarray) -> None:
    """As `save_metadata` does, a file for each `_FILE` rows."""
    folder.mkdir()
    for number, start in enumerate(range(0, len(vectors), _FILE)):
        part = vectors[start : start + _FILE]
        values = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), DIM)
        keys = [f"{start + row:09d}" for row in range(len(part))]
        table = {"key": keys, "__url__": [f"/shards/{number}.tar"] * len(part), "image_embedding": values}
        pq.write_table(pa.table(table), folder / f"{number:05d}.parquet")


def by_dedup(folder: Path, said: dict[str, Any]) -> int:
    """All of it."""
    said["dedup"] = SemanticDeduplication(eps=EPS)(folder / "vectors").save(folder / "out")
    return int(said["dedup"].rows)


def by_semdedup(vectors: np.ndarray, clusters: int, said: dict[str, Any]) -> int:
    """Clusters, and the rows that go."""
    import faiss

    kmeans = faiss.Kmeans(DIM, clusters, niter=20, spherical=True, seed=0)
    kmeans.train(vectors)
    labels = kmeans.index.search(vectors, 1)[1][:, 0]
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(clusters + 1))
    removed = 0
    for first, last in pairwise(bounds):
        part = torch.from_numpy(vectors[order[first:last]])
        if len(part):
            removed += int((torch.triu(part @ part.T, diagonal=1).amax(0) > 1 - EPS).sum())
    said["SemDeDup"] = labels, removed
    return len(vectors)


def by_faiss(vectors: np.ndarray, clusters: int, probes: int, said: dict[str, Any]) -> int:
    """All pairs that it finds."""
    index = index_of(vectors, clusters)
    index.nprobe = probes
    pairs = 0
    for start in range(0, len(vectors), _BLOCK):
        pairs += len(index.range_search(vectors[start : start + _BLOCK], 1 - EPS)[2])
    said["faiss IVF"] = pairs
    return len(vectors)


def index_of(vectors: np.ndarray, clusters: int) -> Any:
    """Trained, and with all vectors."""
    import faiss

    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, clusters, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.train(vectors)
    index.add(vectors)
    return index


def by_products(vectors: np.ndarray, folder: Path) -> int:
    """As many products as there were, of blocks as large."""
    whole = backend.current().autocast_dtype() or torch.float32
    left, right = (torch.from_numpy(vectors[:size]).to(whole) for size in (512, 4096))
    right = right.T.contiguous()
    with torch.inference_mode():
        for _ in range(math.ceil(products_of(folder) / (len(left) * right.shape[1]))):
            left @ right
    return len(vectors)


def products_of(folder: Path) -> float:
    """How many products of two vectors a run has made to find pairs."""
    (order,) = (path for path in (folder / "out.work").glob("order-*"))
    own = np.diff(np.load(order / "bounds.npy"))
    near = np.diff(np.load(order / "near-bounds.npy"))
    return float((own * (own / 2 + near)).sum())


def true_pairs(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a sample's rows with all rows."""
    sample = np.sort(np.random.default_rng(1).choice(len(vectors), min(_SAMPLE, len(vectors)), replace=False))
    found = []
    for start in range(0, len(vectors), _BLOCK):
        of, other = np.nonzero(vectors[sample] @ vectors[start : start + _BLOCK].T >= 1 - EPS)
        found.append(np.column_stack([sample[of], other + start]))
    pairs = np.concatenate(found)
    return pairs[pairs[:, 0] != pairs[:, 1]].T


def fewest_probes(
    vectors: np.ndarray, clusters: int, pairs: tuple[np.ndarray, np.ndarray], recall: float
) -> tuple[int, float]:
    """Of an index, and the recall with them."""
    index = index_of(vectors, clusters)
    sample = np.unique(pairs[0])
    for probes in range(1, clusters + 1):
        index.nprobe = probes
        count = len(index.range_search(vectors[sample], 1 - EPS)[2]) - len(sample)
        if count >= recall * len(pairs[0]):
            break
    return probes, count / max(1, len(pairs[0]))


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, help="vectors (default 200,000)")
    options = arguments.parse_args(given)
    rows = options.rows or (3000 if options.quick else 200_000)
    repeats = options.repeats or (1 if options.quick else 3)
    described, said = machine(), {}
    with (
        tempfile.TemporaryDirectory() as place,
        get_client("cpu", n_workers=cores(), verbose=False),
    ):
        folder = Path(place)
        vectors = make_vectors(rows)
        write(folder / "vectors", vectors)
        by_dedup(folder, said)
        clusters, recall = max(2, said["dedup"].clusters), said["dedup"].recall.value
        cases = {"products": Case(partial(by_products, vectors, folder))}
        share = {"dedup": recall}
        pairs = true_pairs(vectors)
        if importlib.util.find_spec("faiss"):
            probes, share["faiss IVF"] = fewest_probes(vectors, clusters, pairs, min(recall, 0.999))
            cases["SemDeDup"] = Case(partial(by_semdedup, vectors, clusters, said))
            cases["faiss IVF"] = Case(partial(by_faiss, vectors, clusters, probes, said))
        cases["dedup"] = Case(partial(by_dedup, folder, said), None, partial(_remove, folder))
        found = run_interleaved(cases, repeats, warm_up=False)
    ratios = {
        f"dedup ÷ {name}": per_round(lambda a, b: a / b, found["dedup"], found[name])
        for name in cases
        if name != "dedup"
    }
    rows_that_go = {"dedup": said["dedup"].removed}
    if "SemDeDup" in cases:
        labels, rows_that_go["SemDeDup"] = said["SemDeDup"]
        share["SemDeDup"] = float((labels[pairs[0]] == labels[pairs[1]]).mean()) if len(pairs[0]) else 1.0
    notes = [f"{name}: **{ranged(value)}**" for name, value in ratios.items()]
    notes += [f"pairs found by {name}: **{value:.2%}**" for name, value in share.items()]
    notes.append(f"clusters: {clusters:,}; rows that go: {rows_that_go}")
    seconds = {name: round(value, 2) for name, value in said["dedup"].seconds.items()}
    notes.append("seconds of dedup's last run by phase: " + ", ".join(f"{k} {v}" for k, v in seconds.items()))
    print("\n".join(notes))
    results = {
        "what": f"{rows:,} vectors of {DIM}, eps {EPS}, median of {repeats} interleaved runs.",
        "settings": {"rows": rows, "repeats": repeats},
        "cases": found,
        "ratios": ratios,
        "recall": share,
        "seconds": seconds,
        "table": case_rows(found, "rows/s"),
        "notes": notes,
    }
    if write_result(f"dedup-{rows}", options, described, results) and options.out is None:
        write_tables()


def _remove(folder: Path) -> None:
    for name in ("out", "out.work"):
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
