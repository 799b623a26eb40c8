"""Random datasets of good and bad samples: rows in are rows out, each with its own vector or a reason.

`CURATOR_DASK_FUZZ=5000` tries that many new ones; without it the same few are tried each time.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, colour_of
from hypothesis import given, note, settings
from hypothesis import strategies as st
from tars import FORMATS, directory, picture, tar_bytes, write

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import DatasetError, ShardError
from curator_dask.webdataset.index import ShardIndex

EXAMPLES = int(os.environ.get("CURATOR_DASK_FUZZ", "0"))

GOOD = {"png": "PNG", "jpg": "PNG", "PNG": "PNG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP", "tiff": "TIFF"}
GOOD |= {"1.png": "PNG", "b.c.jpeg": "BMP"}
BAD = (b"", b"<!DOCTYPE html><p>gone", bytes(range(256)) * 3, picture(7)[:40], picture(8, "BMP")[:90])
KEYS = (
    "{:05d}",
    "{:05d}",
    "k{}",
    "dir.x/{:04d}",
    "./here/{}",
    "with space {}",
    "ünï数{}",
    "-{}",
    "a" * 80 + "{}",
)
LONG = ("b" * 120 + "{}", "c" * 60 + "/" + "d" * 90 + "{}")  # for formats that can have them
IGNORED = (
    ("._{}.png", b"\0\5\x16\7"),
    ("__MACOSX/{}.png", b"x"),
    (".DS_Store", b""),
    ("README", b"no extension"),
    ("x/__MACOSX/{}.png", b""),
)

IMAGES = {"png", "jpg", "bmp", "gif", "webp", "tiff", "jpeg"}
COLOURS: dict[bytes, int] = {}  # number of each picture, by its bytes


@dataclass
class Shard:
    """A shard as it lies on the disk, and what must come of it."""

    tar: bytes = b""
    listed: bytes | None = None  # the tar that its index file is of
    cut_index: int = 0  # bytes after which that ends; 0: nowhere
    newer: bool = False  # whether the index file looks newer than the tar
    ids: list | None = None  # of its Parquet
    keys: dict[str, int | None] = field(default_factory=dict)  # key of each sample: colour, None if it is bad
    damaged: bool = False
    failed: bool = False
    repeated: int = 0

    def rows(self):
        """Id and colour of each row that must come out."""
        if self.ids is None:
            return list(self.keys.items())
        by_id = {int(key) if key.isdigit() else key: key for key in self.keys} | {
            key: key for key in self.keys
        }
        return [(id, self.keys.get(by_id.get(id, ""))) for id in self.ids]

    def orphans(self):
        named = {int(id) if str(id).isdigit() else id for id in self.ids or ()}
        return [key for key in self.keys if (int(key) if key.isdigit() else key) not in named]


def paint(number, form="PNG"):
    data = picture(number, form)
    COLOURS[data] = number
    return data


@st.composite
def shards(draw, source, form, first):
    shard, members, numbers = Shard(), [], iter(range(first, first + 1000))
    styles = KEYS + (LONG if form in ("gnu", "pax") else ())
    later = []
    for _ in range(draw(st.integers(0, 7))):
        number = next(numbers)
        name = draw(st.sampled_from(styles)).format(number)
        good = draw(st.integers(0, 3)) > 0
        suffix = draw(st.sampled_from(sorted(GOOD)))
        data = paint(number, GOOD[suffix]) if good else draw(st.sampled_from(BAD))
        image = (f"{name}.{suffix}", data)
        others = draw(st.lists(st.sampled_from(["txt", "json", "cls", "npy.gz"]), unique=True, max_size=2))
        texts = [(f"{name}.{other}", b'{"a": 1}' * draw(st.integers(0, 90))) for other in others]
        if draw(st.integers(0, 9)) == 0 and texts:
            image = None  # a sample without an image
        group = [*([image] if image else []), *texts]
        second = draw(st.sampled_from(sorted(GOOD)))
        if draw(st.integers(0, 4)) == 0 and second != suffix:
            group.append((f"{name}.{second}", paint(next(numbers), GOOD[second])))
        if draw(st.booleans()):
            group.reverse()
        if draw(st.integers(0, 3)) == 0:  # the rest of the sample comes at the end of the tar
            later += group[1:]
            group = group[:1]
        members += group
        if draw(st.integers(0, 7)) == 0:
            later.append((group[0][0], paint(next(numbers))))  # the name again
        if draw(st.integers(0, 5)) == 0:
            hidden, content = draw(st.sampled_from(IGNORED))
            members.append((hidden.format(number), content))
        if draw(st.integers(0, 7)) == 0:
            members.append(directory(f"d{number}.d"))
    members += later
    owner = draw(st.sampled_from(["", "Ann Lee"]))
    whole = tar_bytes(members, form, owner)
    shard.tar = whole
    if draw(st.integers(0, 4)) == 0:
        shard.tar = whole[: draw(st.integers(0, len(whole) - 1))]
    expect(
        shard,
        members,
        [len(tar_bytes(members[:count], form, owner, end=False)) for count in range(len(members) + 1)],
    )
    listed = draw(st.sampled_from([None, None, "right", "fewer", "other", "cut"]))
    if listed is not None:
        fewer = members[: draw(st.integers(0, len(members)))]
        other = [(member[0].replace("1", "2"), member[1]) for member in members if isinstance(member, tuple)]
        shard.listed = {"fewer": tar_bytes(fewer, form, owner), "other": tar_bytes(other, form, owner)}.get(
            listed, whole
        )
        shard.cut_index = draw(st.integers(1, 200)) if listed == "cut" else 0
        shard.newer = draw(st.booleans())
    if source == "parquet":
        fill_ids(draw, shard, numbers)
    return shard


def expect(shard, members, ends):
    """What a tar cut at some byte still has: told from the members alone, by the rules of the documentation."""
    cut = len(shard.tar)
    shard.failed = cut < 512
    shard.damaged = not shard.failed and cut < ends[-1] + 512
    samples: dict[str, dict[str, bytes]] = {}
    for number, member in enumerate(members):
        if not isinstance(member, tuple):
            continue
        name, data = member
        padding = -len(data) % 512
        folder, _, last = name.removeprefix("./").rpartition("/")
        if (
            ends[number + 1] - padding > cut
            or last.startswith(".")
            or "." not in last
            or "__MACOSX" in folder
        ):
            continue
        stem, _, suffix = last.partition(".")
        components = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        shard.repeated += suffix in components
        components.setdefault(suffix, data)
    for key, components in samples.items():
        images = [suffix for suffix in components if suffix.rpartition(".")[2].lower() in IMAGES]
        plain = [suffix for suffix in images if "." not in suffix]
        chosen = components[[*plain, *images][0]] if images else b""
        shard.keys[key] = COLOURS.get(chosen)


def fill_ids(draw, shard, numbers):
    """Rows in any order, of some of the samples, and of others that are not there."""
    ids = [key for key in shard.keys if draw(st.integers(0, 5)) > 0]
    ids += [f"{next(numbers):05d}" for _ in range(draw(st.integers(0, 2)))]
    ids = draw(st.permutations(ids))
    if ids and all(id.isdigit() for id in ids) and draw(st.booleans()):
        ids = [int(id) for id in ids]
    fault = draw(st.integers(0, 11))
    if fault == 0:
        ids = [*ids, None]
    elif fault == 1 and ids:
        ids = [*ids, draw(st.sampled_from(ids))]
    shard.ids = ids
    # Rows are read before the tar is looked at; without any it never is.
    shard.failed = (shard.failed and bool(ids)) or len(set(ids)) < len(ids) or None in ids


@st.composite
def datasets(draw):
    source = draw(st.sampled_from(["parquet", "tar"]))
    count = draw(st.integers(1, 3))
    return source, [
        draw(shards(source, draw(st.sampled_from(FORMATS)), 1 + 2000 * place)) for place in range(count)
    ]


def lay_out(folder, source, made):
    numbers = source == "parquet" and all(isinstance(id, int | None) for shard in made for id in shard.ids)
    for place, shard in enumerate(made):
        tar = write(folder / f"{place}.tar", shard.tar)
        if shard.listed is not None:
            write_index(folder, shard, tar)
        if source == "parquet":
            kind = pa.int64() if numbers else pa.string()
            if not numbers:
                shard.ids = [f"{id:05d}" if isinstance(id, int) else id for id in shard.ids]
            pq.write_table(pa.table({"key": pa.array(shard.ids, kind)}), tar.with_suffix(".parquet"))


def write_index(folder, shard, tar):
    """An index file of the tar that the shard says, where DALI's format can hold it."""
    other, idx = write(folder / "other", shard.listed), tar.with_suffix(".idx")
    with contextlib.suppress(ShardError):
        ShardIndex.scan(other).write_idx(idx)
        if shard.cut_index:
            idx.write_bytes(idx.read_bytes()[: shard.cut_index])
        after = 10**9 if shard.newer else -(10**9)
        os.utime(idx, ns=(tar.stat().st_mtime_ns + after,) * 2)
    other.unlink()


