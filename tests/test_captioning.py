"""Captions that models make against transformers' own pipeline and generate, in files, runs and retries."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
import transformers
from captioners import KINDS, write_captioner
from colours import ColourReader, read_output, write_dataset, write_tar
from PIL import Image
from texts import make_pair
from typer.testing import CliRunner

from curator_dask.cache import ENCODERS
from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, ImageError, OutputError, WeightsError
from curator_dask.frames.parquet import read_record
from curator_dask.image.captioning import CaptionModel
from curator_dask.image.classifiers import score_output
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.image.embedders.making import made_again
from curator_dask.image.statistics import ImageStatistics
from curator_dask.models import by_shape, captioner
from curator_dask.models.captioning import CaptionSpec
from curator_dask.outputs.settings_there import find_settings
from curator_dask.runs import passes
from curator_dask.testing import StepTests
from curator_dask.text import ClipScore, ClipTextEmbedder, TextStatistics

pytestmark = pytest.mark.usefixtures("in_this_process", "quiet_transformers")

ASKED = "describe it"
#: Prompts of each kind.
PROMPTS = {
    **dict.fromkeys(("blip", "blip-2", "git"), (None, "a photo of")),
    "vit-gpt2": (None,),
    **dict.fromkeys(("llava", "qwen2-vl"), (ASKED,)),
    "paligemma": ("describe it",),
}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return write_captioner(tmp_path_factory.mktemp("llava"), "llava")


@functools.lru_cache(1)
def loaded_by_transformers(folder, kind):
    """Its pipeline, or the model with its tokenizer and what prepares images."""
    if kind in ("llava", "qwen2-vl", "paligemma"):
        return transformers.pipeline("image-text-to-text", model=str(folder))
    prepares = transformers.AutoImageProcessor if kind == "vit-gpt2" else transformers.AutoProcessor
    kinds = transformers.AutoModelForImageTextToText, transformers.AutoTokenizer, prepares
    return [each.from_pretrained(folder) for each in kinds]


def transformers_own(folder, kind, prompt, images, most=8, **options):
    """What a user of transformers gets of each PIL image alone."""
    options = {"max_new_tokens": most, "do_sample": False, **options}
    loaded = loaded_by_transformers(folder, kind)
    if kind in ("llava", "qwen2-vl", "paligemma"):
        found = []
        for image in images:
            content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
            asked = {"text": [{"role": "user", "content": content}]}
            asked = asked if kind != "paligemma" else {"images": image, "text": prompt}
            told = loaded(**asked, return_full_text=False, generate_kwargs=options)
            found.append(told[0]["generated_text"].strip())
        return found
    model, tokenizer, processor = loaded
    found = []
    for image in images:
        inputs = processor(images=image, return_tensors="pt")
        if prompt is not None:
            inputs = processor(images=image, text=prompt, return_tensors="pt")
        if prompt is not None and kind == "git":  # as its documentation does it
            ids = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
            inputs = {"pixel_values": inputs["pixel_values"], "input_ids": torch.tensor([ids])}
        text = tokenizer.decode(model.generate(**inputs, **options)[0], skip_special_tokens=True)
        assert text.startswith(prompt or "")
        found.append(text.removeprefix(prompt or "").strip())
    return found


def picture_of(key, size=None):
    """Blocks of colours, by the digits of a key, as the bytes of a PNG; as wide as `image_of` makes it."""
    rng = np.random.default_rng(int("".join(sign for sign in key if sign.isdigit())))
    file, size = io.BytesIO(), size or (24 + len(key) % 5, 20)
    Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size, Image.Resampling.NEAREST).save(
        file, "PNG"
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A shard of images of several sizes and forms, and these by key."""
    folder, images = tmp_path_factory.mktemp("photographs"), {}
    for name in ("astronaut", "coffee"):
        for size in ((320, 240), (67, 64)):
            file = io.BytesIO()
            Image.fromarray(getattr(skimage.data, name)()).resize(size).save(file, "JPEG")
            images[f"{name}{size[0]}"] = file.getvalue()
    images |= {
        f"{n}": picture_of(f"{n}", size) for n, size in enumerate(((67, 64), (150, 100), (67, 64), (90, 200)))
    }
    order = np.random.default_rng(0).permutation(list(images))
    write_tar(
        folder / "0.tar", [(f"{key}.{'png' if len(key) == 1 else 'jpg'}", images[key]) for key in order]
    )
    return folder, {key: Image.open(io.BytesIO(data)).convert("RGB") for key, data in images.items()}


