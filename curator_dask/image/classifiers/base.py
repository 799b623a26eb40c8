"""`ImageClassifier`: adds a column of scores to a dataset, from its vectors, with any head."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.fingerprint import code_digest
from curator_dask.frames.names import EMBEDDING_COLUMN, ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers.origins import Origin, find_origin, origin_in_files
from curator_dask.image.classifiers.scoring import ScoreVectors
from curator_dask.models.families import Kind
from curator_dask.models.heads import digest_of
from curator_dask.storage import Options

if TYPE_CHECKING:
    import torch


class ImageClassifier(ABC):
    """Base of all classifiers; subclass it to bring your own head.

    A subclass gives `load_model`, and may give `postprocess` and `vectors`. It is called with a dataset that has
    vectors, or whose embedder is to make them in the same pass. It is pickled to the workers, so it holds settings
    (strings, numbers), never a model; each worker loads the head once. Where a setting is the path of a file, the
    file's content counts: scores of another file are made anew.

    Parameters
    ----------
    model_name
        The head's, for messages and records.
    embedding_column
        Column of the vectors.
    pred_column
        Name of the new column.
    pred_type
        Its type: ``float``, ``"float32"``, ``bool``, ``str``, or one of pyarrow's.
    batch_size
        Vectors that the head takes at once, at most; -1 leaves it to the package.
    embedding_size
        Length of the vectors that the head takes; None: it says so itself, or any.
    check
        Refuse vectors of another kind than `vectors`. False is for those of which you know better; it is recorded.
    """

    #: Part of the fingerprint. The code of the class is too, but not what it calls: change this when that changes.
    version: str = ""

    def __init__(
        self,
        model_name: str,
        embedding_column: str = EMBEDDING_COLUMN,
        pred_column: str = "score",
        pred_type: str | type | pa.DataType = "float32",
        batch_size: int = -1,
        embedding_size: int | None = None,
        *,
        check: bool = True,
    ) -> None:
        if not pred_column or pred_column in (URL_COLUMN, ERROR_COLUMN, embedding_column):
            raise ConfigError(f"pred_column={pred_column!r}: this name is not free")
        if not isinstance(batch_size, int) or (batch_size < 1 and batch_size != -1):
            raise ConfigError(f"batch_size={batch_size!r}: expected a whole number of at least 1, or -1")
        self.model_name = model_name
        self.embedding_column = embedding_column
        self.pred_column = pred_column
        self.pred_type = pred_type
        self.batch_size = batch_size
        self.embedding_size = embedding_size
        self.check = check
        _ = self.arrow_type  # checks it

    @abstractmethod
    def load_model(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """The head, on a worker: float32 vectors (n, dim) on `device` to n scores, as (n,) or (n, 1)."""

    def postprocess(self, series: Any) -> Any:
        """What becomes of the scores of the rows that have a vector: a pandas or cuDF Series to one as long."""
        return series

    @property
    def vectors(self) -> Kind | None:
        """Which vectors the head was made for, asked for on a worker; None: any of its length."""
        return None

    def look(self) -> None:  # noqa: B027, most name nothing to look at
        """See what it compares with, as far as that is quickly done: asked for before there is a cluster.

        Raises
        ------
        CuratorError
            It cannot be used.
        """

    def settings(self) -> dict[str, Any] | None:
        """JSON-able arguments that make it again, stored beside its scores; None if there are none such."""
        return None

    @property
    def arrow_type(self) -> pa.DataType:
        """That of the new column."""
        kind = self.pred_type
        if isinstance(kind, pa.DataType):
            return kind
        try:
            return pa.string() if kind in (str, "str", "string") else pa.from_numpy_dtype(np.dtype(kind))
        except (TypeError, ValueError, pa.ArrowException):
            raise ConfigError(
                f"pred_type={kind!r}: expected float, 'float32', bool, str, or a type of pyarrow's"
            ) from None

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file that a setting names, by its path."""
        named = [value for value in self._own.values() if isinstance(value, str | os.PathLike)]
        paths = [os.fspath(value) for value in named]
        return {path: digest_of(path) for path in paths if path and Path(path).is_file()}

    @property
    def identity(self) -> tuple[Any, ...]:
        """What decides its scores, besides the vectors: class, settings, code, and the content of files."""
        digests = self.files
        settings = {
            name: digests.get(os.fspath(value), value) if isinstance(value, str | os.PathLike) else value
            for name, value in sorted(self._own.items())
        }
        kinds = [kind for kind in type(self).__mro__ if kind not in ImageClassifier.__mro__]
        return (type(self).__qualname__, self.version, code_digest(settings, kinds))

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the scores; nothing is computed yet.

        A row without a vector has no score, and ``image_error`` says why; so has one whose score is NaN or infinity.

        Raises
        ------
        DatasetError
            The dataset has no such vectors, and no embedder that makes them.
        WeightsError
            A file cannot be read.
        """
        return dataset.apply(self.step(find_origin(dataset, self.embedding_column)))

    def step(self, origin: Origin) -> ScoreVectors:
        """What is done to the rows of a shard.

        Parameters
        ----------
        origin
            What made the vectors.
        """
        return ScoreVectors.of(self, origin)

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> ScoreVectors:
        """The step for the vectors of files.

        Parameters
        ----------
        records
            What made the files, by path.
        options
            For fsspec.

        Raises
        ------
        DatasetError
            The vectors are not of one model.
        """
        return self.step(origin_in_files(self.embedding_column, records, options))

    @property
    def _own(self) -> dict[str, Any]:
        """The settings that a subclass has besides those of all."""
        common = inspect.signature(ImageClassifier.__init__).parameters
        return {name: value for name, value in vars(self).items() if name not in common}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"
