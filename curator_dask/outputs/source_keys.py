"""Samples by what they are in the source: a shard and a key. Rows of any file are found among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator_dask.frames.columns import to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.selecting import Folder
from curator_dask.rows.ids import exact_ids
from curator_dask.webdataset.keys import KeyTable

_COLUMNS = ("source_shard", "source_key")


@dataclass(frozen=True)
class SourceKeys:
    """Of some samples the keys that they have in the source; some 20 bytes each.

    Attributes
    ----------
    keys
        Ordered by shard.
    urls
        By shard, which of them are of it.
    """

    keys: pa.Array
    urls: Mapping[str, slice]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, tables: Sequence[pa.Table]) -> tuple[SourceKeys, np.ndarray]:
        """Those of tables with columns as the manifest's; and int64 (samples,): which sample of these each is."""
        nothing = pa.table({name: pa.array([], pa.string()) for name in _COLUMNS})
        some = [each.select(_COLUMNS).replace_schema_metadata() for each in tables]
        table = pa.concat_tables([nothing, *some])
        shards = table.column("source_shard").combine_chunks().dictionary_encode()
        if isinstance(shards, pa.ChunkedArray):
            shards = shards.combine_chunks()
        codes = shards.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(shards.dictionary) + 1))
        keys = table.column("source_key").cast(pa.large_string()).combine_chunks()
        urls = zip(shards.dictionary.to_pylist(), bounds[:-1], bounds[1:], strict=True)
        found = cls(
            (keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys).take(pa.array(order)),
            {url: slice(int(start), int(stop)) for url, start, stop in urls},
        )
        return found, order

    def rows_in(self, rows: Folder, name: str, id_col: str) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of a file are of one of these samples, int64 (n,) in order; and the places of these, int64 (n,).

        Parameters
        ----------
        rows, name
            The file.
        id_col
            Column of the keys, where it does not say it.
        """
        taken, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        if not len(self):
            return taken[0], places[0]
        path = rows.file(name)
        footer = read_footer(path, rows.options)
        id_col = (footer.record.id_col if footer.record else None) or id_col
        if {id_col, URL_COLUMN} <= {*footer.columns}:
            table = read_rows(path, rows.options, [id_col, URL_COLUMN])
            urls = to_array(table.column(URL_COLUMN)).cast(pa.string()).dictionary_encode()
            codes = urls.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            ids = to_array(table.column(id_col))
            for code, url in enumerate(urls.dictionary.to_pylist()):
                if (here := self.urls.get(url)) is None:
                    continue
                mine = np.flatnonzero(codes == code)
                found = KeyTable(self.keys[here].to_pylist()).find(exact_ids(ids.take(pa.array(mine))))
                taken.append(mine[found >= 0])
                places.append(here.start + found[found >= 0])
        every = np.concatenate(taken)
        order = np.argsort(every, kind="stable")
        return every[order], np.concatenate(places)[order]
