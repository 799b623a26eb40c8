"""The columns of Parquet files with images in them, as Hugging Face's datasets and the viewer of its hub read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from curator_dask.errors import ConfigError
from curator_dask.frames.names import CAPTION_COLUMN
from curator_dask.outputs.export_columns import as_pickled

#: Columns that an export makes.
IMAGE, TEXT = "image", "text"
#: Of an image: what ``datasets.Image`` holds.
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
#: Where datasets writes its features into an Arrow schema, and looks for them.
METADATA_KEY = b"huggingface"


def takes_texts(columns: Sequence[str], caption: str | None) -> bool:
    """Whether samples' ``.txt`` are read: a column of captions is asked for, or none of the rows' columns has them."""
    return caption is not None or not {CAPTION_COLUMN, TEXT} & {*columns}


def check_hub(columns: pa.Schema, caption: str | None) -> None:
    """Raise ConfigError where columns cannot be in such a file.

    Parameters
    ----------
    columns
        Of the rows, but for those that are left out.
    caption
        The one that the captions are from.
    """
    if IMAGE in columns.names:
        raise ConfigError(
            f"the rows have a column {IMAGE!r}, as that of the images is called: give it another name, or leave out all"
            " columns (metadata=None, --metadata none)"
        )
    if caption is not None and caption != TEXT and TEXT in columns.names:
        raise ConfigError(
            f"caption={caption!r}: goes into a column {TEXT!r}, and the rows have one already: give it another name, or"
            " leave out all columns (metadata=None, --metadata none)"
        )
    for each in columns:
        _feature(_plain(each.type), each.name)


def hub_schema(
    columns: pa.Schema, texts: bool, classes: Mapping[str, Sequence[str]] | None = None
) -> pa.Schema:
    """The columns of the files: the image first, then its text where there is one, then the others.

    Parameters
    ----------
    columns
        Of the rows.
    texts
        There is a column of texts.
    classes
        By column the names of the classes that its numbers stand for.

    Returns
    -------
    Their schema, with the features for datasets in its metadata.
    """
    fields = [pa.field(IMAGE, IMAGE_TYPE)]
    fields += [pa.field(TEXT, pa.string())] if texts else []
    fields += [
        each.with_type(_plain(each.type)).remove_metadata()
        for each in columns
        if not (texts and each.name == TEXT)
    ]
    features = {each.name: _feature(each.type, each.name) for each in fields[1:]}
    features |= {
        name: _with_names(features[name], names)
        for name, names in (classes or {}).items()
        if name in features
    }
    said = {"info": {"features": {IMAGE: {"_type": "Image"}, **features}}}
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(said).encode()})


def _with_names(feature: Any, names: Sequence[str]) -> Any:
    """The feature of whole numbers, or of lists of these, with the names of classes; others as they are."""
    if isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
        return {**feature, "feature": _with_names(feature["feature"], names)}
    is_whole = isinstance(feature, Mapping) and "int" in str(feature.get("dtype"))
    return {"names": [*names], "_type": "ClassLabel"} if is_whole else feature


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values, which is how datasets reads one; others as workers have them."""
    return kind.value_type if pa.types.is_dictionary(kind) else as_pickled(kind)


def _feature(kind: pa.DataType, name: str) -> Any:
    """What ``generate_from_arrow_type`` of ``datasets.features`` makes of a type, as its JSON has it."""
    if pa.types.is_struct(kind):
        return {each.name: _feature(each.type, name) for each in kind}
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        # As datasets before 4 wrote it, which the later ones read, too. A Sequence of structs is a struct of lists.
        values = _feature(kind.value_type, name)
        if pa.types.is_struct(kind.value_type):
            return [values]
        length = {} if pa.types.is_list(kind) else {"length": kind.list_size}
        return {"feature": values, **length, "_type": "Sequence"}
    if pa.types.is_large_list(kind):
        return {"feature": _feature(kind.value_type, name), "_type": "LargeList"}
    return {"dtype": _dtype(kind, name), "_type": "Value"}


_NAMES = {
    pa.float16(): "float16",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.date32(): "date32",
    pa.date64(): "date64",
}


def _dtype(kind: pa.DataType, name: str) -> str:
    """What datasets calls a type that is not made of others."""
    if kind in _NAMES:
        return _NAMES[kind]
    same = (
        pa.types.is_null,
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_time,
        pa.types.is_timestamp,
        pa.types.is_duration,
        pa.types.is_decimal128,
        pa.types.is_decimal256,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_string,
        pa.types.is_large_string,
    )
    if any(is_kind(kind) for is_kind in same):
        return str(kind)
    raise ConfigError(
        f"the column {name!r} is {kind}, which Hugging Face's datasets has no feature for: give it another type, or"
        " leave out all columns (metadata=None, --metadata none)"
    )
