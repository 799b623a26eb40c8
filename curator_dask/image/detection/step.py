"""Finding things in the images of one partition, on the worker that holds it: the step of `DetectionModel`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.decode.batches import Batch
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ImageError
from curator_dask.fingerprint import fingerprint
from curator_dask.image.classifiers.seeing import SeeImages
from curator_dask.image.detection.remarks import remark_detections
from curator_dask.models.by_shape import AHEAD
from curator_dask.models.detecting import DetectionSpec
from curator_dask.models.detector import Detections, Detector
from curator_dask.runs.step import Made, Rows, Wanted, Work
from curator_dask.storage import Options

#: Of how columns are made of what a model finds: it changes with what they come to.
_VERSION = "boxes 1"
#: By what is behind the prefix. Scores are doubles, as columns of lists of float32 are vectors.
_TYPES = {
    "boxes": pa.list_(pa.list_(pa.float32())),
    "labels": pa.list_(pa.string()),
    "scores": pa.list_(pa.float64()),
    "number": pa.int32(),
    "area": pa.float32(),
}


@dataclass(frozen=True)
class DetectImages(SeeImages):
    """The step that adds what a model finds in the images of a partition.

    Attributes
    ----------
    spec
        Builds the model, once a worker.
    prefix
        Of the columns' names.
    id_col, options, storage_options, settings, given_up
        See `SeeImages`.
    """

    spec: DetectionSpec
    prefix: str
    id_col: str
    options: ImageOptions
    storage_options: Options = None
    settings: str = "null"
    given_up: str | None = None

    @property
    def kinds(self) -> dict[str, tuple[Any, ...]]:
        """Boxes, their labels and scores; how many they are, and what share of the image they cover."""
        return {f"{self.prefix}_{kind}": (kind,) for kind in _TYPES}

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Of the columns, without ``image_error``."""
        return dict(zip(self.kinds, _TYPES.values(), strict=True))

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What is made of which images, besides the model, its prompts and threshold, which `describe` tells."""
        options = self.options
        return (_VERSION, self.id_col, self.prefix, options.decoder, options.max_pixels, *options.named)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of it."""
        return {
            name: {"head": self.label, "recipe": fingerprint({_VERSION: kind})}
            for name, kind in self.kinds.items()
        }

    def made(self, rows: Rows, values: dict[str, pa.Array], reasons: list[str | None]) -> Made:
        """The same; in how many images something was found, and of which label, goes into the summary."""
        remark_detections(rows, self.id_col, self.prefix, values[f"{self.prefix}_labels"])
        return super().made(rows, values, reasons)

    def work(self, rows: Rows, model: Detector) -> Work:
        """Find things in the images of some rows."""
        return _Finding(self, rows, model)


class _Finding(Work):
    """What is found in the images of the rows of one partition, as they come."""

    def __init__(self, step: DetectImages, rows: Rows, model: Detector) -> None:
        self._step, self._rows, self._model = step, rows, model
        self._found: list[Detections | str] = ["" for _ in range(len(rows))]
        # Whole images: the model's processor does the rest.
        self.wanted = Wanted(None, replace(step.options, batch_size=AHEAD * step.options.batch_size))

    def take(self, batch: Batch) -> set[int]:
        """Find things in some images."""
        for row, reason in batch.errors.items():
            self._fail(row, reason)
        found = self._model(batch.pixels, self._step.options.batch_size)
        bad = set()
        for row, each in zip(batch.positions.tolist(), found, strict=True):
            if each.reason is not None:
                self._fail(row, each.reason)
                bad.add(row)
            else:
                self._found[row] = each
        return bad

    def finish(self) -> Made:
        """The columns, null where there is a reason."""
        good = [each if isinstance(each, Detections) else None for each in self._found]
        values: list[list[Any]] = [
            [each and each.boxes.tolist() for each in good],
            [each and each.labels for each in good],
            [each and each.scores.astype(np.float64).tolist() for each in good],
            [each and len(each.labels) for each in good],
            [each and covered(each.boxes) for each in good],
        ]
        made = {
            name: pa.array(column, kind)
            for (name, kind), column in zip(self._step.types.items(), values, strict=True)
        }
        reasons = [each if isinstance(each, str) else None for each in self._found]
        return self._step.made(self._rows, made, reasons)

    def _fail(self, row: int, reason: str) -> None:
        if self._step.options.on_error == "raise":
            raise ImageError(
                f"{self._rows.image_of(row, self._step.id_col)}: {reason}. With on_error='null' such rows have no"
                " boxes and the run goes on"
            )
        self._found[row] = reason


def covered(boxes: np.ndarray) -> float:
    """The area that boxes cover together, what several of them cover once.

    Parameters
    ----------
    boxes
        (n, 4): left, top, right, bottom.
    """
    if not len(boxes):
        return 0.0
    sides = boxes.astype(np.float64)
    columns, rows = (np.unique(sides[:, [at, at + 2]]) for at in (0, 1))
    top, bottom = (np.searchsorted(rows, sides[:, at]) for at in (1, 3))
    heights = np.diff(rows)
    over = np.zeros(len(heights), np.int64)  # how many boxes cover each height, from left to right
    area = 0.0
    begins, ends = (np.argsort(sides[:, at], kind="stable").tolist() for at in (0, 2))
    for left, right in itertools.pairwise(columns):
        while begins and sides[begins[0], 0] <= left:
            number = begins.pop(0)
            over[top[number] : bottom[number]] += 1
        while ends and sides[ends[0], 2] <= left:
            number = ends.pop(0)
            over[top[number] : bottom[number]] -= 1
        area += (right - left) * float(heights[over > 0].sum())
    return area
