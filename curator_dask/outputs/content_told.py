"""What the summary of an export says of what is in the new shards: images, vectors, captions, and what they lack."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from curator_dask.outputs.shrinking import EXPORTED
from curator_dask.words import counted, ranked, sized


class Contents(Protocol):
    """Those of `curator_dask.outputs.export_summary.ExportSummary`."""

    format: str
    no_index: dict[str, str]
    json_left_alone: list[str]
    no_caption: int
    kept_caption: int
    empty_caption: int
    images_smaller: int
    images_converted: int
    image_bytes_before: int
    image_bytes_after: int
    images_grown: int
    images_blurred: int
    regions_blurred: int
    images_beside_blurred: int
    images_left: Counter[str]
    images_left_examples: dict[str, list[str]]
    no_vector: Counter[str]
    broken_vector: Counter[str]
    no_image: int
    members_left: Counter[str]


def content_lines(summary: Contents) -> list[str]:
    """The lines, of what there is to say."""
    lines: list[str] = []
    if summary.no_index:
        name, why = next(iter(summary.no_index.items()))
        lines.append(f"  {counted(len(summary.no_index), 'tar')} without an index, {name} for example: {why}")
    if summary.json_left_alone:
        some = ", ".join(summary.json_left_alone[:3])
        lines.append(
            f"  {counted(len(summary.json_left_alone), 'sample')} got no fields, as the JSON is no object: {some}"
        )
    lines += _image_lines(summary)
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


def _image_lines(summary: Contents) -> list[str]:
    lines: list[str] = []
    if summary.images_blurred:
        regions = counted(summary.regions_blurred, "region")
        lines.append(f"  {counted(summary.images_blurred, 'image', 'was', 'were')} blurred, in {regions}")
    if summary.images_beside_blurred:
        samples = counted(summary.images_beside_blurred, "sample", "has", "have")
        lines.append(f"  of these {samples} further images, which are as they were")
    if summary.images_smaller or summary.images_converted:
        converted = f", {summary.images_converted:,} only put into another format" * bool(
            summary.images_converted
        )
        grown = f" ({counted(summary.images_grown, 'file')} grew)" * bool(summary.images_grown)
        lines += [
            f"  {counted(summary.images_smaller, 'image', 'was', 'were')} made smaller{converted}:"
            f" {sized(summary.image_bytes_before)} before, {sized(summary.image_bytes_after)} now{grown}",
            "  what rows and .json files say of images (width, height, bytes, sha256) is of those before:"
            f" {', '.join(EXPORTED.names)} beside {'them' if summary.format == 'parquet' else 'each tar'} say what"
            " they are",
        ]
    for kind, count in sorted(summary.images_left.items(), key=lambda item: (-item[1], item[0])):
        some = "; ".join(summary.images_left_examples.get(kind, []))
        lines.append(f"  {counted(count, 'image', 'stays', 'stay')} as before, {kind}: for example {some}")
    return lines
