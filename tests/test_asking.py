"""Questions about images against transformers' models called by hand, in files, runs and retries."""

from __future__ import annotations

import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from colours import ColourReader, read_output, write_tar
from PIL import Image
from questioners import KINDS, likelihoods, loaded, write_questioner, write_vicuna
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, ImageError, OutputError
from curator_dask.frames.parquet import read_record
from curator_dask.image.asking import QuestionModel
from curator_dask.image.captioning import CaptionModel
from curator_dask.image.embedders.making import made_again
from curator_dask.models import asker
from curator_dask.models.asking import QuestionSpec
from curator_dask.models.questions import Question, broken_up, contexts_of, named_answers
from curator_dask.testing import StepTests

pytestmark = pytest.mark.usefixtures("in_this_process", "quiet_transformers")

ASKED = 'is it " {text} " of a photo'
ANSWERS = ("Yes", "No", "is not", "is it a")
#: What rows say, some of it shorter than other.
TEXTS = ("photo", "a photo of it", "describe", "not")


def picture(number, size=(67, 64)):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return small.resize(size, Image.Resampling.NEAREST)


def built(folder, question=ASKED, answers=ANSWERS, **options):
    return QuestionSpec(str(folder), Question.parse(question, "caption"), tuple(answers), **options).build()


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return write_questioner(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    return write_vicuna(tmp_path_factory.mktemp("vicuna"))


# Likelihoods


@pytest.mark.parametrize("kind", [each for each in KINDS if each not in ("blip", "vit-gpt2")])
def test_likelihoods_are_those_of_the_model_called_by_hand(tmp_path, kind):
    """Of each image alone, by whole passes without a cache; in a batch, with questions of several lengths."""
    folder = write_questioner(tmp_path / kind, kind)
    model = built(folder)
    assert model._inputs.pads == (kind != "blip-vqa")  # which takes no notice of a mask
    images = [picture(n, size) for n, size in enumerate([(67, 64), (67, 64), (90, 200), (67, 64)])]
    space = " " if kind in ("blip-2", "git", "instructblip") else ""
    questions = [ASKED.replace("{text}", text) for text in TEXTS]
    expected = np.array(
        [
            likelihoods(folder, kind, image, question, ANSWERS, space)
            for image, question in zip(images, questions, strict=True)
        ]
    )
    assert len({*expected.argmax(axis=1)}) > 1 or expected.std(axis=0).max() > 0.3  # another's would show
    arrays, said = [np.asarray(each) for each in images], [(text,) for text in TEXTS]
    found = model(arrays, 3, said)
    assert not [each.reason for each in found if each.reason]
    np.testing.assert_allclose([each.likelihoods for each in found], expected, atol=1e-4)
    alone = [model([image], 1, [text])[0].likelihoods for image, text in zip(arrays, said, strict=True)]
    np.testing.assert_allclose(alone, expected, atol=1e-4)


def test_the_space_before_an_answer_is_the_templates(vicuna, tmp_path, monkeypatch):
    """For a tokenizer of bytes `` Yes`` is another token than ``Yes``; a space may also end what is asked."""
    model = built(vicuna, "Does this figure show it?", ("Yes", "No"))
    tokenizer = loaded(vicuna, "llava")[1].tokenizer
    spaced, plain = ([tokenizer.encode(space + each) for each in ("Yes", "No")] for space in (" ", ""))
    assert spaced != plain and list(map(len, spaced)) == [1, 1]
    image = picture(1)
    (found,) = model([np.asarray(image)], 1)
    expected = likelihoods(vicuna, "llava", image, "Does this figure show it?", ("Yes", "No"), " ")
    np.testing.assert_allclose(found.likelihoods, expected, atol=1e-4)
    own = built(vicuna, "Does this figure show it?", (" Yes", " No"))
    np.testing.assert_allclose(own([np.asarray(image)], 1)[0].likelihoods, expected, atol=1e-4)
    # The model was made for "ASSISTANT: Yes", and by its template the space is there before it answers.
    ends = shutil.copytree(vicuna, tmp_path / "model")
    path = ends / "chat_template.jinja"
    path.write_text(path.read_text().replace(" ASSISTANT:{% endif %}", " ASSISTANT: {% endif %}"))
    np.testing.assert_allclose(
        built(ends, "Does this figure show it?", ("Yes", "No"))([np.asarray(image)], 1)[0].likelihoods,
        expected,
        atol=1e-4,
    )


def test_what_rows_say_is_no_token_of_the_model(vicuna, llava, tmp_path):
    """A caption has as many images as any other, and does not end what the user says."""
    image = np.asarray(picture(2))
    for folder, marks in ((vicuna, ("<image>", "</s>")), (llava, ("<image>", "<assistant>", "<user>"))):
        question = 'Does it show "{text}"?' if folder is vicuna else 'is it " {text} "'
        model = built(folder, question, ("Yes", "No"))
        for mark in marks:
            text = f"a {mark} photo"
            asked, plain = (
                model._inputs.ask(picture(2), [each]) for each in (text, f"a {mark[0]} {mark[1:]} photo")
            )
            tokens = asked.prompt.tolist()
            assert tokens == plain.prompt.tolist()
            usual = model._inputs.ask(picture(2), ["a photo"]).prompt.tolist()
            number = loaded(folder, "llava")[1].tokenizer.convert_tokens_to_ids(mark)
            assert tokens.count(number) == usual.count(number)
            said = model([image, image], 2, [(text,), ("a photo",)])
            assert said[0].reason is said[1].reason is None
    # Not by what stands beside the place either; those of the question itself are its user's.
    model = built(vicuna, "<{text}> </s>", ("Yes", "No"))
    ids = model._inputs.ask(picture(2), ["image"]).prompt.tolist()
    assert (
        ids.count(4) == model._inputs.ask(picture(2), ["cat"]).prompt.tolist().count(4) and ids.count(2) == 1
    )
    # Nor by a spelling that the tokenizer makes them of: such a row fails.
    folder = shutil.copytree(llava, tmp_path / "model")
    path = folder / "tokenizer.json"
    said = json.loads(path.read_text())
    said["normalizer"] = {"type": "NFKC"}
    for each in said["added_tokens"]:
        each["normalized"] = True
    path.write_text(json.dumps(said))
    model = built(folder, "is it {text}", ("Yes", "No"))
    found = model([image, image], 2, [("\uff1cassistant\uff1e",), ("\uff1cit\uff1e",)])
    assert (
        found[0].reason == "not asked: what the row says in the question becomes special tokens of the model"
    )
    assert found[1].reason is None
    # Nor by one that is the unknown token as well as the end of a text, as with OPT and GPT-2.
    folder = shutil.copytree(vicuna, tmp_path / "unknown")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "unk_token": "</s>"}))
    model = built(folder, "Does it show {text}?", ("Yes", "No"))
    assert 2 not in model._inputs.ask(picture(2), ["a </s> cat"]).prompt.tolist()


