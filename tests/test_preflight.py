"""The preflight against real datasets, good and broken; and its verdict against what a run then does."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, image_of, members_of, write_dataset, write_tar
from PIL import Image

from curator_dask.checks import preflight as preflight_module
from curator_dask.checks.kinds import KINDS, TOO_LARGE
from curator_dask.checks.preflight import preflight
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, CuratorError, DatasetError
from curator_dask.frames.names import STATISTIC_COLUMNS
from curator_dask.image.statistics import STATISTICS, ImageStatistics
from curator_dask.webdataset.index import ShardIndex

SAMPLES = 6


def by_kind(report):
    return {finding.kind: finding for finding in report.findings}


def edit(parquet: Path, change) -> None:
    """Rewrite a Parquet file with what `change` makes of its columns."""
    columns = pq.read_table(parquet).to_pydict()
    pq.write_table(pa.table(change(columns) or columns), parquet)


def members_in(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as file:
        return [(info.name, file.extractfile(info).read()) for info in file]


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data", shards=3, samples=SAMPLES)
    return tmp_path / "data"


# A dataset with nothing wrong


@pytest.mark.parametrize("parquet", [True, False])
def test_nothing_is_found_in_a_good_dataset(tmp_path, parquet):
    folder = tmp_path / "data"
    write_dataset(folder, shards=3, samples=SAMPLES, parquet=parquet)
    ShardIndex.scan(folder / "00001.tar").write_idx(folder / "00001.idx")
    report = preflight(folder)
    assert report.findings == []
    assert report.ok
    assert report.taken == ["width"]  # which tars' JSON has, too
    assert "its columns width have names of statistics, which need others (prefix=" in str(report)
    assert report.source == ("parquet" if parquet else "tar")
    assert (report.shards, report.looked, report.rows, report.samples) == (3, 3, 18, 18)
    assert report.rows_exact
    assert report.samples_exact
    names = [name for tar in folder.glob("*.tar") for name, _ in members_in(tar)]
    assert report.components == Counter(name.partition(".")[2] for name in names)
    pictures = [
        data for tar in folder.glob("*.tar") for name, data in members_in(tar) if name.endswith("png")
    ]
    sizes = [Image.open(io.BytesIO(data)).size for data in pictures]
    assert report.images["looked"] == 18
    assert report.images["formats"] == {"PNG": 18}
    assert report.images["width"] == [min(w for w, _ in sizes), np.median([w for w, _ in sizes]), 28]
    assert report.images["height"] == [20, 20, 20]
    assert report.images["bytes"][2] == max(map(len, pictures))
    assert "nothing that would fail, 0 notes" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_names_that_statistics_cannot_have(tmp_path, in_this_process):
    """What the look says, a run with the statistics meets; those of an earlier run are no column of another's."""
    assert tuple(STATISTICS) == STATISTIC_COLUMNS
    write_dataset(tmp_path / "data", shards=2, samples=SAMPLES)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    taken = preflight(tmp_path / "data").taken
    for name in ("width", "height", "grey"):
        if name in taken:
            with pytest.raises(ConfigError, match="prefix image_"):
                ImageStatistics([name])(dataset)
        else:
            ImageStatistics([name])(dataset)
    ImageStatistics(["height", "grey"])(dataset).save_metadata()
    assert preflight(tmp_path / "data").taken == []
    for name in ("1.png", "2.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(image_of(name))
    table = tmp_path / "captions.csv"
    table.write_text("file_name,caption,phash,Width\na.png,A,1,2\nb.png,B,3,4\n")
    assert preflight(tmp_path / "images", captions=table).taken == ["phash"]
    assert preflight(tmp_path / "images", captions=None).taken == []


def test_disk_is_estimated_as_a_run_fills_it(tmp_path, in_this_process):
    folder = tmp_path / "data"
    write_dataset(folder, shards=2, samples=300)
    report = preflight(folder, dim=3)
    assert report.disk["vectors"] == 600 * 3 * 4
    dataset = ImageTextPairDataset.from_webdataset(folder)
    ColourReader()(dataset).save_metadata(tmp_path / "out")
    wide = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.parquet"))
    assert report.disk["total"] == pytest.approx(wide, rel=0.5)


def test_space_for_the_output(folder, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    rows = 3 * SAMPLES
    report = preflight(folder, dim=free // (2 * rows), output=tmp_path / "not" / "yet" / "there")
    assert by_kind(report)["disk"].fails
    assert not (tmp_path / "not").exists()
    assert preflight(folder, dim=768, output=tmp_path / "out").ok
    assert report.disk["free"] == pytest.approx(free, rel=0.1)
    # What an earlier run has written needs no second place.
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "00000.parquet").open("wb") as file:
        os.truncate(file.fileno(), 10_000)
    assert preflight(folder, output=tmp_path / "out").disk["there"] == 10_000


# What would fail, and what only costs rows; a run has the last word


def zero_bytes(folder):
    (folder / "00001.tar").write_bytes(b"")


def html(folder):
    (folder / "00001.tar").write_bytes(b"<!DOCTYPE html>" * 100)


def gzipped(folder):
    import gzip

    (folder / "00001.tar").write_bytes(gzip.compress((folder / "00001.tar").read_bytes()))


def zeros(folder):
    (folder / "00001.tar").write_bytes(bytes(3_000_000))


def truncated(folder):
    cut(folder / "00001.tar", 0.6)


def no_end_mark(folder):
    tar = folder / "00001.tar"
    last = max(member.offset + member.size for s in ShardIndex.scan(tar).samples for member in s.members)
    os.truncate(tar, -(-last // 512) * 512)


def damaged_inside(folder):
    data = bytearray((folder / "00001.tar").read_bytes())
    at = ShardIndex.scan(folder / "00001.tar").samples[3].members[0].offset
    data[at - 512 : at] = b"x" * 512
    (folder / "00001.tar").write_bytes(data)


def fifo(folder):
    (folder / "00001.tar").unlink()
    os.mkfifo(folder / "00001.tar")


def gone(folder):
    (folder / "00001.tar").unlink()
    (folder / "00001.tar").symlink_to("nowhere.tar")


def name_not_utf8(folder):
    odd = os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")
    for suffix in (".tar", ".parquet"):
        shutil.copy(folder / f"00001{suffix}", odd + suffix)


def broken_parquet(folder):
    (folder / "00001.parquet").write_bytes(b"PAR1 no more")


def cut_parquet(folder):
    cut(folder / "00001.parquet", 0.5)


def damaged_pages(folder):
    data = bytearray((folder / "00001.parquet").read_bytes())
    data[4:60] = b"\xff" * 56  # the footer is whole
    (folder / "00001.parquet").write_bytes(data)


def parquet_fifo(folder):
    (folder / "00001.parquet").unlink()
    os.mkfifo(folder / "00001.parquet")


def one_companion_missing(folder):
    (folder / "00001.parquet").unlink()


def companions_missing_and_broken(folder):
    (folder / "00001.parquet").unlink()
    (folder / "00002.parquet").write_bytes(b"")


def null_id(folder):
    edit(folder / "00001.parquet", lambda c: c | {"key": [None, *c["key"][1:]]})


def repeated_id(folder):
    edit(folder / "00001.parquet", lambda c: c | {"key": [c["key"][1], *c["key"][1:]]})


def other_ids(folder):
    edit(folder / "00001.parquet", lambda c: c | {"key": [f"x{key}" for key in c["key"]]})


def swapped(folder):
    shutil.copy(folder / "00000.parquet", folder / "00001.parquet")


def another_type(folder):
    edit(folder / "00001.parquet", lambda c: c | {"width": [[1]] * SAMPLES})


def no_key_column(folder):
    for path in folder.glob("*.parquet"):
        edit(path, lambda c: {"caption": c["caption"]})


def one_without_key_column(folder):
    edit(folder / "00001.parquet", lambda c: {"caption": c["caption"], "width": c["width"]})


def no_utf8(path, column):
    table = pq.read_table(path)
    data, offsets = b"\xff\xfe" * SAMPLES, np.arange(0, 2 * SAMPLES + 1, 2, dtype=np.int32)
    values = pa.StringArray.from_buffers(SAMPLES, pa.py_buffer(offsets), pa.py_buffer(data))
    pq.write_table(table.set_column(table.column_names.index(column), column, values), path)


def key_not_utf8(folder):
    no_utf8(folder / "00001.parquet", "key")


def two_columns_of_one_name(folder):
    table = pq.read_table(folder / "00001.parquet")
    pq.write_table(table.append_column("key", table["key"]), folder / "00001.parquet")


WOULD_FAIL = {
    zero_bytes: "not-a-tar",
    html: "not-a-tar",
    gzipped: "not-a-tar",
    zeros: "damaged",
    truncated: "damaged",
    no_end_mark: "damaged",
    damaged_inside: "damaged",
    fifo: "unreadable",
    gone: "unreadable",
    name_not_utf8: "name",
    broken_parquet: "companion",
    cut_parquet: "companion",
    damaged_pages: "companion",
    parquet_fifo: "companion",
    one_companion_missing: "no-companion",
    companions_missing_and_broken: "no-companion",
    null_id: "ids",
    repeated_id: "ids",
    another_type: "columns",
    key_not_utf8: "companion",
    two_columns_of_one_name: "columns",
    no_key_column: "columns",
    one_without_key_column: "columns",
}


def run(folder, output):
    """Whether a run ends without an error, and without a shard that failed or was damaged; and its summary."""
    try:
        dataset = ImageTextPairDataset.from_webdataset(folder)
        summary = ColourReader()(dataset).save_metadata(output)
    except CuratorError:
        return False, None
    return not summary.failed_shards and not summary.damaged_shards, summary


@pytest.mark.parametrize("breakage", WOULD_FAIL, ids=lambda breakage: breakage.__name__)
def test_what_would_fail(folder, tmp_path, in_this_process, breakage):
    breakage(folder)
    report = preflight(folder)
    problems = {finding.kind: finding for finding in report.problems}
    assert WOULD_FAIL[breakage] in problems, report
    assert not report.ok
    finding = problems[WOULD_FAIL[breakage]]
    names = "\n".join(finding.examples)
    odd = {name_not_utf8: r"\xff\xfe", no_key_column: "'key'"}
    assert odd.get(breakage, "00001") in names
    assert "Traceback" not in str(report)
    str(report).encode()
    json.dumps(report.to_dict()).encode()
    well, _ = run(folder, tmp_path / "out")
    assert not well


def missing_rows(folder):
    edit(
        folder / "00001.parquet",
        lambda c: {
            name: [*v, v[0] + type(v[0])(1)] if name == "width" else [*v, "9" * 9] for name, v in c.items()
        },
    )


def failed_downloads(folder):
    for path in folder.glob("*.parquet"):
        edit(path, lambda c: c | {"status": ["success"] * SAMPLES})

    def two_more(columns):
        columns["key"] += ["777777777", "888888888"]
        columns["caption"] += ["a", "b"]
        columns["width"] += [None, None]
        columns["status"] += ["failed_to_download", "failed_to_resize"]

    edit(folder / "00001.parquet", two_more)


def samples_without_rows(folder):
    edit(folder / "00001.parquet", lambda c: {name: values[2:] for name, values in c.items()})


def no_rows(folder):
    empty = pq.read_table(folder / "00001.parquet").slice(0, 0)
    pq.write_table(empty, folder / "00001.parquet")


def repeated_members(folder):
    members = members_in(folder / "00001.tar")
    write_tar(folder / "00001.tar", [*members, members[0], members[4]])


def link_to_elsewhere(folder):
    info = tarfile.TarInfo("000010009.png")
    info.type, info.linkname = tarfile.SYMTYPE, "/images/000010009.png"
    with tarfile.open(folder / "00001.tar", "a") as tar:
        tar.addfile(info)


def no_image(folder):
    members = members_in(folder / "00001.tar")
    write_tar(folder / "00001.tar", [m for m in members if not m[0].startswith("000010003.png")])


def several_images(folder):
    members = members_in(folder / "00001.tar")
    write_tar(folder / "00001.tar", [*members, ("000010003.left.png", image_of("000010003"))])


def no_captions(folder):
    edit(folder / "00001.parquet", lambda c: c | {"caption": [None, " ", *c["caption"][2:]]})


def bad_images(folder):
    members = [
        (name, b"<!DOCTYPE html>" if name == "000010002.png" else b"" if name == "000010004.png" else data)
        for name, data in members_in(folder / "00001.tar")
    ]
    write_tar(folder / "00001.tar", members)


def stale_index(folder):
    members = members_in(folder / "00001.tar")
    ShardIndex.scan(folder / "00001.tar").write_idx(folder / "00001.idx")
    write_tar(folder / "00001.tar", members[::-1])


def foreign_index(folder):
    write_tar(folder / "other.tar", members_of("longer-than-those-of-the-shard-1") * 2)
    ShardIndex.scan(folder / "other.tar").write_idx(folder / "00001.idx")
    (folder / "other.tar").unlink()


def cut_index(folder):
    ShardIndex.scan(folder / "00001.tar").write_idx(folder / "00001.idx")
    cut(folder / "00001.idx", 0.6)


def index_without_its_last_lines(folder):
    ShardIndex.scan(folder / "00001.tar").write_idx(folder / "00001.idx")
    lines = (folder / "00001.idx").read_bytes().splitlines(keepends=True)
    (folder / "00001.idx").write_bytes(b"".join(lines[:-2]))


def index_that_is_none(folder):
    (folder / "00001.idx").write_bytes(b"\0\0\x08\x03 MNIST")


def index_fifo(folder):
    os.mkfifo(folder / "00001.idx")


COSTS_ROWS = {  # with the number that is found
    missing_rows: ("missing", 1),
    failed_downloads: ("not-downloaded", 2),
    samples_without_rows: ("orphans", 2),
    no_rows: ("no-rows", 1),
    repeated_members: ("duplicates", 2),
    link_to_elsewhere: ("unread", 1),
    no_image: ("no-image", 1),
    several_images: ("several-images", 1),
    no_captions: ("no-caption", 2),
    bad_images: ("bad-image", 2),
    stale_index: ("stale-idx", 1),
    foreign_index: ("stale-idx", 1),
    cut_index: ("stale-idx", 1),
    index_without_its_last_lines: ("stale-idx", 1),
    index_that_is_none: ("stale-idx", 1),
    index_fifo: ("stale-idx", 1),
}


@pytest.mark.parametrize("breakage", COSTS_ROWS, ids=lambda breakage: breakage.__name__)
def test_what_costs_rows_or_time(folder, tmp_path, in_this_process, breakage):
    breakage(folder)
    report = preflight(folder)
    kind, count = COSTS_ROWS[breakage]
    found = by_kind(report)
    assert report.ok, report
    assert kind in found, report
    assert found[kind].count == count
    assert found[kind].shards == 1
    assert found[kind].estimate is None
    assert found[kind].examples[0].startswith("00001")
    well, summary = run(folder, tmp_path / "out")
    assert well
    expected = sum(
        found[k].count for k in ("missing", "not-downloaded", "no-image", "bad-image") if k in found
    )
    assert summary.failed == expected
    assert sum(fact["count"] for fact in summary.orphans.values()) == (
        found["orphans"].count if "orphans" in found else 0
    )


def test_a_shard_of_which_no_row_finds_its_image(folder):
    swapped(folder)
    report = preflight(folder)
    finding = by_kind(report)["no-match"]
    assert finding.fails
    assert finding.count == 1
    assert finding.examples[0].startswith("00001: its Parquet names 6 images")
    assert by_kind(report)["orphans"].count == SAMPLES
    other_ids(folder)
    assert "no-match" in by_kind(preflight(folder))


def test_whose_downloads_failed_all_is_no_mismatch(folder):
    failed_downloads(folder)
    write_tar(folder / "00001.tar", [])
    edit(folder / "00001.parquet", lambda c: c | {"status": ["failed_to_download"] * (SAMPLES + 2)})
    report = preflight(folder)
    assert report.ok, report
    assert report.statuses == {"failed_to_download": SAMPLES + 2}
    assert "no-samples" not in by_kind(report)  # to leave the tar out would lose its rows
    assert by_kind(report)["not-downloaded"].count == SAMPLES + 2


def all_failed_downloads(folder):
    for number in range(3):
        write_tar(folder / f"{number:05d}.tar", [])
        edit(folder / f"{number:05d}.parquet", lambda c: c | {"status": ["failed_to_download"] * SAMPLES})


def no_images(folder):
    for number in range(3):
        texts = [one for one in members_in(folder / f"{number:05d}.tar") if not one[0].endswith("png")]
        write_tar(folder / f"{number:05d}.tar", texts)


def no_images_in_tars_alone(folder):
    no_images(folder)
    for path in folder.glob("*.parquet"):
        path.unlink()


def all_bad_images(folder):
    for tar in folder.glob("*.tar"):
        pages = [(name, b"<html>" if name.endswith("png") else data) for name, data in members_in(tar)]
        write_tar(tar, pages)


@pytest.mark.parametrize(
    ("breakage", "why"),
    [
        (all_failed_downloads, "no row finds an image"),
        (no_images, "no row finds an image"),
        (no_images_in_tars_alone, "no row finds an image"),
        (all_bad_images, "none of the 18 images looked at can be used"),
    ],
)
def test_that_no_row_would_have_a_vector(folder, tmp_path, in_this_process, breakage, why):
    breakage(folder)
    report = preflight(folder)
    assert [finding.kind for finding in report.problems] == ["no-vector"]
    finding = report.problems[0]
    assert (finding.count, finding.examples) == (3 * SAMPLES, (why,))
    assert "NONE that was looked at would have a vector" in str(report)
    assert run(folder, tmp_path / "out")[1].good == 0
    # One image is enough.
    key = pq.read_table(folder / "00002.parquet")["key"][0].as_py() if report.source == "parquet" else "1"
    write_tar(folder / "00002.tar", members_of(key))
    assert preflight(folder).ok


def test_statuses_are_counted(folder):
    failed_downloads(folder)
    assert preflight(folder).statuses == {"failed_to_download": 1, "failed_to_resize": 1}


def test_a_status_column_of_another_author(folder):
    other_ids(folder)
    edit(folder / "00001.parquet", lambda c: c | {"status": ["active"] * SAMPLES})
    for name in ("00000", "00002"):
        edit(folder / f"{name}.parquet", lambda c: c | {"status": ["active"] * SAMPLES})
    assert "no-match" in by_kind(preflight(folder))


def test_reasons_of_bad_images(folder):
    bad_images(folder)
    report = preflight(folder)
    assert report.images["unusable"] == {"not an image": 1, "empty": 1}
    bad = by_kind(report)["bad-image"]
    assert all(
        f"{key}: {kind}" in bad.examples[0] for key, kind in (("000010002", "not an"), ("000010004", "empty"))
    )
    assert "max-pixels" not in str(bad)
    large = preflight(folder, max_pixels=20 * 24)
    fix = by_kind(large)["bad-image"].to_dict()["fix"]
    assert fix == f"{TOO_LARGE}; the others: {KINDS['bad-image'].fix}"
    assert large.images["unusable"]["too large"] == sum(
        Image.open(io.BytesIO(data)).width > 24
        for tar in folder.glob("*.tar")
        for name, data in members_in(tar)
        if name.endswith("png") and len(data) > 20
    )


def test_captions_that_are_not_utf8_are_passed_on(folder, tmp_path, in_this_process):
    no_utf8(folder / "00001.parquet", "caption")
    assert preflight(folder).ok
    well, summary = run(folder, tmp_path / "out")
    assert well
    assert summary.rows == 3 * SAMPLES


def test_captions_of_tars(tmp_path):
    write_tar(
        tmp_path / "0.tar",
        [
            ("a.png", image_of("1")),
            ("a.txt", b"a caption"),
            ("b.png", image_of("2")),
            ("b.json", b'{"caption": "in the JSON"}'),
            ("c.png", image_of("3")),
            ("c.json", b'{"other": 1}'),
            ("d.png", image_of("4")),
            ("e.png", image_of("5")),
            ("e.json", b"{broken"),
        ],
    )
    finding = by_kind(preflight(tmp_path))["no-caption"]
    assert finding.count == 3
    assert finding.examples == ("0: 'c', 'd', 'e'",) and "--captions" not in str(finding)
    frame = ImageTextPairDataset.from_webdataset(tmp_path).metadata.compute(scheduler="sync")
    assert frame["caption"].isna().sum() == 3


def test_a_table_of_captions_is_compared_with_the_images(tmp_path, said):
    images, table = tmp_path / "images", tmp_path / "captions.csv"
    (images / "a").mkdir(parents=True)
    for name in ("1.png", "2.png", "3.png", "a/4.png"):
        (images / name).write_bytes(image_of("1"))
    (images / "1.json").write_text('{"not": "a column"}')
    rows = (
        '"file_name";"caption"\r\n1.png;"one; ""1""\nof two lines"\r\n./2.png; \r\na\\4.png;x\r\n5.png;x\r\n'
    )
    table.write_text("\ufeff" + rows, newline="")
    report = preflight(images, captions=table)
    found = {kind: (each.count, each.examples) for kind, each in by_kind(report).items() if kind != "readers"}
    assert report.ok and found == {
        "no-row": (2, ("'3.png', 'a/4.png'",)),
        "no-file": (2, (r"'a\\4.png', '5.png'",)),
        "no-caption": (1, ("'2.png'",)),
    }
    assert report.disk["other"] == table.stat().st_size and not report.left_out
    assert f"rows come from the images, and {table} (columns file_name, caption)" in str(report)
    dataset = ImageTextPairDataset.from_images(images, captions=table)
    captions = dataset.metadata.compute(scheduler="sync")["caption"]
    assert captions.dropna().tolist() == ['one; "1"\nof two lines', " "] and len(captions) == 4
    assert not {"no-caption", "no-row"} & {*by_kind(preflight(images, captions=None))}
    silent = by_kind(preflight(images))["no-caption"]
    assert silent.count == 4 and "--captions FILE" in str(silent)
    table.write_text(",file_name,image_embedding\n0,1.png,5\n")
    report = preflight(images, captions=table)
    assert report.ok and by_kind(report)["replaced"].examples == ("'image_embedding'",)
    assert by_kind(report)["nameless"].count == 1
    ColourReader()(ImageTextPairDataset.from_images(images, captions=table))
    assert "replaces the rows' own 'image_embedding'" in said.text
    table.write_text("file_name,caption\n1.png,a\n1.png,b\n")
    report = preflight(images, captions=table)
    assert not report.ok and "1 image in several rows each" in by_kind(report)["captions"].examples[0]
    write_dataset(tmp_path / "tars", shards=1, samples=1)
    with pytest.raises(ConfigError, match="is for image files"):
        preflight(tmp_path / "tars", captions=table)


def test_keys_with_dots_are_told(tmp_path):
    names = ["photo.1.png", "photo.2.png", "photo.3.png", "other.png"]
    write_tar(tmp_path / "0.tar", [(name, image_of("1")) for name in names])
    report = preflight(tmp_path)
    assert report.samples == 2
    finding = by_kind(report)["several-images"]
    assert finding.examples == ("0: 'photo'",)
    assert "first dot" in str(finding)


def test_samples_that_other_readers_see_otherwise_are_told(tmp_path):
    keys = ["a", "b", "x.y/c", "with space", "d", "e", "f"]
    members = [member for key in keys for member in ((f"{key}.png", image_of("1")), (f"{key}.txt", b"text"))]
    odd = [("lacks", image_of("1"), "png"), ("upper", image_of("1"), "Png")]
    write_tar(tmp_path / "0.tar", [*members, *((f"{key}.{suffix}", data) for key, data, suffix in odd)])
    report = preflight(tmp_path)
    finding = by_kind(report)["readers"]
    assert (finding.count, report.ok) == (4, True)
    assert finding.examples[0].startswith("0: 'x.y/c', 'with space', 'lacks'")
    assert "--layout portable" in str(finding)


def test_keys_that_several_shards_have_are_told(tmp_path):
    """A tar by itself may have a key twice: that is told as such."""
    shards = {"train/0": "abcd", "train/1": "bx", "val/0": "cbxyy"}
    for name, keys in shards.items():
        write_tar(tmp_path / f"{name}.tar", [(f"{key}\udce4.png", image_of("1")) for key in keys])
    finding = by_kind(preflight(tmp_path))["shared-keys"]
    assert (finding.count, finding.shards, finding.fails) == (1 + 3, 2, False)
    first, second = finding.examples
    assert first == "train/1: 1 of its keys, as train/0"
    assert second.startswith("val/0: 3 of its keys, as train/")
    assert "--keys sequential" in str(finding)


def test_a_shard_with_too_many_values(folder):
    report = preflight(folder, dim=2**31 // SAMPLES + 1)
    assert by_kind(report)["partition"].count == 3
    assert preflight(folder, dim=2**31 // SAMPLES - 1).ok


def test_rows_from_the_tars_need_no_parquet(folder):
    broken_parquet(folder)
    one_companion_missing(folder)
    assert preflight(folder, metadata="tar").ok
    assert not preflight(folder, metadata="parquet").ok


def test_output_of_an_interrupted_run_beside_the_tars(tmp_path, in_this_process):
    folder = tmp_path / "data"
    write_dataset(folder, shards=2, samples=SAMPLES, parquet=False)
    dataset = ImageTextPairDataset.from_webdataset(folder)
    ColourReader()(dataset).save_metadata()
    (folder / "00001.parquet").unlink()
    report = preflight(folder)
    assert report.ok, report
    assert report.source == "tar"


def test_output_in_the_datasets_own_files(folder, in_this_process):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    ColourReader()(dataset.with_metadata(dataset.metadata.partitions[:2])).save_metadata()
    assert preflight(folder).findings == []


def test_ids_of_numbers_and_of_another_column(tmp_path):
    folder = tmp_path / "data"
    keys = write_dataset(folder, shards=1, samples=SAMPLES, shuffle=False)
    edit(folder / "00000.parquet", lambda c: {"uid": [int(key) for key in c["key"]], "caption": c["caption"]})
    assert preflight(folder, "uid").findings == []
    edit(folder / "00000.parquet", lambda c: c | {"uid": [float(key) for key in keys]})
    assert preflight(folder, "uid").findings == []
    report = preflight(folder, "uuid")
    assert "uuid" in by_kind(report)["columns"].examples[0]


def test_odd_names_do_not_upset_a_terminal(tmp_path):
    names = ["\x1b[31mred.png", "line\nbreak.png", os.fsdecode(b"\xff\xfe.png"), "k" * 400 + ".png"]
    with tarfile.open(tmp_path / "0.tar", "w", encoding="utf-8", errors="surrogateescape") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            tar.addfile(info)
    text = str(preflight(tmp_path))
    assert "\x1b" not in text
    assert all(len(line) < 1600 for line in text.splitlines())
    text.encode()
    assert "x empty" in text or "bad" in text or "image that cannot be used" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(folder):
    (folder / "00000.tar").chmod(0)
    (folder / "00001.parquet").chmod(0)
    found = by_kind(preflight(folder))
    assert "Permission" in found["unreadable"].examples[0]
    assert "Permission" in found["companion"].examples[0]


def test_folders_with_the_names_of_files(folder):
    (folder / "00001.idx").mkdir()
    (folder / "00002.parquet").unlink()
    (folder / "00002.parquet").mkdir()
    (folder / "00003.tar").mkdir()
    found = by_kind(preflight(folder))
    assert found["stale-idx"].count == 1
    assert found.keys() & {"no-companion", "companion"}


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_is_never_a_traceback(folder, seed):
    """Bytes overwritten, cut or doubled anywhere in any file: a report comes, and it can be printed."""
    rng = np.random.default_rng(seed)
    ShardIndex.scan(folder / "00001.tar").write_idx(folder / "00001.idx")
    for path in sorted(folder.iterdir()):
        data = bytearray(path.read_bytes())
        for _ in range(rng.integers(0, 4)):
            at = int(rng.integers(0, len(data)))
            data[at : at + int(rng.integers(1, 200))] = rng.bytes(int(rng.integers(0, 200)))
        path.write_bytes(data if rng.random() < 0.7 else data[: int(rng.integers(0, len(data) + 1))])
    report = preflight(folder)
    assert report.shards == 3
    str(report).encode()
    json.dumps(report.to_dict())


# Many shards


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """40 shards of 6 samples; in every tenth the first row has no sample, and shard 17 is cut."""
    folder = tmp_path_factory.mktemp("many") / "data"
    write_dataset(folder, shards=40, samples=SAMPLES, shuffle=False)
    for number in range(0, 40, 10):
        edit(folder / f"{number:05d}.parquet", lambda c: c | {"key": ["none", *c["key"][1:]]})
    cut(folder / "00017.tar", 0.5)
    return folder


def test_all_shards_are_looked_into_where_they_are_small(many):
    report = preflight(many)
    assert report.looked == 40
    found = by_kind(report)
    # The sample that lost its row, and those that the cut took from theirs.
    lost = SAMPLES - len(ShardIndex.scan(many / "00017.tar").samples)
    assert found["missing"].count == 4 + lost
    assert found["orphans"].count == 4
    assert found["orphans"].examples[1].startswith("00010: ")


def test_some_shards_stand_for_all(many):
    report = preflight(many, shards=5)
    # 0, 9, 19, 29, 39, and the one that does not end as tars do.
    assert report.looked == 6
    assert not report.samples_exact
    assert report.rows_exact
    assert report.rows == 40 * SAMPLES
    assert report.samples == pytest.approx(40 * SAMPLES, rel=0.1)
    found = by_kind(report)
    assert found["damaged"].examples[0].startswith("00017: truncated")
    assert found["damaged"].estimate is None
    assert found["orphans"].count == 1
    assert found["orphans"].estimate == pytest.approx(40 / 5.5, rel=0.2)
    assert "about" in str(found["orphans"])
    assert "6 of 40" in str(report)
    assert not preflight(many, shards="all").findings[0].estimate
    assert preflight(many, shards=1000).looked == 40
    assert preflight(many, shards=1).looked == 2


def test_every_shard_gets_a_glance(many, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(many, folder)
    ShardIndex.scan(folder / "00022.tar").write_idx(folder / "00023.idx")
    (folder / "00027.tar").write_bytes(b"no tar")
    (folder / "00031.parquet").write_bytes(b"no Parquet")
    edit(folder / "00033.parquet", lambda c: c | {"more": [1] * SAMPLES})
    found = by_kind(preflight(folder, shards=1))
    assert found["not-a-tar"].examples == (
        "00027: expected a tar, found only 6 bytes starting with b'no tar': fetch the shard again or leave it out",
    )
    assert found["companion"].examples[0].startswith("00031")
    assert found["stale-idx"].examples[0].startswith("00023")
    assert found["columns"].examples[0].startswith("00033: has columns ['more']")


def test_what_is_looked_into_is_bounded(tmp_path, monkeypatch):
    """6,000 members in 12 shards are more than it reads unasked here: some shards are left, and it is said."""
    monkeypatch.setattr(preflight_module, "_MEMBERS", 4_000)
    header = tarfile.TarInfo("0" * 9 + ".jpg").tobuf(tarfile.USTAR_FORMAT)
    block = bytearray()
    for number in range(500):  # members of no bytes; only the name and the checksum change
        new = bytearray(header)
        new[:9] = b"%09d" % number
        new[148:156] = b" " * 8
        new[148:156] = b"%06o\0 " % sum(new)
        block += new
    (tmp_path / "0.tar").write_bytes(block + bytes(10240))
    for number in range(1, 12):
        os.link(tmp_path / "0.tar", tmp_path / f"{number}.tar")
    monkeypatch.setattr(preflight_module, "_SECONDS", 3600)
    report = preflight(tmp_path)
    assert 4_000 / 500 <= report.looked < 12
    assert report.samples == 6_000
    assert not report.rows_exact
    assert preflight(tmp_path, shards=1).samples == 6_000
    monkeypatch.setattr(preflight_module, "_SECONDS", 0)
    assert preflight(tmp_path).looked < 4_000 / 500


# Elsewhere than on the disk


def test_shards_of_a_store(folder):
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(folder), "/preflight/data", recursive=True)
    try:
        assert preflight("memory://preflight/data").findings == []
        tar = (folder / "00001.tar").read_bytes()
        store.pipe_file("/preflight/data/00001.tar", tar[: len(tar) // 2])
        store.pipe_file("/preflight/data/00002.tar", b"")
        store.pipe_file("/preflight/data/00000.parquet", b"PAR1")
        found = by_kind(preflight("memory://preflight/data", output="memory://out"))
        assert found["damaged"].examples[0].startswith("00001: truncated")
        assert found["not-a-tar"].examples[0].startswith("00002")
        assert found["companion"].examples[0].startswith("00000")
    finally:
        store.rm("/preflight", recursive=True)


def test_large_remote_shards_are_not_fetched_unasked(folder, monkeypatch):
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(folder), "/preflight/data", recursive=True)
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    try:
        monkeypatch.setattr("curator_dask.checks.preflight._REMOTE_BYTES", largest)
        report = preflight("memory://preflight/data")
        assert (report.looked, report.rows) == (1, 3 * SAMPLES)
        assert preflight("memory://preflight/data", shards=2).looked == 2
        monkeypatch.setattr("curator_dask.checks.preflight._REMOTE_BYTES", 1)
        report = preflight("memory://preflight/data")
        assert (report.looked, report.samples, report.rows) == (0, None, 3 * SAMPLES)
        assert report.ok
        assert "samples: unknown" in str(report)
        assert report.disk["vectors"] == 3 * SAMPLES * 768 * 4
        assert preflight("memory://preflight/data", metadata="tar").rows is None
        # Its end shows all the same that a shard was cut.
        tar = (folder / "00001.tar").read_bytes()
        store.pipe_file("/preflight/data/00001.tar", tar[: len(tar) // 2])
        assert by_kind(preflight("memory://preflight/data"))["damaged"].count == 1
    finally:
        store.rm("/preflight", recursive=True)


# Wrong usage, and what it loads


def test_wrong_usage(folder, tmp_path):
    with pytest.raises(DatasetError, match="nowhere"):
        preflight(tmp_path / "nowhere")
    for options in ({"metadata": "csv"}, {"shards": 0}, {"shards": "some"}, {"dim": 0}, {"shards": True}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            preflight(folder, **options)


def test_every_kind_has_a_test():
    files = (Path(__file__), Path(__file__).with_name("test_parquet_images.py"))
    files += (Path(__file__).with_name("test_several_images.py"),)
    here = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [kind for kind in KINDS if f'"{kind}"' not in here] == []


def test_it_loads_no_model_library(folder):
    code = (
        "import sys\nfrom curator_dask.checks.preflight import preflight\n"
        f"assert preflight({str(folder)!r}).ok\n"
        "print([name for name in ('torch', 'timm', 'nvidia.dali', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_images_that_img2dataset_left_on_their_side_are_counted(tmp_path):
    """Re-encoded they have lost their orientation; a file that has its own is turned when it is decoded."""
    words = {
        1: "Horizontal (normal)",
        2: "Mirrored horizontal",
        3: "Rotated 180",
        4: "Mirrored vertical",
        5: "Mirrored horizontal then rotated 90 CCW",
        6: "Rotated 90 CW",
        7: "Mirrored horizontal then rotated 90 CW",
        8: "Rotated 90 CCW",
    }
    members = []
    for number, text in words.items():
        exif = Image.Exif()
        exif[0x0112] = number
        for kept in (False, True):
            file = io.BytesIO()
            Image.new("RGB", (20, 30)).save(file, "JPEG", **({"exif": exif} if kept else {}))
            key, row = f"{number}{kept}", {"exif": json.dumps({"Image Orientation": text})}
            members += [(f"{key}.jpg", file.getvalue()), (f"{key}.json", json.dumps(row).encode())]
    members += [("9.jpg", file.getvalue()), ("9.json", b'{"exif": null}')]
    write_tar(tmp_path / "0.tar", members)
    (note,) = [each for each in preflight(tmp_path).notes if each.kind == "turned"]
    assert note.count == 7 and note.examples == ("0: '2False'",)


def test_deep_gray_images_are_counted(tmp_path):
    members = []
    for kind, suffix in (("PNG", "png"), ("TIFF", "tif"), ("PPM", "pgm"), ("JPEG2000", "jp2")):
        for depth in (np.uint8, np.uint16):
            file = io.BytesIO()
            Image.fromarray(np.full((20, 30), 200, depth)).save(file, kind)
            members.append((f"{suffix}{depth(0).nbytes}.{suffix}", file.getvalue()))
    write_tar(tmp_path / "0.tar", members)
    (note,) = [each for each in preflight(tmp_path).notes if each.kind == "gray16"]
    assert note.count == 4 and note.examples == ("0: 'png2'",)
