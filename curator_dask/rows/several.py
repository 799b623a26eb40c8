"""Rows of shards whose images are samples of their own: what a row says of the sample that its image is of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.errors import ConfigError, DatasetError
from curator_dask.rows.ids import check_id_type
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.storage import Options
from curator_dask.webdataset.keys import id_text
from curator_dask.webdataset.parquet import ParquetShard, image_column
from curator_dask.webdataset.several_names import COLUMNS, COUNT, NAME, NUMBER, SAMPLE
from curator_dask.webdataset.several_rows import Lists, lists_of
from curator_dask.webdataset.shards import ShardRange
from curator_dask.webdataset.stamps import stamp

#: Of the columns that rows get besides that of the sample's key.
TYPES = {NUMBER: pa.int64(), COUNT: pa.int64(), NAME: pa.string()}
_WITH_PARQUET = (
    "each_image=True (--each-image): the rows of {} are from Parquet files beside the tars, a row a sample. Take them"
    " from the tars, a row an image, with metadata='tar' (--metadata tar)"
)


def check_source(each: bool, root: str) -> None:
    """Raise ConfigError where rows of samples, from Parquet beside tars, would be taken for rows of images."""
    if each:
        raise ConfigError(_WITH_PARQUET.format(root))


def columns_of_images(found: pa.Schema, id_col: str, path: str) -> pa.Schema:
    """The columns of rows that are images of lists, by those of the rows with the lists.

    Raises
    ------
    DatasetError
        One has the name of one that is made; or the keys' is of a type that is none of keys.
    """
    if taken := [name for name in found.names if name in COLUMNS]:
        raise DatasetError(
            f"{path}: has columns {taken}, and a row an image gets columns of these names, {', '.join(COLUMNS)}: give"
            " yours other names"
        )
    at = found.get_field_index(id_col)
    kind = found.field(at).type
    check_id_type(kind, id_col)
    fields = [found.field(place) for place in range(len(found.names))]
    fields[at : at + 1] = [pa.field(id_col, pa.string()), pa.field(SAMPLE, kind)]
    return pa.schema([*fields, *(pa.field(name, each) for name, each in TYPES.items())])


class RowsOfImages:
    """The rows of a range of images in lists.

    Parameters
    ----------
    file, part
        The Parquet file, and which of its images.
    options
        For fsspec.

    Attributes
    ----------
    start, stop
        Of the rows that have these images.
    """

    def __init__(self, file: pq.ParquetFile, part: ShardRange, options: Options) -> None:
        shard = ParquetShard.of(part.shard.url)
        column = image_column(file.schema_arrow, shard.image, several=True)
        self._url = part.shard.url
        self._lists: Lists = lists_of(file, shard.path, column, stamp(shard.path, options))
        stop = len(self._lists) if part.stop is None else min(part.stop, len(self._lists))
        self._images = np.arange(part.start, max(part.start, stop), dtype=np.int64)
        self._rows = self._lists.rows_of(self._images)
        self.start, self.stop = (int(self._rows[0]), int(self._rows[-1]) + 1) if len(self._rows) else (0, 0)

    def of(self, table: pa.Table, id_col: str) -> pa.Table:
        """A row an image of the rows from `start` to `stop`, with their keys in a column.

        What rows have no image is remarked.
        """
        lists, every = self._lists, self._rows - self.start
        numbers = self._images - lists.firsts[self._rows]
        at = table.column_names.index(id_col)
        texts = [id_text(each)[0] for each in table.column(at).to_pylist()]
        made = [
            f"{texts[row]}_{number}" for row, number in zip(every.tolist(), numbers.tolist(), strict=True)
        ]
        names = (
            pa.nulls(len(every), pa.string())
            if lists.paths is None
            else lists.paths.take(pa.array(self._images))
        )
        samples = table.column(at).take(pa.array(every))
        table = table.take(pa.array(every)).set_column(at, id_col, pa.array(made, pa.string()))
        for name, column in (
            (SAMPLE, samples),
            (NUMBER, pa.array(numbers)),
            (COUNT, pa.array(lists.counts[self._rows], pa.int64())),
            (NAME, names),
        ):
            table = table.append_column(name, column)
        empty = np.flatnonzero(lists.counts == 0).tolist()
        remark(self._url, "imageless", fact_of(f"row {row}" for row in empty))
        return table
