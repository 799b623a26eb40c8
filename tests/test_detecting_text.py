"""Text that models find in images, against transformers' own processor, model and post-processing."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import skimage.data
import transformers
from colours import ColourReader, read_output, write_tar
from PIL import Image
from safetensors.torch import load_file, save_file
from text_detectors import banner, transformers_text, write_brightness_detector, write_text_detector

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.parquet import read_record
from curator_dask.image.detection import DetectionModel
from curator_dask.image.detection.step import covered
from curator_dask.models import text_detector
from curator_dask.models.detecting import DetectionSpec

pytest.importorskip("cv2", reason="no OpenCV: pip install opencv-python-headless")
pytestmark = pytest.mark.usefixtures("in_this_process", "quiet_transformers")


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    return write_brightness_detector(tmp_path_factory.mktemp("bright"))


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def seen(data):
    """As transformers' pipelines see a file."""
    return transformers.image_utils.load_image(Image.open(io.BytesIO(data)))


def check_row(row, own, image, prefix="detected"):
    quads, scores = own
    boxes = np.array([list(each) for each in row[f"{prefix}_boxes"]]).reshape(-1, 4)
    size = np.array(image.size * 2)
    np.testing.assert_allclose(boxes * size, np.hstack([quads.min(axis=1), quads.max(axis=1)]), atol=1e-3)
    np.testing.assert_allclose(row[f"{prefix}_scores"], scores, atol=1e-5)
    assert row["image_error"] is None and list(row[f"{prefix}_labels"]) == ["text"] * len(scores)
    assert row[f"{prefix}_number"] == len(scores)
    assert row[f"{prefix}_area"] == pytest.approx(covered(boxes))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A shard of banners and photographs of several sizes and forms in a random order, and its members."""
    folder, images = tmp_path_factory.mktemp("pictures"), {}
    for number, size in enumerate([(200, 150), (150, 200), (200, 150), (70, 40)]):
        boxes = [(20, 10 * number + 4, 60, 10 * number + 24)]
        if number != 1:
            boxes.append((90, 60 - 9 * number, 180, 110))
        images[f"{number}.png"] = encoded(banner(size, boxes, turn=17 * number))
    for name in ("astronaut", "coffee"):
        image = Image.fromarray(getattr(skimage.data, name)()).resize((196, 145))
        images[f"{name}.jpg"] = encoded(image, "JPEG", quality=95)
    large = banner((1100, 200), [(100, 50, 600, 90), (700, 120, 1050, 180)])
    images["large.png"] = encoded(large)  # which the processor makes smaller
    turned = Image.Exif()
    turned[0x0112] = 6
    lying = banner((200, 150), [(10, 20, 120, 44)])
    images["turned.jpg"] = encoded(lying, "JPEG", quality=95, exif=turned)
    images["grey.png"] = encoded(lying.convert("L"))
    images["cmyk.jpg"] = encoded(lying.convert("CMYK"), "JPEG", quality=95)
    images["empty.png"] = encoded(banner((200, 150), []))
    images["dot.png"] = encoded(Image.new("RGB", (1, 1), "white"))
    images["thin.png"] = encoded(banner((900, 1), [(300, 0, 700, 1)]))
    order = np.random.default_rng(0).permutation(list(images))
    write_tar(folder / "0.tar", [(name, images[name]) for name in order])
    return folder, {name.partition(".")[0]: seen(data) for name, data in images.items()}


@pytest.mark.parametrize(
    "kind",
    [
        *("bright", "pp_ocrv5_server_det"),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("pp_ocrv5_mobile_det", "pp_ocrv6_small_det", "pp_ocrv6_medium_det")
        ),
    ],
)
def test_what_is_found_is_transformers_own(pictures, bright, tmp_path, kind):
    """Whatever images lie beside one in a batch."""
    folder, images = pictures
    model = bright if kind == "bright" else write_text_detector(tmp_path / kind, kind)
    own = {key: transformers_text(model, image, box_threshold=0.4) for key, image in images.items()}
    assert len({str(quads) for quads, _ in own.values() if len(quads)}) > 5  # a row of another would show
    dataset = DetectionModel(model, threshold=0.4, batch_size=4)(ImageTextPairDataset.from_webdataset(folder))
    rows = {row["key"]: row for row in dataset.compute().to_dict("records")}
    for key, image in images.items():
        check_row(rows[key], own[key], image)
    if kind == "bright":
        assert rows["empty"]["detected_number"] == 0 and list(rows["empty"]["detected_boxes"]) == []
        quads = own["2"][0]
        assert (
            len(quads) == 2 and ((quads[:, 0] != quads[:, 1]).all(axis=1)).all()
        )  # turned, so boxes are hulls


def test_images_longer_than_corners_can_say(bright):
    """transformers gives them as int16, and of a longer image others come back than were found."""
    size = (40000, 64)
    image = banner(size, [(2000, 0, 9000, 64), (34000, 0, 38000, 64)])
    assert transformers_text(bright, image)[0].min() < 0
    found = DetectionSpec(str(bright)).build()([np.asarray(image)], 1)[0]
    assert found.reason is None and len(found.labels) == 2
    # To one pixel of the map, and what a rectangle grows by.
    edges = sorted(found.boxes[:, [0, 2]].tolist())
    np.testing.assert_allclose(edges, [[0.05, 0.225], [0.85, 0.95]], atol=0.03)


def test_in_files_with_vectors_beside_them(pictures, bright, tmp_path):
    folder, images = pictures
    out = tmp_path / "out"
    dataset = ImageTextPairDataset.from_webdataset(folder)
    summary = ColourReader(max_pixels=40_000)(
        DetectionModel(bright, max_pixels=40_000)(dataset)
    ).save_metadata(out)
    assert (summary.rows, summary.failed) == (len(images), 1)
    made = read_record(str(out / "0.parquet"), None).models["detected_boxes"]
    assert made["detection"] == "scores above 0.6 of a map above 0.3, grown by 1.5"
    with pytest.raises(OutputError, match=r"was made with detection scores above 0.6 .*--prefix"):
        DetectionModel(bright, threshold=0.7)(dataset).save_metadata(out)
    retried = ColourReader(max_pixels=1_000_000).retry(out)
    assert (retried.rows, retried.failed) == (1, 0)
    for row in read_output(out).to_pylist():
        check_row(row, transformers_text(bright, images[row["key"]]), images[row["key"]])


def test_nan_and_what_is_missing(bright, tmp_path, monkeypatch):
    folder = shutil.copytree(bright, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["head.conv_final.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    image = np.asarray(banner((64, 64), [(10, 10, 50, 50)]))
    found = DetectionSpec(str(folder)).build()([image], 1)[0]
    assert found.reason.startswith("not finite: the model (float32) gave NaN")
    with pytest.raises(ConfigError, match=r"pp_ocrv5_mobile_det finds its own classes, and takes no prompts"):
        DetectionSpec(str(bright), prompts=("text",)).build()
    with pytest.raises(ConfigError, match=r"has no class 'texts' \(did you mean text"):
        DetectionSpec(str(bright), only=("texts",)).build()
    monkeypatch.setattr(text_detector, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'curator-dask\[ocr\]'"):
        DetectionSpec(str(bright)).build()