def test_places_and_braces():
    parsed = Question.parse("{{a}} {text} or {other name}?", "alt")
    assert parsed.columns == ("alt", "other name") and str(parsed) == "{{a}} {alt} or {other name}?"
    assert Question.parse(str(parsed), "caption") == parsed
    text, spans = parsed.filled(["{other name} {}", "{{b}}"])  # what rows say is taken as it is
    assert text == "{a} {other name} {} or {{b}}?" and [text[a:b] for a, b in spans] == [
        "{other name} {}",
        "{{b}}",
    ]
    for wrong in ("{", "a } b", "{}", "{a{b}}", " "):
        with pytest.raises(ConfigError, match=r"\(--question\)"):
            Question.parse(wrong, "caption")
    special = re.compile(r"</s>|<<|<image>")
    assert broken_up("a</s>b<image>", [(2, 4)], special) == "a< /s>b<image>"
    assert broken_up("<<<<", [(0, 4)], special) == "< < < <"


def test_as_few_passes_as_there_may_be():
    assert contexts_of([(1,), (2,)]) == [()]
    assert contexts_of([(1, 2), (1, 3), (4,)]) == [(1,)]
    assert contexts_of([(1, 2, 3), (1, 3), (4, 5), (6,)]) == [(1, 2), (4,)]


