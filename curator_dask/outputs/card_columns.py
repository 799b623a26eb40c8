"""What each column of an export is, in words for its card: by the records of the files that its rows are from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from curator_dask.frames.names import ERROR_COLUMN, IMAGE_DEFINITIONS, URL_COLUMN
from curator_dask.frames.record import (
    ANSWERS,
    BALANCE,
    BOXES,
    MADE_BY,
    ON,
    TABLE,
    TEXT,
    TEXTS,
    FileRecord,
    text_statistic,
)
from curator_dask.outputs.cropping import CROPPED
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.markdown import cell, code, public, table
from curator_dask.outputs.shrinking import EXPORTED

#: Ends the name of a column that says where the texts of another were cut.
_CUT = "_cut"
#: By the end of the name, what a column says of things that were found.
_BOXES = {
    "boxes": "left, top, right and bottom, as shares of width and height, of ",
    "labels": "the names of ",
    "scores": "the scores of ",
    "number": "the number of ",
    "area": "the share of the area covered by ",
}


def section_of(columns: pa.Schema, records: Sequence[FileRecord], options: ExportOptions) -> str:
    """The section of a card that says what each column is, as far as it is known; empty where there is none."""
    fields = [each for each in columns if each.name != URL_COLUMN]
    if not fields:
        return ""
    rows = [[code(each.name), code(str(each.type)), what_it_is(each.name, records)] for each in fields]
    place = "in the Parquet file beside each tar"
    if options.is_tables:
        place = "in the Parquet files, beside the images"
    elif options.metadata != "parquet":
        place = "in the JSON of each sample"
    return f"## Columns\n\nThey are {place}.\n\n{table(['column', 'type', 'what it is'], rows)}"


def what_it_is(name: str, records: Sequence[FileRecord]) -> str:
    """What a column is, by what the records say of its making; else it is of the source."""
    told: dict[str, None] = {}  # files may be of several models
    for record in records:
        if name in record.embeddings:
            told[_of_model("vectors of", record.embeddings[name])] = None
        elif name in record.scores:
            told[_of_score(name, record)] = None
        elif (stem := _statistic(name, record)) is not None:
            told[f"statistic of the image: {cell(IMAGE_DEFINITIONS[stem])}"] = None
        elif name in record.derived:
            told["computed on the way"] = None
    if name in CROPPED.names:
        size = "of the image before it was resized, upright"
        told = {size if "original" in name else "pixels that were cropped off the resized image": None}
    if name in EXPORTED.names:
        told = {"of the image as it is in the tar": None}
    if name == ERROR_COLUMN:
        told = {"why the image could not be used; null where it could": None}
    return "; or ".join(told) or "of the source"


def _statistic(name: str, record: FileRecord) -> str | None:
    """The statistic that a column is, as the record says, or by its name, which may have a prefix."""
    way = record.read_by.get(name)
    if isinstance(way, str) and way.partition(" ")[0] in IMAGE_DEFINITIONS:
        return way.partition(" ")[0]
    if name not in record.derived:
        return None
    found = [each for each in IMAGE_DEFINITIONS if name == each or name.endswith(f"_{each}")]
    return found[0] if found else None


def _of_model(what: str, made: Mapping[str, Any]) -> str:
    parts = [f"{what} {code(public(made.get('model', '?')))}"]
    parts += [f"from {code(public(made['source']))}"] if made.get("source") else []
    parts += [f"weights {code(made['weights'])}"] if made.get("weights") else []
    parts += [f"prompt {code(made['prompt'])}"] if made.get("prompt") else []
    parts += [code(made["generation"])] if made.get("generation") else []
    parts += [code(made["detection"])] if made.get("detection") else []
    parts += [f"with {code(made['cover'])}"] if made.get("cover") else []
    has_output = made.get("output") and made["output"] not in (TEXT, BOXES, ANSWERS)
    parts += [f"output {code(made['output'])}"] if has_output else []
    parts += [f"computed in {code(made['dtype'])}"] if made.get("dtype") else []
    return ", ".join(parts)


def _of_score(name: str, record: FileRecord) -> str:
    said = record.scores[name]
    if MADE_BY in said and said[MADE_BY].get("output") == TEXT:
        texts = name.removesuffix(_CUT)
        if texts != name and (record.scores.get(texts) or {}).get(MADE_BY) == said[MADE_BY]:
            return f"whether the text of {code(texts)} was cut, as it had not ended after as many tokens as it may have"
        return _of_model("captions by", said[MADE_BY])
    if MADE_BY in said and said[MADE_BY].get("output") == BOXES:
        kind = name.rpartition("_")[2]
        return f"{_BOXES.get(kind, '')}{_of_model('what', said[MADE_BY])}, found in the image"
    if MADE_BY in said and said[MADE_BY].get("output") == ANSWERS:
        return _of_model("answer, probability or sum of them, of", said[MADE_BY])
    if MADE_BY in said:
        return _of_model("class, or probability, of", said[MADE_BY])
    if TABLE in said:
        return f"of the table {code(public(said[TABLE]))}, by {code(said.get(ON, '?'))}"
    if said.get(BALANCE) == "concepts":
        return "of a balance by concepts"
    if said.get(BALANCE) == "clusters":
        return "of a balance by clusters"
    if said.get(BALANCE) == "captions":
        return f"how many rows have the same text in {code(said.get(TEXTS, '?'))}"
    if (found := text_statistic(said)) is not None:
        definition, model = found
        by = f", by {code(model)}" if model else ""
        return f"statistic of the text in {code(said[TEXTS])}: {cell(definition)}{by}"
    if TEXTS in said and "vectors" not in said:
        return f"{cell(said.get('head', 'statistic'))}, by {code(said[TEXTS])}"
    parts = [f"score by {code(public(said.get('head', '?')))}"]
    inputs = [said[each] for each in ("vectors", TEXTS) if isinstance(said.get(each), str)]
    return f"{parts[0]} of {' and '.join(map(code, inputs))}" if inputs else parts[0]
