"""Duplicates: every row that goes has a twin that stays, whatever the order; compared with all pairs."""

from __future__ import annotations

import json
import os
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import colour_of, image_of, write_tar
from distributed import Client, LocalCluster
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication, places, visits
from curator_dask.dedup.keeping import Keep
from curator_dask.dedup.memory import Memory, parse_limit, share_out
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.scanning import find_sources, look_over
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.frames.parquet import write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.rows.tiles import GAP, MARGIN, TILE
from curator_dask.webdataset.stamps import stamp

DIM = 32


def unit(matrix):
    matrix = np.asarray(matrix, np.float64)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def mixture(random, rows=3000, centres=6, spread=0.5, copies=0.3):
    """Heavy clusters of unequal size, and near-copies of some rows."""
    means = random.normal(size=(centres, DIM))
    sizes = random.dirichlet(np.full(centres, 0.5))
    base = unit(means[random.choice(centres, rows, p=sizes)] + spread * random.normal(size=(rows, DIM)))
    count = int(rows * copies)
    of = random.choice(rows - count, count)
    noise = 0.25 * random.random((count, 1)) * unit(random.normal(size=(count, DIM)))
    base[rows - count :] = unit(base[of] + noise)
    return base[random.permutation(rows)]


def write(folder, vectors, keys=None, files=3, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    keys = [f"{number:06}" for number in range(len(vectors))] if keys is None else keys
    bounds = np.linspace(0, len(vectors), files + 1).astype(int)
    for number, (start, stop) in enumerate(pairwise(bounds)):
        part = vectors[start:stop]
        rows = part if isinstance(part, list) else list(part)
        table = {
            "key": keys[start:stop],
            "__url__": [f"/shards/{number}.tar"] * (stop - start),
            "image_embedding": pa.array(
                [None if row is None else list(map(float, row)) for row in rows], pa.list_(pa.float32())
            ),
            **{name: values[start:stop] for name, values in columns.items()},
        }
        pq.write_table(pa.table(table), folder / f"{number:05}.parquet")
    return folder


def greedy(cosines, order, eps):
    """By all pairs, in the order of who stays."""
    kept = []
    for row in order:
        if not any(cosines[row, other] >= 1 - eps for other in kept):
            kept.append(row)
    return set(kept)


def removed_of(folder):
    table = pq.read_table(folder / "duplicates.parquet").to_pandas()
    return table, set(table.loc[~table["kept"], "id"])


def check_promise(table, vectors, keys, eps):
    place = {key: number for number, key in enumerate(keys)}
    gone = table[~table["kept"]]
    removed = set(gone["id"])
    assert not removed & set(gone["duplicate_of"])
    left = vectors[[place[key] for key in gone["id"]]].astype(np.float64)
    right = vectors[[place[key] for key in gone["duplicate_of"]]].astype(np.float64)
    cosines = (left * right).sum(axis=1)
    assert (cosines >= 1 - eps - 1e-6).all()
    np.testing.assert_allclose(cosines, gone["similarity"], atol=1e-6)
    # The star of each group is the one of its rows that stays.
    stars = table[table["kept"]].set_index("group")["id"]
    assert (stars.loc[gone["group"]].to_numpy() == gone["duplicate_of"].to_numpy()).all()


@pytest.mark.parametrize("seed", range(3))
def test_all_compared_is_greedy_by_all_pairs(tmp_path, in_this_process, seed):
    random = np.random.default_rng(seed)
    vectors = mixture(random, 1200)
    keys = [f"{number:05}" for number in random.permutation(len(vectors))]
    write(tmp_path / "vectors", vectors, keys, files=1 + seed)
    result = SemanticDeduplication(eps=0.05, recall=1)(tmp_path / "vectors")
    summary = result.save(tmp_path / "out")
    table, removed = removed_of(tmp_path / "out")
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    kept = greedy(cosines, np.argsort(keys), 0.05)
    assert removed == {keys[row] for row in range(len(keys)) if row not in kept}
    assert summary.removed == len(removed) > 100
    check_promise(table, vectors, keys, 0.05)


def test_clusters_keep_the_promise_and_the_recall(tmp_path, in_this_process):
    random = np.random.default_rng(5)
    vectors = mixture(random, 4000)
    keys = [f"{number:05}" for number in range(len(vectors))]
    write(tmp_path / "vectors", vectors, keys)
    summary = SemanticDeduplication(eps=0.05, n_clusters=40)(tmp_path / "vectors").save(tmp_path / "out")
    check_promise(removed_of(tmp_path / "out")[0], vectors, keys, 0.05)
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    pairs = int((np.triu(cosines, 1) >= 0.95).sum())
    assert summary.pairs >= 0.99 * pairs


def test_exact_copies_do_not_meet_one_another(tmp_path, in_this_process):
    random = np.random.default_rng(2)
    one, other = unit(random.normal(size=(2, DIM)))
    vectors = np.concatenate([np.repeat(one[None], 1000, 0), other[None]])
    keys = [f"{number:05}" for number in random.permutation(len(vectors))]
    write(tmp_path / "vectors", vectors, keys, sha256=keys)
    summary = SemanticDeduplication(n_clusters=8)(tmp_path / "vectors").save(tmp_path / "out")
    copies = "999 rows have the vector of another, equal to the bit (files that are equal: exact=['sha256']"
    assert copies in str(summary)
    table, removed = removed_of(tmp_path / "out")
    assert (summary.exact, summary.pairs, summary.groups, summary.removed) == (999, 0, 1, 999)
    assert removed == {*keys[:1000]} - {min(keys[:1000])}
    assert set(table["duplicate_of"].dropna()) == {min(keys[:1000])}
    assert (table["similarity"].dropna() == 1).all()


def test_rows_with_more_betters_than_are_written_down_find_the_one_that_stays(tmp_path, in_this_process):
    """Each of a crowd has hundreds of betters; those of the first ones that stay nearest to it are not among them."""
    random = np.random.default_rng(3)
    centre = unit(random.normal(size=(1, DIM)))
    vectors = unit(centre + 0.055 * random.normal(size=(1500, DIM)))
    keys = [f"{number:05}" for number in range(len(vectors))]
    write(tmp_path / "vectors", vectors, keys)
    summary = SemanticDeduplication(eps=0.07, recall=1)(tmp_path / "vectors").save(tmp_path / "out")
    table, removed = removed_of(tmp_path / "out")
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    kept = greedy(cosines, range(len(keys)), 0.07)
    assert (np.tril(cosines, -1) >= 0.93).sum(axis=1).max() > 300
    assert summary.pairs < 1500 * 64 * 2
    check_promise(table, vectors, keys, 0.07)
    assert removed == {keys[row] for row in range(len(keys)) if row not in kept}


def test_a_crowd_of_pairs_does_not_fill_the_memory(tmp_path, in_this_process, monkeypatch):
    """What is let go early is what would be let go in the end; of the sample's pairs a part is looked at."""
    vectors = unit(1 + 0.1 * np.random.default_rng(14).normal(size=(700, DIM)))
    write(tmp_path / "vectors", vectors)
    find = SemanticDeduplication(eps=0.02, n_clusters=3)
    whole = find(tmp_path / "vectors").save(tmp_path / "whole")
    monkeypatch.setattr(Memory, "held", lambda memory, dim: 1000)
    part = find(tmp_path / "vectors").save(tmp_path / "part")
    assert pq.read_table(tmp_path / "whole").equals(pq.read_table(tmp_path / "part"))
    assert part.table == whole.table and part.removed > 300
    looked = [np.load(file) for file in (tmp_path / "part.work").glob("sample-*/????????????????.npy")]
    assert len(looked) == 3  # files, each of one block
    for pairs in looked:
        counts = np.bincount(pairs[:, 0].astype(int))
        assert counts.max() == 64 and (counts == 64).mean() > 0.5
    assert part.recall.value > 0.98


@pytest.mark.parametrize("groups", ["stars", "components"])
def test_what_is_found_does_not_depend_on_the_memory(tmp_path, in_this_process, monkeypatch, groups):
    """Of a crowd, whose pairs go to files meanwhile, and of clusters; all that is written down is the same."""
    random = np.random.default_rng(15)
    vectors = np.concatenate([unit(1 + 0.1 * random.normal(size=(300, DIM))), mixture(random, 900)])
    hashes = random.integers(0, 400, len(vectors)).tolist()
    write(tmp_path / "vectors", vectors[random.permutation(len(vectors))], phash=hashes)
    if groups == "components":
        monkeypatch.setattr(places, "_SHARE", 1e12)  # with a copy in the order of clusters,
        monkeypatch.setattr(places, "_FEW", 1)  # of which single rows are read

    def find(limit, name):
        arguments = {"eps": 0.03, "n_clusters": 12, "exact": "phash", "groups": groups}
        found = SemanticDeduplication(memory_limit=limit, **arguments)(tmp_path / "vectors")
        summary = found.save(tmp_path / "out")
        again = SemanticDeduplication(**arguments)(tmp_path / "vectors").save(tmp_path / "out")
        assert not any(again.made.values())  # it is the same work
        for end in ("", ".work"):
            (tmp_path / f"out{end}").rename(tmp_path / f"{name}{end}")
        return summary

    whole = find(None, "whole")
    with pytest.raises(ConfigError, match=r"memory_limit=1000000: .*it needs \d+.\d+ MiB") as told:
        find("1MB", "none")
    needed = str(told.value).split("it needs ")[1].split(". Give")[0]
    part = find(needed.replace(needed[-5], "9"), "small")  # a hundredth is rounded there
    # Blocks as small as they get, of which there is none that small with vectors of 32.
    monkeypatch.setattr(Memory, "check", lambda *_: None)
    least = find(2, "least")
    names = [path.relative_to(tmp_path / "whole.work") for path in (tmp_path / "whole.work").glob("*/*")]
    assert len(names) > 40
    for name, said in (("small", part), ("least", least)):
        assert pq.read_table(tmp_path / name).equals(pq.read_table(tmp_path / "whole"))
        assert (said.table, said.pairs, said.diameter) == (whole.table, whole.pairs, whole.diameter)
        for path in names:
            one, other = (tmp_path / f"{run}.work" / path for run in ("whole", name))
            if path.suffix == ".npy" and path.parent.name.startswith(("pairs", "again", "hashes")):
                np.testing.assert_array_equal(*(np.sort(np.load(each), axis=0) for each in (one, other)))
            elif path.suffix in (".npy", ".vectors"):
                assert one.read_bytes() == other.read_bytes(), path


def test_a_memory_limit_is_bytes_or_a_share_of_a_workers():
    assert parse_limit("4GB") == 4_000_000_000 and parse_limit(2**30) == 2**30 and parse_limit("0.5") == 0.5
    for wrong in ("", 0, -1, True, "much", "nan", [1]):
        with pytest.raises(ConfigError, match=r"memory_limit=.*'4GB', or a share of a worker's memory"):
            SemanticDeduplication(memory_limit=wrong)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, memory_limit="2GB", processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        task, of_client = share_out(0.25, client)
    assert (task.limit, of_client.limit) == (250_000_000, 500_000_000)


def test_a_smaller_eps_compares_nothing_again(tmp_path, in_this_process):
    random = np.random.default_rng(4)
    vectors = mixture(random, 2000)
    write(tmp_path / "vectors", vectors)
    first = SemanticDeduplication(eps=0.05, n_clusters=10)(tmp_path / "vectors").save(tmp_path / "out")
    assert all(first.made.values())
    again = SemanticDeduplication(eps=0.02, n_clusters=10)(tmp_path / "vectors").save(tmp_path / "out")
    assert not any(again.made.values())
    fresh = SemanticDeduplication(eps=0.02, n_clusters=10)(tmp_path / "vectors").save(tmp_path / "fresh")
    assert again.removed == first.table["0.02"]
    assert again.removed == pytest.approx(fresh.removed, rel=0.02)
    assert 0 < again.removed < first.removed


def test_vectors_that_cannot_be_compared_are_set_aside(tmp_path, in_this_process):
    random = np.random.default_rng(6)
    good = unit(random.normal(size=(20, DIM)))
    odd = [None, np.zeros(DIM), np.full(DIM, np.nan), np.full(DIM, np.inf), 3 * good[0], good[1]]
    vectors = [*good, *odd]
    write(tmp_path / "vectors", vectors, files=2)
    summary = SemanticDeduplication()(tmp_path / "vectors").save(tmp_path / "out")
    assert summary.set_aside == {"null": 1, "zero": 1, "not finite": 2, "not of unit length": 1}
    assert removed_of(tmp_path / "out")[1] == {"000025"}
    assert "1 row has the vector of another, equal to the bit\n" in str(summary)
    assert "not compared, and not removed: 1 null, 1 zero, 2 not finite, 1 not of unit length" in str(summary)
    scaled = SemanticDeduplication(normalize=True)(tmp_path / "vectors").save(tmp_path / "scaled")
    assert scaled.set_aside["not of unit length"] == 0
    assert removed_of(tmp_path / "scaled")[1] == {"000024", "000025"}


def drop_vectors(path):
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns("image_embedding"), path)


