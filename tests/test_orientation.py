"""Images that img2dataset has left on their side, turned by the text that their rows have kept."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from PIL import Image, ImageOps

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.orientation import has_orientation, turned, with_orientation
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.image.embedders import ImageEmbedder
from curator_dask.image.statistics import ImageStatistics
from curator_dask.stages.image import ImageReaderStage
from curator_dask.tasks import FileGroupTask

pytestmark = pytest.mark.usefixtures("in_this_process")

WORDS = (
    "Horizontal (normal)",
    "Mirrored horizontal",
    "Rotated 180",
    "Mirrored vertical",
    "Mirrored horizontal then rotated 90 CCW",
    "Rotated 90 CW",
    "Mirrored horizontal then rotated 90 CW",
    "Rotated 90 CCW",
)
KINDS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "WEBP lossy": {"quality": 95}}


def picture(mode="RGB") -> Image.Image:
    """One whose eight orientations all differ: smooth, so that JPEG keeps it."""
    down, right = np.mgrid[0:60, 0:90]
    pixels = np.stack([down * 4, right * 2, (down > 30) * (right > 20) * 180], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind.split()[0], **KINDS[kind], **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gets_its_orientation_back(kind, mode):
    if kind == "JPEG" and mode == "RGBA":
        pytest.skip("JPEG has no alpha")
    plain = encoded(picture(mode), kind)
    for number in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(picture(mode), kind, exif=exif))))
        data = with_orientation(plain, number)
        assert has_orientation(data) and not has_orientation(plain)
        found = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(np.asarray(found.convert("RGBA")), np.asarray(expected.convert("RGBA")))


def test_what_has_an_orientation_of_its_own_or_cannot_be_read_stays():
    exif = Image.Exif()
    exif[0x0112] = 3
    own = encoded(picture(), "JPEG", exif=exif)
    text = json.dumps({"Image Orientation": WORDS[5]})
    given = [
        own,
        b"<html>",
        b"",
        ValueError("missing"),
        encoded(picture(), "PNG")[:20],
        b"RIFF\0\0\0\0WEBPVP8 ",
    ]
    assert [image for _, image in turned(enumerate(given), [text] * len(given))] == given
    plain = encoded(picture(), "JPEG")
    texts = [
        None,
        "no JSON",
        "{}",
        json.dumps({"Image Orientation": WORDS[0]}),
        json.dumps({"Image Orientation": 6}),
    ]
    assert [image for _, image in turned(enumerate([plain] * 5), texts)] == [plain] * 5


class Corners(ImageEmbedder):
    """Embeds an image as the colours of its corners, and its size."""

    @staticmethod
    def transform(image):
        import torch

        pixels = np.asarray(image, np.float32)
        corners = [pixels[down, right] for down in (2, -3) for right in (2, -3)]
        return torch.from_numpy(np.concatenate([*corners, [image.width, image.height]]).astype(np.float32))

    def load_embedding_model(self, device):
        return lambda vectors: vectors


@pytest.fixture
def folder(tmp_path):
    members = []
    for number, text in enumerate(WORDS, 1):
        for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
            row = json.dumps({"exif": json.dumps({"Image Orientation": text})})
            members += [(f"{number}{suffix}.{suffix}", encoded(picture(), kind))]
            members += [(f"{number}{suffix}.json", row.encode())]
    write_tar(tmp_path / "data" / "0.tar", members)
    return tmp_path / "data"


def upright(key) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = int(key[0])
    return ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(picture(), "PNG", exif=exif))))


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_rows_turn_their_images(folder, tmp_path, decoder):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    options = {"normalize_embeddings": False, "autocast": False, "decoder": decoder}
    statistics = ImageStatistics(["width"], orientation="exif-column", decoder=decoder)
    made = Corners(orientation="exif-column", **options)(statistics(dataset))
    assert made.save_metadata(tmp_path / "out").failed == 0
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert len(rows) == 24
    for row in rows:
        expected = Corners.transform(upright(row["key"])).numpy()
        np.testing.assert_allclose(row["image_embedding"], expected, atol=8)  # of 255: JPEG's loss
        assert row["width"] == upright(row["key"]).width
    stored = Corners(**options)(dataset).compute()
    assert {tuple(vector[-2:]) for vector in stored["image_embedding"]} == {(90, 60)}  # the default
    assert (
        Corners(**options)(statistics(dataset)).save_metadata(tmp_path / "out").written == 1
    )  # not the same


def test_a_pipeline_does_it_too(folder):
    reader = ImageReaderStage(orientation="exif-column")
    batches = reader.process(FileGroupTask(data=[str(folder / "0.tar")]))
    shapes = {image.image_id: image.image_data.shape[:2] for batch in batches for image in batch.data}
    assert shapes == {key: upright(key).size[::-1] for key in shapes} and len(shapes) == 24


def test_rows_that_have_no_such_column(folder):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    dataset.metadata = dataset.metadata[["key", "__url__"]]
    with pytest.raises(
        DatasetError, match=r"orientation='exif-column': expected img2dataset's column 'exif'"
    ):
        Corners(orientation="exif-column")(dataset)
    with pytest.raises(ConfigError, match="orientation='upright': expected 'stored' or 'exif-column'"):
        Corners(orientation="upright")
