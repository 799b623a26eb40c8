"""Classifying the images of one partition, on the worker that holds it: the step of `ClassificationModel`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import ENCODERS
from curator_dask.decode.batches import Batch
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ImageError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.frames.record import CHOSEN
from curator_dask.models.classification import Classification, ClassificationSpec
from curator_dask.runs.fit import refresh_model
from curator_dask.runs.passes import run_steps
from curator_dask.runs.step import CLASSES, Known, Made, Reading, Rows, Wanted, Work, read_by
from curator_dask.storage import Options

_LABEL, _SCORE = "label", "score"


@dataclass(frozen=True)
class ClassifyImages:
    """The step that adds what a model sees in the images of a partition.

    Attributes
    ----------
    spec
        Builds the model, once a worker; it has the columns of chosen classes, without their prefix.
    prefix
        Before the name of each column.
    with_label
        Whether the likeliest class has its columns.
    id_col
        Column of the keys.
    options
        How images are read.
    storage_options
        For fsspec, where shards are URLs.
    settings
        JSON of the arguments that make it again.
    given_up
        Why nothing is to be opened and no model loaded, if so.
    """

    spec: ClassificationSpec
    prefix: str
    with_label: bool
    id_col: str
    options: ImageOptions
    storage_options: Options = None
    settings: str = "null"
    given_up: str | None = None

    #: A row comes out for each that goes in.
    keeps_rows = True
    needs = frozenset({"rows", "pixels"})

    @property
    def label(self) -> str:
        """The model's name."""
        return str(self.spec)

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
    def columns(self) -> dict[str, pa.DataType]:
        """The classes, and why there are none."""
        return {**self.types, ERROR_COLUMN: pa.string()}

    @property
    def column(self) -> str:
        """The first of them, for all: they have their values, and lack them, together."""
        return next(iter(self.kinds))

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

    @property
    def arguments(self) -> dict[str, Any]:
        """For one of the columns, what makes all of them again."""
        return {self.column: json.loads(self.settings)}

    @property
    def read_by(self) -> dict[str, str]:
        """By column, what it is and how images are read."""
        how = read_by(self.id_col, self.options)
        return {name: f"{kind[0]} {CLASSES} {how}" for name, kind in self.kinds.items()}

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

    def give_up(self, reason: str) -> ClassifyImages:
        """The same, but no tar is opened and no model loaded: every row gets this reason."""
        return replace(self, given_up=reason)

    def reading(self, rows: Rows) -> Reading | None:
        """How the images of these rows are read; None where nothing is to be opened."""
        if self.given_up is not None or not len(rows) or self._known(rows) is not None:
            return None
        return Reading.of(self.id_col, self.options, self.storage_options)

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the model ready for the images of some rows."""
        if self.reading(rows) is not None:
            with ENCODERS.lease(self.spec, self.spec.build) as model:
                yield _Classifying(self, rows, model)
            return
        known = None if self.given_up is not None else self._known(rows)
        nothing = {name: pa.nulls(len(rows), kind) for name, kind in self.types.items()}
        yield Known(self.made(*(known or (nothing, [self.given_up] * len(rows)))))

    def made(self, values: dict[str, pa.Array], reasons: list[str | None]) -> Made:
        """The columns of some rows, which all lack their values for one reason."""
        return Made(values, {name: list(reasons) for name in self.kinds})

    def _known(self, rows: Rows) -> tuple[dict[str, pa.Array], list[str | None]] | None:
        return rows.known_columns(self.types, self.column)

    def __call__(self, frame: Any) -> Any:
        """The frame with the columns, its rows in the same order.

        Raises
        ------
        ShardError
            A shard cannot be read at all.
        ImageError
            An image cannot be used, and `on_error` is ``"raise"``.
        """
        return run_steps((self,), frame)


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
        return self._step.made(dict(zip(self._step.kinds, values, strict=True)), self._reasons)

    def _fail(self, row: int, reason: str) -> None:
        if self._step.options.on_error == "raise":
            raise ImageError(
                f"{self._rows.image_of(row, self._step.id_col)}: {reason}. With on_error='null' such rows have no"
                " classes and the run goes on"
            )
        self._reasons[row] = reason