@pytest.mark.parametrize(
    ("has_column", "why"),
    [
        (True, "298 null, 1 zero, 1 not finite"),
        (False, "300 in files without a column of vectors"),  # as ImageStatistics alone writes them
    ],
)
def test_without_a_vector_that_can_be_compared_hashes_alone_find_duplicates(
    tmp_path, in_this_process, has_column, why
):
    random = np.random.default_rng(12)
    hashes = hashes_of(random, 300, 60)
    odd = [None, np.zeros(DIM), np.full(DIM, np.nan), *[None] * 297]
    keys = [f"{number:05}" for number in random.permutation(300)]
    write(tmp_path / "vectors", odd, keys, phash=pa.array([int(value) for value in hashes], pa.uint64()))
    for path in () if has_column else (tmp_path / "vectors").iterdir():
        drop_vectors(path)
    find = SemanticDeduplication(exact={"phash": 3}, keep="hard")
    summary = find(tmp_path / "vectors").save(tmp_path / "out")
    table, removed = removed_of(tmp_path / "out")
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= 3
    kept = greedy(near, np.argsort(keys), 0.5)
    assert removed == {keys[row] for row in range(300) if row not in kept} and 0 < len(removed) < 300
    by_vectors = {"image_embedding": 0} if has_column else {}  # nothing is said of a column that is not there
    assert (summary.removed, summary.by) == (len(removed), {**by_vectors, "phash": len(removed)})
    text = str(summary)
    assert (
        "by a hash, in" in text
        and "eps" not in text
        and f"by hashes alone, no row has a vector that can be compared: {why}" in text
    )
    place = {key: number for number, key in enumerate(keys)}
    gone = table[~table["kept"]]
    assert all(near[place[row.id], place[row.duplicate_of]] for row in gone.itertuples())
    assert gone["similarity"].isna().all() and set(summary.table.values()) == {len(removed)}
    assert not any(find(tmp_path / "vectors").save(tmp_path / "out").made.values())


