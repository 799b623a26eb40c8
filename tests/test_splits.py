"""Splits of an export: which sample goes where, by brute force; and `sizes.json` beside the tars."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import tarfile
from collections import Counter
from pathlib import Path

import dask
import dask.dataframe as dd
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, write_dataset
from test_export import digests
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.packing import PackShard
from curator_dask.outputs.splits import SplitBy, Splits, linked

pytestmark = pytest.mark.usefixtures("in_this_process")

SHARDS, SAMPLES = 4, 15
WANTED = {"val": 0.2, "test": 7}
TARS = {"metadata": None, "index": False}  # alone


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", SHARDS, SAMPLES)
    return tmp_path / "data"


@pytest.fixture
def dataset(data):
    return ImageTextPairDataset.from_webdataset(data)


def samples_in(folder: Path) -> dict[str, dict[str, list[tuple[str, bytes]]]]:
    """By tar below a folder, and by key in their order: names and bytes of its members; by Python's tarfile."""
    found = {}
    for path in sorted(folder.rglob("*.tar")):
        mine = found.setdefault(str(path.relative_to(folder).with_suffix("")), {})
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                mine.setdefault(key, []).append((suffix, tar.extractfile(member).read()))
    return found


def keys_of(folder: Path) -> dict[str, list[str]]:
    """By split, the keys in their order."""
    found: dict[str, list[str]] = {}
    for tar, samples in samples_in(folder).items():
        found.setdefault(tar.rpartition("/")[0], []).extend(samples)
    return found


def split_of(keys: dict[str, list[str]]) -> dict[str, str]:
    return {key: split for split, some in keys.items() for key in some}


# ---- the same in Python's own numbers


def mixed(x: int) -> int:
    for shift, times in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift)) * times % 2**64
    return x ^ (x >> 31)


def number_of(name: str, kind: bytes = b"key", seed: int = 0) -> int:
    key = seed.to_bytes(8, "little")
    data = name.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key, person=kind).digest(), "little")


def shared_out(units: dict[str, int], wanted: dict[str, float | int], seed: int = 0) -> dict[str, str]:
    """By key, its split; a unit at a time."""
    members: dict[int, list[str]] = {}
    for key, unit in units.items():
        members.setdefault(unit, []).append(key)
    found, total = {}, 0.0
    for name, size in wanted.items():
        if isinstance(size, float):
            for unit, keys in members.items():
                if total * 2**64 <= mixed(unit) < (total + size) * 2**64:
                    found |= dict.fromkeys(keys, name)
            total += size
    for name, size in wanted.items():
        if isinstance(size, int):
            left = [unit for unit, keys in members.items() if keys[0] not in found]
            for unit in sorted(left, key=lambda it: mixed(it ^ number_of(name, b"split", seed))):
                if len(members[unit]) <= size:
                    found |= dict.fromkeys(members[unit], name)
                    size -= len(members[unit])
    return {key: found.get(key, "train") for key in units}


# ---- tars


