"""Duplicates in a store: on a real S3 server, beside the same on a disk."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from colours import write_dataset
from s3 import BUCKET, Fault, options, s3_server
from test_dedup import mixture, write

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication, running
from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.lock import RunLock
from curator_dask.retrieval import retrieve, retrieving


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def store(server):
    return fsspec.filesystem("s3", **options(server))


def test_duplicates_in_a_store_are_those_of_a_disk_and_are_left_out(
    tmp_path, server, store, in_this_process, monkeypatch
):
    data = tmp_path / "data"
    keys = write_dataset(data, 3, 20)
    tars, vectors = sorted(data.glob("*.tar")), mixture(np.random.default_rng(5), 60)
    rows = write(tmp_path / "rows", vectors, keys)
    for path, tar in zip(sorted(rows.iterdir()), tars, strict=True):
        table = pq.read_table(path)
        at = table.column_names.index("__url__")
        pq.write_table(table.set_column(at, "__url__", [[str(tar)] * len(table)]), path)
    store.put(str(rows), f"{BUCKET}/some rows", recursive=True)
    given = {"storage_options": options(server)}
    local = SemanticDeduplication(0.1)(rows).save(tmp_path / "dup")
    # A slash at the end, a space and an output like the folder of rows but for its end.
    place, work = f"s3://{BUCKET}/some rows dup/", tmp_path / "work"
    result = SemanticDeduplication(0.1, **given)(f"s3://{BUCKET}/some rows/")
    pairs, did = running.Deduplication._pairs, []

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Deduplication, "_pairs", stopped)
    with pytest.raises(KeyboardInterrupt):
        result.save(place, work=work)
    assert store.find(f"{BUCKET}/some rows dup") == []  # no table, no note of a run
    monkeypatch.setattr(running.Deduplication, "_pairs", lambda *each: did.append(1) or pairs(*each))
    summary = result.save(place, work=work)
    assert (summary.made["scan"], did, summary.removed) == (0, [1], local.removed)
    with store.open(f"{BUCKET}/some rows dup/duplicates.parquet") as file:
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "dup" / "duplicates.parquet"))
    assert store.find(f"{BUCKET}/some rows dup") == [f"{BUCKET}/some rows dup/duplicates.parquet"]
    assert 0 < local.removed < 60 and result.sheet(2).height > 100
    for name, path in (("near", tmp_path / "dup"), ("far", place)):
        summary = export_output(
            f"s3://{BUCKET}/some rows",
            tmp_path / name,
            ExportOptions(without=str(path), split_groups=str(path), splits={"val": 0.3}),
            output_storage_options={},
            **given,
        )
        assert summary.kept == 60 - local.removed
    dataset = ImageTextPairDataset.from_webdataset(data)
    for duplicates, how in ((result, {}), (place, given)):
        assert len(dataset.without(duplicates, **how).compute()) == 60 - local.removed
    # Beside rows that are there already, in the store as on a disk; and beside tars in it.
    others = {"against": tmp_path / "others"}, {"against": f"s3://{BUCKET}/others"}
    write(tmp_path / "others", mixture(np.random.default_rng(5), 60)[:9])
    store.put(str(tmp_path / "others"), f"{BUCKET}/others", recursive=True)
    near = SemanticDeduplication(0.1, **others[0])(rows).save(tmp_path / "dup2")
    summary = SemanticDeduplication(0.1, **others[1], **given)(rows).save(f"s3://{BUCKET}/dup2", work=work)
    assert summary.removed == near.removed > local.removed
    exported = f"s3://{BUCKET}/tars"
    export_output(rows, exported, ExportOptions(where=f"key < '{keys[30]}'"), **given)
    summary = SemanticDeduplication(0.1, exported=exported, **given)(rows).save(
        f"s3://{BUCKET}/dup3", work=work
    )
    assert (summary.stay, summary.rows) == (30, 60) and 0 < summary.removed < 30
    names = sorted(path.relative_to(tmp_path / "near") for path in (tmp_path / "near").rglob("*.tar"))
    assert names and all(
        (tmp_path / "near" / each).read_bytes() == (tmp_path / "far" / each).read_bytes() for each in names
    )


def test_what_cannot_be_in_a_store_or_beside_another_run_is_refused(tmp_path, server, store, in_this_process):
    rows = write(tmp_path / "rows", mixture(np.random.default_rng(5), 60))
    result = SemanticDeduplication(0.1)(rows)
    where, place = {"output_storage_options": options(server)}, f"s3://{BUCKET}/refused"
    with pytest.raises(ConfigError, match=r"s3://bucket: is all of a bucket, .*as work= \(--work\)"):
        result.save(f"s3://{BUCKET}", **where)
    with pytest.raises(ConfigError, match="s3://bucket/w: expected a path of this machine, found a URL"):
        result.save(place, work=Path(f"s3://{BUCKET}/w"), **where)
    with pytest.raises(OutputError, match="is read from"):
        result.save(place, work=rows, **where)
    with pytest.raises(OutputError, match="s3://bucket/refused/work: who reads the outer"):
        result.save(place, work=f"{place}/work", **where)
    (tmp_path / "work").mkdir()
    stored = f"s3://{BUCKET}/refused work"
    for folder, given, work in (
        (place, options(server), tmp_path / "work"),
        (str(tmp_path / "work"), None, tmp_path / "work"),
        (stored, options(server), stored),
    ):
        with (
            RunLock(folder, given),
            pytest.raises(OutputError, match=f"{folder}: another run is writing there"),
        ):
            result.save(place, work=work, **where)
    assert store.find(f"{BUCKET}/refused") == store.find(f"{BUCKET}/refused work") == []
    server.faults = [Fault("403", method, "/sample-") for method in ("PUT", "POST")]
    with pytest.raises(
        OutputError, match=r"refused\.work/sample-.*: could not be written: .*what was finished is kept"
    ):
        result.save(place, **where)
    server.faults = []
    assert result.save(f"s3://{BUCKET}", work=tmp_path / "work", **where).removed  # a bucket's root
    assert store.exists(f"{BUCKET}/duplicates.parquet")


def test_what_is_retrieved_goes_to_a_store(tmp_path, server, store, in_this_process, monkeypatch):
    vectors = mixture(np.random.default_rng(6), 60)
    pool, queries = write(tmp_path / "pool", vectors), write(tmp_path / "queries", vectors[::7] * 2, files=1)
    given = {"top": 3, "check": False, "pairs": tmp_path / "pairs.parquet"}
    local = retrieve(pool, queries, tmp_path / "near", **given)
    pairs, work, place = pq.read_table(tmp_path / "pairs.parquet"), tmp_path / "work", f"s3://{BUCKET}/found"
    given |= {"output_storage_options": options(server), "overwrite": True}
    with pytest.raises(OutputError, match="is read from"):
        retrieve(pool, queries, place, work=pool, **given)
    write_files = retrieving._write

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(retrieving, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        retrieve(pool, queries, place, work=work, **given)
    compared = sorted((path, path.stat().st_mtime_ns) for path in work.rglob("*.npy"))

    def going_on(*arguments):
        assert compared == sorted((path, path.stat().st_mtime_ns) for path in work.rglob("*.npy"))
        return write_files(*arguments)

    monkeypatch.setattr(retrieving, "_write", going_on)
    found = retrieve(pool, queries, place, work=work, **given)
    assert (found.kept, found.pairs, found.output.written) == (local.kept, local.pairs, 3)
    assert pq.read_table(tmp_path / "pairs.parquet").equals(pairs) and not [*work.rglob("*")]
    assert store.find(f"{BUCKET}/found") == [f"{BUCKET}/found/{path.name}" for path in sorted(pool.iterdir())]
    for path in (tmp_path / "near").iterdir():
        with store.open(f"{BUCKET}/found/{path.name}") as file:
            assert pq.read_table(file).equals(pq.read_table(path))
    again = retrieve(pool, queries, place, work=work, **{**given, "overwrite": False})
    assert (again.output.skipped, again.kept) == (3, local.kept)
    with pytest.raises(OutputError, match=r"found/.*: is there, and was made of another pool"):
        retrieve(pool, queries, place, work=work, **{**given, "overwrite": False, "top": 2})


def watch_paths(folder):
    """In a worker: note what below a folder is opened, listed or made from now on, and what is fetched of phases."""
    from curator_dask.dedup.copies import COPIES

    seen = builtins.seen_paths = [COPIES.fetched]

    def look(event, arguments):
        noted = getattr(builtins, "seen_paths", None)
        if noted is seen and event in WATCHED and str(arguments[0]).startswith(folder):
            seen.append((event, arguments[0]))

    sys.addaudithook(look)


def watched_paths():
    """What was noted; and bytes that were fetched meanwhile."""
    from curator_dask.dedup.copies import COPIES

    before, *seen = builtins.__dict__.pop("seen_paths")
    return seen, COPIES.fetched - before


WATCHED = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def test_workers_that_share_nothing_but_a_store(tmp_path, server, store, client):
    """None of them opens a folder of the client's, and each fetches what it compares once."""
    chance = np.random.default_rng(7)
    hashes = chance.integers(0, 2**63, 300)[chance.integers(0, 300, 600)].tolist()
    rows = write(tmp_path / "rows", mixture(chance, 600), files=3, phash=hashes)
    store.put(str(rows), f"{BUCKET}/apart", recursive=True)
    how = {"n_clusters": 5, "exact": {"phash": 3}}
    local = SemanticDeduplication(0.1, **how)(rows).save(tmp_path / "near")
    client.run(watch_paths, str(tmp_path))
    result = SemanticDeduplication(0.1, **how, storage_options=options(server))(f"s3://{BUCKET}/apart")
    summary = result.save(tmp_path / "far", work=f"s3://{BUCKET}/apart work/")
    found = client.run(watched_paths).values()
    size = sum(each["size"] for each in store.find(f"{BUCKET}/apart work", detail=True).values())
    assert [paths for paths, _ in found] == [[], []]
    assert all(0 < fetched <= size for _, fetched in found)
    assert summary.removed == local.removed > 100 and min(summary.by.values()) > 10
    same = [pq.read_table(tmp_path / name / "duplicates.parquet") for name in ("near", "far")]
    assert same[0].equals(same[1])
