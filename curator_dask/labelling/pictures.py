"""The pictures of a page to label: as large as there is room for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from curator_dask.cluster.mapping import on_cluster
from curator_dask.cluster.workers import current_client
from curator_dask.errors import CuratorError
from curator_dask.rows.thumbnails import data_uri, read_thumbnails
from curator_dask.storage import Options

logger = logging.getLogger("curator_dask")

#: Seconds between two lines that say how many there are.
EVERY = 5.0
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
    tell
        Is told of each, where they are made in this process.
    """

    most: int
    options: Options
    tell: Callable[[int], None] | None = None

    def __call__(self, task: tuple[str | None, Sequence[Any]]) -> list[str]:
        """Data URIs; or reasons, none of which begins with ``data:``."""
        url, keys = task
        found = [""] * len(keys)
        try:
            for row, picture in read_thumbnails(
                keys, [url] * len(keys), SIDES[0], self.options, enlarge=False
            ):
                found[row] = picture if isinstance(picture, str) else self._small(picture)
                if self.tell is not None:
                    self.tell(1)
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


@dataclass
class _Progress:
    """Says now and then how many there are of all."""

    total: int
    made: int = 0
    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def add(self, count: int) -> None:
        self.made += count
        now = time.monotonic()
        if now - self.told >= EVERY and self.made < self.total:
            self.told = now
            logger.info("%d of %d pictures made, %d s", self.made, self.total, now - self.started)


def make_pictures(ids: Sequence[Any], urls: Sequence[str | None], most: int, options: Options) -> list[str]:
    """The pictures of rows, shard by shard; in the order of the rows. How many there are is said while it lasts."""
    progress, is_here = _Progress(len(ids)), current_client() is None
    shards: dict[str | None, list[int]] = {}
    for number, url in enumerate(urls):
        shards.setdefault(url, []).append(number)
    tasks = [(url, [ids[number] for number in numbers]) for url, numbers in shards.items()]
    made = [""] * len(ids)
    results = on_cluster(MakePictures(most, options, progress.add if is_here else None), tasks)
    for numbers, found in zip(shards.values(), results, strict=True):
        for number, picture in zip(numbers, found, strict=True):
            made[number] = picture
        if not is_here:
            progress.add(len(numbers))
    return made
