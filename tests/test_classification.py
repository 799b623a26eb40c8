"""Image classification models against timm under Pillow and transformers' own pipeline, in files, runs and retries."""

from __future__ import annotations

import functools
import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
import transformers
from colours import ColourReader, check_colours, image_of, read_output, write_dataset, write_tar
from PIL import Image
from typer.testing import CliRunner

from curator_dask.cache import ENCODERS
from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, ImageError, OutputError, WeightsError
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.image.classifiers import ClassificationModel, ImageClassifier
from curator_dask.image.embedders.making import made_again
from curator_dask.image.statistics import ImageStatistics
from curator_dask.models.classes import ClassNames, activated
from curator_dask.models.precision import most_shift
from curator_dask.models.timm import TimmSpec
from curator_dask.outputs.settings_there import find_settings
from curator_dask.runs import passes
from curator_dask.testing import StepTests

pytestmark = pytest.mark.usefixtures("in_this_process", "quiet_transformers")

SCRIPTS = Path(__file__).parent.parent / "scripts"
SIZE = 64
NAMES = ["cat", "dog", "man", "woman", "18+"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SQUARE = {"height": SIZE, "width": SIZE}


def write_model(folder, kind="ViT", processor=None, seed=3, count=5, names=NAMES, **config):
    """A small model of one of transformers' kinds, whose classes are far apart, with its processor."""
    if kind == "ViT":
        config = {"image_size": SIZE, "patch_size": 16, **SMALL, **config}
    made = getattr(transformers, f"{kind}Config")(num_labels=count, **config)
    made.id2label = dict(enumerate(names)) if names else made.id2label
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForImageClassification")(made)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                values = rng.standard_normal(parameter.shape) / np.sqrt(parameter[0].numel())
                parameter.copy_(torch.from_numpy(2 * values))
    model.eval().save_pretrained(folder)
    (processor or transformers.ViTImageProcessor(size=SQUARE)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """EfficientNet-Lite0 with the weights that know ImageNet's classes."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        from pretrained_efficientnet import write_model_folder
    finally:
        sys.path.remove(str(SCRIPTS))
    return write_model_folder(tmp_path_factory.mktemp("weights") / "lite0")


SIZES = [(320, 240), (241, 323), (67, 64), (500, 375)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A shard of photographs of several sizes, and the images by key."""
    folder, images = tmp_path_factory.mktemp("photographs"), {}
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        for size in SIZES:
            file = io.BytesIO()
            Image.fromarray(getattr(skimage.data, name)()).resize(size).save(file, "PNG")
            images[f"{name}{size[0]}"] = file.getvalue()
    order = np.random.default_rng(0).permutation(list(images))
    write_tar(folder / "0.tar", [(f"{key}.png", images[key]) for key in order])
    return folder, {key: Image.open(io.BytesIO(data)) for key, data in images.items()}


def seen(folder, *arguments, **options):
    """By key, what a model gives of the images of a folder."""
    model = ClassificationModel(*arguments, **options)
    frame = model(ImageTextPairDataset.from_webdataset(folder)).compute()
    assert frame["image_error"].isna().all(), frame["image_error"].dropna().tolist()
    return {row["key"]: row for row in frame.to_dict("records")}


# Against timm and transformers


@functools.cache
def timms_own(folder):
    """timm's model, and its transform."""
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model, create_transform(**resolve_data_config({}, model=model))


@pytest.mark.parametrize(("decoder", "bound"), [("dali", 3e-3), ("pillow", 1e-5)])
def test_imagenet_classes_are_timms(photographs, lite0, decoder, bound):
    from timm.data import ImageNetInfo

    folder, images = photographs
    model, transform = timms_own(lite0)
    with torch.inference_mode():
        expected = {key: model(transform(image)[None])[0].softmax(0).numpy() for key, image in images.items()}
    cats = [281, 282, 285]
    found = seen(
        folder,
        f"local-dir:{lite0}",
        classes={"espresso": "espresso", "suit": 834, "cat": ["tabby", "n02123159", "Egyptian cat"]},
        decoder=decoder,
    )
    assert found.keys() == expected.keys()
    info = ImageNetInfo()
    for key, shares in expected.items():
        row = found[key]
        assert row["label"] == info.index_to_description(int(shares.argmax())), key
        columns = {"score": shares.max(), "espresso": shares[967], "suit": shares[834]}
        columns["cat"] = shares[cats].sum()
        for name, value in columns.items():
            assert row[name] == pytest.approx(value, abs=bound), (key, name)
    assert "cat" in found["chelsea320"]["label"] and found["coffee320"]["espresso"] > 0.3
    assert len({row["label"] for row in found.values()}) > 3  # a row that got another's would show


KINDS = {
    "vit": ("ViT", {}, lambda: transformers.ViTImageProcessor(size=SQUARE)),
    "deit": (
        "DeiT",
        {"image_size": 56, "patch_size": 14, **SMALL},
        lambda: transformers.DeiTImageProcessor(size=SQUARE, crop_size={"height": 56, "width": 56}),
    ),
    "convnext": (
        "ConvNext",
        {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
        lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIZE}),
    ),
    "resnet-squashed": (
        "ResNet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
    ),
    "dinov2": (
        "Dinov2",
        {"image_size": SIZE, "patch_size": 16, "mlp_ratio": 2} | SMALL,
        lambda: transformers.BitImageProcessor(size={"shortest_edge": 73}, crop_size=SIZE),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_those_of_transformers_own_pipeline(photographs, tmp_path, kind):
    folder, images = photographs
    name, config, processor = KINDS[kind]
    model = write_model(tmp_path / "model", name, processor(), **config)
    for backend, decoder, bound in (("pil", "pillow", 1e-5), ("torchvision", "dali", 1e-2)):
        pipeline = transformers.pipeline(
            "image-classification",
            model=str(model),
            image_processor=transformers.AutoImageProcessor.from_pretrained(model, backend=backend),
        )
        expected = {key: pipeline(image) for key, image in images.items()}
        found = seen(
            folder, model, classes={"cat": "cat", "person": ["man", "woman"]}, decoder=decoder, prefix="p_"
        )
        for key, told in expected.items():
            shares = {each["label"]: each["score"] for each in told}
            assert found[key]["p_score"] == pytest.approx(told[0]["score"], abs=bound)
            assert found[key]["p_cat"] == pytest.approx(shares["cat"], abs=bound)
            assert found[key]["p_person"] == pytest.approx(shares["man"] + shares["woman"], abs=bound)
            assert shares[found[key]["p_label"]] == pytest.approx(told[0]["score"], abs=bound)
    assert len({round(row["p_score"], 3) for row in found.values()}) > 8


def test_several_labels_and_one_output(photographs, tmp_path):
    folder, images = photographs
    multi = write_model(tmp_path / "multi", problem_type="multi_label_classification")
    one = write_model(tmp_path / "one", count=1, names=["nsfw"])
    rated = write_model(tmp_path / "rated", count=1, names=None, problem_type="regression")
    for model in (multi, one, rated):
        pipeline = transformers.pipeline(
            "image-classification",
            model=str(model),
            image_processor=transformers.AutoImageProcessor.from_pretrained(model, backend="pil"),
        )
        found = seen(folder, model, decoder="pillow")
        for key, image in images.items():
            told = pipeline(image)[0]
            assert found[key]["label"] == told["label"]
            assert found[key]["score"] == pytest.approx(told["score"], abs=1e-5)
    assert min(row["score"] for row in found.values()) < 0  # what is rated is no probability
    both = seen(folder, multi, classes={"dog": "dog", "cat": "cat"}, label=False)
    assert "label" not in next(iter(both.values()))
    logits = seen(folder, multi, classes={"dog": 1}, activation="none")
    for key, row in both.items():
        assert row["dog"] == pytest.approx(1 / (1 + np.exp(-logits[key]["dog"])), abs=1e-5)
    with pytest.raises(ConfigError, match=r"'sigmoid' \(that of the model\).*no shares that can be added up"):
        seen(folder, multi, classes={"person": ["man", "woman"]})
    with pytest.raises(ConfigError, match="has one output, whose share would always be 1"):
        seen(folder, one, activation="softmax")


def test_a_repository_that_lies_in_a_folder(photographs, vit, tmp_path):
    shutil.copytree(vit, tmp_path / "models" / "org" / "repo")
    found = seen(photographs[0], "org/repo", model_dir=tmp_path / "models")
    assert found == seen(photographs[0], vit)


# Names


def test_unknown_classes_are_refused_before_an_image_is_read(photographs, vit, monkeypatch):
    monkeypatch.setattr(passes, "read_images", None)
    for given, message in (
        ("Cat", r"no class 'Cat' \(did you mean cat\?\)\. It has cat; dog; man; woman; 18\+"),
        ("womann", r"\(did you mean woman or man\?\)"),
        (5, "no class 5"),
        (["man", 2], "one class of .* is given twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            seen(photographs[0], vit, classes={"x": given})
    with pytest.raises(ConfigError, match=r"expected 5 names, one for each class of .*, found 2"):
        seen(photographs[0], vit, class_names=["a", "b"])


def test_names_of_timms_models():
    of = ClassNames.of_timm
    assert of({"num_classes": 3}, 3).names == ("class_0", "class_1", "class_2")
    assert of({"num_classes": 2, "label_names": ["NSFW", "SFW"]}, 2).names == ("NSFW", "SFW")
    assert of({"label_names": {"1": "b", "0": "a"}}, 3).names == ("a", "b", "class_2")
    told = of({"label_names": ["n1", "n2"], "label_descriptions": {"n1": "one", "n2": "two"}}, 2)
    assert told.names == ("one", "two") and told.find("n2", "x", "m") == told.find("two", "x", "m") == 1
    net = of({"num_classes": 1000}, 1000)
    assert net.find("tench", "x", "m") == net.find("n01440764", "x", "m") == net.find("0", "x", "m") == 0
    with pytest.raises(ConfigError, match=r"several classes named 'crane': .* 134, 517"):
        net.find("crane", "x", "m")
    # A head of another size than the configuration's is none of ImageNet's.
    assert of({"num_classes": 10}, 1000).names[7] == "class_7"


def test_what_may_have_been_meant():
    net = ClassNames.of_timm({"num_classes": 1000}, 1000)
    for given in ("tabbby", "Tabby", "tabby cat", "TABBY CATS"):
        with pytest.raises(
            ConfigError, match=r"\(did you mean 'tabby, tabby cat'\?\)\. It has tench"
        ) as told:
            net.find(given, "x", "m")
        assert str(told.value).count(";") == 12 and "and 988 more (curator-dask classify --list" in str(
            told.value
        )
    with pytest.raises(ConfigError, match=r"did you mean 'Egyptian cat'\?"):
        net.find("egyptian cat", "x", "m")
    with pytest.raises(ConfigError, match=r"no class 'qqqq'\. It has tench"):
        net.find("qqqq", "x", "m")


def test_what_outputs_come_to():
    logits = np.array([[1000.0, 999.0, -1000.0], [-1000.0, 0.0, 0.0]], np.float32)
    assert activated(logits, "softmax")[0] == pytest.approx([0.7310586, 0.2689414, 0])
    assert activated(logits, "sigmoid")[1] == pytest.approx([0, 0.5, 0.5])
    assert activated(logits, "none") is logits


def test_half_precision_is_measured_by_what_probabilities_can_lose():
    rng = torch.Generator().manual_seed(0)
    full = torch.randn((4, 7), generator=rng) * 3
    half = full + torch.randn((4, 7), generator=rng) * 1e-2
    bound = most_shift(half, full)
    for activation in (lambda x: x.softmax(1), torch.sigmoid):
        assert 0 < float((activation(half) - activation(full)).abs().max()) <= bound
    assert most_shift(full, full) == 0
    assert most_shift(full, torch.full_like(full, float("nan"))) == float("inf")


def test_wrong_arguments(tmp_path, vit):
    for arguments, message in (
        ({"activation": "relu"}, "activation='relu'.*expected one of auto"),
        ({"label": False}, "nothing is left to be made"),
        ({"classes": {"score": "cat"}}, "'score' is not free"),
        ({"classes": {"image_error": "cat"}}, "'image_error' is not free"),
        ({"classes": {"x": []}}, r"classes\['x'\]=\[\]"),
        ({"classes": ["cat"]}, "expected classes by column"),
        ({"decoder": "opencv"}, "decoder='opencv'"),
        ({"batchsize": 3}, r"no argument 'batchsize' \(did you mean batch_size.*There are model_name"),
        ({"class_names": tmp_path / "none.txt"}, "--class-names"),
        ({"pretrained": False}, "is transformers' and does not take pretrained"),
    ):
        with pytest.raises(ConfigError, match=message):
            ClassificationModel(vit, **arguments)
    with pytest.raises(ConfigError, match="named local-dir:"):
        ClassificationModel(tmp_path)
    with pytest.raises(ConfigError, match="model_dir"):
        ClassificationModel("resnet50", model_dir="x")


LABELS = {
    "gaps": {"0": "a", "2": "b", "5": "c", "7": "d", "9": "e"},
    "few": {"0": "a", "1": "b", "2": "c"},
    "many": {str(number): f"c{number}" for number in range(7)},
    "no names": None,
}
NULLS = ("do_resize", "do_rescale", "size", "resample", "rescale_factor", "image_mean", "image_std")


def broken(vit, folder, kind):
    shutil.copytree(vit, folder)
    config = json.loads((folder / "config.json").read_text())
    if kind == "no classifier":
        model = transformers.ViTModel.from_pretrained(folder)
        model.save_pretrained(folder)
    elif kind == "layers":
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    elif kind == "type":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    elif kind == "timm":
        (folder / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
    elif kind in LABELS:
        edited = {**config, "id2label": LABELS[kind]}
        del edited["label2id"]
        if LABELS[kind] is None:
            del edited["id2label"]
        (folder / "config.json").write_text(json.dumps(edited))
    elif kind.startswith("null "):
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), kind.removeprefix("null "): None}))
    elif kind == "processor":
        transformers.EfficientNetImageProcessor(size=SQUARE).save_pretrained(folder)
    elif kind == "size":
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    elif kind == "no processor":
        (folder / "preprocessor_config.json").unlink()
    elif kind == "crop":
        transformers.ConvNextImageProcessor(size=SQUARE).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("no classifier", WeightsError, "lack 2 tensors of ViTForImageClassification: classifier.bias"),
        ("layers", WeightsError, "tensors that its config.json does not have: .*layer"),
        ("type", ConfigError, "model_type 'bert', which is none of transformers' that classify"),
        ("timm", ConfigError, "is timm's, of the architecture 'resnet50': write hf-hub:"),
        ("processor", ConfigError, "image_processor_type is 'EfficientNetImageProcessor'; expected one of"),
        ("size", ConfigError, r"does not take images of \[32, 32\] pixels"),
        ("no processor", ConfigError, r"expected a preprocessor_config\.json"),
        ("crop", ConfigError, "size is .*shortest_edge"),
        ("gaps", ConfigError, r"0 to 4; found 5, 7, 9, and none for 1, 3, 4"),
        (
            "few",
            WeightsError,
            r"bias \(expected \[3\], found \[5\]\).* has 3 classes .* weights have 5: id2label",
        ),
        ("many", WeightsError, r"has 7 classes .* weights have 5: id2label"),
        ("no names", WeightsError, r"has 2 classes .* weights have 5: id2label"),
        *((f"null {name}", ConfigError, f"preprocessor_config.json: {name} is null") for name in NULLS),
    ],
)
def test_models_that_cannot_be_used(vit, tmp_path, kind, error, message):
    from curator_dask.models.auto_classifier import AutoClassifier

    with pytest.raises(error, match=message):
        AutoClassifier(str(broken(vit, tmp_path / "model", kind))).build_logits()


