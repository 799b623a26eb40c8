"""The two doors, dataset and pipeline, with one real CLIP: what one has done the other need not do again."""

from __future__ import annotations

import numpy as np
import pytest
from colours import read_output, write_dataset
from test_clip import make_clip

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.datasets.retrying import find_settings
from curator_dask.frames.columns import list_to_matrix
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.image.embedders.making import from_settings
from curator_dask.pipeline import Pipeline
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageEmbeddingStage,
    ImageParquetWriterStage,
    ImageReaderStage,
)

BAD = "000010003"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "clip"
    make_clip(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data", bad={BAD: b"\xff\xd8\xff"})
    return tmp_path / "data"


def through_stages(folder, clip, out, **reader):
    stages = [
        FilePartitioningStage(str(folder)),
        ImageReaderStage(dali_batch_size=6, **reader),
        ImageEmbeddingStage(model_name=str(clip), model_inference_batch_size=4, remove_image_data=True),
        ImageParquetWriterStage(str(out)),
    ]
    return Pipeline("clip", stages=stages).run().summary


def through_dataset(folder, clip, out, **settings):
    embedder = ClipImageEmbedder(clip, batch_size=5, **settings)
    return embedder(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out)


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_both_doors_make_the_same_rows(folder, clip, tmp_path, decoder, device, in_this_process):
    through_dataset(folder, clip, tmp_path / "dataset", decoder=decoder)
    through_stages(folder, clip, tmp_path / "stages", decoder=decoder)
    one, other = read_output(tmp_path / "dataset"), read_output(tmp_path / "stages")
    assert one.schema == other.schema and one.num_rows == 30
    plain = [name for name in one.column_names if name != "image_embedding"]
    assert one.select(plain).equals(other.select(plain))
    (vectors, valid), (others, also) = (list_to_matrix(each["image_embedding"]) for each in (one, other))
    assert (valid == also).all() and valid.sum() == 29
    # Batches differ in size, and with them the order of sums.
    np.testing.assert_allclose(vectors, others, atol=2e-6 if device == "cpu" else 2e-2)


def test_one_goes_on_where_the_other_stopped(folder, clip, tmp_path, in_this_process):
    through_stages(folder, clip, tmp_path / "out")
    (tmp_path / "out" / "00002.parquet").unlink()
    summary = through_dataset(folder, clip, tmp_path / "out")
    assert (summary.written, summary.skipped) == (1, 2)
    (tmp_path / "out" / "00000.parquet").unlink()
    summary = through_stages(folder, clip, tmp_path / "out")
    assert (summary.written, summary.skipped) == (1, 2)


def test_failed_rows_of_a_pipeline_are_tried_again(folder, clip, tmp_path, in_this_process):
    """By what its files say of the model, which is what the command line does."""
    through_stages(folder, clip, tmp_path / "out", max_pixels=24 * 20)  # keys of nine digits: 28 by 20
    assert read_output(tmp_path / "out")["image_error"].null_count == 0
    settings = find_settings(str(tmp_path / "out"))["image_embedding"]
    summary = from_settings({**settings, "max_pixels": 1000}).retry(tmp_path / "out")
    assert (summary.rows, summary.failed) == (30, 1)
    through_dataset(folder, clip, tmp_path / "dataset")
    one, other = read_output(tmp_path / "dataset"), read_output(tmp_path / "out")
    for name in ("key", "caption"):
        assert one[name].to_pylist() == other[name].to_pylist()
    np.testing.assert_allclose(
        *(list_to_matrix(each["image_embedding"])[0] for each in (one, other)), atol=2e-6
    )


def test_both_doors_share_one_model():
    """The default is the same in both, and equal specs are one model in a worker."""
    stage, embedder = ImageEmbeddingStage(model_dir="models"), ClipImageEmbedder(model_dir="models")
    assert stage.encoder_spec() == embedder.encoder_spec()
    assert stage.model_name == "openai/clip-vit-large-patch14"
