"""What a model sees in whole images, as columns: what the steps share that classify them, or write about them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import pyarrow as pa

from curator_dask.cache import ENCODERS
from curator_dask.decode.spec import ImageOptions
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.runs.fit import refresh_model
from curator_dask.runs.passes import run_steps
from curator_dask.runs.step import CLASSES, Known, Made, Reading, Rows, Work, read_by
from curator_dask.storage import Options


class SeeImages(ABC):
    """Base of steps with a model that gives columns of an image, which have their values, and lack them, together.

    Why a row lacks them is said once, of the first of them.

    A subclass is a frozen dataclass with these fields.

    Attributes
    ----------
    spec
        Builds the model, once a worker.
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

    spec: Any
    id_col: str
    options: ImageOptions
    storage_options: Options
    settings: str
    given_up: str | None

    #: A row comes out for each that goes in.
    keeps_rows = True
    needs = frozenset({"rows", "pixels"})

    @property
    @abstractmethod
    def kinds(self) -> Mapping[str, tuple[Any, ...]]:
        """What each column is, without ``image_error``; the first word of it says it shortly."""

    @property
    @abstractmethod
    def types(self) -> Mapping[str, pa.DataType]:
        """Of the same columns."""

    @property
    @abstractmethod
    def recipe(self) -> tuple[Any, ...]:
        """What is made of which images, besides the model, which `describe` tells."""

    @abstractmethod
    def work(self, rows: Rows, model: Any) -> Work:
        """Look at the images of some rows."""

    def describe(self) -> dict[str, dict[str, Any]]:
        """Load the model and say what it is; run on a worker, where the model then stays."""
        refresh_model(self.spec)
        with ENCODERS.lease(self.spec, self.spec.build) as model:
            return {name: dict(model.info) for name in self.kinds}

    @property
    def label(self) -> str:
        """The model's name."""
        return str(self.spec)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """What is seen, and why nothing is."""
        return {**self.types, ERROR_COLUMN: pa.string()}

    @property
    def column(self) -> str:
        """The first of them, for all."""
        return next(iter(self.kinds))

    @property
    def nullable(self) -> frozenset[str]:
        """Those of them that may be null without a reason."""
        return frozenset()

    @property
    def sure(self) -> str:
        """The first of them that only rows lack that have failed."""
        return next(name for name in self.kinds if name not in self.nullable)

    @property
    def arguments(self) -> dict[str, Any]:
        """For one of the columns, what makes all of them again."""
        return {self.column: json.loads(self.settings)}

    @property
    def read_by(self) -> dict[str, str]:
        """By column, what it is and how images are read."""
        how = read_by(self.id_col, self.options)
        return {name: f"{kind[0]} {CLASSES} {how}" for name, kind in self.kinds.items()}

    def give_up(self, reason: str) -> Self:
        """The same, but no tar is opened and no model loaded: every row gets this reason."""
        return replace(self, given_up=reason)  # type: ignore[type-var]

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
                yield self.work(rows, model)
            return
        known = None if self.given_up is not None else self._known(rows)
        nothing = {name: pa.nulls(len(rows), kind) for name, kind in self.types.items()}
        yield Known(self.made(rows, *(known or (nothing, [self.given_up] * len(rows)))))

    def made(self, rows: Rows, values: dict[str, pa.Array], reasons: list[str | None]) -> Made:
        """The columns of some rows, which all lack their values for one reason."""
        return Made(values, {self.column: reasons})

    def _known(self, rows: Rows) -> tuple[dict[str, pa.Array], list[str | None]] | None:
        return rows.known_columns(self.types, self.column, nullable=self.nullable)

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
