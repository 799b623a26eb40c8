"""Embedding one partition, on the worker that holds it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
from dask.tokenize import normalize_token

from curator_dask.cache import ENCODERS
from curator_dask.decode.batches import Batch
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ImageError
from curator_dask.frames.columns import EMBEDDING_TYPE, vectors_to_list
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.image.embedders.covering import CoveredImages, said_of_cover, same_boxes
from curator_dask.models.encoders import Encoder, EncoderSpec
from curator_dask.runs.fit import refresh_model
from curator_dask.runs.passes import run_steps
from curator_dask.runs.step import CLASSES, Made, Reading, Rows, Wanted, Work, read_by
from curator_dask.tokens import token_of_class


@dataclass(frozen=True)
class EmbedPartition:
    """The step that adds an embedding and ``image_error`` to the rows of a partition.

    Rows find their images by shard (``__url__``) and key, so it does not matter which rows a partition holds,
    in which order, or from how many shards.

    The fields are flat and have this order because Dask's names of mixed frames are made of them, and those names
    are in the files of such frames.

    Attributes
    ----------
    encoder
        Builds the model, once a worker.
    id_col, column
        Columns of the key and of the embedding.
    batch_size, num_threads, decoder, max_pixels, on_error, use_index_files
        See `ImageEmbedder`.
    others
        Other embedding columns that the frame had when the step was made.
    storage_options
        For fsspec.
    given_up
        Open no tar and load no model: every row gets a null vector and this reason.
    settings
        JSON of the arguments that make the embedder again; ``null`` for one of the user's own.
    image_member, gray16, orientation, decode_scale, cover
        See `ImageEmbedder`.
    """

    encoder: EncoderSpec
    id_col: str
    column: str
    batch_size: int
    num_threads: int
    decoder: str
    max_pixels: int
    on_error: str
    use_index_files: bool
    others: tuple[str, ...]
    storage_options: Mapping[str, Any] | None = None
    given_up: str | None = None
    settings: str = "null"
    image_member: str | None = None
    gray16: str = "scale"
    orientation: str = "stored"
    decode_scale: str = "exact"
    cover: str | None = None

    #: A row comes out for each that goes in.
    keeps_rows = True
    needs = frozenset({"rows", "pixels"})

    @property
    def options(self) -> ImageOptions:
        """How its images are read, decoded and put into batches."""
        return ImageOptions.of(self, self.num_threads)

    def __dask_tokenize__(self) -> Any:
        """As Dask makes it of a dataclass, without later options at their default: earlier files know none of them."""
        parameters = self.__dataclass_params__  # type: ignore[attr-defined]
        return (
            token_of_class(type(self)),
            [(name, getattr(parameters, name)) for name in parameters.__slots__],
            [
                (each.name, normalize_token(getattr(self, each.name)))
                for each in fields(self)
                if each.name not in ("image_member", "gray16", "orientation", "decode_scale", "cover")
                or getattr(self, each.name) != each.default
            ],
        )

    @property
    def label(self) -> str:
        """The model's name."""
        return str(self.encoder)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The vectors, and why there is none."""
        return {self.column: EMBEDDING_TYPE, ERROR_COLUMN: pa.string()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a vector besides the model, which is described by itself: not how fast it is made."""
        covered = () if self.cover is None else (tuple(said_of_cover(self.cover).items()),)
        how = (self.decoder, self.max_pixels, *self.options.named)
        return ("embed", self.id_col, self.column, *how, *covered)

    @property
    def awaits(self) -> tuple[str, ...]:
        """The column of the boxes, where they are covered."""
        return () if self.cover is None else (self.cover,)

    @property
    def arguments(self) -> dict[str, Any]:
        """By column, the arguments that make the embedder again."""
        return {self.column: json.loads(self.settings)}

    @property
    def read_by(self) -> dict[str, str]:
        """What decides a vector besides the model and the shard."""
        how = read_by(self.id_col, self.options)
        # As of what else is seen in images: what it is, and then how these are read.
        return {
            self.column: how
            if self.cover is None
            else f"{said_of_cover(self.cover)['cover']} {CLASSES} {how}"
        }

    def reading(self, rows: Rows) -> Reading | None:
        """How the images of these rows are read; None where nothing is to be opened."""
        if self.given_up is not None or not len(rows) or self.known(rows) is not None:
            return None
        return Reading.of(self.id_col, self.options, self.storage_options)

    def give_up(self, reason: str) -> EmbedPartition:
        """The same, but no tar is opened and no model loaded: every row gets this reason."""
        return replace(self, given_up=reason)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Load the model and say what it is; run on a worker, where the model then stays."""
        refresh_model(self.encoder)
        with ENCODERS.lease(self.encoder, self.encoder.build) as encoder:
            covered = {} if self.cover is None else said_of_cover(self.cover)
            return {self.column: {**encoder.info.to_dict(), **covered}}

    def known(self, rows: Rows) -> tuple[np.ndarray, list[str | None]] | None:
        """The vectors that an earlier run has made of all of these rows, and reasons; None: they are to be made."""
        known = rows.known(self.column, self.id_col)
        if known is None or self.cover is None or same_boxes(self.cover, rows, self.id_col):
            return known
        return None

    def __call__(self, frame: Any) -> Any:
        """The frame with the two columns, its rows in the same order.

        Raises
        ------
        ShardError
            A shard cannot be read at all.
        ImageError
            An image cannot be used, and `on_error` is ``"raise"``.
        """
        return run_steps((self,), frame)

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the model ready for the images of some rows."""
        if self.reading(rows) is None:
            yield _Embedding(self, rows, None)
            return
        with ENCODERS.lease(self.encoder, self.encoder.build) as encoder:
            if self.cover is None:
                yield _Embedding(self, rows, encoder)
                return
            images = CoveredImages(self.cover, rows, encoder.transform, self.options)
            with closing(images):
                yield _Embedding(self, rows, encoder, images)


