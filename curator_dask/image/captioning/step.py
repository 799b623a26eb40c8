"""Writing about the images of one partition, on the worker that holds it: the step of `CaptionModel`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from curator_dask.decode.batches import Batch
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ImageError
from curator_dask.fingerprint import fingerprint
from curator_dask.image.captioning.remarks import remark_captions
from curator_dask.image.classifiers.seeing import SeeImages
from curator_dask.models.by_shape import AHEAD
from curator_dask.models.captioner import Caption, Captioner
from curator_dask.models.captioning import CaptionSpec
from curator_dask.runs.step import Made, Rows, Wanted, Work
from curator_dask.storage import Options

#: Of how captions are made: it changes with what they come to.
_VERSION = "captions 1"
_NAMES = {"caption": "", "cut": "_cut"}


@dataclass(frozen=True)
class CaptionImages(SeeImages):
    """The step that adds what a model writes about the images of a partition.

    Attributes
    ----------
    spec
        Builds the model, once a worker.
    name
        Of the column of texts; that of a second, which says where one was cut, begins with it.
    id_col, options, storage_options, settings, given_up
        See `SeeImages`.
    """

    spec: CaptionSpec
    name: str
    id_col: str
    options: ImageOptions
    storage_options: Options = None
    settings: str = "null"
    given_up: str | None = None

    @property
    def kinds(self) -> dict[str, tuple[Any, ...]]:
        """The text, and whether it was cut."""
        return {self.name + ends: (kind,) for kind, ends in _NAMES.items()}

    @property
    def nullable(self) -> frozenset[str]:
        """The text: the model may write nothing."""
        return frozenset([self.name])

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Of the columns, without ``image_error``."""
        return dict(zip(self.kinds, (pa.string(), pa.bool_()), strict=True))

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What is made of which images, besides the model, its prompt and its search, which `describe` tells."""
        options = self.options
        return (_VERSION, self.id_col, self.name, options.decoder, options.max_pixels, *options.named)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of it."""
        return {
            name: {"head": self.label, "recipe": fingerprint({_VERSION: kind})}
            for name, kind in self.kinds.items()
        }

    def made(self, rows: Rows, values: dict[str, pa.Array], reasons: list[str | None]) -> Made:
        """The same; how many texts there are, and how many are cut or lacking, goes into the summary."""
        texts, cut = values.values()
        remark_captions(rows, self.id_col, texts, cut, self.spec.max_new_tokens)
        return super().made(rows, values, reasons)

    def work(self, rows: Rows, model: Captioner) -> Work:
        """Write about the images of some rows."""
        return _Writing(self, rows, model)


class _Writing(Work):
    """What is written about the images of the rows of one partition, as they come."""

    def __init__(self, step: CaptionImages, rows: Rows, model: Captioner) -> None:
        self._step, self._rows, self._model = step, rows, model
        self._captions = [Caption(None)] * len(rows)
        # Whole images: the model's processor does the rest.
        self.wanted = Wanted(None, replace(step.options, batch_size=AHEAD * step.options.batch_size))

    def take(self, batch: Batch) -> set[int]:
        """Write about some images."""
        for row, reason in batch.errors.items():
            self._put(row, Caption(None, reason=reason))
        texts = self._model(batch.pixels, self._step.options.batch_size)
        written = dict(zip(batch.positions.tolist(), texts, strict=True))
        for row, caption in written.items():
            self._put(row, caption)
        return {row for row, caption in written.items() if caption.reason is not None}

    def finish(self) -> Made:
        """The columns, null where there is a reason; the text also where the model wrote nothing."""
        found = self._captions
        texts = pa.array([each.text for each in found], pa.string())
        cut = pa.array([each.cut if each.reason is None else None for each in found], pa.bool_())
        made = dict(zip(self._step.kinds, (texts, cut), strict=True))
        return self._step.made(self._rows, made, [each.reason for each in found])

    def _put(self, row: int, caption: Caption) -> None:
        if caption.reason is not None and self._step.options.on_error == "raise":
            raise ImageError(
                f"{self._rows.image_of(row, self._step.id_col)}: {caption.reason}. With on_error='null' such rows have"
                " no caption and the run goes on"
            )
        self._captions[row] = caption
