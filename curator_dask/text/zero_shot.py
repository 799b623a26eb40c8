"""`ZeroShotClassifier`: labels of images by texts that describe them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import ENCODERS, POSSESSIONS, Remembered
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import list_to_matrix, unit
from curator_dask.frames.names import EMBEDDING_COLUMN, ERROR_COLUMN
from curator_dask.frames.record import SETTINGS, FileRecord
from curator_dask.image.classifiers.origins import Origin, find_origin, one_origin
from curator_dask.models.texts import TextSpec
from curator_dask.rows.reasons import NO_VECTOR, NOT_FINITE
from curator_dask.runs.fit import refresh_model
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Made, Rows, Work
from curator_dask.storage import Options
from curator_dask.text.embedders import TextEmbedder
from curator_dask.text.pairs import check_files, check_together
from curator_dask.tokens import tokenize

OUTPUTS = ("softmax", "cosine")

#: Vectors of prompts, of this process.
_PROMPTS: Remembered[np.ndarray] = POSSESSIONS.add("prompts", Remembered(8))


class ZeroShotClassifier:
    """Adds a column a label: how near an image's vector is to those of the label's prompts.

    A label's vector is the mean of its prompts' unit vectors, of length 1.

    Parameters
    ----------
    prompts
        By label, the texts that describe it: ``{"photo": ["a photo of a thing"], "screenshot": ["a screenshot"]}``.
    text
        Embeds the prompts, once a worker; with the tower beside it the images' vectors must have been made.
    output
        ``"softmax"``: the labels' shares, which add up to 1. ``"cosine"``: the plain cosines.
    scale
        By which cosines are multiplied before the softmax: 100 for OpenAI's CLIP.
    prefix
        Before each label in the name of its column.
    embedding_column
        Of the images' vectors.
    check
        See `ClipScore`.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        prompts: Mapping[str, Sequence[str]],
        text: TextEmbedder,
        *,
        output: str = "softmax",
        scale: float = 100.0,
        prefix: str = "",
        embedding_column: str = EMBEDDING_COLUMN,
        check: bool = True,
    ) -> None:
        if not isinstance(text, TextEmbedder):
            raise ConfigError(f"text={text!r}: expected a TextEmbedder, such as ClipTextEmbedder(model)")
        if output not in OUTPUTS:
            raise ConfigError(f"output={output!r}: expected one of {', '.join(OUTPUTS)}")
        if not isinstance(prompts, Mapping) or not prompts:
            raise ConfigError(f"prompts={prompts!r}: expected lists of texts by label")
        for label, texts in prompts.items():
            good = (
                not isinstance(texts, str)
                and len(texts)
                and all(isinstance(each, str) and each.strip() for each in texts)
            )
            if not isinstance(label, str) or not label or not good:
                raise ConfigError(
                    f"prompts[{label!r}]={texts!r}: expected text as label, and a list of texts that are not empty"
                )
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise ConfigError(f"scale={scale!r}: expected a number above 0, such as CLIP's 100")
        self.prompts = {label: tuple(texts) for label, texts in prompts.items()}
        self.text = text
        self.output = output
        self.scale = float(scale)
        self.prefix = prefix
        self.embedding_column = embedding_column
        self.check = check

    @property
    def pred_column(self) -> str:
        """The first of the new columns."""
        return self.prefix + next(iter(self.prompts))

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the columns; nothing is computed yet.

        Raises
        ------
        ConfigError
            The name of a column is not free.
        DatasetError
            The dataset has no such vectors, and nothing makes them.
        """
        taken = [name for name in map(self.prefix.__add__, self.prompts) if name in dataset.metadata.columns]
        if taken:
            raise ConfigError(f"the dataset has columns of its own named {taken}: give the labels a prefix")
        return dataset.apply(self.step(find_origin(dataset, self.embedding_column)))

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> LabelVectors:
        """The step for the vectors of files, by what made them; see `score_output`."""
        return self.step(one_origin(self.embedding_column, records))

    def step(self, images: Origin) -> LabelVectors:
        """What is done to the rows of a shard.

        Parameters
        ----------
        images
            What made the vectors.
        """
        spec = self.text.encoder_spec()
        prompts = tuple((self.prefix + label, texts) for label, texts in self.prompts.items())
        scale = self.scale if self.output == "softmax" else None
        files = tuple(spec.digests.items())
        token = tokenize(prompts, images, spec, files, scale, self.check)
        settings = json.dumps(self.settings())
        return LabelVectors(prompts, images, spec, files, scale, self.check, token, settings)

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again, JSON-able, and the class's name under ``"scorer"``."""
        return {"scorer": type(self).__name__, **vars(self), "text": self.text.settings()}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