def test_a_head_that_timm_would_leave_random_is_refused(tmp_path):
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    name = "test_resnet.r160_in1k"
    save_for_hf(timm.create_model(name, num_classes=4), tmp_path / "four", model_config={"num_classes": 4})
    torch.save(timm.create_model(name, num_classes=7).state_dict(), tmp_path / "seven.pth")
    model = f"local-dir:{tmp_path / 'four'}"
    seven = {"model_kwargs": {"num_classes": 7}}
    message = (
        r"num_classes is 7 .*--model-kwargs.* have a head of 4 classes.*checkpoint_path \(--checkpoint\)"
    )
    with pytest.raises(ConfigError, match=message):
        ClassificationModel(model, **seven).spec.build()
    with pytest.raises(ConfigError, match=message):
        TimmSpec.of(model, True, None, seven["model_kwargs"], output="logits").build()
    TimmSpec.of(model, True, None, seven["model_kwargs"]).build().close()  # has no head
    for given, count in (({}, 4), ({**seven, "checkpoint_path": tmp_path / "seven.pth"}, 7)):
        made = ClassificationModel(model, **given).spec.build()
        assert len(made.names) == made.encoder.dim == count
        made.close()


# In files, runs and retries


@pytest.fixture
def data(tmp_path):
    """Rows and samples in two random orders, each image of its own colour, and two that cannot be used."""
    write_dataset(tmp_path / "data", bad={"000010004": b"<html>", "000020001": b""})
    return tmp_path / "data"


