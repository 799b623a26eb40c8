"""What a notebook shows: a run that is under way, its summary, and images of rows."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, colour_of, write_dataset
from PIL import Image

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.runs.summary import SaveSummary

ANGRY = '<script>alert(1)</script>&"'


class Elements(HTMLParser):
    """The elements of a page and its text; what is left open fails."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def colours_in(page: str) -> list[tuple[int, ...]]:
    """The colour in the middle of each picture."""
    found = []
    for image in Elements(page).of("img"):
        data = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))
        picture = Image.open(io.BytesIO(data))
        found.append(picture.getpixel((picture.width // 2, picture.height // 2)))
    return found


def keys_in(page: str) -> list[str]:
    return re.findall(r"<code>(.*?)</code>", page)


def tables_in(page: str) -> list[list[list[str]]]:
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        for table in re.findall(r"<table>(.*?)</table>", page)
    ]


def test_a_dataset_shows_the_images_of_its_rows(tmp_path, in_this_process):
    write_dataset(tmp_path, bad={"000000004": b"GIF89a"})
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    page = dataset.show(14)._repr_html_()
    keys = keys_in(page)
    rows = [
        key
        for number in (0, 1)
        for key in pq.read_table(tmp_path / f"0000{number}.parquet")["key"].to_pylist()
    ]
    assert keys == rows[:14]
    assert f"caption of {keys[0]}" in Elements(page).text
    assert "damaged GIF" in Elements(page).text
    shown = [key for key in keys if key != "000000004"]
    for key, colour in zip(shown, colours_in(page), strict=True):
        assert max(abs(one - other) for one, other in zip(colour, colour_of(key), strict=True)) <= 6, key


class NoModel(ColourReader):
    def load_embedding_model(self, device):
        raise AssertionError("is not to be loaded")


def test_show_takes_rows_that_pass_from_any_shard_and_runs_no_model(tmp_path, in_this_process):
    keys = write_dataset(tmp_path)
    dataset = NoModel()(ImageTextPairDataset.from_webdataset(tmp_path))
    some = dataset.show(where=f"key in ('{keys[3]}', '{keys[25]}')")
    assert sorted(keys_in(some._repr_html_())) == [keys[3], keys[25]]
    assert len(dataset.show()) == 24
    assert dataset.show(where="key = 'none'")._repr_html_() == "<i>no image</i>"


def test_show_computes_what_its_condition_names(tmp_path, in_this_process):
    keys = write_dataset(tmp_path, shards=1, bad={"000000004": b""})
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path))
    assert keys_in(dataset.show(where="image_error is not null")._repr_html_()) == ["000000004"]
    assert len(dataset.filter("image_error is null").show()) == len(keys) - 1


def test_what_data_say_is_text_and_no_html(tmp_path, in_this_process):
    write_dataset(tmp_path, shards=1, samples=2)
    path = tmp_path / "00000.parquet"
    table = pq.read_table(path)
    captions = pa.array([ANGRY] * 2)
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", captions), path)
    elements = Elements(ImageTextPairDataset.from_webdataset(tmp_path).show()._repr_html_())
    assert elements.of("script") == []
    assert ANGRY in elements.text
    assert [ANGRY in figure["title"] for figure in elements.of("figure")] == [True, True]
    summary = SaveSummary(ANGRY, rows=5, failed=3, written=1)
    summary.reasons.update({ANGRY: 2, "empty": 1})
    summary.examples[ANGRY] = [ANGRY]
    summary.failed_shards[ANGRY] = ANGRY
    elements = Elements(summary._repr_html_())
    assert elements.of("script") == []
    assert elements.text.count(ANGRY) == 5


def test_duplicates_show_their_groups(tmp_path, in_this_process):
    write_dataset(tmp_path / "in", shards=2)
    dataset = ColourReader(normalize_embeddings=True)(ImageTextPairDataset.from_webdataset(tmp_path / "in"))
    dataset.save_metadata(tmp_path / "out")
    result = SemanticDeduplication(eps=0.2, recall=1)(tmp_path / "out")
    with pytest.raises(OutputError, match="not saved yet"):
        result.show()
    result.save(tmp_path / "duplicates")
    rows = pq.read_table(tmp_path / "duplicates").to_pandas()
    groups = rows.groupby("group")
    page = result.show()._repr_html_()
    assert len(groups) <= 8 and {*keys_in(page)} <= {*rows["id"]}
    sizes = [int(size) for size in re.findall(r"group \d+: (\d+) rows", page)]
    assert sorted(sizes) == sorted(groups.size()) and sizes[0] == max(sizes)
    framed = re.findall(r"outline.*?<code>(.*?)</code>", page)
    assert sorted(framed) == sorted(rows["id"][rows["kept"]])
    assert len(re.findall(r"group \d+:", result.show(1)._repr_html_())) == 1


def test_show_says_what_is_wrong(tmp_path, in_this_process):
    write_dataset(tmp_path, shards=1)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    with pytest.raises(ConfigError, match="n=0: expected a whole number"):
        dataset.show(0)
    with pytest.raises(ConfigError, match="heigth"):
        dataset.show(where="heigth > 3")
    with pytest.raises(DatasetError, match="lacks \\['__url__'\\]"):
        dataset.with_metadata(dataset.metadata[["key"]]).show()


def test_a_summary_shows_its_counts_and_its_reasons(tmp_path, in_this_process):
    bad = {"000010004": b"", "000020001": b"", "000020002": b"GIF89a"}
    write_dataset(tmp_path / "in", bad=bad)
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "in"))
    page = dataset.save_metadata(tmp_path / "out")._repr_html_()
    counts, reasons = tables_in(page)
    assert dict(counts)["rows"] == "30"
    assert dict(counts)["failed images"] == "3"
    assert [(reason, count) for reason, count, *_ in reasons] == [("empty", "2"), ("damaged GIF", "1")]
    assert "000020002" in reasons[1][3]
    assert (
        Elements(dataset.save_metadata(tmp_path / "out")._repr_html_()).text.count("files finished before")
        == 1
    )
