"""Clusters of clusters: the paper's two programs as plain loops, and what it claims of them on a long tail."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from test_heads import L14
from typer.testing import CliRunner

from curator_dask.balancing import balance_clusters
from curator_dask.balancing.given import check_any_balance, identity_of, needed_column
from curator_dask.balancing.levels import _turns, evenly, shared
from curator_dask.cli import app
from curator_dask.curation import Recipe
from curator_dask.dedup.kmeans import Sample, cluster
from curator_dask.errors import ConfigError, WeightsError
from curator_dask.frames.columns import unit, vectors_to_list
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import ClusterDistance, ClusterNumber, score_output
from curator_dask.image.classifiers.centroids import Centroids, find_centroids, read_centroids
from curator_dask.image.classifiers.hierarchical import Drawn, find_hierarchy
from curator_dask.image.classifiers.levels import Levels, read_levels
from curator_dask.rows.draws import row_digests
from curator_dask.text.again import scorer_from

DIM, CONCEPTS = 16, 15


def long_tail(rows=3000, seed=0):
    """Unit vectors of concepts, the r-th of which is there 1 / r as often as the first; and their concepts."""
    rng = np.random.default_rng(seed)
    sizes = (rows / np.arange(1, CONCEPTS + 1) ** 1.5 / 2).astype(int)
    concepts = rng.permutation(np.repeat(np.arange(CONCEPTS), sizes))
    middles = unit(rng.normal(size=(CONCEPTS, DIM)).astype(np.float32))
    noise = unit(rng.normal(size=(len(concepts), DIM)).astype(np.float32))
    return unit(middles[concepts] + 0.4 * noise), concepts


def write(folder, vectors, order, files, without=(), id_col="key"):
    """Files of these rows, each with the key of its number; some have no vector."""
    for number, rows in enumerate(np.array_split(order, files)):
        table = {
            id_col: [f"{row:05d}" for row in rows],
            "__url__": [f"/data/{row % 7}.tar" for row in rows],
            "image_embedding": vectors_to_list(vectors[rows], ~np.isin(rows, without)),
        }
        info = {"image_embedding": {**L14, "dim": vectors.shape[1]}}
        record = FileRecord("f", id_col="key", embeddings=info)
        write_table(str(folder / f"{number}.parquet"), pa.table(table), record)


def column(folder, name):
    """By row, of whatever file."""
    table = pq.read_table(folder, columns=["key", name])
    keys, values = (table[each].to_pylist() for each in ("key", name))
    return np.array([value for _, value in sorted(zip(keys, values, strict=True))], object)


def one_by_one(numbers, sizes, parents, keep, seed):
    """Each row of those that are kept goes down from the top, to the cluster that has got fewest and has room."""
    inside = [sizes]
    for of, number in zip(parents, numbers[1:], strict=True):
        inside.append(
            [sum(inside[-1][child] for child in np.flatnonzero(of == each)) for each in range(number)]
        )
    given = [np.zeros(number, int) for number in numbers]
    turns = [_turns(number, level, seed) for level, number in enumerate(numbers)]
    for _ in range(min(keep, sum(sizes))):
        choice = range(numbers[-1])
        for level in reversed(range(len(numbers))):
            room = [each for each in choice if given[level][each] < inside[level][each]]
            found = min(room, key=lambda each, level=level: (given[level][each], turns[level][each]))
            given[level][found] += 1
            choice = np.flatnonzero(parents[level - 1] == found) if level else ()
    return given[0]


def test_what_is_kept_is_shared_out_evenly_from_the_top_down():
    rng = np.random.default_rng(0)
    for numbers in ((7,), (12, 4), (30, 9, 3), (25, 8, 4, 1)):
        parents = [rng.integers(above, size=below) for below, above in itertools.pairwise(numbers)]
        sizes = np.floor(rng.pareto(0.7, numbers[0]) * 3).astype(np.int64)  # some are empty
        before = np.zeros(numbers[0], int)
        for keep in (0, 1, 2, 5, 17, 60, int(sizes.sum()) - 1, int(sizes.sum()), 10**9):
            found = shared(numbers, sizes, parents, keep, seed=3)
            assert found.tolist() == one_by_one(
                numbers, sizes.tolist(), parents, min(keep, 500), 3
            ).tolist() or (keep > 500)
            assert (
                found.sum() == min(keep, sizes.sum()) and (found <= sizes).all() and found.dtype == np.int64
            )
            if keep == 60:
                before = found
            assert keep < 60 or (found >= before).all()  # none has fewer where more are kept
    # Who gets one more is drawn, and not the first.
    few = [shared((40,), np.full(40, 9), [], 45, seed) for seed in range(30)]
    assert {int(each.sum()) for each in few} == {45} and {int(each.max()) for each in few} == {2}
    assert np.sum(few, 0).min() - 30 + 1 > 0 and len({tuple(each) for each in few}) == 30
    assert evenly(np.zeros(0, np.int64), 5, np.zeros(0)).tolist() == []


def test_levels_are_those_of_the_plain_program(tmp_path):
    """k-means, then again of the points that are nearest to each centroid; then the same of the centroids."""
    vectors, _ = long_tail(600)
    write(tmp_path / "out", vectors, np.arange(len(vectors)), 2)
    drawn = Drawn.of(tmp_path / "out", (40, 12, 4), resampling=(3, 2, 1), seed=5)
    rows = range(len(vectors))
    table = pa.table({"key": [f"{row:05d}" for row in rows], "__url__": [f"{row % 7}.tar" for row in rows]})
    np.testing.assert_allclose(drawn.vectors, vectors[np.argsort(row_digests(table, "key", 5))], atol=1e-6)
    found = drawn.cluster()
    points = drawn.vectors
    for level, (number, steps) in enumerate(((40, 3), (12, 2), (4, 1)), 1):

        def centroids_of(some, step, level=level, number=number):
            seed = int(np.random.SeedSequence([5, level, step]).generate_state(1)[0])
            return cluster(Sample(len(some), DIM, some.__getitem__, 100), number, 20, seed, 1e-4, 8192)[0]

        def nearest(centroids, points=points):
            return (points.astype(float) @ centroids.T.astype(float)).argmax(1)

        centroids = centroids_of(points, 0)
        for step in range(1, steps + 1):
            of, some = nearest(centroids), []
            cosines = (points.astype(float) * centroids[of].astype(float)).sum(1)
            for each in range(number):
                mine = np.flatnonzero(of == each)
                some += mine[np.argsort(-cosines[mine], kind="stable")][
                    : -(-len(points) // number // 2)
                ].tolist()
            centroids = centroids_of(points[sorted(some)], step)
        assert (found.levels.centroids[level - 1] == centroids).all()
        of = nearest(centroids)
        assert found.found[level - 1].sizes.tolist() == np.bincount(of, minlength=number).tolist()
        if level > 1:
            assert found.levels.parents[level - 2].tolist() == of.tolist()
        points = centroids
    assert found.levels.above(3).tolist() == found.levels.parents[1][found.levels.parents[0]].tolist()
    assert str(found).count("clusters of") == 3 and "made again 3 times" in str(found)


def test_files_and_their_order_play_no_part_and_a_sample_serves(tmp_path, monkeypatch):
    monkeypatch.setattr("curator_dask.image.classifiers.hierarchical.SAMPLE", 10)
    vectors, _ = long_tail(1500)
    rng = np.random.default_rng(1)
    without = rng.choice(
        len(vectors), len(vectors) * 4 // 5, replace=False
    )  # what is first drawn is not enough
    vectors[without[0]] = 0
    write(tmp_path / "one", vectors, np.arange(len(vectors)), 1, without[1:])
    write(tmp_path / "other", vectors, rng.permutation(len(vectors)), 5, without[1:])
    found = [find_hierarchy(tmp_path / name, (20, 5), seed=1) for name in ("one", "other")]
    assert found[0].levels.as_bytes() == found[1].levels.as_bytes()
    assert (found[0].sample, found[0].rows) == (200, len(vectors))
    assert find_hierarchy(tmp_path / "one", (20, 5), seed=2).levels.as_bytes() != found[0].levels.as_bytes()
    # Rows of one key and shard, and files without keys.
    table = pa.table({"image_embedding": vectors_to_list(vectors, np.ones(len(vectors), bool))})
    same = table.append_column("key", pa.array(["a"] * len(table)))
    for name, each in (("keyless", table), ("same", same), ("turned", same.take(rng.permutation(len(same))))):
        (tmp_path / name).mkdir()
        pq.write_table(each, tmp_path / name / "0.parquet")
    assert find_hierarchy(tmp_path / "keyless", (20, 5)).sample == 200
    same, turned = (Drawn.of(tmp_path / name, (20, 5)) for name in ("same", "turned"))
    assert len(same.vectors) == 200 and (same.vectors == turned.vectors).all()


@pytest.fixture(scope="module")
def tailed(tmp_path_factory):
    """An output with a long tail, and clusters of it on three levels."""
    folder = tmp_path_factory.mktemp("levels")
    vectors, concepts = long_tail()
    write(folder / "out", vectors, np.arange(len(vectors)), 3, [4, 5])
    found = find_hierarchy(folder / "out", (150, 50, CONCEPTS))
    found.levels.save(folder / "levels.safetensors")
    return folder, vectors, concepts, found.levels


@pytest.mark.usefixtures("in_this_process")
def test_a_long_tail_is_flattened_more_than_by_one_level(tailed, tmp_path):
    folder, vectors, concepts, levels = tailed
    find_centroids(folder / "out", 150).save(tmp_path / "flat.safetensors")

    def uneven(kept):
        """Kullback and Leibler's divergence of the concepts' shares from equal ones, in nats."""
        shares = np.bincount(concepts, kept.astype(float), CONCEPTS) / kept.sum()
        return float((shares[shares > 0] * np.log(shares[shares > 0] * CONCEPTS)).sum())

    known = [row for row in range(len(vectors)) if row not in (4, 5)]
    chance = uneven(np.isin(np.arange(len(vectors)), known))
    one = balance_clusters(
        folder / "out", tmp_path / "flat.safetensors", 0.1, tmp_path / "a", by="size", order="random"
    )
    flat = uneven(column(tmp_path / "a", "balanced").astype(bool))
    told = balance_clusters(folder / "out", folder / "levels.safetensors")
    assert [each["clusters"] for each in told.levels] == [CONCEPTS, 50, 150] and told.kept is None
    summary = balance_clusters(folder / "out", folder / "levels.safetensors", 0.1, tmp_path / "b")
    kept = column(tmp_path / "b", "balanced").astype(bool)
    assert (summary.by, summary.order, summary.kept, one.kept) == ("levels", "random", kept.sum(), kept.sum())
    assert uneven(kept) < 0.3 * flat < 0.3 * chance, (chance, flat, uneven(kept))
    assert {*concepts[kept]} == {*range(CONCEPTS)}

    # It is what a plain loop keeps: in each cluster those whose digests are least.
    numbers = (vectors.astype(float) @ levels.centroids[0].T.astype(float)).argmax(1)
    sizes = np.bincount(numbers[known], minlength=150)
    quotas = one_by_one(levels.numbers, sizes.tolist(), levels.parents, int(kept.sum()), 0)
    table = pq.read_table(folder / "out").sort_by("key")
    digests, expected = row_digests(table, "key", 0), []
    for each in range(150):
        mine = [row for row in np.argsort(digests) if numbers[row] == each and row in {*known}]
        expected += mine[: quotas[each]]
    assert np.flatnonzero(kept).tolist() == sorted(expected)
    assert [each["keep"] for each in summary.clusters] == quotas.tolist()
    for each in summary.levels:
        of = levels.above(each["level"])
        rows, some = np.bincount(of, sizes, each["clusters"]), np.bincount(of, quotas, each["clusters"])
        for name, values in (("rows", rows), ("kept", some)):
            values = values[rows > 0]
            assert each[name] == [values.min(), int(np.median(values)), values.max()]
        assert each["empty"] == (rows == 0).sum()
    assert f"level 3: {CONCEPTS} clusters" in str(summary) and "drawn within each" in str(summary)

    # With the same seed more rows are these and others; with another they are others.
    more = balance_clusters(folder / "out", folder / "levels.safetensors", 600, tmp_path / "b")
    assert more.kept == 600 and column(tmp_path / "b", "balanced").astype(bool)[kept].all()
    assert (
        balance_clusters(folder / "out", folder / "levels.safetensors", 600, tmp_path / "b").output.skipped
        == 3
    )
    balance_clusters(folder / "out", folder / "levels.safetensors", 0.1, tmp_path / "b", seed=1)
    other = column(tmp_path / "b", "balanced").astype(bool)
    assert other.sum() == kept.sum() and (other & kept).sum() < 0.5 * kept.sum()
    # The nearest of each, and by size, which is of the first level.
    balance_clusters(folder / "out", folder / "levels.safetensors", 300, tmp_path / "b", order="near")
    near, far = (column(tmp_path / "b", name) for name in ("balanced", "cluster_distance"))
    for each in range(150):
        mine = np.array([row for row in known if numbers[row] == each], int)
        here = near[mine].astype(bool)
        assert here.all() or not here.any() or far[mine][here].max() <= far[mine][~here].min()
    by_size = balance_clusters(folder / "out", folder / "levels.safetensors", 300, tmp_path / "b", by="size")
    assert max(each["keep"] for each in by_size.clusters) - 2 <= min(
        each["keep"] for each in by_size.clusters if each["size"] > each["keep"]
    )


@pytest.mark.usefixtures("in_this_process")
def test_a_row_has_the_number_of_its_cluster_on_each_level(tailed, tmp_path):
    folder, vectors, _, levels = tailed
    file = folder / "levels.safetensors"
    matrix, info = read_centroids(file)
    np.testing.assert_allclose(matrix, levels.centroids[0], atol=1e-6)
    assert info == {**L14, "dim": DIM}
    heads = [
        ClusterNumber(file, "c"),
        ClusterNumber(file, "c_2", level=2),
        ClusterNumber(file, "c_3", level=3),
    ]
    assert score_output(folder / "out", [*heads, ClusterDistance(file, "far")], tmp_path / "new").complete
    numbers = (vectors.astype(float) @ levels.centroids[0].T.astype(float)).argmax(1)
    for level, name in enumerate(("c", "c_2", "c_3"), 1):
        found = column(tmp_path / "new", name)
        assert found[4] is None
        assert [*np.delete(found, [4, 5])] == np.delete(levels.above(level)[numbers], [4, 5]).tolist()
    far = column(tmp_path / "new", "far")
    cosines = (vectors.astype(float) @ levels.centroids[0].T.astype(float)).max(1)
    np.testing.assert_allclose(
        np.delete(far, [4, 5]).astype(float), np.delete(1 - cosines, [4, 5]), atol=1e-6
    )
    said = read_record(str(tmp_path / "new/0.parquet")).scores
    for name in ("c", "c_3"):
        again = scorer_from(said[name]["settings"]).of_files({}).scores[name]["recipe"]
        assert again == said[name]["recipe"]
    assert "level" not in said["c"]["settings"]  # as of a file of one level
    with pytest.raises(ConfigError, match=r"levels\.safetensors: level=4: expected .* from 1 to 3"):
        score_output(folder / "out", [ClusterNumber(file, "d", level=4)], tmp_path / "d")
    assert ClusterDistance(file).identity[0] == "cluster distance"
    recipe = Recipe(model="m", clusters={"a": str(file), "b": {"file": str(file), "level": 2}})
    assert [(each.pred_column, each.level) for each in recipe.heads()] == [("a", 1), ("b", 2)]
    for wrong in ({"a": {"file": str(file), "leve": 2}}, {"a": {"level": 2}}, {"a": 3}):
        with pytest.raises(ConfigError, match="clusters: expected columns and files"):
            Recipe(model="m", clusters=wrong)


def test_what_is_refused(tailed, tmp_path):
    folder, _, _, levels = tailed
    for wrong, said in (
        ({"levels": (5, 5)}, r"levels=\(5, 5\): expected numbers of clusters"),
        ({"levels": ()}, "levels"),
        ({"levels": (5, 0)}, "levels"),
        ({"levels": (9, 3), "resampling": (1,)}, r"resampling=\(1,\): .* one for each of 2 levels"),
        ({"levels": (9, 3), "resampling": -1}, "resampling"),
        ({"levels": (9, 3), "seed": -1}, "seed"),
        ({"levels": (10**5, 3)}, "vectors that can be compared, fewer than 100,000"),
    ):
        with pytest.raises(ConfigError, match=said):
            find_hierarchy(folder / "out", **wrong)
    flat = tmp_path / "flat.safetensors"
    Centroids(levels.centroids[0], {**L14, "dim": DIM}, 0, 0, 1, True).save(flat)
    assert len(read_levels(flat)) == 1
    with pytest.raises(ConfigError, match=r"by='levels': .*has one level"):
        balance_clusters(folder / "out", flat, 0.5, by="levels")
    assert Levels(levels.centroids[:1], (), {**L14, "dim": DIM}).as_bytes() == flat.read_bytes()
    tensors, broken = load_file(folder / "levels.safetensors"), tmp_path / "broken.safetensors"
    for name, wrong in (
        ("parents_2", np.full(150, 50)),
        ("parents_2", np.full(150, -1)),
        ("parents_3", np.zeros(49, np.int64)),
        ("parents_2", np.zeros(150, np.float32)),
        ("centroids_3", np.ones((CONCEPTS, DIM + 1), np.float32)),
    ):
        save_file({**tensors, name: wrong}, broken)
        with pytest.raises(WeightsError, match="expected for each of"):
            read_levels(broken)
    save_file({name: each for name, each in tensors.items() if name != "parents_3"}, broken)
    with pytest.raises(WeightsError, match=r"expected centroids_[23] and parents_"):
        read_levels(broken)
    # A recipe says what decides, and not what it leaves to the file.
    balance = {"clusters": str(folder / "levels.safetensors"), "keep": 0.5}
    check_any_balance({**balance, "by": "levels", "order": "random", "seed": 2})
    assert identity_of(balance) == identity_of({**balance, "by": "levels", "order": "random"})
    assert identity_of(balance) != identity_of({**balance, "seed": 1})
    one = {**balance, "clusters": str(flat)}
    assert identity_of(one) == identity_of({**one, "by": "complexity", "order": "far"})
    assert needed_column(balance) is None and needed_column({**balance, "order": "clip"}) == "clip"


def test_the_commands(tailed, tmp_path, client):
    _, vectors, _, _ = tailed
    out, file = tmp_path / "out", tmp_path / "found.safetensors"
    write(out, vectors[:400], np.arange(400), 2)

    def run(*words):
        return CliRunner().invoke(app, [*map(str, words)])

    found = ["centroids", out, file, "--levels", "30,10,3", "--resample", "2"]
    done = run(*found)
    assert done.exit_code == 0 and "level 3: 3 clusters of 10" in done.output, done.output
    assert file.read_bytes() == find_hierarchy(out, [30, 10, 3], resampling=2).levels.as_bytes()
    again = run(*found)
    assert again.exit_code == 0 and "nothing to do" in again.output
    for words, said in (
        (("--levels", "30,10,2"), "has other centroids"),
        (("--levels", "30,10", "--number", 3), "give one of --number and --levels"),
        ((), "give one of --number and --levels"),
        (("--levels", "30,x"), "expected whole numbers"),
        (("--number", 30), "has other centroids"),
    ):
        done = run("centroids", out, file, *words)
        assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output
    here = ["--scheduler-address", client.scheduler.address]
    done = run("score", out, tmp_path / "scored", "--cluster-number", f"c={file}", "--cluster-levels", *here)
    assert done.exit_code == 0, done.output
    of, levels = pq.read_table(tmp_path / "scored"), read_levels(file)
    for level in (2, 3):
        assert of[f"c_{level}"].to_pylist() == levels.above(level)[of["c"].to_numpy()].tolist()
    assert run("score", out, tmp_path / "scored", "--cluster-levels").exit_code == 2
    words = ["--clusters", file, "--json", tmp_path / "s.json", *here]
    done = run("balance", out, tmp_path / "new", *words, "--keep", 60)
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "s.json").read_text())
    assert (said["by"], said["kept"]) == ("levels", 60) and [each["clusters"] for each in said["levels"]] == [
        3,
        10,
        30,
    ]
    top = said["levels"][0]["kept"]
    assert top[2] - top[0] <= 1 or said["levels"][0]["rows"][0] < 20