def test_a_column_of_vectors_that_some_files_lack_is_told_though_hashes_are_asked_for(
    tmp_path, in_this_process
):
    vectors = unit(np.random.default_rng(12).normal(size=(8, DIM)))
    folder = write(tmp_path / "vectors", vectors, files=2, phash=list(range(8)))
    with pytest.raises(OutputError, match=r"no column 'other' of vectors.*image_embedding.*--column"):
        SemanticDeduplication(embedding_column="other", exact="phash")(folder).save(tmp_path / "out")
    drop_vectors(folder / "00001.parquet")
    with pytest.raises(
        OutputError, match=r"00001.parquet: has no column of vectors, and \S*00000.parquet has one"
    ):
        SemanticDeduplication(exact="phash")(folder).save(tmp_path / "out")
    drop_vectors(folder / "00000.parquet")
    with pytest.raises(OutputError, match=r"no column 'image_embedding' of vectors.*--exact"):
        SemanticDeduplication()(folder).save(tmp_path / "out")


@pytest.mark.parametrize(
    "eps", [0.01, 0.2]
)  # of a crowd, the one's table is a guess upwards, the other's downwards
def test_the_table_of_eps_is_right_or_says_about(tmp_path, in_this_process, eps):
    vectors = mixture(np.random.default_rng(13), 1500, spread=0.3)
    write(tmp_path / "vectors", vectors)
    summary = SemanticDeduplication(eps=eps, recall=1)(tmp_path / "vectors").save(tmp_path / "out")
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    for said, count in summary.table.items():
        right = len(vectors) - len(greedy(cosines, range(len(vectors)), float(said)))
        assert count == right if said not in summary.about else 0.8 * right < count < 1.25 * right, said
    assert f"{eps:g}" not in summary.about and len(summary.about) > 4


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([], "has no rows"),
        ([None] * 4, "of 4 rows none has a vector that can be compared \\(4 null\\)"),
        ([2 * np.eye(DIM)[0]] * 4, "4 not of unit length.*normalize=True"),
    ],
)
def test_nothing_to_compare_is_an_error_that_says_why(tmp_path, in_this_process, vectors, message):
    write(tmp_path / "vectors", vectors, files=1)
    with pytest.raises(OutputError, match=message):
        SemanticDeduplication()(tmp_path / "vectors").save(tmp_path / "out")


