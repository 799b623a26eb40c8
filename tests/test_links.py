"""Entries of tars that are no plain files: links, sparse files, pipes; against `tarfile` and the tar program."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, image_of

from curator_dask.checks.preflight import preflight
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.webdataset.idx import StaleIndex
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.reader import ShardReader


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def hard(name, target):
    return link(name, target, tarfile.LNKTYPE)


def make_tar(path, entries, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return path


LONG = "n" * 150
ENTRIES = [
    link("early.jpg", "z.jpg"),  # to what comes later
    ("a.jpg", b"a" * 600),
    ("a.txt", b"of a"),
    ("blobs/sha256", b"no sample itself"),
    ("d/b.jpg", b"b"),
    hard("c.jpg", "./a.jpg"),
    hard("c2.jpg", "c.jpg"),
    link("d/near.jpg", "b.jpg"),
    link("d/up.jpg", "../a.jpg"),
    link("d/blob.jpg", ".././blobs/sha256"),
    link("chain0.jpg", "chain1.jpg"),
    link("chain1.jpg", "d/near.jpg"),
    hard("of-link.jpg", "d/near.jpg"),
    (f"{LONG}.jpg", b"long"),
    hard(f"{LONG}/{LONG}.jpg", f"{LONG}.jpg"),
    link("to-long.jpg", f"{LONG}/{LONG}.jpg"),
    ("twice.jpg", b"first"),
    ("twice.jpg", b"second"),
    hard("of-second.jpg", "twice.jpg"),
    ("z.jpg", b"z"),
]
LOST = [
    link("away.jpg", "/etc/passwd"),
    link("out.jpg", "../../etc/passwd"),
    link("loop0.jpg", "loop1.jpg"),
    link("loop1.jpg", "loop0.jpg"),
    link("self.jpg", "self.jpg"),
    hard("before.jpg", "after.jpg"),
    ("after.jpg", b"a hard link is of what is there already"),
    hard("nothing.jpg", "nowhere.jpg"),
    link("folder-alone", "d"),  # no sample's name
    link("pipe.jpg", "", tarfile.FIFOTYPE),
]
LOST_NAMES = (
    "away.jpg",
    "out.jpg",
    "loop0.jpg",
    "loop1.jpg",
    "self.jpg",
    "before.jpg",
    "nothing.jpg",
    "pipe.jpg",
)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("index_file", [False, True])
def test_links_are_the_files_of_the_tar_that_they_point_to(tmp_path, form, index_file):
    path = make_tar(tmp_path / "x.tar", ENTRIES, form)
    index = ShardIndex.scan(path)
    assert index.problem is None
    assert index.unread == ()
    with tarfile.open(path) as tar:
        infos = {info.name: info for info in reversed(tar.getmembers())}  # the first of a name
        expected = {name: tar.extractfile(info).read() for name, info in infos.items()}
    del expected["blobs/sha256"]
    if index_file:
        index.write_idx(tmp_path / "x.idx")
        assert ShardIndex.read_idx(tmp_path / "x.idx", path).samples == index.samples
    with ShardReader(path) as reader:
        found = {m.name: bytes(reader.read(m)) for sample in reader.index.samples for m in sample.members}
        assert reader.index.scanned != index_file
        assert reader.index.duplicates == ("twice.jpg",)
    assert found == expected
    assert [sample.key for sample in index.samples][:3] == [
        "early",
        "a",
        "d/b",
    ]  # a link has its place in the tar


def test_what_points_elsewhere_is_named_and_never_read(tmp_path):
    path = make_tar(tmp_path / "x.tar", [*LOST, ("passwd", b"x"), ("etc/passwd.jpg", b"y")])
    index = ShardIndex.scan(path)
    assert [each.name for each in index.unread] == list(LOST_NAMES)
    assert [sample.key for sample in index.samples] == ["after", "etc/passwd"]
    assert str(index.unread[0]) == (
        "away.jpg is a symbolic link to '/etc/passwd', which is no file of this tar"
    )
    assert index.why_unread("pipe") == "pipe.jpg is a pipe"
    assert index.why_unread("after") is None
    index.write_idx(tmp_path / "x.idx")
    assert ShardIndex.read_idx(tmp_path / "x.idx", path).unread == index.unread


def test_long_chains_end(tmp_path):
    """Of symbolic links as on a disk, after forty; of hard links, which are the file itself, never."""
    chain = [link(f"s{number}.jpg", f"s{number - 1}.jpg") for number in range(1, 3000)]
    chain += [hard(f"h{number}.jpg", f"h{number - 1}.jpg") for number in range(1, 3000)]
    path = make_tar(tmp_path / "x.tar", [("s0.jpg", b"s"), ("h0.jpg", b"h"), *chain])
    index = ShardIndex.scan(path)
    assert len(index.samples) + len(index.unread) == 6000
    assert index.by_name["s39.jpg"].size == 1
    assert "s2999.jpg" in {each.name for each in index.unread}
    assert index.by_name["h2999.jpg"][1:] == (*index.by_name["h0.jpg"][1:3], "h0.jpg")


@pytest.mark.parametrize("change", ["no links", "one link less", "a link to another", "a link that is none"])
def test_index_files_that_do_not_have_the_links_are_not_believed(tmp_path, change):
    """As those that were written before links were read, or by DALI's own tool."""
    path = make_tar(tmp_path / "x.tar", ENTRIES)
    index = ShardIndex.scan(path)
    index.write_idx(tmp_path / "x.idx")
    lines = (tmp_path / "x.idx").read_text().splitlines()[1:]
    linked = {member.name for sample in index.samples for member in sample.members if member.target}
    place = next(line.rsplit(" ", 1)[0] for line in lines if line.endswith(" z.jpg"))
    changed = {
        "no links": [line for line in lines if line.split()[3] not in linked],
        "one link less": [line for line in lines if " to-long.jpg" not in line],
        "a link to another": [f"{place} c.jpg" if line.endswith(" c.jpg") else line for line in lines],
        "a link that is none": [*lines, f"{place} new.jpg"],
    }[change]
    (tmp_path / "x.idx").write_text("\n".join([f"v1.2 {len(changed)}", *changed]) + "\n")
    with pytest.raises(StaleIndex, match="does not fit"):
        ShardIndex.read_idx(tmp_path / "x.idx", path)
    assert ShardIndex.open(path) == index


