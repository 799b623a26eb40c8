"""Tars that are written: to the bit what `tarfile` writes, of bytes that lie in other tars."""

from __future__ import annotations

import io
import os
import tarfile

import fsspec
import numpy as np
import pytest
from tars import tar_bytes, write

from curator_dask.errors import ShardError
from curator_dask.storage import RemoteFile
from curator_dask.webdataset import ranges as module
from curator_dask.webdataset import writer
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.ranges import Extent, Ranges
from curator_dask.webdataset.stamps import stamp
from curator_dask.webdataset.writer import Contents, write_tar

NAMES = [
    "a.jpg",
    "b/c.txt",
    "ü.json",
    "x" * 96 + ".jpg",
    "x" * 97 + ".jpg",
    "folder/" * 20 + "y.cls",
    "odd\udcff.jpg",
    "with space.jpg",
]


def some_bytes():
    sizes = [0, 1, 511, 512, 513, 40_000, 9_000_000, 20_000]
    rng = np.random.default_rng(0)
    return [rng.bytes(sizes[number % len(sizes)]) for number in range(len(NAMES))]


def by_tarfile(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def written(path, contents, ranges):
    with path.open("wb") as file:
        return write_tar(file.fileno(), contents, ranges, early=True)


def copied(url, members, **options):
    """Contents that are copied from one tar."""
    _, offsets, sizes, *_ = zip(*members, strict=True)
    sources = np.zeros(len(members), np.int64)
    return Contents(
        [each.name for each in members], [url], sources, np.array(offsets), np.array(sizes), **options
    )


def test_a_tar_is_what_tarfile_writes(tmp_path):
    data = some_bytes()
    source = write(tmp_path / "in.tar", tar_bytes([(f"{n}.bin", each) for n, each in enumerate(data)], "gnu"))
    found = ShardIndex.scan(source)
    url = str(source)
    contents = copied(url, [found.by_name[f"{n}.bin"]._replace(name=name) for n, name in enumerate(NAMES)])
    contents.sources[2], contents.given = -1, {2: data[2]}
    offsets, sizes = written(tmp_path / "out.tar", contents, Ranges({url: stamp(url)}))
    expected = by_tarfile(list(zip(NAMES, data, strict=True)))
    assert (tmp_path / "out.tar").read_bytes() == expected
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert [(m.offset_data, m.size) for m in tar] == list(zip(offsets, sizes, strict=True))
    sizes = [len(each) for each in data]
    assert -(-(writer.tar_bytes(NAMES, np.array(sizes)).sum() + 1024) // 10240) * 10240 == len(expected)


def test_where_the_kernel_does_not_copy(tmp_path, monkeypatch):
    """As between some file systems."""
    monkeypatch.delattr(os, "copy_file_range")
    test_a_tar_is_what_tarfile_writes(tmp_path)


def test_a_tar_of_no_samples(tmp_path):
    written(tmp_path / "out.tar", Contents.of_bytes([]), Ranges({}))
    assert (tmp_path / "out.tar").read_bytes() == by_tarfile([])


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.tar", tar_bytes([("a.jpg", b"1" * 50_000), ("b.jpg", b"2" * 50_000)]))


@pytest.mark.parametrize("change", ["touched", "longer", "gone", "cut"])
def test_a_tar_that_changes_meanwhile(tmp_path, source, change):
    url = str(source)

    def changing(data):  # while it is written
        if change == "gone":
            source.unlink()
        elif change == "cut":
            os.truncate(source, 40_000)
        elif change == "longer":
            write(source, source.read_bytes() + bytes(512))
        else:
            os.utime(source, ns=(1, 1))
        return data

    reason = {"gone": "is it still there", "cut": "the tar was cut meanwhile"}.get(
        change, "was changed since"
    )
    contents = copied(url, [*ShardIndex.scan(source).by_name.values()], changes={0: changing})
    with pytest.raises(ShardError, match=reason):
        written(tmp_path / "out.tar", contents, Ranges({url: stamp(url)}))


def test_ranges_of_a_store(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 100_000)
    monkeypatch.setattr(module, "_GAP", 5_000)
    asked = []
    block = RemoteFile.block
    monkeypatch.setattr(RemoteFile, "block", lambda *given: asked.append(given) or block(*given))
    data, url = np.random.default_rng(0).bytes(1_000_000), "memory://ranges/in.tar"
    fsspec.filesystem("memory").pipe_file("/ranges/in.tar", data)
    places = [(0, 10), (10, 40_000), (42_000, 30_000), (90_000, 9_000), (95_000, 10), (99_000, 0)]
    places += [(100_000, 350_000), (0, 10), (450_000, 1), (999_999, 1)]
    extents = [Extent(url, *place) for place in places]
    with Ranges({url: stamp(url)}).reading([url], extents) as reading:
        for each in extents:
            assert reading.read(each) == data[each.offset :][: each.size]
    assert len(asked) == 10  # those that lie near each other together, a large one in several
