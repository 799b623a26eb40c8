"""Stages that score and filter: as the classifiers score, and no more is left out than is counted."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from colour_stages import ColourStage
from colours import check_colours, colour_of, write_dataset
from test_heads import plain, saved, vectors_of

from curator_dask.errors import ConfigError
from curator_dask.pipeline import Pipeline
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageAestheticFilterStage,
    ImageNSFWFilterStage,
    ImageParquetWriterStage,
    ImageReaderStage,
)
from curator_dask.tasks import ImageBatch, ImageObject
from curator_dask.testing import StageTests

pytestmark = pytest.mark.usefixtures("in_this_process")

BAD = "000010003"


def linear_head(folder, weight):
    """A head in a folder, as NeMo Curator's models have theirs below theirs."""
    path = folder / "laion" / "sa_0_4_vit_l_14_linear.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.tensor([weight]), "bias": torch.zeros(1)}, path)
    return folder


@pytest.fixture
def head(tmp_path):
    """Gives the blue of a colour, as a score from 0 to 10."""
    return linear_head(tmp_path / "models", [0.0, 0.0, 10 / 255])


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data", bad={BAD: b"<html>"})
    return tmp_path / "data"


def run(folder, out, *filters):
    stages = [FilePartitioningStage(str(folder)), ImageReaderStage(), ColourStage(), *filters]
    return Pipeline("test", stages=[*stages, ImageParquetWriterStage(out)]).run()


def test_images_below_the_threshold_are_left_out_and_counted(folder, head, tmp_path):
    every = [f"{shard:05d}{sample:04d}" for shard in range(3) for sample in range(10)]
    blue = {key: colour_of(key)[2] * 10 / 255 for key in every if key != BAD}
    stage = ImageAestheticFilterStage(head, score_threshold=5.0, check=False)
    result = run(folder, tmp_path / "out", stage)
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    kept = {key for key, score in blue.items() if score >= 5.0}
    assert 0 < len(kept) < 29 and set(rows) == kept | {BAD}
    check_colours(sorted(kept), [rows[key]["image_embedding"] for key in sorted(kept)])
    for key in kept:
        assert rows[key]["aesthetic_score"] == pytest.approx(blue[key], abs=0.05)
    assert rows[BAD]["aesthetic_score"] is None and "not an image" in rows[BAD]["image_error"]
    for count in ("count", "by"):
        left = [fact[count] for fact in result.summary.filtered.values()]
        left = left if count == "count" else [each[stage.name] for each in left]
        assert sum(left) == 29 - len(kept)
    same = ImageAestheticFilterStage(head, score_threshold=5.0, model_inference_batch_size=3, check=False)
    assert run(folder, tmp_path / "out", same).summary.skipped == 3  # how fast it is does not count
    linear_head(head, [0.0, 0.0, 5 / 255])
    other = ImageAestheticFilterStage(head, score_threshold=2.5, check=False)
    assert run(folder, tmp_path / "out", other).summary.written == 3
    halves = {row["key"]: row["aesthetic_score"] for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert all(halves[key] == pytest.approx(blue[key] / 2, abs=0.05) for key in kept)


@pytest.mark.parametrize(
    ("kind", "form", "name"),
    [
        (ImageAestheticFilterStage, "aesthetic", "sac+logos+ava1-l14-linearMSE.pth"),
        (ImageNSFWFilterStage, "nsfw", "clip_autokeras_binary_nsfw.pth"),
    ],
)
def test_scores_are_those_of_plain_torch(tmp_path, kind, form, name):
    saved(tmp_path, form).rename(tmp_path / name)
    vectors = vectors_of(9)
    with torch.inference_mode():
        expected = plain(form)(torch.from_numpy(vectors))[:, 0].numpy()
    threshold = float(np.sort(expected)[4])
    stage = kind(tmp_path, model_inference_batch_size=4, score_threshold=threshold)
    images = [ImageObject(image_id=str(number), embedding=vector) for number, vector in enumerate(vectors)]
    out = stage.process(ImageBatch(list(images)))
    scores = [getattr(image, stage.score) for image in images]
    np.testing.assert_allclose(scores, expected, atol=1e-5)  # of those left out, too
    keep = np.greater_equal if form == "aesthetic" else np.less
    passing = [str(number) for number in np.flatnonzero(keep(np.array(scores), threshold))]
    assert [image.image_id for image in out.data] == passing and 0 < len(passing) < 9


def test_heads_of_another_model_are_refused(folder, tmp_path, said):
    saved(tmp_path, "linear")
    stage = ImageAestheticFilterStage(tmp_path / "linear.pth")
    assert (
        "score_threshold=0.5 is outside of what these scores usually are, 1 to 10: it leaves none out"
        in said.text
    )
    with pytest.raises(
        ConfigError, match="ImageAestheticFilterStage is for vectors of OpenAI's CLIP ViT-L/14"
    ):
        run(folder, tmp_path / "out", stage)
    stage = ImageAestheticFilterStage(tmp_path / "linear.pth", score_threshold=5, check=False)
    with pytest.raises(ConfigError, match="takes vectors of 768 values, found 3"):
        run(folder, tmp_path / "out", stage)
    with pytest.raises(ConfigError, match=r"expected .*clip_autokeras_binary_nsfw.pth or .* in this folder"):
        ImageNSFWFilterStage(tmp_path / "data")
    with pytest.raises(ConfigError, match="score_threshold='high': expected a number"):
        ImageAestheticFilterStage(tmp_path / "linear.pth", score_threshold="high")


class TestAestheticFilter(StageTests):
    @pytest.fixture
    def stage(self, tmp_path):
        return ImageAestheticFilterStage(
            linear_head(tmp_path, [1.0, *[0.0] * 7]), score_threshold=1, check=False
        )
