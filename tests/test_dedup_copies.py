"""What is compared lies in a store: the result is that of a disk, and no more is fetched, or kept, than is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_dedup import mixture, write

from curator_dask.curation import Recipe, curate
from curator_dask.dedup import SemanticDeduplication, copies, places, running
from curator_dask.dedup.copies import BLOCK, COPIES, Copies
from curator_dask.dedup.phases import Phase
from curator_dask.errors import OutputError
from curator_dask.frames.committing import machine_name
from curator_dask.outputs.lock import LOCK_NAME
from curator_dask.retrieval import retrieve, retrieving
from curator_dask.settings import STAGE_BYTES

pytestmark = pytest.mark.usefixtures("in_this_process", "memory")


@pytest.fixture
def memory():
    """An empty store of this process; nothing is left of what was copied of it."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()
    assert len(COPIES) == 0 and (COPIES._folder is None or not COPIES._folder.exists())


def table(folder):
    return pq.read_table(folder / "duplicates.parquet")


COMPONENTS = {"keep": "hard", "n_clusters": 12, "groups": "components"}
HASHES = {"exact": {"phash": 3}}


@pytest.mark.parametrize(
    ("how", "sorted_", "held"),
    [
        (COMPONENTS, False, "0"),
        (COMPONENTS, False, "200 kB"),
        ({**HASHES, "n_clusters": 12, "memory_limit": "80MB"}, True, "0"),
        ({**HASHES, "n_clusters": 12, "memory_limit": "80MB"}, True, ""),
        ({**HASHES, "embedding_column": "none"}, False, ""),
    ],
)
def test_the_rows_are_those_of_a_folder_whatever_is_kept_of_copies(
    tmp_path, memory, monkeypatch, how, sorted_, held
):
    chance = np.random.default_rng(3)
    hashes = chance.integers(0, 2**63, 300)[chance.integers(0, 300, 600)].tolist()
    rows = write(tmp_path / "rows", mixture(chance, 600), files=4, phash=hashes)
    if "embedding_column" in how:
        for path in rows.iterdir():
            pq.write_table(pq.read_table(path).drop_columns(["image_embedding"]), path)
    monkeypatch.setenv(STAGE_BYTES.name, held)
    monkeypatch.setattr(running, "SMALL", 100)  # with sketches, were the vectors longer
    if sorted_:  # in files in the order of clusters, of which some rows are read one by one
        monkeypatch.setattr(places, "PART", 128)
        monkeypatch.setattr(places, "MEMORY_LIMIT", 0)
    find = SemanticDeduplication(0.1, **how)
    local = find(rows).save(tmp_path / "near")
    summary = find(rows).save(tmp_path / "far", work="memory://work/a")
    assert table(tmp_path / "far").equals(table(tmp_path / "near")) and summary.removed > 100
    assert str(summary) == str(local)
    assert memory.find("/work/a") and ("sort" in summary.made) == sorted_
    # Another table there compares nothing again; where it goes to the store as well its work does, beside it.
    again = find(rows).save("memory://out", work="memory://work/a/")
    assert not any(again.made.values()) and memory.find("/out") == ["/out/duplicates.parquet"]