@pytest.mark.usefixtures("no_idle_models")
def test_memory_and_models_for_which_filling_up_changes_something(llava, monkeypatch, said):
    images = [np.asarray(picture(n)) for n in range(4)]
    values = [(text,) for text in TEXTS]
    model = built(llava)
    expected = [each.likelihoods for each in model(images, 1, values)]
    ask, sizes = model._together, []

    def full(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError("out of memory")
        return ask(batch)

    monkeypatch.setattr(model, "_together", full)
    found = [each.likelihoods for each in model(images, 4, values)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sizes == [4, 2, 2]  # questions of three lengths go in together
    monkeypatch.setattr(asker, "_ALIKE", -1.0)
    careful = built(llava)
    assert not careful._inputs.pads and "takes one image at a time" in said.text
    np.testing.assert_allclose([e.likelihoods for e in careful(images, 4, values)], expected, atol=1e-4)
    (long,) = model(images[:1], 1, [("photo " * 200,)])
    assert re.fullmatch(
        r"not asked: question and answer are \d+ tokens, and the model has room for 200", long.reason
    )
    # NaN behind the first token of a longer answer alone: its likelihood is no number, whatever the others' are.
    other = built(llava, "describe {text}")
    assert other(images[:1], 1, [("photo",)])[0].reason is None
    number = loaded(llava, "llava")[1].tokenizer.convert_tokens_to_ids("is")
    with torch.no_grad():
        other._model.get_input_embeddings().weight[number] = torch.nan
    assert other(images[:1], 1, [("photo",)])[0].reason == "not finite: the model (float32) gave NaN"
    with torch.no_grad():
        model._model.get_output_embeddings().weight[3] = torch.nan
    assert model(images[:1], 1, values[:1])[0].reason == "not finite: the model (float32) gave NaN"


def test_a_question_that_a_q_former_has_no_room_for(tmp_path):
    """It reads the question by a tokenizer of its own; on a GPU a token too many would cost the process."""
    folder = write_questioner(tmp_path / "model", "instructblip")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["max_position_embeddings"] = 2000
    path.write_text(json.dumps(config))
    image = np.asarray(picture(1))
    found = built(folder)([image, image], 2, [("photo " * 600,), ("photo",)])
    assert re.fullmatch(
        "not asked: its Q-Former reads .* tokens, and the model has room for 512", found[0].reason
    )
    assert found[1].reason is None


# What cannot be asked


def test_wrong_arguments(llava, tmp_path):
    fine = {"question": ASKED, "answers": ["Yes", "No"]}
    for wrong, message in (
        ({"question": " "}, r"expected a text"),
        ({"answers": ["Yes"]}, "at least two answers"),
        ({"answers": ["Yes", " "]}, "not empty"),
        ({"answers": ["Yes", "Yes "]}, "that differ"),
        ({"answers": [True, False]}, "true or false to YAML, so put it in quotes"),
        ({"answers": ["Yes", "yes!"]}, r"ends with \('yes'\): give it a name.*--answer"),
        ({"answers": {"mass": "Yes", "no": "No"}}, r"ends with \('mass'\)"),
        ({"answers": ["!", "?"]}, "no letter or digit"),
        ({"answers": [str(n) for n in range(51)]}, "at most 50"),
        ({"answers": "Yes"}, "expected a list"),
        ({"column": ""}, "--column"),
        ({"text": None}, "--text"),
        ({"dtype": "int8"}, "--dtype"),
        ({"batchsize": 3}, "did you mean batch_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            QuestionModel(llava, **{**fine, **wrong})
    with pytest.raises(ConfigError, match="expected a repository of the hub as org/repo"):
        QuestionModel("resnet50", **fine)
    assert named_answers(["A cat", 1, 2.5]) == {"a_cat": "A cat", "1": "1", "2_5": "2.5"}
    for answers, message in (
        (["is", "is not"], "'is not' begins with the tokens of 'is'"),
        (["Yes", "<image>" * 17], "17 tokens long: expected at most 16"),
        (["Yes", "[SEP]"], "has no token of its own, or one that ends a text"),
    ):
        with pytest.raises(ConfigError, match=message):
            built(llava, answers=answers)
    for kind, message in (
        ("blip", "is a BLIP that writes captions: expected one .* BlipForQuestionAnswering"),
        ("vit-gpt2", "which takes no text: it cannot be asked"),
    ):
        with pytest.raises(ConfigError, match=message):
            built(write_questioner(tmp_path / kind, kind))


# In files, runs and retries


KEYS = [f"{shard}{number:02d}" for shard in range(2) for number in range(6)]
BAD = "103"


def text_of(key):
    """What is said of an image: nothing of two."""
    number = int(key)
    return {"002": None, "105": " "}.get(
        key, " ".join(TEXTS[(number + n) % 4] for n in range(1 + number % 3))
    )


def bytes_of(key):
    file = io.BytesIO()
    picture(int(key)).save(file, "PNG")
    return b"<html>" if key == BAD else file.getvalue()


def write_captions(folder, text=text_of):
    rng = np.random.default_rng(1)
    for shard in "01":
        keys = list(rng.permutation([key for key in KEYS if key[0] == shard]))
        texts = pa.array([text(key) for key in keys], pa.string())
        pq.write_table(
            pa.table({"key": keys, "caption": texts, "width": [24] * 6}), folder / f"{shard}.parquet"
        )


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for shard in "01":
        keys = np.random.default_rng(0).permutation([key for key in KEYS if key[0] == shard])
        write_tar(folder / f"{shard}.tar", [(f"{key}.png", bytes_of(key)) for key in keys])
    write_captions(folder)
    return folder


def asks(model, **options):
    given = {"question": ASKED, "answers": ["1", "No", "3"], "column": "fits", "batch_size": 4}
    return QuestionModel(model, **{**given, **options})


def check_rows(table, folder, column="fits", question=ASKED, answers=("1", "No", "3"), text=text_of):
    probable = set()
    for row in table.to_pylist():
        key = row["key"]
        values = {name: value for name, value in row.items() if name.startswith(f"{column}_")}
        said = text(key) if "{" in question else "it"
        assert (row["image_error"] is not None) == (key == BAD)
        if "{" in question:
            assert values.pop(f"{column}_filled") == (None if key == BAD else bool((said or "").strip()))
        if key == BAD or not (said or "").strip():
            assert not any(value is not None for value in values.values())
            continue
        image = Image.open(io.BytesIO(bytes_of(key)))
        logs = likelihoods(folder, "llava", image, question.replace("{text}", said), answers)
        shares = np.exp(logs) / np.exp(logs).sum()
        probable.add(round(float(shares[0]), 6))
        for answer, share in zip(answers, shares, strict=True):
            assert values[f"{column}_{answer.lower()}"] == pytest.approx(share, abs=1e-5)
        assert values[f"{column}_answer"] == answers[shares.argmax()]
        assert values[f"{column}_probability"] == pytest.approx(shares.max(), abs=1e-5)
        assert values[f"{column}_mass"] == pytest.approx(np.exp(logs).sum(), abs=1e-5)
        assert (f"{column}_expected" in values) == all(each.isdigit() for each in answers)
        if f"{column}_expected" in values:
            expected = shares @ np.array([float(each) for each in answers])
            assert values[f"{column}_expected"] == pytest.approx(expected, abs=1e-4)
    assert len(probable) > 8


def test_in_one_pass_and_again(data, llava, tmp_path, monkeypatch):
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"
    first = asks(llava)
    summary = ColourReader()(first(dataset)).save_metadata(out)
    assert (summary.rows, summary.failed, summary.written) == (12, 1, 2)
    table = read_output(out)
    check_rows(table, llava)
    assert table["image_embedding"].null_count == 1
    assert "fits: 2 rows not asked, as the question's columns are null or empty there" in str(summary)
    assert "fits: for 9 of 9 images its answers are unlikely: fits_mass is below 0.5" in str(summary)
    told = read_record(str(out / "0.parquet"), None).scores["fits_no"]
    assert told["fields"] == ["caption"] and told["made_by"]["answers"] == ["1", "3", "No"]
    assert told["made_by"]["prompt"] == ASKED.replace("text", "caption")
    # Another question, added to it, of numbers alone and of no column.
    rates = asks(llava, question="describe it", answers=["1", "2", "5"], column="rated")
    assert rates(dataset).save_metadata(out).answers.keys() == summary.answers.keys()
    both = read_output(out)
    check_rows(both, llava, "rated", "describe it", ("1", "2", "5"))
    assert both.select([name for name in table.column_names if name != "image_error"]).equals(
        table.select([name for name in table.column_names if name != "image_error"])
    )
    with monkeypatch.context() as patch:
        patch.setattr(asker.Asker, "__call__", None)
        turned = asks(llava, question="describe it", answers=["5", "1", "2"], column="rated")
        again = rates(dataset).save_metadata(out)
        assert again.skipped == turned(dataset).save_metadata(out).skipped == 2
        for said in ("fits: 2 rows not asked", "fits: for 9 of 9 images", "rated: for 11 of 11 images"):
            assert said in str(again)  # what was said of the first question, too
        assert ColourReader()(first(dataset)).save_metadata(out).skipped == 2
        assert first(dataset).save_metadata(out).written == 2  # of what is there
    assert read_output(out).select(both.column_names).equals(both)
    for other, message in (
        ({"question": "is it {text}"}, r"was made with prompt is it \" \{caption\} .* has prompt is it"),
        ({"answers": ["1", "No", "2"]}, r"was made with answers \['1', '3', 'No'\]; this run has"),
    ):
        with pytest.raises(OutputError, match=f"column 'fits_answer' {message}.*--column"):
            asks(llava, **other)(dataset).save_metadata(out)
    # What rows say changes: of the columns that were made of it nothing stays, and they are made again.
    new = {key: TEXTS[(int(key) + 2) % 4] for key in KEYS}
    for text in ({**new, **dict.fromkeys(KEYS[:6], "not")}, new):
        write_captions(data, text.get)
        dataset = ImageTextPairDataset.from_webdataset(data)
        if text is not new:
            first(dataset).save_metadata(out)
            check_rows(read_output(out), llava, text=text.get)
    rates(dataset).save_metadata(out)
    stale = read_output(out)
    assert stale["fits_answer"].null_count == 12 and stale["rated_answer"].equals(both["rated_answer"])
    first(dataset).save_metadata(out)
    check_rows(read_output(out), llava, text=new.get)
    assert read_output(out)["image_embedding"].equals(both["image_embedding"])


def test_a_retry_mends_the_answers(data, llava, tmp_path):
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"
    small = asks(llava, max_pixels=67 * 64 - 1)
    assert small(dataset).save_metadata(out).failed == 12
    made = made_again({**json.loads(json.dumps(small.settings())), "max_pixels": 10000})
    assert isinstance(made, QuestionModel)
    again = made.retry(out)
    assert (again.rows, again.failed) == (12, 1) and "11 have answers now" in str(again)
    check_rows(read_output(out), llava)
    assert made.retry(out).rows == 1  # rows that were not asked have not failed
    with_vectors = tmp_path / "vectors"
    both = ColourReader(max_pixels=67 * 64 - 1)(small(dataset)).save_metadata(with_vectors)
    assert both.failed == 12
    assert ColourReader(max_pixels=10000).retry(with_vectors).failed == 1
    check_rows(read_output(with_vectors), llava)
    # Without the column that the question names vectors are mended, and ask makes the rest.
    without = [name for name in read_output(with_vectors).column_names if name != "caption"]
    both = ColourReader(max_pixels=67 * 64 - 1)(small(dataset))
    assert both.save_metadata(tmp_path / "lean", columns=without).failed == 12
    mended = ColourReader(max_pixels=10000).retry(tmp_path / "lean")
    assert mended.failed == 1 and "fits_no" in next(iter(mended.not_made.values()))["examples"]
    failed = small.retry(tmp_path / "lean").failed_shards
    assert "run the same ask over the dataset again" in failed["1"]
    assert asks(llava, max_pixels=10000)(dataset).save_metadata(tmp_path / "lean").failed == 1
    lean = read_output(tmp_path / "lean")
    assert lean["image_embedding"].null_count == 1 and lean["fits_filled"].null_count == 1
    with pytest.raises(ImageError, match="on_error='null'"):
        asks(llava, on_error="raise")(dataset).compute()


def with_lists(frame):
    return frame.assign(
        lists=pd.Series([[1.0]] * len(frame), frame.index, pd.ArrowDtype(pa.list_(pa.float32())))
    )


def test_columns_that_rows_lack(data, llava):
    dataset = ImageTextPairDataset.from_webdataset(data)
    with pytest.raises(ConfigError, match=r"names the column 'alt', and the rows have key, caption, width"):
        asks(llava, question="is it {alt}")(dataset)
    with pytest.raises(ConfigError, match=r"the column 'alt' \({text} stands for .*--text"):
        asks(llava, text="alt")(dataset)
    written = CaptionModel(llava, prompt="describe it")(dataset)
    with pytest.raises(ConfigError, match="is made in the same run"):
        asks(llava, question="is it {generated_caption}")(written)
    with pytest.raises(
        ConfigError, match=r"\{lists\} is a column of list<.*>: expected one of texts or numbers"
    ):
        asks(llava, question="is it {lists}")(
            dataset.with_metadata(dataset.metadata.map_partitions(with_lists))
        )
    wide = asks(llava, question="is it {width}")(dataset).compute()
    assert wide["fits_filled"].sum() == 11


class TestStep(StepTests):
    @pytest.fixture
    def step(self, frame, llava):
        return asks(llava)(self.dataset)._steps[-1]

    @pytest.fixture
    def frame(self, data):
        self.dataset = ImageTextPairDataset.from_webdataset(data).filter("key < '100'")
        return self.dataset.compute()


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_command(data, llava, client, tmp_path):
    """On two workers; then the rows of a probability, and who made it."""
    out, at = tmp_path / "out", ["--scheduler-address", client.scheduler.address]
    command = ["ask", data, out, "--model", llava, "--question", ASKED, "--column", "fits", *at]
    command += ["--answer", "1", "--answer", "No", "--answer", "3", "--json", tmp_path / "told.json"]
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["rows"], told["failed"], told["written"]) == (12, 1, 2)
    assert sum(fact["by"]["not asked: fits"] for fact in told["answers"].values()) == 2
    table = read_output(out)
    check_rows(table, llava)
    assert run(*command).exit_code == 0
    assert json.loads((tmp_path / "told.json").read_text())["skipped"] == 2
    named = [each.replace("1", "one=1") if each == "1" else each for each in command]
    assert run(*named).exit_code == 2  # a name of one alone
    made = run("filter", out, tmp_path / "good", "--where", "fits_no * fits_mass > 0.001")
    passing = [row for row in table.to_pylist() if (row["fits_no"] or 0) * (row["fits_mass"] or 0) > 0.001]
    assert made.exit_code == 0 and 0 < len(passing) == read_output(tmp_path / "good").num_rows < 9
    info = run("info", out)
    assert "ask: LlavaForConditionalGeneration" in info.stdout and "fits_answer" in info.stdout


def test_in_a_recipe(data, llava, tmp_path):
    recipe = Recipe(
        ask=[{"model_name": str(llava), "question": ASKED, "answers": ["Yes", "No"], "column": "fits"}],
        where="fits_yes > 0.5",
        export={"card": True},
    )
    summary = curate(data, tmp_path / "out", recipe)
    table = read_output(tmp_path / "out" / "embeddings")
    check_rows(table, llava, answers=("Yes", "No"))
    assert 0 < summary.kept == sum((each or 0) > 0.5 for each in table["fits_yes"].to_pylist()) < 9
    card = (tmp_path / "out" / "shards" / "README.md").read_text(encoding="utf-8")
    assert "| `fits_yes` | `float` | answer, probability or sum of them, of `Llava" in card
    with pytest.raises(ConfigError, match="two models would make 'question_answer'"):
        Recipe(ask=[{"model_name": "org/a", "question": "a", "answers": ["b", "c"]}] * 2)
