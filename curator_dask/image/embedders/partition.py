"""Embedding one partition, on the worker that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import ENCODERS, LOADERS
from curator_dask.cluster.progress import report
from curator_dask.decode.loader import Loader
from curator_dask.decode.spec import LoaderSpec
from curator_dask.errors import ImageError
from curator_dask.frames.columns import to_array, vectors_to_list, with_columns
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.models.encoders import Encoder, EncoderInfo, EncoderSpec
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.images import add_status, keep_reasons, read_images
from curator_dask.runs.turns import turn


@dataclass(frozen=True)
class EmbedPartition:
    """Adds the embedding and ``image_error`` to a partition; the node of the graph that does the work.

    Rows find their images by shard (``__url__``) and key, so it does not matter which rows a partition holds,
    in which order, or from how many shards.

    Attributes
    ----------
    encoder
        Builds the model, once a worker.
    id_col, column
        Columns of the key and of the embedding.
    batch_size, num_threads, decoder, max_pixels, on_error, use_index_files
        See `ImageEmbedder`.
    others
        Other embedding columns of the frame: where one of them is null the ``image_error`` that is there already
        says why, and is kept.
    storage_options
        For fsspec.
    settings
        JSON of the arguments that make the embedder again; ``null`` for one of the user's own.
    given_up
        Open no tar and load no model: every row gets a null vector and this reason.
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

    #: A row comes out for each that goes in.
    keeps_rows = True

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a vector besides the model, which is described by itself: not how fast it is made."""
        return ("embed", self.id_col, self.column, self.decoder, self.max_pixels)

    def __call__(self, frame: Any) -> Any:
        """The frame with the two columns, its rows in the same order.

        Raises
        ------
        ShardError
            A shard cannot be read at all.
        ImageError
            An image cannot be used, and `on_error` is ``"raise"``.
        """
        ids = exact_ids(to_array(frame[self.id_col]))
        urls = to_array(frame[URL_COLUMN]).to_pylist()
        errors: list[str | None] = [None] * len(ids)
        if self.given_up is not None:
            matrix = self._give_up(ids, urls, errors)
        elif len(ids):
            first = next((url for url in urls if url is not None), None)
            with (
                turn(first, self.storage_options),
                ENCODERS.lease(self.encoder, self.encoder.build) as encoder,
            ):
                spec = LoaderSpec.here(
                    encoder.transform, self.batch_size, self.num_threads, self.decoder, self.max_pixels
                )
                with LOADERS.lease(spec, lambda: Loader(spec)) as loader:
                    matrix = self._embed(encoder, loader, ids, urls, errors)
        else:
            matrix = np.empty((0, 0), np.float32)
        valid = np.array([error is None for error in errors], bool)
        errors = keep_reasons(add_status(errors, frame), frame, self.others)
        return with_columns(
            frame, {self.column: vectors_to_list(matrix, valid), ERROR_COLUMN: pa.array(errors, pa.string())}
        )

    def give_up(self, reason: str) -> EmbedPartition:
        """The same, but no tar is opened and no model loaded: every row gets this reason."""
        return replace(self, given_up=reason)

    def describe(self) -> EncoderInfo:
        """Load the model and say what it is; run on a worker, where the model then stays."""
        with ENCODERS.lease(self.encoder, self.encoder.build) as encoder:
            return encoder.info

    def _embed(
        self,
        encoder: Encoder,
        loader: Loader,
        ids: list[Any],
        urls: list[str | None],
        errors: list[str | None],
    ) -> np.ndarray:
        """float32 (rows, dim), zeros where `errors` has a reason."""
        matrix = np.zeros((len(ids), encoder.dim), np.float32)
        images = read_images(
            ids,
            urls,
            self.id_col,
            use_index_files=self.use_index_files,
            storage_options=self.storage_options,
        )
        # Closed at once also where the model fails: its traceback would keep the loader busy.
        with closing(loader.load(images)) as batches:  # type: ignore[type-var]
            for batch in batches:
                for row, reason in batch.errors.items():
                    self._fail(row, reason, ids, urls, errors)
                vectors = encoder(batch.pixels)
                finite = np.isfinite(vectors).all(axis=1)
                matrix[batch.positions[finite]] = vectors[finite]
                for row in batch.positions[~finite]:
                    self._fail(int(row), encoder.not_finite, ids, urls, errors)
                report(
                    images=len(batch.positions) + len(batch.errors),
                    failed=len(batch.errors) + int((~finite).sum()),
                )
        return matrix

    def _give_up(self, ids: list[Any], urls: list[str | None], errors: list[str | None]) -> np.ndarray:
        for row in range(len(ids)):
            self._fail(row, str(self.given_up), ids, urls, errors)
        report(images=0, failed=len(ids))
        return np.zeros((len(ids), 0), np.float32)

    def _fail(
        self, row: int, reason: str, ids: list[Any], urls: list[str | None], errors: list[str | None]
    ) -> None:
        if self.on_error == "raise":
            raise ImageError(
                f"{urls[row]}: image of {self.id_col}={ids[row]!r}: {reason}. With on_error='null' such rows get a"
                " null vector and the run goes on"
            )
        errors[row] = reason