def captioned(folder, *arguments, **options):
    """By key, the rows that a model gives of the images of a folder."""
    model = CaptionModel(*arguments, **{"max_new_tokens": 8, **options})
    frame = model(ImageTextPairDataset.from_webdataset(folder)).compute()
    return {row["key"]: row for row in frame.to_dict("records")}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_transformers_own(photographs, tmp_path, kind):
    folder, images = photographs
    model = write_captioner(tmp_path / kind, kind)
    for prompt in PROMPTS[kind]:
        expected = transformers_own(model, kind, prompt, images.values())
        assert len({*expected}) > 3  # a row that got another's would show
        for size, decoder in ((5, "dali"), (1, "pillow"))[: 2 if kind in ("llava", "qwen2-vl") else 1]:
            found = captioned(folder, model, prompt=prompt, batch_size=size, decoder=decoder)
            told = [found[key]["generated_caption"] for key in images]
            assert told == [text or None for text in expected], (prompt, size)
    if kind not in ("blip", "llava"):
        return
    beams = transformers_own(model, kind, prompt, images.values(), num_beams=3)
    found = captioned(folder, model, prompt=prompt, num_beams=3)
    assert [found[key]["generated_caption"] for key in images] == [text or None for text in beams] != expected


def test_where_a_caption_is_cut(photographs, llava, tmp_path, capfd):
    folder, images = photographs
    keys, cut = [*images], {}
    for most in (3, 24):
        found = captioned(folder, llava, prompt=ASKED, max_new_tokens=most)
        longer = transformers_own(llava, "llava", ASKED, images.values(), most + 1)
        for key, text in zip(keys, longer, strict=True):
            told = found[key]["generated_caption"]
            # One more token is another text where it was cut, but for special tokens, which are no text.
            assert found[key]["generated_caption_cut"] or told == text
        cut[most] = sum(row["generated_caption_cut"] for row in found.values())
    assert len(keys) >= cut[3] > cut[24]
    # One that is made to end with its last token.
    forced = shutil.copytree(llava, tmp_path / "forced")
    config = json.loads((forced / "generation_config.json").read_text())
    config |= {"forced_eos_token_id": 2, "max_length": 9, "do_sample": True, "temperature": 0.3}
    (forced / "generation_config.json").write_text(json.dumps(config))
    shorter = captioned(folder, llava, prompt=ASKED, max_new_tokens=7)
    found = captioned(folder, forced, prompt=ASKED)
    assert [row["generated_caption"] for row in found.values() if row["generated_caption_cut"]] == [
        shorter[key]["generated_caption"] for key, row in found.items() if row["generated_caption_cut"]
    ]
    cuts = [[row["generated_caption_cut"] for row in rows.values()] for rows in (found, shorter)]
    assert cuts[0] == cuts[1] and len({*cuts[0]}) == 2
    assert not [line for line in capfd.readouterr().err.splitlines() if "transformers" in line]


