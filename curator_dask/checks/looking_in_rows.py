"""What one Parquet file with images is like: its footer, its keys, and some of its images."""

from __future__ import annotations

from curator_dask.checks.glancing import Glance
from curator_dask.checks.looking import Look, RowsFrom, has_failed, look, note, rows_of
from curator_dask.checks.shared_keys import key_hashes
from curator_dask.decode.orientation import upright_size
from curator_dask.decode.sniff import sniff
from curator_dask.errors import ImageError, ShardError
from curator_dask.rows.reasons import MISSING
from curator_dask.rows.remarks import EXAMPLES
from curator_dask.storage import Options
from curator_dask.webdataset.parquet import is_parquet_shard
from curator_dask.webdataset.parquet_reader import ParquetReader
from curator_dask.webdataset.several_names import is_each

_SUCCESS = "success"


def look_into(
    seen: Glance, id_col: str, rows_from: RowsFrom, images: int, max_pixels: int, options: Options = None
) -> Look:
    """Look into a shard, whatever it is; see `curator_dask.checks.looking.look`."""
    if is_parquet_shard(seen.shard.url):
        return look_in_rows(seen, id_col, images, max_pixels, options)
    return look(seen, id_col, rows_from, images, max_pixels, options)


def look_in_rows(seen: Glance, id_col: str, images: int, max_pixels: int, options: Options = None) -> Look:
    """Read a file's keys, statuses and captions, and the headers of some images, of a few row groups.

    Parameters
    ----------
    seen, id_col, images, max_pixels, options
        As for `curator_dask.checks.looking.look`.
    """
    found = Look(size=seen.size)
    if not seen.has_tar:
        return found
    _, statuses = rows_of(seen, found, id_col, options)
    found.rows = found.samples = found.members = seen.rows or 0
    try:
        with ParquetReader(seen.shard.url, options) as reader:
            found.suffixes[reader.column] = found.rows
            index = reader.index
            if is_each(seen.shard.url):  # what a row says of its download is of none of its images
                found.rows = found.samples = found.members = found.suffixes[reader.column] = len(
                    index.samples
                )
                statuses = None
            if id_col in (seen.columns[0].names if seen.columns else ()):  # numbers are of their file alone
                found.keys = key_hashes(index.samples)
            rows = reader.spread(images)
            reader.expect(index.samples[row].members[0] for row in rows)
            lacking = [row for row in rows if not _look_at(reader, row, found, max_pixels)]
            nulls = reader.nulls()
            found.text_size = reader.bytes_of(seen.columns[0].names if seen.columns else [])
    except ShardError as error:
        found.troubles["unreadable"] = str(error)
        return found
    succeeded = _SUCCESS in (statuses or ())
    failed = [row for row, status in enumerate(statuses or ()) if has_failed(status, succeeded)]
    found.statuses.update((statuses or [""])[row][:80] for row in failed)
    note(found, "not-downloaded", [index.samples[row].key for row in failed])
    others = [index.samples[row].key for row in lacking if row not in {*failed}]
    count = len(others) if nulls is None else max(len(others), nulls - len(failed))
    if count:
        found.facts["null-image"] = {"count": count, "examples": others[:EXAMPLES] or [""]}
    found.pictured = found.rows > count + len(failed)
    return found


def _look_at(reader: ParquetReader, row: int, found: Look, max_pixels: int) -> bool:
    """Whether the row has an image, whatever it is like."""
    sample = reader.index.samples[row]
    try:
        data = reader.read(sample.members[0])
        header = sniff(data, max_pixels)
    except ImageError as error:
        if str(error).startswith(MISSING):
            return False
        kind = str(error).partition(":")[0].partition(" (")[0]
        found.unusable.setdefault(kind, []).append(f"{sample.key}: {error}")
        return True
    found.images.append((header.kind, *upright_size(data, header), len(data)))
    if header.deep_gray:
        found.deep_gray.append(sample.key)
    return True
