"""Images of an export that do not come from its source: their bytes are in a column of the rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.samples import Sample, key_text
from curator_dask.webdataset.writer import Contents


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

    def put(self, contents: Contents, keys: Sequence[str], ends: Sequence[int], table: pa.Table) -> None:
        """Put the new images in the places of those that they replace.

        Parameters
        ----------
        contents
            Of the tar, the members of all samples one after the other; changed.
        keys, ends
            Of each sample: its key, and behind its last member; 0 before them.
        table
            The samples' rows.

        Raises
        ------
        ShardError
            A new image would have the name of another member.
        """
        samples = zip(keys, itertools.pairwise(ends), table.column(self.column), strict=True)
        for key, (first, stop), image in samples:
            mine = contents.names[first:stop]
            place = image_place(key, mine, self.image_member)
            if place is None or not image.is_valid:
                continue
            name = with_suffix(key, mine[place], self.suffix)
            if any(each.lower() == name.lower() for each in mine[:place] + mine[place + 1 :]):
                raise ShardError(
                    f"{key_text(key)}: the image that was encoded anew would be {key_text(name)}, as another member"
                    " is: give another image_format"
                )
            contents.names[first + place] = name
            contents.sources[first + place] = -1
            contents.given[first + place] = image.as_py()


def image_place(key: str, names: Sequence[str], image_member: str | None = None) -> int | None:
    """Place of the image among the names of a sample's members; None where there is none. See `Sample.image`."""
    members = tuple(Member(name, place, 0) for place, name in enumerate(names))
    image = Sample(key, members).image(image_member)
    return None if image is None else image.offset


def text_place(key: str, names: Sequence[str]) -> int | None:
    """Place of the caption among the names of a sample's members; None where there is none. See `Sample.text`."""
    members = tuple(Member(name, place, 0) for place, name in enumerate(names))
    text = Sample(key, members).text("txt", "caption.txt")
    return None if text is None else text.offset


def with_suffix(key: str, name: str, suffix: str) -> str:
    """The name of a sample's member with another suffix in place of the last that it has."""
    return f"{key}{name.removeprefix(key).rpartition('.')[0]}.{suffix}"