@pytest.mark.usefixtures("no_idle_models")
def test_memory_that_runs_out_and_models_that_take_one_image_at_a_time(llava, photographs, monkeypatch, said):
    images = [np.asarray(image) for image in photographs[1].values()]
    model = CaptionSpec(str(llava), prompt=ASKED, max_new_tokens=6).build()
    expected = model(images, 5)
    write, sizes = model._together, []

    def full(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError("out of memory")
        return write(batch)

    monkeypatch.setattr(model, "_together", full)
    assert model(images, 5) == expected and sizes[:3] == [5, 3, 2] and max(sizes[3:]) == 2
    assert said.text.count("out of memory with 5 images at once, going on with 3") == 1

    def fails(batch):
        if any(each is write_at[-1] for each in batch):
            raise ValueError("the image has no tokens\nof it")
        return write(batch)

    prepare, write_at = model._inputs.prepare, []
    monkeypatch.setattr(model, "_together", fails)
    monkeypatch.setattr(
        model._inputs, "prepare", lambda image: write_at.append(prepare(image)) or write_at[-1]
    )
    *others, last = model(images, 5)  # it costs the last image its row alone
    assert others == expected[:-1] and last.text is None
    assert last.reason == "not written: the model failed: ValueError: the image has no tokens"
    monkeypatch.setattr(model._inputs, "prepare", prepare)
    monkeypatch.setattr(model, "_together", full)
    monkeypatch.setattr(by_shape, "_HELD", 0)  # each is done when it is prepared
    assert model(images, 5) == expected
    monkeypatch.setattr(captioner, "_ALIKE", 1.1)
    alone = CaptionSpec(str(llava), prompt=ASKED, max_new_tokens=6).build()
    assert "takes one image at a time" in said.text
    assert alone(images, 5) == expected and alone._room.limit == 1


def test_what_a_generation_config_says_of_other_things(llava, photographs, tmp_path):
    images = [np.asarray(image) for image in photographs[1].values()][:3]
    model, options = shutil.copytree(llava, tmp_path / "model"), {"prompt": ASKED, "max_new_tokens": 6}
    path = model / "generation_config.json"
    stated = json.loads(path.read_text())
    plain = CaptionSpec(str(llava), **options).build()
    odd = {"use_cache": False, "max_time": 1e-4, "return_dict_in_generate": True, "output_scores": True}
    path.write_text(json.dumps(stated | odd))
    found = CaptionSpec(str(model), **options).build()
    assert found(images, 3) == plain(images, 3) and found.info["generation"] == plain.info["generation"]
    path.write_text(
        json.dumps(stated | {"watermarking_config": {"bias": 2.5}})
    )  # which has a class of its own
    other = CaptionSpec(str(model), **options).build()
    assert other.info["generation"] != plain.info["generation"]


def test_in_half_precision_and_by_a_repository(llava, photographs, tmp_path):
    shutil.copytree(llava, tmp_path / "models" / "org" / "repo")
    folder = photographs[0]
    options = {"prompt": ASKED, "max_new_tokens": 4}
    assert captioned(folder, "org/repo", model_dir=tmp_path / "models", **options) == captioned(
        folder, llava, **options
    )
    half = CaptionSpec(str(llava), prompt=ASKED, dtype="bfloat16").build()
    assert half.info["dtype"] == "bfloat16" and half([np.zeros((9, 9, 3), np.uint8)], 1)[0].text


# What cannot be used


def broken(folder, kind):
    config = json.loads((folder / "config.json").read_text())
    if kind == "type":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    elif kind == "no template":
        (folder / "chat_template.jinja").unlink()
    elif kind == "no image in the template":
        (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}")
    elif kind == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif kind == "layers":
        config["text_config"]["num_hidden_layers"] = 3
        (folder / "config.json").write_text(json.dumps(config))
    elif kind == "generation":
        (folder / "generation_config.json").write_text('{"eos')
    elif kind == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            "type",
            ConfigError,
            "model_type 'vit', which is none of transformers' that write texts about images",
        ),
        ("no template", ConfigError, "llava has no chat template, and how it is asked"),
        ("no image in the template", ConfigError, "cannot write about a picture: "),
        ("no tokenizer", ConfigError, "cannot load it by AutoProcessor"),
        ("layers", WeightsError, "the weights lack 9 tensors of Llava.*trained to write texts about images"),
        ("generation", WeightsError, "generation_config.json: cannot be read as JSON"),
        ("pickle", WeightsError, "Only safetensors is read"),
    ],
)
def test_models_that_cannot_be_used(llava, tmp_path, kind, error, message):
    folder = shutil.copytree(llava, tmp_path / "model")
    with pytest.raises(error, match=message):
        CaptionSpec(str(broken(folder, kind)), prompt=ASKED).build()


