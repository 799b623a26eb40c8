"""Which readers will see the samples of an export differently."""

from __future__ import annotations

from collections.abc import Container, Mapping

from curator_dask.outputs.export_options import ExportOptions
from curator_dask.webdataset.layouts import habits


def reader_habits(
    options: ExportOptions, fields: Mapping[str, int], samples: int, filled: Container[str], odd_keys: int
) -> list[str]:
    """What readers make of the new shards, a line each.

    Parameters
    ----------
    options
        Of the export.
    fields
        By suffix, how many samples have it.
    samples
        Their number.
    filled
        Suffixes that new samples which lack them get; those of tars that stay do not.
    odd_keys
        How many keys are odd.
    """
    if options.is_tables:
        return []
    if not options.portable:
        known = {name: count for name, count in fields.items() if options.caption is None or name != "txt"}
        return habits(known, samples, 0 if options.sequential else odd_keys)
    unequal = [name for name, count in fields.items() if count < samples]
    return (
        habits({name: fields[name] for name in unequal if name not in filled}, samples, 0) if unequal else []
    )