@dataclass(frozen=True, eq=False)
class LabelVectors(RowStep):
    """The step of `ZeroShotClassifier`, with its settings.

    Attributes
    ----------
    prompts
        By column, the texts.
    images
        What made the vectors.
    encoder
        Builds the text model, once a worker.
    files
        SHA-256 of its files, as the client has them.
    scale
        Of the softmax; None: plain cosines.
    check
        Refuse vectors that do not belong together.
    token
        Of all these.
    settings
        JSON of the arguments that make the labels again.
    given_up
        Compute nothing: every row gets nulls and this reason.
    """

    prompts: tuple[tuple[str, tuple[str, ...]], ...]
    images: Origin
    encoder: TextSpec
    files: tuple[tuple[str, str], ...]
    scale: float | None
    check: bool
    token: str
    settings: str = "null"
    given_up: str | None = None

    needs = frozenset({"rows", "vectors"})

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.token, self.given_up)

    @property
    def label(self) -> str:
        """With the model."""
        return f"zero-shot labels ({self.encoder})"

    @property
    def names(self) -> list[str]:
        """Of the columns of labels."""
        return [name for name, _ in self.prompts]

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The labels, and why there is none."""
        return {**dict.fromkeys(self.names, pa.float32()), ERROR_COLUMN: pa.string()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a value besides the vectors."""
        spec = self.encoder
        model = (type(spec).__name__, self.files or spec.model_name, spec.normalize, spec.long_text)
        return ("zero-shot", 1, self.images.column, self.prompts, self.scale, *model)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of it."""
        recipe = fingerprint({"recipe": self.recipe})
        said = {"head": self.label, "vectors": self.images.column, "recipe": recipe, "checked": self.check}
        return {name: {**said, SETTINGS: json.loads(self.settings)} for name in self.names}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Embed the prompts, and see whether the vectors belong together; of vectors it makes none."""
        if self.given_up is None:
            self._vectors()
        return {}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the prompts' vectors ready for some rows."""
        ready = self.given_up is None and len(rows) > 0
        yield _Labelling(self, rows, self._vectors() if ready else None)

    def _vectors(self) -> np.ndarray:
        """Those of the labels: float32 (labels, dim), of length 1."""
        return _PROMPTS.get(self.token, self._embed)

    def _embed(self) -> np.ndarray:
        check_files(self.encoder, self.files)
        refresh_model(self.encoder)
        with ENCODERS.lease(self.encoder, self.encoder.build) as encoder:
            if self.check:
                check_together(self.images, encoder.info.to_dict(), None, self.label)
            means = [unit(encoder(texts, 64).vectors).mean(axis=0) for _, texts in self.prompts]
        return unit(np.stack(means))


class _Labelling(Work):
    """The labels of the rows of one partition.

    Parameters
    ----------
    step
        Which.
    rows
        The rows.
    vectors
        Of the labels; None: every row is given up, or there is none.
    """

    def __init__(self, step: LabelVectors, rows: Rows, vectors: np.ndarray | None) -> None:
        self._step, self._rows, self._vectors = step, rows, vectors

    def finish(self) -> Made:
        """The labels, null where there is a reason."""
        step, count = self._step, len(self._rows)
        if self._vectors is None:
            reasons = {name: [step.given_up] * count for name in step.names} if count else {}
            return Made({name: pa.nulls(count, pa.float32()) for name in step.names}, reasons)
        column = step.images.column
        matrix, valid = list_to_matrix(self._rows.column(column))
        if not valid.any():
            matrix = np.zeros((count, self._vectors.shape[1]), np.float32)
        if matrix.shape[1] != self._vectors.shape[1]:
            raise ShardError(
                f"{step.label}: {column!r} has vectors of {matrix.shape[1]} values, the prompts of"
                f" {self._vectors.shape[1]}: expected both from one model"
            )
        values = unit(matrix) @ self._vectors.T
        good = np.isfinite(values).all(axis=1) & valid & (matrix != 0).any(axis=1)
        if step.scale is not None:
            values = _softmax(values * step.scale)
        said: list[str | None] = [None] * count
        of_vectors = said if good.all() else self._rows.reasons(column)
        for row in np.flatnonzero(~good):
            lacking = of_vectors[row] or f"{NO_VECTOR}: {column} is null"
            said[row] = f"{NOT_FINITE}: a vector has no direction" if valid[row] else lacking
        made = {
            name: pa.array(values[:, number].astype(np.float32), mask=~good)
            for number, name in enumerate(step.names)
        }
        return Made(made, {} if good.all() else {name: list(said) for name in step.names})


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares
