"""What the summary of an export says of images that are no longer as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.outputs.shrinking import EXPORTED
from curator_dask.rows.remarks import EXAMPLES
from curator_dask.words import counted, ranked, sized


def add_images(summary: Any, images: Mapping[str, Any]) -> None:
    """Count in an `ExportSummary` what became of the images of a new tar."""
    summary.images_smaller += images["smaller"]
    summary.images_converted += images["converted"]
    summary.image_bytes_before += images["before"]
    summary.image_bytes_after += images["after"]
    summary.images_grown += images.get("grown", 0)  # exports before did not say it
    summary.images_blurred += images.get("blurred", 0)
    summary.regions_blurred += images.get("regions", 0)
    summary.images_beside_blurred += images.get("further", 0)
    summary.crops.add(images.get("crops", {}))
    if stripped := images.get("stripped"):
        summary.strip_metadata = stripped["what"]
        summary.images_stripped += stripped["images"]
        summary.stripped_bytes += stripped["bytes"]
        summary.texts_stripped += stripped["documents"]
    summary.images_left.update(images["left"])
    for kind, some in images["examples"].items():
        known = summary.images_left_examples.setdefault(kind, [])
        known += some[: EXAMPLES - len(known)]
    summary.labels.update(images.get("labels", {}))
    for before, after, count in images["renamed"]:
        summary.fields.subtract({before: count})
        summary.fields.update({after: count})
    summary.fields = +summary.fields


def image_lines(summary: Any) -> list[str]:
    """What an `ExportSummary` says of images that were blurred or made smaller, or were to be."""
    lines = []
    if summary.images_blurred or (summary.blur and not summary.planned):
        regions = counted(summary.regions_blurred, "region")
        lines.append(f"  {counted(summary.images_blurred, 'image', 'was', 'were')} blurred, in {regions}")
    if never := [label for label, count in summary.labels.items() if not count]:
        there = ", ".join(repr(label) for label, count in ranked(summary.labels) if count) or "none"
        lines.append(
            f"  no box has the label {' or '.join(map(repr, never))} (blur_only, --blur-only), so none was blurred for"
            f" it: labels that there are: {there}"
        )
    if summary.images_beside_blurred:
        samples = counted(summary.images_beside_blurred, "sample", "has", "have")
        lines.append(f"  of these {samples} further images, which are as they were")
    lines += summary.crops.lines()
    if summary.strip_metadata:
        what = "places" if summary.strip_metadata == "location" else "metadata"
        texts = f", and of {counted(summary.texts_stripped, '.json member')}" * bool(summary.texts_stripped)
        lines.append(
            f"  {what} taken out of {counted(summary.images_stripped, 'image file')},"
            f" {sized(summary.stripped_bytes)}{texts}; the others have none, or are named here"
        )
    if summary.images_smaller or summary.images_converted:
        converted = f", {summary.images_converted:,} only put into another format" * bool(
            summary.images_converted
        )
        grown = f" ({counted(summary.images_grown, 'file')} grew)" * bool(summary.images_grown)
        lines.append(
            f"  {counted(summary.images_smaller, 'image', 'was', 'were')} made smaller{converted}:"
            f" {sized(summary.image_bytes_before)} before, {sized(summary.image_bytes_after)} now{grown}"
        )
    if (
        summary.images_smaller
        or summary.images_converted
        or summary.images_stripped
        or summary.crops.enlarged
    ):
        lines.append(
            "  what rows and .json files say of images (width, height, bytes, sha256) is of those before:"
            f" {', '.join(EXPORTED.names)} beside {'them' if summary.format == 'parquet' else 'each tar'} say what"
            " they are"
        )
    for kind, count in sorted(summary.images_left.items(), key=lambda item: (-item[1], item[0])):
        some = "; ".join(summary.images_left_examples.get(kind, []))
        lines.append(f"  {counted(count, 'image', 'stays', 'stay')} as before, {kind}: for example {some}")
    return lines
