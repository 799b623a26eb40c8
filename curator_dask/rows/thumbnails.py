"""Small pictures of rows, out of their tars, or why there is none."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from PIL import Image, ImageOps

from curator_dask.decode.pillow import decode
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
from curator_dask.errors import ImageError
from curator_dask.rows.images import read_images
from curator_dask.rows.remarks import noticing
from curator_dask.storage import Options
from curator_dask.webdataset.opening import Reader


def read_thumbnails(
    keys: Sequence[Any],
    urls: Sequence[str | None],
    size: int,
    options: Options = None,
    enlarge: bool = True,
    opener: Callable[..., AbstractContextManager[Reader]] | None = None,
) -> Iterator[tuple[int, Image.Image | str]]:
    """The pictures of rows, upright, each of at most `size` pixels a side.

    Parameters
    ----------
    keys, urls
        Key and shard of each row.
    size
        Pixels.
    options
        For fsspec, where shards are URLs.
    enlarge
        Whether one that is smaller becomes larger.
    opener
        See `curator_dask.rows.images.read_images`.

    Yields
    ------
    row
        Number of the row; each comes once, shard by shard.
    picture
        RGB, or the reason why there is none.

    Raises
    ------
    ShardError
        A shard cannot be read at all.
    """
    with noticing():  # what is noticed of the tars is no concern of who looks at a few images
        for row, image in read_images(keys, urls, "key", storage_options=options, opener=opener):
            yield row, _small(image, size, enlarge)


def data_uri(picture: Image.Image, form: str, quality: int) -> str:
    """A picture as an address that needs no file.

    Parameters
    ----------
    picture
        RGB.
    form, quality
        ``"JPEG"`` or ``"WEBP"``, and how well, up to 100.
    """
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=quality)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _small(image: Any, size: int, enlarge: bool) -> Image.Image | str:
    try:
        if isinstance(image, Exception):
            return str(image)
        picture = decode(image, DEFAULT_MAX_PIXELS)
        if max(picture.size) <= size and not enlarge:
            return picture
        return ImageOps.contain(picture, (size, size), Image.Resampling.LANCZOS)
    except ImageError as error:
        return str(error)
