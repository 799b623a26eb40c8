"""Deduplication by the names of NeMo Curator: its rule against brute force, given the same clusters."""

from __future__ import annotations

import csv

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from test_dedup import DIM, mixture, unit, write

from curator_dask import ClusteringModel, SemanticClusterLevelDedup
from curator_dask.datasets import DocumentDataset, ImageTextPairDataset
from curator_dask.dedup.matching import nearest_before, nearest_of
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.stages.deduplication import RankingStrategy, SemanticDeduplicationWorkflow
from curator_dask.stages.image import ImageDuplicatesRemovalStage
from curator_dask.tasks import ImageBatch, ImageObject

CLUSTERS = 7
EPS = 0.1


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """Vectors of any length, some equal to the bit, in clusters; and what was written."""
    folder = tmp_path_factory.mktemp("clustered")
    random = np.random.default_rng(11)
    vectors = mixture(random, 900)
    vectors[800:850] = vectors[3]
    vectors *= random.uniform(0.5, 2, (len(vectors), 1)).astype(np.float32)
    keys = [f"{number:06}" for number in random.permutation(len(vectors))]
    rows = [*vectors[:-2], None, np.full(DIM, np.nan, np.float32)]
    write(folder / "vectors", rows, keys, caption=[f"caption {key}" for key in keys])
    dataset = DocumentDataset.read_parquet(folder / "vectors")
    with dask.config.set(scheduler="sync"):
        made = cluster(dataset, folder / "clusters")
    return folder, dict(zip(keys, vectors[:-2], strict=False)), made


def cluster(dataset, folder, **settings):
    settings = {"n_clusters": CLUSTERS, "max_iter": 10, **settings}
    model = ClusteringModel(
        id_column="key", clustering_output_dir=folder, embedding_column="image_embedding", **settings
    )
    return model(dataset)


def find(folder, output, **settings):
    settings = {"n_clusters": CLUSTERS, "id_column": "key", "embedding_column": "image_embedding", **settings}
    by_cluster = folder / "embs_by_nearest_center"
    return SemanticClusterLevelDedup(emb_by_clust_dir=by_cluster, output_dir=output, **settings)


def read_clusters(folder):
    return pd.read_parquet(folder / "embs_by_nearest_center").sort_values("nearest_cent", kind="stable")


def by_brute_force(rows, which, eps):
    """What goes by the peers' rule, and which of it has no row within eps in its cluster that stays."""
    removed, alone = set(), set()
    for _, part in rows.groupby("nearest_cent", observed=True):
        if which != "random":
            part = part.sort_values(["cosine_dist_to_cent", "key"], ascending=which == "easy")
        vectors = np.stack(part["image_embedding"]).astype(np.float64)
        near = vectors @ vectors.T >= 1 - eps
        goes = np.triu(near, 1).any(axis=0)
        removed |= {*part["key"][goes]}
        alone |= {*part["key"][goes & ~near[:, ~goes].any(axis=1)]}
    return removed, alone


def test_rows_are_in_the_cluster_of_the_nearest_centroid(clustered):
    folder, vectors, made = clustered
    rows = read_clusters(folder / "clusters")
    assert {*rows.columns} == {
        "key",
        "image_embedding",
        "l2_dist_to_cent",
        "cosine_dist_to_cent",
        "nearest_cent",
    }
    assert sorted(rows["key"]) == sorted(vectors)
    found = np.stack(rows["image_embedding"])
    np.testing.assert_allclose(found, unit([vectors[key] for key in rows["key"]]), atol=1e-6)
    centroids = np.load(folder / "clusters/kmeans_centroids.npy")
    assert centroids.shape == (CLUSTERS, DIM)
    cosines = found.astype(np.float64) @ centroids.T.astype(np.float64)
    np.testing.assert_array_equal(rows["nearest_cent"].astype(int), cosines.argmax(axis=1))
    np.testing.assert_allclose(rows["cosine_dist_to_cent"], 1 - cosines.max(axis=1), atol=1e-6)
    # k-means has come to rest: a centroid is where the sum of its rows points to.
    for number, part in rows.groupby("nearest_cent", observed=True):
        middle = np.stack(part["image_embedding"]).sum(axis=0, dtype=np.float64)
        assert middle @ centroids[int(number)] / np.linalg.norm(middle) > 0.99
    assert made.df.npartitions == CLUSTERS
    assert sorted(made.df["key"].compute()) == sorted(vectors)


