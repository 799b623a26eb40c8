"""What the summary of an export says of tars that stay as they are."""

from __future__ import annotations

from typing import Protocol

from curator_dask.words import counted, sized


class Counts(Protocol):
    """Those of `curator_dask.outputs.export_summary.ExportSummary`."""

    kept: int
    shards: int
    earlier_samples: int
    earlier_shards: int
    earlier_bytes: int
    outdated: int
    without_row: int
    left_columns: list[str]


def earlier_lines(summary: Counts, size: int) -> list[str]:
    """The lines, where there are such tars.

    Parameters
    ----------
    summary
        Of the export.
    size
        Bytes of the new tars.
    """
    if not summary.earlier_shards:
        return []
    tars = counted(summary.earlier_shards, "earlier tar", "stays as it is", "stay as they are")
    samples = counted(summary.kept + summary.earlier_samples, "sample")
    lines = [
        f"  {tars}; in all {samples} in {counted(summary.shards + summary.earlier_shards, 'tar')},"
        f" {sized(size + summary.earlier_bytes)}"
    ]
    if summary.outdated:
        lines.append(
            f"  {summary.outdated:,} of the samples in earlier tars would not pass today, and stay: to be without them"
            " export to another path, or all anew with overwrite=True (--overwrite)"
        )
    if summary.without_row:
        lines.append(f"  {summary.without_row:,} of the samples in earlier tars have no row here, and stay")
    if summary.left_columns:
        lines.append(
            f"  not beside the new tars, as the earlier ones lack them: {', '.join(summary.left_columns)}"
        )
    return lines