def test_dali_reads_links_by_an_index_file_of_ours(tmp_path):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    path = make_tar(tmp_path / "x.tar", [("a.jpg", b"one" * 300), ("b.jpg", b"two"), hard("c.jpg", "a.jpg")])
    ShardIndex.scan(path).write_idx(tmp_path / "x.idx")

    @pipeline_def(batch_size=3, num_threads=1, device_id=None)
    def pipeline():
        return fn.readers.webdataset(paths=[str(path)], index_paths=[str(tmp_path / "x.idx")], ext=["jpg"])

    pipe = pipeline()
    pipe.build()
    (images,) = pipe.run()
    assert [bytes(images.at(number)) for number in range(3)] == [b"one" * 300, b"two", b"one" * 300]


@pytest.mark.parametrize("metadata", ["parquet", "tar"])
def test_a_run_over_a_folder_that_was_packed_with_links_and_holes(tmp_path, in_this_process, metadata):
    folder, data = tmp_path / "files", tmp_path / "data"
    folder.mkdir()
    data.mkdir()
    for number in (1, 2):
        (folder / f"{number}.png").write_bytes(image_of(str(number)))
    os.link(folder / "1.png", folder / "64001.png")
    (folder / "3.png").symlink_to("2.png")
    (folder / "4.png").symlink_to("/nowhere/4.png")
    with (folder / "5.png").open("wb") as file:
        file.write(image_of("5"))
        file.truncate(1 << 20)
    subprocess.run(["tar", "--sparse", "--sort=name", "-C", folder, "-cf", data / "0.tar", "."], check=True)
    expected = {"1": "1", "64001": "1", "2": "2", "3": "2"}
    if metadata == "parquet":
        pq.write_table(pa.table({"key": [*expected, "4", "5"]}), data / "0.parquet")

    found = {finding.kind: finding for finding in preflight(data).findings}
    assert found["unread"].count == 2
    assert "4.png is a symbolic link to '/nowhere/4.png'" in found["unread"].examples[0]

    dataset = ImageTextPairDataset.from_webdataset(data)
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert [fact["count"] for fact in summary.unread.values()] == [2]
    assert "2 members that cannot be read, left out" in str(summary)
    assert "5.png is a sparse file" in str(summary)
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    check_colours(expected.values(), [rows[key]["image_embedding"] for key in expected])
    if metadata == "parquet":
        assert rows["5"]["image_error"].startswith(
            "missing: no sample '5' in the tar: ./5.png is a sparse file"
        )
        assert "'/nowhere/4.png', which is no file of this tar" in rows["4"]["image_error"]
    else:
        assert rows.keys() == expected.keys()


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_files_of_each_format_have_their_own_name(tmp_path, form):
    (tmp_path / "in").mkdir()
    for number in range(60):  # a map of many pieces has headers of its own
        with (tmp_path / "in" / "0.jpg").open("r+b" if number else "wb") as file:
            file.seek(number << 16)
            file.write(b"x" * 4096)
    (tmp_path / "in" / "1.jpg").write_bytes(b"whole")
    command = [
        "tar",
        "--sparse",
        f"--format={form}",
        "--sort=name",
        "-C",
        tmp_path / "in",
        "-cf",
        tmp_path / "x.tar",
    ]
    subprocess.run([*command, "0.jpg", "1.jpg"], check=True)
    index = ShardIndex.scan(tmp_path / "x.tar")
    assert (index.problem, [sample.key for sample in index.samples]) == (None, ["1"])
    assert [each.name for each in index.unread] == ["0.jpg"]


def test_zeros_behind_the_end_mark_are_padding(tmp_path):
    path = make_tar(tmp_path / "x.tar", [("a.jpg", b"1")])
    whole = path.read_bytes()
    for data in (whole + bytes(3 << 20), whole + bytes(7)):
        path.write_bytes(data)
        assert ShardIndex.scan(path).problem is None
    os.truncate(path, 1 << 40)  # a hole of a terabyte
    assert ShardIndex.scan(path).problem is None
    for at in (5 << 20, (1 << 40) - 1):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"x")
        assert "end mark stands at byte 1024" in ShardIndex.scan(path).problem
        os.truncate(path, at)


def test_zeros_from_the_midst_of_a_file_on_are_a_download_that_broke_off(tmp_path):
    path = make_tar(tmp_path / "x.tar", [("a.jpg", b"1" * 9000), ("b.jpg", b"2" * 9000)])
    os.truncate(path, 13_000)
    os.truncate(path, 5 << 20)
    assert "not fetched whole" in ShardIndex.scan(path).problem
