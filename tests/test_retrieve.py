"""The rows of a pool that are nearest to each query, as brute force has them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, write_dataset
from test_cli import run_here
from test_compare import BAD, INFO, normal, write

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import nearest
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.info import describe_output
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.placing import locate
from curator_dask.retrieval import finding, retrieve
from curator_dask.retrieval.writing import place_of_pairs

POOL = 700


@pytest.fixture
def data(tmp_path):
    """A pool with copies, and rows without a vector; and queries, one of which has none."""
    pool, queries = normal(POOL, 1) - 3, normal(60, 2) - 3  # in all directions
    pool[200:206] = pool[100]  # equally near to all
    pool[650] = 7 * queries[30]
    queries[31] = pool[100]
    a = write(tmp_path / "pool", pool, files=4, bad=BAD, width=list(range(POOL)))
    b = write(tmp_path / "queries", queries, files=2, bad=(3,))
    return a, b, pool, queries


def unit(matrix):
    matrix = np.float64(np.float32(matrix))
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def brute(pool, queries, top, least=-1.0):
    """By query the numbers of the rows found, the nearest first, of equal ones the first; and their cosines."""
    good = np.setdiff1d(np.arange(POOL), list(BAD))
    cosines = unit(queries) @ unit(pool[good]).T
    found = {}
    for query, row in enumerate(cosines):
        order = np.argsort(-np.round(row, 7), kind="stable")[:top]
        if query != 3:
            found[query] = [(int(good[at]), row[at]) for at in order if row[at] >= least]
    return found


def check(folder, pairs, expected, pool):
    """The files have the rows that brute force finds, and the pairs are its pairs."""
    rows = {row for some in expected.values() for row, _ in some}
    table = pq.read_table(folder)
    assert [int(key) for key in table["key"].to_pylist()] == sorted(rows)
    assert table["width"].to_pylist() == sorted(rows)
    by = {row: [cosine for some in expected.values() for each, cosine in some if each == row] for row in rows}
    assert table["retrieved_by"].to_pylist() == [len(by[row]) for row in sorted(rows)]
    np.testing.assert_allclose(
        table["retrieved_similarity"], [max(by[row]) for row in sorted(rows)], atol=1e-6
    )
    vectors = np.stack(table["image_embedding"].to_numpy())
    np.testing.assert_array_equal(vectors, np.float32(pool[sorted(rows)]))
    found = pq.read_table(pairs).to_pylist()
    assert [(int(each["query"]), each["rank"], int(each["key"])) for each in found] == [
        (query, rank, row) for query, some in expected.items() for rank, (row, _) in enumerate(some, 1)
    ]
    cosines = [cosine for some in expected.values() for _, cosine in some]
    np.testing.assert_allclose([each["similarity"] for each in found], cosines, atol=1e-6)
    urls = {
        f"{int(path.stem):05d}": set(pq.read_table(path)["key"].to_pylist())
        for path in folder.glob("*.parquet")
    }
    assert all(each["key"] in urls[Path(each["__url__"]).stem] for each in found)


@pytest.mark.parametrize(("top", "least"), [(1, -1.0), (5, -1.0), (9, 0.9), (2, 0.99999)])
def test_each_query_has_its_nearest(data, tmp_path, in_this_process, monkeypatch, top, least):
    monkeypatch.setattr(finding, "_ROWS", 64)
    monkeypatch.setattr(nearest, "_ASKED", 16)
    pool, queries, vectors, asked = data
    out, pairs = tmp_path / "out", tmp_path / "pairs.parquet"
    summary = retrieve(pool, queries, out, top=top, similarity=least, pairs=pairs)
    expected = brute(vectors, asked, top, least)
    check(out, pairs, expected, vectors)
    assert (summary.pool, summary.pool_aside) == (POOL, {"null": 1, "not finite": 2, "zero": 1})
    assert (summary.queries, summary.queries_aside) == (60, {"null": 1})
    assert summary.pairs == sum(map(len, expected.values()))
    assert summary.unanswered == sum(not some for some in expected.values())
    firsts = [some[0][1] for some in expected.values() if some]
    assert summary.nearest == pytest.approx(np.median(firsts), abs=1e-6)
    assert not (tmp_path / "out.work").exists()
    assert summary.kept == summary.output.rows == pq.read_table(out).num_rows
    assert describe_output(out).differences == []


def test_a_rerun_does_what_is_missing(data, tmp_path, in_this_process, monkeypatch):
    pool, queries, vectors, asked = data
    out, pairs = tmp_path / "out", tmp_path / "pairs.parquet"
    first = retrieve(pool, queries, out, top=3)
    made = []
    plain = finding.FindNearest.make
    monkeypatch.setattr(
        finding.FindNearest, "make", lambda self, name: made.append(name) or plain(self, name)
    )
    again = retrieve(pool, queries, out, top=3)
    assert made == [] and again.counts == first.counts and (again.output.skipped, again.output.rows) == (4, 0)
    assert "60 queries" in str(again)
    # Pairs that were not asked for before are found anew; files that are there stay.
    assert retrieve(pool, queries, out, top=3, pairs=pairs).output.skipped == 4
    assert len(made) == 4
    (out / "00002.parquet").unlink()
    assert retrieve(pool, queries, out, top=3, pairs=pairs).output.written == 1
    check(out, pairs, brute(vectors, asked, 3), vectors)
    with pytest.raises(OutputError, match=r"out/00000.parquet: is there, and was made of another pool"):
        retrieve(pool, queries, out, top=2)
    before = (out / "00001.parquet").read_bytes()
    (out / "00000.parquet").rename(tmp_path / "0")
    with pytest.raises(OutputError, match=r"out/00001.parquet: is there, and was made of another pool"):
        retrieve(pool, queries, out, top=2)
    assert (out / "00001.parquet").read_bytes() == before
    (tmp_path / "0").rename(out / "00000.parquet")
    with pytest.raises(OutputError, match=r"pairs.parquet: is there, and has other things"):
        retrieve(pool, queries, tmp_path / "new", top=2, pairs=pairs)
    assert retrieve(pool, queries, out, top=2, overwrite=True).output.written == 4
    (pool / "00003.parquet").rename(pool / "other.parquet")  # of another pool that had no file of that name
    for name in ("00000", "00001", "00002"):
        (out / f"{name}.parquet").unlink()
    with pytest.raises(OutputError, match=r"out/00003.parquet: is there, and was kept by another filter"):
        retrieve(pool, queries, out, top=2)
    assert retrieve(pool, queries, out, top=2, overwrite=True).output.written == 4
    assert {each.name for each in out.iterdir()} == {each.name for each in pool.iterdir()}
    (pool / "other.parquet").rename(pool / "00003.parquet")
    assert retrieve(pool, queries, out, top=2, overwrite=True).output.written == 4
    with pytest.raises(OutputError, match=r"has \['retrieved_by', 'retrieved_similarity'\] already"):
        retrieve(out, queries, tmp_path / "twice")


def test_groups_that_were_compared_are_kept(data, tmp_path, in_this_process, monkeypatch):
    pool, queries, vectors, asked = data
    whole = (pool / "00003.parquet").read_bytes()
    footer = pq.read_table(pool / "00003.parquet")
    broken = finding.FindNearest.make

    def make(self, name):
        if self.groups[name][0].path.endswith("00003.parquet"):
            raise ShardError(f"{self.groups[name][0].path}: no power")
        return broken(self, name)

    monkeypatch.setattr(finding.FindNearest, "make", make)
    with pytest.raises(ShardError, match=r"00003.parquet: no power. What was finished is kept"):
        retrieve(pool, queries, tmp_path / "out", top=3)
    assert len(list((tmp_path / "out.work").rglob("*-counts.npy"))) == 3
    assert not list((tmp_path / "out").glob("*.parquet"))
    monkeypatch.setattr(finding.FindNearest, "make", broken)
    retrieve(pool, queries, tmp_path / "out", top=3, pairs=tmp_path / "pairs.parquet")
    check(tmp_path / "out", tmp_path / "pairs.parquet", brute(vectors, asked, 3), vectors)
    assert whole == (pool / "00003.parquet").read_bytes() and footer.num_rows == 175


def test_what_does_not_belong_together_is_refused(data, tmp_path, in_this_process):
    pool, queries, _, asked = data
    other = write(tmp_path / "other", asked, info={**INFO, "weights": "sha256:1"})
    with pytest.raises(ConfigError, match=r"weights sha256:0, not sha256:1"):
        retrieve(pool, other, tmp_path / "out")
    unknown = write(tmp_path / "unknown", asked, info=None)
    with pytest.raises(ConfigError, match=r"nothing says what made"):
        retrieve(pool, unknown, tmp_path / "out")
    assert retrieve(pool, unknown, tmp_path / "free", check=False, top=1).kept
    wide = write(tmp_path / "wide", normal(20, 1, 9))
    with pytest.raises(ShardError, match=r"expected vectors of one length 9, found lengths \[8\]"):
        retrieve(pool, wide, tmp_path / "out", check=False)
    none = write(tmp_path / "none", asked[:5], files=1, bad=(3,))
    table = pq.read_table(none / "00000.parquet")[3:4]
    pq.write_table(table, none / "00000.parquet")
    with pytest.raises(ConfigError, match="no row has a vector"):
        retrieve(pool, none, tmp_path / "out")
    for wrong in ({"top": 0}, {"similarity": 2}):
        with pytest.raises(ConfigError):
            retrieve(pool, queries, tmp_path / "out", **wrong)
    for folder in (pool, queries):  # neither is written over, nor gets files of others
        with pytest.raises(OutputError, match="is read from"):
            retrieve(pool, queries, folder, overwrite=True)
        with pytest.raises(OutputError, match="finds the rows of both"):
            retrieve(pool, queries, folder / "out")
        with pytest.raises(ConfigError, match=r"pairs.*give a place outside"):
            retrieve(pool, queries, tmp_path / "out", pairs=folder / "00000.parquet")
    with pytest.raises(ConfigError, match="name of a Parquet file"):
        retrieve(pool, queries, tmp_path / "out", pairs=tmp_path / "pairs.csv")
    with pytest.raises(ConfigError, match="give a place outside"):
        place_of_pairs("memory://in/pool/pairs.parquet", [locate("memory://in/pool/", None)])
    assert place_of_pairs("memory://in/pairs.parquet", [locate("memory://in/pool/", None)])
    mine = tmp_path / "mine.parquet"
    pq.write_table(table, mine)
    with pytest.raises(OutputError, match=r"mine.parquet: is there, and has other things"):
        retrieve(pool, queries, tmp_path / "out", pairs=mine)
    assert pq.read_table(mine).num_rows == 1
    assert not (tmp_path / "out").exists()


def test_copies_have_a_cosine_of_1_and_more_than_all_rows_are_all(data, tmp_path, in_this_process):
    """Unit vectors in float32 have a product with themselves that half of the time is below 1."""
    pool, _, vectors, _ = data
    scaled = write(tmp_path / "scaled", 3.7 * vectors[300:400], files=1)
    pairs = tmp_path / "pairs.parquet"
    found = retrieve(pool, scaled, tmp_path / "out", top=1, similarity=1, pairs=pairs)
    assert (found.kept, found.unanswered) == (100, 0) and found.nearest <= 1
    assert pq.read_table(tmp_path / "out")["key"].to_pylist() == [f"{row:06d}" for row in range(300, 400)]
    assert max(pq.read_table(pairs)["similarity"].to_pylist()) <= 1
    # What is held goes with the rows there are, not with how many are asked for.
    found = retrieve(pool, scaled, tmp_path / "every", top=10**12)
    assert found.kept == POOL - len(BAD) and found.pairs == 100 * found.kept


def test_what_is_retrieved_is_exported(tmp_path, in_this_process):
    write_dataset(tmp_path / "data")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data", id_col="key")
    ColourReader()(dataset).save_metadata(tmp_path / "pool")
    filter_output(tmp_path / "pool", tmp_path / "wanted", where="key in ('000000002', '000020004')")
    retrieve(tmp_path / "pool", tmp_path / "wanted", tmp_path / "out", top=1, check=False)
    assert export_output(tmp_path / "out", tmp_path / "tars").kept == 2
    found = {}
    for path in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {each.name: tar.extractfile(each).read() for each in tar}
    keys = pq.read_table(tmp_path / "out")["key"].to_pylist()  # of their colour, be it darker
    assert {name.partition(".")[0] for name in found} == {*keys} and len(keys) == 2
    for name, data in found.items():
        with tarfile.open(tmp_path / "data" / f"000{name[3:5]}.tar") as tar:
            assert tar.extractfile(name).read() == data


def test_the_command_on_a_cluster_finds_the_same(data, tmp_path, client):
    pool, queries, vectors, asked = data
    out, pairs = tmp_path / "out", tmp_path / "pairs.parquet"
    address = ["--scheduler-address", client.scheduler.address]
    done = run_here(
        "retrieve", pool, queries, out, "--top", 3, "--pairs", pairs, "--json", tmp_path / "s", *address
    )
    assert done.returncode == 0, done.stderr
    check(out, pairs, brute(vectors, asked, 3), vectors)
    assert json.loads((tmp_path / "s").read_text())["kept"] == pq.read_table(out).num_rows
    assert "00001.parquet" in "".join(path.name for path in out.iterdir())
