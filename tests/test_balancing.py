"""Balancing by clusters: quotas as scipy's solver has them, rows as a plain loop chooses them, and what is claimed."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_centroids import DIM, GROUPS, clustered  # noqa: F401, a fixture
from test_heads import L14
from typer.testing import CliRunner

from curator_dask.balancing import balance_clusters
from curator_dask.balancing.choosing import Order, find_ends
from curator_dask.balancing.quotas import Clusters, distances_between, nearest_quotas
from curator_dask.cli import app
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import unit, vectors_to_list
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers.centroids import Centroids
from curator_dask.rows.draws import row_digests
from curator_dask.text.again import scorer_from


def rows_of(folder, *names):
    table = pq.read_table(folder)
    return [np.array(table[name].to_pylist(), object) for name in names]


def test_quotas_are_the_least_of_the_quadratic_program():
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    for number in (1, 3, 8, 20):
        for _ in range(5):
            sizes = rng.integers(0, 200, number)
            sizes[0] = 7
            keep = int(rng.integers(number, max(number + 1, sizes.sum())))
            keep = min(keep, int(sizes.sum()))
            wanted = keep * rng.dirichlet(np.full(number, 0.5))
            found = nearest_quotas(wanted, sizes, keep)
            assert found.sum() == keep and (found <= sizes).all() and found.dtype == np.int64
            low = np.minimum(1, sizes) if keep >= (sizes > 0).sum() else 0 * sizes
            assert (found >= low).all()
            best = minimize(
                lambda x, wanted=wanted: ((x - wanted) ** 2).sum(),
                sizes * keep / sizes.sum(),
                jac=lambda x, wanted=wanted: 2 * (x - wanted),
                method="SLSQP",
                bounds=list(zip(low, sizes, strict=True)),
                constraints={"type": "eq", "fun": lambda x, keep=keep: x.sum() - keep},
                options={"maxiter": 500, "ftol": 1e-12},
            )
            assert np.abs(found - best.x).max() < 1 + 1e-3
    # As many of each, or all that there are; whole numbers of the same sum.
    equal = Clusters(np.array([5, 100, 40, 0]), np.ones(4), np.ones(4))
    assert equal.quotas(61, "size", 0.1).tolist() == [5, 28, 28, 0]
    assert equal.quotas(1000, "size", 0.1).tolist() == [5, 100, 40, 0]
    assert equal.quotas(2, "size", 0.1).sum() == 2
    # Shares are the softmax of the complexities.
    some = Clusters(np.full(3, 10**6), np.array([0.1, 0.2, 0.4]), np.array([0.5, 0.5, 0.5]))
    shares = np.exp(np.array([0.05, 0.1, 0.2]) / 0.1)
    np.testing.assert_allclose(some.quotas(10**6, "complexity", 0.1) / 1e6, shares / shares.sum(), atol=2e-6)


def test_distances_between_centroids():
    centroids = unit(np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32))
    far = np.sort(1 - centroids.astype(float) @ centroids.T, axis=1)[:, 1:]
    np.testing.assert_allclose(distances_between(centroids, 20), far[:, :20].mean(1), atol=1e-6)
    np.testing.assert_allclose(
        distances_between(centroids[:4], 20).sum(), distances_between(centroids[:4], 3).sum()
    )
    assert distances_between(centroids[:1], 20).tolist() == [0]


@pytest.mark.usefixtures("in_this_process")
def test_rows_are_those_that_a_plain_loop_keeps(clustered, tmp_path):  # noqa: F811
    out, groups, file, found = clustered
    looked = balance_clusters(out, file)
    assert "balanced" not in pq.read_schema(out / "0.parquet").names and looked.kept is None
    summary = balance_clusters(out, file, 0.4, temperature=0.02, neighbours=2)
    good = groups >= 0
    (vectors,) = rows_of(out, "image_embedding")
    matrix = np.array([*vectors[good]], float)
    cosines = matrix @ found.centroids.T.astype(float)
    number, distance = cosines.argmax(1), 1 - cosines.max(1)
    within = np.array([distance[number == each].mean() for each in range(GROUPS)])
    between = np.sort(1 - found.centroids.astype(float) @ found.centroids.T, 1)[:, 1:3].mean(1)
    power = np.exp(within * between / 0.02)
    keep = round(0.4 * good.sum())
    quotas = nearest_quotas(keep * power / power.sum(), np.bincount(number, minlength=GROUPS), keep)
    for said in (looked, summary):
        assert (said.rows, said.without_vector) == (len(groups), (~good).sum())
        assert [each["size"] for each in said.clusters] == np.bincount(number).tolist()
        np.testing.assert_allclose([each["within"] for each in said.clusters], within, atol=1e-6)
    np.testing.assert_allclose([each["complexity"] for each in summary.clusters], within * between, atol=1e-6)
    assert [each["keep"] for each in summary.clusters] == quotas.tolist()
    expected = np.zeros(len(groups), bool)
    for each in range(GROUPS):
        mine = np.flatnonzero(number == each)
        expected[np.flatnonzero(good)[mine[np.argsort(-distance[mine])[: quotas[each]]]]] = True
    (kept,) = rows_of(out, "balanced")
    assert kept.tolist() == expected.tolist() and summary.kept == keep == expected.sum()
    numbers, far = rows_of(out, "cluster", "cluster_distance")
    assert (
        numbers[good].tolist() == number.tolist() and [each is None for each in numbers] == (~good).tolist()
    )
    np.testing.assert_allclose(far[good].astype(float), distance, atol=1e-6)
    again = balance_clusters(out, file, 0.4, temperature=0.02, neighbours=2)
    assert (again.output.skipped, again.kept) == (2, keep)
    # The nearest, as many of each: also in other files, and beside columns that are there.
    balance_clusters(out, file, 50, tmp_path / "new", by="size", order="near", overwrite=True)
    (near,) = rows_of(tmp_path / "new", "balanced")
    for each in range(GROUPS):
        mine = np.flatnonzero(number == each)
        assert {*np.flatnonzero(near[good][mine].astype(bool))} == {*np.argsort(distance[mine])[:10]}
    said = read_record(str(out / "0.parquet")).scores["cluster_distance"]
    assert scorer_from(said["settings"]).of_files({}).scores["cluster_distance"]["recipe"] == said["recipe"]


def planted(folder, sizes, spreads, copies=0):
    """Clusters of so many rows around directions at right angles, each so wide; some rows are copies of one."""
    rng, rows = np.random.default_rng(0), []
    for number, (size, spread) in enumerate(zip(sizes, spreads, strict=True)):
        noise = unit(rng.normal(size=(size, 32)).astype(np.float32))
        rows.append(unit(np.eye(32, dtype=np.float32)[number] + spread * noise))
    matrix = np.concatenate(rows)
    matrix[:copies] = matrix[0]
    keys = [f"{row:05d}" for row in range(len(matrix))]
    half = len(matrix) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        table = {
            "key": keys[part],
            "__url__": ["/no/such.tar"] * len(keys[part]),
            "score": [int(key) % 97 if int(key) % 5 else None for key in keys[part]],
            "image_embedding": vectors_to_list(matrix[part], np.ones(len(keys[part]), bool)),
        }
        info = {"image_embedding": {**L14, "dim": 32}}
        record = FileRecord("f", id_col="key", embeddings=info)
        write_table(str(folder / f"{number}.parquet"), pa.table(table), record)
    file = folder.parent / "centroids.safetensors"
    Centroids(np.eye(32, dtype=np.float32)[: len(sizes)], {**L14, "dim": 32}, 0, 0, 1, True).save(file)
    return file, np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.usefixtures("in_this_process")
def test_complex_clusters_keep_more_and_copies_go(tmp_path):
    """A narrow cluster of most rows keeps a smaller share than a wide one; of copies as many as its quota has room."""
    file, cluster = planted(tmp_path / "out", (600, 300, 300), (0.1, 0.5, 0.8), copies=300)
    summary = balance_clusters(tmp_path / "out", file, 300, temperature=0.1)
    kept = np.bincount(cluster, rows_of(tmp_path / "out", "balanced")[0].astype(bool))
    assert kept.tolist() == [each["keep"] for each in summary.clusters] and kept.sum() == 300
    assert kept[0] < kept[1] < kept[2]
    (near,) = rows_of(tmp_path / "out", "cluster_distance")
    drawn = rows_of(tmp_path / "out", "balanced")[0].astype(bool)
    assert near[drawn & (cluster == 2)].min() >= near[~drawn & (cluster == 2)].max()
    # Balanced sampling: as many of each; rows of one value by their digest, to the row.
    summary = balance_clusters(tmp_path / "out", file, 830, by="size", order="near")
    assert [each["keep"] for each in summary.clusters] == [277, 277, 276] and summary.kept == 830
    # By a column: the largest, and none of those without a value.
    summary = balance_clusters(tmp_path / "out", file, 60, by="size", order="score")
    drawn, score = rows_of(tmp_path / "out", "balanced", "score")
    assert np.bincount(cluster, drawn.astype(bool)).tolist() == [20, 20, 20]
    assert summary.without_vector == 240 and None not in score[drawn.astype(bool)]
    for each in range(3):
        mine = np.array([value for value in score[cluster == each] if value is not None])
        least = min(score[(cluster == each) & drawn.astype(bool)])
        assert least == np.sort(mine)[-20]


@pytest.mark.usefixtures("in_this_process")
def test_what_is_refused(tmp_path):
    file, _ = planted(tmp_path / "out", (20, 20), (0.1, 0.1))
    for wrong, said in (
        ({"keep": 0}, "keep=0: expected a share"),
        ({"keep": 2.5}, r"keep=2\.5"),
        ({"keep": 0.5, "by": "colour"}, "by='colour': expected one of complexity, size"),
        ({"keep": 0.5, "order": ""}, "order=''"),
        ({"keep": 0.5, "temperature": 0}, "temperature=0"),
        ({"keep": 0.5, "neighbours": 0}, "neighbours"),
        ({"output": tmp_path / "new"}, "nothing is written without keep"),
    ):
        with pytest.raises(ConfigError, match=said):
            balance_clusters(tmp_path / "out", file, **wrong)
    with pytest.raises(OutputError, match=r"no column 'sc', whose largest are kept"):
        balance_clusters(tmp_path / "out", file, 0.5, order="sc")
    assert pq.read_schema(tmp_path / "out/0.parquet").names[-1] == "image_embedding"  # nothing was written
    with pytest.raises(ConfigError, match=r"'key' is of .*string"):
        balance_clusters(tmp_path / "out", file, 0.5, order="key")
    Centroids(np.eye(32, dtype=np.float32), {**L14, "weights": "sha256:1"}, 0, 0, 1, True).save(
        tmp_path / "o.safetensors"
    )
    for keep in (None, 0.5):
        with pytest.raises(ConfigError, match="weights"):
            balance_clusters(tmp_path / "out", tmp_path / "o.safetensors", keep, prefix="a_")


def test_the_command(tmp_path, client):
    file, _ = planted(tmp_path / "out", (60, 20), (0.1, 0.5))

    def run(*words):
        words = ["balance", str(tmp_path / "out"), *map(str, words), "--json", str(tmp_path / "s.json")]
        return CliRunner().invoke(app, [*words, "--scheduler-address", client.scheduler.address])

    done = run("--clusters", file)
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "s.json").read_text())
    assert [each["size"] for each in said["clusters"]] == [60, 20] and said["output"] is said["kept"] is None
    done = run(tmp_path / "new", "--clusters", file, "--keep", 0.5, "--by", "size", "--order", "near")
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "s.json").read_text())
    assert (said["kept"], [each["keep"] for each in said["clusters"]]) == (40, [20, 20])
    assert pq.read_table(tmp_path / "new")["balanced"].to_pylist().count(True) == 40
    assert "balanced" not in pq.read_schema(tmp_path / "out/0.parquet").names
    for wrong in ([], ["--clusters", file, "--concepts", "x"], [tmp_path / "o", "--clusters", file]):
        assert run(*wrong).exit_code == 2
    assert run("--clusters", file, "--keep", 0).exit_code == 2


def test_ends_of_odd_values_and_of_many_ties(tmp_path):
    """Infinite values are the last or first as others are; a cluster that keeps none keeps none of them."""
    random, clusters, paths, tables = np.random.default_rng(0), 3000, [], []
    for number, rows in enumerate((20_000, 0, 12_000)):
        values = random.choice([np.inf, -np.inf, 0.0, -0.0, 1e308, 5e-324, np.nan], rows)
        tables.append(
            pa.table(
                {
                    "key": [f"{row:05d}" for row in range(rows)],
                    "__url__": [f"{number}.tar"] * rows,
                    "of": pa.array(
                        random.integers(0, clusters - 1, rows), pa.int32(), mask=random.random(rows) < 0.1
                    ),
                    "value": pa.array(values, pa.float64(), mask=random.random(rows) < 0.1),
                }
            )
        )
        paths.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(tables[-1], paths[-1])
    for order in (Order("of", "value"), Order("of", "value", -1)):
        found = [order.of(table) for table in tables]
        groups, values = (np.concatenate(each) for each in zip(*found, strict=True))
        quotas = np.minimum(
            random.integers(0, 8, clusters), np.bincount(groups[groups >= 0], minlength=clusters)
        )
        ends = find_ends(paths, None, order, quotas, dict.fromkeys(paths, "key"))
        digests = [row_digests(table, "key", 0) for table in tables]
        kept = np.concatenate(
            [ends.keeps(*each, said.__getitem__) for each, said in zip(found, digests, strict=True)]
        )
        # The plain way: all rows of a cluster by value, then by digest.
        line = np.lexsort((np.concatenate(digests), -values, groups))
        line = line[groups[line] >= 0]
        place = np.arange(len(line)) - np.searchsorted(groups[line], groups[line])
        assert np.flatnonzero(kept).tolist() == np.sort(line[place < quotas[groups[line]]]).tolist()
