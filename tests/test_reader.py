"""The bytes of members: the right ones, not copied, also when index or tar changed under the reader."""

from __future__ import annotations

import gc
import io
import logging
import mmap
import os
import tarfile
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest

from curator_dask.errors import ImageError, ShardError
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.reader import ShardReader
from curator_dask.webdataset.staging import STAGE


def make_tar(path: Path, members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(count: int = 12) -> dict[str, bytes]:
    rng = np.random.default_rng(7)
    return {
        f"{i:03d}.{ext}": rng.bytes(int(rng.integers(0, 2000)))
        for i in range(count)
        for ext in ("jpg", "txt")
    }


def open_files() -> list[str]:
    """Paths of the tars that this process has open; what a cluster in it opens comes and goes."""
    return sorted(file.path for file in psutil.Process().open_files() if file.path.endswith(".tar"))


def read_all(reader: ShardReader) -> dict[str, bytes]:
    return {m.name: bytes(reader.read(m)) for sample in reader.index.samples for m in sample.members}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("with_idx", [False, True])
def test_every_member_reads_as_tarfile_reads_it(tmp_path, format, with_idx):
    wanted = contents() | {
        "é" * 40 + ".jpg": b"1",
        "d" * 50 + "/" + "n" * 90 + ".jpg": b"2",
        "empty.jpg": b"",
    }
    path = make_tar(tmp_path / "x.tar", wanted, format)
    if with_idx:
        ShardIndex.scan(path).write_idx(tmp_path / "x.idx")
    with tarfile.open(path) as tar:
        oracle = {info.name: tar.extractfile(info).read() for info in tar}
    with ShardReader(path) as reader:
        assert read_all(reader) == oracle == wanted
        assert reader.index.scanned == (not with_idx)
    with ShardReader(path, use_index_files=False) as reader:
        assert reader.index.scanned


def test_views_are_not_copied_and_outlive_the_reader(tmp_path):
    path = make_tar(tmp_path / "x.tar", contents())
    opened = open_files()
    with ShardReader(path) as reader:
        member = reader.index.samples[3].image()
        view = reader.read(member)
        assert isinstance(view.obj, mmap.mmap)
        assert view.readonly
    assert bytes(view) == contents()["003.jpg"]
    assert np.frombuffer(view, np.uint8).shape == (member.size,)
    reader.close()  # again
    with pytest.raises(ShardError, match="closed"):
        reader.read(member)
    del view, reader
    gc.collect()
    assert open_files() == opened


def test_a_name_that_changed_in_the_tar_is_found_when_it_is_read(tmp_path, caplog):
    """An index that passes the checks on opening: two names of 80 changed places, sizes alike."""
    wanted = {f"{i:03d}.{ext}": f"{i:03d}{ext}".encode() for i in range(40) for ext in ("jpg", "txt")}
    path = make_tar(tmp_path / "x.tar", wanted)
    ShardIndex.scan(path).write_idx(tmp_path / "x.idx")
    names = [*wanted]
    names[33:35] = reversed(names[33:35])  # between two headers that are looked at on opening
    make_tar(path, {name: wanted[name] for name in names})
    os.utime(tmp_path / "x.idx", ns=(path.stat().st_mtime_ns,) * 2)
    with ShardReader(path) as reader, caplog.at_level(logging.WARNING):
        assert not reader.index.scanned
        assert read_all(reader) == wanted
        assert reader.index.scanned
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]


def test_a_tar_rewritten_under_the_reader(tmp_path, caplog):
    wanted = contents()
    path = make_tar(tmp_path / "x.tar", wanted)
    ShardIndex.scan(path).write_idx(tmp_path / "x.idx")
    with ShardReader(path) as reader:
        members = [member for sample in reader.index.samples for member in sample.members]
        make_tar(path, {name: wanted[name] for name in reversed(wanted) if name != "004.jpg"})
        for member in members:
            if member.name == "004.jpg":
                with pytest.raises(ImageError, match=r"x\.tar.*'004\.jpg'.*no such member"):
                    reader.read(member)
            else:
                assert bytes(reader.read(member)) == wanted[member.name]
    assert len(caplog.records) == 1


def test_a_tar_that_shrinks_under_the_reader_does_not_kill_the_process(tmp_path):
    path = make_tar(tmp_path / "x.tar", {f"{i}.jpg": bytes(9000) for i in range(9)})
    with ShardReader(path) as reader:
        members = [sample.members[0] for sample in reader.index.samples]
        os.truncate(path, 20_000)
        assert len(reader.read(members[0])) == 9000
        for member in members[2:]:
            with pytest.raises(ImageError, match=r"20000 bytes"):
                reader.read(member)


