"""Outputs whose rows have no image anywhere, as those of an import before a fetch: told before there is a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from curator_dask.errors import DatasetError, OutputError
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.storage import Options
from curator_dask.webdataset.parquet import NoImagesError, ParquetShard, image_column, is_parquet_shard

_LOOKED_AT = 4  # tables


def check_images(records: Iterable[FileRecord | None], options: Options) -> None:
    """See that the tables have images of which an output was imported; some of them are looked at.

    Parameters
    ----------
    records
        Of the files.
    options
        For fsspec, of the tables.

    Raises
    ------
    OutputError
        They have none.
    """
    urls = dict.fromkeys(each.url for each in records if each is not None and each.url is not None)
    said = None
    for url in islice(filter(is_parquet_shard, urls), _LOOKED_AT):
        shard = ParquetShard.of(url)
        try:
            with open_parquet(shard.path, options) as file:
                image_column(file.schema_arrow, shard.image)
        except NoImagesError as error:
            said = said or f"{shard.path}: {error}"
        except Exception as error:  # pyarrow's or a store's own: who reads the images tells it
            if not isinstance(error, DatasetError):
                continue
            return
        else:
            return
    if said is not None:
        raise OutputError(
            f"{said}. The rows have no images yet, of which statistics could be made: fetch those that you want"
            " (curator-dask fetch), give their rows the vectors again (import --rows), and measure that output"
        )
