"""Vectors that others have made: which row has which, what of them is none, and all that is done without an image."""

from __future__ import annotations

import hashlib
import json
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_servers import ImageServer
from test_heads import saved
from typer.testing import CliRunner

from curator_dask import fetch_images
from curator_dask.browsing.looking import Browser
from curator_dask.cli import app
from curator_dask.dedup import SemanticDeduplication
from curator_dask.image.classifiers import AestheticClassifier, ClusterNumber, score_output
from curator_dask.image.classifiers.centroids import find_centroids
from curator_dask.image.embedders.similar import similar_to_key
from curator_dask.importing import return_vectors
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.report.making import make_report
from curator_dask.text import ClipScore
from curator_dask.text.balance import balance_output
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.frames.parquet import read_record
from curator_dask.importing import import_vectors

pytestmark = pytest.mark.usefixtures("in_this_process")

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
    return pd.concat([pq.read_table(path).to_pandas() for path in sorted(out.rglob("*.parquet"))], ignore_index=True)


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
        out = tmp_path / "out"
        summary = datacomp_import(source, out)
        assert (summary.rows, summary.written, summary.failed) == (FILES * ROWS, FILES, 0)
        score_output(out, [AestheticClassifier(model_path=saved(tmp_path, "aesthetic")), ClipScore()])
        duplicates = SemanticDeduplication(0.07)(out)
        duplicates.save(tmp_path / "duplicates")
        assert duplicates.summary.removed == 0
        find_centroids(out, 3).save(tmp_path / "centroids.safetensors")
        score_output(out, [ClusterNumber(tmp_path / "centroids.safetensors", "cluster")])
        (tmp_path / "concepts.txt").write_text("cat\ndog\n")
        balance_output(out, tmp_path / "concepts.txt", 4, text_column="text")
        hits = similar_to_key(out, uid_of(5), top=3)
        print(hits)
        make_report(out, tmp_path / "report.html")
        chosen, shards, back = tmp_path / "chosen", tmp_path / "shards", tmp_path / "back"
        filter_output(out, chosen, where="clip_b32_similarity_score >= 0.1 and cluster >= 0")
        fetch_images(chosen, shards, caption_column="text", allow_private=True, rows_per_shard=7)
        returned = return_vectors(chosen, shards, back, on="uid")
        print(returned)
        print(run("info", tmp_path / "back"))
        browser = Browser(out)
        print(browser.pictures([0,1,20]))
        browser.close()
        browser = Browser(tmp_path / "back")
        print({k:v[:40] for k,v in browser.pictures([0,1,20]).items()})
        browser.close()
        print(export_output(back, tmp_path / "new"))
