"""A dataset that grows: tars that are there stay as they are, and what is new goes behind them."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import members_of, write_tar
from test_export import digests, keys_in, members_in, samples_in
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, OutputError, ShardError
from curator_dask.outputs import packing
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.exporting import export_output
from curator_dask.webdataset.index import ShardIndex

pytestmark = pytest.mark.usefixtures("in_this_process")


class Crawl:
    """Shards that come in, and the rows of an output: of each key its score."""

    def __init__(self, folder: Path, samples: int = 8):
        self.folder, self.samples = folder, samples
        self.rows, self.out = folder / "rows", folder / "out"
        self.scores: dict[str, float] = {}
        self.rows.mkdir(parents=True)

    def add(self, *shards: int, key="{shard:05d}{sample:04d}", data="data", missing=()):
        for shard in shards:
            keys = [key.format(shard=shard, sample=sample) for sample in range(self.samples)]
            members = [member for name in keys if name not in missing for member in members_of(name)]
            path = write_tar(self.folder / data / f"{shard:05d}.tar", members)
            self.scores |= {name: float(hash_of(name)) for name in keys}
            self.write(shard, keys, path)

    def write(self, shard, keys, path, **columns):
        table = {
            "key": keys,
            "__url__": [str(path)] * len(keys),
            "score": [self.scores[name] for name in keys],
        }
        pq.write_table(pa.table({**table, **columns}), self.rows / f"{shard:05d}.parquet")

    def export(self, append=True, **options):
        chosen = ExportOptions(**{"samples_per_shard": 5, **options}, append=append)
        return export_output(self.rows, self.out, chosen)

    def state(self):
        """Of each file of the tars: bytes and time."""
        return {
            str(path.relative_to(self.out)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(self.out.rglob("*"))
            if path.is_file()
        }

    def manifest(self):
        paths = sorted((self.folder / "out.export" / "manifest").rglob("*.parquet"))
        return pd.concat([pq.read_table(path).to_pandas() for path in paths], ignore_index=True)


def hash_of(key: str) -> int:
    return int(key) * 7919 % 100


@pytest.fixture
def crawl(tmp_path):
    return Crawl(tmp_path / "crawl")


def kept_before(before: dict, after: dict) -> None:
    """Files that were there are as they were, but for those that speak of all tars."""
    for name, said in before.items():
        if name.rpartition("/")[2] not in ("sizes.json", "README.md"):
            assert after[name] == said, name


def consistent(crawl, *, keys="original"):
    """Tars, indexes, Parquet, sizes and manifest say the same."""
    rows = crawl.manifest()
    for folder in {path.parent for path in crawl.out.rglob("*.tar")}:
        sizes, split = json.loads((folder / "sizes.json").read_text()), folder.relative_to(crawl.out)
        found = keys_in(folder)
        assert sizes == {f"{tar}.tar": len(some) for tar, some in found.items()}
        assert [int(tar) for tar in found] == [*range(len(found))]
        for tar, some in found.items():
            index = ShardIndex.read_idx(folder / f"{tar}.idx", folder / f"{tar}.tar")
            assert [sample.key for sample in index.samples] == some
            beside = pq.read_table(folder / f"{tar}.parquet").to_pandas()
            assert beside["key"].tolist() == some
            mine = rows[rows["shard"] == (tar if str(split) == "." else f"{split}/{tar}")]
            assert mine["key"].tolist() == some
            assert beside["score"].tolist() == [crawl.scores[key] for key in mine["source_key"]]
    assert not rows.duplicated(["source_shard", "source_key"]).any()
    assert not rows.duplicated(["key", *(["shard"] if keys == "sequential" else [])]).any()
    return rows


def added_up(summary):
    assert summary.rows == summary.kept + summary.earlier + summary.filtered + summary.missing
    return summary


def test_new_shards_go_behind_tars_that_stay_as_they_are(crawl):
    crawl.add(0, 1)
    first = added_up(crawl.export(where="score < 80"))
    assert (first.earlier_samples, first.kept) == (0, sum(score < 80 for score in crawl.scores.values()))
    every: set[str] = set()
    for number, shards in enumerate([(2,), (3, 4), (5,)]):
        before, tars = crawl.state(), len(crawl.manifest()["shard"].unique())
        every = {*crawl.manifest()["source_key"]}
        crawl.add(*shards, missing=("000050003",) if number == 2 else ())
        summary = added_up(crawl.export(where="score < 80"))
        kept_before(before, crawl.state())
        new = [key for key, score in crawl.scores.items() if score < 80 and key not in every]
        new = [key for key in new if key != "000050003"]
        assert hash_of("000050003") < 80
        rows = consistent(crawl)
        # In the order of the rows, in tars of five that begin behind the last, which is not filled up.
        tail = rows[rows["shard"].astype(int) >= tars]
        assert tail["key"].tolist() == new
        assert [*Counter(tail["shard"]).values()] == [5] * (len(new) // 5) + [len(new) % 5] * (
            len(new) % 5 > 0
        )
        assert (summary.kept, summary.earlier, summary.missing) == (len(new), len(every), int(number == 2))
        assert (summary.outdated, summary.without_row, summary.earlier_shards) == (0, 0, tars)
        assert f"{len(every):,} in earlier tars" in str(summary)
        assert f"in all {len(every) + len(new)} samples" in str(summary)
    source = samples_in(crawl.folder / "data")
    assert samples_in(crawl.out) == {key: source[key] for key in crawl.manifest()["source_key"]}
    # Nothing is new: nothing is touched, and no workers are started.
    before, beside = crawl.state(), digests(crawl.folder / "out.export")

    def refuse():
        raise AssertionError("workers are started")

    options = ExportOptions(samples_per_shard=5, append=True, where="score < 80")
    shutil.move(crawl.folder / "data", crawl.folder / "gone")  # what is in tars is not read again
    again = added_up(export_output(crawl.rows, crawl.out, options, workers=refuse))
    assert (again.kept, again.written, again.earlier, again.missing) == (0, 0, len(crawl.manifest()), 1)
    assert crawl.state() == before and digests(crawl.folder / "out.export") == beside


def test_one_append_of_all_and_one_by_one_hold_the_same(tmp_path):
    one, other = Crawl(tmp_path / "one"), Crawl(tmp_path / "other")
    for crawl in (one, other):
        crawl.add(0)
        crawl.export()
    one.add(1, 2)
    one.export()
    for shard in (1, 2):
        other.add(shard)
        other.export()
    assert samples_in(one.out) == samples_in(other.out)
    assert len(consistent(one)) == len(consistent(other)) == 24
    assert len(members_in(one.out)) == 6 and len(members_in(other.out)) == 6


def test_killed_in_the_middle_it_goes_on_with_the_same_result(tmp_path, monkeypatch):
    whole, killed = Crawl(tmp_path / "a" / "crawl"), Crawl(tmp_path / "b" / "crawl")
    for crawl in (whole, killed):
        crawl.add(0, 1)
        crawl.export(shuffle=3)
        crawl.add(2, 3, 4)
    whole.export(shuffle=3)
    before, pack = killed.state(), packing.PackShard._pack

    def die(self, shard, name):
        if name == "00006":
            raise KeyboardInterrupt
        return pack(self, shard, name)

    monkeypatch.setattr(packing.PackShard, "_pack", die)
    with pytest.raises(KeyboardInterrupt):
        killed.export(shuffle=3)
    monkeypatch.undo()
    there = killed.state()
    kept_before(before, there)
    assert 4 < len([name for name in there if name.endswith(".tar")]) < 9
    assert json.loads(there["sizes.json"][1]) == json.loads(before["sizes.json"][1])
    other = shutil.copytree(killed.folder, tmp_path / "c" / "crawl")
    summary = added_up(killed.export(shuffle=3))
    kept_before(there, killed.state())
    assert summary.skipped == len([name for name in there if name.endswith(".tar")]) - 4
    assert digests(killed.out) == digests(whole.out)
    assert killed.export(shuffle=3).kept == 0
    # Rows are others by then: tars that were finished stay all the same, and numbers have no gap.
    grown = Crawl.__new__(Crawl)
    grown.__dict__.update(killed.__dict__, folder=other, rows=other / "rows", out=other / "out")
    there = grown.state()
    grown.samples = 8
    grown.add(5)
    grown.export(shuffle=3)
    kept_before(there, grown.state())
    assert len(consistent(grown)) == 48


def test_killed_and_shards_gone_meanwhile_it_goes_on_without_them(crawl, monkeypatch):
    """Their samples are all in tars that the call that died has finished: nothing has to be read of them again."""
    crawl.add(0)
    crawl.export(samples_per_shard=8)
    crawl.add(1, 2, 3)
    pack = packing.PackShard._pack

    def die(self, shard, name):
        if name == "00003":
            raise KeyboardInterrupt
        return pack(self, shard, name)

    monkeypatch.setattr(packing.PackShard, "_pack", die)
    with pytest.raises(KeyboardInterrupt):
        crawl.export(samples_per_shard=8)
    monkeypatch.undo()
    there = crawl.state()
    assert "00002.tar" in there and "00003.tar" not in there
    (crawl.folder / "data" / "00001.tar").unlink()
    summary = added_up(crawl.export(samples_per_shard=8))
    assert (summary.kept, summary.earlier, summary.missing) == (8, 24, 0)
    kept_before(there, crawl.state())
    assert len(consistent(crawl)) == 32
    # One that is needed is asked for, though.
    crawl.add(4, 5)
    (crawl.folder / "data" / "00005.tar").unlink()
    with pytest.raises(ShardError, match=r"00005\.tar.*is it still there"):
        crawl.export(samples_per_shard=8)


def test_an_overwrite_that_died_leaves_no_tar_that_passes_for_a_new_one(crawl, monkeypatch):
    """It dies when it has noted its settings, and no tar is replaced: none that is there is by them."""
    crawl.add(0, 1)
    crawl.export(append=False, caption="key")

    def die(self, names, own):
        raise KeyboardInterrupt

    asked = {"where": "score < 60", "max_side": 16, "caption": None}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ExportPlace, "_make_folders", die)
        crawl.export(append=False, overwrite=True, **asked)
    summary = added_up(crawl.export(**asked))
    new = [key for key, score in crawl.scores.items() if score < 60]
    assert (summary.earlier, summary.kept, consistent(crawl)["key"].tolist()) == (0, len(new), new)
    for path in crawl.out.glob("*.parquet"):
        assert max(pq.read_table(path, columns=["exported_width"]).column(0).to_pylist()) <= 16


def test_samples_that_would_not_pass_today_stay_and_are_counted(crawl):
    crawl.add(0, 1)
    crawl.export()
    before = crawl.state()
    crawl.add(2)
    (crawl.rows / "00000.parquet").unlink()
    summary = added_up(crawl.export(where="score < 50"))
    scores = [hash_of(f"{shard:05d}{sample:04d}") for shard in (1, 2) for sample in range(8)]
    assert summary.outdated == sum(score >= 50 for score in scores[:8]) > 0
    assert (summary.rows, summary.earlier, summary.without_row) == (16, 8, 8)
    assert summary.kept == sum(score < 50 for score in scores[8:])
    assert "would not pass today, and stay" in str(
        summary
    ) and "8 of the samples in earlier tars have no row" in str(summary)
    kept_before(before, crawl.state())
    consistent(crawl)


def test_keys_stay_unique_over_all_tars(crawl):
    crawl.add(0, 1)
    crawl.export()
    crawl.add(2, key="00000{sample:04d}", data="more")
    before = crawl.state()
    with pytest.raises(
        DatasetError, match=r"8 keys more than once: .*00000.tar \(of an earlier call\), .*/00002.tar"
    ):
        crawl.export()
    assert crawl.state() == before
    # Numbers go on, and the same keys of another shard are other samples.
    crawl.out = crawl.folder / "numbered"
    crawl.rows.joinpath("00002.parquet").rename(crawl.folder / "later.parquet")
    options = {"samples_per_shard": 5, "keys": "sequential", "append": True}
    export_output(crawl.rows, crawl.out, ExportOptions(**options))
    (crawl.folder / "later.parquet").rename(crawl.rows / "00002.parquet")
    summary = export_output(crawl.rows, crawl.out, ExportOptions(**options))
    assert (summary.kept, summary.earlier) == (8, 16)
    found = keys_in(crawl.out)
    assert [*found] == [f"{number:05d}" for number in range(6)]
    assert [key for keys in found.values() for key in keys] == [
        f"{tar}{sample}"
        for tar, count in zip(found, (5, 5, 5, 1, 5, 3), strict=True)
        for sample in range(count)
    ]


@pytest.mark.parametrize("by", [None, "score % 7"])
def test_a_row_stays_in_its_split(tmp_path, by):
    grown, whole = Crawl(tmp_path / "grown", 40), Crawl(tmp_path / "whole", 40)
    options = {"splits": {"val": 0.2, "test": 10}, "split_by": by, "samples_per_shard": 20}
    grown.add(0, 1)
    first = grown.export(**options)
    before, was = grown.state(), grown.manifest()
    grown.add(2, 3)
    summary = added_up(grown.export(**options))
    kept_before(before, grown.state())
    rows = consistent(grown)
    split = rows["shard"].str.partition("/")[0]
    assert (split.iloc[: len(was)] == was["shard"].str.partition("/")[0]).all() or len(rows) == 160
    counts = {name: count.samples for name, count in summary.splits.items()}
    assert counts == split.value_counts().to_dict() and sum(counts.values()) == 160
    assert summary.splits["train"].earlier == first.splits["train"].samples
    assert summary.splits["val"].shards == rows[split == "val"]["shard"].nunique()
    if by is None:  # a number stays as it is, a share is what it is of all rows
        assert counts["test"] == 10
        whole.add(0, 1, 2, 3)
        whole.export(**{**options, "splits": {"val": 0.2}})
        every = whole.manifest()
        mine = {*rows[split == "val"]["source_key"]}
        assert mine == {*every[every["shard"].str.startswith("val")]["source_key"]}
    else:  # rows of one value are in one split, whatever came later
        value = rows["source_key"].map(grown.scores) % 7
        assert (split.groupby(value).nunique() == 1).all() and counts["test"] >= 10


def test_what_would_make_tars_unlike_each_other_is_refused(crawl):
    crawl.add(0)
    crawl.export()
    crawl.add(1)
    before = crawl.state()
    for options, said in (
        ({"samples_per_shard": 6}, "samples_per_shard=5, and this call has samples_per_shard=6"),
        ({"max_shards": 6}, "max_shards=5"),
        ({"index": False}, "index=True"),
        ({"metadata": None}, "metadata='parquet'"),
        ({"columns": ["score"]}, "columns=None"),
        ({"max_side": 10}, "max_side=None"),
        ({"keys": "sequential"}, "keys='original' and layout='original'"),
        ({"splits": {"val": 0.5}}, "splits=None"),
    ):
        with pytest.raises(OutputError, match="tars that are added are like those") as error:
            crawl.export(**options)
        assert said in str(error.value)
    with pytest.raises(ConfigError, match="append and overwrite"):
        crawl.export(overwrite=True)
    keys = [f"00001{sample:04d}" for sample in range(8)]
    crawl.write(1, keys, crawl.folder / "data" / "00001.tar", note=["n"] * 8)
    assert crawl.export(dry_run=True).left_columns == ["note"]
    assert crawl.state() == before
    for shard in (0, 1):
        table = pq.read_table(crawl.rows / f"0000{shard}.parquet")
        text = table.set_column(2, "score", table["score"].cast(pa.string()))
        pq.write_table(text, crawl.rows / f"0000{shard}.parquet")
    with pytest.raises(OutputError, match="'score' is double beside its tars, and string in the rows now"):
        crawl.export()
    for shard in (0, 1):
        path = crawl.rows / f"0000{shard}.parquet"
        pq.write_table(pq.read_table(path).drop_columns("score"), path)
    with pytest.raises(OutputError, match=r"lack now: \['score'\]"):
        crawl.export()
    assert crawl.state() == before


def test_a_column_without_any_value_at_first_has_one_type_later(tmp_path):
    crawl = Crawl(tmp_path / "crawl", samples=2)
    for shard, values in enumerate([pa.nulls(2), pa.array([1, 2]), pa.array(["a", "b"])]):
        crawl.add(shard)
        keys = [f"{shard:05d}{sample:04d}" for sample in range(2)]
        for path in crawl.rows.glob("*.parquet"):  # those of the new shard alone
            path.unlink()
        crawl.write(shard, keys, crawl.folder / "data" / f"{shard:05d}.tar", lang=values)
        if shard < 2:
            crawl.export()
            continue
        with pytest.raises(OutputError, match="'lang' is int64 beside its tars, and string in the rows now"):
            crawl.export()
    assert not (crawl.out / "00002.tar").exists()


def test_tars_that_are_not_as_they_were_written_are_refused(crawl, tmp_path):
    crawl.add(0)
    crawl.export(append=False)
    crawl.add(1)
    with pytest.raises(OutputError, match="append=True"):
        crawl.export(append=False)
    tar, manifest = crawl.out / "00000.tar", crawl.folder / "out.export" / "manifest" / "00000.parquet"
    data = tar.read_bytes()
    tar.write_bytes(data + b"0")
    with pytest.raises(OutputError, match=r"and .* were written"):
        crawl.export()
    tar.unlink()
    with pytest.raises(OutputError, match="put it back as it was"):
        crawl.export()
    tar.write_bytes(data)
    said = manifest.read_bytes()
    manifest.write_bytes(said[:50])
    with pytest.raises(OutputError, match="it is not known which samples"):
        crawl.export()
    manifest.write_bytes(said)
    beside = shutil.move(crawl.folder / "out.export", tmp_path / "beside")
    with pytest.raises(OutputError, match="which says what its samples are, is not"):
        crawl.export()
    shutil.move(beside, crawl.folder / "out.export")
    (crawl.out / "00002.tar").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"00002.tar: is there"):
        crawl.export()
    (crawl.out / "00002.tar").unlink()
    assert crawl.export().kept == 8 and len(consistent(crawl)) == 16


def test_card_json_and_portable_names_are_of_all_tars(crawl):
    options = {"metadata": "json", "layout": "portable", "card": True}
    crawl.add(0)
    first, failed = pq.read_table(crawl.rows / "00000.parquet"), ["truncated: x", *[None] * 7]
    pq.write_table(first.append_column("image_error", pa.array(failed)), crawl.rows / "00000.parquet")
    crawl.export(**options, sizes=True)
    card = crawl.out / "README.md"
    assert "8 samples in 2 tars" in card.read_text()
    key = "{shard:05d}{sample:04d}"
    path = crawl.folder / "data" / "00001.tar"
    keys = [key.format(shard=1, sample=sample) for sample in range(8)]
    crawl.scores |= dict.fromkeys(keys, 1.0)
    members = [member for name in keys for member in members_of(name)[: 1 + int(name[-1]) % 2]]
    write_tar(path, members)
    crawl.write(1, keys, path, note=["n"] * 8, image_error=failed)
    summary = crawl.export(**options, sizes=True)
    assert summary.errors == summary.earlier_errors == {"truncated": 1}
    assert "2 samples have an image that could not be used" in card.read_text()
    text = card.read_text()
    assert "16 samples in 4 tars" in text and "| `.txt` | 16 |" in text and not summary.habits
    assert summary.left_columns == ["note"]
    with tarfile.open(crawl.out / "00002.tar") as tar:
        said = json.loads(tar.extractfile(f"{keys[0]}.json").read())
        assert tar.extractfile(f"{keys[0]}.txt").read() == b"" and said["score"] == 1.0 and "note" not in said
    card.write_text("mine")
    crawl.add(2)
    summary = crawl.export(**options, sizes=True)
    assert not summary.failed_shards
    assert summary.own_card and card.read_text() == "mine"


def test_by_bytes_numbers_of_samples_keep_their_digits(crawl):
    options = {"shard_bytes": 25_000, "keys": "sequential"}
    crawl.add(0)
    crawl.export(**options)
    before = keys_in(crawl.out)
    crawl.samples = 30
    crawl.add(1)
    crawl.export(**options)
    found = keys_in(crawl.out)
    widths = {len(key) for keys in found.values() for key in keys}
    assert len(widths) == 1 and [*found][: len(before)] == [*before]
    assert len({key for keys in found.values() for key in keys}) == 38


def test_the_command_and_a_dataset_append(crawl, tmp_path):
    crawl.add(0)
    data, out = str(crawl.folder / "data"), str(tmp_path / "out")
    command = ["export", data, out, "--append", "--samples-per-shard", "5", "--cluster", "cpu"]
    dataset = ImageTextPairDataset.from_webdataset(data)
    assert dataset.to_webdataset(out, append=True, samples_per_shard=5).kept == 8
    result = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "said.json")])  # starts no workers
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "said.json").read_text())
    assert (said["kept"], said["earlier"], said["earlier_samples"], said["rows"]) == (0, 8, 8, 8)
    crawl.add(1)
    dataset = ImageTextPairDataset.from_webdataset(data)
    summary = dataset.to_webdataset(out, append=True, samples_per_shard=5)
    assert (summary.kept, summary.earlier) == (8, 8)
    np.testing.assert_equal(len(samples_in(Path(out))), 16)


def test_shards_that_were_moved_are_named(crawl, said):
    crawl.add(0)
    crawl.export(keys="sequential")
    crawl.add(0, data="elsewhere")
    crawl.export(keys="sequential", dry_run=True)
    assert "which have some of" in said.text and "now there is" in said.text
    assert said.text.count("elsewhere/00000.tar") == 1


def test_a_shard_that_has_grown_gives_its_new_samples(crawl):
    crawl.add(0, 1)
    crawl.export(where="score < 80")
    before, there = crawl.state(), {*crawl.manifest()["source_key"]}
    crawl.samples = 12
    crawl.add(1)
    summary = added_up(crawl.export(where="score < 80"))
    new = [f"00001{sample:04d}" for sample in range(8, 12)]
    assert summary.kept == sum(crawl.scores[key] < 80 for key in new) > 1
    kept_before(before, crawl.state())
    assert {*consistent(crawl)["source_key"]} == there | {key for key in new if crawl.scores[key] < 80}