def test_shares_and_numbers(data, dataset, tmp_path):
    out = tmp_path / "out"
    summary = dataset.to_webdataset(out, splits=WANTED, samples_per_shard=4)
    every = dataset.compute()["key"].tolist()
    expected = shared_out({key: number_of(key) for key in every}, WANTED)
    keys = keys_of(out)
    assert split_of(keys) == expected and set(keys) == {"train", "val", "test"}
    # Of a share it is known to the key, whatever version or machine decides.
    assert keys["val"][:4] == [key for key in every if expected[key] == "val"][:4]
    assert {split: list(some) for split, some in keys.items()} == {
        split: [key for key in every if expected[key] == split] for split in keys
    }
    source = {key: files for some in samples_in(data).values() for key, files in some.items()}
    counts = Counter(expected.values())
    for tar, samples in samples_in(out).items():
        split, _, number = tar.partition("/")
        assert len(samples) == min(4, counts[split] - 4 * int(number))
        assert all(files == source[key] for key, files in samples.items())
        table = pq.read_table(out / f"{tar}.parquet")
        assert table["caption"].to_pylist() == [f"caption of {key}" for key in samples]
        assert (out / f"{tar}.idx").exists()
    assert (summary.rows, summary.kept, summary.filtered, summary.missing) == (60, 60, 0, 0)
    assert {name: count.samples for name, count in summary.splits.items()} == dict(counts)
    assert sum(count.shards for count in summary.splits.values()) == summary.shards == len(samples_in(out))
    assert sum(count.bytes for count in summary.splits.values()) == summary.bytes
    assert counts["test"] == 7 and "test: 7 samples in 2 tars (7 were asked for)" in str(summary)
    json.dumps(summary.to_dict())
    for split in keys:
        assert size_by_open_clip(out / split) == (counts[split], summary.splits[split].shards)
    manifest = pq.read_table(f"{out}.export/manifest").to_pylist()
    assert {(row["shard"].partition("/")[0], row["key"]) for row in manifest} == {
        (split, key) for key, split in expected.items()
    }
    whole = ImageTextPairDataset.from_webdataset(out)
    assert sorted(whole.compute()["key"]) == sorted(every)
    before = digests(tmp_path)
    again = dataset.to_webdataset(out, splits=WANTED, samples_per_shard=4)
    assert (again.written, again.skipped) == (0, summary.shards) and digests(tmp_path) == before
    for other in ({"splits": {"val": 0.3}}, {"splits": WANTED, "split_seed": 1}, {}):
        with pytest.raises(OutputError, match="overwrite"):
            dataset.to_webdataset(out, samples_per_shard=4, **other)
    assert digests(tmp_path) == before
    dataset.to_webdataset(out, samples_per_shard=20, overwrite=True)
    assert sorted(digests(out)) == sorted(
        [f"{n:05d}.{suffix}" for n in range(3) for suffix in ("tar", "idx", "parquet")] + ["sizes.json"]
    )
    assert not (out / "val").exists() and size_by_open_clip(out) == (60, 3)


def size_by_open_clip(folder: Path) -> tuple[int, int]:
    """What ``get_dataset_size`` of open_clip's ``open_clip_train/data.py`` does with the tars of a folder."""
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    sizes = json.loads((folder / "sizes.json").read_text())
    assert len(sizes) == len(shards)
    return sum(int(sizes[Path(shard).name]) for shard in shards), len(shards)


def test_a_share_is_known_to_the_key():
    """The same wherever and whenever it is made: an evaluation of last year is still one."""
    keys = [f"{number:09d}" for number in range(1000)]
    of, counts = Splits({"val": 0.01}).assign(Splits({"val": 0.01}).hashed(map(str.encode, keys), b"key"))
    assert [keys[at] for at in np.flatnonzero(of)] == PINNED
    assert (counts["val"].samples, counts["train"].samples) == (len(PINNED), 1000 - len(PINNED))


PINNED = ["000000052", "000000080", "000000152", "000000438", "000000463", "000000749", "000000867"]


def test_it_does_not_depend_on_order_partitions_or_other_samples(data, dataset, tmp_path):
    wanted = {"val": 0.2, "test": 0.1}
    dataset.to_webdataset(tmp_path / "all", splits=wanted, **TARS)
    all_of = split_of(keys_of(tmp_path / "all"))
    assert 3 < Counter(all_of.values())["val"] < 22
    frame = dataset.metadata.repartition(npartitions=2)
    dataset.with_metadata(frame).to_webdataset(
        tmp_path / "mixed", splits=wanted, shuffle=3, samples_per_shard=20, **TARS
    )
    assert split_of(keys_of(tmp_path / "mixed")) == all_of
    dataset.to_webdataset(tmp_path / "some", splits=wanted, where="key like '%1'", **TARS)
    some = split_of(keys_of(tmp_path / "some"))
    assert some == {key: all_of[key] for key in some} and len(some) == 8
    write_dataset(data, SHARDS + 3, SAMPLES, shuffle=False)
    grown = ImageTextPairDataset.from_webdataset(data)
    grown.to_webdataset(tmp_path / "grown", splits=wanted, **TARS)
    grown_of = split_of(keys_of(tmp_path / "grown"))
    assert len(grown_of) == 105 and {key: grown_of[key] for key in all_of} == all_of
    # Of a number only what makes room for new samples goes, and to what is left.
    dataset.to_webdataset(tmp_path / "before", splits=WANTED, **TARS)
    grown.to_webdataset(tmp_path / "after", splits=WANTED, **TARS)
    before, after = (split_of(keys_of(tmp_path / name)) for name in ("before", "after"))
    assert {(before[key], after[key]) for key in before if before[key] != after[key]} <= {("test", "train")}


