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
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.ranges import Extent, Ranges
from curator_dask.webdataset.stamps import stamp
from curator_dask.webdataset.writer import Entry, write_tar

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


def contents():
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


def written(path, entries, ranges):
    with path.open("wb") as file:
        return write_tar(file.fileno(), entries, ranges)


def test_a_tar_is_what_tarfile_writes(tmp_path):
    data = contents()
    source = write(tmp_path / "in.tar", tar_bytes([(f"{n}.bin", each) for n, each in enumerate(data)], "gnu"))
    found = ShardIndex.scan(source)
    url = str(source)
    entries = [
        Entry(name, data[n] if n == 2 else Extent(url, *found.by_name[f"{n}.bin"][1:3]))
        for n, name in enumerate(NAMES)
    ]
    members = written(tmp_path / "out.tar", entries, Ranges({url: stamp(url)}))
    expected = by_tarfile(list(zip(NAMES, data, strict=True)))
    assert (tmp_path / "out.tar").read_bytes() == expected
    assert members == [Member(*each[:3]) for each in ShardIndex.scan(tmp_path / "out.tar").by_name.values()]
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert [(m.offset_data, m.size) for m in tar] == [(m.offset, m.size) for m in members]
    sizes = [len(each) for each in data]
    assert -(-(writer.tar_bytes(NAMES, np.array(sizes)).sum() + 1024) // 10240) * 10240 == len(expected)


def test_where_the_kernel_does_not_copy(tmp_path, monkeypatch):
    """As between some file systems."""
    monkeypatch.delattr(os, "copy_file_range")
    test_a_tar_is_what_tarfile_writes(tmp_path)


def test_a_tar_of_no_samples(tmp_path):
    assert written(tmp_path / "out.tar", [], Ranges({})) == []
    assert (tmp_path / "out.tar").read_bytes() == by_tarfile([])


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.tar", tar_bytes([("a.jpg", b"1" * 50_000), ("b.jpg", b"2" * 50_000)]))


@pytest.mark.parametrize("change", ["touched", "longer", "gone", "cut"])
def test_a_tar_that_changes_meanwhile(tmp_path, source, change):
    url = str(source)
    entries = [Entry(each.name, Extent(url, *each[1:3])) for each in ShardIndex.scan(source).by_name.values()]
    ranges = Ranges({url: stamp(url)})

    class Changing(list):
        times = 0

        def __iter__(self):
            self.times += 1
            for number, each in enumerate(list.__iter__(self)):
                yield each
                if (self.times, number) == (2, 0):  # while it is written
                    if change == "gone":
                        source.unlink()
                    elif change == "cut":
                        os.truncate(source, 40_000)
                    elif change == "longer":
                        write(source, source.read_bytes() + bytes(512))
                    else:
                        os.utime(source, ns=(1, 1))

    reason = {"gone": "is it still there", "cut": "the tar was cut meanwhile"}.get(
        change, "was changed since"
    )
    with pytest.raises(ShardError, match=reason):
        written(tmp_path / "out.tar", Changing(entries), ranges)


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
    with Ranges({url: stamp(url)}).reading(extents) as reading:
        assert not reading.copies(extents[0])
        for each in extents:
            assert reading.read(each) == data[each.offset :][: each.size]
    assert len(asked) == 10  # those that lie near each other together, a large one in several
