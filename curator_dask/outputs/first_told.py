"""What the summary of an export says first: how much it is, of how many rows, and how long it took."""

from __future__ import annotations

from typing import Any

from curator_dask.words import counted, sized


def first_lines(summary: Any, noun: str, size: int) -> list[str]:
    """Two lines, and a third where nothing is left.

    Parameters
    ----------
    summary
        An `ExportSummary`.
    noun
        What its files are called.
    size
        Bytes of the new files, those that a dry run plans too.
    """
    left = f"{summary.filtered:,} filtered out, {summary.missing:,} without a whole sample"
    done = f"{summary.written:,} written, {summary.skipped:,} finished before"
    new, there = (
        ("", "") if not summary.earlier_shards else ("new ", f"{summary.earlier:,} in earlier tars, ")
    )
    what = (
        f"{counted(summary.kept, f'{new}sample')} in {counted(summary.shards, f'{new}{noun}')}, {sized(size)}"
    )
    if summary.part is not None:
        part, every = summary.part, counted(summary.part["all_shards"], noun)
        what = f"part {part['number']}/{part['of']}, {part['shards']:,} of {every}, {sized(size)}"
        what += f"; in all {counted(summary.kept, 'sample')}"
    lines = [
        f"{summary.path}: {what}; of {counted(summary.rows, summary.unit)} {there}{left}",
        f"  {done}; {summary.seconds:.1f} s",
    ]
    if summary.planned:
        free = "" if summary.free is None else f", {sized(summary.free)} are free"
        by = " by the sizes that images have now" if summary.by_old_sizes else ""
        lines[1] = (
            f"  a dry run: {counted(summary.shards - summary.skipped, noun)} to write, {summary.skipped:,} finished"
            f" before; about"
            f" {sized(summary.needed)} are needed{by}{free};"
            f" {summary.seconds:.1f} s"
        )
    if summary.empty:
        lines.append(
            f"  NONE of {counted(summary.rows, summary.unit)} has a sample that is left: there is no {noun}"
        )
    return lines
