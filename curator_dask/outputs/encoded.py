"""Images of an export that do not come from its source: their bytes are in a column of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.samples import Sample, key_text
from curator_dask.webdataset.writer import Entry


@dataclass(frozen=True)
class Encoded:
    """Where new images are, and which ones they replace.

    Attributes
    ----------
    column
        Of the rows, with their bytes.
    suffix
        That they get.
    image_member
        See `Sample.image`.
    """

    column: str
    suffix: str
    image_member: str | None = None

    def put(
        self, entries: list[Entry], keys: Sequence[str], counts: Sequence[int], table: pa.Table
    ) -> np.ndarray:
        """Put the new images in the places of those that they replace.

        Parameters
        ----------
        entries
            Of all samples, one after the other; changed.
        keys, counts
            Of each sample: its key, and how many of the entries are its.
        table
            The samples' rows.

        Returns
        -------
        numpy.ndarray
            Bool (entries,): which are new.

        Raises
        ------
        ShardError
            A new image would have the name of another member.
        """
        new = np.zeros(len(entries), bool)
        first = 0
        for key, count, image in zip(keys, counts, table.column(self.column), strict=True):
            mine = entries[first : first + count]
            place = self._place(key, mine)
            if place is not None and image.is_valid:
                stem = mine[place].name.removeprefix(key).rpartition(".")[0]
                name = f"{key}{stem}.{self.suffix}"
                if any(each.name.lower() == name.lower() for each in mine[:place] + mine[place + 1 :]):
                    raise ShardError(
                        f"{key_text(key)}: the image that was encoded anew would be {key_text(name)}, as another member"
                        " is: give another image_format"
                    )
                entries[first + place] = Entry(name, image.as_py())
                new[first + place] = True
            first += count
        return new

    def _place(self, key: str, entries: Sequence[Entry]) -> int | None:
        members = tuple(Member(each.name, place, 0) for place, each in enumerate(entries))
        image = Sample(key, members).image(self.image_member)
        return None if image is None else image.offset
