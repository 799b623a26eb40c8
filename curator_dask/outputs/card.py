"""The card of a dataset: ``README.md`` in the folder of an export, as Hugging Face's hub and datasets read it.

It says what the summary and the records of the rows say, and leaves open what nothing there tells: what the images
are, where they are from, and under which licence.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from curator_dask.frames.names import ERROR_COLUMN, STATISTIC_DEFINITIONS, URL_COLUMN
from curator_dask.frames.record import BALANCE, MADE_BY, ON, TABLE, TEXTS, FileRecord
from curator_dask.outputs.card_fields import said_in
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.markdown import block, cell, code, public, table
from curator_dask.outputs.shrinking import EXPORTED
from curator_dask.runs.summary import installed_versions
from curator_dask.words import counted, sized

_FORM = 1
_OPEN = "*To be filled in by you.*"
#: Hugging Face's names of splits, by those that they take for the same.
_SAME = {"val": "validation", "valid": "validation", "dev": "validation"}
_THOUSANDS = ("", "K", "M", "B", "T")
#: Options that say nothing of what is in the tars.
_ASIDE = ("overwrite", "dry_run", "card", "sizes", "index")


@dataclass(frozen=True)
class Making:
    """What came before an export.

    Attributes
    ----------
    recipe
        All of what was done, the export too, as a recipe's file has it.
    rows
        Of the dataset.
    left_out
        Before the export, by why.
    passing, unknown
        By clause of the condition, rows that pass it alone, and rows of which it says nothing.
    """

    recipe: Mapping[str, Any]
    rows: int
    left_out: Mapping[str, int]
    passing: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)


def card_mark(options: ExportOptions, making: Making | None) -> Any:
    """What tells one card of the same tars from another, JSON-able."""
    return [_FORM, said_in(options.card), None if making is None else vars(making)]


def card_of(
    summary: ExportSummary,
    options: ExportOptions,
    columns: pa.Schema,
    records: Sequence[FileRecord],
    making: Making | None = None,
) -> str:
    """The text of a card.

    Parameters
    ----------
    summary
        Of the export.
    options
        By which it was made.
    columns
        That samples have, in the Parquet beside each tar or in their JSON.
    records
        Of the files of rows.
    making
        What came before.
    """
    said = said_in(options.card)
    name = said.get("pretty_name") or posixpath.basename(summary.path)
    parts = [
        _front_matter(summary, said),
        f"# {cell(name)}",
        f"{_OPEN} What the images and texts are, and what they are for.",
        f"## Licence\n\n{cell(said['license']) if 'license' in said else _OPEN}",
        f"## Source\n\n{cell(said['source']) if 'source' in said else f'{_OPEN} Where images and texts are from.'}",
        f"## What is in it\n\n{_content(summary, options)}",
        _columns(columns, records, options),
        f"## What was left out\n\n{_left_out(summary, making)}",
        f"## How it was made\n\n{_made(options, making)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(summary: ExportSummary, said: Mapping[str, Any]) -> str:
    import yaml  # Dask needs it, too

    names = [name for name, count in summary.splits.items() if count.samples]
    called = {name: _SAME.get(name, name) for name in names}
    if len({*called.values()}) < len(called):
        called = {name: name for name in names}
    files = [{"split": called[name], "path": f"{name}/*.tar"} for name in names]
    known = {each: value for each, value in said.items() if each != "source"}
    known["size_categories"] = [size_category(summary.kept)]
    if summary.kept:
        known["configs"] = [
            {"config_name": "default", "data_files": files or [{"split": "train", "path": "*.tar"}]}
        ]
    hint = (
        "" if "license" in said else "# license: see https://huggingface.co/docs/hub/repositories-licenses\n"
    )
    return f"---\n{hint}{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def size_category(samples: int) -> str:
    """Hugging Face's word for so many rows: ``n<1K``, ``1K<n<10K``, ..., ``n>1T``."""
    if samples < 1000:
        return "n<1K"
    zeros = len(str(samples)) - 1
    if zeros >= 12:
        return "n>1T"

    def written(power: int) -> str:
        return f"{10 ** (power % 3)}{_THOUSANDS[power // 3]}"

    return f"{written(zeros)}<n<{written(zeros + 1)}"


def _content(summary: ExportSummary, options: ExportOptions) -> str:
    total = f"{counted(summary.kept, 'sample')} in {counted(summary.shards, 'tar')}, {sized(summary.bytes)}."
    parts = [total]
    if summary.splits:
        rows = [
            [code(name), f"{count.samples:,}", _wanted(count.wanted), f"{count.shards:,}", sized(count.bytes)]
            for name, count in summary.splits.items()
        ]
        parts.append(table(["split", "samples", "asked for", "tars", "size"], rows))
        kept = [f"that have the same {code(options.split_by)}"] if options.split_by else []
        kept += ["that are near copies of one another"] if options.split_groups else []
        if kept:
            parts.append(f"Rows {' or '.join(kept)} are in the same split.")
    if summary.fields:
        fields = [[code(f".{suffix}"), f"{count:,}"] for suffix, count in sorted(summary.fields.items())]
        parts.append(f"Files of the samples, in WebDataset's form:\n\n{table(['file', 'samples'], fields)}")
    if summary.images_smaller or summary.images_converted:
        parts.append(
            f"{counted(summary.images_smaller, 'image', 'was', 'were')} made smaller, and"
            f" {summary.images_converted:,} put into another format alone; all other files are byte for byte those of"
            " the source."
        )
    if summary.errors:
        some = counted(summary.errors.total(), "sample", "has", "have")
        parts.append(f"{some} an image that could not be used: {_counts(summary.errors)}.")
    return "\n\n".join(parts)


