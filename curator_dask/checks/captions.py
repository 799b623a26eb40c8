"""What a table of captions lacks: images without a row, rows without an image, rows without a caption."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import DatasetError
from curator_dask.frames.names import CAPTION_COLUMN, EMBEDDING_COLUMN, FILE_COLUMN, URL_COLUMN
from curator_dask.rows.image_files import CaptionTable
from curator_dask.rows.remarks import fact_of
from curator_dask.storage import Options
from curator_dask.webdataset.stamps import stamp


@dataclass
class CaptionsLook:
    """What is seen of a table of captions beside the images that it is for.

    Attributes
    ----------
    trouble
        Why it cannot be used.
    size
        Bytes of the file.
    columns
        That rows get from it.
    facts
        What costs values, by kind: ``{"count": int, "examples": [name, ...]}``.
    """

    trouble: str | None = None
    size: int = 0
    columns: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


def look_at_captions(table: CaptionTable, folder: str, id_col: str, options: Options = None) -> CaptionsLook:
    """Compare a table of captions with the images of a folder; all of both.

    Parameters
    ----------
    table
        The table.
    folder, options
        Of the images, and for fsspec.
    id_col
        Column of the keys.
    """
    found = CaptionsLook()
    try:
        found.columns = [name for name in table.schema(id_col).names if name not in (id_col, URL_COLUMN)]
        files, rows = table.match(folder, options)
    except DatasetError as error:
        found.trouble = str(error)
        return found
    found.size = stamp(table.path, table.options).size
    all_rows = table.read()
    names = all_rows.column(FILE_COLUMN)
    unused = pc.invert(pc.is_in(names, value_set=files))
    facts = {"no-row": files.filter(pc.is_null(rows)), "no-file": names.filter(unused)}
    facts["nameless"] = pa.array(table.nameless, pa.string())
    facts["replaced"] = pa.array([name for name in found.columns if name == EMBEDDING_COLUMN], pa.string())
    if CAPTION_COLUMN in all_rows.column_names:
        captions = all_rows.column(CAPTION_COLUMN).take(rows.drop_null())
        facts["no-caption"] = files.filter(pc.is_valid(rows)).filter(empty_of(captions))
    found.facts = {
        kind: fact
        for kind, texts in facts.items()
        if (fact := fact_of([text.as_py() for text in texts])) is not None
    }
    return found


def empty_of(captions: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Which of these have no caption: null, or nothing but white space."""
    if pa.types.is_string_view(captions.type):
        captions = captions.cast(pa.large_string())
    if pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type):
        try:
            return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(captions), ""), True)
        except pa.ArrowInvalid:  # text that is not UTF-8, which is passed on as it is
            pass
    return pc.is_null(captions)