@pytest.mark.parametrize("which", ["hard", "easy"])
def test_the_rule_is_that_of_the_peers(clustered, tmp_path, in_this_process, said, which):
    folder = clustered[0]
    rows = read_clusters(folder / "clusters")
    removed, alone = by_brute_force(rows, which, EPS)
    assert len(removed) > 200 and len(alone) > 3
    dedup = find(folder / "clusters", tmp_path, which_to_keep=which)
    dedup.compute_semantic_match_dfs()
    ids = dedup.extract_dedup_data(eps_to_extract=EPS)
    frame = ids.df.compute()
    assert {*frame["key"]} == removed and len(frame) == len(removed)
    assert list(frame.columns) == ["key", "cosine_dist_to_cent", "cluster"]
    known = rows.set_index("key").loc[frame["key"]]
    np.testing.assert_array_equal(frame["cluster"], known["nearest_cent"].astype(int))
    np.testing.assert_array_equal(frame["cosine_dist_to_cent"], known["cosine_dist_to_cent"])
    (counts,) = csv.DictReader((tmp_path / f"dedup_summary_{EPS}.csv").open())
    assert counts == {
        "eps": str(EPS),
        "kept": str(len(rows) - len(removed)),
        "removed": str(len(removed)),
        "total": str(len(rows)),
        "removed_without_twin": str(len(alone)),
    }
    assert f"{len(alone)} of them have none in it within eps that stays" in said.text


def test_tables_have_the_nearest_item_before(clustered, tmp_path, in_this_process):
    folder = clustered[0]
    dedup = find(folder / "clusters", tmp_path)
    dedup.compute_semantic_match_dfs()
    for number, part in read_clusters(folder / "clusters").groupby("nearest_cent", observed=True):
        part = part.sort_values(["cosine_dist_to_cent", "key"], ascending=False)
        table = pd.read_parquet(tmp_path / f"semdedup_pruning_tables/cluster_{number}.parquet")
        assert list(table.columns) == ["id", "max_id", "cosine_sim_score"]
        assert list(table["id"]) == list(part["key"])
        vectors = np.stack(part["image_embedding"]).astype(np.float64)
        before = np.where(np.triu(np.ones((len(part), len(part)), bool), 1), vectors @ vectors.T, -2)
        np.testing.assert_allclose(table["cosine_sim_score"][1:], before.max(axis=0)[1:], atol=1e-7)
        place = part["key"].reset_index(drop=True).reset_index().set_index("key")["index"]
        best = place.loc[table["max_id"]].to_numpy()
        np.testing.assert_allclose(
            before[best[1:], np.arange(1, len(part))], before.max(axis=0)[1:], atol=1e-7
        )
        assert (table["max_id"][0], table["cosine_sim_score"][0]) == (table["id"][0], 0)


def test_by_chance_and_always_the_same(clustered, tmp_path, in_this_process):
    folder = clustered[0]
    rows, found = read_clusters(folder / "clusters"), []
    for name in ("one", "two"):
        dedup = find(folder / "clusters", tmp_path / name, which_to_keep="random")
        dedup.compute_semantic_match_dfs()
        found.append({*dedup.extract_dedup_data(EPS).df["key"].compute()})
    orders = [
        pd.read_parquet(tmp_path / "one/semdedup_pruning_tables" / f"cluster_{number}.parquet")["id"]
        for number in range(CLUSTERS)
    ]
    shuffled = rows.set_index("key").loc[pd.concat(orders)].reset_index()
    assert found[0] == found[1] == by_brute_force(shuffled, "random", EPS)[0]
    assert not shuffled["cosine_dist_to_cent"].is_monotonic_decreasing


def test_by_the_other_rule_each_has_a_twin_that_stays(clustered, tmp_path, in_this_process):
    folder, vectors, _ = clustered
    dedup = find(folder / "clusters", tmp_path, rule="stars")
    dedup.compute_semantic_match_dfs()
    removed = {*dedup.extract_dedup_data(EPS).df["key"].compute()}
    matrix = unit(list(vectors.values())).astype(np.float64)
    goes = np.array([key in removed for key in vectors])
    assert 200 < goes.sum() == len(removed)
    cosines = matrix @ matrix.T
    assert (cosines[goes][:, ~goes].max(axis=1) >= 1 - EPS - 1e-6).all()
    np.fill_diagonal(cosines, 0)
    assert cosines[~goes][:, ~goes].max() < 1 - EPS + 1e-6


