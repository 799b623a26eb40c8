"""The image of each row, found by shard and key, and the reason where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa

from curator_dask.errors import ImageError
from curator_dask.frames.columns import list_to_matrix, to_array
from curator_dask.frames.names import MESSAGE_COLUMN, STATUS_COLUMN
from curator_dask.rows.orphans import remark_orphans
from curator_dask.rows.reasons import DAMAGED, MISSING, Reason
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.webdataset.folders import is_folder_shard, kind_of
from curator_dask.webdataset.index import ShardIndex, warn_once
from curator_dask.webdataset.opening import Reader, open_shard
from curator_dask.webdataset.parquet import file_of
from curator_dask.webdataset.parquet_reader import ParquetReader
from curator_dask.webdataset.stamps import Watched

_MOST = 200  # characters of what a downloader says


def read_images(
    ids: Sequence[Any],
    urls: Sequence[str | None],
    id_col: str,
    *,
    use_index_files: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    found_as: dict[int, tuple[str, str]] | None = None,
    image_member: str | None = None,
    watched: Watched | None = None,
    opener: Callable[..., AbstractContextManager[Reader]] | None = None,
) -> Iterator[tuple[int, Any]]:
    """The encoded images of rows, shard by shard, in the order of the tars.

    What is noticed of a shard on the way becomes remarks on it.

    Parameters
    ----------
    ids, urls
        Key and shard of each row.
    id_col
        Column of the keys.
    use_index_files
        See `curator_dask.webdataset.reader.ShardReader`.
    storage_options
        For fsspec.
    found_as
        Filled in with the key in the tar and the member's name, or its file's, by row, before the row's image is given.
    image_member
        See `Sample.image`.
    watched
        Gets the tars. An image is a view of its tar: `Watched.check` is due when the last one was decoded.
    opener
        Opens a shard, in the place of `open_shard`: it may keep those that are open.

    Yields
    ------
    row
        Number of the row; each comes once.
    image
        Its bytes, or the error in their place.

    Raises
    ------
    ShardError
        A shard cannot be read at all.
    """
    rows_of: dict[str | None, list[int]] = {}
    for row, url in enumerate(urls):
        rows_of.setdefault(url, []).append(row)
    for url, rows in rows_of.items():
        if url is None:
            yield from (
                (row, ImageError(f"{MISSING}: the row has no shard (__url__ is null)")) for row in rows
            )
            continue
        place = kind_of(url)
        if watched is not None:
            watched.begin(url)
        with (opener or open_shard)(
            url, use_index_files=use_index_files, storage_options=storage_options
        ) as reader:
            index = reader.index
            if index.duplicates:
                some = ", ".join(index.duplicates[:3])
                warn_once(f"{url}: {len(index.duplicates)} names occur again, the first is taken: {some}")
            wanted = [ids[row] for row in rows]
            found = index.find(wanted)
            if (found < 0).any() and not index.scanned:
                listed, index = index, reader.rescan()
                found = index.find(wanted)
                if index.samples != listed.samples:
                    warn_once(
                        f"{file_of(url)[:-4]}.idx: the index file does not fit {url}: the tar is scanned instead"
                    )
            in_order = sorted(zip(found.tolist(), rows, strict=True))
            images = (index.samples[place].image(image_member) for place, _ in in_order if place >= 0)
            reader.expect(each for each in images if each is not None)
            for position, row in in_order:
                if position < 0:
                    what = f"no sample {ids[row]!r} in the {place}"
                    yield row, ImageError(f"{MISSING}: {what}{why_missing(index, ids[row])}")
                    continue
                member = index.samples[position].image(image_member)
                if member is None:
                    what = f"the sample has no {image_member or 'image'}"
                    yield row, ImageError(f"{MISSING}: {what}{why_missing(index, ids[row])}")
                    continue
                if found_as is not None:
                    name = member.target if is_folder_shard(url) else member.name
                    found_as[row] = (index.samples[position].key, name)
                try:
                    image: Any = reader.read(member)
                except ImageError as error:
                    image = error
                yield row, image
            if isinstance(reader, ParquetReader):
                reader.check_unchanged()
            if reader.index is not index:  # what was read showed the index file to be out of date
                index = reader.index
                found = index.find(wanted)
            remark(url, "damaged", index.problem)
            remark(url, "duplicates", fact_of(index.duplicates))
            remark(url, "unread", fact_of(map(str, index.unread)))
            remark_orphans(url, index, found, id_col, storage_options)


def remark_corrupt(said: Mapping[int, str], ids: Sequence[Any], urls: Sequence[str | None]) -> None:
    """Say of which images that were decoded their decoder's library said something.

    Parameters
    ----------
    said
        The library's words, by row.
    ids, urls
        Key and shard of each row.
    """
    names: dict[str, list[str]] = {}
    for row in sorted(said):
        names.setdefault(str(urls[row]), []).append(f"{ids[row]} ({said[row]})")
    for url, some in names.items():
        remark(url, "corrupt", fact_of(some))


def why_missing(index: ShardIndex, item: Any) -> str:
    """What may have cost an id its image, as the end of a reason."""
    unread = index.why_unread(item)
    if unread is not None:
        return f": {unread}"
    return f"{DAMAGED}: {index.problem}" if index.problem else ""


def add_status(errors: Sequence[str | None], frame: Any) -> list[str | None]:
    """The reasons of a frame's rows, where a missing image's also says what the downloader knew about it."""
    if STATUS_COLUMN not in frame.columns:
        return list(errors)
    statuses = values_of(to_array(frame[STATUS_COLUMN]))
    has_messages = MESSAGE_COLUMN in frame.columns
    messages = values_of(to_array(frame[MESSAGE_COLUMN])) if has_messages else [None] * len(statuses)
    return [
        f"{reason} (status: {status}{_words_of(message)})"
        if reason is not None
        and Reason.of(reason).kind == MISSING
        and status is not None
        and f" (status: {status}" not in reason  # taken over from an earlier run
        else reason
        for reason, status, message in zip(errors, statuses, messages, strict=True)
    ]


def _words_of(message: Any) -> str:
    """What a downloader says of an image, in one line that is not long."""
    # In ``image_error`` "; [" begins what is said of another column.
    words = " ".join(message.split()).replace("; [", ", [") if isinstance(message, str) else ""
    return f": {words[:_MOST]}{'…' if len(words) > _MOST else ''}" if words else ""


def vectors_of(column: pa.Array) -> list[Any]:
    """The vectors of an embedding column as NumPy arrays, None where it is null; as lists if they differ in length."""
    try:
        matrix, valid = list_to_matrix(column)
    except ValueError:
        return list(column.to_pylist())
    return [vector if good else None for vector, good in zip(matrix, valid, strict=True)]


def values_of(column: pa.Array) -> list[Any]:
    """The values of a column as Python has them; as text where it has not, and None where that fails too."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # of text that is not UTF-8 what can be read of it
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "replace") for value in raw]
    except Exception:  # a date before the year 1, a time zone that is not known
        try:
            return list(column.cast(pa.string()).to_pylist())
        except pa.ArrowException:
            return [None] * len(column)
