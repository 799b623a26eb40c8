"""Images of an export that are cropped to the size of their bucket, so that those of one bucket stack to a batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curator_dask.decode.cropping import Crop, size_in
from curator_dask.errors import ConfigError, ImageError
from curator_dask.frames.record import FileRecord, inputs_of
from curator_dask.words import counted

#: Columns beside a tar, and fields of each JSON, of cropped images: pixels, upright, of the image before; and of the
#: image resized, before it was cropped, what was cut off above and on the left. So SDXL takes them (Podell et al. 2023,
#: https://arxiv.org/abs/2307.01952, 2.2) as ``original_size`` and ``crops_coords_top_left``.
CROPPED = pa.schema(
    [
        ("exported_original_width", pa.int32()),
        ("exported_original_height", pa.int32()),
        ("exported_crop_top", pa.int32()),
        ("exported_crop_left", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Cropping:
    """What says how images are cropped.

    Attributes
    ----------
    column
        Of sizes, as ``832x1216``: width and height. Or such a size itself, of all images.

    Raises
    ------
    ConfigError
        It is no name of a column.
    """

    column: str

    def __post_init__(self) -> None:
        if not isinstance(self.column, str) or not self.column:
            raise ConfigError(
                f"bucket_size={self.column!r} (--bucket-size): expected the column of the sizes, or a size, as 512x512"
            )
        _ = self.fixed  # says what is wrong with it

    @property
    def fixed(self) -> tuple[int, int] | None:
        """The size of all images; None: the column says it."""
        return size_in(self.column) if re.fullmatch(r"\d+x\d+", self.column) else None

    @property
    def columns(self) -> list[str]:
        """Those of the rows that are needed."""
        return [self.column] if self.fixed is None else []

    @property
    def condition(self) -> str | None:
        """Which rows can be exported, as behind SQL's WHERE; None: all."""
        if self.fixed is not None:
            return None
        quoted = self.column.replace('"', '""')
        return f'"{quoted}" IS NOT NULL'

    def check_made(self, record: FileRecord) -> None:
        """Raise ConfigError where the sizes are of images that were turned by what their rows say: none are here."""
        for name in inputs_of(record.scores.get(self.column, {})):
            if "orientation=exif-column" in record.read_by.get(name, "").split():
                raise ConfigError(
                    f"bucket_size={self.column!r} (--bucket-size): its sizes are of {name!r}, which was measured with"
                    " --orientation exif-column (orientation='exif-column'), and images are cropped as their files lie."
                    f" Measure width and height without it, under another prefix (score --statistics width,height"
                    " --prefix stored_ --bucket ... --bucket-column ...)"
                )

    def size(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height for the image of a row.

        Raises
        ------
        ImageError
            The row says none.
        """
        if self.fixed is not None:
            return self.fixed
        said = row.get(self.column)
        try:
            return size_in(said)
        except ConfigError as error:
            raise ImageError(f"size: {error}") from None


def beside(table: pa.Table, crops: Iterable[Crop | None]) -> pa.Table:
    """Rows with the columns of `CROPPED`, null of an image that is as it was."""
    every = list(crops)
    table = table.select([name for name in table.column_names if name not in CROPPED.names])
    values = ([None if each is None else getattr(each, name) for each in every] for name in Crop.told)
    for column, some in zip(CROPPED, values, strict=True):
        table = table.append_column(column, pa.array(some, column.type))
    return table


@dataclass
class CropCount:
    """What became of images.

    Attributes
    ----------
    images
        That were cropped, those that had the size already among them.
    enlarged
        Of these, those that were smaller than their bucket in width or height.
    cut, most
        The shares of area that were cut off, summed; and the largest.
    beside
        Samples of these with other images, which are as they were: a mask does not lie on its image any more.
    """

    images: int = 0
    enlarged: int = 0
    cut: float = 0.0
    most: float = 0.0
    beside: int = 0

    @classmethod
    def of(cls, crops: Iterable[Crop | None]) -> CropCount:
        """Of some images; None is as it was."""
        every = [each for each in crops if each is not None]
        cut = [each.cut for each in every]
        return cls(len(every), sum(each.enlarged for each in every), sum(cut), max(cut, default=0.0))

    def add(self, other: Mapping[str, Any]) -> None:
        """Count others, as `vars` has them; nothing where it is empty."""
        if not other:
            return
        self.images += other["images"]
        self.enlarged += other["enlarged"]
        self.cut += other["cut"]
        self.most = max(self.most, other["most"])
        self.beside += other.get("beside", 0)  # exports before did not say it

    def lines(self) -> list[str]:
        """In words; none where there is nothing to say."""
        if not self.images:
            return []
        enlarged = f", {self.enlarged:,} of them enlarged" * bool(self.enlarged)
        beside = [
            f"  WARNING: {counted(self.beside, 'sample', 'has', 'have')} other images, which were not cropped: a mask"
            " does not lie on its image any more. Crop them by exported_crop_top and exported_crop_left, or leave them"
            " out"
        ]
        return [
            f"  {counted(self.images, 'image', 'has', 'have')} the size of the bucket{enlarged}: cropping cut off"
            f" {self.cut / self.images:.1%} of their area on average, {self.most:.1%} at the most",
            *(beside if self.beside else []),
        ]