def by_key(vit, keys):
    """What transformers makes of the image of each key, with the classes' names."""
    pipeline = transformers.pipeline(
        "image-classification",
        model=str(vit),
        image_processor=transformers.AutoImageProcessor.from_pretrained(vit, backend="pil"),
    )
    return {key: pipeline(Image.open(io.BytesIO(image_of(key)))) for key in keys}


def check_rows(table, vit):
    expected = by_key(vit, table["key"].to_pylist())
    assert len({round(each[0]["score"], 3) for each in expected.values()}) > 5  # a row of another would show
    for row in table.to_pylist():
        if row["image_error"] is not None:
            assert row["label"] is row["score"] is row["person"] is None
            continue
        shares = {each["label"]: each["score"] for each in expected[row["key"]]}
        assert row["label"] == expected[row["key"]][0]["label"]
        assert row["score"] == pytest.approx(expected[row["key"]][0]["score"], abs=1e-4)
        assert row["person"] == pytest.approx(shares["man"] + shares["woman"], abs=1e-4)


def test_one_pass_with_vectors_and_statistics(data, vit, tmp_path, monkeypatch):
    read = []
    plain = passes.read_images
    monkeypatch.setattr(
        passes, "read_images", lambda *given, **named: read.append(1) or plain(*given, **named)
    )
    dataset = ImageTextPairDataset.from_webdataset(data)
    person = {"person": ["man", "woman"]}

    def made(**more):
        model = ClassificationModel(vit, classes=person | more)
        return ColourReader()(model(ImageStatistics(["phash"])(dataset)))

    summary = made().save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed, len(read)) == (30, 2, 3)  # each shard is read once
    table = read_output(tmp_path / "out")
    assert table.schema.field("label").type == pa.string() and table["phash"].null_count == 2
    assert table.schema.field("score").type == table.schema.field("person").type == pa.float32()
    assert table["image_error"].null_count == 28
    errors = dict(zip(table["key"].to_pylist(), table["image_error"].to_pylist(), strict=True))
    assert errors["000010004"].startswith("not an image") and errors["000020001"].startswith("empty")
    check_rows(table, vit)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), ["000010004", "000020001"])
    assert made().save_metadata(tmp_path / "out").skipped == 3 and len(read) == 3
    # A further class is computed; vectors and statistics are taken over.
    monkeypatch.setattr(ColourReader, "load_embedding_model", lambda self, device: NoVectors())
    more = made(dog="dog").save_metadata(tmp_path / "out")
    assert (more.written, more.failed, len(read)) == (3, 2, 6)
    again = read_output(tmp_path / "out")
    assert again["image_embedding"].equals(table["image_embedding"]) and again["dog"].null_count == 2
    assert again["person"].equals(table["person"])