def test_a_second_call_makes_nothing_again_and_other_settings_replace_all(tmp_path, in_this_process):
    vectors = unit(np.random.default_rng(5).normal(size=(60, DIM)))
    write(tmp_path / "dataset", vectors, files=2)
    for number in range(2):
        write_tar(tmp_path / f"dataset/{number:05}.tar", [("a.txt", b"")])

    def run(count):
        dataset = ImageTextPairDataset.from_webdataset(tmp_path / "dataset")
        cluster(DocumentDataset(dataset.metadata), tmp_path / "c", n_clusters=count)
        dedup = find(tmp_path / "c", tmp_path / "c", n_clusters=count)
        dedup.compute_semantic_match_dfs()
        dedup.extract_dedup_data(EPS)
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*_?.parquet")} | {
            path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("part.*.parquet")
        }

    first = run(5)
    assert run(5) == first and len(first) == 5 + 5 + 5
    whole = pq.read_table(tmp_path / "c/embs_by_nearest_center/nearest_cent=1/part.0.parquet")
    for lost in ("embs_by_nearest_center/nearest_cent=1/part.0", "semdedup_pruning_tables/cluster_2"):
        (tmp_path / f"c/{lost}.parquet").unlink()
    with pytest.raises(
        OutputError, match=r"nearest_cent=1 has no Parquet file, .* Run ClusteringModel again"
    ):
        find(tmp_path / "c", tmp_path / "c", n_clusters=5).compute_semantic_match_dfs()
    again = run(5)
    assert {path.parts[-2:] for path in first if again[path] != first[path]} == {
        ("nearest_cent=1", "part.0.parquet"),
        ("semdedup_pruning_tables", "cluster_1.parquet"),
        ("semdedup_pruning_tables", "cluster_2.parquet"),
        ("unique_ids_0.1.parquet", "part.1.parquet"),
    }
    assert pq.read_table(tmp_path / "c/embs_by_nearest_center/nearest_cent=1/part.0.parquet").equals(whole)
    fewer = run(3)
    assert len(fewer) == 3 + 3 + 3 and not {*fewer.items()} & {*first.items()}
    assert len(read_clusters(tmp_path / "c")) == 60


def test_whole_numbers_stay_what_they_are_and_all_columns_can_be_kept(tmp_path, in_this_process):
    random = np.random.default_rng(1)
    vectors = np.repeat(unit(random.normal(size=(10, DIM))), 2, 0)
    write(tmp_path / "vectors", vectors, number=list(range(20)), caption=list("abcdefghij" * 2))
    dataset = DocumentDataset.read_parquet(tmp_path / "vectors")
    model = ClusteringModel(
        "number", 5, 3, tmp_path / "c", "image_embedding", keep_all_columns=True, logger=str(tmp_path)
    )
    rows = model(dataset).df.compute().set_index("number")
    assert list(rows.loc[range(20), "caption"]) == list("abcdefghij" * 2)
    dedup = find(tmp_path / "c", tmp_path / "c", n_clusters=3, id_column="number", which_to_keep="easy")
    dedup.compute_semantic_match_dfs()
    removed = dedup.extract_dedup_data(0.01).df["number"].compute()
    assert pa.Table.from_pandas(removed.to_frame()).schema.field("number").type == pa.int64()
    assert sorted(removed) == list(range(1, 20, 2))
    frame = dataset.df
    assert list(frame[~frame["number"].isin(removed)]["number"].compute()) == list(range(0, 20, 2))