def test_what_does_not_fit_is_told(tmp_path, in_this_process):
    random = np.random.default_rng(7)
    columns = {"width": list(range(8)), "worth": [0.5] * 8, "name": ["a"] * 8}
    write(tmp_path / "vectors", unit(random.normal(size=(8, DIM))), files=1, **columns)
    find = tmp_path / "vectors"
    (tmp_path / "no.work").touch()
    with pytest.raises(OutputError, match=r"/no\.work: a folder is expected there.*Move it away"):
        SemanticDeduplication()(find).save(tmp_path / "no")
    with pytest.raises(OutputError, match=r"no column 'widht'.*did you mean width.*keep"):
        SemanticDeduplication(keep="widht")(find).save(tmp_path / "out")
    with pytest.raises(ConfigError, match="keep='width >'"):
        SemanticDeduplication(keep=["width >"])
    with pytest.raises(OutputError, match=r"no column 'other' of vectors.*image_embedding"):
        SemanticDeduplication(embedding_column="other")(find).save(tmp_path / "out")
    with pytest.raises(OutputError, match=r"no column 'pash'.*exact.*ImageStatistics"):
        SemanticDeduplication(exact="pash")(find).save(tmp_path / "out")
    with pytest.raises(OutputError, match="'worth' is of type double: a float cannot hold 64 bits"):
        SemanticDeduplication(exact=["worth"])(find).save(tmp_path / "out")
    with pytest.raises(
        OutputError, match=r"'name' \(exact\) has no hash in row 0.*hexadecimal digits, found 'a'"
    ):
        SemanticDeduplication(exact={"name": 2})(find).save(tmp_path / "out")
    for wrong in ({"phash": 9}, {"pdq": 32}, {"phash": True}, 4, [4]):
        with pytest.raises(ConfigError, match=r"exact=.*\{'phash': 4}"):
            SemanticDeduplication(exact=wrong)
    with pytest.raises(ConfigError, match="eps=0"):
        SemanticDeduplication(eps=0)
    longer = unit(random.normal(size=(8, 2 * DIM)))
    table = pq.read_table(find / "00000.parquet").drop_columns("image_embedding")
    column = pa.array(longer.tolist(), pa.list_(pa.float32()))
    pq.write_table(table.append_column("image_embedding", column), find / "00001.parquet")
    with pytest.raises(ConfigError, match=f"two lengths.*of {DIM} values.*of {2 * DIM} values"):
        SemanticDeduplication()(find).save(tmp_path / "out")


KEEPS = [
    (None, lambda frame: frame["key"].idxmin()),
    ("score", lambda frame: frame["score"].idxmax()),
    ("score asc", lambda frame: frame["score"].idxmin()),
    (["width * height desc", "key desc"], lambda frame: (frame["width"] * frame["height"]).idxmax()),
    (lambda frame: -frame["width"], lambda frame: frame["width"].idxmin()),
]


