"""Vectors that others have made: which row has which, what of them is none, and all that is done without an image."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from contextlib import contextmanager

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from colours import members_of, write_tar
from image_servers import ImageServer, picture_of
from test_heads import saved
from typer.testing import CliRunner

from curator_dask import fetch_images
from curator_dask.browsing.looking import Browser
from curator_dask.cli import app
from curator_dask.curation_of_vectors import VectorRecipe, curate_vectors
from curator_dask.dedup import SemanticDeduplication
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.frames.parquet import read_record
from curator_dask.image.classifiers import AestheticClassifier, ClusterNumber, score_output
from curator_dask.image.classifiers.centroids import find_centroids
from curator_dask.image.embedders.similar import similar_to_key
from curator_dask.image.statistics import ImageStatistics
from curator_dask.importing import import_vectors, repeats, return_vectors
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.report.making import make_report
from curator_dask.tables import join_output
from curator_dask.text import ClipScore
from curator_dask.text.balance import balance_output


@pytest.fixture(autouse=True)
def here_without_a_cluster(request):
    if "client" not in request.fixturenames:
        request.getfixturevalue("in_this_process")


L14 = "openai/clip-vit-large-patch14"
FILES, ROWS = 3, 12


def uid_of(number):
    return hashlib.md5(str(number).encode()).hexdigest()


def vector_of(number, name, dim):
    """Of length 1 in float16, and no other row's or array's."""
    seed = int(hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:8], 16)
    vector = np.random.default_rng(seed).standard_normal(dim)
    return (vector / np.linalg.norm(vector)).astype(np.float16)


def matrix_of(numbers, name, dim):
    return np.array([vector_of(number, name, dim) for number in numbers])


def rows_of(numbers, **more):
    columns = {
        "uid": [uid_of(number) for number in numbers],
        "url": [f"http://127.0.0.1:9/n/{number}.png" for number in numbers],
        "text": [f"a photo of a {'dog' if number % 3 else 'cat'}, {number}" for number in numbers],
        "clip_b32_similarity_score": pa.array([number / 100 for number in numbers], pa.float32()),
        "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]] for _ in numbers],
    }
    return pa.table({**columns, **more})


def numbers_of(file):
    return range(file * ROWS, (file + 1) * ROWS)


def write_datacomp(folder, port=9, **options):
    folder.mkdir(exist_ok=True)
    for file in range(FILES):
        numbers = numbers_of(file)
        urls = [f"http://127.0.0.1:{port}/n/{number}.png" for number in numbers]
        pq.write_table(rows_of(numbers, url=urls), folder / f"{file:08d}.parquet")
        arrays = {
            f"{model}_{kind}": matrix_of(numbers, f"{model}_{kind}", dim)
            for model, dim in (("b32", 512), ("l14", 768))
            for kind in ("img", "txt")
        }
        (np.savez_compressed if file == 1 else np.savez)(folder / f"{file:08d}.npz", **arrays)
    return folder


def datacomp_import(folder, out, **options):
    return import_vectors(
        folder,
        out,
        **{
            "id_column": "uid",
            "image_vectors": "l14_img",
            "text_vectors": "l14_txt",
            "model": L14,
            **options,
        },
    )


def read(out):
    return pd.concat(
        [pq.read_table(path).to_pandas() for path in sorted(out.rglob("*.parquet"))], ignore_index=True
    )


def check_vectors(frame, column, name, numbers=None):
    """Each row has its own vector, divided by its length, by its caption, whatever order rows are in."""
    for row in frame.itertuples():
        number = int(row.text.rpartition(" ")[2])
        wanted = vector_of(number, name, 768).astype(np.float64)
        found = getattr(row, column)
        assert np.allclose(found, wanted / np.linalg.norm(wanted), atol=1e-6), number
    assert numbers is None or len(frame) == len(numbers)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result.output


def test_from_the_metadata_to_the_images_that_were_chosen(tmp_path):
    """All that is done before an image is there, the fetch of those that were chosen, and their vectors again."""
    with ImageServer() as server:
        source = write_datacomp(tmp_path / "metadata", server.port)
        out, vectors = tmp_path / "out", {"l14_img": "image_embedding", "l14_txt": "text_embedding"}
        summary = datacomp_import(source, out)
        assert (summary.rows, summary.written, summary.failed) == (FILES * ROWS, FILES, 0)
        assert read_record(str(out / "00000000.parquet")).id_col == "uid"
        before = read(out)
        for name, column in vectors.items():
            check_vectors(before, column, name, range(FILES * ROWS))

        score_output(out, [AestheticClassifier(model_path=saved(tmp_path, "aesthetic")), ClipScore()])
        cosines = [a @ b for a, b in zip(before.image_embedding, before.text_embedding, strict=True)]
        assert np.allclose(read(out).clip_score, cosines, atol=1e-6)
        assert SemanticDeduplication(0.07)(out).save(tmp_path / "duplicates").removed == 0
        find_centroids(out, 3).save(tmp_path / "centroids.safetensors")
        score_output(out, [ClusterNumber(tmp_path / "centroids.safetensors", "cluster")])
        (tmp_path / "concepts.txt").write_text("cat\ndog\n")
        balance_output(out, tmp_path / "concepts.txt", 4, text_column="text")
        assert len({hit.key for hit in similar_to_key(out, uid_of(5), top=3)} - {uid_of(5)}) == 3
        make_report(out, tmp_path / "report.html")
        assert "claimed" in (tmp_path / "report.html").read_text()
        browser = Browser(out)
        said = browser.pictures([0, ROWS])
        browser.close()
        assert all("no column holds bytes that may be images" in each for each in said.values()), said

        chosen, shards, back = tmp_path / "chosen", tmp_path / "shards", tmp_path / "back"
        filter_output(out, chosen, where="clip_b32_similarity_score >= 0.1 and cluster >= 0")
        server.broken.add("n/20.")
        fetch_images(
            chosen, shards, caption_column="text", allow_private=True, rows_per_shard=7, retries=0, timeout=5
        )
        fetched = pd.concat([pq.read_table(path).to_pandas() for path in sorted(shards.glob("*.parquet"))])
        assert not {*vectors.values(), "table___url__", "table_image_error"} & {*fetched.columns}
        assert {"uid", "aesthetic_score"} <= {*fetched.columns} and len(fetched) == FILES * ROWS - 10
        returned = return_vectors(chosen, shards, back, on="uid")
        assert (returned.rows, returned.failed) == (len(fetched), 1) and returned.reasons == {"missing": 1}
        assert return_vectors(chosen, shards, back, on="uid").skipped == 4
        rows = read(back).rename(columns={"caption": "text"})
        assert rows.image_error.notna().tolist() == [text.endswith(" 20") for text in rows.text]
        for name, column in vectors.items():
            check_vectors(rows[rows.image_error.isna()], column, name)
        assert "claimed to be of openai/clip-vit-large-patch14" in run("info", back)
        browser = Browser(back)
        assert all(each.startswith("data:") for each in browser.pictures([0, 1, 20]).values())
        browser.close()
        assert export_output(back, tmp_path / "new").kept == len(fetched) - 1


def write_clip_retrieval(folder):
    """As clip-retrieval does, the array of the second file of no rows."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for file, numbers in enumerate((numbers_of(0), range(0), numbers_of(2))):
        pq.write_table(
            rows_of(numbers).drop_columns(["uid"]), folder / "metadata" / f"metadata_{file}.parquet"
        )
        for name in ("img_emb", "text_emb"):
            np.save(folder / name / f"{name}_{file}.npy", matrix_of(numbers, name, 768).reshape(-1, 768))
    return folder


