"""Tars of rows of one value, in a folder of each: which sample goes where, what folders are called, and what stays."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from colours import write_dataset
from test_export import digests
from test_splits import keys_of, number_of, samples_in, shared_out
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs.groups import folder_names
from curator_dask.recipe import Recipe

pytestmark = pytest.mark.usefixtures("in_this_process")

LANGUAGES = ["en", "de", "en", "zh-Hant", None]


def language_of(key: str) -> str | None:
    return LANGUAGES[int(key) * 7 % 5]


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", 3, 20)
    add_languages(tmp_path / "data")
    return tmp_path / "data"


def add_languages(folder: Path) -> None:
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        if "lang" not in table.column_names:
            values = pa.array([language_of(key) for key in table["key"].to_pylist()])
            pq.write_table(table.append_column("lang", values), path)


@pytest.fixture
def dataset(data):
    return ImageTextPairDataset.from_webdataset(data)


def test_each_tar_has_rows_of_one_value(data, dataset, tmp_path):
    out = tmp_path / "out"
    how = {"by": "lang", "samples_per_shard": 5, "card": True}
    summary = dataset.to_webdataset(out, **how)
    every = dataset.compute()["key"].tolist()
    keys, source = (
        keys_of(out),
        {key: files for some in samples_in(data).values() for key, files in some.items()},
    )
    # In the order of the rows, in folders that are called as the values are.
    assert keys == {
        folder: [key for key in every if (language_of(key) or "null") == folder]
        for folder in ("de", "en", "null", "zh-Hant")
    }
    counts = {folder: len(some) for folder, some in keys.items()}
    for tar, samples in samples_in(out).items():
        folder, _, number = tar.partition("/")
        assert len(samples) == min(5, counts[folder] - 5 * int(number))
        assert all(files == source[key] for key, files in samples.items())
        values = pq.read_table(out / f"{tar}.parquet")["lang"].to_pylist()
        assert {value or "null" for value in values} == {folder} and (out / f"{tar}.idx").exists()
        sizes = json.loads((out / folder / "sizes.json").read_text())
        assert sizes[f"{number}.tar"] == len(samples) and len(sizes) == -(-counts[folder] // 5)
    assert {name: count.samples for name, count in summary.groups.items()} == counts
    assert {name: count.value for name, count in summary.groups.items()} == {
        **{n: n for n in counts},
        "null": None,
    }
    assert sum(count.shards for count in summary.groups.values()) == summary.shards == len(samples_in(out))
    assert sum(count.bytes for count in summary.groups.values()) == summary.bytes
    assert f"en: {counts['en']} samples in 5 tars" in str(summary)
    assert json.loads(json.dumps(summary.to_dict()))["groups"]["en"]["samples"] == counts["en"]
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    paths = {each["config_name"]: each["data_files"][0]["path"] for each in front["configs"]}
    assert paths == {"default": "*/*.tar", **{name: f"{name}/*.tar" for name in counts}}
    again = dataset.to_webdataset(out, **how)
    assert (again.written, again.skipped) == (0, summary.shards) and again.groups == summary.groups
    # What comes of it is read as any export is, and what is missing is made again.
    assert sorted(ImageTextPairDataset.from_webdataset(out).compute()["key"]) == sorted(every)
    before = digests(out)
    (out / "en/00001.tar").unlink()
    mended = dataset.to_webdataset(out, **how)
    assert mended.written == 1 and digests(out) == before
    with pytest.raises(OutputError, match="overwrite"):
        dataset.to_webdataset(out, **{**how, "by": "lang IS NULL"})
    dataset.to_webdataset(out, **{**how, "by": "lang IS NULL"}, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"true", "false", "README.md"}


def test_within_splits_in_a_random_order(dataset, tmp_path):
    wanted = {"val": 0.3}
    how = {
        "by": "lang",
        "splits": wanted,
        "shuffle": 5,
        "keys": "sequential",
        "old_id_col": "old",
        "shards": 2,
    }
    summary = dataset.to_webdataset(tmp_path / "out", **how)
    every = dataset.compute()["key"].tolist()
    split = shared_out({key: number_of(key) for key in every}, wanted)
    found: dict[str, list[str]] = {}
    for tar, samples in samples_in(tmp_path / "out").items():
        old = pq.read_table(tmp_path / f"out/{tar}.parquet")["old"].to_pylist()
        found.setdefault(tar.rpartition("/")[0], []).extend(old)
        assert [*samples] == [
            f"{tar[-5:]}{number:0{len(next(iter(samples))) - 5}d}" for number in range(len(samples))
        ]
    folders = {f"{split[key]}/{language_of(key) or 'null'}" for key in every}
    assert {folder: sorted(old) for folder, old in found.items()} == {
        folder: sorted(key for key in every if f"{split[key]}/{language_of(key) or 'null'}" == folder)
        for folder in folders
    }
    assert any(old != sorted(old) for old in found.values())
    # Of each split, and of each value in it.
    assert {name: count.samples for name, count in summary.splits.items()} == Counter(split.values())
    assert {name: count.samples for name, count in summary.groups.items()} == {
        f: len(o) for f, o in found.items()
    }
    largest = max(found, key=lambda folder: len(found[folder]))
    assert summary.groups[largest].shards == 2
    assert summary.splits["val"].shards == sum(
        count.shards for name, count in summary.groups.items() if name.startswith("val/")
    )


def test_new_rows_go_to_the_folders_of_their_values(dataset, data, tmp_path):
    how = {"by": "lang", "samples_per_shard": 8, "append": True}
    first = dataset.to_webdataset(tmp_path / "out", **how)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.tar")}
    write_dataset(tmp_path / "more", 1, 20, key="9{shard:04d}{sample:04d}")
    (tmp_path / "more/00000.tar").rename(data / "00009.tar")
    table = pq.read_table(tmp_path / "more/00000.parquet")
    # "DE" is called as "de" is, but for upper case: where names do not tell these apart, its tars would be among them.
    new = ["DE" if number % 2 else "en" for number in range(20)]
    pq.write_table(table.append_column("lang", pa.array(new)), data / "00009.parquet")
    grown = ImageTextPairDataset.from_webdataset(data).to_webdataset(tmp_path / "out", **how)
    assert {path: path.read_bytes() for path in before} == before
    (folder,) = {path.parent.name for path in (tmp_path / "out").rglob("*.tar")} - {*first.groups}
    assert folder.startswith("DE-") and grown.groups[folder].value == "DE"
    keys, values = keys_of(tmp_path / "out"), dict(zip(table["key"].to_pylist(), new, strict=True))
    assert {key: value for key, value in values.items() if key in keys[folder]} == dict.fromkeys(
        keys[folder], "DE"
    )
    assert len(keys[folder]) == 10 and {key for key, value in values.items() if value == "en"} <= {
        *keys["en"]
    }
    english = grown.groups["en"]
    assert (english.samples, english.earlier) == (first.groups["en"].samples + 10, first.groups["en"].samples)
    assert english.shards == len([*(tmp_path / "out/en").glob("*.tar")]) and "10 of them new" in str(grown)
    sizes = json.loads((tmp_path / "out/en/sizes.json").read_text())
    assert sum(sizes.values()) == english.samples
    with pytest.raises(OutputError, match="by='lang'"):
        dataset.to_webdataset(tmp_path / "out", **{**how, "by": "width"})


NAMES = {
    b"en": "en",
    b"CC BY-SA 4.0": "CC_BY-SA_4.0",
    b"1024x1024": "1024x1024",
    b"../../etc/passwd": "x_etc_passwd",
    b".hidden": "x.hidden",
    b"_private": "x_private",
    b"-rf": "x-rf",
    b"a.": "a",
    "größe".encode(): "gr_e",
    None: "null",
    b"": "empty",
}


def test_names_of_folders():
    assert folder_names(NAMES) == NAMES
    values = [
        b"en",
        b"EN",
        b"a b",
        b"a_b",
        b"a/b",
        b"A B",
        b"null",
        None,
        b"empty",
        b"",
        b"sizes.json",
        b"con",
    ]
    values += [
        b"x.tar",
        b"\xff",
        b"\xfe",
        "日本".encode(),
        "中文".encode(),
        b"x" * 300,
        b"x" * 301,
        b"/",
        b"..",
        b".",
    ]
    found = folder_names(values)
    assert len({name.lower() for name in found.values()}) == len(values)
    assert all(
        name.isascii() and "/" not in name and name[0].isalnum() and len(name) < 100
        for name in found.values()
    )
    assert (found[b"en"], found[b"a_b"], found[None], found[b""]) == ("en", "a_b", "null", "empty")
    assert all(
        "-" in found[each] for each in (b"EN", b"a b", b"a/b", b"null", b"sizes.json", b"x.tar", b"con")
    )
    assert folder_names(values[::-1]) == found  # whatever order they come in
    # Those that are there keep their names, and new ones are not called so.
    assert folder_names([b"en", b"De"], {b"EN": "EN", b"x": "de"})[b"en"].startswith("en-")
    assert folder_names([b"en", b"De"], {b"EN": "EN", b"x": "de"})[b"De"].startswith("De-")


def test_what_cannot_be_asked(dataset, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"by='key' \(--by\): 60 values.*more than 50.*'000000000' 1, .*60 values have a single",
    ) as told:
        dataset.to_webdataset(tmp_path / "no", by="key", by_most=50)
    assert "--by-most" in str(told.value)
    with pytest.raises(ConfigError, match=r"more than 50.*The largest have '0{71}[0-9]{9}'\.\.\. 1, "):
        dataset.to_webdataset(tmp_path / "no", by="repeat('0', 71) || key || repeat('x', 9)", by_most=50)
    for options, said in (
        ({"by": "langu"}, "by='langu': there is no column 'langu'"),
        ({"by": "[lang]"}, r"by='\[lang\]' \(--by\): expected single values"),
        ({"by": "lang", "by_most": 0}, "by_most=0"),
        ({"by_most": 3}, "give a column as by"),
    ):
        with pytest.raises(ConfigError, match=said):
            dataset.to_webdataset(tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="train: is a link"):
        dataset.to_webdataset(tmp_path / "out", by="lang", splits={"val": 0.5})
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_the_command_and_the_recipe(data, dataset, tmp_path, client):
    dataset.to_webdataset(tmp_path / "by hand", by="upper(lang)")
    at = ["--scheduler-address", client.scheduler.address]
    done = CliRunner().invoke(app, ["export", str(data), str(tmp_path / "out"), "--by", "upper(lang)", *at])
    assert done.exit_code == 0 and "ZH-HANT: " in done.output, done.output
    assert digests(tmp_path / "out") == digests(tmp_path / "by hand")
    assert Recipe(export={"by": "lang", "by_most": 9}).options(False).grouping.most == 9
    frame = pd.DataFrame({"lang": [value for value in LANGUAGES if value]})
    assert {*frame["lang"].str.upper()} == {path.name for path in (tmp_path / "out").iterdir()} - {"null"}