@pytest.mark.parametrize(
    ("member", "found"),
    [
        (Member("gone.jpg", 512, 5), "header before it is that of 'a.jpg'"),
        (Member("gone.jpg", 512, 6), "gives 5 bytes"),
        (Member("gone.jpg", 520, 5), "no valid tar header"),
        (Member("gone.jpg", 2560, 0), "not that of a file"),
        (Member("gone.jpg", 10**12, 5), "the file has"),
        (Member("gone.jpg", 512, 10**12), "the file has"),
        (Member("gone.jpg", 0, 5), "the file has"),
        (Member("gone.jpg", -600, 5), "the file has"),
        (Member("gone.jpg", 512, -5), "the file has"),
    ],
)
def test_members_of_another_tar_are_refused(tmp_path, member, found):
    path = tmp_path / "x.tar"
    link = tarfile.TarInfo("gone.jpg")
    link.type = tarfile.SYMTYPE
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"12345"))
        tar.addfile(link)
    with ShardReader(path) as reader, pytest.raises(ImageError) as caught:
        reader.read(member)
    assert all(part in str(caught.value) for part in (str(path), "'gone.jpg'", found)), str(caught.value)


def test_a_member_elsewhere_is_read_by_its_name(tmp_path):
    path = make_tar(tmp_path / "x.tar", {"a.jpg": b"first", "b.jpg": b"other"})
    with ShardReader(path) as reader:
        assert bytes(reader.read(Member("b.jpg", 512, 5))) == b"other"


def test_pax_records_that_overrule_the_header(tmp_path):
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("short.jpg")
    info.size = 5
    info.pax_headers = {"path": "the/true name.jpg"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"12345"))
    with ShardReader(path) as reader:
        assert read_all(reader) == {"the/true name.jpg": b"12345"}


def test_of_duplicates_the_first(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for data in (b"first", b"again"):
            info = tarfile.TarInfo("a.jpg")
            info.size = 5
            tar.addfile(info, io.BytesIO(data))
    with ShardReader(path) as reader:
        assert read_all(reader) == {"a.jpg": b"first"}


def test_a_cut_tar_reads_up_to_the_cut(tmp_path):
    wanted = contents()
    path = make_tar(tmp_path / "x.tar", wanted)
    path.write_bytes(path.read_bytes()[:15_000])
    with ShardReader(path) as reader:
        got = read_all(reader)
        assert 0 < len(got) < len(wanted)
        assert got.items() <= wanted.items()
        assert "truncated" in reader.index.problem


def test_shards_that_cannot_be_opened(tmp_path):
    (tmp_path / "empty.tar").touch()
    (tmp_path / "text.tar").write_text("not found " * 100)
    for name, found in (("gone.tar", "No such file"), ("", "directory"), ("empty.tar", "0 bytes")):
        with pytest.raises(ShardError, match=found) as caught:
            ShardReader(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with (
        ShardReader(tmp_path / "text.tar") as reader,
        pytest.raises(ShardError, match=r"text\.tar.*not found"),
    ):
        reader.index  # noqa: B018


def test_remote_shards_are_staged_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "staging"))
    (tmp_path / "staging").mkdir()
    monkeypatch.setattr(STAGE, "_folder", None)

    def copies():
        return list((tmp_path / "staging").glob("*/*"))

    wanted = contents()
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/x.tar", make_tar(tmp_path / "x.tar", wanted).read_bytes())
    fs.pipe("/bucket/bad.tar", b"<html>" * 200)
    try:
        with ShardReader("memory://bucket/x.tar") as reader:
            assert len(copies()) == 1
            assert read_all(reader) == wanted
            with pytest.raises(ImageError, match=r"memory://bucket/x\.tar"):
                reader.read(Member("gone.jpg", 512, 1))
        with ShardReader("memory://bucket/x.tar") as reader:
            assert read_all(reader) == wanted
            assert len(copies()) == 1, "fetched again though it was there"
            STAGE.clear()
            assert len(copies()) == 1, "removed while it is in use"
        STAGE.clear()
        assert not copies()
        with ShardReader("memory://bucket/bad.tar") as reader, pytest.raises(ShardError) as caught:
            reader.index  # noqa: B018
        assert "memory://bucket/bad.tar" in str(caught.value)
        assert "staging" not in str(caught.value)
        for url in ("memory://bucket/gone.tar", "nostore://bucket/x.tar"):
            with pytest.raises(ShardError, match=url):
                ShardReader(url)
        STAGE.clear()
        assert not copies()
    finally:
        fs.rm("/bucket", recursive=True)