class _Embedding(Work):
    """The vectors of the rows of one partition, as they come.

    Parameters
    ----------
    step
        Which.
    rows
        The rows.
    encoder
        None: every row is given up, or its vector known.
    images
        Cover boxes; None: nothing is covered.
    """

    def __init__(
        self, step: EmbedPartition, rows: Rows, encoder: Encoder | None, images: CoveredImages | None = None
    ) -> None:
        self._step, self._rows, self._encoder, self._images = step, rows, encoder, images
        self._matrix = np.zeros((len(rows), 0 if encoder is None else encoder.dim), np.float32)
        self._reasons: list[str | None] = [step.given_up] * len(rows)
        if encoder is not None:
            size = encoder.batch_of(step.batch_size)
            transform = encoder.transform if images is None else None
            self.wanted = Wanted(transform, replace(step.options, batch_size=size))
            return
        known = step.known(rows) if len(rows) and step.given_up is None else None
        if known is not None:
            self._matrix, self._reasons = known
        for row, reason in enumerate(self._reasons):
            if reason is not None:
                self._fail(row, reason)

    def take(self, batch: Batch) -> set[int]:
        """Embed some images."""
        encoder = self._encoder
        assert encoder is not None
        for row, reason in batch.errors.items():
            self._fail(row, reason)
        positions, pixels = batch.positions, batch.pixels
        reasons: Mapping[int, str] = {}
        if self._images is not None:
            positions, pixels, reasons = self._images(batch)
        vectors = encoder(pixels)
        finite = np.isfinite(vectors).all(axis=1)
        self._matrix[positions[finite]] = vectors[finite]
        bad = dict.fromkeys(positions[~finite].tolist(), encoder.not_finite) | dict(reasons)
        for row, reason in bad.items():
            self._fail(row, reason)
        return {*bad}

    def finish(self) -> Made:
        """The vectors, null where there is a reason."""
        valid = np.array([reason is None for reason in self._reasons], bool)
        name = self._step.column
        return Made({name: vectors_to_list(self._matrix, valid)}, {name: self._reasons})

    def _fail(self, row: int, reason: str) -> None:
        if self._step.on_error == "raise":
            raise ImageError(
                f"{self._rows.image_of(row, self._step.id_col)}: {reason}. With on_error='null' such rows get a null"
                " vector and the run goes on"
            )
        self._reasons[row] = reason
