"""From images back to the rows of their shard: each finds its row, and what stages have made becomes columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask import backend
from curator_dask.errors import ShardError
from curator_dask.frames.columns import embedding_columns, to_array, vectors_to_list
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.rows.images import values_of, vectors_of
from curator_dask.rows.reasons import MISSING, NOT_FINITE, as_stored, reason_for, reasons_in
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.tasks import ImageObject, vector_of

#: Attributes of an image that become columns, with their types.
SCORES = {"aesthetic_score": pa.float32(), "nsfw_score": pa.float32()}

#: An image and the number of its row; None for one that a stage has made.
Placed = tuple[int | None, ImageObject]


def place(
    frame: Any,
    images: Sequence[ImageObject],
    reading: str,
    id_col: str,
    left_by: Mapping[Any, str] = MappingProxyType({}),
) -> list[Placed]:
    """The images with their rows, in the order of the rows, and a remark on the rows that were left out.

    Parameters
    ----------
    frame
        The rows that were read.
    images
        What came out of the last stage.
    reading
        By what name the reader gave them their origins.
    id_col
        Column of the keys.
    left_by
        By the origin of an image that was left out, the name of the stage.

    Raises
    ------
    ShardError
        An image comes from another shard's reading, or a stage has changed its key.
    """
    ids, urls = values_of(to_array(frame[id_col])), values_of(to_array(frame[URL_COLUMN]))
    placed: list[Placed] = []
    for image in images:
        if image.origin is None:
            placed.append((None, image))
            continue
        name, row = image.origin
        if name != reading:
            raise ShardError(
                f"{image.image_path}: a stage has kept this image back and given it on with another shard's. A stage"
                " must give on the images of a batch with this batch, or leave them out"
            )
        for column, key in ((id_col, ids[row]), (URL_COLUMN, urls[row])):
            if not _same(image.metadata.get(column, key), key):
                raise ShardError(
                    f"{image.image_path}: a stage has changed metadata[{column!r}] from {key!r} to"
                    f" {image.metadata[column]!r}, by which the row finds its image. Use a field of another name"
                )
        placed.append((row, image))
    placed.sort(key=lambda item: len(ids) if item[0] is None else item[0])
    left = set(range(len(ids))) - {row for row, _ in placed}
    names: dict[str, list[str]] = {url: [] for url in urls if url is not None}
    stages: dict[str, Counter[str]] = {url: Counter() for url in names}
    for row in sorted(left):
        if urls[row] is not None:
            names[urls[row]].append(str(ids[row]))
            if (stage := left_by.get((reading, row))) is not None:
                stages[urls[row]][stage] += 1
    for url, filtered in names.items():
        fact = fact_of(filtered)
        remark(url, "filtered", fact and {**fact, **({"by": dict(stages[url])} if stages[url] else {})})
    return placed


def table_of(
    frame: Any,
    placed: Sequence[Placed],
    fields: Sequence[tuple[str, pa.DataType]],
    vectors: Sequence[tuple[str, str]],
) -> pa.Table:
    """The rows of the images: the frame's columns, then `fields`, the embeddings and ``image_error``.

    Parameters
    ----------
    frame
        The rows that were read.
    placed
        The images with the numbers of their rows.
    fields
        Columns that stages make: names, and types.
    vectors
        By the column of each embedding, the field of an image that it comes from.

    Raises
    ------
    ShardError
        A value does not fit its column.
    """
    table = backend.frame_to_arrow(frame)
    rows, images = [row for row, _ in placed], [image for _, image in placed]
    made = {}
    for name, kind in fields:
        values = [getattr(image, name) if name in SCORES else image.metadata.get(name) for image in images]
        made[name] = _array(values, kind, name, images)
    reasons = {column: [_reason(image, field) for image in images] for column, field in vectors}
    for column, field in vectors:
        made[column] = _vectors(images, field, reasons[column])
    others = [name for name in embedding_columns(frame) if name not in made]
    kept_reasons = _kept_reasons(frame, others)
    errors = []
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        said = {column: each[number] for column, each in reasons.items()}
        before = {name: None if row is None else each[row] for name, each in kept_reasons.items()}
        errors.append(as_stored({**before, **said}) if said else image.error or as_stored(before))
    made[ERROR_COLUMN] = pa.array(errors, pa.string())
    kept = {
        name: _patched(table.column(name), name, rows, images, name in others)
        for name in table.column_names
        if name not in made
    }
    return pa.table({**kept, **made})


def _reason(image: ImageObject, field: str) -> str | None:
    """Why an image has no vector in a field; None if it has one."""
    if image.error or field in image.errors:
        return image.error or image.errors[field]
    vector = vector_of(image, field)
    if vector is None:
        return f"{MISSING}: the stages left the image without an embedding"
    return None if np.isfinite(vector).all() else f"{NOT_FINITE}: a stage gave NaN or infinity"


def _kept_reasons(frame: Any, columns: Sequence[str]) -> dict[str, list[str | None]]:
    """Why rows have no vector in columns that were there before."""
    if ERROR_COLUMN not in frame.columns:
        return {}
    before = [reasons_in(stored) for stored in to_array(frame[ERROR_COLUMN]).to_pylist()]
    lacking = {name: to_array(frame[name]).is_null().to_pylist() for name in columns}
    return {
        name: [reason_for(name, old) if lacks else None for old, lacks in zip(before, nulls, strict=True)]
        for name, nulls in lacking.items()
    }


def _patched(
    column: pa.ChunkedArray, name: str, rows: list[int | None], images: list[ImageObject], is_vectors: bool
) -> pa.ChunkedArray:
    """A column of the dataset for the rows that are left; only values that a stage has changed are made anew."""
    whole = (vectors_of if is_vectors else values_of)(to_array(column))
    before = [None if row is None else whole[row] for row in rows]
    # What a stage has taken out of the metadata is the row's all the same.
    now = [image.metadata.get(name, old) for image, old in zip(images, before, strict=True)]
    changed = [
        number for number, (new, old) in enumerate(zip(now, before, strict=True)) if not _same(new, old)
    ]
    kept = column.take(pa.array(rows, pa.int64()))
    if not changed:
        return kept
    patch = _array([now[each] for each in changed], column.type, name, [images[each] for each in changed])
    order = np.arange(len(rows))
    order[changed] = len(rows) + np.arange(len(changed))
    both = pa.chunked_array([*kept.chunks, patch], column.type).unify_dictionaries()
    return both.take(pa.array(order))


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    try:
        return bool(one == other)
    except Exception:  # of a user's own type
        return False


def _array(values: list[Any], kind: pa.DataType, name: str, images: list[ImageObject]) -> pa.Array:
    try:
        if not any(_is_lossy(value, kind) for value in values):
            return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    for value, image in zip(values, images, strict=True):
        reason = "it would lose digits" if _is_lossy(value, kind) else ""
        try:
            pa.array([value], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            reason = str(error)
        if reason:
            named = "string" if pa.types.is_large_string(kind) else kind  # as it is in the file
            raise ShardError(
                f"{image.image_path}: field {name!r}: expected {named}, found {value!r} ({reason}). Give the values the"
                " type of their column; that of a new one is said in the stage's outputs() or the writer's fields"
            )
    raise ShardError(f"field {name!r}: its values together are no column of {kind}")


def _is_lossy(value: Any, kind: pa.DataType) -> bool:
    """Whether Arrow would take the value, and store another."""
    if not isinstance(value, float | np.floating):
        return False
    if pa.types.is_integer(kind):
        return not float(value).is_integer()
    narrow: dict[pa.DataType, Any] = {pa.float16(): np.float16, pa.float32(): np.float32}
    if kind not in narrow or not np.isfinite(value):
        return False
    return abs(float(value)) > float(np.finfo(narrow[kind]).max)


def _vectors(images: list[ImageObject], field: str, reasons: list[str | None]) -> pa.Array:
    valid = np.array([reason is None for reason in reasons], bool)
    good = (image for image, is_valid in zip(images, valid, strict=True) if is_valid)
    vectors = [np.asarray(vector_of(image, field), np.float32) for image in good]
    lengths = {len(vector) for vector in vectors}
    if len(lengths) > 1:
        raise ShardError(
            f"{images[0].image_path}: expected embeddings of one length, found {sorted(lengths)}: a stage has changed"
            " some of them"
        )
    matrix = np.zeros((len(images), lengths.pop() if lengths else 0), np.float32)
    if vectors:
        matrix[valid] = np.stack(vectors)
    return vectors_to_list(matrix, valid)
