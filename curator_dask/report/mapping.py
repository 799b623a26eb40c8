"""Where the images of the sample lie beside one another: a map in two dimensions, its clusters, and what lies apart."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np

from curator_dask.report.rows import Rows
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

#: Rows below which a map says nothing, and rows of a cluster, at least, as a rule.
FEW, OF_CLUSTER = 12, 10
#: Rows above which it is computed in several threads.
MANY = 10_000
#: Rows beside which a row is laid. With 10, as PaCMAP has it for few rows, the versions of one image fall on one point.
NEIGHBOURS = 30
#: How much commoner a word is in a cluster than in all captions, at least, to be part of its name.
COMMONER = 1.25
#: Clusters, at most, and words that name one.
CLUSTERS, WORDS = 40, 3
#: What is lacking where the libraries of the extra are not there.
LACKING = "the map needs the extra report: pip install 'curator-dask[report]'"
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass
class Map:
    """A map of the rows that have a vector.

    Attributes
    ----------
    rows
        int64 (n,): their numbers in the sample.
    places
        float32 (n, 2).
    clusters
        int64 (n,): of each row.
    names
        Of the clusters, the largest first: their commonest words, that others have less of.
    distances
        float64 (n,): 1 minus the cosine of a row and the centre of its cluster.
    lacking
        Why there is no map; None where there is one.
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    clusters: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    names: list[str] = field(default_factory=list)
    distances: np.ndarray = field(default_factory=lambda: np.zeros(0))
    lacking: str | None = None

    @property
    def outliers(self) -> np.ndarray:
        """Numbers in the map, the furthest from its cluster first."""
        return np.argsort(-self.distances, kind="stable")


def map_of(rows: Rows, seed: int) -> Map:
    """Lay out the rows that have a finite vector other than zero; the same rows and seed give the same map."""
    lengths = np.linalg.norm(rows.vectors, axis=1)
    usable = np.flatnonzero(rows.valid & np.isfinite(lengths) & (lengths > 0))
    if len(usable) < FEW:
        return Map(lacking=f"{counted(len(usable), 'row')} of the sample with a vector: too few for a map")
    if find_spec("pacmap") is None or find_spec("sklearn") is None:
        logger.warning("no map on the page: %s", LACKING)
        return Map(lacking=LACKING)
    vectors = rows.vectors[usable] / lengths[usable, None]
    with _threads_for(len(vectors)):
        places = _lay_out(vectors, seed)
        clusters, centres = _cluster(vectors, seed)
    distances = 1.0 - np.einsum("nd,nd->n", vectors, centres[clusters], dtype=np.float64)
    captions = [rows.captions[row] for row in usable.tolist()]
    return Map(usable, places, clusters, names_of(captions, clusters, len(centres)), distances)


@contextmanager
def _threads_for(rows: int) -> Iterator[None]:
    """One thread for few rows: several wait for one another longer than they work, 200 rows take 5 s instead of 0.2."""
    import numba
    from threadpoolctl import threadpool_limits

    before = numba.get_num_threads()
    count = before if rows > MANY else 1
    numba.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        numba.set_num_threads(before)


def _lay_out(vectors: np.ndarray, seed: int) -> np.ndarray:
    import pacmap

    library = logging.getLogger("pacmap")
    level = library.level
    library.setLevel(logging.ERROR)  # that a seed is set, and what it does with few rows
    try:
        neighbours = NEIGHBOURS if len(vectors) <= MANY else None  # its own number, by the rows
        found = pacmap.PaCMAP(2, neighbours, random_state=seed).fit_transform(vectors, init="pca")
    finally:
        library.setLevel(level)
    return np.asarray(found, np.float32)


def _cluster(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each row, the largest first, and the centres, of length 1."""
    from sklearn.cluster import MiniBatchKMeans

    count = int(np.clip(min(len(vectors) / OF_CLUSTER, math.sqrt(len(vectors))), 2, CLUSTERS))
    found = MiniBatchKMeans(count, random_state=seed, batch_size=4096, n_init=3).fit_predict(vectors)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    order = order[np.bincount(found, minlength=count)[order] > 0]
    number = np.zeros(count, np.int64)
    number[order] = np.arange(len(order))
    clusters = number[found]
    centres = np.stack([vectors[clusters == each].mean(axis=0) for each in range(len(order))])
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    return clusters, centres / np.maximum(lengths, np.finfo(np.float32).tiny)


def names_of(captions: Sequence[str | None], clusters: np.ndarray, count: int) -> list[str]:
    """Names of clusters: words of most captions there, and of few elsewhere; a number where there are no captions."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    inside: list[Counter[str]] = [Counter() for _ in range(count)]
    for caption, cluster in zip(captions, clusters.tolist(), strict=True):
        inside[cluster].update({word.lower() for word in _WORD.findall(caption or "")} - ENGLISH_STOP_WORDS)
    everywhere: Counter[str] = Counter()
    for words in inside:
        everywhere.update(words)
    sizes = np.bincount(clusters, minlength=count)
    names = []
    for number, words in enumerate(inside):
        share = sizes[number] / sizes.sum()
        # How common it is here, times how much of it is here: 1 is all captions of the cluster, and no others. What is
        # no commoner here than anywhere says nothing.
        worth = {
            word: (here / sizes[number]) * (here / everywhere[word])
            for word, here in words.items()
            if count == 1 or here > COMMONER * share * everywhere[word]
        }
        best = sorted(worth, key=lambda word: (-worth[word], word))[:WORDS]
        names.append(", ".join(best) or f"cluster {number + 1}")
    return names
