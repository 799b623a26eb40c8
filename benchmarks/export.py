"""Export against copying.

    python -m benchmarks.export

Every case reads the same tars, of 2,000 samples of 44 kB (a picture of random bytes, a caption, a JSON), and writes new
ones on the same disk; MB are those of the new tars.

- ``cp``: the tars as they are, from memory to memory; it does not wait for the disk. ``cp, synced`` does, as an export.
- ``webdataset``: the loop that users write, `WebDataset` without decoding into a `ShardWriter`.
- ``export``: `curator_dask.outputs.exporting.export_output` of an output with as many rows, on a cluster that is there:
  rows looked up, tars written and synced, with index, Parquet and manifest.
- ``export, 10 % kept``: the same with a condition.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import (
    Case,
    case_rows,
    cores,
    machine,
    parser,
    per_round,
    ranged,
    run_interleaved,
    write_result,
    write_tables,
)
from curator_dask import get_client
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.webdataset.ranges import Ranges
from curator_dask.webdataset.writer import Contents, write_tar

_MB = 10**6
_BYTES = 44_000  # of a picture


def make_dataset(folder: Path, shards: int, samples: int) -> None:
    """Write tars, and the rows of an output that were made of them."""
    rng = np.random.default_rng(0)
    for name in ("data", "rows"):
        (folder / name).mkdir()
    for shard in range(shards):
        keys = [f"{shard:05d}{sample:04d}" for sample in range(samples)]
        members = []
        for key in keys:
            said = json.dumps({"key": key, "width": 500, "height": 375, "url": f"https://example.org/{key}"})
            picture = rng.bytes(int(rng.integers(_BYTES // 2, _BYTES * 3 // 2)))
            members += [(f"{key}.jpg", picture), (f"{key}.txt", b"a caption of some words")]
            members.append((f"{key}.json", said.encode()))
        tar = folder / "data" / f"{shard:05d}.tar"
        with tar.open("wb") as file:
            write_tar(file.fileno(), Contents.of_bytes(members), Ranges({}))
        rows = {"key": keys, "score": rng.random(samples), "__url__": [str(tar)] * samples}
        pq.write_table(pa.table(rows), folder / "rows" / f"{shard:05d}.parquet")


def copy(folder: Path, name: str, synced: bool) -> int:
    """All tars, by ``cp``."""
    (folder / name).mkdir()
    subprocess.run(
        ["cp", *(str(path) for path in sorted((folder / "data").glob("*.tar"))), str(folder / name)],
        check=True,
    )
    if synced:
        subprocess.run(["sync", *(str(path) for path in (folder / name).glob("*.tar"))], check=True)
    return _written(folder / name)


def by_webdataset(folder: Path, samples: int) -> int:
    """All samples, by webdataset's reader and writer."""
    import webdataset

    (folder / "webdataset").mkdir()
    urls = [str(path) for path in sorted((folder / "data").glob("*.tar"))]
    pattern = str(folder / "webdataset" / "%05d.tar")
    with webdataset.ShardWriter(pattern, maxcount=samples, maxsize=1e12, verbose=0) as writer:
        for sample in webdataset.WebDataset(urls, shardshuffle=False):
            writer.write(
                {name: data for name, data in sample.items() if name not in ("__url__", "__local_path__")}
            )
    return _written(folder / "webdataset")


def by_export(folder: Path, name: str, samples: int, where: str | None) -> int:
    """Samples that pass, by this package."""
    summary = export_output(
        folder / "rows", folder / name, ExportOptions(samples_per_shard=samples, where=where)
    )
    assert summary.complete, summary
    return _written(folder / name)


def check(folder: Path) -> None:
    """See that all samples are in the tars of each, with the same bytes."""
    expected = _members(folder / "data")
    for name in ("webdataset", "export"):
        assert _members(folder / name) == expected, name
    kept = _members(folder / "some")
    assert kept.items() <= expected.items() and 0.05 < len(kept) / len(expected) < 0.2


def _members(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for each in tar:
                file = tar.extractfile(each)
                assert file is not None
                found[each.name] = hash(file.read())
    return found


def _written(folder: Path) -> int:
    return max(1, sum(path.stat().st_size for path in folder.glob("*.tar")) // _MB)


def remove(folder: Path, name: str) -> None:
    """Remove an export and what lies beside it."""
    for each in (name, f"{name}.export"):
        shutil.rmtree(folder / each, ignore_errors=True)


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--shards", type=int, help="tars (default 12)")
    arguments.add_argument("--samples", type=int, help="of each (default 2000)")
    options = arguments.parse_args(given)
    shards = options.shards or (2 if options.quick else 12)
    samples = options.samples or (40 if options.quick else 2000)
    repeats = options.repeats or (2 if options.quick else 5)

    described = machine()
    with (
        tempfile.TemporaryDirectory() as place,
        get_client("cpu", n_workers=cores(), verbose=False) as client,
    ):
        folder = Path(place)
        make_dataset(folder, shards, samples)
        works = {
            "cp": ("cp", partial(copy, folder, "cp", False)),
            "cp, synced": ("synced", partial(copy, folder, "synced", True)),
            "webdataset": ("webdataset", partial(by_webdataset, folder, samples)),
            "export": ("export", partial(by_export, folder, "export", samples, None)),
            "export, 10 % kept": ("some", partial(by_export, folder, "some", samples, "score < 0.1")),
        }
        pids = [None, None, None, *[[each.process.pid for each in client.cluster.workers.values()]] * 2]
        cases = {
            label: Case(work, each, partial(remove, folder, name))
            for (label, (name, work)), each in zip(works.items(), pids, strict=True)
        }
        found = run_interleaved(cases, repeats)
        check(folder)
    ratios = {
        f"export ÷ {name}": per_round(lambda a, b: a / b, found["export"], found[name])
        for name in ("cp", "cp, synced", "webdataset")
    }
    seconds = [found[name]["seconds"]["runs"] for name in ("export, 10 % kept", "export")]
    notes = [f"{name}: **{ranged(value)}**" for name, value in ratios.items()]
    part = sorted(some / every for some, every in zip(*seconds, strict=True))
    notes.append(f"time of the export of 10 % ÷ that of all: **{part[len(part) // 2]:.2f}**")
    print("\n".join(notes))
    results = {
        "what": f"{shards} tars of {samples} samples, median of {repeats} interleaved runs.",
        "settings": {"shards": shards, "samples": samples, "repeats": repeats},
        "cases": found,
        "ratios": ratios,
        "table": case_rows(found, "MB/s"),
        "notes": notes,
    }
    if write_result("export", options, described, results) and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