class NoVectors(torch.nn.Module):
    """Would be seen if it made one."""

    def forward(self, images):
        return images.mean(dim=(2, 3)) * 255 if len(images) <= 2 else images.mean(dim=(2, 3)) * 0


def test_added_to_an_output_that_has_vectors(data, vit, tmp_path):
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"
    ColourReader()(dataset).save_metadata(out)
    before = read_output(out)
    model = ClassificationModel(vit, classes={"person": ["man", "woman"]})
    assert model(dataset).save_metadata(out).written == 3
    table = read_output(out)
    assert table.select(before.column_names).equals(before)
    check_rows(table, vit)
    ImageStatistics(["phash"])(dataset).save_metadata(out)
    other = write_model(tmp_path / "other", seed=9)
    second = ClassificationModel(other, prefix="b_", label=False, classes={"dog": "dog"})
    assert second(dataset).save_metadata(out).written == 3
    both = read_output(out)
    assert both.select(table.column_names).equals(table) and both["b_dog"].null_count == 2
    assert both["phash"].null_count == 2
    for made in (ColourReader(), model, second):  # each finds its own finished, whatever came after
        assert made(dataset).save_metadata(out).skipped == 3
    # What a file says of its columns.
    record = read_record(str(out / "00000.parquet"), None)
    told = record.models["label"]
    assert told["model"].startswith("ViTForImageClassification") and told["weights"].startswith("sha256:")
    assert told["transform"]["size"] == [SIZE, SIZE] and told["activation"] == "softmax"
    assert told["classes"].startswith("5 [") and record.scores["person"]["classes"] == "man + woman"
    # Another model, or other classes, under names that are taken.
    with pytest.raises(OutputError, match=r"column 'label' was made with.*prefix \(--prefix\)"):
        ClassificationModel(other)(dataset).save_metadata(out)
    with pytest.raises(OutputError, match=r"column 'person' is of other classes \(man \+ woman\).* has dog"):
        ClassificationModel(vit, classes={"person": "dog"})(dataset).save_metadata(out)
    ClassificationModel(other)(dataset).save_metadata(out, overwrite=True)
    assert not read_output(out)["score"].equals(both["score"])
    assert read_output(out)["image_embedding"].equals(before["image_embedding"])
    # Vectors that are made anew leave the classes as they are.
    ColourReader(normalize_embeddings=True)(dataset).save_metadata(out, overwrite=True)
    assert read_output(out)["b_dog"].equals(both["b_dog"])


