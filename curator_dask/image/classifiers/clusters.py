"""`ClusterNumber`: which cluster each image is of; `ClusterDistance`: how far from its centroid it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.base import ImageClassifier
from curator_dask.image.classifiers.centroids import read_centroids
from curator_dask.image.classifiers.levels import read_levels
from curator_dask.models.families import Kind, LikeThose
from curator_dask.models.heads import digest_of
from curator_dask.settings import absolute

if TYPE_CHECKING:
    import torch


class ClusterNumber(ImageClassifier):
    """Gives each vector the number of the nearest centroid, by the cosine; of equal ones the first.

    Parameters
    ----------
    centroids
        File that ``curator-dask centroids`` or `find_centroids` wrote, or another with one matrix, a centroid a row:
        ``.safetensors``, ``.pth``, ``.npy``. The client and every worker must see it.
    pred_column, embedding_column, batch_size
        See `ImageClassifier`.
    check
        Refuse vectors of another model than those that the centroids are of.
    level
        Of a file of several levels: the number is that of the cluster on this level which the nearest centroid of the
        first, 1, is in.

    Raises
    ------
    ConfigError
        When it is used: the file has no such level.
    WeightsError
        When it is used: the file cannot be read, or holds something else.
    """

    def __init__(
        self,
        centroids: str | os.PathLike[str],
        pred_column: str = "cluster",
        embedding_column: str = EMBEDDING_COLUMN,
        batch_size: int = -1,
        *,
        check: bool = True,
        level: int = 1,
    ) -> None:
        check_counts(level=level)
        of_level = f", level {level}" if level > 1 else ""
        name = f"{type(self).__name__}({Path(centroids).name}{of_level})"
        super().__init__(name, embedding_column, pred_column, "int32", batch_size, check=check)
        self.centroids = str(absolute(centroids))
        self.level = level

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the file, by its path."""
        return {self.centroids: digest_of(self.centroids)}

    @property
    def identity(self) -> tuple[Any, ...]:
        """The content of the file, wherever it is."""
        return ("clusters", *self.files.values(), *([self.level] if self.level > 1 else []))

    def look(self) -> None:
        """See that the file has the level."""
        if self.level > 1:
            self._above()

    @property
    def vectors(self) -> Kind | None:
        """Those of the model whose vectors were clustered.

        Raises
        ------
        ConfigError
            The file does not say which.
        """
        _, info = read_centroids(self.centroids)
        if info is None:
            raise ConfigError(
                f"{self.centroids}: does not say which vectors the centroids are of. If you know that these are"
                " such, say so by check=False (--no-check)"
            )
        return LikeThose(self.centroids, json.dumps(info, sort_keys=True))

    def settings(self) -> dict[str, Any]:
        """The arguments of this class, and its name under ``"scorer"``."""
        of_level = ["level"] if self.level > 1 else []  # as before there were levels
        names = ["centroids", "pred_column", "embedding_column", "batch_size", "check", *of_level]
        return {"scorer": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def _above(self) -> np.ndarray:
        try:
            return read_levels(self.centroids).above(self.level)
        except ConfigError as error:
            raise ConfigError(f"{self.centroids}: {error}") from None

    def load_model(self, device: torch.device) -> NearestCentroid | CentroidDistance:
        """The centroids, on `device`."""
        import torch

        centroids, _ = read_centroids(self.centroids)
        above = torch.from_numpy(self._above()).to(device) if self.level > 1 else None
        return NearestCentroid(torch.from_numpy(centroids).to(device), above)

    def postprocess(self, series: Any) -> Any:
        """Whole numbers; what is NaN is no score, whatever stands here for it."""
        return series.where(series == series, 0).astype("int32")


def cluster_numbers(given: Mapping[str, Any]) -> list[ClusterNumber]:
    """What a recipe gives: by column a file of centroids, or ``file`` and ``level``.

    Raises
    ------
    ConfigError
        It is something else.
    """
    found = []
    for column, each in given.items():
        named = each if isinstance(each, Mapping) else {"file": each}
        texts = (column, named.get("file"))
        if not {*named} <= {"file", "level"} or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(
                f"clusters: expected columns and files of centroids, or {{file: FILE, level: 2}}, found {given!r}"
            )
        found.append(ClusterNumber(named["file"], column, level=named.get("level", 1)))
    return found


class ClusterDistance(ClusterNumber):
    """Gives each vector its cosine distance to the nearest centroid, from 0 to 2: 1 less the cosine.

    What is near a centroid is typical of its cluster, and what is far is not.

    Parameters
    ----------
    centroids, pred_column, embedding_column, batch_size, check
        See `ClusterNumber`.
    """

    def __init__(
        self,
        centroids: str | os.PathLike[str],
        pred_column: str = "cluster_distance",
        embedding_column: str = EMBEDDING_COLUMN,
        batch_size: int = -1,
        *,
        check: bool = True,
    ) -> None:
        super().__init__(centroids, pred_column, embedding_column, batch_size, check=check)
        self.pred_type = "float32"

    @property
    def identity(self) -> tuple[Any, ...]:
        """The content of the file, wherever it is."""
        return ("cluster distance", *self.files.values())

    def load_model(self, device: torch.device) -> CentroidDistance:
        """The centroids, on `device`."""
        import torch

        centroids, _ = read_centroids(self.centroids)
        return CentroidDistance(torch.from_numpy(centroids).to(device))

    def postprocess(self, series: Any) -> Any:
        """Distances as they are."""
        return series


class CentroidDistance:
    """The cosine distance of each vector and its nearest centroid.

    Parameters
    ----------
    centroids
        Float32 (number, dim), of length 1.
    """

    def __init__(self, centroids: torch.Tensor) -> None:
        self._centroids = centroids
        self.dim = int(centroids.shape[1])

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Distances (n,), NaN where a vector has no direction."""
        vectors = vectors / vectors.abs().amax(1, keepdim=True)
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        return 1 - (vectors @ self._centroids.T).amax(1).clamp(-1, 1)


class NearestCentroid:
    """The number of each vector's nearest centroid.

    Parameters
    ----------
    centroids
        Float32 (number, dim), of length 1.
    above
        int64 (number,): a number that is given in the place of a centroid's own; None: that.
    """

    def __init__(self, centroids: torch.Tensor, above: torch.Tensor | None = None) -> None:
        self._centroids, self._above = centroids, above
        self.dim = int(centroids.shape[1])

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Numbers (n,) as float64, NaN where a vector has no direction."""
        # By the largest value: sums of what is far from 1 would not be finite, or nothing.
        cosines = (vectors / vectors.abs().amax(1, keepdim=True)) @ self._centroids.T
        nearest = cosines.argmax(1)
        found = (nearest if self._above is None else self._above[nearest]).double()
        found[~(vectors.isfinite().all(1) & vectors.any(1))] = float("nan")
        return found
