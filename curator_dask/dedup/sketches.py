"""Sketches: a few numbers of a vector, by which most pairs that are not near are told apart in an eighth of the time.

A sketch has the vector's coordinates along some axes, and last the length of what is left of it. The product of two
sketches is never less than the cosine of the vectors, by the inequality of Cauchy and Schwarz on what is left. So
a pair whose sketches' product is too small is not near, and nothing is lost; all others are decided by the vectors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from curator_dask.dedup.phases import Phase

#: Numbers of a sketch. Where the smaller one says too little, the larger one is asked.
WIDTHS = (64, 128)
#: How far the product of two sketches is off by their float16: 2 * 2**-11 at most, as they are of unit length.
SKETCH_MARGIN = 2**-10
_ROUNDS = 6  # of the power method: axes need not be exact, only at right angles
_FIT = 1 << 23  # values of the vectors that axes are made by


def widths_of(dim: int) -> tuple[int, ...]:
    """Of the sketches that are worth their while for vectors of such a length."""
    return tuple(width for width in WIDTHS if 2 * width <= dim)


def fit_rows(dim: int) -> int:
    """Rows that axes are made by."""
    return max(2048, _FIT // max(1, dim))


def axes_of(apart: np.ndarray, seed: int) -> np.ndarray:
    """The axes along which vectors of one cluster differ most, the first ones first.

    Parameters
    ----------
    apart
        float32 (n, dim): differences of vectors and their centroids.
    seed
        Of what is picked by chance.

    Returns
    -------
    numpy.ndarray
        float32 (dim, count), of unit length and at right angles; of no column where vectors are short.
        Their principal components, by the power method on blocks (Halko et al. 2011, "Finding structure with
        randomness", algorithm 4.4).
    """
    dim = apart.shape[1]
    count = max(widths_of(dim), default=1) - 1
    spread = (apart.T @ apart).astype(np.float64)
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, count)))[0]
    for _ in range(_ROUNDS if count else 0):
        axes = np.linalg.qr(spread @ axes)[0]
    _, turn = np.linalg.eigh(axes.T @ spread @ axes)
    return np.ascontiguousarray((axes @ turn[:, ::-1]).astype(np.float32))


def sketch(vectors: np.ndarray, axes: np.ndarray) -> dict[int, np.ndarray]:
    """By width, the sketches of vectors: float16 (n, width).

    Parameters
    ----------
    vectors
        float32 (n, dim), of unit length.
    axes
        As `axes_of` gives them.
    """
    along = vectors @ axes
    done = {}
    for width in widths_of(len(axes)):
        some = along[:, : width - 1]
        left = np.sqrt(np.maximum(0, 1 - np.square(some, dtype=np.float64).sum(axis=1)))
        done[width] = np.column_stack([some, left]).astype(np.float16)
    return done


def file_of(width: int, name: str = "") -> str:
    """Name of a file of sketches: those of a file of vectors, or all, in the order of clusters."""
    return f"{name}-sketch{width}.npy" if name else f"sketch{width}.npy"


def save_in_order(source: Phase, names: Sequence[str], phase: Phase, places: np.ndarray, dim: int) -> None:
    """Put sketches into one file, in the order of clusters, where there are any.

    Parameters
    ----------
    source
        Has those of each file of vectors.
    names
        Of these, in the order of vectors.
    phase
        Gets the files.
    places
        int64 (vectors,): where each stands.
    dim
        Length of a vector.
    """
    for width in widths_of(dim):
        with source.listed():
            if not all(source.has(file_of(width, name)) for name in names):
                continue
        source.fetch([file_of(width, name) for name in names])
        shape = (len(places), width)
        with phase.writing(file_of(width)) as file:
            kind = np.lib.format.dtype_to_descr(np.dtype(np.float16))
            head = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
            start = file.tell()
            file.flush()
            # Room that is lacking is an error here, and would end the process once it is mapped.
            os.posix_fallocate(file.fileno(), 0, start + 2 * len(places) * width)
            whole = np.memmap(file, np.float16, "r+", offset=start, shape=shape)
            first = 0
            for name in names:
                some = source.load(file_of(width, name))
                whole[places[first : first + len(some)]] = some
                first += len(some)
            whole.flush()


def widths_there(phase: Phase, widths: Sequence[int]) -> tuple[int, ...]:
    """Of which there are sketches in the order of clusters."""
    return tuple(width for width in widths if phase.has(file_of(width)))


def sketches_of(phase: Phase, width: int, places: np.ndarray) -> np.ndarray:
    """float16 (n, width): sketches by their places; mapped only while they are read."""
    return phase.load_some(file_of(width), places)