def test_order_keys_and_bytes_of_each_split(dataset, tmp_path):
    """As those of the whole: a random order, keys from 0, tars of so many bytes."""
    dataset.to_webdataset(tmp_path / "whole", shuffle=7, **TARS)
    (order,) = keys_of(tmp_path / "whole").values()
    options = {"shuffle": 7, "splits": WANTED, "samples_per_shard": 9}
    dataset.to_webdataset(tmp_path / "out", **options, **TARS)
    keys = keys_of(tmp_path / "out")
    for some in keys.values():
        assert some == [key for key in order if key in some] != sorted(some)
    dataset.to_webdataset(tmp_path / "new", old_id_col="old", **options)
    for tar, samples in samples_in(tmp_path / "new").items():
        number = int(tar.rpartition("/")[2])
        assert list(samples) == [f"{number:05d}{place}" for place in range(len(samples))]
    for split, some in keys.items():
        rows = ImageTextPairDataset.from_webdataset(tmp_path / "new" / split).compute()
        assert rows["old"].tolist() == some
    summary = dataset.to_webdataset(tmp_path / "bytes", splits=WANTED, shard_bytes=50_000, **TARS)
    for path in (tmp_path / "bytes").rglob("*.tar"):
        assert path.stat().st_size <= 50_000
    assert summary.shards > 4 and split_of(keys_of(tmp_path / "bytes")) == split_of(keys)
    many = dataset.to_webdataset(tmp_path / "many", splits=WANTED, shards=6, **TARS)
    sizes = {split: [] for split in keys}
    for tar, samples in samples_in(tmp_path / "many").items():
        sizes[tar.partition("/")[0]].append(len(samples))
    assert len(sizes["train"]) == 6 and many.splits["train"].shards == 6
    for split, some in sizes.items():
        assert max(some) - min(some) <= 1 and max(some) <= max(sizes["train"]), split
    assert split_of(keys_of(tmp_path / "many")) == split_of(keys)
    planned = dataset.to_webdataset(tmp_path / "dry", dry_run=True, **options)
    assert {name: count.shards for name, count in planned.splits.items()} == Counter(
        tar.partition("/")[0] for tar in samples_in(tmp_path / "out")
    )
    assert not [*tmp_path.glob("dry*")]


# ---- rows that stay together


