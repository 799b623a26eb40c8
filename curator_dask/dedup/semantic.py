"""`SemanticDeduplication`: rows whose vectors are nearly the same, and which of them stays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curator_dask.dedup.hashes import Hashes
from curator_dask.dedup.keeping import Keep
from curator_dask.dedup.memory import parse_limit
from curator_dask.dedup.result import Duplicates
from curator_dask.dedup.settings import COMPONENTS, STARS, Settings
from curator_dask.errors import ConfigError
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.storage import Options

if TYPE_CHECKING:
    from curator_dask.datasets import ImageTextPairDataset


class SemanticDeduplication:
    """Finds duplicates: rows whose vectors have a cosine of at least 1 - eps, or with the same hash.

    Of duplicates the best row stays, and every row that goes has one that stays as its duplicate, unless
    `groups` says otherwise.

    Parameters
    ----------
    eps
        Above 0 and below 1.
    keep
        Which row is the best: a column (of numbers the largest, of text the first), an expression or a list of them
        (``["width * height desc", "key"]``); ``"hard"`` or ``"easy"``, the farthest from or nearest to the centroid of
        its cluster; or a function of a pandas frame of the file's columns that gives a number a row, the largest the
        best. Null comes last. Ties, and all rows where this is None, go by key.
    recall
        Which share of the pairs within eps is to be compared, at least. 1: all rows with all.
    n_clusters
        Of k-means; ``"auto"``: by the number of rows. Few rows are all compared.
    embedding_column
        Of the vectors.
    normalize
        Vectors of other lengths than 1 are made so. False: they are counted, and not compared.
    against
        Folder of vectors that stay as they are: rows that are within eps of one of them go, with which one. These are
        not compared with one another.
    exact
        Columns by which rows are duplicates too, whatever their vectors: of the same value (``["sha256"]``), or of
        hashes of 64 bits that differ in a few, at most 8 (``{"phash": 4}``), or of 256 that do in at most 31
        (``{"pdq": 31}``). Rows without a vector take part, also where none has one. A ``pdq`` whose ``pdq_quality`` is
        below 50 is left out.
    groups
        ``"stars"``: every row that goes has a duplicate that stays. ``"components"``: rows that are duplicates of
        duplicates, and so on, are one group, and its best row alone stays; the summary says how far apart two rows of
        one group are, at most.
    memory_limit
        What a worker may hold of vectors, products and pairs at a time, besides what Python, its libraries and the keys
        of rows take: bytes (``"4GB"``), or a share of the worker's own limit (0.5). Its threads share it. The client
        holds as much of the pairs. None: blocks of a fixed size. What is found is the same.
    exported
        Folder of tars that `to_webdataset` or ``curator-dask export`` wrote: rows whose samples are in these stay, and
        rows that are near one of them go. So an export that tars are added to has no duplicates.
    storage_options
        For fsspec, where vectors are read from a URL.

    Raises
    ------
    ConfigError
        An argument is not as it must be.
    """

    def __init__(
        self,
        eps: float = 0.07,
        keep: Any = None,
        recall: float = 0.99,
        n_clusters: int | str = "auto",
        embedding_column: str = EMBEDDING_COLUMN,
        *,
        normalize: bool = False,
        against: str | os.PathLike[str] | None = None,
        exact: str | Sequence[str] | Mapping[str, int] | None = None,
        groups: str = STARS,
        memory_limit: str | int | float | None = None,
        exported: str | os.PathLike[str] | None = None,
        storage_options: Options = None,
    ) -> None:
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
            raise ConfigError(f"eps={eps!r}: expected a number above 0 and below 1, such as 0.07")
        if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0.5 <= recall <= 1:
            raise ConfigError(f"recall={recall!r}: expected a share of 0.5 to 1, such as 0.99")
        whole = isinstance(n_clusters, int) and not isinstance(n_clusters, bool) and n_clusters >= 1
        if n_clusters != "auto" and not whole:
            raise ConfigError(f"n_clusters={n_clusters!r}: expected 'auto' or a whole number of at least 1")
        if groups not in (STARS, COMPONENTS):
            raise ConfigError(f"groups={groups!r}: expected {STARS!r} or {COMPONENTS!r}")
        clusters = None if n_clusters == "auto" else int(n_clusters)
        self.settings = Settings(
            float(eps),
            Keep.of(keep),
            float(recall),
            clusters,
            embedding_column,
            normalize,
            Hashes.of(exact),
            groups,
            parse_limit(memory_limit),
        )
        self.against = None if against is None else os.fspath(against)
        self.exported = None if exported is None else os.fspath(exported)
        self.storage_options = storage_options

    def __call__(self, vectors: str | os.PathLike[str] | ImageTextPairDataset) -> Duplicates:
        """The duplicates among vectors; nothing is computed before they are saved.

        Parameters
        ----------
        vectors
            Folder or URL that `save_metadata` or ``curator-dask embed`` wrote to, or of other Parquet files; or a
            dataset whose own folder this is.

        Raises
        ------
        ConfigError
            A dataset whose vectors are not computed yet.
        """
        if isinstance(vectors, str | os.PathLike):
            return Duplicates(
                self.settings, os.fspath(vectors), self.against, self.storage_options, self.exported
            )
        if not hasattr(vectors, "steps") or vectors.steps:
            raise ConfigError(
                f"{type(vectors).__name__}: its vectors are not saved, and each phase would make them anew: call"
                " save_metadata(path) first, then give that path"
            )
        options = self.storage_options or vectors.storage_options
        return Duplicates(self.settings, vectors.path, self.against, options, self.exported)
