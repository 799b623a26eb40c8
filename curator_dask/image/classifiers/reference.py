"""`ReferenceSimilarity`: how near each image is to a dataset that has what is wanted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
from collections.abc import Iterator, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask import backend
from curator_dask.cache import ENCODERS
from curator_dask.errors import ConfigError, WeightsError
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.base import ImageClassifier
from curator_dask.image.classifiers.origins import Origin, one_origin
from curator_dask.image.classifiers.scoring import ScoreVectors
from curator_dask.models.families import Kind, LikeThose
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.placing import locate
from curator_dask.words import counted, sized

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("curator_dask")

BLOCK = 4096
"""Vectors of the reference that are compared at once: their products with a block of rows stay in a CPU's cache."""
NORMS = ("max", "2")
"""What `ReferenceSimilarity` makes of the cosines to all vectors of a reference."""


class ReferenceSimilarity(ImageClassifier):
    """Scores vectors by the nearest of a reference: the largest cosine, -1 to 1; 1 is one of the reference.

    The best by it are the images that are like those of the reference, as DataComp's image-based filter and DINOv2's
    curated dataset choose theirs. Every vector is compared with all of the reference: no pair is missed.

    Parameters
    ----------
    reference
        What `save_metadata` or ``curator-dask embed`` wrote of the images that are wanted, by the same model; every
        worker must see it. Each holds its vectors in memory, or in that of its GPU: 4 bytes a value.
    pred_column, embedding_column, batch_size
        See `ImageClassifier`.
    reference_column
        Of the reference's vectors; None: `embedding_column`.
    storage_options
        For fsspec, where `reference` is a URL.
    check
        Refuse vectors of another model than the reference's.
    norm
        ``"max"``: the largest cosine. ``"2"``: the root of the sum of the squares of all cosines, from 0 to the root of
        how many vectors the reference has. They are NormSim with the norms ∞ and 2 (Wang et al., NeurIPS 2024, arXiv
        2405.19547, section 3.2; of ∞ the paper takes the largest absolute value, which is another where the nearest
        is less similar than the most opposite). By the second an image is the better the more of the reference it is
        like. It costs a product with a matrix (dim, dim), whatever the reference's size.

    Raises
    ------
    ConfigError
        `norm` is another.
    OutputError
        When it is used: the reference has no such vectors.
    """

    def __init__(
        self,
        reference: str | os.PathLike[str],
        pred_column: str = "reference_similarity",
        embedding_column: str = EMBEDDING_COLUMN,
        batch_size: int = -1,
        *,
        reference_column: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        check: bool = True,
        norm: str = "max",
    ) -> None:
        if norm not in NORMS:
            raise ConfigError(f"norm={norm!r}: expected one of {', '.join(NORMS)}")
        path = locate(os.fspath(reference), storage_options)
        of = "" if norm == "max" else f", norm {norm}"
        name = f"{type(self).__name__}({posixpath.basename(path.rstrip('/'))}{of})"
        super().__init__(name, embedding_column, pred_column, "float32", batch_size, check=check)
        self.reference = path
        self.reference_column = reference_column or embedding_column
        self.storage_options = None if storage_options is None else dict(storage_options)
        self.norm = norm
        self.digest: str | None = None  # of the vectors; that of a step, which every worker must find

    @property
    def files(self) -> dict[str, str]:
        """None: it is the vectors that must be the same, also where their files get scores meanwhile."""
        return {}

    @property
    def identity(self) -> tuple[Any, ...]:
        """The vectors of the reference, in whatever files they are."""
        of = () if self.norm == "max" else (f"norm {self.norm}",)
        return ("reference", self._look()[0] if self.digest is None else self.digest, *of)

    def _look(self) -> tuple[str, int]:
        """The digest of the vectors, and how many there are."""
        digest, count = hashlib.sha256(), 0
        for block in self._blocks():
            _add(digest, block)
            count += len(block)
        return digest.hexdigest(), count

    def step(self, origin: Origin) -> ScoreVectors:
        """What is done to the rows of a shard, by the vectors that the reference has now.

        Parameters
        ----------
        origin
            What made the vectors.
        """
        fixed = copy(self)
        if fixed.digest is None:
            fixed.digest, count = self._look()
            logger.info("%s: %s to compare with", self.reference, counted(count, "vector"))
        return ScoreVectors.of(fixed, origin)

    @property
    def vectors(self) -> Kind | None:
        """Those of the model that made the reference.

        Raises
        ------
        ConfigError
            Nothing says which that is.
        DatasetError
            They are of several.
        """
        info = one_origin(self.reference_column, self._files().records).info()
        if info is None:
            raise ConfigError(
                f"{self.reference}: nothing says what made {self.reference_column!r}. If you know that the vectors are"
                " of one model with those that are compared, say so by check=False (--no-check)"
            )
        return LikeThose(self.reference, json.dumps(info, sort_keys=True))

    def look(self) -> None:
        """See that there are files of vectors, and of which model."""
        _ = self.vectors if self.check else self._files()

    def settings(self) -> dict[str, Any] | None:
        """The arguments of this class, and its name under ``"scorer"``; None where they may hold what is secret."""
        if self.storage_options is not None:
            return None
        names = (
            "reference",
            "pred_column",
            "embedding_column",
            "batch_size",
            "reference_column",
            "check",
            "norm",
        )
        return {"scorer": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def load_model(self, device: torch.device) -> Nearest | SquareNorm:
        """The vectors of the reference, or the matrix of their products, on `device`.

        Raises
        ------
        ConfigError
            It has none that can be compared, or more than the device has room for.
        WeightsError
            They are not those that the client has found.
        """
        import torch

        digest, blocks, products = hashlib.sha256(), [], None
        for block in self._blocks():
            _add(digest, block)
            if self.norm == "2":
                wide = block.astype(np.float64)
                products = wide.T @ wide + (0 if products is None else products)
            else:
                blocks.append(block)
        if self.digest not in (None, digest.hexdigest()):
            raise WeightsError(
                f"{self.reference}: expected the vectors with SHA-256 {self.digest}, which the client has found, found"
                f" {digest.hexdigest()} here. Give every node the same folder; if it has changed since, run again"
            )
        if products is not None:
            return SquareNorm(torch.from_numpy(products.astype(np.float32)).to(device))
        if not blocks:
            raise ConfigError(f"{self.reference}: no row has a vector in {self.reference_column!r}")
        for _ in range(2):
            try:
                return Nearest([torch.from_numpy(block).to(device) for block in blocks])
            except Exception as error:
                if not backend.is_out_of_memory(error):
                    raise
            ENCODERS.make_room()
            backend.current().release_memory()
        raise ConfigError(
            f"{self.reference}: its {sum(map(len, blocks)):,} vectors take"
            f" {sized(sum(block.nbytes for block in blocks))}, and there is no room for them on {device}. Give a"
            " smaller reference, or, of a GPU, score on CPUs (CURATOR_DASK_DEVICE=cpu)"
        )

    def _files(self) -> VectorFiles:
        return VectorFiles.find(self.reference, self.reference_column, self.storage_options)

    def _blocks(self) -> Iterator[np.ndarray]:
        """The vectors, of length 1, float32 (n, dim), by files and rows; without those that have no direction."""
        for vectors in self._files().directions():
            yield from (vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK))


