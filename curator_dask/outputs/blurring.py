"""Images of an export with regions that are blurred: which regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curator_dask.decode.blurring import checked_boxes
from curator_dask.errors import ConfigError, ImageError
from curator_dask.frames.columns import is_boxes, values_of

#: Kind of the reasons that are of a row's boxes, whatever its image is: others may be there later.
BOXES = "boxes"

Boxes = list[tuple[float, float, float, float]]
_BOXES, _LABELS = "_boxes", "_labels"


@dataclass(frozen=True)
class Blurring:
    """What is blurred.

    Attributes
    ----------
    column
        Of the boxes.
    only
        Labels of those that are blurred; empty: all are.
    strength
        See `curator_dask.decode.blurring.blur`.
    keep_unseen
        Rows whose boxes are null, of which nobody has looked at the image, are exported as they are.

    Raises
    ------
    ConfigError
        They cannot be.
    """

    column: str
    only: tuple[str, ...] = ()
    strength: float = 1.0
    keep_unseen: bool = False

    def __post_init__(self) -> None:
        strength = self.strength
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0.5 <= strength <= 100:
            raise ConfigError(
                f"blur_strength={strength!r} (--blur-strength): expected a number from 0.5 to 100; 1 is img2dataset's"
            )
        if not isinstance(self.column, str) or not self.column:
            raise ConfigError(f"blur={self.column!r} (--blur): expected the column of the boxes")
        if not all(isinstance(each, str) and each for each in self.only):
            raise ConfigError(f"blur_only={self.only!r} (--blur-only): expected labels")
        if self.only and not self.column.endswith(_BOXES):
            raise ConfigError(
                f"blur_only (--blur-only): the labels of a column NAME{_BOXES} are in NAME{_LABELS}; {self.column!r} is"
                " called otherwise"
            )

    @property
    def labels(self) -> str | None:
        """The column of the boxes' labels, where they matter."""
        return self.column.removesuffix(_BOXES) + _LABELS if self.only else None

    @property
    def columns(self) -> list[str]:
        """All that is needed of the rows."""
        return [self.column, *([self.labels] if self.labels else [])]

    @property
    def condition(self) -> str | None:
        """Which rows can be exported, as behind SQL's WHERE; None: all."""
        quoted = self.column.replace('"', '""')
        return None if self.keep_unseen else f'"{quoted}" IS NOT NULL'

    def check_made(self, settings: Mapping[str, Any], image_member: str | None) -> None:
        """Raise ConfigError where boxes are of another image of a sample, or of other things than are to be blurred.

        Parameters
        ----------
        settings
            `FileRecord.settings`.
        image_member
            Of the export.
        """
        made_by = settings.get(self.column)
        found = made_by.get("image_member") if isinstance(made_by, Mapping) else image_member
        if found != image_member:
            has = "no image_member" if found is None else f"image_member={found!r} (--image {found})"
            raise ConfigError(
                f"blur={self.column!r}: its boxes were found with {has}: give the same here, as else another image of"
                " the sample would be blurred"
            )
        prompts = made_by.get("prompts") if isinstance(made_by, Mapping) else None
        if prompts and (unknown := [each for each in self.only if each not in prompts]):
            raise ConfigError(
                f"blur_only={unknown} (--blur-only): the boxes of {self.column!r} were found with other prompts,"
                f" {', '.join(map(repr, prompts))}, which are their labels"
            )

    def check(self, rows: pa.Table) -> None:
        """Raise ConfigError where the columns are none of boxes and labels."""
        kind = rows.schema.field(self.column).type
        if not is_boxes(kind):
            raise ConfigError(
                f"blur={self.column!r} (--blur): expected lists of boxes, each a list of four numbers, found {kind}"
            )
        if self.labels is not None:
            kind = rows.schema.field(self.labels).type
            if not (pa.types.is_string(values_of(kind)) or pa.types.is_large_string(values_of(kind))):
                raise ConfigError(
                    f"blur_only (--blur-only): expected lists of labels in {self.labels!r}, found {kind}"
                )

    def boxes(self, row: Mapping[str, Any], labelled: Counter[str]) -> Boxes:
        """What is blurred of the image of a row; its labels are counted, where they matter.

        Raises
        ------
        ImageError
            Its boxes are none, or it is not known whether they are to be blurred.
        """
        boxes = row.get(self.column)
        if boxes is None:
            if self.keep_unseen:
                return []
            raise ImageError("boxes: null, nobody has looked at the image")
        if self.labels is not None:
            labels = row.get(self.labels)
            if labels is None or len(labels) != len(boxes):
                raise ImageError(f"boxes: {len(boxes)}, and {'no' if labels is None else len(labels)} labels")
            if None in labels:
                raise ImageError("boxes: one has no label, so nobody knows whether it is to be blurred")
            labelled.update(labels)
            boxes = [box for box, label in zip(boxes, labels, strict=True) if label in self.only]
        return checked_boxes(boxes)
