"""What share of the pairs within eps is compared, by brute force over all pairs of four sets of vectors.

    python -m benchmarks.recall [--demo DEMO] [--quick]

- ``demo``: the vectors of the demo's photographs, in 50 clusters: where each is compared within its cluster alone, a
  fifth of the pairs is lost.
- ``crops``: 6,000 crops of the demo's photographs by EfficientNet-Lite0, which are made first, in 58 clusters. These
  two need ``--demo``, the folder that ``scripts/demo.sh`` writes.
- ``heavy``: a mixture of six clusters of very unequal size, wide ones, with near copies.
- ``copies``: 1,000 copies to the bit of one vector among the others of such a mixture.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.image.embedders import TimmImageEmbedder

_CROPS, _SIDE = 26, 224  # of each photograph, and pixels
_BLOCK = 1024


@dataclass(frozen=True)
class Found:
    """What a run has found of a set, beside what all pairs say.

    Attributes
    ----------
    rows, clusters
        Of the set.
    pairs, compared
        Pairs of distinct vectors within eps, by brute force, and how many of them the run has compared.
    said
        The share that the run itself measured, on a sample.
    removed, greedy
        Rows that go, and those that go where all pairs are compared.
    without
        Rows that go and have none within eps that stays.
    """

    rows: int
    clusters: int
    pairs: int
    compared: int
    said: str
    removed: int
    greedy: int
    without: int

    @property
    def recall(self) -> float:
        """Of 1."""
        return self.compared / self.pairs if self.pairs else 1.0


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32, each row of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def make_heavy(rows: int, dim: int = 64) -> np.ndarray:
    """A mixture of clusters of very unequal size; three rows in ten are near copies of others."""
    random = np.random.default_rng(0)
    means, sizes = random.normal(size=(6, dim)), random.dirichlet(np.full(6, 0.5))
    found = unit(means[random.choice(6, rows, p=sizes)] + 0.5 * random.normal(size=(rows, dim)))
    copied = rows * 3 // 10
    originals = found[random.choice(rows - copied, copied)]
    noise = unit(random.normal(size=(copied, dim)))
    found[rows - copied :] = unit(originals + 0.45 * random.random((copied, 1)) * noise)
    return found[random.permutation(rows)]


def make_copies(rows: int) -> np.ndarray:
    """Such a mixture, in which a thousand rows are one."""
    found = make_heavy(rows)
    found[np.random.default_rng(1).choice(rows, min(1000, rows // 2), replace=False)] = found[0]
    return found


def make_crops(demo: Path, folder: Path) -> np.ndarray:
    """Vectors of random crops of the demo's photographs."""
    random, shards = np.random.default_rng(2), folder / "crops"
    shards.mkdir()
    for path in sorted((demo / "dataset").glob("*.tar")):
        with tarfile.open(path) as source, tarfile.open(shards / path.name, "w") as target:
            for name, image in _photographs(source):
                for crop in range(_CROPS):
                    sides = (np.array(image.size) * random.uniform(0.6, 1)).astype(int)
                    left, top = (int(random.integers(0, room + 1)) for room in np.array(image.size) - sides)
                    part = image.crop((left, top, left + int(sides[0]), top + int(sides[1])))
                    part.resize((_SIDE, _SIDE)).save(data := io.BytesIO(), "JPEG", quality=90)
                    member = tarfile.TarInfo(f"{name}{crop:02}.jpg")
                    member.size = data.tell()
                    data.seek(0)
                    target.addfile(member, data)
    dataset = ImageTextPairDataset.from_webdataset(str(shards), id_col="key")
    TimmImageEmbedder(f"local-dir:{demo / 'model'}")(dataset).save_metadata(folder / "embeddings")
    return vectors_of(folder / "embeddings")


def _photographs(source: tarfile.TarFile) -> Iterator[tuple[str, Image.Image]]:
    for member in source:
        data = source.extractfile(member)
        if data is None or not member.name.endswith((".jpg", ".png", ".webp")):
            continue
        try:
            yield member.name.partition(".")[0], Image.open(data).convert("RGB")
        except OSError:  # two of the demo's are broken
            continue


def vectors_of(folder: Path) -> np.ndarray:
    """float32 (rows, dim): the vectors of an output, of those rows that have one."""
    column = pq.read_table(folder, columns=["image_embedding"])["image_embedding"].drop_null()
    return unit(np.stack(column.to_numpy(zero_copy_only=False)))