def test_columns_that_a_run_replaces_lack_nothing(tmp_path, vit):
    """Beside columns of another run, which stay."""
    write_dataset(tmp_path / "data", shards=1)
    dataset, out = ImageTextPairDataset.from_webdataset(tmp_path / "data"), tmp_path / "out"
    ClassificationModel(vit, classes={"person": ["man", "woman"]})(dataset).save_metadata(out)
    ClassificationModel(vit, classes={"other": "dog"}, label=False)(dataset).save_metadata(out)
    before = read_output(out)
    model = ClassificationModel(vit, classes={"person": "woman"})
    summary = model(dataset).save_metadata(out, overwrite=True)
    assert (summary.written, summary.not_made) == (1, {}) and "of other runs" not in str(summary)
    again = model(dataset).save_metadata(out)
    assert (again.skipped, again.not_made) == (1, {})
    table = read_output(out)
    assert table["other"].equals(before["other"]) and not table["person"].equals(before["person"])
    told = by_key(vit, table["key"].to_pylist())
    shares = {key: {each["label"]: each["score"] for each in one} for key, one in told.items()}
    for row in table.to_pylist():
        assert row["person"] == pytest.approx(shares[row["key"]]["woman"], abs=1e-4)


class Blue(ImageClassifier):
    """A head that gives the last value of vectors."""

    def __init__(self):
        super().__init__("blue", pred_column="blue", embedding_size=3)

    def load_model(self, device):
        return lambda vectors: vectors[:, 2]


@pytest.mark.parametrize("in_place", [False, True])
def test_scores_that_a_run_makes_anew_lack_nothing(tmp_path, vit, in_place):
    """Nor those that it reads from the dataset's own files, beside the vectors that they are of."""
    write_dataset(tmp_path / "data", shards=1)
    out = tmp_path / ("data" if in_place else "out")

    def save(*steps, **given):
        rows = ImageTextPairDataset.from_webdataset(tmp_path / "data")
        for step in steps:
            rows = step(rows)
        return rows.save_metadata(None if in_place else out, **given)

    save(ColourReader(), Blue())
    made = pq.read_table(out / "00000.parquet")
    assert save(ClassificationModel(vit)).not_made == {}
    beside = pq.read_table(out / "00000.parquet")
    assert beside["blue"].equals(made["blue"])
    assert "lacking" not in read_record(str(out / "00000.parquet"), None).scores["blue"]
    summary = save(ColourReader(normalize_embeddings=True), Blue(), overwrite=True)
    assert (summary.written, summary.not_made) == (1, {})
    again = pq.read_table(out / "00000.parquet")
    assert again["label"].equals(beside["label"])
    lasts = [vector[2] for vector in again["image_embedding"].to_pylist()]
    assert again["blue"].to_pylist() == lasts != made["blue"].to_pylist()
    # Of vectors that are made without it.
    (fact,) = save(ColourReader(), overwrite=True).not_made.values()
    assert fact["examples"] == ["blue"]
    table, changed = pq.read_table(out / "00000.parquet"), [each > 0 for each in lasts]
    assert table["image_embedding"].equals(made["image_embedding"]) and sum(changed) == 9
    lacking = [each is None for each in table["blue"].to_pylist()]
    assert lacking == (changed if in_place else [True] * 10)
    assert table["label"].equals(beside["label"])


