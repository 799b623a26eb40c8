"""Statistics of images that are looked at again: as the records of their files say they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from curator_dask.decode.spec import ImageOptions
from curator_dask.frames.record import FileRecord
from curator_dask.image.statistics.names import EVERY
from curator_dask.image.statistics.step import WHAT, MeasureImages
from curator_dask.runs.step import how_read
from curator_dask.storage import Options


class SeesImages(Protocol):
    """A step of a model that looks at images, and is done again."""

    @property
    def column(self) -> str:
        """Of what it makes, one."""

    @property
    def id_col(self) -> str:
        """Of the keys."""

    @property
    def options(self) -> ImageOptions:
        """How it reads images now."""

    @property
    def storage_options(self) -> Options:
        """For fsspec, of the shards."""


def statistics_again(step: SeesImages, records: Mapping[str, FileRecord]) -> list[MeasureImages]:
    """Those of files, of images that were read as a step's were; each set of them that a file has once.

    Statistics are of whole images also where vectors are of such that were decoded smaller.

    Parameters
    ----------
    step
        Which is done again.
    records
        Of the files, by path.
    """
    scale = step.options.decode_scale
    whole = replace(step.options, decode_scale="exact")
    found: dict[tuple[str, tuple[str, ...], ImageOptions], None] = {}
    for record in records.values():
        how = how_read(record.read_by.get(step.column, ""))
        ways = {how: step.options, how.removesuffix(f" decode_scale={scale}"): whole}
        for way, options in ways.items():
            found |= {(*each, options): None for each in statistics_like(way, record.read_by)}
    return [
        MeasureImages(names, prefix, step.id_col, options, step.storage_options)
        for prefix, names, options in found
    ]


def statistics_like(how: str, ways: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Prefixes and names of the statistics of a file, of images that were read in one way.

    Parameters
    ----------
    how
        `curator_dask.runs.step.read_by` of vectors.
    ways
        `Step.read_by` of the columns of the file.
    """
    found: dict[str, list[str]] = {}
    for name in EVERY:
        for column, way in ways.items():
            if way == f"{name} {WHAT} 1 {how}":
                found.setdefault(column.removesuffix(name), []).append(name)
    yield from ((prefix, tuple(names)) for prefix, names in found.items())
