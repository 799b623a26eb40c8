"""Discovery of shards: what a user may name, what is found, and what is said when nothing is."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections import Counter
from pathlib import Path

import braceexpand
import fsspec
import pytest

from curator_dask.errors import DatasetError, ShardError
from curator_dask.webdataset.braces import expand_braces
from curator_dask.webdataset.shards import Shard, ShardRange, discover
from curator_dask.webdataset.stamps import stamp


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Shards 0 to 10 on top (two with Parquet), two in folders, and what must be passed over."""
    root = tmp_path / "data"
    touch(*(root / f"{number}.tar" for number in range(11)), root / "2.parquet", root / "10.parquet")
    touch(root / "a" / "00000.tar", root / "a" / "00000.parquet", root / "b" / "00000.tar")
    touch(root / "._3.tar", root / ".cache" / "4.tar", root / "__MACOSX" / "5.tar", root / "2_stats.json")
    return root


def names(path, **options):
    return [shard.name for shard in discover(path, **options).shards]


def test_directory_with_all_below_it(dataset):
    found = discover(dataset)
    assert found.root == str(dataset)
    assert [s.name for s in found] == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
        "10",
        "a/00000",
        "b/00000",
    ]
    assert found.shards[2] == Shard(f"{dataset}/2.tar", "2", f"{dataset}/2.parquet")
    assert {s.name for s in found if s.parquet} == {"2", "10", "a/00000"}
    assert all(s.parquet == s.url[:-4] + ".parquet" for s in found if s.parquet)


@pytest.mark.parametrize(
    ("pattern", "root", "expected"),
    [
        ("*.tar", "", [str(number) for number in range(11)]),
        ("*/*.tar", "", ["a/00000", "b/00000"]),
        ("**/*.tar", "", [*(str(number) for number in range(11)), "a/00000", "b/00000"]),
        ("[ab]", "", ["a/00000", "b/00000"]),  # a glob of directories
        ("{2..4}.tar", "", ["2", "3", "4"]),
        ("{a,b}/*.tar", "", ["a/00000", "b/00000"]),
        ("{a,b}", "", ["a/00000", "b/00000"]),
        ("{{a,b}/00000,1{0..0}}.tar", "", ["10", "a/00000", "b/00000"]),
        ("a/*.tar", "/a", ["00000"]),
        ("a/00000.tar", "/a", ["00000"]),
        ("10.tar", "", ["10"]),
        ("a/", "/a", ["00000"]),
        ("a/../b", "/b", ["00000"]),
    ],
)
def test_patterns(dataset, pattern, root, expected):
    found = discover(f"{dataset}/{pattern}")
    assert [s.name for s in found] == expected
    assert found.root == f"{dataset}{root}"
    assert all(s.url == f"{found.root}/{s.name}.tar" for s in found)
    assert [bool(s.parquet) for s in found] == [Path(s.url).with_suffix(".parquet").exists() for s in found]


def test_lists_mix_and_drop_duplicates(dataset):
    given = [dataset / "a", f"{dataset}/{{1..2}}.tar", dataset / "2.tar", f"{dataset}/a/*.tar"]
    assert names(given) == ["1", "2", "a/00000"]
    assert discover(given).root == str(dataset)
    assert names([dataset / "a", dataset / "b"]) == ["a/00000", "b/00000"]


def test_relative_paths_become_absolute(dataset, monkeypatch):
    monkeypatch.chdir(dataset)
    assert discover("a").shards[0].url == f"{dataset}/a/00000.tar"
    assert discover("{0..1}.tar").root == str(dataset)
    assert discover(f"file://{dataset}/a") == discover("a")


def test_names_with_pattern_signs_are_taken_literally(tmp_path):
    touch(tmp_path / "set[1]" / "0.tar", tmp_path / "{a,b}" / "1.tar", tmp_path / "{a,b}" / "x*.tar")
    assert names(tmp_path / "set[1]") == ["0"]
    assert names(tmp_path / "{a,b}") == ["1", "x*"]
    assert names(tmp_path / "{a,b}" / "x*.tar") == ["x*"]


def test_links_keep_their_names_and_may_go_in_circles(tmp_path):
    blobs, root = tmp_path / "blobs", tmp_path / "snapshot"
    touch(blobs / "c0ffee", blobs / "beef")
    root.mkdir()
    (root / "00000.tar").symlink_to(blobs / "c0ffee")
    (root / "00000.parquet").symlink_to(blobs / "beef")
    (root / "again").symlink_to(root)
    assert discover(root).shards == (Shard(f"{root}/00000.tar", "00000", f"{root}/00000.parquet"),)


def test_one_listing_and_no_look_at_single_files(tmp_path):
    for number in range(1000):
        os.close(os.open(tmp_path / f"{number:05d}.tar", os.O_CREAT))
    calls: Counter = Counter()

    def count(frame, event, function):
        if event == "c_call" and function in (os.scandir, os.listdir, os.stat, os.lstat, os.open, io.open):
            calls[function.__name__] += 1

    for path in (tmp_path, f"{tmp_path}/{{00000..00999}}.tar"):
        calls.clear()
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            found = discover(path)
        finally:
            sys.setprofile(before)
        assert len(found) == 1000
        assert calls["scandir"] == 1
        assert calls.total() < 50, calls  # the directory itself and its parents


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..3}", "{00..12}", "{8..11}", "{3..0}", "{0..9..3}", "{a..e}", "{a,b}{1..2}", "x{a,{b,c}d}y", "{a}",
        "{,x}.tar", "{0001..0003}-{a,b}", "plain", "{{a,b},{1..2}}", "{a}{b,c}", "{-2..1}",
    ],
)  # fmt: skip
def test_braces_as_the_braceexpand_package(pattern):
    assert list(expand_braces(pattern)) == list(braceexpand.braceexpand(pattern))