def write_lists(folder, kind):
    """Columns of lists, in row groups that end within blocks."""
    folder.mkdir()
    for file in range(2):
        numbers = numbers_of(file)
        matrix = matrix_of(numbers, "lists", 768)
        vectors = pa.array(list(matrix.astype(kind.value_type.to_pandas_dtype())), kind)
        table = rows_of(numbers, emb=vectors)
        pq.write_table(table, folder / f"train-{file:05d}.parquet", row_group_size=5)
    return folder


def test_arrays_of_clip_retrieval(tmp_path):
    source, out = write_clip_retrieval(tmp_path / "laion"), tmp_path / "out"
    summary = import_vectors(source, out, rows_per_file=5)
    assert (summary.rows, summary.written) == (2 * ROWS, 7)
    frame = read(out)
    check_vectors(frame, "image_embedding", "img_emb", range(2 * ROWS))
    check_vectors(frame, "text_embedding", "text_emb")
    assert frame.key.tolist()[:2] == ["metadata_0_0000000", "metadata_0_0000001"] and frame.key.is_unique
    assert sorted(path.name for path in out.iterdir())[0] == "metadata_0.part-00000.parquet"
    assert "nothing says of which model" in run("info", out)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), 768)], ids=str
)
def test_lists_in_parquet_in_a_store(tmp_path, kind):
    """Through URLs both ways; an image in the row is found by the rows."""
    folder = write_lists(tmp_path / "lists", kind)
    store = fsspec.filesystem("memory")
    place = f"memory://{tmp_path.name}-{kind.bit_width if kind == 0 else abs(hash(str(kind)))}"
    store.put(str(folder), f"{place}/lists", recursive=True)
    assert import_vectors(f"{place}/lists", f"{place}/out", id_column="uid").rows == 2 * ROWS
    store.get(f"{place}/out", str(tmp_path / "out"), recursive=True)
    frame = read(tmp_path / "out")
    check_vectors(frame, "image_embedding", "lists", range(2 * ROWS))
    assert "emb" not in frame.columns and frame.uid[0] == uid_of(0)
    assert import_vectors(f"{place}/lists", f"{place}/out", id_column="uid").skipped == 2
    store.rm(place, recursive=True)


