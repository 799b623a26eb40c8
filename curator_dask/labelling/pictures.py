"""The pictures of a page to label: as large as there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from curator_dask.errors import CuratorError
from curator_dask.report.tasks import on_cluster
from curator_dask.rows.thumbnails import data_uri, read_thumbnails
from curator_dask.storage import Options

#: Pixels of the longer side: the first with which a picture is small enough.
SIDES = (512, 384, 288, 208, 144, 96)
QUALITY = 75  # of WebP


@dataclass(frozen=True)
class MakePictures:
    """Makes the pictures of some rows of a shard.

    Attributes
    ----------
    most
        Bytes of each as a data URI, at most.
    options
        For fsspec.
    """

    most: int
    options: Options

    def __call__(self, task: tuple[str | None, Sequence[Any]]) -> list[str]:
        """Data URIs; or reasons, none of which begins with ``data:``."""
        url, keys = task
        found = [""] * len(keys)
        try:
            for row, picture in read_thumbnails(
                keys, [url] * len(keys), SIDES[0], self.options, enlarge=False
            ):
                found[row] = picture if isinstance(picture, str) else self._small(picture)
        except CuratorError as error:  # a shard that is gone costs its own rows alone
            found = [each or str(error) for each in found]
        return found

    def _small(self, picture: Image.Image) -> str:
        uri = ""
        for side in SIDES:
            if uri and max(picture.size) <= side:
                continue
            small = picture
            if max(picture.size) > side:
                small = picture.copy()
                small.thumbnail((side, side), Image.Resampling.LANCZOS)
            uri = data_uri(small, "WEBP", QUALITY)
            if len(uri) <= self.most:
                break
        return uri


def make_pictures(ids: Sequence[Any], urls: Sequence[str | None], most: int, options: Options) -> list[str]:
    """The pictures of rows, shard by shard; in the order of the rows."""
    shards: dict[str | None, list[int]] = {}
    for number, url in enumerate(urls):
        shards.setdefault(url, []).append(number)
    tasks = [(url, [ids[number] for number in numbers]) for url, numbers in shards.items()]
    made = [""] * len(ids)
    results = on_cluster(MakePictures(most, options), tasks)
    for numbers, found in zip(shards.values(), results, strict=True):
        for number, picture in zip(numbers, found, strict=True):
            made[number] = picture
    return made
