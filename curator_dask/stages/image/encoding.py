"""`ImageEncodingStage`: the pixels of images as files again, for a writer that cannot copy them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from curator_dask import backend
from curator_dask.decode.encoding import FORMATS, check_quality, encode
from curator_dask.errors import ConfigError
from curator_dask.stages.base import Names, ProcessingStage, TypedNames
from curator_dask.tasks import ImageBatch

#: Field of an image, and column of its row, for the file.
ENCODED = "__image__"


class ImageEncodingStage(ProcessingStage[ImageBatch, ImageBatch]):
    """Encodes the pixels of every image; the last stage before the writer, which puts it there.

    Parameters
    ----------
    image_format
        ``"JPEG"``, ``"PNG"`` or ``"WEBP"``.
    quality
        1 to 100, of JPEG and WebP.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    name = "image_encoding"
    thread_safe = True

    def __init__(self, image_format: str = "JPEG", quality: int = 95) -> None:
        if image_format not in FORMATS:
            raise ConfigError(f"image_format={image_format!r}: expected one of {', '.join(FORMATS)}")
        check_quality(quality)
        self.image_format = image_format
        self.quality = quality

    def inputs(self) -> Names:
        """Images with their pixels."""
        return ["data"], ["image_data"]

    def outputs(self) -> TypedNames:
        """The files; of a large shard they are more than 2 GB together."""
        return ["data"], {ENCODED: pa.large_binary()}

    def process(self, task: ImageBatch) -> ImageBatch:
        """Encode every image that can be used."""
        for image in task.data:
            if image.error is not None:
                continue
            if image.image_data is None:
                image.error = "not encoded: a stage has removed its pixels"
                continue
            image.metadata[ENCODED] = self._encoded(backend.tensor_of(image.image_data).cpu().numpy())
        return task

    def _encoded(self, pixels: Any) -> bytes:
        from PIL import Image

        return encode(Image.fromarray(pixels), self.image_format, self.quality)