def test_rows_of_one_value_stay_together(dataset, tmp_path):
    frame = dataset.metadata
    frame["cluster"] = frame["key"].astype("int64") % 7
    frame["cluster"] = frame["cluster"].where(frame["cluster"] != 6)  # floats with nulls
    wanted = {"val": 0.3, "test": 20}
    summary = dataset.to_webdataset(tmp_path / "out", splits=wanted, split_by="cluster")
    keys = dataset.metadata["key"].compute().tolist()
    units = {
        key: number_of(key) if int(key) % 7 == 6 else number_of(str(int(key) % 7), b"value") for key in keys
    }
    found = split_of(keys_of(tmp_path / "out"))
    assert found == shared_out(units, wanted)
    assert len({*found.values()}) == 3 and summary.splits["test"].samples == 20
    alone = sum(int(key) % 7 == 6 for key in keys)
    assert f"{alone} samples without cluster: each is by itself" in str(summary)
    # An expression, of what was saved.
    dataset.save_metadata(tmp_path / "rows")
    options = ExportOptions(splits=wanted, split_by="key[4:5]")
    export_output(tmp_path / "rows", tmp_path / "by shard", options)
    of_shards = {(key[3:5], split) for key, split in split_of(keys_of(tmp_path / "by shard")).items()}
    assert len(of_shards) == SHARDS
    for wrong, message in (
        ("clustr", r"split_by='clustr': there is no column 'clustr'.*cluster"),
        ("1", "split_by='1'.*names no column"),
        ("key +", r"split_by='key \+'"),
        ("[key]", "expected single values, of which rows may have the same, found list"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataset.to_webdataset(tmp_path / "wrong", splits=wanted, split_by=wrong)
    assert not [*tmp_path.glob("wrong*")]


def write_groups(folder: Path, groups: list[list[str]], url_of: dict[str, str]) -> Path:
    rows = [
        (key, url_of[key], number, at == 0)
        for number, some in enumerate(groups)
        for at, key in enumerate(some)
    ]
    names = ("id", "__url__", "group", "kept")
    folder.mkdir()
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table.sort_by([("__url__", "ascending")]), folder / "duplicates.parquet")
    return folder


def test_near_copies_stay_together(dataset, tmp_path):
    rows = dataset.compute()
    url_of = dict(zip(rows["key"], rows["__url__"], strict=True))
    keys = sorted(url_of)
    rng = np.random.default_rng(5)
    mine = rng.permutation(keys)[:40].tolist()
    groups = [mine[:9], *(mine[at : at + 3] for at in range(9, 39, 3))]
    folder = write_groups(tmp_path / "duplicates", groups, url_of)
    wanted = {"val": 0.25, "test": 8}
    summary = dataset.to_webdataset(tmp_path / "out", splits=wanted, split_groups=folder)
    units = {key: number_of(key) for key in keys}
    for group in groups:
        units |= dict.fromkeys(group, min(map(number_of, group)))
    found = split_of(keys_of(tmp_path / "out"))
    assert found == shared_out(units, wanted) and summary.splits["test"].samples == 8
    assert all(len({found[key] for key in group}) == 1 for group in groups)
    assert len({found[group[0]] for group in groups}) > 1
    # The same where some of a group are filtered out, and where the rest of it is all that is left of the dataset.
    dataset.to_webdataset(
        tmp_path / "some", splits={"val": 0.25}, split_groups=folder, where="key like '%1' or key like '%2'"
    )
    some = split_of(keys_of(tmp_path / "some"))
    dataset.to_webdataset(tmp_path / "share", splits={"val": 0.25}, split_groups=folder, **TARS)
    share = split_of(keys_of(tmp_path / "share"))
    assert some == {key: share[key] for key in some}
    # With a column besides, all hangs together that either links.
    frame = dataset.metadata
    frame["pair"] = frame["key"].str[-2:]
    dataset.to_webdataset(
        tmp_path / "both", splits={"val": 0.4}, split_groups=folder, split_by="pair", **TARS
    )
    both = split_of(keys_of(tmp_path / "both"))
    links = [*groups, *([key for key in keys if key[-2:] == pair] for pair in {key[-2:] for key in keys})]
    assert all(len({both[key] for key in some}) == 1 for some in links)
    # A table of other shards is of no use.
    moved = write_groups(tmp_path / "moved", groups, {key: f"/moved{url}" for key, url in url_of.items()})
    with pytest.raises(OutputError, match="so nothing would be kept together"):
        dataset.to_webdataset(tmp_path / "no", splits=wanted, split_groups=moved)
    with pytest.raises(OutputError, match="is no table of duplicates"):
        dataset.to_webdataset(tmp_path / "no", splits=wanted, split_groups=tmp_path / "out")


def test_no_near_copy_is_in_another_split(dataset, tmp_path):
    """Of groups that a deduplication found: of all pairs of two splits none is within eps."""
    ColourReader(normalize_embeddings=True)(dataset).save_metadata(tmp_path / "rows")
    find = SemanticDeduplication(eps=1e-5, recall=1, groups="components", keep="key")
    find(tmp_path / "rows").save(tmp_path / "near")
    options = ExportOptions(splits={"val": 0.2, "test": 10}, split_groups=str(tmp_path / "near"))
    summary = export_output(tmp_path / "rows", tmp_path / "out", options)
    names, vectors = [], []
    for name in summary.splits:
        for path in (tmp_path / "out" / name).glob("*.parquet"):
            found = pq.read_table(path)["image_embedding"].to_pylist()
            names += [name] * len(found)
            vectors += found
    matrix = np.array(vectors, np.float64)
    near = matrix @ matrix.T >= 1 - 1e-5
    apart = np.array(names)[:, None] != np.array(names)
    assert len(matrix) == 60 and not (near & apart).any()
    assert near.sum() > 60 and len({*names}) == 3
    assert max(count.largest for count in summary.splits.values()) > 1
    # Without the groups there are such pairs.
    of = split_of(keys_of(tmp_path / "out"))
    assert {
        shared_out({key: number_of(key) for key in of}, options.splits)[key] == of[key] for key in of
    } == {
        True,
        False,
    }


def test_what_hangs_together_by_brute_force():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2**64, 40, np.uint64)
    first, second = values[rng.integers(0, 20, 60)], values[rng.integers(20, 40, 60)]
    has_both = rng.random(60) < 0.3
    units = {int(each): {int(each)} for each in first}
    for one, other in zip(first[has_both].tolist(), second[has_both].tolist(), strict=True):
        joined = units.get(one, {one}) | units.get(other, {other})
        units |= dict.fromkeys(joined, joined)
    found = linked(first, second, has_both)
    assert found.tolist() == [min(units[int(each)]) for each in first]
    assert 1 < len(np.unique(found)) < len(np.unique(first))