def test_wrong_arguments(llava, tmp_path):
    for arguments, message in (
        ({"prompt": " "}, "--prompt"),
        ({"column": "image_error"}, "--column"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_beams": True}, "num_beams=True"),
        ({"dtype": "int8"}, "--dtype"),
        ({"decode_scale": "fast"}, "no argument 'decode_scale'"),
        ({"batchsize": 3}, r"no argument 'batchsize' \(did you mean batch_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            CaptionModel(llava, **arguments)
    with pytest.raises(ConfigError, match="expected a repository of the hub as org/repo, or a folder"):
        CaptionModel("resnet50")
    with pytest.raises(ConfigError, match=r"llava has to be asked: give a prompt \(--prompt\)"):
        CaptionSpec(str(llava)).build()
    with pytest.raises(ConfigError, match=r"are 308 tokens, and the model has room for 200"):
        CaptionSpec(str(llava), prompt=ASKED, max_new_tokens=300).build()
    gpt2 = write_captioner(tmp_path / "gpt2", "vit-gpt2")
    with pytest.raises(ConfigError, match="takes an image, and no text"):
        CaptionSpec(str(gpt2), prompt=ASKED).build()


def test_images_that_a_processor_refuses_and_models_that_write_nothing(tmp_path):
    """The first cost their rows, the others are no failure."""
    images = {"a": (40, 40), "b": (2, 600), "c": (60, 40)}  # wider than 200 times its height Qwen takes none
    members = []
    for key, size in images.items():
        file = io.BytesIO()
        Image.new("RGB", size[::-1], (200, 30, 90)).save(file, "PNG")
        members.append((f"{key}.png", file.getvalue()))
    write_tar(tmp_path / "data" / "0.tar", members)
    model = write_captioner(tmp_path / "qwen", "qwen2-vl")
    found = captioned(tmp_path / "data", model, prompt=ASKED)
    assert found["b"]["image_error"].startswith("not prepared: the model's processor failed: ValueError: abs")
    assert found["a"]["generated_caption"] and found["c"]["generated_caption"]
    assert pd.isna(found["b"]["generated_caption"]) and pd.isna(found["b"]["generated_caption_cut"])
    with pytest.raises(ImageError, match=r"image of key='b': not prepared: .*on_error='null'"):
        captioned(tmp_path / "data", model, prompt=ASKED, on_error="raise")

    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    names = [name for name in weights if "layers.1" in name and "down_proj" in name]
    weights[names[0]][3, 2] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**config, "remove_invalid_values": True}))
    ENCODERS.clear()  # as in another process
    nan = captioned(tmp_path / "data", model, prompt=ASKED)
    assert nan["a"]["image_error"].startswith("not finite: the model (float32) gave NaN")
    silent = write_captioner(tmp_path / "blip", "blip", ends_at_once=True)
    rows = captioned(tmp_path / "data", silent)
    for row in rows.values():
        assert row["generated_caption"] is row["image_error"] is None and not row["generated_caption_cut"]


# In files, runs and retries


@pytest.fixture
def data(tmp_path):
    """Rows and samples in two random orders, each image of its key, and two that cannot be used."""
    keys = [f"{shard:05d}{sample:04d}" for shard in range(3) for sample in range(6)]
    images = {key: picture_of(key) for key in keys}
    write_dataset(tmp_path / "data", samples=6, bad={**images, "000010004": b"<html>", "000020001": b""})
    return tmp_path / "data"


@functools.cache
def caption_of(model, key):
    """What transformers makes of the picture of a key, of a folder whose files stay as they are from the first call."""
    return transformers_own(model, "llava", ASKED, [Image.open(io.BytesIO(picture_of(key)))], 5)[0]


def check_rows(table, model):
    keys = table["key"].to_pylist()
    expected = [caption_of(model, key) for key in keys]
    assert len({*expected}) > 0.8 * len(keys)  # a row of another would show
    for row, text in zip(table.to_pylist(), expected, strict=True):
        bad = row["image_error"] is not None
        assert row["generated_caption"] == (None if bad else text or None)
        assert (row["generated_caption_cut"] is None) == bad