def _add(digest: Any, vectors: np.ndarray) -> None:
    digest.update(np.ascontiguousarray(vectors, "<f4").data)


def _directions(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors of length 1, NaN where one has no direction."""
    # By the largest value first: squares of what is far from 1 are none in float32.
    vectors = vectors / vectors.abs().amax(1, keepdim=True)
    directions: torch.Tensor = vectors / vectors.norm(dim=1, keepdim=True)
    return directions


class SquareNorm:
    """The root of the sum of the squares of the cosines of each vector and those of a reference.

    Parameters
    ----------
    products
        Float32 (dim, dim): the reference's vectors `t`, of length 1, as the sum of ``outer(t, t)``.
    """

    def __init__(self, products: torch.Tensor) -> None:
        self._products = products
        self.dim = int(products.shape[0])

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Norms (n,), NaN where a vector has no direction."""
        vectors = _directions(vectors)
        squares: torch.Tensor = ((vectors @ self._products) * vectors).sum(1)
        return squares.clamp(min=0).sqrt()  # below which rounding may be by a little


class Nearest:
    """The largest cosine of each vector and those of a reference.

    Parameters
    ----------
    blocks
        Float32 (n, dim) each, of length 1.
    """

    def __init__(self, blocks: list[torch.Tensor]) -> None:
        self._blocks = blocks
        self.dim = int(blocks[0].shape[1])

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Cosines (n,), NaN where a vector has no direction."""
        vectors = _directions(vectors)
        best = (vectors @ self._blocks[0].T).amax(1)
        for block in self._blocks[1:]:
            best = best.maximum((vectors @ block.T).amax(1))
        return best.clamp(-1, 1)  # which rounding leaves by a little