def look_up(vectors: np.ndarray, eps: float, clusters: int | str, folder: Path) -> Found:
    """Find duplicates among vectors, and compare with what all pairs say."""
    (folder / "vectors").mkdir(parents=True)
    keys = [f"{row:06}" for row in range(len(vectors))]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table({"key": keys, "image_embedding": column}), folder / "vectors/0.parquet")
    summary = SemanticDeduplication(eps=eps, n_clusters=clusters)(folder / "vectors").save(folder / "out")
    table = pq.read_table(folder / "out" / "duplicates.parquet").to_pandas()
    gone = table[~table["kept"]]
    theirs = vectors[gone["duplicate_of"].astype(int)], vectors[gone["id"].astype(int)]
    cosines = np.einsum("nd,nd->n", *theirs, dtype=np.float64)
    stays = ~np.isin(gone["duplicate_of"], gone["id"])
    # Copies to the bit are one vector for the phases after the first, in the order of their first rows.
    _, firsts = np.unique(vectors, axis=0, return_index=True)
    firsts = np.sort(firsts)
    pairs, compared = _count(vectors[firsts], eps, folder / "out.work")
    return Found(
        *(
            len(vectors),
            summary.clusters,
            pairs,
            compared,
            str(summary.recall),
            len(gone),
            _greedy(vectors, eps),
        ),
        without=int((~stays | (cosines < 1 - eps - 1e-6)).sum()),
    )


def _count(vectors: np.ndarray, eps: float, work: Path) -> tuple[int, int]:
    """Pairs within eps, and how many of them were compared: of one cluster, or one row near to the other's."""
    (order,) = work.glob("order-*")
    bounds, near, ends = (np.load(order / name) for name in ("bounds.npy", "near.npy", "near-bounds.npy"))
    vectors = vectors[np.load(order / "order.npy")]
    count = len(bounds) - 1
    labels = np.repeat(np.arange(count), np.diff(bounds))
    looks = np.zeros((len(vectors), count), bool)
    looks[np.arange(len(vectors)), labels] = True
    looks[near, np.repeat(np.arange(count), np.diff(ends))] = True
    pairs = compared = 0
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float64)
        one, other = np.nonzero(block @ vectors[start:].T.astype(np.float64) >= 1 - eps)
        one, other = one[one < other] + start, other[one < other] + start
        pairs += len(one)
        compared += int((looks[one, labels[other]] | looks[other, labels[one]]).sum())
    return pairs, compared


def _greedy(vectors: np.ndarray, eps: float) -> int:
    """Rows that go where each is compared with all that stay before it."""
    stay = np.empty_like(vectors)
    count = 0
    for vector in vectors:
        if not (stay[:count] @ vector >= 1 - eps).any():
            stay[count] = vector
            count += 1
    return len(vectors) - count


def main(given: list[str] | None = None) -> list[tuple[str, float, Found]]:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, help="what scripts/demo.sh wrote")
    parser.add_argument("--quick", action="store_true", help="few vectors")
    options = parser.parse_args(given)
    rows = 3000 if options.quick else 10_000
    clusters: int | str = 40 if options.quick else "auto"
    found = []
    with tempfile.TemporaryDirectory() as place, get_client("cpu", n_workers=2, verbose=False):
        folder = Path(place)
        sets = {"heavy": (make_heavy(rows), clusters), "copies": (make_copies(rows), clusters)}
        if options.demo is not None:
            sets["demo"] = vectors_of(options.demo / "embeddings"), 50
            sets["crops"] = make_crops(options.demo, folder), 58
        print(
            "| set | rows | clusters | eps | pairs | compared | by its own sample | go | go, all compared | no twin |"
        )
        for name, (vectors, count) in sets.items():
            for eps in (0.03, 0.1):
                one = look_up(vectors, eps, count, folder / f"{name}-{eps}")
                found.append((name, eps, one))
                print(
                    f"| {name} | {one.rows:,} | {one.clusters} | {eps} | {one.pairs:,} | {one.recall:.2%} | {one.said}"
                    f" | {one.removed:,} | {one.greedy:,} | {one.without} |",
                    flush=True,
                )
    return found


if __name__ == "__main__":
    main()