def test_what_does_not_fit_is_told(clustered, tmp_path, in_this_process):
    folder = clustered[0]
    dataset = DocumentDataset.read_parquet(folder / "vectors")
    with pytest.raises(ConfigError, match=r"n_clusters=900: there are 898 rows with a vector"):
        cluster(dataset, tmp_path / "c", n_clusters=900)
    with pytest.raises(ConfigError, match=r"columns \['embeddings'\] are not among .*image_embedding"):
        ClusteringModel("key", 5, 3, tmp_path / "c")(dataset)
    with pytest.raises(ConfigError, match=r"expected DocumentDataset\(dataset.metadata\), found DataFrame"):
        cluster(dataset.df, tmp_path / "c")
    dedup = find(folder / "clusters", tmp_path / "d")
    with pytest.raises(ConfigError, match=r"call compute_semantic_match_dfs\(\)"):
        dedup.extract_dedup_data(EPS)
    with pytest.raises(
        ConfigError, match=r"n_clusters=3: .* has cluster 6, whose items would not be looked at"
    ):
        find(folder / "clusters", tmp_path / "d", n_clusters=3).compute_semantic_match_dfs()
    with pytest.raises(OutputError, match=r"has no nearest_cent=0/part.0.parquet"):
        find(folder / "vectors", tmp_path / "d").compute_semantic_match_dfs()
    with pytest.raises(ConfigError, match="rule='both'"):
        find(folder / "clusters", tmp_path / "d", rule="both")
    dedup.compute_semantic_match_dfs()
    with pytest.raises(ConfigError, match="eps_to_extract=1:"):
        dedup.extract_dedup_data(1)
    table = tmp_path / "d/semdedup_pruning_tables/cluster_0.parquet"
    rows = pq.read_table(table)
    pq.write_table(rows.take(list(range(len(rows)))[::-1]), table)
    with pytest.raises(ShardError, match=r"cluster_0.parquet: is not of the clusters that are there"):
        dedup.extract_dedup_data(EPS)


def test_an_id_that_names_two_rows_is_refused(tmp_path, in_this_process):
    vectors = unit(np.random.default_rng(3).normal(size=(6, DIM)))
    write(tmp_path / "vectors", vectors, ["a", "b", "c", "a", "d", "e"], files=2)
    dataset = DocumentDataset.read_parquet(tmp_path / "vectors")
    with pytest.raises(ConfigError, match=r"key='a' names 2 rows, .* all of them would go"):
        cluster(dataset, tmp_path / "c", n_clusters=2)


def test_on_a_cluster_it_is_the_same(clustered, client, tmp_path):
    folder = clustered[0]
    dataset = DocumentDataset.read_parquet(folder / "vectors")
    cluster(dataset, tmp_path / "c")
    here, there = read_clusters(tmp_path / "c"), read_clusters(folder / "clusters")
    pd.testing.assert_frame_equal(here, there)
    dedup = find(tmp_path / "c", tmp_path / "c")
    dedup.compute_semantic_match_dfs()
    removed = {*dedup.extract_dedup_data(EPS).df["key"].compute()}
    assert removed == by_brute_force(there, "hard", EPS)[0]


@pytest.mark.parametrize("noise", [1e-6, 1e-2, 1.0])
def test_the_nearest_before_in_a_crowd(in_this_process, noise):
    """Of near-copies, float32 products do not tell which is the nearest, and each has many that may be."""
    random = np.random.default_rng(6)
    vectors = unit(unit(random.normal(size=(1, DIM))) + noise * random.normal(size=(3000, DIM)))
    vectors[7] = vectors[2999] = vectors[4]
    best, cosine = nearest_before(vectors)
    products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    before = np.where(np.tri(3000, k=-1, dtype=bool), products, -2)
    np.testing.assert_allclose(
        cosine[1:], before.max(axis=1)[1:], atol=1e-6 if noise < 1e-2 else 1e-9, rtol=0
    )
    others = np.delete(np.arange(1, 3000), [6, 2998])
    np.testing.assert_allclose(before[others, best[others]], before.max(axis=1)[others], atol=1e-13, rtol=0)
    assert (best[0], cosine[0], best[7], best[2999]) == (0, 0, 4, 4)
    stays = vectors[::3]
    np.testing.assert_allclose(nearest_of(vectors, stays), products[:, ::3].max(axis=1), atol=1e-13, rtol=0)


# The workflow of 1.x


def workflow(folder, output, **settings):
    given = {"id_field": "key", "embedding_field": "image_embedding", "max_iter": 10, "verbose": False}
    return SemanticDeduplicationWorkflow(folder, output, **{"n_clusters": CLUSTERS, **given, **settings})


