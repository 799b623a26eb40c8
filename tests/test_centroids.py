"""Clusters of an output's vectors: found on a sample, kept in a file, and the number of its own to each image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from test_heads import L14
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.errors import ConfigError, WeightsError
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import ClusterNumber, score_output
from curator_dask.image.classifiers.centroids import find_centroids, read_centroids
from curator_dask.text.again import scorer_from

GROUPS, ROWS, DIM = 5, 90, 16


def write(folder, info=L14):
    """Two files of vectors around five directions, a row of zeros and one of null in each; returns their groups."""
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((GROUPS, DIM))
    said = []
    for file in range(2):
        groups = rng.integers(GROUPS, size=ROWS)
        matrix = (middles[groups] + 0.1 * rng.standard_normal((ROWS, DIM))).astype(np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        matrix[7], groups[[7, 8]] = 0, -1
        mask = pa.array([row == 8 for row in range(ROWS)])
        column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), DIM, mask=mask)
        keys = [f"{file}{row:03d}" for row in range(ROWS)]
        table = pa.table({"key": keys, "__url__": ["/no/such.tar"] * ROWS, "image_embedding": column})
        embeddings = {} if info is None else {"image_embedding": {**info, "dim": DIM}}
        write_table(
            str(folder / f"{file}.parquet"), table, FileRecord("f", id_col="key", embeddings=embeddings)
        )
        said.append(groups)
    return np.concatenate(said)


@pytest.fixture
def clustered(tmp_path):
    groups = write(tmp_path / "out")
    found = find_centroids(tmp_path / "out", GROUPS, seed=3)
    found.save(tmp_path / "found.safetensors")
    return tmp_path / "out", groups, tmp_path / "found.safetensors", found


def test_each_image_has_the_number_of_its_group(clustered, in_this_process):
    out, groups, file, found = clustered
    assert (found.vectors, found.sample, found.settled) == (2 * ROWS - 4, 2 * ROWS - 4, True)
    assert score_output(out, [ClusterNumber(file)]).complete
    table = pq.read_table(out)
    assert table.schema.field("cluster").type == pa.int32()
    numbers = table["cluster"].to_pylist()
    assert [number is None for number in numbers] == (groups < 0).tolist()
    pairs = {(int(group), number) for group, number in zip(groups, numbers, strict=True) if group >= 0}
    assert len(pairs) == GROUPS  # a number a group
    matrix = np.array(table["image_embedding"].filter(pa.array(groups >= 0)).to_pylist())
    nearest = (matrix @ found.centroids.T.astype(float)).argmax(1)
    assert [number for number in numbers if number is not None] == nearest.tolist()
    assert score_output(out, [ClusterNumber(file)]).skipped == 2
    said = read_record(str(out / "0.parquet")).scores["cluster"]
    assert scorer_from(said["settings"]).of_files({}).scores["cluster"]["recipe"] == said["recipe"]


def test_the_same_files_give_the_same_centroids_and_a_sample_serves(clustered, monkeypatch):
    out, _, _, found = clustered
    assert (find_centroids(out, GROUPS, seed=3).centroids == found.centroids).all()
    monkeypatch.setattr("curator_dask.image.classifiers.centroids.SAMPLE", 20)
    some = find_centroids(out, GROUPS)
    assert some.sample == 100
    cosines = some.centroids @ found.centroids.T
    assert sorted(cosines.argmax(1)) == [*range(GROUPS)] and cosines.max(1).min() > 0.99


def test_files_of_others_and_vectors_of_others(clustered, tmp_path, in_this_process):
    out, _, file, found = clustered
    matrix, info = read_centroids(file)
    np.testing.assert_allclose(matrix, found.centroids, atol=1e-6)
    assert info == {**L14, "dim": DIM}
    np.save(tmp_path / "mine.npy", 3 * found.centroids.astype(np.float64))
    np.save(tmp_path / "swapped.npy", found.centroids.astype(">f4"))
    save_file({"any": found.centroids}, tmp_path / "mine.safetensors")
    for mine in ("mine.npy", "swapped.npy", "mine.safetensors"):
        np.testing.assert_allclose(read_centroids(tmp_path / mine)[0], found.centroids, atol=1e-6)
        with pytest.raises(ConfigError, match=r"does not say which vectors.*--no-check"):
            score_output(out, [ClusterNumber(tmp_path / mine)])
        assert score_output(out, [ClusterNumber(tmp_path / mine, mine, check=False)]).complete
    write(tmp_path / "other", {**L14, "weights": "sha256:1"})
    with pytest.raises(ConfigError, match="weights sha256:1, not sha256:0"):
        score_output(tmp_path / "other", [ClusterNumber(file)])
    for name, wrong, said in (
        ("a.npy", b"no", "cannot be read as a matrix"),
        ("b.npy", np.zeros(3), r"a centroid a row, found float64 \[3\]"),
        ("c.npy", np.array([[1, "a"]], object), "cannot be read as a matrix"),
        ("d.npy", np.full((2, 3), np.nan), "of finite numbers"),
        ("e.npy", np.eye(3)[:2] - np.eye(3)[[1, 1]], "centroid 1 is of zeros"),
    ):
        path = tmp_path / name
        path.write_bytes(wrong) if isinstance(wrong, bytes) else np.save(path, wrong)
        with pytest.raises(WeightsError, match=said):
            read_centroids(path)
    np.save(path, [[3e-60, 4e-60]])
    np.testing.assert_allclose(read_centroids(path)[0], [[0.6, 0.8]], atol=1e-6)
    for said in ("[1]", "{"):
        save_file({"any": found.centroids}, tmp_path / "mine.safetensors", {"vectors": said})
        with pytest.raises(WeightsError, match="not what made the vectors"):
            read_centroids(tmp_path / "mine.safetensors")


def test_the_command(clustered, tmp_path):
    out, _, file, _ = clustered
    run = CliRunner().invoke
    done = run(
        app, ["centroids", str(out), str(tmp_path / "new.safetensors"), "--number", "5", "--seed", "3"]
    )
    assert done.exit_code == 0 and "5 centroids of 176 of 176 vectors" in done.output
    assert (tmp_path / "new.safetensors").read_bytes() == file.read_bytes()
    again = run(app, ["centroids", str(out), str(file), "--number", "5", "--seed", "3"])
    assert again.exit_code == 0 and "nothing to do" in again.output
    for arguments, said in (
        ([str(out), str(file), "--number", "4"], "has other centroids; give another name"),
        ([str(out), str(file), "--number", "5"], "has other centroids; give another name"),
        ([str(out), "found.npy", "--number", "5"], "ends in .safetensors"),
        ([str(out), str(tmp_path / "b.safetensors"), "--number", "500"], "176 vectors that can be compared"),
        ([str(tmp_path / "no"), str(tmp_path / "b.safetensors"), "--number", "5"], "no Parquet file"),
    ):
        done = run(app, ["centroids", *arguments])
        assert done.exit_code == 2 and said in done.output, done.output