def test_it_goes_on_and_takes_over_beside_an_output_in_a_store(tmp_path, memory, monkeypatch):
    rows = write(tmp_path / "rows", mixture(np.random.default_rng(5), 400), files=4)
    pairs = running.Deduplication._pairs

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Deduplication, "_pairs", stopped)
    with pytest.raises(KeyboardInterrupt):
        SemanticDeduplication(0.2)(rows).save("memory://b/dup")
    assert memory.find("/b/dup") == [] and memory.find("/b/dup.work")
    monkeypatch.setattr(running.Deduplication, "_pairs", pairs)
    taken = memory.find("/b/dup.work", detail=True)
    lost = next(name for name in taken if name.endswith("-counts.npy"))
    memory.rm_file(lost.replace("-counts", ""))  # one of four files of the sample
    first = SemanticDeduplication(0.2)(rows).save("memory://b/dup")
    assert first.made | {"pairs": 1} == {"scan": 0, "k-means": 0, "sample": 1, "assign": 0, "pairs": 1}
    smaller = SemanticDeduplication(0.1)(rows).save("memory://b/dup")
    assert smaller.made["pairs"] == 0 and smaller.removed < first.removed
    # Another output there has a place of its own, and its rows are its own.
    others = write(tmp_path / "others", mixture(np.random.default_rng(6), 300))
    other = SemanticDeduplication(0.1)(others).save("memory://b/dup2")
    assert other.made["scan"] == 3 and memory.find("/b/dup2.work")
    assert {*taken} <= {*memory.find("/b/dup.work")}


def test_what_the_store_has_lost_is_named_with_what_to_do(tmp_path, memory, monkeypatch):
    rows = write(tmp_path / "rows", mixture(np.random.default_rng(5), 60))
    order = running.Deduplication._order

    def lost(*each):
        COPIES.clear()
        for name in memory.find("/work"):
            if name.endswith(".vectors"):
                memory.rm_file(name)
        return order(*each)

    monkeypatch.setattr(running.Deduplication, "_order", lost)
    with pytest.raises(OutputError, match=r"memory:///work/scan-.*\.vectors: is not there, .*Run again"):
        SemanticDeduplication(0.1)(rows).save(tmp_path / "out", work="memory://work")
    monkeypatch.setattr(running.Deduplication, "_order", order)
    assert SemanticDeduplication(0.1)(rows).save(tmp_path / "out", work="memory://work").made["scan"] == 3


def test_a_curation_has_it_beside_its_duplicates(tmp_path, memory):
    from test_curate_in_stores import RECIPE, shard

    shard(tmp_path / "data", 0)
    shard(tmp_path / "data", 1)
    local = curate(tmp_path / "data", tmp_path / "near", Recipe(**RECIPE))
    summary = curate(tmp_path / "data", "memory://far", Recipe(**RECIPE))
    assert (summary.kept, summary.duplicates) == (local.kept, local.duplicates) == (7, 1)
    assert memory.find("/far/duplicates.work")
    again = curate(tmp_path / "data", "memory://far", Recipe(**RECIPE))
    assert not any(again.steps["duplicates"].made.values())


def test_a_retrieval_leaves_nothing_of_it(tmp_path, memory, monkeypatch):
    vectors = mixture(np.random.default_rng(6), 60)
    pool, queries = write(tmp_path / "pool", vectors), write(tmp_path / "queries", vectors[::7] * 2, files=1)
    given = {"top": 3, "check": False, "pairs": tmp_path / "pairs.parquet", "overwrite": True}
    local = retrieve(pool, queries, tmp_path / "near", **given)
    pairs, write_files = pq.read_table(tmp_path / "pairs.parquet"), retrieving._write
    monkeypatch.setenv(STAGE_BYTES.name, "0")

    def stopped(*_):
        raise KeyboardInterrupt

    for work, place in ((None, "/found.work"), ("memory://between/", "/between")):
        monkeypatch.setattr(retrieving, "_write", stopped)
        with pytest.raises(KeyboardInterrupt):
            retrieve(pool, queries, "memory://found", work=work, **given)
        compared = memory.find(place, detail=True)
        assert len(compared) == 10  # of each file three, and the queries

        def going_on(*arguments, place=place, compared=compared):
            now = memory.find(place, detail=True)
            assert {name: now[name] for name in now if not name.endswith(LOCK_NAME)} == compared
            return write_files(*arguments)

        monkeypatch.setattr(retrieving, "_write", going_on)
        found = retrieve(pool, queries, "memory://found", work=work, **given)
        assert (found.kept, found.pairs, found.output.written) == (local.kept, local.pairs, 3)
        assert memory.find(place) == [] and pq.read_table(tmp_path / "pairs.parquet").equals(pairs)
        memory.rm("/found", recursive=True)