def writes(model, **options):
    return CaptionModel(model, **{"prompt": ASKED, "max_new_tokens": 5, "batch_size": 4, **options})


def test_one_pass_with_vectors_and_statistics(data, llava, tmp_path, monkeypatch):
    read = []
    plain = passes.read_images
    monkeypatch.setattr(
        passes, "read_images", lambda *given, **named: read.append(1) or plain(*given, **named)
    )
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"

    def save(*statistics, **given):
        done = writes(llava, **given)(ImageStatistics(["phash", *statistics])(dataset))
        return ColourReader()(done).save_metadata(out)

    summary = save()
    assert (summary.rows, summary.failed, len(read)) == (18, 2, 3)  # each shard is read once
    table = read_output(out)
    assert table.schema.field("generated_caption").type == pa.string()
    assert table.schema.field("generated_caption_cut").type == pa.bool_()
    check_rows(table, llava)
    errors = dict(zip(table["key"].to_pylist(), table["image_error"].to_pylist(), strict=True))
    assert errors["000010004"].startswith("not an image") and errors["000020001"].startswith("empty")
    assert save(batch_size=7).skipped == 3 and len(read) == 3
    # Another statistic is measured, and what was written stays as it is.
    monkeypatch.setattr(captioner.Captioner, "__call__", None)
    more = save("dhash")
    assert more.written == 3 and more.captions == summary.captions and len(more.captions) == 3
    assert read_output(out)["generated_caption"].equals(table["generated_caption"])


def test_added_to_an_output_and_another_prompt(data, llava, tmp_path):
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"
    ColourReader()(dataset).save_metadata(out)
    before = read_output(out)
    assert writes(llava)(dataset).save_metadata(out).written == 3
    table = read_output(out)
    assert table.select(before.column_names).equals(before)
    check_rows(table, llava)
    told = read_record(str(out / "00000.parquet"), None).models["generated_caption"]
    assert told["model"].startswith("LlavaForConditionalGeneration [") and told["prompt"] == ASKED
    assert told["weights"].startswith("sha256:") and told["generation"].startswith(
        "greedy, at most 5 tokens ["
    )
    for other, message in (
        (
            {"prompt": "of a photo"},
            r"was made with prompt describe it; this run has prompt of a photo.*--column",
        ),
        (
            {"max_new_tokens": 4, "num_beams": 2},
            "was made with generation greedy, at most 5 .* has generation 2 beams, at most 4",
        ),
    ):
        with pytest.raises(OutputError, match=f"column 'generated_caption' {message}"):
            writes(llava, **other)(dataset).save_metadata(out)
    with pytest.raises(
        OutputError, match="column 'generated_caption_cut' is another of this model's columns"
    ):
        writes(llava, column="generated_caption_cut")(dataset).save_metadata(out)
    second = writes(llava, prompt="describe of it", column="second")
    summary = second(dataset).save_metadata(out)
    assert (summary.written, summary.failed) == (3, 2)
    both = read_output(out)
    # The model writes nothing about some, which are as good as others.
    silent, cuts = both["second"].null_count - 2, both["second_cut"].to_pylist().count(True)
    assert silent == 1 and 16 - silent >= cuts > 0
    assert both["image_error"].equals(table["image_error"])
    assert both["second_cut"].is_valid().equals(both["image_error"].is_null())
    counted = f"{cuts} of 15 captions were cut at 5 tokens: raise --max-new-tokens"
    assert counted in str(summary) and "1 image about which the model wrote nothing" in str(summary)
    assert second(dataset).save_metadata(out).captions == summary.captions  # with nothing to do
    again = second.retry(out)
    assert (again.rows, again.failed) == (2, 2) and read_output(out).equals(both)
    kept = [name for name in table.column_names if name != "image_error"]
    assert both.select(kept).equals(table.select(kept)) and both["second"].null_count in (2, 3)
    assert not both["second"].equals(both["generated_caption"])
    for made in (ColourReader(), writes(llava), second):
        assert made(dataset).save_metadata(out).skipped == 3
    assert writes(llava, prompt="describe of it")(dataset).save_metadata(out, overwrite=True).written == 3
    assert read_output(out)["generated_caption"].equals(both["second"])
    assert read_output(out)["image_embedding"].equals(before["image_embedding"])