@pytest.mark.parametrize("seed", range(3))
def test_sharing_out_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, 200)
    units = rng.integers(0, 2**64, 200, np.uint64).repeat(sizes)
    wanted = {"b": 300, "a": 0.1, "c": 0.25, "d": 77}
    of, counts = Splits(wanted, seed=seed).assign(units)
    names = Splits(wanted).names
    expected = shared_out({str(at): unit for at, unit in enumerate(units.tolist())}, wanted, seed)
    assert [names[each] for each in of] == [expected[str(at)] for at in range(len(units))]
    assert {name: count.samples for name, count in counts.items()} == Counter(expected.values())
    assert (counts["b"].samples, counts["d"].samples) == (300, 77)
    assert counts["train"].largest == max(Counter(units[of == 0].tolist()).values())
    everything, _ = Splits({"a": 0.5, "b": 0.5}).assign(units)
    assert set(everything.tolist()) == {1, 2}


def test_large_groups_are_not_drawn_to_the_first_share():
    """The smallest of many numbers is small: what decides is made of it."""
    rng = np.random.default_rng(2)
    least = rng.integers(0, 2**64, (2000, 50), np.uint64).min(axis=1)
    of, _ = Splits({"val": 0.1}).assign(least)
    assert 150 < np.count_nonzero(of) < 250


def test_numbers_that_are_not_there(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"test=61: 60 of 60 samples are left for it"):
        dataset.to_webdataset(tmp_path / "out", splits={"test": 61})
    assert not (tmp_path / "out").exists()
    frame = dataset.metadata
    frame["one"] = 1
    summary = dataset.to_webdataset(tmp_path / "out", splits={"test": 5}, split_by="one")
    assert (summary.splits["test"].samples, summary.splits["train"].samples) == (0, 60)
    assert "all 60 samples have one value of one, and go to one split" in str(summary)
    assert "test has no sample, and no tar" in str(summary) and [*keys_of(tmp_path / "out")] == ["train"]
    twice = dataset.with_metadata(dd.concat([dataset.metadata, dataset.metadata]))
    summary = twice.to_webdataset(tmp_path / "twice", splits={"test": 5}, keys="sequential", old_id_col="old")
    assert summary.splits["test"].samples == 4
    assert "test has 1 fewer than were asked for: rows that stay together do not fit (a key is" in str(
        summary
    )
    rows = [
        ImageTextPairDataset.from_webdataset(tmp_path / "twice" / name).compute()
        for name in ("train", "test")
    ]
    assert not {*rows[0]["old"]} & {*rows[1]["old"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {}}, "expected names with a share or a number"),
        ({"splits": {"train": 0.9}}, "train has what the others leave"),
        ({"splits": {"a/b": 0.1}}, "expected a name of letters"),
        ({"splits": {"All": 0.1}}, "expected a name of letters"),
        ({"splits": {"a" * 101: 0.1}}, "100 at most"),
        ({"splits": {"val": float("nan")}}, "between 0 and 1"),
        ({"splits": {"val": 0.6}, "split_groups": True}, "expected the folder that dedup wrote to"),
        ({"splits": {"val": 0.1, "Val": 0.2}}, "there twice"),
        ({"splits": {"val": 1.0}}, "between 0 and 1"),
        ({"splits": {"val": 0}}, "between 0 and 1"),
        ({"splits": {"val": True}}, "between 0 and 1"),
        ({"splits": {"val": 0.6, "test": 0.5}}, "more than all there is"),
        ({"splits": {"val": 0.6}, "split_seed": -1}, "split_seed=-1"),
        ({"splits": {"val": 0.6}, "split_by": ""}, "expected the name of a column"),
        ({"split_by": "key"}, "give splits"),
        ({"sizes": "yes"}, "sizes='yes'"),
    ],
)
def test_options_that_cannot_be_carried_out(options, message):
    with pytest.raises(ConfigError, match=message):
        ExportOptions(**options)


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array(["a", None, "a", "ü"]), ["a", None, "a", "ü"]),
        (pa.array(["a", None, "a", "ü"]).dictionary_encode(), ["a", None, "a", "ü"]),
        (pa.array([1, None, 2**63, 1], pa.uint64()), ["1", None, str(2**63), "1"]),
        (pa.array([1.0, float("nan"), 0.5, None]), ["1", None, "0.5", None]),
        (pa.array([True, False, None, True]), ["true", "false", None, "true"]),
        (pa.array([b"a", None, b"b", b"a"]), ["a", None, "b", "a"]),
        (pa.array([b"\xff", None, b"b", b"\xff"], pa.binary(1)), ["\udcff", None, "b", "\udcff"]),
        (pa.array([b"\xff", None, b"b", b"\xff"], pa.binary_view()), ["\udcff", None, "b", "\udcff"]),
        (pa.nulls(4), [None] * 4),
    ],
)
def test_values_of_columns(column, texts):
    splits = Splits({"val": 0.5}, SplitBy("c"), seed=3)
    chunks = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    numbers, has = splits.of_values(chunks)
    assert has.tolist() == [text is not None for text in texts]
    assert numbers[has].tolist() == [number_of(text, b"value", 3) for text in texts if text is not None]