def test_the_workflow_removes_the_same_and_makes_nothing_again(clustered, tmp_path, in_this_process, said):
    folder = clustered[0]
    find = workflow(folder / "vectors", tmp_path / "out", random_state=1234, eps=EPS)
    result = find.run()
    # With the seed and the rows of 0.9 the clusters are the same.
    rows = read_clusters(folder / "clusters")
    removed, alone = by_brute_force(rows, "hard", EPS)
    found = pq.read_table(tmp_path / "out/duplicates")
    assert {*found["id"].to_pylist()} == removed and len(found) == len(removed)
    assert result.get_metadata("num_duplicates") == len(removed)
    assert result.get_metadata("num_without_twin") == len(alone)
    assert {"total_time", "kmeans_time", "pairwise_time"} < {*result.metadata}
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    assert len(made) == 3 * CLUSTERS
    assert find.run().metadata["num_duplicates"] == len(removed)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")} == made
    assert "898 rows in 7 clusters, k-means in" in said.text
    assert "in no cluster, and not removed: 1 null, 1 not finite" in said.text


def test_the_workflow_ranks_by_columns_and_tells_shards_apart(tmp_path, in_this_process):
    random = np.random.default_rng(2)
    vectors = np.repeat(unit(random.normal(size=(8, DIM))), 3, 0)
    keys = [f"{number % 12:02}" for number in range(24)]  # each in two shards
    worth = random.permutation(24).tolist()
    write(tmp_path / "vectors", vectors, keys, files=2, worth=worth)
    find = workflow(
        tmp_path / "vectors",
        tmp_path / "out",
        n_clusters=2,
        cache_path=tmp_path / "cache",
        metadata_fields=["worth"],
        ranking_strategy=RankingStrategy.metadata_based(["worth"], ascending=False),
        eps=0.01,
    )
    find.run()
    table = pq.read_table(tmp_path / "out/duplicates").to_pylist()
    expected = {
        (keys[row], f"/shards/{row // 12}.tar")
        for row in range(24)
        if worth[row] != max(worth[row // 3 * 3 : row // 3 * 3 + 3])
    }
    assert {(row["id"], row["__url__"]) for row in table} == expected and len(table) == 16
    assert {path.name for path in tmp_path.iterdir()} >= {"cache", "cache.work", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."} == {"duplicates"}
    stage = ImageDuplicatesRemovalStage(tmp_path / "out/duplicates")
    images = [
        ImageObject(image_id=key, metadata={"__url__": f"/shards/{row // 12}.tar"})
        for row, key in enumerate(keys)
    ]
    assert len(stage.process(ImageBatch(images)).data) == 8


def test_the_workflow_by_the_other_rule_and_without_eps(clustered, tmp_path, in_this_process):
    folder, vectors, _ = clustered
    workflow(folder / "vectors", tmp_path / "none").run()
    assert not (tmp_path / "none/duplicates").exists()
    result = workflow(folder / "vectors", tmp_path / "out", eps=EPS, rule="stars").run()
    table = pq.read_table(tmp_path / "out/duplicates").to_pandas()
    assert (~table["kept"]).sum() == result.metadata["num_duplicates"] > 200
    assert {*table["duplicate_of"].dropna()} == {*table["id"][table["kept"]]} <= {*vectors}


def test_what_does_not_fit_a_workflow_is_told(clustered, tmp_path, in_this_process):
    folder = clustered[0]
    with pytest.raises(ConfigError, match="input_filetype='jsonl'"):
        workflow(folder / "vectors", tmp_path, input_filetype="jsonl")
    with pytest.raises(ConfigError, match="ranking_strategy: with rule='stars'"):
        workflow(folder / "vectors", tmp_path, rule="stars", ranking_strategy=RankingStrategy.random())
    with pytest.raises(ConfigError, match=r"read_kwargs=.*expected storage_options alone"):
        workflow(folder / "vectors", tmp_path, read_kwargs={"engine": "cudf"})
    with pytest.raises(OutputError, match="give a folder beside it"):
        workflow(folder / "vectors", folder / "vectors/out").run()
    with pytest.raises(ConfigError, match=r"has no columns \['worth'\]; it has"):
        ranking = RankingStrategy(["worth"])
        workflow(folder / "vectors", tmp_path / "out", ranking_strategy=ranking).run()
    for wrong in ({"metadata_cols": "worth"}, {"metadata_cols": ["a", "b"], "ascending": [True]}):
        with pytest.raises(ConfigError, match=r"expected (a list of columns|one for each)"):
            RankingStrategy(**wrong)
