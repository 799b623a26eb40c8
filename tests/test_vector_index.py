"""The index of vectors: what it finds is NumPy's, to the bit, and it never answers for files that have changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import unit
from curator_dask.indexing import VectorIndex, building
from curator_dask.indexing.measuring import KNOWN, Measured, wilson
from curator_dask.indexing.tasks import Compare, Read
from curator_dask.indexing.vectors import Vectors
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.saving import opened
from curator_dask.tables import join_output

FILES, ROWS, DIM = 4, 500, 12
NULL, ZERO, BROKEN = 7, 8, 9  # rows of each file without a vector that can be compared
COPIES = (10, 11)  # rows of each file that have the very same vector


def vectors_of(file, dtype=np.float32):
    """Some clusters; none of unit length."""
    random = np.random.default_rng(file)
    centres = np.random.default_rng(99).standard_normal((30, DIM))
    found = centres[random.integers(0, 30, ROWS)] + 0.4 * random.standard_normal((ROWS, DIM))
    found *= random.uniform(0.5, 2, (ROWS, 1))
    found[list(COPIES)] = centres[0]
    found[ZERO], found[BROKEN, 0] = 0, np.nan
    return found.astype(dtype)


def key_of(file, row):
    return f"{file}-{row:04d}"


def write_file(folder, file, order=None, dtype=np.float32):
    """Rows whose keys, shards and widths say where they are."""
    order = np.arange(ROWS) if order is None else order
    table = pa.table(
        {
            "key": [key_of(file, row) for row in order],
            "caption": [f"caption {file} {row}" for row in order],
            "__url__": [f"/data/{file}.tar"] * ROWS,
            "width": pa.array(order),
        }
    )
    values = pa.array(vectors_of(file, dtype)[order].reshape(-1))
    mask = pa.array(order == NULL)
    table = table.append_column("image_embedding", pa.FixedSizeListArray.from_arrays(values, DIM, mask=mask))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"{file}.parquet", row_group_size=200)


@pytest.fixture(scope="module")
def small_segments():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SEGMENT", ROWS * DIM * 4 + 1)  # two files each
        yield


@pytest.fixture
def few_queries(monkeypatch):
    """For what is not about recall: most of the time of so small an index is its measuring."""
    monkeypatch.setattr(building, "QUERIES", 100)


@pytest.fixture(scope="module")
def out(tmp_path_factory, small_segments):
    folder = tmp_path_factory.mktemp("indexed") / "out"
    for file in range(FILES):
        write_file(folder, file)
    return folder


@pytest.fixture(scope="module")
def index(out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    VectorIndex.build(out, folder)
    return VectorIndex(folder)


@pytest.fixture(scope="module")
def all_vectors():
    """Unit vectors in float64; rows that cannot be compared are NaN."""
    found = np.concatenate([vectors_of(file) for file in range(FILES)]).astype(np.float64)
    found[[file * ROWS + row for file in range(FILES) for row in (NULL, ZERO, BROKEN)]] = np.nan
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def by_numpy(all_vectors, vector, top, passes=None):
    """Keys of the nearest, of equal ones the first; cosines to seven digits, in which copies are equal."""
    vector = np.asarray(vector, np.float64)
    cosines = np.round(all_vectors @ (vector / np.linalg.norm(vector)), 6)
    cosines[np.isnan(cosines) | (False if passes is None else ~passes)] = -9
    order = np.argsort(-cosines, kind="stable")[:top]
    return [key_of(row // ROWS, row % ROWS) for row in order.tolist() if cosines[row] > -9]


def keys(hits):
    return [hit.key for hit in hits]


def test_all_clusters_give_what_numpy_gives_and_the_exact_search_to_the_bit(index, out, all_vectors):
    exact = VectorFiles.find(out, "image_embedding", None)
    for row in (0, COPIES[0], 700, 1999):
        vector = all_vectors[row].astype(np.float32)
        (hits,) = index.search(vector, top=30, recall=1)
        assert hits == exact.nearest(unit(vector[None])[0], "it", 30)
        assert keys(hits) == by_numpy(all_vectors, vector, 30)
        assert all(hit.url == f"/data/{hit.key[0]}.tar" for hit in hits)
        assert all(hit.caption == f"caption {hit.key[0]} {int(hit.key[2:])}" for hit in hits)
    copies = [key_of(file, row) for file in range(FILES) for row in COPIES]
    assert keys(index.search(all_vectors[COPIES[1]], top=len(copies))[0]) == copies
    assert len({hit.score for hit in index.search(all_vectors[COPIES[1]], top=len(copies))[0]}) == 1


def test_rows_without_a_vector_are_counted_and_never_found(index, all_vectors):
    assert index.manifest.aside == {"null": FILES, "zero": FILES, "not finite": FILES}
    assert len(index) == FILES * (ROWS - 3)
    (hits,) = index.search(all_vectors[0], top=10_000, recall=1)
    assert sorted(keys(hits)) == sorted(
        key_of(file, row) for file in range(FILES) for row in range(ROWS) if row not in (NULL, ZERO, BROKEN)
    )


def test_the_recall_that_is_said_is_that_of_searches(index, all_vectors):
    recall = index.recall(top=20)
    assert recall.probes < recall.clusters == round((FILES * ROWS) ** 0.5)
    assert 0.99 <= recall.low <= recall.mean <= recall.high
    few = index.recall(top=20, wanted=0.7)
    assert few.probes < recall.probes
    random = np.random.default_rng(5).choice(FILES * ROWS, 100, replace=False)
    found = []
    for row in random[~np.isnan(all_vectors[random]).any(1)].tolist():
        own = key_of(row // ROWS, row % ROWS)
        true = {*by_numpy(all_vectors, all_vectors[row], 21)} - {own}
        hits = index.ranked(all_vectors[row].astype(np.float32), "it", 21, recall=0.7)
        names = {key_of(*place) for place in zip(hits.files.tolist(), hits.rows.tolist(), strict=True)}
        found.append(len(true & names) / len(true))
    # The top is one more here, for the row itself.
    assert np.mean(found) == pytest.approx(index.recall(top=21, wanted=0.7).mean, abs=0.05)


def test_a_condition_is_on_the_rows_that_are_found(index, all_vectors, monkeypatch):
    widths = np.tile(np.arange(ROWS), FILES)
    for where, passes in (("width >= 480", widths >= 480), ("width % 2 = 0", widths % 2 == 0)):
        (hits,) = index.search(all_vectors[3], top=25, where=where)
        assert keys(hits) == by_numpy(all_vectors, all_vectors[3], 25, passes)
    monkeypatch.setattr("curator_dask.indexing.searching._FEW", 0)  # some clusters are looked into
    shares = []
    for row in range(20, 40):
        true = by_numpy(all_vectors, all_vectors[row], 20, widths % 2 == 0)
        (hits,) = index.search(all_vectors[row], top=20, where="width % 2 = 0")
        assert {int(key[2:]) % 2 for key in keys(hits)} == {0}
        shares.append(len({*true} & {*keys(hits)}) / 20)
    assert np.mean(shares) > 0.95
    assert index.search(all_vectors[3], where="width < 0") == [[]]
    with pytest.raises(ConfigError, match="there is no column 'widht'"):
        index.search(all_vectors[3], where="widht > 3")


def test_what_is_asked_of_it_is_checked(index, out, tmp_path):
    with pytest.raises(ConfigError, match="has vectors of 12 values, the vector has one of 3"):
        index.search(np.ones(3))
    with pytest.raises(ConfigError, match="zero or not finite"):
        index.search(np.zeros(DIM))
    for wrong in ("a cat", [["a"]], np.ones((1, 2, DIM))):
        with pytest.raises(ConfigError, match="expected vectors"):
            index.search(wrong)
    with pytest.raises(ConfigError, match=r"recall=1\.5: expected a share"):
        index.search(np.ones(DIM), recall=1.5)
    with pytest.raises(OutputError, match="has no finished index"):
        VectorIndex(tmp_path)
    with pytest.raises(ConfigError, match="holds Parquet files"):
        VectorIndex.build(out, out)
    with pytest.raises(ConfigError, match=r"is the index of 'image_embedding' of .*, not of 'other'"):
        VectorIndex.build(out, index.folder, column="other")
    (tmp_path / "index.json").write_text('{"version": 1}')
    with pytest.raises(OutputError, match="cannot be read as that of an index"):
        VectorIndex(tmp_path)


def test_half_precision_is_stored_as_it_is(tmp_path, few_queries):
    write_file(tmp_path / "out", 0, dtype=np.float16)
    manifest = VectorIndex.build(tmp_path / "out", tmp_path / "index", clusters=9)
    index = VectorIndex(tmp_path / "index")
    sizes = sum(path.stat().st_size for path in Path(index.folder).glob("*.vectors"))
    assert (manifest.dtype, sizes) == ("<f2", 2 * DIM * len(index))
    vector = vectors_of(0, np.float16)[42].astype(np.float32)
    exact = VectorFiles.find(tmp_path / "out", "image_embedding", None)
    found = index.search(vector, recall=1)[0]
    assert found == exact.nearest(unit(vector[None])[0], "it", 24)

    # The output elsewhere is the same one, and so is a copy, as its vectors show; one of other vectors is not.
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    VectorIndex.build(moved, tmp_path / "index")
    there = VectorIndex(tmp_path / "index", moved)
    assert (
        Vectors.of(moved, "image_embedding", None, there, 1).nearest(unit(vector[None])[0], "it", 24) == found
    )
    shutil.copytree(moved, tmp_path / "copy", copy_function=shutil.copyfile)
    VectorIndex.build(tmp_path / "copy", tmp_path / "index")
    write_file(tmp_path / "copy", 0, order=np.arange(ROWS)[::-1], dtype=np.float16)
    with pytest.raises(ConfigError, match=r"is the index of .*out, not of .*copy"):
        VectorIndex.build(tmp_path / "copy", tmp_path / "index")
    with pytest.raises(ConfigError, match=r"is the index of .*out, not of .*copy"):
        Vectors.of(tmp_path / "copy", "image_embedding", None, there)


def test_vectors_at_the_ends_of_their_range_are_found_and_zeros_crowd_out_nothing(tmp_path, few_queries):
    random = np.random.default_rng(3)
    vectors = random.standard_normal((90, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:, 0] = -np.abs(vectors[:, 0])  # further from the first axis than zeros are
    vectors *= np.repeat([1e-40, 3e38, 1.0], 30)[:, None]
    vectors[60:85] = 0
    vectors = vectors.astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
    (tmp_path / "out").mkdir()
    keys_there = [str(row) for row in range(90)]
    pq.write_table(pa.table({"key": keys_there, "image_embedding": lists}), tmp_path / "out" / "0.parquet")
    VectorIndex.build(tmp_path / "out", tmp_path / "index", clusters=6)
    index, exact = (
        VectorIndex(tmp_path / "index"),
        VectorFiles.find(tmp_path / "out", "image_embedding", None),
    )
    for vector in (np.eye(DIM, dtype=np.float32)[0], unit(vectors[:1])[0], unit(vectors[40:41])[0]):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        cosines = vectors.astype(np.float64) @ vector / np.where(lengths > 0, lengths, np.nan)
        order = np.argsort(-np.where(np.isnan(cosines), -9, cosines), kind="stable")
        for top in (5, 65, 90):
            hits = exact.nearest(vector, "it", top)
            assert keys(hits) == [str(row) for row in order[: min(top, 65)]]
            assert index.hits(index.ranked(vector, "it", top, recall=1)) == hits


def test_what_is_damaged_is_told(index, tmp_path):
    for path in sorted(Path(index.folder).iterdir()):
        if path.name.endswith(".read.npy"):
            continue  # no search reads it
        for damage in ("gone", "cut", "other", "pickled"):
            shutil.rmtree(tmp_path / "it", ignore_errors=True)
            shutil.copytree(index.folder, tmp_path / "it")
            damaged = tmp_path / "it" / path.name
            if damage == "gone":
                damaged.unlink()
            elif damage == "cut":
                damaged.write_bytes(damaged.read_bytes()[:-70])
            else:
                array = np.zeros(3) if damage == "other" else np.array([{}], object)
                with damaged.open("wb") as file:
                    np.save(file, array)
            with pytest.raises(OutputError, match=r"[Bb]uild (the index|it) again|has no finished index"):
                VectorIndex(tmp_path / "it")
    manifest = json.loads(Path(index.folder, "index.json").read_text())
    for name, value in (("centroids", "../c"), ("dim", 0), ("files", []), ("dtype", "|O"), ("clusters", "9")):
        (tmp_path / "it" / "index.json").write_text(json.dumps({**manifest, name: value}))
        with pytest.raises(OutputError, match="cannot be read as that of an index"):
            VectorIndex(tmp_path / "it")


def states(folder):
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}


def test_files_that_change_make_the_index_stale_and_only_their_segment_is_made_anew(
    tmp_path, small_segments, few_queries
):
    folder, place = tmp_path / "out", tmp_path / "index"
    for file in range(FILES):
        write_file(folder, file)
    VectorIndex.build(folder, place)
    before = states(place)
    VectorIndex.build(folder, place)
    assert states(place) == before
    open_before = VectorIndex(place)

    (folder / "1.parquet").rename(tmp_path / "gone")
    write_file(folder, 5)
    write_file(folder, 3, order=np.arange(ROWS)[::-1])
    said = r"1 file added \(5.parquet\), 1 file changed \(3.parquet\), 1 file removed \(1.parquet\)"
    with pytest.raises(OutputError, match=said):
        VectorIndex(place)
    with pytest.raises(OutputError, match="written anew in the meantime"):  # the file's rows are others now
        open_before.search(vectors_of(3)[42], top=1)

    manifest = VectorIndex.build(folder, place)
    index = VectorIndex(place)
    assert [each.name for each in manifest.files] == ["0.parquet", "2.parquet", "3.parquet", "5.parquet"]
    assert index.search(vectors_of(3)[42], top=1, recall=1)[0][0].key == key_of(3, 42)
    assert index.search(vectors_of(5)[43], top=1, recall=1)[0][0].key == key_of(5, 43)
    exact = VectorFiles.find(folder, "image_embedding", None)
    vector = unit(vectors_of(0)[COPIES[0]][None])[0]
    assert index.search(vectors_of(0)[COPIES[0]], top=50, recall=1)[0] == exact.nearest(vector, "it", 50)

    write_file(folder, 6)  # alone: what is there stays
    before = states(place)
    again = VectorIndex.build(folder, place)
    assert again.segments[: len(manifest.segments)] == manifest.segments
    assert again.centroids == manifest.centroids
    kept = [name for name in before if name.startswith(tuple(each.name for each in manifest.segments))]
    assert kept and {name: states(place)[name] for name in kept} == {name: before[name] for name in kept}
    assert again.aside["null"] == 5 and again.vectors == 5 * (ROWS - 3)


def test_columns_that_are_added_leave_the_index_as_it_is(
    tmp_path, small_segments, few_queries, monkeypatch, in_this_process
):
    """As `join` and `score` write files anew, with the same vectors; other vectors or rows are seen all the same."""
    folder, place = tmp_path / "out", tmp_path / "index"
    for file in range(FILES):
        write_file(folder, file)
    VectorIndex.build(folder, place)
    labels = {"key": [key_of(file, row) for file in range(FILES) for row in range(ROWS)]}
    pq.write_table(pa.table({**labels, "label": range(FILES * ROWS)}), tmp_path / "labels.parquet")
    before = states(folder)
    join_output(folder, tmp_path / "labels.parquet")
    assert all(states(folder)[name] != before[name] for name in before)
    with monkeypatch.context() as patch:
        patch.setattr(Read, "make", lambda *_: pytest.fail("vectors are made anew"))
        found = VectorIndex(place).search(vectors_of(3)[42], top=1, where="label >= 1500", recall=1)[0]
        assert found[0].key == key_of(3, 42)
        before = states(place)
        with opened(
            str(place), None
        ):  # by another search; or it is a folder of others, that may only be read
            manifest = VectorIndex.build(folder, place)
        assert states(place)["index.json"] == before["index.json"]
        assert VectorIndex.build(folder, place) == manifest
        changed = {name for name, state in states(place).items() if state != before[name]}
        assert changed == {"index.json"}
        # Now they are known by their stamps again.
        patch.setattr("curator_dask.indexing.manifest.content_of", lambda *_: pytest.fail("they are read"))
        assert VectorIndex.build(folder, place) == manifest and len(VectorIndex(place)) == manifest.vectors
    table = pq.read_table(folder / "1.parquet")
    one = table["image_embedding"].combine_chunks().to_pylist()
    one[100][0] = np.nextafter(np.float32(one[100][0]), np.float32(9))
    keys = table["key"].to_pylist()
    keys[100], keys[101] = keys[101], keys[100]
    lost = [None if row == 100 else each for row, each in enumerate(table["image_embedding"].to_pylist())]
    kind = table["image_embedding"].type
    for name, values in (
        ("image_embedding", pa.array(one, kind)),
        ("image_embedding", pa.array(lost, kind)),
        ("key", pa.array(keys)),
    ):
        other = table.set_column(table.column_names.index(name), name, values)
        pq.write_table(other, folder / "1.parquet")
        with pytest.raises(OutputError, match=r"1 file changed \(1.parquet\)"):
            VectorIndex(place)
    pq.write_table(table.select(table.column_names[::-1]), folder / "1.parquet")
    assert len(VectorIndex(place)) == manifest.vectors
    # An index of before that knew no contents goes by the files.
    said = json.loads((place / "index.json").read_text())
    for each in said["files"]:
        del each["content"], each["first"]
    (place / "index.json").write_text(json.dumps(said))
    with pytest.raises(OutputError, match=r"1 file changed \(1.parquet\)"):
        VectorIndex(place)


def test_an_interrupted_build_goes_on(out, tmp_path, monkeypatch, few_queries):
    calls = {"read": 0, "compare": 0}
    read, compare = Read.make, Compare.make

    def counting(self, name):
        calls["read"] += 1
        return read(self, name)

    def stopping(self, name):
        calls["compare"] += 1
        if calls["compare"] == 2:
            raise KeyboardInterrupt
        return compare(self, name)

    monkeypatch.setattr(Read, "make", counting)
    monkeypatch.setattr(Compare, "make", stopping)
    with pytest.raises(KeyboardInterrupt):
        VectorIndex.build(out, tmp_path / "index")
    with pytest.raises(OutputError, match="no finished index"):
        VectorIndex(tmp_path / "index")
    whole = VectorIndex.build(out, tmp_path / "index")
    assert calls == {"read": 2, "compare": 3}
    assert not list((tmp_path / "index").glob("r-*")) and not list((tmp_path / "index").glob(".*tmp"))
    assert whole.vectors == FILES * (ROWS - 3)


def test_workers_make_the_same_index(out, index, tmp_path, client):
    VectorIndex.build(out, tmp_path / "index")
    ours = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    assert ours == {path.name: path.read_bytes() for path in Path(index.folder).iterdir()}


def test_measured_by_hand():
    # Two queries with two neighbours each; one of the second's is in the third nearest cluster.
    ranks = np.full((2, KNOWN), -1, np.int32)
    ranks[0, :2], ranks[1, :2] = (0, 0), (1, 2)
    measured = Measured(ranks, 5)
    assert [measured.recall(2, probes).mean for probes in (1, 2, 3)] == [0.5, 0.75, 1]
    assert measured.recall(1, 2).mean == 1
    assert measured.enough(2, 0.99).probes == 5  # two queries prove nothing
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1, 1000) == pytest.approx((0.99617, 1), abs=1e-4)


def test_the_command_finds_the_same_with_an_index(out, tmp_path):
    def run(*words):
        done = CliRunner().invoke(app, ["search", str(out), "--like", "1-0042", "--top", "7", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    place = str(tmp_path / "index")
    plain = run()
    assert run("--index", place) == run("--index", place) == plain and len(plain.splitlines()) == 7
    assert run("--index", place, "--recall", "1") == plain
    some = run("--where", "width < 250")
    assert run("--index", place, "--where", "width < 250") == some != plain
    assert json.loads(Path(place, "index.json").read_text())["embeddings"] == str(out)
    wrong = CliRunner().invoke(app, ["search", str(out), "--like", "1-0042", "--recall", "0.9"])
    assert wrong.exit_code == 2 and "--index" in wrong.output
