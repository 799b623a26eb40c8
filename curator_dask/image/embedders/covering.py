"""Images for an embedder with regions covered: boxes of a column, filled with the colour around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curator_dask import backend
from curator_dask.decode.batches import Batch
from curator_dask.decode.blurring import checked_boxes
from curator_dask.decode.covering import VERSION, cover
from curator_dask.decode.makers import Maker
from curator_dask.decode.resize import BatchResize
from curator_dask.decode.spec import ImageOptions, LoaderSpec
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError, ImageError
from curator_dask.frames.columns import is_boxes
from curator_dask.runs.step import Rows, Step, types_of
from curator_dask.words import meant

if TYPE_CHECKING:
    import torch

    from curator_dask.datasets import ImageTextPairDataset

#: Of rows without boxes, where nothing says why there are none.
UNSEEN = "boxes: null, nobody has looked at the image"
#: Type of the boxes that `DetectionModel` gives.
TYPE = pa.list_(pa.list_(pa.float32()))


def check_cover(column: object, options: ImageOptions) -> None:
    """Raise ConfigError where boxes cannot be covered so.

    Parameters
    ----------
    column
        Of the boxes.
    options
        How images are read.
    """
    if not isinstance(column, str) or not column:
        raise ConfigError(f"cover={column!r} (--cover): expected the column of the boxes")
    if options.orientation != "stored":
        raise ConfigError(
            f"orientation={options.orientation!r} (--orientation): boxes to be covered (cover, --cover) are of the"
            " image as its file is displayed: expected 'stored'"
        )
    if options.decode_scale != "exact":
        raise ConfigError(
            f"decode_scale={options.decode_scale!r} (--decode-scale): boxes are covered (cover, --cover) in whole"
            " images: expected 'exact'"
        )


def check_boxes(dataset: ImageTextPairDataset, column: str, options: ImageOptions) -> None:
    """Raise ConfigError where a dataset has no boxes in a column, or they are of another image of a sample."""
    names = [str(name) for name in dataset.metadata.columns]
    if column not in names:
        raise ConfigError(
            f"cover={column!r} (--cover): the dataset has no such column{meant(column, names)}. Have a model find"
            " boxes first: `curator-dask detect` into the same OUTPUT, in Python a DetectionModel before the embedder."
            f" `--prefix {column.removesuffix('_boxes')}` calls them so. Or take a dataset whose rows have them"
        )
    kind = types_of(dataset.metadata._meta).field(column).type
    if not is_boxes(kind):
        raise ConfigError(
            f"cover={column!r} (--cover): expected lists of boxes, each a list of four numbers, found {kind}"
        )
    maker: Step | None = next((each for each in dataset.steps if column in each.columns), None)
    its = getattr(getattr(maker, "options", None), "image_member", options.image_member)
    if its != options.image_member:
        raise ConfigError(
            f"cover={column!r} (--cover): the boxes are found in image_member={its!r}, and"
            f" image_member={options.image_member!r} (--image) is to be embedded: expected the same"
        )


def said_of_cover(column: str) -> dict[str, str]:
    """What makes a vector, besides its model, where boxes of a column are covered."""
    return {"cover": f"{column} {VERSION}"}


def same_boxes(column: str, rows: Rows, id_col: str) -> bool:
    """Whether an earlier run had the boxes that rows have, or are going to have."""
    if column in rows.names:
        return rows.has_same_texts(column, id_col)
    return rows.known_columns({column: TYPE}, column) is not None


class CoveredImages:
    """Makes of whole images what a model takes, their boxes covered.

    Parameters
    ----------
    column
        Of the boxes.
    rows
        Whose images come; the column is there by then.
    transform
        As `Encoder.transform`.
    options
        How images are decoded.
    """

    def __init__(self, column: str, rows: Rows, transform: Any, options: ImageOptions) -> None:
        self._column, self._rows = column, rows
        self._boxes: list[Any] | None = None
        self._why: list[str | None] = []
        self._resize: BatchResize | None = None
        self._maker: Maker | None = None
        if isinstance(transform, TransformSpec):
            threads = LoaderSpec.here((None,), [options]).num_threads
            self._resize = BatchResize(transform, threads, exact=options.decoder == "pillow")
        else:
            self._maker = Maker((transform,), by_pillow=True)

    def __call__(self, batch: Batch) -> tuple[np.ndarray, torch.Tensor, Mapping[int, str]]:
        """Cover some images, and make them ready.

        Returns
        -------
        positions
            int64 of shape (n,): rows of the images that could be used.
        pixels
            As `Batch.pixels` of the transform, in their order; without a shape where there are none.
        reasons
            By row, of the others.
        """
        if self._boxes is None:
            self._boxes = self._rows.column(self._column).to_pylist()
            self._why = self._rows.reasons(self._column)
        reasons: dict[int, str] = {}
        good: dict[int, Any] = {}
        for row, pixels in zip(batch.positions.tolist(), batch.pixels, strict=True):
            try:
                good[row] = self._covered(row, pixels)
            except ImageError as error:
                reasons[row] = str(error)
        made, failed = self._ready([*good.values()])
        rows = [*good]
        reasons |= {rows[number]: reason for number, reason in failed.items()}
        kept = [row for number, row in enumerate(rows) if number not in failed]
        return np.array(kept, np.int64), made, reasons

    def close(self) -> None:
        """End its threads."""
        if self._resize is not None:
            self._resize.close()

    def _covered(self, row: int, pixels: Any) -> Any:
        assert self._boxes is not None
        boxes = self._boxes[row]
        if boxes is None:
            raise ImageError(self._why[row] or UNSEEN)
        checked = checked_boxes(boxes)
        if not checked:
            return pixels
        # On the host also where a GPU has decoded: few images have many boxes, and each is a few pixels.
        on_host = pixels.get() if hasattr(pixels, "get") else pixels
        on_host = on_host if on_host.flags.writeable else on_host.copy()
        cover(on_host, checked)
        return on_host

    def _ready(self, images: list[Any]) -> tuple[torch.Tensor, Mapping[int, str]]:
        import torch
        from PIL import Image

        if images and self._resize is not None:
            return self._resize.start(images)()
        if not images or self._maker is None:
            return torch.empty(0), {}
        make: Callable[[Any], list[Any]] = partial(self._maker.of_image, which=(0,))
        made: list[np.ndarray] = []
        failed: dict[int, str] = {}
        for number, pixels in enumerate(images):
            on_host = pixels.get() if hasattr(pixels, "get") else pixels
            (each,) = make(Image.fromarray(on_host))
            if isinstance(each, Exception):
                failed[number] = str(each) or type(each).__name__
            elif made and each.shape != made[0].shape:
                failed[number] = f"the transform gave shape {each.shape}, expected {made[0].shape} as before"
            else:
                made.append(each)
        stacked = torch.from_numpy(np.stack(made)) if made else torch.empty(0)
        return stacked.to(backend.current().torch_device), failed
