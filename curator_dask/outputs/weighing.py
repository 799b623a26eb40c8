"""What samples will weigh where an export writes more of them than their members, or less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.frames.parquet import read_footer
from curator_dask.outputs.encoded import image_place, text_place
from curator_dask.outputs.vector_members import VectorMember, lengths_of, maybe_null, vector_counts
from curator_dask.storage import Options
from curator_dask.webdataset.samples import key_text
from curator_dask.webdataset.stamps import stamp
from curator_dask.webdataset.writer import tar_bytes


@dataclass(frozen=True)
class Weighing:
    """How samples that were looked up are weighed.

    Attributes
    ----------
    vectors
        Columns of the rows that become members.
    pictures
        Of the members the images alone are exported, and the columns of the rows with them.
    image_member
        Which of several images; see `Sample.image`.
    texts
        The captions, too.
    columns
        The rows have columns that go along.
    fixed
        Of these, those of lists of a fixed length: it is told whether one of a sample is null.
    """

    vectors: tuple[VectorMember, ...] = ()
    pictures: bool = False
    image_member: str | None = None
    texts: bool = False
    columns: bool = True
    fixed: tuple[str, ...] = ()

    def __call__(self, samples: pa.Table, path: str, options: Options) -> tuple[pa.Table, dict[str, Any]]:
        """The samples with the bytes that they will take; and for the report what was seen on the way.

        Parameters
        ----------
        samples
            Of one file, as `SAMPLES` says.
        path, options
            The file of their rows, and for fsspec.
        """
        if self.pictures:
            return self._of_pictures(samples, path, options)
        rows = samples.column("row").to_numpy()
        lengths = lengths_of(path, options, [each.column for each in self.vectors])
        keys = [key.decode("utf-8", "surrogateescape") for key in samples.column("key").to_pylist()]
        weights = samples.column("bytes").to_numpy().copy()
        said = {}
        for member in self.vectors:
            mine = lengths[member.column][rows]
            places = np.flatnonzero(mine >= 0)
            lengths_there, which = np.unique(mine[places], return_inverse=True)
            sizes = np.array([member.size(each) for each in lengths_there.tolist()], np.int64)[which]
            weights[places] += tar_bytes([f"{keys[place]}.{member.suffix}" for place in places], sizes)
            said[member.suffix] = vector_counts(mine)
        return _weighed(samples, weights), {"vectors": said}

    def _of_pictures(self, samples: pa.Table, path: str, options: Options) -> tuple[pa.Table, dict[str, Any]]:
        each_row = 0
        if self.columns:
            each_row = stamp(path, options).size // max(1, read_footer(path, options).rows)
        taken, said = pictures_in(samples, self.image_member, self.texts)
        weights = each_row + taken
        lengths = lengths_of(path, options, maybe_null(path, options, self.fixed))
        rows = samples.column("row").to_numpy()
        null = [name for name, each in lengths.items() if (each[rows] < 0).any()]
        return _weighed(samples, weights), {"pictures": said | {"null": null}}


def pictures_in(
    samples: pa.Table, image_member: str | None, texts: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Of samples whose images go into Parquet: int64 (samples,), bytes of what is taken; and what is not, counted."""
    taken = np.zeros(len(samples), np.int64)
    left: Counter[str] = Counter()
    without = 0
    columns = (samples.column(name).to_pylist() for name in ("key", "suffixes", "sizes"))
    for sample, (raw, suffixes, sizes) in enumerate(zip(*columns, strict=True)):
        key, *names = (each.decode("utf-8", "surrogateescape") for each in (raw, *suffixes))
        chosen = chosen_places(key, [f"{key}.{each}" for each in names], image_member, texts)
        without += chosen[0] is None
        taken[sample] = sum(sizes[place] for place in chosen if place is not None)
        left.update(key_text(name) for place, name in enumerate(names) if place not in chosen)
    return taken, {"none": without, "left": dict(left)}


def chosen_places(
    key: str, names: Sequence[str], image_member: str | None, texts: bool
) -> tuple[int | None, int | None]:
    """Places of the image and of the caption among the names of a sample's members; None: there is none."""
    return image_place(key, names, image_member), text_place(key, names) if texts else None


def _weighed(samples: pa.Table, weights: np.ndarray) -> pa.Table:
    place = samples.column_names.index("bytes")
    return samples.set_column(place, samples.schema.field(place), pa.array(weights))
