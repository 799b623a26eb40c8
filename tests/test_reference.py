"""The nearest of a reference: as brute force has it, and of one model alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_heads import L14, vectors_of, write_vectors
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.errors import ConfigError, OutputError, WeightsError
from curator_dask.frames.parquet import read_record
from curator_dask.image.classifiers import ReferenceSimilarity, reference, score_output
from curator_dask.image.classifiers.clusters import NearestCentroid
from curator_dask.image.classifiers.origins import Origin
from curator_dask.image.classifiers.scoring import HEADS
from curator_dask.text.again import scorer_from


def matrix_of(folder):
    """The vectors that are there, of float64 and length 1, by files and rows."""
    rows = pq.read_table(folder)["image_embedding"].drop_null().to_pylist()
    matrix = np.array([row for row in rows if any(row)], np.float64)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.fixture
def wanted(tmp_path):
    """A reference: rows of its own, three of which have no direction, and two of those that are scored."""
    folder = tmp_path / "wanted"
    write_vectors(folder, files=1, rows=40, lacking=(0, 1))
    table = pq.read_table(folder / "00000.parquet")
    matrix = vectors_of(40, seed=9) * 3  # of any length
    matrix[2], matrix[3:5] = 0, vectors_of(30, seed=1)[5:7]
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(matrix.reshape(-1)), 768, mask=pa.array([row < 2 for row in range(40)])
    )
    place = table.column_names.index("image_embedding")
    pq.write_table(
        table.set_column(place, table.schema.field(place), column), folder / "00000.parquet", row_group_size=7
    )
    return folder


def test_each_row_has_the_cosine_of_its_nearest(tmp_path, wanted, in_this_process, monkeypatch):
    monkeypatch.setattr(reference, "BLOCK", 16)  # several
    out = write_vectors(tmp_path / "out")
    score = ReferenceSimilarity(wanted, "like")
    assert score_output(out, [score]).complete
    best = (matrix_of(out) @ matrix_of(wanted).T).max(1)
    table = pq.read_table(out)
    found = table["like"].to_pylist()
    lacking = [row for row, value in enumerate(table["image_embedding"].to_pylist()) if value is None]
    assert [row for row, value in enumerate(found) if value is None] == lacking
    np.testing.assert_allclose([value for value in found if value is not None], best, atol=1e-6)
    assert found[35] == pytest.approx(1) and found[36] == pytest.approx(1)  # they are of the reference, too
    # The same vectors in other files are the same reference; others are not.
    assert score_output(out, [score]).skipped == 2
    pq.write_table(pq.read_table(wanted), wanted / "00000.parquet")
    assert score_output(out, [score]).skipped == 2
    pq.write_table(pq.read_table(wanted)[:20], wanted / "00000.parquet")
    assert score_output(out, [score], overwrite=True).skipped == 0
    # Of a step it is the vectors that count, also where their files get columns meanwhile, as in place.
    step = score.step(Origin.of("image_embedding", L14))
    more = pq.read_table(wanted)
    pq.write_table(more.append_column("x", more["key"]), wanted / "00000.parquet")
    step.describe()
    pq.write_table(more[:19], wanted / "00000.parquet")
    HEADS.forget(step.token)
    with pytest.raises(WeightsError, match="wanted: expected the vectors with SHA-256"):
        step.describe()
    pq.write_table(more, wanted / "00000.parquet")
    # What a file says of it makes it again, as retry does.
    said = read_record(str(out / "00000.parquet")).scores["like"]
    again = scorer_from(said["settings"])
    assert again.of_files({"": None}).scores["like"]["recipe"] == said["recipe"]


def test_the_norm_of_all_cosines(tmp_path, wanted, client):
    """NormSim of norm 2, by brute force."""
    out = write_vectors(tmp_path / "out")
    done = CliRunner().invoke(
        app,
        [
            "score",
            str(out),
            "--near",
            f"all={wanted}",
            "--near-norm",
            "2",
            "--scheduler-address",
            client.scheduler.address,
        ],
    )
    assert done.exit_code == 0, done.output
    cosines = matrix_of(out) @ matrix_of(wanted).T
    found = [value for value in pq.read_table(out)["all"].to_pylist() if value is not None]
    np.testing.assert_allclose(found, np.linalg.norm(cosines, axis=1), rtol=1e-5)
    said = read_record(str(out / "00000.parquet")).scores["all"]
    again = scorer_from(said["settings"])
    assert again.of_files({"": None}).scores["all"]["recipe"] == said["recipe"]
    with pytest.raises(OutputError, match="norm 2"):
        score_output(out, [ReferenceSimilarity(wanted, "all")])
    with pytest.raises(ConfigError, match="norm='3': expected one of max, 2"):
        ReferenceSimilarity(wanted, norm="3")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_vectors_of_any_length(scale):
    vectors, others = torch.from_numpy(vectors_of(20)), torch.from_numpy(vectors_of(30, seed=2))
    expected = vectors / vectors.norm(dim=1, keepdim=True) @ others.T
    got = reference.Nearest([others])(vectors * scale)
    np.testing.assert_allclose(got, expected.amax(1), atol=1e-6)
    assert (NearestCentroid(others)(vectors * scale) == expected.argmax(1)).all()


def test_a_vector_without_direction_has_no_score(tmp_path, wanted, in_this_process):
    out = write_vectors(tmp_path / "out", files=1, rows=4, lacking=())
    table = pq.read_table(out / "00000.parquet")
    matrix = vectors_of(4)
    matrix[1] = 0
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 768)
    pq.write_table(table.set_column(2, table.schema.field(2), column), out / "00000.parquet")
    score_output(out, [ReferenceSimilarity(wanted)])
    table = pq.read_table(out)
    assert [value is None for value in table["reference_similarity"].to_pylist()] == [
        False,
        True,
        False,
        False,
    ]
    assert "NaN" in table["image_error"][1].as_py()


def test_vectors_of_another_model_are_refused(tmp_path, wanted, in_this_process):
    other = write_vectors(tmp_path / "other", {**L14, "weights": "sha256:1"})
    unknown = write_vectors(tmp_path / "unknown", None)
    for out in (other, unknown):
        with pytest.raises(ConfigError, match=r"wanted is.*(weights sha256:1, not sha256:0|nothing says)"):
            score_output(out, [ReferenceSimilarity(wanted)])
        assert score_output(out, [ReferenceSimilarity(wanted, check=False)]).complete
    with pytest.raises(ConfigError, match=r"unknown: nothing says what made 'image_embedding'.*--no-check"):
        score_output(other, [ReferenceSimilarity(unknown, "like")])
    with pytest.raises(OutputError, match="no Parquet file is there"):
        score_output(other, [ReferenceSimilarity(tmp_path / "none", "like")])
    empty = write_vectors(tmp_path / "empty", rows=2, lacking=(0, 1))
    with pytest.raises(ConfigError, match="empty: no row has a vector"):
        score_output(other, [ReferenceSimilarity(empty, "like", check=False)])