# ---- the command, and what goes wrong


def test_the_command(data, dataset, tmp_path, client):
    dataset.to_webdataset(tmp_path / "by hand", splits=WANTED, split_seed=2)
    command = ["export", str(data), str(tmp_path / "out"), "--split", "val=0.2", "--split", "test=7"]
    at = ["--scheduler-address", client.scheduler.address]
    done = CliRunner().invoke(app, [*command, "--split-seed", "2", *at])
    assert done.exit_code == 0, done.output
    assert digests(tmp_path / "out") == digests(tmp_path / "by hand")
    for wrong in ("val", "val=many", "=3"):
        done = CliRunner().invoke(app, ["export", str(data), str(tmp_path / "no"), "--split", wrong])
        assert done.exit_code == 2 and "--split" in done.output


def export_that_dies(data, out, options):
    """For a process of its own."""
    pack = PackShard._pack

    def dies(self, shard, name):
        done = pack(self, shard, name)
        if name == "val/00001":
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    PackShard._pack = dies
    with dask.config.set(scheduler="sync"):
        ImageTextPairDataset.from_webdataset(data).to_webdataset(out, **options)


def test_an_export_that_was_killed_goes_on(data, dataset, tmp_path):
    out = tmp_path / "out"
    options = {"splits": WANTED, "samples_per_shard": 2, "card": True}
    dataset.to_webdataset(tmp_path / "a" / "out", **options)
    dataset.to_webdataset(out, samples_per_shard=50)
    assert size_by_open_clip(out) == (60, 2)
    for path in [*out.iterdir()]:
        path.unlink()
    # From the process that has the heavy modules (`workers_that_start_quickly`).
    done = multiprocessing.get_context("forkserver").Process(
        target=export_that_dies, args=(data, out, options)
    )
    done.start()
    done.join(120)
    assert done.exitcode == -9
    there = [*samples_in(out)]
    assert "val/00001" in there and "test/00000" not in there
    assert (
        not [*out.rglob("sizes.json")] and not (out / "README.md").exists()
    )  # nothing speaks of what is not there
    summary = dataset.to_webdataset(out, **options)
    assert (summary.skipped, summary.written) == (len(there), summary.shards - len(there))
    assert digests(out) == digests(tmp_path / "a" / "out")


