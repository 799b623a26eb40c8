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

from curator_dask.frames.record import FILTERED, FileRecord
from curator_dask.outputs.card_columns import section_of, what_it_is
from curator_dask.outputs.card_fields import said_in
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.markdown import block, cell, code, public, table
from curator_dask.outputs.shard_names import ONLY, TABLES
from curator_dask.runs.summary import installed_versions
from curator_dask.words import counted, sized

_FORM = 1
_OPEN = "*To be filled in by you.*"
_THOUSANDS = ("", "K", "M", "B", "T")
#: Options that say nothing of what is in the tars.
_ASIDE = ("overwrite", "append", "dry_run", "card", "sizes", "index")


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
        f"## What is in it\n\n{_content(summary, options, records)}",
        section_of(columns, records, options),
        f"## What was left out\n\n{_left_out(summary, making, records)}",
        f"## How it was made\n\n{_made(options, making)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(summary: ExportSummary, said: Mapping[str, Any]) -> str:
    import yaml  # Dask needs it, too

    names = [name for name, count in summary.splits.items() if count.samples]
    is_tables = summary.format == "parquet"
    deeper = "*/" * bool(summary.groups)
    files = [
        {
            "split": name,
            "path": f"{deeper}{TABLES}/{name}-*.parquet" if is_tables else f"{name}/{deeper}*.tar",
        }
        for name in names
    ]
    every = f"{deeper}{TABLES}/{ONLY}-*.parquet" if is_tables else f"{deeper}*.tar"
    known = {each: value for each, value in said.items() if each != "source"}
    known["size_categories"] = [size_category(summary.kept)]
    if summary.kept:
        known["configs"] = [
            {"config_name": "default", "data_files": files or [{"split": ONLY, "path": every}]},
            *_of_values(summary),
        ]
    hint = (
        "" if "license" in said else "# license: see https://huggingface.co/docs/hub/repositories-licenses\n"
    )
    return f"---\n{hint}{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def _of_values(summary: ExportSummary) -> list[dict[str, Any]]:
    """A configuration of each folder of one value, by which datasets load it alone."""
    found: dict[str, list[dict[str, str]]] = {}
    for folder, count in summary.groups.items():
        split, _, name = folder.rpartition("/")
        if count.samples and name.lower() != "default":
            split = split or ONLY
            path = f"{name}/{TABLES}/{split}-*.parquet" if summary.format == "parquet" else f"{folder}/*.tar"
            found.setdefault(name, []).append({"split": split, "path": path})
    return [{"config_name": name, "data_files": files} for name, files in found.items()]


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


def _content(summary: ExportSummary, options: ExportOptions, records: Sequence[FileRecord]) -> str:
    is_tables = summary.format == "parquet"
    noun = "Parquet file" if is_tables else "tar"
    total = f"{counted(summary.kept, 'sample')} in {counted(summary.shards, noun)}, {sized(summary.bytes)}."
    parts = [total]
    if summary.splits:
        rows = [
            [code(name), f"{count.samples:,}", _wanted(count.wanted), f"{count.shards:,}", sized(count.bytes)]
            for name, count in summary.splits.items()
        ]
        parts.append(table(["split", "samples", "asked for", f"{noun}s", "size"], rows))
        kept = [f"that have the same {code(options.split_by)}"] if options.split_by else []
        kept += ["that are near copies of one another"] if options.split_groups else []
        if kept:
            parts.append(f"Rows {' or '.join(kept)} are in the same split.")
    if summary.groups:
        rows = [
            [name, count.value or "", f"{count.samples:,}", f"{count.shards:,}", sized(count.bytes)]
            for name, count in summary.groups.items()
        ]
        rows = [[code(name), code(value) if value else "", *more] for name, value, *more in rows]
        parts.append(
            f"Folders of {noun}s, each of one value of {code(options.by or '')}:\n\n"
            + table(["folder", "value", "samples", f"{noun}s", "size"], rows)
        )
    if summary.fields and not is_tables:
        fields = [[code(f".{suffix}"), f"{count:,}"] for suffix, count in sorted(summary.fields.items())]
        parts.append(f"Files of the samples, in WebDataset's form:\n\n{table(['file', 'samples'], fields)}")
    if options.caption is not None:
        parts.append(_captions(summary, options, records))
    for column in options.npy or ():
        what = what_it_is(column, records)
        parts.append(f"{code(f'.{column}.npy')}: a NumPy array, the column {code(column)} ({what}).")
    if not options.bucket_size and (summary.images_smaller or summary.images_converted):
        parts.append(
            f"{counted(summary.images_smaller, 'image', 'was', 'were')} made smaller, and"
            f" {summary.images_converted:,} put into another format alone; all other files are byte for byte those of"
            f" the source{', but for metadata' * bool(options.strip_metadata)}."
        )
    if options.strip_metadata is not None:
        parts.append(_stripped(summary, options))
    if summary.crops.images:
        size = options.bucket_size or ""
        to = f"the size in {code(size)}" if options.size_column else size
        parts.append(
            f"{counted(summary.crops.images, 'image', 'was', 'were')} resized and cropped to {to}, but those that had"
            f" it; what was cropped is in each {code('.json')}, and all else is that of the"
            f" source{', but for metadata' * bool(options.strip_metadata)}."
        )
    if options.encoding is not None:
        parts.append(options.encoding.told())
    parts += [each.told() for each in options.states]
    if summary.errors:
        some = counted(summary.errors.total(), "sample", "has", "have")
        parts.append(f"{some} an image that could not be used: {_counts(summary.errors)}.")
    return "\n\n".join(parts)