def test_classes_are_the_same_by_whatever_name(tmp_path, vit):
    write_dataset(tmp_path / "data", shards=2, samples=4)
    dataset, out = ImageTextPairDataset.from_webdataset(tmp_path / "data"), tmp_path / "out"
    names = ["cat, tom", "dog", "man", "woman", "18+"]

    def save(person, cat, **given):
        model = ClassificationModel(vit, classes={"person": person, "cat": cat}, class_names=names)
        return model(dataset).save_metadata(out, **given)

    assert save(["man", "woman"], "cat, tom").written == 2
    before = read_output(out)
    for person, cat in ((["woman", "man"], "cat"), ([3, "man"], 0), (["2", "3"], "0")):
        summary = save(person, cat)
        assert (summary.skipped, summary.written) == (2, 0), (person, cat)
    with pytest.raises(
        OutputError, match=r"'person' is of other classes \(man \+ woman\); this run has 3 \+ 1"
    ):
        save([3, 1], "cat")
    with pytest.raises(OutputError, match=r"'cat' is of other classes \(cat, tom\); this run has 1"):
        save(["woman", "man"], 1)
    # Names that have come to stand for other classes.
    names[:] = ["dog", "cat, tom", "man", "woman", "18+"]
    with pytest.raises(OutputError, match="'label' was made with classes"):
        save(["man", "woman"], "cat")
    names[:] = ["cat, tom", "dog", "man", "woman", "18+"]
    # A retry takes what is the same, too, and nothing else.
    for number in (0, "cat"):
        model = ClassificationModel(vit, classes={"person": [3, 2], "cat": number}, class_names=names)
        assert model.retry(out).rows == 0
    assert read_output(out).equals(before)


def test_files_of_before_have_the_names_of_classes_alone(tmp_path, vit):
    write_dataset(tmp_path / "data", shards=1)
    dataset, out = ImageTextPairDataset.from_webdataset(tmp_path / "data"), tmp_path / "out"

    def save(person):
        return ClassificationModel(vit, classes={"person": person})(dataset).save_metadata(out)

    save(["man", "woman"])
    path = str(out / "00000.parquet")
    table, record = pq.read_table(path), read_record(path, None)
    scores = {name: {**said, "made_by": dict(said["made_by"])} for name, said in record.scores.items()}
    for said in scores.values():
        del said["made_by"]["chosen"]
    read_by = {name: how.replace(how.split()[0], "0123456789ab", 1) for name, how in record.read_by.items()}
    write_table(path, table, replace(record, scores=scores, read_by=read_by, fingerprint="before"))
    with pytest.raises(OutputError, match=r"'person' is of other classes \(man \+ woman\); this run has dog"):
        save("dog")
    assert save(["man", "woman"]).written == 1 and save([2, 3]).skipped == 1
    assert read_output(out).equals(table.replace_schema_metadata(None))


@pytest.mark.parametrize("by_retry", [False, True])
def test_a_shard_that_has_more_samples_now(tmp_path, vit, by_retry):
    """What one of two models has not seen is null and says so, until that is run again, or retried."""
    write_dataset(tmp_path / "data", shards=2, samples=4)
    out = tmp_path / "out"
    model = ClassificationModel(vit, classes={"person": ["man", "woman"]})

    def save(step):
        return step(ImageTextPairDataset.from_webdataset(tmp_path / "data")).save_metadata(out)

    save(ColourReader())
    save(model)
    write_dataset(tmp_path / "data", shards=1, samples=6)
    assert save(ColourReader()).written == 1
    table = read_output(out)
    assert (len(table), table["label"].null_count, table["person"].null_count) == (10, 6, 6)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    errors = [error for error in table["image_error"].to_pylist() if error is not None]
    assert len(errors) == 6 and all(error.startswith("[label] not made: ") for error in errors)
    assert not any("; [" in error for error in errors)  # once, not of each column
    again = made_again(find_settings(str(out))["label"])
    summary = again.retry(out) if by_retry else save(model)
    assert (summary.written, summary.failed) == (1, 0)
    table = read_output(out)
    assert table["label"].null_count == 0 and table["image_error"].null_count == 10
    check_rows(table, vit)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert save(ColourReader()).skipped == 2
    assert by_retry or save(model).skipped == 2


def test_the_datasets_own_columns_are_not_lost(tmp_path, vit):
    write_dataset(tmp_path, shards=1)
    path = tmp_path / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("label", pa.array(["mine"] * len(table))), path)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    with pytest.raises(ConfigError, match=r"its own named \['label'\], which would be lost.*--prefix"):
        ClassificationModel(vit)(dataset)
    model = ClassificationModel(vit, prefix="seen_")
    model(dataset).save_metadata()  # into the dataset's own files
    made = pq.read_table(path)
    assert set(made["label"].to_pylist()) == {"mine"} and made["seen_label"].null_count == 0
    again = ImageTextPairDataset.from_webdataset(tmp_path)
    model(again).save_metadata()
    assert pq.read_table(path)["seen_score"].equals(made["seen_score"])


