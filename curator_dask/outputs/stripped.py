"""Members of an export whose metadata is taken out on the way: images, and what rows and JSON tell of their EXIF."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa

from curator_dask.decode.orientation import EXIF_COLUMN, orientation_text
from curator_dask.decode.stripping import strip
from curator_dask.errors import ImageError
from curator_dask.outputs.json_fields import with_field
from curator_dask.rows.reasons import Reason
from curator_dask.rows.remarks import EXAMPLES
from curator_dask.webdataset.samples import key_text


class Stripping:
    """Takes metadata out of the members of one new tar, and counts.

    Parameters
    ----------
    what
        As of `curator_dask.decode.stripping.strip`.

    Attributes
    ----------
    changed
        By place among the members, bytes before and after, of images from which something was taken.
    documents
        Places of JSON from which something was taken.
    left
        By place, of images why nothing could be; and their names.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.changed: dict[int, tuple[int, int]] = {}
        self.documents: set[int] = set()
        self.left: dict[int, tuple[str, str]] = {}

    def image(self, place: int, name: str, data: bytes) -> tuple[str, bytes]:
        """An image's name, and its bytes without metadata."""
        try:
            made = strip(data, self.what)
        except ImageError as error:
            self.left[place] = (name, str(error))
            return name, data
        if len(made) != len(data) or made != data:
            self.changed[place] = (len(data), len(made))
        return name, made

    def document(self, place: int, name: str, data: bytes) -> tuple[str, bytes]:
        """A JSON's name, and its bytes, where img2dataset's text of EXIF says how the image lies, and no more."""
        made = without_exif_text(data)
        if made != data:
            self.documents.add(place)
        return name, made

    def rows(self, table: pa.Table) -> pa.Table:
        """Rows whose column of img2dataset's text of EXIF says the same."""
        if EXIF_COLUMN not in table.column_names:
            return table
        number = table.column_names.index(EXIF_COLUMN)
        kind = table.schema.field(EXIF_COLUMN).type
        try:  # whatever holds text: a dictionary, too, as categories of pandas are
            texts = pa.array(map(orientation_text, table.column(number).to_pylist()), pa.string())
            values = texts.cast(kind)
        except pa.ArrowException:
            values = pa.nulls(len(table), kind)
        return table.set_column(number, table.schema.field(number), values)

    def places(self) -> list[int]:
        """Places of members that are not copied."""
        return [*self.changed, *self.documents]

    def report(self) -> dict[str, Any]:
        """Counts, for `ExportSummary.add_shard`."""
        left: Counter[str] = Counter()
        examples: dict[str, list[str]] = {}
        for _, (name, why) in sorted(self.left.items()):
            kind = Reason.of(why).label
            left[kind] += 1
            if left[kind] <= EXAMPLES:
                examples.setdefault(kind, []).append(f"{key_text(name)}: {why}")
        return {
            "what": self.what,
            "images": len(self.changed),
            "bytes": sum(before - after for before, after in self.changed.values()),
            "documents": len(self.documents),
            "left": dict(left),
            "examples": examples,
        }


def without_exif_text(document: bytes) -> bytes:
    """A JSON object whose field of img2dataset's text of EXIF says how the image lies, and no more.

    All other bytes stay. What is no such object is as it was.
    """
    if f'"{EXIF_COLUMN}"'.encode() not in document:
        return document
    try:
        there = json.loads(document.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return document
    if not isinstance(there, dict) or there.get(EXIF_COLUMN) is None:
        return document
    new = orientation_text(there[EXIF_COLUMN])
    return document if new == there[EXIF_COLUMN] else with_field(document, EXIF_COLUMN, new)
