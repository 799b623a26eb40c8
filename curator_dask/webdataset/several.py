"""Samples with several images, each of which is a sample of its own: how these are numbered, and what their keys are.

A shard that is read so has a url with `curator_dask.webdataset.several_names.EACH` behind it. The key of an image is
that of its sample, ``_`` and its number. All images get a number, where a sample has one alone, too. So two samples of
different keys have no key in common: what stands before the last ``_`` is the sample's.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.reader import ShardReader
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS, Sample, split_name, suffix_of

_NUMBERS = re.compile(r"(\d+)")


class Place(NamedTuple):
    """Which image of its sample one is.

    Attributes
    ----------
    sample
        Key of the sample.
    number
        From 0.
    of
        How many images the sample has.
    name
        Of the image in its sample: its suffix in a tar, ``"1.jpg"``.
    """

    sample: str
    number: int
    of: int
    name: str


class ImageSample(Sample):
    """An image of a sample with what is no image of it: captions, JSON and others."""

    place: Place

    @property
    def stem(self) -> str:
        """What the names of its members begin with: the key of the sample that it is of."""
        return self.place.sample

    def image(self, suffix: str | None = None) -> Member | None:
        """The image, which comes first; with a `suffix` only where it is its own."""
        image = self.members[0]
        return image if suffix in (None, suffix_of(image)) else None


class ImagesIndex(ShardIndex):
    """The images of a tar, as `ShardIndex` has its samples.

    Parameters
    ----------
    whole
        The samples of the tar.

    Attributes
    ----------
    imageless
        Keys of samples that have no image, and so are not in `samples`.
    """

    def __init__(self, whole: ShardIndex) -> None:
        samples: list[Sample] = []
        self.imageless: list[str] = []
        for sample in whole.samples:
            found = images_of(sample)
            samples += found
            if not found:
                self.imageless.append(sample.key)
        super().__init__(samples, whole.problem, whole.duplicates, whole.scanned, whole.unread)


class ImagesReader(ShardReader):
    """Reads a tar whose images are samples of their own, as `ShardReader` otherwise; `url` is the tar's."""

    def _seen(self, index: ShardIndex) -> ShardIndex:
        return ImagesIndex(index)


def images_of(sample: Sample) -> list[ImageSample]:
    """Its images as samples, in the order of their names: numbers in these as numbers, so 2.jpg is before 10.jpg."""
    images: list[Member] = []
    others: list[Member] = []
    for member in sample.members:
        is_image = suffix_of(member).rpartition(".")[2] in IMAGE_EXTENSIONS
        (images if is_image else others).append(member)
    images.sort(key=lambda member: _natural(suffix_of(member)))
    found = []
    for number, member in enumerate(images):
        one = ImageSample(f"{sample.key}_{number}", (member, *others))
        parts = split_name(member.name)
        assert parts is not None
        one.place = Place(sample.key, number, len(images), parts[1])
        found.append(one)
    return found


def _natural(name: str) -> tuple[list[str | int], str]:
    parts: list[str | int] = [*_NUMBERS.split(name)]
    parts[1::2] = map(int, parts[1::2])
    return parts, name