def test_nothing_is_left_of_one_that_died_where_another_takes_its_place(dataset, tmp_path, monkeypatch):
    """What it was about to write over is of an export that no manifest speaks of any more."""
    out = tmp_path / "out"
    dataset.to_webdataset(out, splits=WANTED, samples_per_shard=20, card=True)
    with monkeypatch.context() as patch:
        patch.setattr(PackShard, "_pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dataset.to_webdataset(
                out, splits=WANTED, split_seed=1, samples_per_shard=20, card=True, overwrite=True
            )
    there = {path.name for path in out.rglob("*.*")}
    assert "00000.tar" in there and not {"README.md", "sizes.json"} & there
    dataset.to_webdataset(out, samples_per_shard=60, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "00000.idx",
        "00000.parquet",
        "00000.tar",
        "sizes.json",
    ]


def test_a_split_is_not_written_through_a_link(data, dataset, tmp_path):
    """It may lead to what is read: 00000.tar is the name of a tar there, too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").symlink_to(data)
    before = digests(data)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"out/train: is a link to .*data, and a folder is expected"):
            dataset.to_webdataset(tmp_path / "out", splits=WANTED, overwrite=overwrite)
    assert digests(data) == before


def test_sizes_name_the_tars_that_are_there(data, dataset, tmp_path, monkeypatch):
    """A source that changes on the way fails the tars that draw from it; there is no card of half a dataset."""
    first, out = PackShard.__call__, tmp_path / "out"

    def call(self, shard):
        if shard.split == "val":
            os.utime(data / "00003.tar", ns=(1, 1))
        return first(self, shard)

    monkeypatch.setattr(PackShard, "__call__", call)
    summary = dataset.to_webdataset(out, splits=WANTED, samples_per_shard=4, card=True)
    there = samples_in(out)
    assert summary.failed_shards and {*there} | {*summary.failed_shards} > {*there}
    for folder in {tar.rpartition("/")[0] for tar in there}:
        sizes = json.loads((out / folder / "sizes.json").read_text())
        mine = {tar: len(some) for tar, some in there.items() if tar.startswith(f"{folder}/")}
        assert sizes == {f"{tar.rpartition('/')[2]}.tar": count for tar, count in mine.items()}
    assert not (out / "README.md").exists() and not summary.complete


def test_sizes_of_another_are_not_replaced(dataset, tmp_path):
    out = tmp_path / "out"
    (out / "val").mkdir(parents=True)
    (out / "val" / "sizes.json").write_text('{"00000.tar": 3}')
    with pytest.raises(OutputError, match=r"val/sizes.json: is there, and is not of an export.*overwrite"):
        dataset.to_webdataset(out, splits=WANTED)
    assert (out / "val" / "sizes.json").read_text() == '{"00000.tar": 3}'
    dataset.to_webdataset(out, splits=WANTED, overwrite=True)
    assert size_by_open_clip(out / "val") == (len(keys_of(out)["val"]), 1)
    (out / "val" / "sizes.json").unlink()
    (out / "val" / "sizes.json").mkdir()
    before = digests(out)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"val/sizes.json: is a folder.*sizes=False"):
            dataset.to_webdataset(out, splits=WANTED, overwrite=overwrite)
    assert digests(out) == before
    dataset.to_webdataset(out, splits=WANTED, shuffle=1, sizes=False, overwrite=True)
    assert (out / "val" / "sizes.json").is_dir()


def test_readers_of_parquet_do_not_see_sizes(dataset, tmp_path):
    dataset.to_webdataset(tmp_path / "out", splits=WANTED, card=True)
    found = duckdb.sql(f"SELECT count(DISTINCT key) FROM '{tmp_path / 'out'}/**/*.parquet'").fetchall()
    assert (
        found == [(60,)]
        and dd.read_parquet(f"{tmp_path / 'out'}/*/*.parquet")["key"].nunique().compute() == 60
    )
    alone = dataset.to_webdataset(tmp_path / "alone", splits=WANTED, metadata=None, index=False)
    assert {path.suffix for path in (tmp_path / "alone").rglob("*.*")} == {".tar"} and alone.complete
    dataset.to_webdataset(tmp_path / "alone", splits=WANTED, metadata=None, index=False, sizes=True)
    assert size_by_open_clip(tmp_path / "alone" / "train")[0] == len(keys_of(tmp_path / "alone")["train"])
