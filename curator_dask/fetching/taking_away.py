"""Rows whose image was taken down (`curator_dask.outputs.taken_down`): it is not asked for, and nothing of them stays.

They stay as rows, for the rows of a fetch are those of its table: with their key and this reason alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.fetching.failures import Failure
from curator_dask.fetching.files import ShardFiles, Stored
from curator_dask.fetching.layout import KEY
from curator_dask.frames.names import MESSAGE_COLUMN, STATUS_COLUMN
from curator_dask.outputs.taken_down import REMOVED, SHA256, URL, Marks, taken_down
from curator_dask.rows.lookup import TEXT

#: What becomes of such a row.
GONE = Failure(REMOVED, REMOVED, answered=True)


class TakenAway:
    """Which rows of a shard must have no image.

    Parameters
    ----------
    files
        Where the shards go.
    name
        Of the shard.
    keys, urls
        Of its rows.
    others
        Further columns of these, as they are called beside the tar.
    """

    def __init__(
        self,
        files: ShardFiles,
        name: str,
        keys: Sequence[str],
        urls: Sequence[str | None],
        others: pa.Table | None = None,
    ) -> None:
        self._record = taken_down(*files.target)
        columns = {KEY: pa.array(keys, pa.string()), URL: pa.array(urls, pa.string())}
        table = pa.table(
            {**(dict(zip(others.column_names, others.columns, strict=True)) if others else {}), **columns}
        )
        #: bool (rows,): whose image must not be there.
        self.gone = np.zeros(len(keys), bool)
        if self._record is not None:
            self.gone = self._record.mask(Marks.of(table, KEY, self._record.kinds, files.tar(name)))

    def before(self, found: list[Stored | Failure | None]) -> None:
        """Put the reason in the place of those rows that are known before anything is asked for."""
        for row in np.flatnonzero(self.gone).tolist():
            found[row] = GONE

    def after(self, found: list[Stored | Failure | None]) -> None:
        """The same of images that came, and are known by their digest."""
        if self._record is None:
            return
        digests = [each.sha256 if isinstance(each, Stored) else None for each in found]
        is_known = self._record.mask(Marks(len(found), {SHA256: [pa.array(digests, TEXT)]}))
        for row in np.flatnonzero(is_known).tolist():
            found[row] = GONE
        self.gone |= is_known


def without_content(rows: pa.Table) -> pa.Table:
    """The rows beside a tar, those that were taken down with key and reason alone."""
    gone = pc.equal(rows.column(STATUS_COLUMN), REMOVED).fill_null(False)
    if not pc.any(gone).as_py():
        return rows
    keep = {KEY, STATUS_COLUMN, MESSAGE_COLUMN}
    columns = []
    for field in rows.schema:
        column = rows.column(field.name)
        if field.name not in keep:
            places = pa.array(
                np.arange(len(rows)), mask=np.asarray(gone)
            )  # also of lists, which if_else has not
            column = column.take(places)
        columns.append(column)
    return pa.table(columns, schema=rows.schema)