def test_how_well_captions_fit(data, llava, tmp_path):
    """A score and statistics of what was written, added by themselves."""
    make_pair(tmp_path / "clip", "clip")
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"
    embedder = ClipImageEmbedder(tmp_path / "clip", batch_size=4)
    embedder(writes(llava)(dataset)).save_metadata(out)
    text = ClipTextEmbedder(tmp_path / "clip", text_column="generated_caption")
    score_output(out, [ClipScore(text), TextStatistics(["words"], "generated_caption")])
    table = read_output(out)
    check_rows(table, llava)
    assert table["clip_score"].null_count == 2
    texts = table["generated_caption"].to_pylist()
    assert table["text_words"].to_pylist() == [each and len(each.split()) for each in texts]
    assert len({*table["clip_score"].to_pylist()}) > 12


def test_a_model_whose_files_change(data, llava, tmp_path):
    model, out = shutil.copytree(llava, tmp_path / "model"), tmp_path / "out"
    dataset = ImageTextPairDataset.from_webdataset(data)
    made = writes(model)(dataset)
    assert made.save_metadata(out).written == 3
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<assistant>", "<assistant> a"))
    with pytest.raises(OutputError, match="column 'generated_caption' was made with processor"):
        made.save_metadata(out)
    assert made.save_metadata(out, overwrite=True).written == 3
    check_rows(read_output(out), model)


def test_the_datasets_own_columns_are_not_lost(tmp_path, llava):
    write_dataset(tmp_path, shards=1, samples=3)
    path = tmp_path / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("generated_caption", pa.array(["mine"] * len(table))), path)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    with pytest.raises(ConfigError, match=r"its own named \['generated_caption'\].*--column recaption"):
        writes(llava)(dataset)
    writes(llava, column="recaption")(dataset).save_metadata()  # into the dataset's own files
    made = pq.read_table(path)
    assert set(made["generated_caption"].to_pylist()) == {"mine"} and made["recaption"].null_count == 0


@pytest.mark.parametrize("with_vectors", [False, True])
def test_a_retry_mends_the_captions(tmp_path, llava, with_vectors):
    """Images of 28 by 20 pixels fail at first, of 24 by 20 not."""
    keys = [f"{'x' * number}{shard}{number:04d}" for shard in (3, 4) for number in range(5)]
    for shard in (0, 1):
        mine = keys[5 * shard :][:5]
        write_tar(tmp_path / "data" / f"{shard}.tar", [(f"{key}.png", picture_of(key)) for key in mine])
    dataset, out = ImageTextPairDataset.from_webdataset(tmp_path / "data"), tmp_path / "out"

    def made(max_pixels):
        done = writes(llava, max_pixels=max_pixels)(
            ImageStatistics(["phash"], max_pixels=max_pixels)(dataset)
        )
        return ColourReader(max_pixels=max_pixels)(done) if with_vectors else done

    first = made(20 * 26).save_metadata(out)
    assert 0 < first.failed < first.rows
    before = read_output(out)
    assert before["generated_caption"].null_count == first.failed
    if with_vectors:
        summary = ColourReader(max_pixels=1000).retry(out)
    else:
        (settings,) = find_settings(str(out)).values()
        summary = made_again({**settings, "max_pixels": 1000}).retry(out)
        assert f"{first.failed} have a caption now" in str(summary)
    assert (summary.rows, summary.failed) == (first.failed, 0)
    after = read_output(out)
    assert after["generated_caption"].null_count == after["phash"].null_count == 0
    check_rows(after, llava)
    good = before["image_error"].is_null()
    assert after.filter(good).equals(before.filter(good))
    assert made(20 * 26).save_metadata(out).skipped == 2


def test_it_is_made_again_from_its_settings(llava):
    model = writes(llava, gray16="pillow", column="c", num_beams=2)
    again = made_again(json.loads(json.dumps(model.settings())))
    assert isinstance(again, CaptionModel) and again.step("key") == model.step("key")


