"""The small pictures of a page: each once, whatever shows it, and no more than there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from curator_dask.cluster.mapping import on_cluster
from curator_dask.errors import CuratorError
from curator_dask.rows.thumbnails import data_uri, read_thumbnails
from curator_dask.storage import Options

#: Pixels a side, and WebP's quality.
SIZE, QUALITY = 128, 60


@dataclass
class Pictures:
    """Pictures by shard and key, in the order in which they are wanted: the first ones matter most.

    Attributes
    ----------
    places
        By shard and key, as text, the number of the picture.
    ids
        By number, the key as it is stored: a whole number also finds the key that is it with leading zeros.
    made
        By number, a data URI; or the reason why there is none, which does not begin with ``data:``.
    """

    places: dict[tuple[str | None, str], int] = field(default_factory=dict)
    ids: list[Any] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def want(self, key: Any, url: str | None) -> None:
        """Have a picture of a row."""
        if self.places.setdefault((url, str(key)), len(self.ids)) == len(self.ids):
            self.ids.append(key)

    def make(self, most: int, options: Options) -> None:
        """Read them out of the tars, shard by shard; those that do not fit into so many bytes are left out."""
        shards: dict[str | None, list[tuple[int, Any]]] = {}
        for (url, _), number in self.places.items():
            shards.setdefault(url, []).append((number, self.ids[number]))
        tasks = [(url, [key for _, key in some]) for url, some in shards.items()]
        made = dict.fromkeys(range(len(self.places)), "")
        for some, found in zip(shards.values(), on_cluster(MakePictures(options), tasks), strict=True):
            for (number, _), picture in zip(some, found, strict=True):
                made[number] = picture
        self.made, size = [], 0
        for number in range(len(made)):
            size += len(made[number]) + 4  # quotes, comma and space between them
            if size > most:
                break
            self.made.append(made[number])
        # What is not there has no number.
        self.places = {row: number for row, number in self.places.items() if number < len(self.made)}


@dataclass(frozen=True)
class MakePictures:
    """Makes the pictures of some rows of a shard.

    Attributes
    ----------
    options
        For fsspec.
    """

    options: Options

    def __call__(self, task: tuple[str | None, Sequence[Any]]) -> list[str]:
        """Data URIs, or reasons."""
        url, keys = task
        found = [""] * len(keys)
        try:
            for row, picture in read_thumbnails(keys, [url] * len(keys), SIZE, self.options):
                found[row] = picture if isinstance(picture, str) else data_uri(picture, "WEBP", QUALITY)
        except CuratorError as error:  # a shard that is gone costs its own rows alone
            found = [each or str(error) for each in found]
        return found
