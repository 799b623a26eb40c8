"""The two doors, dataset and pipeline, with one real CLIP: what one has done the other need not do again."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
from colours import read_output, write_tar
from PIL import Image
from test_clip import make_clip

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import OutputError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.image.embedders.making import from_settings
from curator_dask.outputs.settings_there import find_settings
from curator_dask.pipeline import Pipeline
from curator_dask.stages import ProcessingStage
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageEmbeddingStage,
    ImageParquetWriterStage,
    ImageReaderStage,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "clip"
    make_clip(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Photographs, so that every way to resize one makes other pixels; many kinds of files, and a bad one."""
    photograph = Image.fromarray(skimage.data.astronaut())
    kinds = [
        ("jpg", "JPEG", "RGB", (500, 375)),
        ("jpg", "JPEG", "CMYK", (300, 410)),
        ("gif", "GIF", "P", (257, 191)),
        ("png", "PNG", "L", (120, 97)),
        ("webp", "WEBP", "RGB", (640, 333)),
        ("png", "PNG", "RGBA", (60, 41)),
        ("jpg", "JPEG", "RGB", (97, 640)),
        ("bmp", "BMP", "RGB", (224, 224)),
    ]
    for shard in range(3):
        members = []
        for number, (suffix, form, mode, size) in enumerate(kinds):
            left = 10 * number + 50 * shard
            image = photograph.crop((left, left, left + 300, left + 260)).resize(size)
            file = io.BytesIO()
            (image.convert("RGB").quantize() if mode == "P" else image.convert(mode)).save(file, form)
            members.append((f"{shard:05d}{number:04d}.{suffix}", file.getvalue()))
        members.append((f"{shard:05d}0008.jpg", b"\xff\xd8\xff"))
        write_tar(tmp_path / "data" / f"{shard:05d}.tar", members)
    return tmp_path / "data"


def stages_of(folder, clip, out, **reader):
    return [
        FilePartitioningStage(str(folder)),
        ImageReaderStage(dali_batch_size=6, **reader),
        ImageEmbeddingStage(model_name=str(clip), model_inference_batch_size=4, remove_image_data=True),
        ImageParquetWriterStage(str(out)),
    ]


def through_stages(folder, clip, out, **reader):
    return Pipeline("clip", stages=stages_of(folder, clip, out, **reader)).run().summary


def through_dataset(folder, clip, out, **settings):
    embedder = ClipImageEmbedder(clip, batch_size=5, **settings)
    return embedder(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out)


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_both_doors_make_the_same_rows(folder, clip, tmp_path, decoder, device, in_this_process):
    through_dataset(folder, clip, tmp_path / "dataset", decoder=decoder)
    through_stages(folder, clip, tmp_path / "stages", decoder=decoder)
    one, other = read_output(tmp_path / "dataset"), read_output(tmp_path / "stages")
    assert one.schema == other.schema and one.num_rows == 27
    plain = [name for name in one.column_names if name != "image_embedding"]
    assert one.select(plain).equals(other.select(plain))
    (vectors, valid), (others, also) = (list_to_matrix(each["image_embedding"]) for each in (one, other))
    assert (valid == also).all() and valid.sum() == 24
    cosines = (vectors * others).sum(axis=1)[valid]
    between = vectors[valid] @ vectors[valid].T - 2 * np.eye(24)
    assert between.max() < 0.999, "photographs that no test could tell from one another"
    if device == "cpu":  # the same pixels; batches differ in size, and with them the order of sums
        np.testing.assert_allclose(vectors, others, atol=2e-6)
    else:  # resized by DALI in one door, by torch in the other; bf16
        assert cosines.min() > 0.999


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
    through_stages(folder, clip, tmp_path / "out", max_pixels=60_000)
    assert read_output(tmp_path / "out")["image_error"].null_count == 3 * 4
    settings = find_settings(str(tmp_path / "out"))["image_embedding"]
    summary = from_settings({**settings, "max_pixels": 1_000_000}).retry(tmp_path / "out")
    assert (summary.rows, summary.failed) == (3 * 5, 3)
    through_dataset(folder, clip, tmp_path / "dataset")
    one, other = read_output(tmp_path / "dataset"), read_output(tmp_path / "out")
    assert one["key"].to_pylist() == other["key"].to_pylist()
    vectors = [list_to_matrix(each["image_embedding"])[0] for each in (one, other)]
    np.testing.assert_allclose(*vectors, atol=2e-6)


class Invert(ProcessingStage):
    """Changes what the model sees."""

    def process(self, task):
        for image in task.data:
            if image.error is None:
                image.image_data = 255 - image.image_data
        return task


def test_vectors_of_other_pixels_are_another_embedding(folder, clip, tmp_path, in_this_process):
    """The same model, but neither door takes one for the other, nor fills the gaps of one with the other."""
    through_dataset(folder, clip, tmp_path / "out")
    inverted = stages_of(folder, clip, tmp_path / "out")
    inverted.insert(2, Invert())
    with pytest.raises(OutputError, match=r"was made with output projected; this run has output .*Invert"):
        Pipeline("inverted", stages=inverted).run()
    inverted[-1] = ImageParquetWriterStage(tmp_path / "inverted")
    Pipeline("inverted", stages=inverted).run()
    assert find_settings(str(tmp_path / "inverted")) == {}
    with pytest.raises(OutputError, match=r"retry with the same model"):
        ClipImageEmbedder(clip).retry(tmp_path / "inverted")
    one, other = (read_output(tmp_path / name)["image_embedding"] for name in ("out", "inverted"))
    (vectors, valid), (others, _) = list_to_matrix(one), list_to_matrix(other)
    assert (vectors * others).sum(axis=1)[valid].max() < 0.999


def test_both_doors_share_one_model():
    """The default is the same in both, and equal specs are one model in a worker."""
    stage, embedder = ImageEmbeddingStage(model_dir="models"), ClipImageEmbedder(model_dir="models")
    assert stage.encoder_spec() == embedder.encoder_spec()
    assert stage.model_name == "openai/clip-vit-large-patch14"