class TestStep(StepTests):
    @pytest.fixture
    def step(self, frame, llava):
        return writes(llava, max_new_tokens=3)(self.dataset)._steps[-1]

    @pytest.fixture
    def frame(self, data):
        self.dataset = ImageTextPairDataset.from_webdataset(data).filter("key < '000010000'")
        return self.dataset.compute()

    def test_each_row_gets_its_own(self, step, frame):
        """Of text there is nothing between equal and unequal."""
        made, columns = step(frame), [*step.types]
        for number in range(len(frame)):
            alone = step(frame.iloc[[number]].reset_index(drop=True))
            assert alone[columns].iloc[0].to_dict() == made[columns].iloc[number].to_dict()


# By command, on a cluster, in a recipe


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_command(data, llava, client, tmp_path):
    """On two workers; then what it wrote into new tars, as their captions."""
    out, at = tmp_path / "out", ["--scheduler-address", client.scheduler.address]
    command = ["caption", data, out, "--model", llava, "--prompt", ASKED, "--max-new-tokens", 5, *at]
    command += ["--json", tmp_path / "told.json"]
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["rows"], told["failed"], told["written"]) == (18, 2, 3)
    table = read_output(out)
    check_rows(table, llava)
    assert run(*command).exit_code == 0
    assert json.loads((tmp_path / "told.json").read_text())["skipped"] == 3
    other = run(*command, "--num-beams", 2)
    assert other.exit_code == 2 and "--column" in other.stderr
    assert run("caption", data, tmp_path / "new", "--model", llava, *at).exit_code == 2
    assert run("retry", out, *at).exit_code == 0  # what failed fails again
    made = run(
        "export",
        out,
        tmp_path / "new",
        "--caption",
        "generated_caption",
        "--where",
        "image_error IS NULL",
        *at,
    )
    assert made.exit_code == 0, made.stderr
    rows = ImageTextPairDataset.from_webdataset(tmp_path / "new", metadata="tar").compute()
    texts = dict(zip(table["key"].to_pylist(), table["generated_caption"].to_pylist(), strict=True))
    assert len(rows) == 16 and dict(zip(rows["key"], rows["caption"], strict=True)).items() <= texts.items()


def test_in_a_recipe(data, llava, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"caption:\n- model_name: {llava}\n  prompt: {ASKED}\n  max_new_tokens: 5\n"
        "text_statistics: {names: [words], text: generated_caption}\n"
        "where: NOT generated_caption_cut AND text_words < 9\n"
        "join: []\nexport: {caption: generated_caption, card: true, columns: []}\n"
    )
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    summary = curate(data, tmp_path / "out", recipe)
    table = read_output(tmp_path / "out" / "embeddings")
    check_rows(table, llava)
    texts = table["generated_caption"].to_pylist()
    assert table["text_words"].to_pylist() == [text and len(text.split()) for text in texts]
    whole = table["generated_caption_cut"].to_pylist().count(False)
    assert 0 < summary.kept == whole < 16 and (summary.rows, summary.failed) == (18, 2)
    card = (tmp_path / "out" / "shards" / "README.md").read_text(encoding="utf-8")
    made = re.search(
        rf"captions by `Llava\w+ \[\w+\]`, from `.*{llava.name}`, weights `.*`, prompt `{ASKED}`, `greedy, at",
        card,
    )
    assert made and f"`.txt`: the column `generated_caption` ({made[0]}" in card
    assert f"| `generated_caption` | `string` | {made[0]}" in card
    assert "| `generated_caption_cut` | `bool` | whether the text of `generated_caption` was cut" in card
    assert "max_new_tokens: 5" in card and "[]" not in card
    with pytest.raises(ConfigError, match=r"caption=.*expected a list of models"):
        Recipe(caption={"model_name": "x"})
    with pytest.raises(ConfigError, match="two models would make 'generated_caption'"):
        Recipe(caption=[{"model_name": "org/a"}, {"model_name": "org/b"}])