def test_rows_whose_images_lie_beside_their_vectors(tmp_path):
    images = [{"bytes": picture_of(number), "path": None} for number in range(4)]
    vectors = [vector.astype(np.float32) for vector in matrix_of(range(4), "lists", 768)]
    (tmp_path / "in").mkdir()
    pq.write_table(rows_of(range(4), image=images, emb=vectors), tmp_path / "in" / "a.parquet")
    import_vectors(tmp_path / "in", tmp_path / "out", id_column="uid")
    assert "image" not in read(tmp_path / "out").columns
    browser = Browser(tmp_path / "out")
    assert all(each.startswith("data:") for each in browser.pictures(range(4)).values())
    browser.close()
    assert export_output(tmp_path / "out", tmp_path / "new").kept == 4


def test_what_is_no_vector(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    matrix = matrix_of(range(6), "lists", 768).astype(np.float32)
    lists = [*map(list, matrix)]
    lists[1], lists[2], lists[3] = None, lists[2][:5], [None, *lists[3][1:]]
    lists[4] = [0.0] * 768
    pq.write_table(rows_of(range(6), emb=pa.array(lists, pa.list_(pa.float32()))), source / "a.parquet")
    summary = import_vectors(source, out, id_column="uid")
    assert summary.failed == 4 and summary.reasons == {"no vector": 3, "not finite": 1}
    frame = read(out)
    assert frame.image_embedding.isna().tolist() == [False, True, True, True, True, False]
    assert "has 5 values, not 768" in frame.image_error[2]
    check_vectors(frame[frame.image_error.isna()], "image_embedding", "lists")
    bad = matrix_of(numbers_of(0), "l14_img", 768)
    bad[3], bad[4] = 0, np.inf
    write_datacomp(tmp_path / "dc")
    np.savez(tmp_path / "dc" / "00000000.npz", l14_img=bad, l14_txt=bad[::-1])
    datacomp_import(tmp_path / "dc", tmp_path / "both")
    errors = read(tmp_path / "both").image_error
    assert errors[3] == "[image_embedding] no vector: l14_img is all zeros" and errors.notna().sum() == 4
    assert errors[7] == "[text_embedding] not finite: l14_txt has NaN or infinity"


def cut_npz(path):
    path.write_bytes(path.read_bytes()[:-3000])


def lying_npz(path):
    """A member whose header promises rows that are not there."""
    array = np.zeros((ROWS, 768), np.float16)
    file = io.BytesIO()
    np.save(file, array)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("l14_img.npy", file.getvalue()[:5000])


FAULTS = {
    "counts": (
        lambda path: np.savez(path, l14_img=np.ones((ROWS - 1, 768), "f2")),
        "12 rows, and .* 11 vectors",
    ),
    "gone": (lambda path: path.unlink(), "is not there, and has the vectors"),
    "cut": (cut_npz, "is damaged, or no file of NumPy's"),
    "lies": (lying_npz, "cut short"),
    "huge": (lambda path: write_header(path, (ROWS, 2**40)), "vectors of 1 to 65,536 values"),
    "many": (lambda path: write_header(path, (2**50, 768)), "12 rows, and .* 1,125,899,906,842,624 vectors"),
    "pickled": (
        lambda path: np.savez(path, l14_img=np.array([[print] * 768] * ROWS, object)),
        "pickled objects, which are not loaded",
    ),
    "whole numbers": (
        lambda path: np.savez(path, l14_img=np.ones((ROWS, 768), "i1")),
        "expected rows of floats",
    ),
    "other length": (
        lambda path: np.savez(path, l14_img=np.ones((ROWS, 512), "f2")),
        "values, as those .* found 512",
    ),
    "other name": (lambda path: np.savez(path, img=np.ones((ROWS, 768), "f2")), "has no array 'l14_img'"),
}


def write_header(path, shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("l14_img.npy", file.getvalue())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_paired_costs_its_own_rows(tmp_path, fault):
    source, out = write_datacomp(tmp_path / "dc"), tmp_path / "out"
    spoil, why = FAULTS[fault]
    spoil(source / "00000002.npz")
    summary = datacomp_import(source, out, text_vectors=None)
    assert re.search(why, summary.failed_shards["00000002"]), summary.failed_shards
    assert "00000002" in summary.failed_shards["00000002"] and summary.rows == 2 * ROWS
    check_vectors(read(out), "image_embedding", "l14_img", range(2 * ROWS))
    write_datacomp(source)
    summary = datacomp_import(source, out, text_vectors=None)
    assert summary.complete and summary.written == 3  # as their files were written anew


@pytest.mark.parametrize("before", [b"half of a file", None])
def test_a_table_that_changes_while_it_runs_is_not_taken_for_what_it_was(tmp_path, before):
    """Rows that came after the client looked would be left out, in this run and in all later ones."""
    source, out = tmp_path / "lists", tmp_path / "out"
    source.mkdir()
    parts = [rows_of(range(8), mine=[[1.0, number] for number in range(8)]).slice(0, stop) for stop in (3, 8)]
    for name in "ab":
        pq.write_table(parts[0], source / f"{name}.parquet")
    if before is not None:
        (source / "b.parquet").write_bytes(before)

    @contextmanager
    def grown():
        pq.write_table(parts[1], source / "b.parquet")
        yield

    summary = import_vectors(source, out, id_column="uid", workers=grown)
    why = "could not be read" if before else "had 3"
    assert re.search(f"b.parquet: has 8 rows, and {why} when this run", summary.failed_shards["b"])
    assert (summary.rows, len(read(out))) == (3, 3)
    summary = import_vectors(source, out, id_column="uid")
    assert summary.complete and (summary.written, summary.skipped, len(read(out))) == (1, 1, 11)


def test_a_second_run_does_what_is_missing_and_replaces_nothing_else(tmp_path):
    source, out = write_datacomp(tmp_path / "dc"), tmp_path / "out"
    datacomp_import(source, out)
    (out / "00000001.parquet").unlink()
    summary = datacomp_import(source, out)
    assert (summary.written, summary.skipped, summary.rows_before) == (1, 2, 2 * ROWS)
    os.utime(source / "00000001.npz")  # it may be another
    assert datacomp_import(source, out).written == 1
    for kept in (out, tmp_path / "kept"):
        with pytest.raises(OutputError, match=r"0.parquet: no column holds .* fetch those that you want"):
            score_output(kept, [ImageStatistics(["phash"])])
        filter_output(out, tmp_path / "kept", where="uid > '0'")
    for other in ({"image_vectors": "b32_img", "model": None}, {"model": "mine"}, {"normalize": False}):
        with pytest.raises(OutputError, match="made of other vectors"):
            datacomp_import(source, out, text_vectors=None, **other)
    with pytest.raises(OutputError, match="they would be there twice"):
        datacomp_import(source, out, rows_per_file=5)
    assert datacomp_import(source, out, rows_per_file=5, overwrite=True).written == 9
    check_vectors(read(out), "image_embedding", "l14_img", range(FILES * ROWS))
    pq.write_table(rows_of(range(100, 103)), source / "later.parquet")
    np.savez(source / "later.npz", **dict.fromkeys(["l14_img", "l14_txt"], np.ones((3, 768), "f2")))
    summary = datacomp_import(source, out, rows_per_file=5)
    assert (summary.written, summary.skipped) == (1, 9)


@pytest.mark.parametrize("held", [1 << 22, 4])  # in memory, and in files by their digests
def test_a_key_in_two_parts_of_a_table_costs_the_table(tmp_path, monkeypatch, held):
    monkeypatch.setattr(repeats, "HELD", held)
    source, out = write_datacomp(tmp_path / "dc"), tmp_path / "out"
    for file, again in ((0, {11: 2, 4: 2}), (2, {3: 1})):  # of rows in other parts, and in the same one
        path = source / f"{file:08d}.parquet"
        uids = [uid_of(number) for number in numbers_of(file)]
        uids = [uids[again.get(row, row)] for row in range(ROWS)]
        pq.write_table(rows_of(numbers_of(file), uid=uids), path)
    summary = datacomp_import(source, out, rows_per_file=5)
    assert not summary.complete and {*summary.failed_shards} == {
        f"{file:08d}.part-{part:05d}" for file in (0, 2) for part in range(3)
    }
    why = summary.failed_shards["00000000.part-00001"]
    assert f"1 key of the column 'uid' in several rows: {uid_of(2)!r} in rows 2, 4, 11. Which" in why
    assert "in rows 1, 3" in summary.failed_shards["00000002.part-00000"]
    check_vectors(read(out), "image_embedding", "l14_img", numbers_of(1))  # the others go on
    assert summary.rows == ROWS
    for file in (0, 2):
        pq.write_table(rows_of(numbers_of(file)), source / f"{file:08d}.parquet")
    summary = datacomp_import(source, out, rows_per_file=5)
    assert summary.complete and (summary.written, summary.skipped) == (6, 3)
    check_vectors(read(out), "text_embedding", "l14_txt", range(FILES * ROWS))


def test_parts_of_an_import(tmp_path):
    source, out = write_datacomp(tmp_path / "dc"), tmp_path / "out"
    first = datacomp_import(source, out, rows_per_file=5, part="0/2")
    assert first.part["all_shards"] == FILES and 0 < first.part["shards"] < FILES
    assert first.written == 3 * first.part["shards"]
    for other in ({"normalize": False}, {"model": "mine"}):
        with pytest.raises(OutputError, match="made of other vectors"):
            datacomp_import(source, out, rows_per_file=5, part=(1, 2), **other)
    second = datacomp_import(source, out, rows_per_file=5, part=(1, 2))
    assert second.written == 3 * FILES - first.written and "part 1/2" in str(second)
    whole = datacomp_import(source, out, rows_per_file=5)
    assert (whole.written, whole.skipped) == (0, 3 * FILES)
    check_vectors(read(out), "image_embedding", "l14_img", range(FILES * ROWS))


def test_claims_are_believed_as_far_as_they_go(tmp_path):
    source, out = write_datacomp(tmp_path / "dc"), tmp_path / "out"
    aesthetic = saved(tmp_path, "aesthetic")
    with pytest.raises(ConfigError, match="makes vectors of 768 values, and these have 512"):
        datacomp_import(source, out, image_vectors="b32_img", text_vectors=None)
    datacomp_import(source, out, model="ViT-L/14")
    score_output(out, [AestheticClassifier(model_path=aesthetic), ClipScore()])
    datacomp_import(source, tmp_path / "mine", model="my/model", text_model="another")
    with pytest.raises(ConfigError, match=r"my/model \(projected, of length 1, 768 values, as is claimed\)"):
        score_output(tmp_path / "mine", [AestheticClassifier(model_path=aesthetic)])
    with pytest.raises(ConfigError, match="do not belong together"):
        score_output(tmp_path / "mine", [ClipScore()])
    score_output(tmp_path / "mine", [AestheticClassifier(model_path=aesthetic, check=False)])
    assert (
        read_record(str(tmp_path / "mine" / "00000000.parquet")).scores["aesthetic_score"]["checked"] is False
    )
    datacomp_import(source, tmp_path / "long", normalize=False)
    with pytest.raises(ConfigError, match="not of length 1"):
        score_output(tmp_path / "long", [AestheticClassifier(model_path=aesthetic)])
    assert read(tmp_path / "long").image_embedding[0].tolist() == vector_of(0, "l14_img", 768).tolist()


def test_what_is_asked_for_must_be_clear(tmp_path):
    source, out = write_datacomp(tmp_path / "dc"), tmp_path / "out"
    said = run("import", source, out, code=2)
    assert "several vectors, b32_img, b32_txt, l14_img, l14_txt: say which by --image-vectors" in said
    assert "no such vectors; there are b32_img" in run(
        "import", source, out, "--image-vectors", "l14", code=2
    )
    assert "no such column" in run(
        "import", source, out, "--image-vectors", "l14_img", "--id-column", "id", code=2
    )
    assert "--rows and --on together" in run("import", source, out, "--rows", source, code=2)
    assert "with --rows" in run(
        "import", source, out, "--rows", source, "--on", "uid", "--model", "x", code=2
    )
    with pytest.raises(DatasetError, match="found nothing"):
        import_vectors(tmp_path / "none", out)
    assert not out.exists()


def test_subsets_of_datacomp(tmp_path):
    source, out, subset = write_datacomp(tmp_path / "dc"), tmp_path / "out", tmp_path / "subset.npy"
    datacomp_import(source, out)
    run("filter", out, "--top", "clip_b32_similarity_score=0.5", "--subset", subset)
    found = np.load(subset, allow_pickle=False)
    uids = [uid_of(number) for number in range(FILES * ROWS // 2, FILES * ROWS)]
    wanted = np.sort(np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids], np.dtype("u8,u8")))
    assert found.dtype == np.dtype("u8,u8") and found.tolist() == wanted.tolist()
    join_output(out, subset, "uid", mark="stays")
    assert sorted(read(out).query("stays").uid) == sorted(uids)
    again = ("filter", out, "--where", "stays", "--subset", subset)
    run(*again)
    assert "has other uids" in run(*again[:3], "not stays", *again[4:], code=2)
    said = run(
        "filter", out, "--where", "stays", "--subset", tmp_path / "x.npy", "--id-column", "url", code=2
    )
    assert (
        "00000000.parquet: expected uids of 32 hexadecimal digits in 'url'" in said or "expected uids" in said
    )


def test_vectors_are_found_by_value_in_any_order(tmp_path):
    """Of another order, some not there, some there twice, some null; numbers match by their text."""
    source, shards = tmp_path / "in", tmp_path / "shards"
    source.mkdir()
    order = [*np.random.default_rng(1).permutation(20).tolist(), 7]
    for file, numbers in enumerate((order[:9], order[9:])):
        vectors = [vector_of(number, "lists", 768).astype(np.float32) for number in numbers]
        table = rows_of(
            numbers, emb=vectors, number=numbers, key=[f"{file}{at}" for at in range(len(numbers))]
        )
        pq.write_table(table, source / f"{file}.parquet", row_group_size=4)
    import_vectors(source, tmp_path / "vectors")
    for shard in range(2):
        keys = [f"{shard}{at:03d}" for at in range(12)]
        write_tar(shards / f"{shard}.tar", [each for key in keys for each in members_of(key)])
        wanted = [*range(shard * 12, shard * 12 + 11), None]
        pd.DataFrame({"key": keys, "id": pd.array(wanted, "Int64").astype("string")}).to_parquet(
            shards / f"{shard}.parquet"
        )
    summary = return_vectors(tmp_path / "vectors", shards, tmp_path / "back", on="id=number")
    frame = read(tmp_path / "back")
    errors = dict(zip(frame.key, frame.image_error, strict=True))
    assert errors["0007"] == "no vector: id '7' stands in 2 rows of the vectors"
    assert errors["0011"] == "no vector: id is null"
    assert errors["1008"] == "no vector: id '20' is in no row of the vectors"
    good = frame[frame.image_error.isna()]
    assert len(good) == summary.rows - summary.failed == 24 - 2 - 1 - 3
    check_vectors(good.assign(text=[f"x {each}" for each in good.id]), "image_embedding", "lists")
    # A column that is none of keys: not every row of it is looked at for each.
    keys = [f"0{at}" for at in range(20)]
    pq.write_table(rows_of(range(20), emb=vectors[:1] * 20, number=[7] * 20, key=keys), source / "0.parquet")
    import_vectors(source, tmp_path / "same")
    return_vectors(tmp_path / "same", shards, tmp_path / "none", on="id=number")
    frame = read(tmp_path / "none")
    assert "stands in 8 or more rows of the vectors" in frame[frame.key == "0007"].image_error.item()


def test_arrays_in_a_store(tmp_path):
    """Packed and not, some rows at a time."""
    folder, store = write_datacomp(tmp_path / "dc"), fsspec.filesystem("memory")
    store.put(str(folder), f"/{tmp_path.name}/dc", recursive=True)
    summary = datacomp_import(f"memory://{tmp_path.name}/dc", tmp_path / "out", rows_per_file=7)
    assert (summary.rows, summary.written) == (FILES * ROWS, 2 * FILES)
    check_vectors(read(tmp_path / "out"), "image_embedding", "l14_img", range(FILES * ROWS))
    assert read(tmp_path / "out").__url__[0].startswith("memory://")
    store.rm(f"/{tmp_path.name}", recursive=True)


def test_vectors_that_are_kept_as_float16(tmp_path):
    """Half the bytes; scores, searches and duplicates are those of float32 but for the rounding."""
    source, found = write_datacomp(tmp_path / "metadata"), {}
    twin = np.load(source / "00000002.npz")
    arrays = {name: twin[name].copy() for name in twin.files}
    arrays["l14_img"][3] = np.load(source / "00000000.npz")["l14_img"][5]  # rows 27 and 5
    np.savez(source / "00000002.npz", **arrays)
    head = saved(tmp_path, "aesthetic")
    for stored in ("float32", "float16"):
        out = tmp_path / stored
        datacomp_import(source, out, stored=stored)
        kinds = pq.read_schema(out / "00000000.parquet")
        kind = pa.list_(getattr(pa, stored)(), 768)
        assert kinds.field("image_embedding").type == kinds.field("text_embedding").type == kind
        score_output(out, [AestheticClassifier(model_path=head), ClipScore()])
        find_centroids(out, 3).save(tmp_path / f"{stored}.safetensors")
        score_output(out, [ClusterNumber(tmp_path / f"{stored}.safetensors", "cluster")])
        assert pq.read_schema(out / "00000000.parquet").field("image_embedding").type == kind
        gone = SemanticDeduplication(0.01)(out).save(tmp_path / f"{stored} twins")
        near = [hit.key for hit in similar_to_key(out, uid_of(5), top=4)]
        filter_output(out, tmp_path / f"{stored} some", where="clip_score > -1", top=("clip_score", 0.5))
        make_report(out, tmp_path / f"{stored}.html")
        assert "claimed" in (tmp_path / f"{stored}.html").read_text()
        found[stored] = (read(out).set_index("uid"), gone, near, read(tmp_path / f"{stored} some"))
    (whole, gone, near, some), (half, half_gone, half_near, half_some) = found.values()
    for name in ("aesthetic_score", "clip_score"):
        np.testing.assert_allclose(half[name], whole[name], atol=2e-3)
    assert gone.removed == half_gone.removed == 1
    assert near == half_near and uid_of(27) in near
    assert {*some["uid"]} == {*half_some["uid"]}
    sizes = [np.stack(each["image_embedding"]).nbytes for each in (whole, half)]
    assert sizes[0] == 2 * sizes[1]
    with pytest.raises(OutputError, match="was made of other vectors"):
        datacomp_import(source, tmp_path / "float16")
    with pytest.raises(ConfigError, match=r"stored='bfloat16' \(--stored\)"):
        datacomp_import(source, tmp_path / "no", stored="bfloat16")
    # What float16 cannot hold costs its row.
    arrays = {
        "l14_img": np.full((2, 4), [[7e4], [1.0]], np.float32),
        "l14_txt": np.full((2, 4), [[1.0], [1e-9]]),
    }
    (tmp_path / "large").mkdir()
    pq.write_table(rows_of(range(2)), tmp_path / "large/0.parquet")
    np.savez(tmp_path / "large/0.npz", **arrays)
    datacomp_import(tmp_path / "large", tmp_path / "rounded", stored="float16", normalize=False, model=None)
    rows = read(tmp_path / "rounded")
    assert [each is None for each in rows["image_embedding"]] == [True, False]
    assert [each is None for each in rows["text_embedding"]] == [False, True]
    assert all("is out of the range of float16" in why for why in rows["image_error"])


def test_commands_on_a_cluster(client, tmp_path):
    source, out = write_datacomp(tmp_path / "dc"), tmp_path / "out"
    place = ("--scheduler-address", client.scheduler.address)
    taken = ("--image-vectors", "l14_img", "--text-vectors", "l14_txt", "--id-column", "uid", "--model", L14)
    for part in ("1/2", "0/2"):
        assert f"part {part}" in run(
            "import", source, out, *taken, "--part", part, "--rows-per-file", 7, *place
        )
    run("score", out, "--text-vectors", "text_embedding", *place)
    frame = read(out)
    check_vectors(frame, "text_embedding", "l14_txt", range(FILES * ROWS))
    assert np.allclose(
        frame.clip_score,
        [a @ b for a, b in zip(frame.image_embedding, frame.text_embedding, strict=True)],
        atol=1e-6,
    )
    # A pipeline of commands ends where nothing is left.
    none = ("--where", "uid = 'nobody'")
    assert "0 of 36 rows kept" in run("filter", out, tmp_path / "none", *none, *place, code=1)
    said = run("export", out, tmp_path / "tars", *none, *place, code=1)
    assert "NONE of 36 rows has a sample that is left: there is no tar" in said
    (source / "00000001.npz").unlink()
    assert "00000001.npz" in run("import", source, tmp_path / "rest", *taken, *place, code=1)


def test_a_recipe_that_begins_with_vectors(tmp_path):
    """The walk-through of docs/importing.md as one call: counts add up, and the same call again finds all done."""
    with ImageServer() as server:
        source = write_datacomp(tmp_path / "metadata", server.port)
        arrays = {name: array.copy() for name, array in np.load(source / "00000002.npz").items()}
        arrays["l14_img"][3] = np.load(source / "00000001.npz")["l14_img"][5]  # rows 27 and 17
        arrays["l14_img"][4] = np.nan
        np.savez(source / "00000002.npz", **arrays)
        server.broken.add("n/20.")
        given = {
            "import": {
                "id_column": "uid",
                "image_vectors": "l14_img",
                "text_vectors": "l14_txt",
                "model": L14,
            },
            "aesthetic": str(saved(tmp_path, "aesthetic")),
            "clip_score": True,
            "where": "clip_b32_similarity_score >= 0.1 and clip_score > -1",
            "duplicates": {"eps": 0.01},
        }
        first = curate_vectors(source, tmp_path / "out", VectorRecipe.of(given))
        counts = (first.rows, first.failed, first.filtered, first.duplicates, first.kept)
        assert counts == (36, 1, 10, 1, 24) and str(first).startswith(f"{tmp_path}/out/chosen: 24 of 36 rows")
        chosen = read(tmp_path / "out/chosen")
        twins = {uid_of(17), uid_of(27)} & {*chosen["uid"]}
        every = {uid_of(number) for number in range(10, 36) if number not in (17, 27, 28)}
        assert {*chosen["uid"]} - twins == every and len(twins) == 1
        options = {"allow_private": True, "rows_per_shard": 7, "retries": 0, "timeout": 5}
        given |= {"fetch": {"caption_column": "text", **options}, "export": {"samples_per_shard": 10}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
        told = ("curate", source, tmp_path / "out", "--config", tmp_path / "recipe.yaml", "--cluster", "cpu")
        said = run(*told, "--json", tmp_path / "first.json")
        assert "failed             2 (5.6%), 1 of them not fetched" in said, said
        second = json.loads((tmp_path / "first.json").read_text())
        assert (second["kept"], second["missing"]) == (23, 0)
        parts = ("failed", "filtered", "unbalanced", "duplicates", "missing", "kept")
        assert sum(second[name] for name in parts) == second["rows"] == 36
        rows = pd.concat(
            [pq.read_table(path).to_pandas() for path in (tmp_path / "out/shards").glob("*.parquet")]
        )
        assert {*rows["uid"]} == {*chosen["uid"]} - {uid_of(20)}
        rows = rows[~rows["uid"].isin([uid_of(17), uid_of(27)])].rename(columns={"caption": "text"})
        check_vectors(rows, "image_embedding", "l14_img")
        again = curate_vectors(source, tmp_path / "out", VectorRecipe.of(given))
        assert (again.kept, again.steps["shards"].written, again.steps["embeddings"].written) == (23, 0, 0)
        with pytest.raises(OutputError, match="overwrite"):
            curate_vectors(source, tmp_path / "out", VectorRecipe.of({**given, "where": "clip_score > 0"}))
        del given["fetch"], given["export"]
        given["where"] = "clip_b32_similarity_score >= 0.2"
        less = curate_vectors(source, tmp_path / "out", VectorRecipe.of(given), overwrite=True)
        counts = (less.rows, less.failed, less.filtered, less.duplicates, less.kept)
        assert counts == (36, 1, 20, 0, 15) and len(read(tmp_path / "out/chosen")) == 15


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "resnet50"}, "'model' beside import: there is no image"),
        ({"import": {"mode": L14}}, "import: there is no argument 'mode'"),
        ({"fetch": {"table": "urls.parquet"}}, "table beside import"),
        ({"export": {"shuffle": 7}}, "export beside import: there is no image"),
        ({"wher": "x > 1"}, "'wher' beside import"),
    ],
)
def test_what_a_recipe_of_vectors_cannot_be_asked(given, said):
    with pytest.raises(ConfigError, match=said):
        VectorRecipe.of({"import": {"model": L14}, **given})