@pytest.mark.parametrize(("keep", "best"), KEEPS)
def test_the_best_copy_stays(tmp_path, in_this_process, keep, best):
    random = np.random.default_rng(8)
    vectors = np.repeat(unit(random.normal(size=(10, DIM))), 5, 0)
    vectors = unit(vectors + 1e-4 * random.normal(size=vectors.shape))
    columns = {
        name: random.permutation(len(vectors)).astype(kind).tolist()
        for name, kind in (("score", float), ("width", int), ("height", int))
    }
    columns["score"][7] = None
    write(tmp_path / "vectors", vectors, **columns)
    summary = SemanticDeduplication(keep=keep)(tmp_path / "vectors").save(tmp_path / "out")
    frame = pq.read_table(tmp_path / "vectors", columns=["key", *columns]).to_pandas()
    wanted = {frame["key"][best(part)] for _, part in frame.groupby(frame.index // 5)}
    assert {*frame["key"]} - removed_of(tmp_path / "out")[1] == wanted
    assert summary.unknown.get("score", 0) == (keep in ("score", "score asc"))


LARGE = 2**60


@pytest.mark.parametrize(
    ("first", "second", "best"),
    [
        ([LARGE, LARGE + 1], [LARGE + 2, LARGE], "2"),  # as floats they would be ties
        (["b", "a"], [None, None], "1"),
        (pa.nulls(2), [2, 1], "2"),
        (pa.nulls(2), pa.nulls(2), "0"),
    ],
    ids=["whole numbers", "text", "no value in a file", "no value"],
)
def test_values_by_which_rows_are_ordered(tmp_path, in_this_process, first, second, best):
    (tmp_path / "vectors").mkdir()
    for number, values in enumerate((first, second)):
        table = {
            "key": [str(2 * number), str(2 * number + 1)],
            "__url__": ["/0.tar"] * 2,
            "image_embedding": pa.array([[1.0, 0.0]] * 2, pa.list_(pa.float32())),
            "worth": values,
        }
        pq.write_table(pa.table(table), tmp_path / "vectors" / f"{number}.parquet")
    SemanticDeduplication(keep="worth")(tmp_path / "vectors").save(tmp_path / "out")
    assert {"0", "1", "2", "3"} - removed_of(tmp_path / "out")[1] == {best}


def test_text_orders_new_rows_against_earlier_ones(tmp_path, in_this_process):
    vectors = unit(np.random.default_rng(3).normal(size=(4, DIM)))[[0, 1, 1, 0]]
    write(tmp_path / "old", vectors[:1], ["old"], files=1)
    write(tmp_path / "new", vectors[1:], ["x", "y", "z"], files=1, name=["b", "a", "c"])
    find = SemanticDeduplication(keep="name", against=tmp_path / "old")
    find(tmp_path / "new").save(tmp_path / "out")
    assert removed_of(tmp_path / "out")[1] == {"x", "z"}


def test_what_cannot_be_ordered_or_written_is_told(tmp_path, in_this_process):
    vectors = unit(np.random.default_rng(3).normal(size=(4, DIM)))
    write(tmp_path / "vectors", vectors[:2], ["0", "1"], files=1, worth=[1, 2])
    write(tmp_path / "more", vectors[2:], ["2", "3"], files=1, worth=["a", "b"])
    (tmp_path / "more/00000.parquet").rename(tmp_path / "vectors/00001.parquet")
    with pytest.raises(OutputError, match="one type in some files and another in others"):
        SemanticDeduplication(keep="worth")(tmp_path / "vectors").save(tmp_path / "out")
    with pytest.raises(OutputError, match="give a folder beside it"):
        SemanticDeduplication()(tmp_path / "vectors").save(tmp_path / "vectors/inside")


def test_hard_and_easy_go_by_the_distance_from_the_centroid(tmp_path, in_this_process):
    random = np.random.default_rng(9)
    vectors = mixture(random, 600)
    keys = [f"{number:05}" for number in range(600)]
    write(tmp_path / "vectors", vectors, keys)
    centre = unit(vectors.astype(np.float64).sum(axis=0, keepdims=True))[0]
    far = 1 - vectors.astype(np.float64) @ centre
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    for keep, order in (("hard", np.argsort(-far)), ("easy", np.argsort(far))):
        SemanticDeduplication(eps=0.05, keep=keep)(tmp_path / "vectors").save(tmp_path / keep)
        kept = greedy(cosines, order, 0.05)
        assert removed_of(tmp_path / keep)[1] == {keys[row] for row in range(600) if row not in kept}


def test_rows_near_an_earlier_dataset_go_and_it_stays(tmp_path, in_this_process):
    random = np.random.default_rng(10)
    vectors = mixture(random, 1500)
    keys = [f"{number:05}" for number in range(1500)]
    write(tmp_path / "old", vectors[:700], keys[:700])
    write(tmp_path / "new", vectors[700:], keys[700:])
    find = SemanticDeduplication(eps=0.05, recall=1, against=tmp_path / "old")
    summary = find(tmp_path / "new").save(tmp_path / "out")
    table, removed = removed_of(tmp_path / "out")
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    kept = [*range(700)]
    for row in range(700, 1500):
        if not (cosines[row, kept] >= 0.95).any():
            kept.append(row)
    assert summary.rows == 800
    assert removed == {keys[row] for row in range(1500) if row not in kept}
    assert min(table["id"]) >= keys[700]
    near_old = table[~table["kept"] & (table["duplicate_of"] < keys[700])]
    assert len(near_old) > 50
    left = vectors[[int(key) for key in near_old["id"]]]
    right = vectors[[int(key) for key in near_old["duplicate_of"]]]
    np.testing.assert_allclose((left * right).sum(axis=1), near_old["similarity"], atol=1e-5)


def test_the_command_and_the_dataset_without(tmp_path, client):
    """On a cluster the same rows go as without one, and the dataset loses just these."""
    random = np.random.default_rng(11)
    vectors = mixture(random, 900)
    for number in range(3):  # a shard each, with rows of its own beside it
        keys = [f"{key:06}" for key in range(300 * number, 300 * number + 300)]
        write_tar(tmp_path / "shards" / f"{number}.tar", [(f"{key}.png", b"") for key in keys])
    write(tmp_path / "vectors", vectors, files=3, phash=[0, 3, *random.integers(1, 2**63, 898).tolist()])
    for path in sorted((tmp_path / "vectors").iterdir()):
        table = pq.read_table(path)
        url = str(tmp_path / "shards" / f"{int(path.stem)}.tar")
        table = table.set_column(1, "__url__", pa.array([url] * len(table)))
        pq.write_table(table, path)
        pq.write_table(table.select(["key"]), url.replace(".tar", ".parquet"))
    arguments = [
        "--eps",
        "0.05",
        "--clusters",
        "12",
        "--exact",
        "phash=2",
        "--memory-limit",
        "0.5",
        "--scheduler-address",
        client.scheduler.address,
    ]
    done = CliRunner().invoke(
        app, ["dedup", str(tmp_path / "vectors"), str(tmp_path / "out"), *arguments, "--json", "-"]
    )
    assert done.exit_code == 0, done.output
    table, removed = removed_of(tmp_path / "out")
    assert json.loads(done.stdout)["removed"] == len(removed) > 100
    assert json.loads(done.stdout)["by"]["phash"] == (table["found_by"] == "phash").sum() == 1
    dataset = ImageTextPairDataset.from_webdataset(str(tmp_path / "shards"))
    result = SemanticDeduplication(eps=0.05, n_clusters=12, exact={"phash": 2})(tmp_path / "vectors")
    with pytest.raises(OutputError, match="not saved yet"):
        dataset.without(result)
    result.save(tmp_path / "again")
    assert pq.read_table(tmp_path / "again" / "duplicates.parquet").equals(
        pq.read_table(tmp_path / "out" / "duplicates.parquet")
    )
    summary = dataset.without(tmp_path / "again").save_metadata(tmp_path / "left")
    left = pq.read_table(tmp_path / "left")
    assert {*left["key"].to_pylist()} == {f"{number:06}" for number in range(900)} - removed
    assert sum(each["count"] for each in summary.filtered.values()) == len(removed)
    again = dataset.without(result).save_metadata(tmp_path / "left")
    assert (again.written, again.skipped) == (0, 3)
    plan = dataset.without(result).to_webdataset(tmp_path / "tars", dry_run=True)
    assert (plan.rows, plan.kept, plan.filtered) == (900, 900 - len(removed), len(removed))
    assert f"of 900 rows {len(removed)} filtered out" in str(plan)
    assert len(table) > len(removed)


def test_duplicates_of_shards_that_have_moved_are_told(tmp_path, in_this_process, said):
    """Their rows are known by shard and key: else nothing would go, without a word."""
    vectors = np.repeat(unit(np.random.default_rng(3).normal(size=(2, DIM))), 2, 0)
    (tmp_path / "shards").mkdir()
    for name in ("0.tar", "other.tar"):
        write_tar(tmp_path / "shards" / name, [(f"{key:06}.png", b"") for key in range(4)])
    write(tmp_path / "vectors", vectors, files=1)
    SemanticDeduplication()(tmp_path / "vectors").save(tmp_path / "out")
    dataset = ImageTextPairDataset.from_webdataset(str(tmp_path / "shards"))
    with pytest.raises(
        OutputError, match=f"a shard there is '/shards/0.tar', and here '{tmp_path}/shards/0.tar'"
    ):
        dataset.without(tmp_path / "out")
    dataset.save_metadata(tmp_path / "rows")
    with pytest.raises(OutputError, match=r"'/shards/0.tar', and here .*/shards/0.tar'"):
        export_output(tmp_path / "rows", tmp_path / "tars", ExportOptions(without=str(tmp_path / "out")))
    (tmp_path / "shards/0.tar").unlink()
    dataset = ImageTextPairDataset.from_webdataset(str(tmp_path / "shards"))
    assert len(dataset.without(tmp_path / "out").compute()) == 4
    assert "nothing is left out: a shard there is '/shards/0.tar', and here" in said.text
    assert "where the best of a group of duplicates did not pass" not in said.text
    dataset.filter("key >= '0'").without(tmp_path / "out")
    assert "where the best of a group of duplicates did not pass, nothing of it stays" in said.text


BEST = 1.0


def best(frame):
    return frame["width"] * BEST


def test_what_a_function_reads_of_its_module_counts(monkeypatch):
    before = Keep.of(best).identity
    assert Keep.of(best).identity == before
    monkeypatch.setattr("test_dedup.BEST", -1.0)
    assert Keep.of(best).identity != before


def test_what_was_under_way_is_made_again_to_the_bit(tmp_path, in_this_process, monkeypatch):
    """Of a call that was killed there are the finished files of some phases; by whichever way vectors are read."""
    random = np.random.default_rng(12)
    write(tmp_path / "vectors", mixture(random, 1500))
    find = SemanticDeduplication(eps=0.05, n_clusters=10)
    find(tmp_path / "vectors").save(tmp_path / "out")
    whole = (tmp_path / "out" / "duplicates.parquet").read_bytes()
    work = tmp_path / "out.work"
    for left in (3, 1, 1):
        (tmp_path / "out" / "duplicates.parquet").unlink()
        for lost in (f"assign-*/{'?' * 16}.npy", "order-*/*.vectors", "pairs-*/0.npy", "pairs-*/done.json"):
            for path in sorted(work.glob(lost))[:left]:
                path.unlink()
        again = find(tmp_path / "vectors").save(tmp_path / "out")
        assert again.made["assign"] and again.made["pairs"] and not again.made["scan"]
        monkeypatch.setattr(places, "_MANY", 1500)  # from now on with a copy in the order of clusters
        assert [*work.glob("order-*/*.vectors")] if "sort" in again.made else left == 3
        table = pq.read_table(tmp_path / "out" / "duplicates.parquet")
        assert table.equals(pq.read_table(pa.BufferReader(whole)))
    (near,) = work.glob("order-*/near.npy")
    os.truncate(near, near.stat().st_size // 2)
    next(work.glob("pairs-*/0.npy")).unlink()
    said = (
        r"^pairs: part 0 of the rows in .*: ValueError: .*is kept: run again\. .* remove .*/out\.work first"
    )
    with pytest.raises(ShardError, match=said):
        find(tmp_path / "vectors").save(tmp_path / "out")
    for path in (*work.glob("scan-*/*.vectors"), *work.glob("assign-*/*.npy")):
        path.unlink() if path.suffix == ".npy" else os.truncate(path, 400)
    with pytest.raises(
        OutputError, match=r"\.vectors: has less than \d+ vectors, .*cut short. Remove .*/out\.work, "
    ):
        find(tmp_path / "vectors").save(tmp_path / "out")


def test_shards_that_have_changed_since_are_told(tmp_path, caplog):
    (tmp_path / "0.tar").write_bytes(bytes(512))
    shard = {"url": str(tmp_path / "0.tar"), "rows": None, "tar": vars(stamp(str(tmp_path / "0.tar")))}
    write_table(str(tmp_path / "out/0.parquet"), pa.table({"key": ["a"]}), FileRecord("", shard=shard))
    sources = find_sources(str(tmp_path / "out"), None)
    look_over(sources, lambda _: True)
    assert not caplog.records
    (tmp_path / "0.tar").write_bytes(bytes(1024))
    look_over(sources, lambda _: True)
    assert (
        f"{tmp_path}/out: 1 shards have changed since" in caplog.text and "0.tar for example" in caplog.text
    )


def hashes_of(random, rows, distinct):
    """uint64: some equal, some a few bits apart, some not near any."""
    values = random.integers(0, 2**64, distinct, dtype=np.uint64)[random.choice(distinct, rows)]
    for _ in range(8):
        flipped = np.uint64(1) << random.integers(0, 64, rows, dtype=np.uint64)
        values ^= np.where(random.random(rows) < 0.25, flipped, np.uint64(0))
    return values


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_rows_near_by_hash_or_by_vector_are_greedy_by_all_pairs(tmp_path, in_this_process, bits):
    random = np.random.default_rng(20 + bits)
    vectors, hashes = mixture(random, 500), hashes_of(random, 500, 150)
    hashes[:90] = hashes[0]  # more of one hash than a row's betters that are written down
    shas = [f"{number:064x}" for number in random.integers(0, 3000, 500)]
    listed = list(vectors)
    for row in range(100, 180):
        listed[row] = None
    keys = [f"{number:05}" for number in random.permutation(500)]
    write(
        tmp_path / "vectors",
        listed,
        keys,
        phash=pa.array(
            [None if row % 7 == 0 else int(value) for row, value in enumerate(hashes)], pa.uint64()
        ),
        sha256=shas,
    )
    find = SemanticDeduplication(eps=0.05, recall=1, exact={"phash": bits, "sha256": 0})
    summary = find(tmp_path / "vectors").save(tmp_path / "out")
    table, removed = removed_of(tmp_path / "out")

    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    cosines[100:180] = cosines[:, 100:180] = -1
    differ = np.bitwise_count(hashes[:, None] ^ hashes[None])
    differ[::7] = differ[:, ::7] = 64
    same = np.array(shas)[:, None] == np.array(shas)[None]
    near = {"image_embedding": cosines >= 0.95, "phash": differ <= bits, "sha256": same}
    kept = greedy(np.logical_or.reduce([*near.values()]), np.argsort(keys), 0.5)
    assert removed == {keys[row] for row in range(500) if row not in kept}
    place = {key: number for number, key in enumerate(keys)}
    gone = table[~table["kept"]]
    assert {*gone["found_by"]} == {*near}
    for row in gone.itertuples():
        one, other = place[row.id], place[row.duplicate_of]
        assert other in kept
        assert row.found_by == next(name for name, is_near in near.items() if is_near[one, other])
        expected = cosines[one, other]
        assert np.isnan(row.similarity) if expected == -1 else abs(row.similarity - expected) < 1e-6
    assert summary.by == gone["found_by"].value_counts().to_dict()
    assert summary.set_aside["null"] == 80


def linked(near):
    """By all pairs, the first row of each row's component."""
    labels = np.arange(len(near))
    while True:
        lower = np.where(near, labels, len(near)).min(axis=1)
        if (lower == labels).all():
            return labels
        labels = lower


@pytest.mark.parametrize("crowd", [False, True])
def test_components_are_those_of_all_pairs(tmp_path, in_this_process, crowd):
    """Also where a row that links two crowds has more betters than are written down."""
    random = np.random.default_rng(30)
    vectors = mixture(random, 800)
    if crowd:
        one, other = unit(random.normal(size=(2, DIM)))
        other = unit([other - (other @ one) * one])[0]
        turned = [np.cos(angle) * one + np.sin(angle) * other for angle in (0, 0.2, 0.4)]
        sizes = (90, 1, 90)
        around = np.concatenate(
            [np.repeat([turn], size, 0) for turn, size in zip(turned, sizes, strict=True)]
        )
        vectors = np.concatenate([unit(around + 0.001 * random.normal(size=around.shape)), vectors])
        vectors[[90, 180]] = vectors[[180, 90]]  # the link is the worst
    keys = [f"{number:05}" for number in range(len(vectors))]
    hashes = random.integers(0, 2**63, len(vectors))
    hashes[300:310] = hashes[200:210]
    write(tmp_path / "vectors", vectors, keys, phash=hashes.tolist())
    find = SemanticDeduplication(eps=0.03, recall=1, groups="components", exact=["phash"])
    summary = find(tmp_path / "vectors").save(tmp_path / "out")
    table, removed = removed_of(tmp_path / "out")
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    labels = linked((cosines >= 0.97) | (hashes[:, None] == hashes[None]))
    assert removed == {keys[row] for row in range(len(keys)) if labels[row] != row}
    gone = table[~table["kept"]]
    assert [int(key) for key in gone["duplicate_of"]] == labels[[int(key) for key in gone["id"]]].tolist()
    expected = cosines[[int(key) for key in gone["id"]], [int(key) for key in gone["duplicate_of"]]]
    np.testing.assert_allclose(gone["similarity"], expected, atol=1e-6)
    within = labels[:, None] == labels[None]
    assert summary.diameter == pytest.approx(1 - cosines[within].min(), abs=1e-6) and summary.diameter_exact
    assert "1 - cosine of the farthest rows of one group: " in str(summary)
    same = [hashes[int(row["id"])] == hashes[int(row["duplicate_of"])] for _, row in gone.iterrows()]
    assert summary.linked == (~(np.array(same) | (expected >= 0.97))).sum()
    assert (f"  {summary.linked:,} row" in str(summary)) == (summary.linked > 0) and (
        summary.linked > 0 or not crowd
    )
    if crowd:
        assert len({*labels[:181]}) == 1


def test_a_picture_of_groups_frames_what_stays(tmp_path, in_this_process):
    """The largest group comes first, what stays first in it; then the one whose rows are least alike."""
    groups = {"1": (8, 0.02), "2": (2, 0.02), "3": (2, 0.3), "4": (2, 0.1)}
    random = np.random.default_rng(5)
    names, vectors, members = [], [], []
    for name, (size, spread) in groups.items():
        one = unit(random.normal(size=(1, DIM)))
        vectors.append(
            unit(one + spread * unit(random.normal(size=(size, DIM))) * np.arange(size)[:, None] / size)
        )
        names += [f"{name}00{row}" for row in range(size)]
    members = [(f"{name}.png", b"no image" if name == "4001" else image_of(name)) for name in names]
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards/0.tar", members)
    write(tmp_path / "vectors", np.concatenate(vectors), names, files=1)
    path = tmp_path / "vectors/00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "__url__", pa.array([str(tmp_path / "shards/0.tar")] * 14)), path)
    result = SemanticDeduplication(eps=0.1)(tmp_path / "vectors")
    with pytest.raises(OutputError, match="not saved yet"):
        result.sheet()
    result.save(tmp_path / "out")
    sheet = result.sheet(n=2)
    line = TILE + 46 + GAP
    assert sheet.size == (2 * MARGIN + 6 * (TILE + GAP) - GAP, 72 + 2 * line + MARGIN // 2)

    def seen(at, column, offset=TILE // 2):
        return sheet.getpixel((MARGIN + column * (TILE + GAP) + offset, 72 + at * line + TILE // 2))

    assert seen(0, 0) == colour_of("1000") and {seen(0, column) for column in range(1, 6)} < {
        colour_of(f"100{row}") for row in range(1, 8)
    }
    assert [seen(1, column) for column in range(3)] == [colour_of("3000"), colour_of("3001"), (255, 255, 255)]
    frames = [[seen(at, column, -2) for column in range(2)] for at in range(2)]
    assert frames == [[(0x15, 0x80, 0x3D), (255, 255, 255)]] * 2
    sheet = result.sheet(n=9)
    assert [seen(at, 0) for at in range(4)] == [colour_of(f"{name}000") for name in "1342"]
    assert seen(2, 1) == (0xEC, 0xEE, 0xF1)  # not an image


def test_a_full_disk_is_said_as_numpy_says_it(tmp_path):
    told = Phase(str(tmp_path)).told("a.npy")
    with pytest.raises(OutputError, match=r"could not be written: 100000 requested .*\. Make room"), told:
        np.zeros(100_000).tofile("/dev/full")


def test_what_is_near_to_clusters_is_sorted_a_block_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(visits, "_BLOCK", 1000)
    random, vectors, clusters = np.random.default_rng(1), 900, 37
    pairs = np.column_stack([random.integers(0, vectors, 20_000), random.integers(0, clusters, 20_000)])
    pairs = np.unique(pairs[pairs[:, 1] != 5], axis=0)  # a cluster that nothing is near to
    phase = Phase(str(tmp_path))
    for name, part in enumerate(np.split(pairs, np.searchsorted(pairs[:, 0], [300, 300, 700]))):
        phase.save(f"{name}-near.npy", part)
    found, standing = visits.Visits(phase, ("0", "1", "2", "3")), random.permutation(vectors)
    found.save_by_cluster(phase, standing, clusters)
    at = standing[pairs[:, 0]]
    order = np.lexsort((at, pairs[:, 1]))
    np.testing.assert_array_equal(phase.load("near.npy"), at[order])
    bounds = np.searchsorted(pairs[order, 1], np.arange(clusters + 1))
    np.testing.assert_array_equal(phase.load("near-bounds.npy"), bounds)
    some = random.integers(0, vectors, 50)
    expected = pairs[np.isin(pairs[:, 0], some)] @ [clusters, 1]
    np.testing.assert_array_equal(found.of(some, clusters), np.sort(expected))
    assert len(visits.Visits(phase).of(some[:0], clusters)) == 0