@pytest.mark.parametrize("with_vectors", [False, True])
def test_a_retry_mends_the_classes(tmp_path, vit, with_vectors):
    """Images of 28 by 20 pixels fail at first, of 24 by 20 not."""
    write_dataset(tmp_path / "data", shards=2, samples=5, key="{shard:05d}{sample:04d}")
    wide = [f"w{'x' * number}{number:04d}" for number in range(4)]
    write_tar(tmp_path / "data" / "00002.tar", [(f"{key}.png", image_of(key)) for key in wide])
    table = pa.table({"key": wide, "caption": wide, "width": [24] * 4})
    pq.write_table(table, tmp_path / "data" / "00002.parquet")
    dataset, out = ImageTextPairDataset.from_webdataset(tmp_path / "data"), tmp_path / "out"

    def made(max_pixels):
        model = ClassificationModel(vit, classes={"person": ["man", "woman"]}, max_pixels=max_pixels)
        done = model(ImageStatistics(["phash"], max_pixels=max_pixels)(dataset))
        return ColourReader(max_pixels=max_pixels)(done) if with_vectors else done

    first = made(20 * 26).save_metadata(out)
    assert 0 < first.failed < first.rows
    before = read_output(out)
    assert before["label"].null_count == before["phash"].null_count == first.failed
    if with_vectors:
        summary = ColourReader(max_pixels=1000).retry(out)
    else:
        (settings,) = find_settings(str(out)).values()
        summary = made_again({**settings, "max_pixels": 1000}).retry(out)
    assert (summary.rows, summary.failed) == (first.failed, 0)
    after = read_output(out)
    assert after["label"].null_count == after["phash"].null_count == 0 == summary.failed
    assert after["image_error"].null_count == len(after)
    check_rows(after, vit)
    good = before["image_error"].is_null()
    assert after.filter(good).equals(before.filter(good))
    assert made(20 * 26).save_metadata(out).skipped == 3  # that is finished


def test_why_classes_are_lacking_is_said_once(tmp_path, vit):
    """Not of each of the model's columns: in one pass with vectors, after them, and before them."""
    write_dataset(tmp_path / "data", shards=1, samples=6)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    classifies, embeds = ClassificationModel(vit, max_pixels=20 * 26), ColourReader()
    told = []
    for number, order in enumerate((None, (embeds, classifies), (classifies, embeds))):
        out = tmp_path / f"{number}"
        for step in order or [lambda rows: embeds(classifies(rows))]:
            step(dataset).save_metadata(out)
        table = read_output(out)
        told.append(dict(zip(table["key"].to_pylist(), table["image_error"].to_pylist(), strict=True)))
        said = [error for error in told[-1].values() if error is not None]
        assert len(said) == table["label"].null_count == table["score"].null_count > 0
        assert all(error.startswith("[label] too large") and "; [" not in error for error in said)
        assert ClassificationModel(vit, max_pixels=1000).retry(out).failed == 0
        assert read_output(out)["image_error"].null_count == len(table)
    assert told[0] == told[1] == told[2]


def test_a_retry_without_the_model_says_so(tmp_path, vit, said):
    """What mended rows lack is told, and made by the same classification again."""
    model = shutil.copytree(vit, tmp_path / "model")
    write_dataset(tmp_path / "data", shards=1, samples=6)
    dataset, out = ImageTextPairDataset.from_webdataset(tmp_path / "data"), tmp_path / "out"
    classifies = ClassificationModel(model, max_pixels=20 * 26)
    ColourReader(max_pixels=20 * 26)(classifies(dataset)).save_metadata(out)
    assert read_output(out)["label"].null_count > 0
    write_model(model, seed=11)
    ENCODERS.clear()  # as in another process
    ColourReader(max_pixels=1000).retry(out)
    assert "no label, score of the rows that are tried again" in said.text
    lacking = read_output(out)["label"].null_count
    assert lacking and read_output(out)["image_embedding"].null_count == 0
    shutil.copytree(vit, model, dirs_exist_ok=True)
    ENCODERS.clear()
    classifies = ClassificationModel(model)
    assert classifies(dataset).save_metadata(out).written == 1
    assert read_output(out)["label"].null_count == 0


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "config.json"])
def test_a_model_whose_files_change_between_two_runs_of_a_process(tmp_path, vit, name):
    """It is loaded anew, as another process would: what there is was made with another."""
    model, out = shutil.copytree(vit, tmp_path / "model"), tmp_path / "out"
    processor = transformers.ViTImageProcessor(size=SQUARE, image_mean=[0.1] * 3)
    other = write_model(tmp_path / "other", processor=processor, seed=11, names=NAMES[::-1])
    write_dataset(tmp_path / "data", shards=1)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    made = ClassificationModel(model, classes={"person": ["man", "woman"]})(dataset)
    assert (made.save_metadata(out).written, made.save_metadata(out).skipped) == (1, 1)
    check_rows(read_output(out), vit)
    shutil.copy(other / name, model / name)
    with pytest.raises(OutputError, match="column 'label' was made with"):
        made.save_metadata(out)
    check_rows(read_output(out), vit)
    assert made.save_metadata(out, overwrite=True).written == 1
    check_rows(read_output(out), model)
    with pytest.raises(AssertionError):
        check_rows(read_output(out), vit)
    assert made.save_metadata(out).skipped == 1


def test_statistics_take_the_place_of_no_class(data, vit, tmp_path):
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"
    ClassificationModel(vit, classes={"height": "cat", "dog": "dog"}, label=False)(dataset).save_metadata(out)
    before = read_output(out)
    heights = ImageStatistics(["height"])(dataset)
    with pytest.raises(
        OutputError, match=r"'height' was made by .*, and image statistics would.*another name"
    ):
        heights.save_metadata(out)
    assert read_output(out).equals(before)
    ImageStatistics(["height"], prefix="image_")(dataset).save_metadata(out)
    assert read_output(out).select(before.column_names).equals(before)
    assert heights.save_metadata(out, overwrite=True).written == 3
    after = read_output(out)
    assert after.schema.field("height").type == pa.int32() and after["dog"].equals(before["dog"])
    assert heights.save_metadata(out).skipped == 3
    with pytest.raises(OutputError, match="has a column 'height' that no model has made"):
        ClassificationModel(vit, classes={"height": "cat"}, label=False)(dataset).save_metadata(out)