def test_no_more_is_fetched_than_is_read(memory):
    data = np.random.default_rng(0).bytes(200 * BLOCK + 5)
    memory.pipe_file("/b/whole", data)
    kept = Copies()

    def read(*starts, size=4):
        with kept.open("memory://b/whole", None, np.array(starts, np.int64), size) as file:
            return [os.pread(file.fileno(), size, start) for start in starts]

    places_ = [3, 100 * BLOCK - 2, len(data) - 4]
    assert read(*places_) == [data[at : at + 4] for at in places_]
    assert kept.fetched == 3 * BLOCK + 5 + 0  # two neighbours, the first, and the five bytes of the last
    assert read(*places_) == [data[at : at + 4] for at in places_] and kept.fetched == 3 * BLOCK + 5
    before = kept.fetched
    for number in range(4):  # what is read again and again is fetched some more at a time
        read(number * 40 * BLOCK + 20 * BLOCK)
    assert kept.fetched > before + 100 * BLOCK
    with kept.open("memory://b/whole") as file:
        assert file.read() == data
    assert kept.fetched <= len(data) + 12 * 8 * BLOCK and kept.size("memory://b/whole") == len(data)
    kept.clear()


def test_what_was_read_longest_ago_goes_and_who_has_it_open_keeps_it(memory):
    for name in "abc":
        memory.pipe_file(f"/b/{name}", name.encode() * 3 * BLOCK)
    kept = Copies(limit=7 * BLOCK)
    first = kept.open("memory://b/a")
    kept.open("memory://b/b").close()
    kept.open("memory://b/a").close()
    kept.open("memory://b/c").close()
    assert ["memory://b/" + name in kept for name in "abc"] == [True, False, True]
    kept.clear("memory://b/a")
    assert "memory://b/a" not in kept and first.read() == b"a" * 3 * BLOCK
    first.close()
    Path(kept.place(), "mine").write_bytes(b"m" * 9 * BLOCK)
    kept.take("memory://b/mine", kept.place() / "mine")  # more than all that may be here
    assert len(kept) == 0 and kept.in_use() == 0
    kept.clear()
    assert not kept._folder.exists()
    with pytest.raises(OutputError, match="memory://b/none: is not there"):
        kept.open("memory://b/none")
    assert len(kept) == 0
    kept.clear()


def test_what_a_killed_process_has_left_is_removed(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f"{copies._PREFIX}{machine_name()}-{dead.pid}-abc"
    others = tmp_path / f"{copies._PREFIX}elsewhere-{dead.pid}-abc"
    for folder in (left, others):
        folder.mkdir()
    kept = Copies()
    kept.place()
    assert not left.exists() and others.exists()
    kept.clear()


def test_a_phase_without_a_vector_and_rows_of_arrays(memory, tmp_path):
    for folder in ("memory://p", str(tmp_path / "p")):
        phase = Phase(folder)
        with phase.writing("none.vectors"):
            pass
        assert phase.vectors("none.vectors", 4).shape == (0, 4) and phase.has("none.vectors")
        numbers = np.arange(40_000, dtype=np.int64).reshape(-1, 2)
        phase.save("numbers.npy", numbers)
        phase.save_parts("parts.npy", np.dtype(np.int64), [numbers[:3, 0], numbers[3:, 0]])
        COPIES.clear()
        at = np.array([0, 7, 19_999])
        assert np.array_equal(phase.load_some("numbers.npy", at), numbers[at])
        assert np.array_equal(phase.load("numbers.npy"), numbers)
        assert np.array_equal(phase.load("parts.npy"), numbers[:, 0])
        with phase.listed():
            assert phase.has("parts.npy") and not phase.has("others.npy")
        assert not phase.has("others.npy")
        COPIES.clear()