def _wanted(wanted: float | int | None) -> str:
    if wanted is None:
        return "the rest"
    return f"{wanted:.6g}" if isinstance(wanted, float) else f"{wanted:,}"


def _columns(columns: pa.Schema, records: Sequence[FileRecord], options: ExportOptions) -> str:
    """What each column is, as far as it is known."""
    fields = [each for each in columns if each.name != URL_COLUMN]
    if not fields:
        return ""
    rows = [[code(each.name), code(str(each.type)), _what(each.name, records)] for each in fields]
    place = (
        "in the Parquet file beside each tar"
        if options.metadata == "parquet"
        else "in the JSON of each sample"
    )
    return f"## Columns\n\nThey are {place}.\n\n{table(['column', 'type', 'what it is'], rows)}"


def _what(name: str, records: Sequence[FileRecord]) -> str:
    told: dict[str, None] = {}  # files may be of several models
    for record in records:
        if name in record.embeddings:
            told[_of_model("vectors", record.embeddings[name])] = None
        elif name in record.scores:
            told[_of_score(record.scores[name])] = None
        elif name in record.derived and (stem := _statistic(name)) is not None:
            told[f"statistic of the image: {cell(STATISTIC_DEFINITIONS[stem])}"] = None
        elif name in record.derived:
            told["computed on the way"] = None
    if name in EXPORTED.names:
        told = {"of the image as it is in the tar": None}
    if name == ERROR_COLUMN:
        told = {"why the image could not be used; null where it could": None}
    return "; or ".join(told) or "of the source"


def _statistic(name: str) -> str | None:
    """The statistic that a column is, by its name, which may have a prefix."""
    found = [each for each in STATISTIC_DEFINITIONS if name == each or name.endswith(f"_{each}")]
    return found[0] if found else None


def _of_model(what: str, made: Mapping[str, Any]) -> str:
    parts = [f"{what} of {code(public(made.get('model', '?')))}"]
    parts += [f"from {code(public(made['source']))}"] if made.get("source") else []
    parts += [f"weights {code(made['weights'])}"] if made.get("weights") else []
    parts += [f"output {code(made['output'])}"] if made.get("output") else []
    parts += [f"computed in {code(made['dtype'])}"] if made.get("dtype") else []
    return ", ".join(parts)


def _of_score(said: Mapping[str, Any]) -> str:
    if MADE_BY in said:
        return _of_model("class, or probability,", said[MADE_BY])
    if TABLE in said:
        return f"of the table {code(public(said[TABLE]))}, by {code(said.get(ON, '?'))}"
    if said.get(BALANCE) == "concepts":
        return "of a balance by concepts"
    if BALANCE in said:
        return f"how many rows have the same text in {code(said.get(TEXTS, '?'))}"
    if TEXTS in said and "vectors" not in said:
        return f"{cell(said.get('head', 'statistic'))}, by {code(said[TEXTS])}"
    parts = [f"score by {code(public(said.get('head', '?')))}"]
    inputs = [said[each] for each in ("vectors", TEXTS) if isinstance(said.get(each), str)]
    return f"{parts[0]} of {' and '.join(map(code, inputs))}" if inputs else parts[0]


def _left_out(summary: ExportSummary, making: Making | None) -> str:
    if making is None:
        rows, left = summary.rows, {"filtered out": summary.filtered}
    else:
        rows, left = making.rows, dict(making.left_out)
    left |= {"without a whole sample in the tars": summary.missing}
    counts = [["rows", f"{rows:,}"], *([why, f"{count:,}"] for why, count in left.items() if count)]
    parts = [table(["", "rows"], [*counts, ["in the tars", f"{summary.kept:,}"]])]
    passing = {**({} if making is None else making.passing), **summary.passing}
    unknown = {**({} if making is None else making.unknown), **summary.unknown}
    if passing:
        rows_of = [[code(each), f"{count:,}", f"{unknown.get(each, 0):,}"] for each, count in passing.items()]
        parts.append(
            f"Conditions, each by itself:\n\n{table(['condition', 'rows that pass', 'unknown'], rows_of)}"
        )
    if summary.reasons:
        parts.append(f"Samples that are missing: {_counts(summary.reasons)}.")
    return "\n\n".join(parts)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {cell(each)}" for each, count in sorted(counts.items()))


def _made(options: ExportOptions, making: Making | None) -> str:
    import yaml

    default = ExportOptions()
    asked = {
        each: value
        for each, value in vars(options).items()
        if each not in _ASIDE and value != getattr(default, each)
    }
    told: Mapping[str, Any] = {"export": asked}
    if making is None:
        by = "`curator-dask export`, with these options"
    else:
        told, by = making.recipe, "`curator-dask curate`, by this recipe"
    written = yaml.safe_dump(public(told), sort_keys=False, allow_unicode=True)
    versions = [[code(each), code(version)] for each, version in installed_versions().items()]
    return f"By {by}:\n\n{block(written, 'yaml')}\n\n{table(['package', 'version'], versions)}"
