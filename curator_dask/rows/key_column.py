"""The column by which the rows of a user's table are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curator_dask.frames.names import CAPTION_COLUMN, FILE_COLUMN
from curator_dask.words import meant

_SHOWN, _FEW = 60, 20  # characters, and columns, that an error gives


@dataclass(frozen=True)
class KeyColumn:
    """The column by which rows are found: it must be there, and is text where a format does not say what it is.

    Attributes
    ----------
    name
        Of the column.
    means
        What its values are, for an error.
    hint
        What to do where there is no such column.
    """

    name: str
    means: str
    hint: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that are text, whatever they look like: ``000010`` is no number."""
        return (self.name, CAPTION_COLUMN)

    def check(self, names: Sequence[str]) -> None:
        """Raise ValueError where the column is not there."""
        if self.name not in names:
            found = [name[:_SHOWN] for name in names[:_FEW]]
            raise ValueError(
                f"expected a column {self.name!r} {self.means}, found {found}{meant(self.name, names)}. {self.hint}"
            )


#: Of a table of captions.
FILES = KeyColumn(FILE_COLUMN, "with the paths of the images below their folder", "Name it so")