@pytest.mark.parametrize("pattern", ["}{", "{", "{1..2"])
def test_unbalanced_braces_stand_for_themselves(pattern):
    assert list(expand_braces(pattern)) == [pattern]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("nothing", ["expected at least one .tar", "notes.txt", "sub/"]),
        ("nothing/*.tar", ["expected at least one .tar", "notes.txt"]),
        ("missing", ["found nothing", "data/", "nothing/"]),
        ("data/{8..99}.tar", ["89 of the tars", "data/11.tar", "data/15.tar, …", "there are: 0.tar, 1.tar"]),
        ("data/99.tar", ["1 of the tars", "data/99.tar"]),
        ("nowhere/1.tar", ["nowhere is empty or does not exist"]),
        ("x.tar.gz", ["x.tar.gz", "unpacked"]),
        ("data/{0..99999999999}.tar", ["{0..99999999999}", "typo"]),
    ],
)
def test_errors_name_what_is_there(dataset, given, parts):
    root = dataset.parent
    touch(root / "nothing" / "notes.txt", root / "nothing" / "sub" / "x.jpg", root / "x.tar.gz")
    with pytest.raises(DatasetError) as caught:
        discover(f"{root}/{given}")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_other_errors(dataset):
    with pytest.raises(DatasetError, match="empty list"):
        discover([])
    with pytest.raises(DatasetError, match="one store"):
        discover([dataset, "memory://x"])
    with pytest.raises(DatasetError, match="1 of the tars"):
        discover([dataset / "0.tar", dataset / "gone.tar"])
    touch(dataset / "a" / "00000.TAR")
    with pytest.raises(DatasetError, match="two shards of one name"):
        discover(dataset)


@pytest.fixture
def remote():
    fs = fsspec.filesystem("memory")
    for path in ("2.tar", "10.tar", "10.parquet", "a/0.tar", ".hidden/1.tar", "a/._0.tar", "readme.md"):
        fs.pipe(f"/shards/{path}", b"x")
    yield fs
    fs.rm("/shards", recursive=True)


def test_remote(remote):
    found = discover("memory://shards")
    assert [s.name for s in found] == ["2", "10", "a/0"]
    assert [s.parquet is not None for s in found] == [False, True, False]
    for shard in found:
        with fsspec.open(shard.url, "rb") as file:
            assert file.read() == b"x"
    assert discover("memory://shards/{2,10}.tar").shards == found.shards[:2]
    assert discover("memory://shards/*.tar").shards == found.shards[:2]
    assert names("memory://shards/*/*.tar") == ["a/0"]
    assert names(["memory://shards/2.tar", "memory://shards/a"]) == ["2", "a/0"]
    with pytest.raises(DatasetError, match=r"3\.tar.*10\.parquet"):
        discover("memory://shards/3.tar")
    with pytest.raises(DatasetError, match="nostore"):
        discover("nostore://bucket/x")


def test_stamp_tells_versions_apart(tmp_path, remote):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w"):
        pass
    before = stamp(path)
    assert (before.size, before.version) == (path.stat().st_size, str(path.stat().st_mtime_ns))
    assert stamp(str(path)) == stamp(f"file://{path}") == before
    os.utime(path, ns=(1, 1))
    assert stamp(path) != before
    first = stamp("memory://shards/2.tar")
    assert first.size == 1
    assert first == stamp("memory://shards/2.tar")
    remote.pipe("/shards/2.tar", b"y")
    assert stamp("memory://shards/2.tar") != first
    for missing in (tmp_path / "gone.tar", "memory://shards/gone.tar"):
        with pytest.raises(ShardError, match="gone"):
            stamp(missing)


def test_names_of_partitions():
    shard = Shard("/data/a/00042.tar", "a/00042", None)
    assert ShardRange(shard).name == "a/00042"
    assert ShardRange(shard, 0, 1000, 0).name == "a/00042.part-00000"
    assert ShardRange(shard, 3000, None, 3).name == "a/00042.part-00003"


@pytest.mark.parametrize("name", ["3.tar.gz", "a/3.TGZ", "3.tar.zst", "3.tar.xz"])
def test_compressed_tars_among_others_are_not_left_out_in_silence(tmp_path, name):
    touch(tmp_path / "1.tar", tmp_path / name, tmp_path / ".4.tar.gz")
    with pytest.raises(
        DatasetError, match=r"1 of the shards found are compressed: .*3\..*must be unpacked"
    ) as caught:
        discover(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(DatasetError, match="compressed"):
        discover(f"{tmp_path}/**/*")
    assert len(discover(f"{tmp_path}/*.tar")) == 1


def test_what_energon_and_the_hub_put_beside_tars_is_passed_over(tmp_path):
    """megatron-energon 7.4's ``.nv-meta`` and its ``.tar.idx``; a hub's snapshot and its download cache."""
    beside = (
        ".nv-meta/dataset.yaml",
        ".nv-meta/split.yaml",
        ".nv-meta/index.sqlite",
        "train/shard_000000.tar.idx",
        "README.md",
        ".gitattributes",
        ".cache/huggingface/.gitignore",
        ".cache/huggingface/download/train/shard_000000.tar.metadata",
        ".cache/huggingface/download/train/shard_000001.tar",
    )
    tars = ("train/shard_000000.tar", "train/shard_000001.tar", "val/shard_000000.tar")
    for name in (*beside, *tars):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [shard.name for shard in discover(tmp_path)] == [name.removesuffix(".tar") for name in tars]
