"""The card of a dataset: what it says, whom it is for, and that a user's is never touched."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from colours import ColourReader, write_dataset
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.frames.names import STATISTIC_DEFINITIONS, TEXT_DEFINITIONS
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import score_output
from curator_dask.image.statistics import STATISTICS, ImageStatistics
from curator_dask.outputs.card import card_of, size_category
from curator_dask.outputs.card_columns import what_it_is
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.markdown import block, cell, code, public
from curator_dask.text import TEXT_STATISTICS, SameCaptions, TextStatistics

pytestmark = pytest.mark.usefixtures("in_this_process")

SPLITS = {"val": 0.2, "test": 5}


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", 2, 15, bad={"000000003": b"no image"})
    return tmp_path / "data"


@pytest.fixture
def dataset(data):
    return ImageTextPairDataset.from_webdataset(data)


def front_matter(folder: Path) -> dict:
    _, matter, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(matter)


def test_what_it_says(dataset, tmp_path):
    measured = ColourReader()(ImageStatistics(["bytes", "blurriness"], prefix="image_")(dataset))
    measured.save_metadata(tmp_path / "rows")
    score_output(tmp_path / "rows", [SameCaptions(), TextStatistics(["words"])])
    record = pq.read_schema(tmp_path / "rows" / "00000.parquet").metadata[b"curator_dask"].decode()
    (weights,) = re.findall(r'"weights": "(.*?)"', record)
    options = ExportOptions(
        where="image_bytes > 10 and key not like '%7'",
        splits={name: np.float64(size) if size < 1 else size for name, size in SPLITS.items()},
        split_by="width % 1000000 + cast(key as int)",
        samples_per_shard=6,
        card={"license": "cc-by-4.0", "task_categories": "image-classification", "tags": "a, b,a"},
    )
    out = tmp_path / "out"
    summary = export_output(tmp_path / "rows", out, options)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert front_matter(out) == {
        "license": "cc-by-4.0",
        "task_categories": ["image-classification"],
        "tags": ["a", "b"],
        "size_categories": ["n<1K"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "train/*.tar"},
                    {"split": "val", "path": "val/*.tar"},
                    {"split": "test", "path": "test/*.tar"},
                ],
            }
        ],
    }
    for name, count in summary.splits.items():
        assert re.search(rf"^\| `{name}` \| {count.samples} \|.*\| {count.shards} \|", text, re.MULTILINE)
    assert f"{summary.kept} samples in {summary.shards} tars" in text
    assert f"| filtered out | {summary.filtered} |" in text and summary.filtered == 3
    assert "| `image_bytes > 10` | 29 | 1 |" in text or "| `image_bytes > 10` | 30 | 0 |" in text
    assert f"weights `{weights}`" in text and "`image_embedding`" in text
    assert "| `image_blurriness` | `float` | statistic of the image: standard deviation of the edges" in text
    assert "| `text_same_captions` | `int64` | how many rows have the same text in `caption` |" in text
    words = "statistic of the text in `caption`: parts between white space, DataComp's count"
    assert f"| `text_words` | `int32` | {words} |" in text
    assert "| `caption` |" in text and "of the source |" in text
    assert "## Licence\n\ncc-by-4.0" in text
    assert "## Source\n\n*To be filled in by you.*" in text  # and never made up
    asked = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert asked["export"]["splits"] == SPLITS and asked["export"]["where"] == options.where
    assert str(tmp_path) not in text
    assert summary.card == str(out / "README.md") and f"card: {summary.card}" in str(summary)
    before = text
    export_output(tmp_path / "rows", out, options)
    assert (out / "README.md").read_text(encoding="utf-8") == before


def test_a_users_own_stays(dataset, tmp_path):
    out, card = tmp_path / "out", tmp_path / "out" / "README.md"
    dataset.to_webdataset(out, samples_per_shard=8)
    assert not card.exists()
    card.write_text("mine")
    summary = dataset.to_webdataset(out, samples_per_shard=8, card=True)
    assert card.read_text() == "mine" and "no card: there is a README.md" in str(summary)
    card.unlink()
    assert not dataset.to_webdataset(out, samples_per_shard=8, card=True).own_card
    first = card.read_text()
    assert "[*.tar" not in first and front_matter(out)["configs"][0]["data_files"] == [
        {"split": "train", "path": "*.tar"}
    ]
    # What has been filled in stays, also where another export takes the place of this one.
    card.write_text(first.replace("# license: see", "license: mit\n#"))
    filled = card.read_text()
    assert filled != first
    again = dataset.to_webdataset(out, samples_per_shard=8, card=True)
    assert card.read_text() == filled and not again.own_card
    other = dataset.to_webdataset(out, samples_per_shard=9, card=True, overwrite=True)
    assert card.read_text() == filled and other.own_card
    # One that nobody has touched speaks of this export, or is gone.
    card.unlink()
    dataset.to_webdataset(out, samples_per_shard=9, card=True)
    dataset.to_webdataset(out, samples_per_shard=7, card=True, overwrite=True)
    assert "in 5 tars" in card.read_text()
    dataset.to_webdataset(out, samples_per_shard=7, card={"source": "https://example.org"})
    assert "example" in card.read_text()
    dataset.to_webdataset(out, samples_per_shard=6, overwrite=True)
    assert not card.exists()
    # Nor a link that leads nowhere, nor a folder in the place of one that was written.
    card.symlink_to(tmp_path / "gone")
    there = dataset.to_webdataset(out, samples_per_shard=6, card=True)
    assert there.own_card and not there.card and card.is_symlink() and not (tmp_path / "gone").exists()
    card.unlink()
    assert dataset.to_webdataset(out, samples_per_shard=6, card=True).card
    card.unlink()
    card.mkdir()
    assert dataset.to_webdataset(out, samples_per_shard=6, card=True).own_card and card.is_dir()


def test_rows_that_were_filtered_before(dataset, tmp_path):
    frame = dataset.metadata
    frame["odd"] = frame["key"].astype("int64") % 2
    dataset.save_metadata(tmp_path / "rows")
    filter_output(tmp_path / "rows", tmp_path / "some", where="key not like '%7'")
    filter_output(tmp_path / "some", tmp_path / "fewer", at_most=("odd", 12), by="width")
    options = ExportOptions(where="key not like '%5'", card=True)
    summary = export_output(tmp_path / "fewer", tmp_path / "out", options)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    table = dataset.compute()
    some = table[~table["key"].str.endswith("7")]
    fewer = some.groupby("odd").head(12)
    assert len(table) > len(some) > len(fewer) > summary.kept
    for row in (
        f"| rows | {len(table)} |",
        f"| left out before, all but `key not like '%7'` | {len(table) - len(some)} |",
        f"| left out before, all but 12 rows of each `odd`, the best by `width` | {len(some) - len(fewer)} |",
        f"| filtered out | {len(fewer) - summary.kept} |",
        f"| in the tars | {summary.kept} |",
    ):
        assert row in text, text
    old = FileRecord("", derived=("filter",))  # of an earlier version
    text = card_of(summary, options, pa.schema([]), [old])
    assert "it does not say how many were left out then" in text and "before, all but" not in text


def test_hugging_faces_datasets_see_splits_and_samples(tmp_path):
    """By the card tars alone; without it and other files beside the tars by the names of the folders."""
    datasets = pytest.importorskip("datasets")
    write_dataset(tmp_path / "data", 2, 15)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")

    def read(*given, **named):
        found = datasets.load_dataset(*given, cache_dir=str(tmp_path / "hf"), **named)
        return {str(name): {row["__key__"]: row["txt"] for row in rows} for name, rows in found.items()}

    summary = dataset.to_webdataset(tmp_path / "card", splits=SPLITS, samples_per_shard=4, card=True)
    alone = {"metadata": None, "index": False}
    dataset.to_webdataset(tmp_path / "alone", splits=SPLITS, samples_per_shard=4, **alone)
    found = read(str(tmp_path / "card"))
    assert {name: len(rows) for name, rows in found.items()} == {
        name: count.samples for name, count in summary.splits.items()
    }
    assert {key for rows in found.values() for key in rows} == {*dataset.compute()["key"]}
    assert all(text == f"caption of {key}" for rows in found.values() for key, text in rows.items())
    found["validation"] = found.pop("val")  # as it calls a folder of that name
    assert read(str(tmp_path / "alone")) == found
    assert read("webdataset", data_dir=str(tmp_path / "alone")) == found
    # A folder without splits, too.
    dataset.to_webdataset(tmp_path / "plain", card=True)
    assert {name: len(rows) for name, rows in read(str(tmp_path / "plain")).items()} == {"train": 30}


def test_a_recipes_card(data, tmp_path):
    recipe = Recipe(
        statistics=["bytes"],
        where="key not like '%9'",
        export={"splits": {"val": 0.3}, "split_by": "key[-2:]", "card": True, "samples_per_shard": 5},
    )
    summary = curate(data, tmp_path / "out", recipe)
    text = (tmp_path / "out" / "shards" / "README.md").read_text(encoding="utf-8")
    left_out = {
        "with an image that cannot be used": summary.failed,
        "filtered out": summary.filtered,
    }
    assert summary.failed == 1 and all(
        summary.steps["shards"].splits[name].samples for name in ("train", "val")
    )
    for why, count in {"rows": summary.rows, **left_out, "in the tars": summary.kept}.items():
        assert not count or f"| {why} | {count} |" in text
    assert summary.rows == summary.kept + sum(left_out.values())
    asked = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert asked["where"] == recipe.where and asked["export"]["split_by"] == "key[-2:]"
    with pytest.raises(ConfigError, match=r"split_by: there is no column 'cluster'"):
        curate(data, tmp_path / "no", Recipe(export={"splits": {"val": 0.3}, "split_by": "cluster"}))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Recipe(export={"splits": {"val": 10.0}})


def test_the_command(data, tmp_path, client):
    command = [
        "export",
        str(data),
        str(tmp_path / "out"),
        "--scheduler-address",
        client.scheduler.address,
        "--card-field",
    ]
    done = CliRunner().invoke(
        app,
        [*command, "pretty_name=Mine <b>", *("--card-field", "tags=a,b", "--card-field", "tags=c")],
    )
    assert done.exit_code == 0, done.output
    assert front_matter(tmp_path / "out")["tags"] == ["a", "b", "c"]
    assert front_matter(tmp_path / "out")["pretty_name"] == "Mine <b>"
    assert "\n# Mine &lt;b&gt;\n" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for wrong, said in (("licence=mit", "license"), ("license", "expected a name and a value")):
        done = CliRunner().invoke(app, [*command, wrong])
        assert done.exit_code != 0 and said in done.output


def test_what_data_holds_is_no_markup(tmp_path):
    name = "a|b`c`\n# <img src=x>"
    write_dataset(tmp_path / "data", 1, 4)
    table = pq.read_table(tmp_path / "data" / "00000.parquet")
    pq.write_table(table.append_column(name, pa.array([1] * 4)), tmp_path / "data" / "00000.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    dataset.to_webdataset(tmp_path / "out", card={"source": "[x](y)\n# z\n---"})
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| ``a\\|b`c` # <img src=x>`` | `int64` |" in text
    assert "\\[x\\](y) \\# z ---" in text
    assert [line for line in text.splitlines() if line.startswith("# ")] == [
        "# license: see https://huggingface.co/docs/hub/repositories-licenses",
        "# out",
    ]


def test_markdown():
    assert (code("a"), code("`"), code("")) == ("`a`", "`` ` ``", "`  `")
    # Where readers do not agree whether the backslash is escaped, or the mark behind it.
    assert code(r"a\|<b") == "<code>a&#92;&#124;&#60;b</code>"
    assert cell("*a* <b>\x00\n_c_") == "\\*a\\* &lt;b&gt; \\_c\\_" and cell("---") == "\\---"
    assert block("a\n````\n", "yaml") == "`````yaml\na\n````\n`````"


def test_what_is_nobody_elses_is_left_out():
    given = {
        "model": "local-dir:/home/me/models/vit",
        "join": [
            {"table": "https://me:pass@example.org/a.csv?key=SECRET", "storage_options": {"key": "SECRET"}}
        ],
        "near": {"mine": Path("/data/reference/"), "copies": "file:///home/me/my copies/"},
        "without": "simplecache::s3://KEY:SECRET@bucket/a b?versionId=1",
        "image_member": "http://[SECRET",
        "by": "key::int",
        "where": "url like 'https://a?b%'",
        "hf_token": "SECRET",
        "apiKey": "SECRET",
        "caption": [{"model_name": "org/repo", "max_new_tokens": 20}],
        "splits": {"val": 0.1},
    }
    left_out: list[str] = []
    found = public(given, left_out)
    assert left_out == [
        *("model", "join.0.table", "join.0.storage_options", "near.mine", "near.copies", "without"),
        *("image_member", "hf_token", "apiKey"),
    ]
    assert found == {
        "model": "local-dir:vit",
        "join": [{"table": "https://example.org/a.csv"}],
        "near": {"mine": "reference", "copies": "file://my copies"},
        "without": "simplecache::s3://bucket/a b",
        "image_member": "http://",
        "by": "key::int",
        "where": "url like 'https://a?b%'",
        "caption": [{"model_name": "org/repo", "max_new_tokens": 20}],
        "splits": {"val": 0.1},
    }


def test_sizes_are_hugging_faces_words():
    sizes = [0, 999, 1000, 9999, 10_000, 100_000, 10**6, 10**7, 10**8, 10**9, 10**11, 10**12]
    assert [size_category(each) for each in sizes] == [
        *("n<1K", "n<1K", "1K<n<10K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M"),
        *("100M<n<1B", "1B<n<10B", "100B<n<1T", "n>1T"),
    ]


def test_every_statistic_is_defined():
    assert list(STATISTIC_DEFINITIONS) == list(STATISTICS)
    assert list(TEXT_DEFINITIONS) == list(TEXT_STATISTICS)


@pytest.mark.parametrize(
    "card", ["yes", {"license": ""}, {"tags": " , "}, {"source": ["a"]}, {"licence": "mit"}]
)
def test_what_a_card_cannot_say(card):
    with pytest.raises(ConfigError, match="card"):
        ExportOptions(card=card)


def test_statistics_that_a_later_run_has_left_as_they_were_are_told():
    record = FileRecord(
        "x", read_by={"file_pdq": "pdq statistics 1 key pillow 1"}, derived=("known", "my_width")
    )
    assert what_it_is("file_pdq", [record]).startswith("statistic of the image: perceptual hash of 256 bits")
    assert what_it_is("my_width", [record]).startswith("statistic of the image: ")
    assert what_it_is("width", [record]) == "of the source"