def _stripped(summary: ExportSummary, options: ExportOptions) -> str:
    """What metadata the images do not have any more."""
    what = {
        "all": "Metadata (EXIF but for the orientation, XMP, IPTC, comments, thumbnails, C2PA manifests)",
        "location": "Where images were taken (GPS coordinates and names of places in EXIF, XMP and IPTC)",
    }[options.strip_metadata or "all"]
    count = counted(summary.images_stripped, "image file")
    pixels = "" if options.bucket_size else "; their pixels are as they were encoded"
    said = f"{what} was taken out of {count}{pixels}."
    if options.bucket_size:
        said += " What is resized has none either."
    kept = sum(count for kind, count in summary.images_left.items() if kind.startswith("metadata stays"))
    return f"{said} {counted(kept, 'file')} of other formats, or damaged, may have theirs." if kept else said


def _captions(summary: ExportSummary, options: ExportOptions, records: Sequence[FileRecord]) -> str:
    """Where the texts of the samples are from."""
    column = options.caption or ""
    said = f"{code('.txt')}: the column {code(column)} ({what_it_is(column, records)})."
    left = summary.no_caption - summary.kept_caption
    if summary.kept_caption:
        kept = counted(summary.kept_caption, "sample", "keeps", "keep")
        said += f" {kept} the text that was there, as the column is null."
    if left:
        what = "an empty one" if options.portable else "none"
        said += (
            f" {counted(left, 'sample', 'has', 'have')} {what}, as the column is null and there was no text."
        )
    return said


def _wanted(wanted: float | int | None) -> str:
    if wanted is None:
        return "the rest"
    return f"{wanted:.6g}" if isinstance(wanted, float) else f"{wanted:,}"


def _left_out(summary: ExportSummary, making: Making | None, records: Sequence[FileRecord]) -> str:
    notes: list[str] = []
    if making is None:
        before, notes = _left_before(records)
        rows = summary.rows + sum(before.values())
        left = {**before, "filtered out": summary.filtered}
    else:
        rows, left = making.rows, dict(making.left_out)
    left |= {"without a whole sample in the tars": summary.missing}
    counts = [["rows", f"{rows:,}"], *([why, f"{count:,}"] for why, count in left.items() if count)]
    counts.append(["in the tars", f"{summary.kept:,}"])
    if (stay := summary.kept + sum(left.values()) - rows) > 0:  # tars are added to, and stay as they are
        counts.append(["of these by now left out, or not among the rows", f"{stay:,}"])
    parts = [table(["", "rows"], counts), *notes]
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


def _left_before(records: Sequence[FileRecord]) -> tuple[dict[str, int], list[str]]:
    """How many rows filters of an output have left out before the export, by what they kept; and what is not known."""
    left: dict[str, int] = {}
    for record in records:
        for said in record.filters:
            why = f"left out before, all but {_kept(said)}"
            left[why] = left.get(why, 0) + int(said.get("rows", 0)) - int(said.get("kept", 0))
    unknown = any(FILTERED in record.derived and not record.filters for record in records)
    note = "The rows are of an output that was filtered before; it does not say how many were left out then."
    return left, [note] * unknown


def _kept(said: Mapping[str, Any]) -> str:
    """What a filter has kept, as `FileRecord.filters` has it."""
    parts = [code(said["where"])] if said.get("where") else []
    if top := said.get("top"):
        parts.append(f"the best by {code(top[0])}: {_wanted(top[1])}")
    if cap := said.get("at_most"):
        which = f", the best by {code(said['by'])}" if said.get("by") else ""
        parts.append(f"{counted(cap[1], 'row')} of each {code(cap[0])}{which}")
    if near := said.get("nearest"):
        parts.append(f"the {near[0]:,} that are nearest to an image of {near[1]:,} others")
    return " and ".join(parts) or "some"


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
    hidden: list[str] = []
    written = yaml.safe_dump(public(_without_empty(told), hidden), sort_keys=False, allow_unicode=True)
    some = f"\n\nLeft out there, as it is nobody else's (folders, accounts, keys): {', '.join(map(code, hidden))}."
    versions = [[code(each), code(version)] for each, version in installed_versions().items()]
    return f"By {by}:\n\n{block(written, 'yaml')}{some if hidden else ''}\n\n{table(['package', 'version'], versions)}"


def _without_empty(told: Mapping[str, Any]) -> dict[str, Any]:
    """Without lists that ask for nothing."""
    return {
        name: _without_empty(value) if isinstance(value, Mapping) else value
        for name, value in told.items()
        if not (isinstance(value, list | tuple) and not value)
    }
