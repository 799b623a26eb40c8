"""Classifying the images of one partition, on the worker that holds it: the step of `ClassificationModel`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import ENCODERS
from curator_dask.decode.batches import Batch
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ImageError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.record import CHOSEN
from curator_dask.image.classifiers.seeing import SeeImages
from curator_dask.models.classification import Classification, ClassificationSpec
from curator_dask.runs.fit import refresh_model
from curator_dask.runs.step import CLASSES, Made, Rows, Wanted, Work
from curator_dask.storage import Options

_LABEL, _SCORE = "label", "score"


@dataclass(frozen=True)
class ClassifyImages(SeeImages):
    """The step that adds what a model sees in the images of a partition.

    Attributes
    ----------
    spec
        Builds the model, once a worker; it has the columns of chosen classes, without their prefix.
    prefix
        Before the name of each column.
    with_label
        Whether the likeliest class has its columns.
    id_col, options, storage_options, settings, given_up
        See `SeeImages`.
    """

    spec: ClassificationSpec
    prefix: str
    with_label: bool
    id_col: str
    options: ImageOptions
    storage_options: Options = None
    settings: str = "null"
    given_up: str | None = None

    @property
    def kinds(self) -> dict[str, tuple[Any, ...]]:
        """What each column is: the likeliest class, its score, or the names of classes."""
        kinds: dict[str, tuple[Any, ...]] = {_LABEL: (_LABEL,), _SCORE: (_SCORE,)} if self.with_label else {}
        kinds |= {column: ("classes", *classes) for column, classes in self.spec.classes}
        return {self.prefix + name: kind for name, kind in kinds.items()}

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Of the columns, without ``image_error``."""
        return {name: pa.string() if kind == (_LABEL,) else pa.float32() for name, kind in self.kinds.items()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What is made of which images, besides the model and its classes, which `describe` tells by their numbers."""
        options = self.options
        kinds = tuple((name, kind[0]) for name, kind in self.kinds.items())
        return (CLASSES, self.id_col, kinds, options.decoder, options.max_pixels, *options.named)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of it."""
        return {
            name: {
                "head": self.label,
                "recipe": fingerprint({CLASSES: kind}),
                "classes": " + ".join(map(str, kind[1:])) if len(kind) > 1 else kind[0],
            }
            for name, kind in self.kinds.items()
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Load the model and say what it is; run on a worker, where the model then stays.

        Classes are told by their numbers (`CHOSEN`): one has several names, which only the model knows.
        """
        refresh_model(self.spec)
        with ENCODERS.lease(self.spec, self.spec.build) as model:
            names = [self.prefix + column for column, _ in self.spec.classes]
            chosen = dict(zip(names, map(list, model.chosen), strict=True))
            return {
                name: {**model.info, CHOSEN: chosen.get(name, kind[0])} for name, kind in self.kinds.items()
            }

    def work(self, rows: Rows, model: Classification) -> Work:
        """Classify the images of some rows."""
        return _Classifying(self, rows, model)


class _Classifying(Work):
    """What is seen in the images of the rows of one partition, as they come."""

    def __init__(self, step: ClassifyImages, rows: Rows, model: Classification) -> None:
        self._step, self._rows, self._model = step, rows, model
        self._best = np.zeros(len(rows), np.int64)
        self._score = np.zeros(len(rows), np.float32)
        self._chosen = np.zeros((len(rows), len(step.spec.classes)), np.float32)
        self._reasons: list[str | None] = [None] * len(rows)
        encoder = model.encoder
        size = encoder.batch_of(step.options.batch_size)
        self.wanted = Wanted(encoder.transform, replace(step.options, batch_size=size))

    def take(self, batch: Batch) -> set[int]:
        """Classify some images."""
        for row, reason in batch.errors.items():
            self._fail(row, reason)
        seen, rows = self._model(batch.pixels), batch.positions
        self._best[rows], self._score[rows], self._chosen[rows] = seen.best, seen.score, seen.chosen
        bad = set(rows[~seen.finite].tolist())
        for row in bad:
            self._fail(row, self._model.encoder.not_finite)
        return bad

    def finish(self) -> Made:
        """The columns, null where there is a reason."""
        lacking = np.array([reason is not None for reason in self._reasons], bool)
        values: list[pa.Array] = []
        if self._step.with_label:
            labels = pa.array(self._model.names, pa.string()).take(pa.array(self._best, mask=lacking))
            values = [labels, pa.array(self._score, mask=lacking)]
        values += [pa.array(each, mask=lacking) for each in self._chosen.T]
        return self._step.made(self._rows, dict(zip(self._step.kinds, values, strict=True)), self._reasons)

    def _fail(self, row: int, reason: str) -> None:
        if self._step.options.on_error == "raise":
            raise ImageError(
                f"{self._rows.image_of(row, self._step.id_col)}: {reason}. With on_error='null' such rows have no"
                " classes and the run goes on"
            )
        self._reasons[row] = reason