def test_a_model_that_gives_no_numbers(data, vit, tmp_path):
    model = shutil.copytree(vit, tmp_path / "model")
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"][2] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    dataset = ImageTextPairDataset.from_webdataset(data)
    ClassificationModel(model)(ColourReader()(dataset)).save_metadata(tmp_path / "out")
    table = read_output(tmp_path / "out")
    assert table["label"].null_count == table["score"].null_count == 30
    assert table["image_embedding"].null_count == 2
    errors = dict(zip(table["key"].to_pylist(), table["image_error"].to_pylist(), strict=True))
    assert errors["000000000"].startswith("[label] not finite: the model (float32) gave NaN")
    assert errors["000010004"].startswith("not an image")
    for made, reason in ((model, "not finite"), (vit, "not an image|empty")):
        one_shard = dataset.filter("key < '000010000'") if made is model else dataset
        with pytest.raises(ImageError, match=rf"image of key='.*': ({reason}).*on_error='null'"):
            ClassificationModel(made, on_error="raise")(one_shard).compute()


def test_it_is_made_again_from_its_settings(vit, tmp_path):
    model = ClassificationModel(
        vit, classes={"person": ["man", 3]}, class_names=["a", "man", "c", "d", "e"], gray16="pillow"
    )
    again = made_again(json.loads(json.dumps(model.settings())))
    assert isinstance(again, ClassificationModel) and again.settings() == model.settings()
    assert again.step("key") == model.step("key")
    timms = ClassificationModel("test_vit", pretrained=False, model_kwargs={"num_classes": 3})
    assert made_again(json.loads(json.dumps(timms.settings()))).spec == timms.spec
    assert timms.class_list() == ("class_0", "class_1", "class_2")


class TestStep(StepTests):
    @pytest.fixture
    def step(self, frame, vit):
        return ClassificationModel(vit, classes={"dog": "dog"})(self.dataset)._steps[-1]

    @pytest.fixture
    def frame(self, data):
        self.dataset = ImageTextPairDataset.from_webdataset(data)
        return self.dataset.compute()


# By command, on a cluster, in a recipe


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_command(data, vit, client, tmp_path):
    """On two workers, into an output that has vectors already."""
    out, at = tmp_path / "out", ["--scheduler-address", client.scheduler.address]
    assert run("embed", data, out, "--model", "test_vit", "--no-pretrained", *at).exit_code == 0
    before = read_output(out)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["cat", "dog", "man", "lady", "adult"]) + "\n")
    command = ["classify", data, out, "--model", vit, "--class", "person=man+lady", *at]
    command += ["--class-names", names, "--json", tmp_path / "told.json"]
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["rows"], told["failed"], told["written"]) == (30, 2, 3) and "column" not in told
    table = read_output(out)
    assert table["image_embedding"].equals(before["image_embedding"])
    labels = {*table["label"].to_pylist()}
    assert "lady" in labels and labels.isdisjoint({"woman", "18+"})
    half = float(np.median(table["person"].drop_null()))
    assert run(*command).exit_code == 0
    assert json.loads((tmp_path / "told.json").read_text())["skipped"] == 3
    assert run("retry", out, *at).exit_code == 0  # of both models; what failed fails again
    wrong = run("classify", data, out, "--model", vit, "--class", "x=cats", *at)
    assert wrong.exit_code == 2 and "did you mean cat?" in " ".join(wrong.stderr.split())
    kept = run("filter", out, "--where", f"person > {half}")
    assert kept.exit_code == 0 and "14 of 30 rows" in kept.output


def test_the_commands_list_and_wrong_use(vit):
    listed = run("classify", "--model", vit, "--list")
    assert listed.exit_code == 0 and listed.stdout.splitlines() == NAMES
    for arguments in (["--model", vit], ["a", "b", "--model", vit, "--class", "x"], ["a", "b"]):
        assert run("classify", *arguments).exit_code == 2


def test_in_a_recipe(data, vit, tmp_path):
    frame = ClassificationModel(vit, classes={"dog": "dog"})(
        ImageTextPairDataset.from_webdataset(data)
    ).compute()
    half = float(frame["dog"].median())
    (tmp_path / "recipe.yaml").write_text(
        f"classify:\n- model_name: {vit}\n  classes: {{dog: dog}}\nwhere: dog < {half}\n"
    )
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    summary = curate(data, tmp_path / "out", recipe)
    rows = read_output(tmp_path / "out" / "embeddings").to_pylist()
    wanted = {row["key"] for row in rows if row["dog"] is not None and row["dog"] < half}
    assert summary.kept == len(wanted) == 14
    assert {row["key"] for row in read_output(tmp_path / "out" / "passing").to_pylist()} == wanted
    assert (summary.rows, summary.failed) == (30, 2)
    with pytest.raises(ConfigError, match=r"classify=.*expected a list of models"):
        Recipe(classify={"model_name": "x"})
    with pytest.raises(ConfigError, match=r"classify: .*model_name"):
        Recipe(classify=[{"prefix": "x"}])
    with pytest.raises(ConfigError, match="there is no column 'dogs'"):
        curate(data, tmp_path / "new", Recipe(classify=recipe.classify, top={"dogs": 0.5}))
