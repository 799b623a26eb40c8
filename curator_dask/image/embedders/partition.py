"""Embedding one partition, on the worker that holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask import backend
from curator_dask.datasets.ids import exact_ids
from curator_dask.datasets.orphans import find_orphans
from curator_dask.datasets.reading import URL_COLUMN
from curator_dask.datasets.turns import turn
from curator_dask.datasets.writing import ERROR_COLUMN
from curator_dask.decode.loader import Loader, LoaderSpec
from curator_dask.errors import CuratorError, ImageError
from curator_dask.frames.columns import to_array, vectors_to_list, with_columns
from curator_dask.models.cache import ENCODERS, LOADERS
from curator_dask.models.encoders import Encoder, EncoderInfo, EncoderSpec
from curator_dask.progress import report
from curator_dask.webdataset.index import warn_once
from curator_dask.webdataset.reader import ShardReader
from curator_dask.webdataset.remarks import fact_of, remark

#: Where img2dataset says why an image is not in the tar.
STATUS_COLUMN = "status"


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
                spec = self._loader_spec(encoder)
                with LOADERS.lease(spec, lambda: Loader(spec)) as loader:
                    matrix = self._embed(encoder, loader, ids, urls, errors)
        else:
            matrix = np.empty((0, 0), np.float32)
        valid = np.array([error is None for error in errors], bool)
        if STATUS_COLUMN in frame.columns:
            _add_status(errors, _texts(to_array(frame[STATUS_COLUMN])))
        others = [name for name in self.others if name in frame.columns]
        if others and ERROR_COLUMN in frame.columns:
            lacking = np.any([to_array(frame[name]).is_null() for name in others], axis=0)
            before = to_array(frame[ERROR_COLUMN]).to_pylist()
            errors = [
                new or (old if lacks else None)
                for new, old, lacks in zip(errors, before, lacking, strict=True)
            ]
        return with_columns(
            frame, {self.column: vectors_to_list(matrix, valid), ERROR_COLUMN: pa.array(errors, pa.string())}
        )

    def describe(self) -> EncoderInfo:
        """Load the model and say what it is; run on a worker, where the model then stays."""
        with ENCODERS.lease(self.encoder, self.encoder.build) as encoder:
            return encoder.info

    def _loader_spec(self, encoder: Encoder) -> LoaderSpec:
        import torch

        device = backend.current().device
        # On a CPU more decoding threads than the worker's cores would only take turns with the model's.
        share = torch.get_num_threads() if device == "cpu" else self.num_threads
        return LoaderSpec(
            transform=encoder.transform,
            batch_size=self.batch_size,
            num_threads=min(self.num_threads, share),
            decoder=self.decoder,
            max_pixels=self.max_pixels,
            device=device,
        )

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
        for batch in loader.load(self._images(ids, urls)):
            for row, reason in batch.errors.items():
                self._fail(row, reason, ids, urls, errors)
            vectors = encoder(batch.pixels)
            finite = np.isfinite(vectors).all(axis=1)
            matrix[batch.positions[finite]] = vectors[finite]
            for row in batch.positions[~finite]:
                reason = f"not finite: the model ({encoder.info.dtype}) gave NaN or infinity"
                self._fail(int(row), reason, ids, urls, errors)
            report(
                images=len(batch.positions) + len(batch.errors),
                failed=len(batch.errors) + int((~finite).sum()),
            )
        return matrix

    def _images(self, ids: list[Any], urls: list[str | None]) -> Iterator[tuple[int, Any]]:
        """(row, encoded bytes) or (row, the error in their place) of all rows, shard by shard, in tar order."""
        rows_of: dict[str | None, list[int]] = {}
        for row, url in enumerate(urls):
            rows_of.setdefault(url, []).append(row)
        for url, rows in rows_of.items():
            if url is None:
                yield from (
                    (row, ImageError("missing: the row has no shard (__url__ is null)")) for row in rows
                )
                continue
            with ShardReader(
                url, use_index_files=self.use_index_files, storage_options=self.storage_options
            ) as reader:
                index = reader.index
                if index.duplicates:
                    some = ", ".join(index.duplicates[:3])
                    warn_once(f"{url}: {len(index.duplicates)} names occur again, the first is taken: {some}")
                wanted = [ids[row] for row in rows]
                found = index.find(wanted)
                if (found < 0).any() and not index.scanned:
                    listed, index = index, reader.rescan()
                    found = index.find(wanted)
                    if index.samples != listed.samples:
                        warn_once(
                            f"{url[:-4]}.idx: the index file does not fit {url}: the tar is scanned instead"
                        )
                for position, row in sorted(zip(found.tolist(), rows, strict=True)):
                    if position < 0:
                        cut = f"; the tar is damaged: {index.problem}" if index.problem else ""
                        yield row, ImageError(f"missing: no sample {ids[row]!r} in the tar{cut}")
                        continue
                    member = index.samples[position].image()
                    if member is None:
                        yield row, ImageError("missing: the sample has no image")
                        continue
                    try:
                        image: Any = reader.read(member)
                    except CuratorError as error:
                        image = error
                    yield row, image
                if reader.index is not index:  # what was read showed the index file to be out of date
                    index = reader.index
                    found = index.find(wanted)
                remark(url, "damaged", index.problem)
                remark(url, "duplicates", fact_of(index.duplicates))
                remark(url, "orphans", find_orphans(url, index, found, self.id_col, self.storage_options))

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


def _texts(column: pa.Array) -> list[Any]:
    """The values; of text that is not UTF-8 what can be read of it."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "replace") for value in raw]


def _add_status(errors: list[str | None], statuses: list[Any]) -> None:
    """Let a missing image's reason say what the downloader knew about it."""
    for row, (reason, status) in enumerate(zip(errors, statuses, strict=True)):
        if reason is not None and reason.startswith("missing") and status is not None:
            errors[row] = f"{reason} (status: {status})"
