"""What Dask alone takes until the first of many shards is at work: the limit of `benchmarks.scale`'s ``start``.

    python -m benchmarks.bare_shards FOLDER

FOLDER has tars with a Parquet file beside each. They are listed, sorted and paired, given to
`dask.dataframe.from_map`, and the first partition is computed in this process: no check, no record, no plan, and no
cluster. Printed are seconds of this process's processor time, by step, and its memory at the peak.
"""

from __future__ import annotations

import os
import resource
import sys
import time


def main(folder: str) -> None:
    """Measure and print."""
    times = [time.process_time()]

    def took(what: str) -> None:
        times.append(time.process_time())
        print(f"{what:32} {times[-1] - times[-2]:6.2f} s", flush=True)

    import dask.dataframe as dd

    took("import")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    there = frozenset(names)
    tars = [name for name in names if name.endswith(".tar")]
    pairs = [(tar, parquet if (parquet := f"{tar[:-4]}.parquet") in there else None) for tar in tars]
    took(f"list and pair {len(pairs):,} shards")
    frame = dd.from_map(read, pairs, meta=read(("", None)))
    took("from_map")
    frame.partitions[0].compute(scheduler="sync")
    took("first partition")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{'all':32} {times[-1] - times[0]:6.2f} s, {peak} MiB at the peak")


def read(pair: tuple[str, str | None]) -> object:
    """A partition of one row, whatever the shard."""
    import pandas as pd

    return pd.DataFrame({"key": [pair[0]]})


if __name__ == "__main__":
    main(sys.argv[1])
