"""What the summary of an export says of what is in the new shards: images, vectors, captions, and what they lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from curator_dask.outputs.image_lines import image_lines
from curator_dask.outputs.twins_told import twins_told
from curator_dask.words import counted, ranked


class Contents(Protocol):
    """Those of `curator_dask.outputs.export_summary.ExportSummary`."""

    format: str
    emptied: list[str]
    twins_lost: int
    reasons: Counter[str]
    twins_filtered: int
    next_best: int
    no_index: dict[str, str]
    json_left_alone: list[str]
    no_caption: int
    kept_caption: int
    empty_caption: int
    no_vector: Counter[str]
    broken_vector: Counter[str]
    no_image: int
    members_left: Counter[str]


def content_lines(summary: Contents) -> list[str]:
    """The lines, of what there is to say."""
    lines: list[str] = []
    if summary.emptied:
        tars = counted(
            len(summary.emptied), "tar", "would have no sample and is", "would have no sample and are"
        )
        lines.append(
            f"  {tars} not there, {summary.emptied[0]}.tar for example: the numbers of the others have a gap"
        )
    if summary.twins_lost:
        rows = counted(summary.twins_lost, "row", "has", "have")
        done = [
            each
            for each in ("blurred", "cropped", "encoded")
            if any(f"not {each}" in kind for kind in summary.reasons)
        ]
        what = " or ".join(done)
        lines.append(
            f"  {rows} gone as duplicates of samples that could not be {what}: nothing of these groups is exported."
            f" Leave out what cannot be {what} (filter --where) before duplicates are looked for"
        )
    lines += [f"  {each}" for each in twins_told(summary.twins_filtered, summary.next_best)]
    if summary.no_index:
        name, why = next(iter(summary.no_index.items()))
        lines.append(f"  {counted(len(summary.no_index), 'tar')} without an index, {name} for example: {why}")
    if summary.json_left_alone:
        some = ", ".join(summary.json_left_alone[:3])
        lines.append(
            f"  {counted(len(summary.json_left_alone), 'sample')} got no fields, as the JSON is no object: {some}"
        )
    lines += image_lines(summary)
    if summary.no_image:
        lines.append(f"  {counted(summary.no_image, 'sample', 'has', 'have')} no image: it is null")
    if summary.members_left:
        left = ", ".join(f"{count:,} .{suffix}" for suffix, count in ranked(summary.members_left))
        lines.append(f"  left out of the Parquet files, but for what columns say: {left}")
    for suffix, count in ranked(+summary.no_vector):
        broken = summary.broken_vector[suffix]
        why = f"; of {broken:,} there is null among its numbers, for which NumPy has no place" * bool(broken)
        lines.append(f"  {counted(count, 'sample')} got no .{suffix}, as the vector is null{why}")
    if summary.no_caption:
        samples = counted(summary.no_caption, "sample")
        lines.append(
            f"  {samples} got no caption, as the column is null: {summary.kept_caption:,} of them keep the .txt"
            " that was there"
        )
    if summary.empty_caption:
        samples = counted(summary.empty_caption, "sample")
        lines.append(
            f"  {samples} got an empty caption, as the column has no text there: with null a .txt that was there"
            " would stay"
        )
    return lines


def trouble_lines(
    errors: Counter[str], reasons: Counter[str], examples: Mapping[str, Sequence[str]]
) -> list[str]:
    """The lines on what is wrong with samples, and why others are missing.

    Parameters
    ----------
    errors
        Samples whose row has an ``image_error``, by kind of reason.
    reasons, examples
        Why others are missing.
    """
    lines = []
    if errors:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in ranked(errors))
        lines.append(
            f"  {errors.total():,} of the samples have an image_error ({kinds}):"
            " where='image_error is null' (--where) leaves them out"
        )
    for reason, count in ranked(reasons):
        lines.append(f"  {count:,} x {reason}, for example {'; '.join(examples.get(reason, []))}")
    return lines


def card_lines(card: str, own: bool) -> list[str]:
    """The line on the card: where it is; or that there is a user's, if `own`."""
    told = [f"  card: {card}"] if card else []
    mine = "  no card: there is a README.md that this export has not written, which stays"
    return [*told, mine] if own else told