def check_rows(made, summary, out):
    failed = {name.partition(".part-")[0] for name in summary.failed_shards}
    assert failed == {str(place) for place, shard in enumerate(made) if shard.failed}, summary.failed_shards
    total = bad = 0
    for place, shard in enumerate(made):
        files = [*out.glob(f"{place}.parquet"), *sorted(out.glob(f"{place}.part-*.parquet"))]
        assert bool(files) != shard.failed
        if shard.failed:
            continue
        table, rows = pa.concat_tables([pq.read_table(file) for file in files]), shard.rows()
        assert table["key"].to_pylist() == [id for id, _ in rows]
        found = zip(rows, table["image_embedding"].to_pylist(), table["image_error"].to_pylist(), strict=True)
        for (id, colour), vector, reason in found:
            if colour is None:
                assert vector is None and reason, (id, vector, reason)
            else:
                assert reason is None, (id, reason)
                np.testing.assert_allclose(vector, colour_of(str(colour)), atol=0.51, err_msg=str(id))
        total, bad = total + len(rows), bad + sum(colour is None for _, colour in rows)
    assert (summary.rows, summary.failed, sum(summary.reasons.values())) == (total, bad, bad)


def check_remarks(folder, source, made, summary):
    for place, shard in enumerate(made):
        url = str(folder / f"{place}.tar")
        if shard.failed:
            continue
        orphans = shard.orphans() if source == "parquet" else []
        fact = summary.orphans.get(url, {"count": 0, "examples": []})
        assert fact["count"] == len(orphans)
        assert set(fact["examples"]) <= set(orphans)
        if shard.rows():
            assert summary.duplicates.get(url, {}).get("count", 0) == shard.repeated
            assert (url in summary.damaged_shards) == shard.damaged


@settings(
    max_examples=EXAMPLES or 60, deadline=None, derandomize=not EXAMPLES, database=None, print_blob=True
)
@given(
    datasets(),
    st.integers(1, 5),
    st.sampled_from([None, None, 1, 3]),
    st.sampled_from(["dali", "dali", "pillow"]),
)
def test_rows_in_are_rows_out(dataset, batch_size, rows_per_partition, decoder):
    source, made = dataset
    with tempfile.TemporaryDirectory() as root, dask.config.set(scheduler="sync"):
        data, out = Path(root) / "data", Path(root) / "out"
        lay_out(data, source, made)
        note(f"{source}: {made}")

        def save():
            found = ImageTextPairDataset.from_webdataset(data, rows_per_partition=rows_per_partition)
            return ColourReader(batch_size=batch_size, decoder=decoder)(found).save_metadata(out)

        if source == "tar" and all(shard.failed for shard in made):
            with pytest.raises(DatasetError, match=f"none of the {len(made)} shards"):
                save()
            return
        summary = save()
        check_rows(made, summary, out)
        check_remarks(data, source, made, summary)
        again = save()
        assert (again.written, again.skipped) == (0, summary.written)
        check_remarks(data, source, made, again)
