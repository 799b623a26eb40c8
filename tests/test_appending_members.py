"""A dataset that grows, where vectors become members, regions are blurred, or samples are in Parquet files."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from test_appending import Crawl, added_up, kept_before
from test_blurring import BOX, SAMPLES, check_blurred, held, image_in

from curator_dask.curation import curate
from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs import packing
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.shard_names import names_of, shortened
from curator_dask.recipe import Recipe

pytestmark = pytest.mark.usefixtures("in_this_process")


def no_workers():
    raise AssertionError("workers are started")


# Parquet files


def test_parquet_files_are_not_added_to(tmp_path):
    with pytest.raises(ConfigError, match=r"append and format='parquet': .* how many there are in all"):
        ExportOptions(append=True, format="parquet")
    recipe = Recipe(statistics=["width"], export={"format": "parquet"})
    with pytest.raises(ConfigError, match="append and format='parquet'"):  # before anything is embedded
        curate(tmp_path / "none", tmp_path / "out", recipe, append=True)
    crawl = Crawl(tmp_path / "crawl")
    crawl.add(0)
    crawl.export(append=False, format="parquet")
    before = crawl.state()
    with pytest.raises(OutputError, match=r"train-00000-of-00002.parquet: is of an export to Parquet files"):
        crawl.export()
    assert crawl.state() == before


def test_names_are_known_where_a_number_is_missing():
    names = {"00001", "00003", "val/007", "data/train-00001-of-00002"}
    assert shortened(names) == {"": [4, 5], "val": [8, 3], "data/train-#-of-00002": [2, 5]}
    assert names < names_of(shortened(names))


# Vectors as members


def vector_of(key: str) -> np.ndarray | None:
    return None if key.endswith("3") else np.array([int(key[:5]), int(key[5:]), 0.5], np.float16)


def add_with_vectors(crawl: Crawl, *shards: int, dtype=np.float16, size=3) -> None:
    crawl.add(*shards)
    for shard in shards:
        path = crawl.rows / f"{shard:05d}.parquet"
        table = pq.read_table(path)
        vectors = [vector_of(key) for key in table["key"].to_pylist()]
        vectors = [None if each is None else np.resize(each, size).astype(dtype) for each in vectors]
        kind = pa.list_(pa.from_numpy_dtype(dtype), size)
        pq.write_table(table.append_column("emb", pa.array(vectors, kind)), path)


def vectors_in(crawl: Crawl) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(crawl.out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".emb.npy"):
                    found[member.name.removesuffix(".emb.npy")] = np.load(
                        io.BytesIO(tar.extractfile(member).read())
                    )
    return found


def test_vectors_are_counted_once_and_are_all_of_one_kind(tmp_path):
    crawl, options = Crawl(tmp_path / "crawl"), {"npy": ["emb"], "card": True}
    add_with_vectors(crawl, 0, 1)
    first = added_up(crawl.export(**options))
    assert (first.kept, first.fields["emb.npy"], first.no_vector) == (16, 14, {"emb.npy": 2})
    for shard in (2, 3):
        before = crawl.state()
        add_with_vectors(crawl, shard)
        summary = added_up(crawl.export(**options))
        kept_before(before, crawl.state())
        every = 8 * shard
        assert (summary.kept, summary.earlier, summary.fields["emb.npy"]) == (8, every, 7)
        assert (summary.no_vector, summary.earlier_fields["emb.npy"]) == ({"emb.npy": 1}, every - shard)
        assert summary.in_all() == (
            {**dict.fromkeys(("png", "txt", "json"), every + 8), "emb.npy": every + 7 - shard},
            every + 8,
        )
        assert any("emb.npy" in each for each in summary.habits)
        assert f"| `.emb.npy` | {every + 7 - shard} |" in (crawl.out / "README.md").read_text()
    found = vectors_in(crawl)
    expected = {key: vector for key in crawl.scores if (vector := vector_of(key)) is not None}
    assert found.keys() == expected.keys() and len(found) == 28
    for key, vector in expected.items():
        assert found[key].dtype == np.float16 and np.array_equal(found[key], vector)
    # Nothing is new: nothing is counted again, and none of it is read.
    before = crawl.state()
    chosen = ExportOptions(samples_per_shard=5, append=True, **options)
    again = added_up(export_output(crawl.rows, crawl.out, chosen, workers=no_workers))
    assert (again.kept, again.earlier, again.fields, again.no_vector) == (0, 32, {}, {})
    assert (
        again.earlier_fields == {"png": 32, "txt": 32, "json": 32, "emb.npy": 28} and crawl.state() == before
    )
    # Some rows of a file are in tars, and the others do not pass: none of these is counted.
    add_with_vectors(crawl, 4)
    passing = [key for key, score in crawl.scores.items() if key.startswith("00004") and score < 50]
    nulls = sum(vector_of(key) is None for key in passing)
    for kept, null in ((len(passing), nulls), (0, 0)):
        some = added_up(crawl.export(**options, where="score < 50"))
        assert (some.kept, some.fields["png"], some.no_vector.total()) == (kept, kept, null)
        assert some.fields["emb.npy"] == kept - null
    with pytest.raises(OutputError, match=r"written with npy=\['emb'\], and this call has npy=None"):
        crawl.export()
    for dtype, size, said in ((np.float32, 3, "3 float32"), (np.float16, 4, "4 float16")):
        for path in crawl.rows.glob("*.parquet"):  # else a column has both
            path.unlink()
        add_with_vectors(crawl, 5, dtype=dtype, size=size)
        with pytest.raises(OutputError, match=rf"emb.npy of its tars are 3 float16 .* {said} numbers now"):
            crawl.export(**options)


# Blurring


class Photographs(Crawl):
    """Shards of the samples of `test_blurring`, whose keys begin with the letters there."""

    def put(self, shard: int, letters: str, boxes=()) -> None:
        """Write a shard; of some letters with other boxes."""
        keys = [f"{letter}{shard}" for letter in letters]
        members = []
        for key in keys:
            suffix, data, *_ = SAMPLES[key[0]]
            members += [(f"{key}.{suffix}", data), (f"{key}.txt", key.encode())]
        path = write_tar(self.folder / "data" / f"{shard}.tar", members)
        boxes = [dict(boxes).get(letter, SAMPLES[letter][2]) for letter in letters]
        columns = {
            "key": keys,
            "__url__": [str(path)] * len(keys),
            "face_boxes": pa.array(boxes, pa.list_(pa.list_(pa.float32()))),
            "emb": pa.array([[float(shard)]] * len(keys), pa.list_(pa.float32(), 1)),
        }
        pq.write_table(pa.table(columns), self.rows / f"{shard}.parquet")

    def export(self, **options):
        chosen = {"blur": "face_boxes", "samples_per_shard": 3, "quality": 95, "card": True, **options}
        return added_up(super().export(**chosen))

    def check(self, kept: str, tars: list[int]) -> None:
        """What is in the tars of these numbers, of which none is sharp where something is to be blurred."""
        before, after = held(self.folder / "data"), held(self.out)
        keys = kept.split()
        assert {name.partition(".")[0] for name in after} == {*keys}
        for key in keys:
            name = f"{key}.{SAMPLES[key[0]][0]}"
            if SAMPLES[key[0]][2] == [BOX]:
                check_blurred(image_in(before, name), image_in(after, name), exact=False)
            assert (after[name] == before[name]) == (not SAMPLES[key[0]][2])
        sizes = json.loads((self.out / "sizes.json").read_text())
        assert [*sizes] == [f"{number:05d}.tar" for number in tars]
        assert {each.with_suffix("").name for each in self.out.glob("0*")} == {name[:5] for name in sizes}
        assert sum(sizes.values()) == len(self.manifest()) == len(keys)
        assert f"{len(keys)} samples in {len(tars)} tar" in (self.out / "README.md").read_text()

    def unblurred(self) -> dict[str, str]:
        rows = pq.read_table(self.folder / "out.export" / "unblurred").to_pylist()
        assert len({row["source_key"] for row in rows}) == len(rows)
        return {row["source_key"]: row["reason"].partition(":")[0] for row in rows}


@pytest.fixture
def photographs(tmp_path):
    return Photographs(tmp_path / "crawl")


def test_what_could_not_be_blurred_is_known_and_not_tried_again(photographs):
    why = {"d": "animated", "e": "truncated", "g": "format", "h": "boxes"}
    photographs.put(0, "abcdefghi")
    first = photographs.export()
    photographs.check("a0 b0 c0 i0", [0, 2])  # of the other nothing is left
    assert (first.kept, first.filtered, first.missing) == (4, 1, 4)
    for workers in (None, no_workers):  # nothing is new
        before = photographs.state()
        chosen = ExportOptions(append=True, blur="face_boxes", samples_per_shard=3, quality=95, card=True)
        more = {} if workers is None else {"workers": workers}
        again = added_up(export_output(photographs.rows, photographs.out, chosen, **more))
        assert photographs.state() == before
        assert (again.kept, again.earlier, again.filtered, again.missing, again.shards) == (0, 4, 1, 4, 0)
        assert again.reasons == first.reasons == {f"not blurred ({each})": 1 for each in why.values()}
        assert "d0: animated" in again.examples["not blurred (animated)"][0]
        assert (again.earlier_samples, again.earlier_fields) == (4, {"jpg": 2, "png": 1, "webp": 1, "txt": 4})
    # Of a tar all samples but one are left out, of another all: both are known then.
    kept, missing, tars = "a0 b0 c0 i0", 4, [0, 2]
    for shard, letters, good in ((1, "ade", "a1"), (2, "dg", ""), (3, "fcb", "c3 b3")):
        before = photographs.state()
        earlier = len(kept.split())
        photographs.put(shard, letters)
        summary = photographs.export()
        kept_before(before, photographs.state())
        kept, tars = f"{kept} {good}", [*tars, *([shard + 2] if good else [])]
        missing += sum(letter in why for letter in letters)
        assert (summary.kept, summary.earlier, summary.missing) == (len(good.split()), earlier, missing)
        assert summary.reasons.total() == missing and summary.shards == bool(good)
        photographs.check(kept, tars)
        before = photographs.state()
        for _ in range(2):
            again = photographs.export()
            assert (again.kept, again.shards, again.missing) == (0, 0, missing)
            assert again.reasons == summary.reasons and photographs.state() == before
    assert photographs.unblurred() == {
        key: why[key[0]] for key in ("d0", "e0", "g0", "h0", "d1", "e1", "d2", "g2")
    }
    # What does not pass is filtered; who is not to be blurred any more, or otherwise, is refused.
    some = photographs.export(where="key NOT IN ('d0', 'a0')")
    assert (some.missing, some.outdated, some.earlier) == (missing - 1, 1, len(kept.split()))
    for options in ({"blur": None, "quality": None}, {"blur_strength": 2.0}, {"blur_keep_unseen": True}):
        with pytest.raises(OutputError, match=f"written with .*{next(iter(options))}="):
            photographs.export(**options)
    assert photographs.state() == before
    lost = photographs.folder / "out.export" / "unblurred" / "00001.parquet"
    shutil.move(lost, photographs.folder / "lost.parquet")
    with pytest.raises(OutputError, match=r"unblurred/00001.parquet: is not there"):
        photographs.export()


def test_rows_come_in_when_their_boxes_are_mended(photographs):
    """Null ones, and such as were none; one whose image then cannot be blurred is left out for that, once."""
    pixels = SAMPLES["h"][2]
    photographs.put(0, "aihf")
    photographs.put(1, "ec", {"e": pixels, "c": pixels})
    first = photographs.export()
    photographs.check("a0 i0", [0])
    assert (first.kept, first.filtered, first.missing) == (2, 1, 3)
    before = photographs.state()
    photographs.put(0, "aihf", {"h": [BOX], "f": [BOX]})
    photographs.put(1, "ec", {"c": pixels})
    mended = photographs.export()
    kept_before(before, photographs.state())
    assert (mended.kept, mended.earlier, mended.filtered, mended.missing) == (2, 2, 0, 2)
    assert mended.images_blurred == 2
    assert mended.reasons == {"not blurred (boxes)": 1, "not blurred (truncated)": 1}
    found = held(photographs.out)
    names = {name.partition(".")[0] for name in found}
    assert names == {"a0", "i0", "h0", "f0"} and len(photographs.manifest()) == 4
    found = held(photographs.out)
    check_blurred(
        image_in(held(photographs.folder / "data"), "h0.jpg"), image_in(found, "h0.jpg"), exact=False
    )
    before = photographs.state()
    again = photographs.export()
    assert (again.kept, again.earlier, again.missing, again.shards) == (0, 4, 2, 0)
    assert again.reasons == mended.reasons and photographs.state() == before


def test_killed_while_blurring_it_goes_on_with_the_same_result(tmp_path, monkeypatch):
    whole, killed = Photographs(tmp_path / "a" / "crawl"), Photographs(tmp_path / "b" / "crawl")
    options = {"npy": ["emb"], "keys": "sequential", "splits": {"test": 2}, "metadata": None}
    for each in (whole, killed):
        each.put(0, "abd")
        each.export(**options)
        each.put(1, "cdeghab")
        each.put(2, "agc")
    want = whole.export(**options)
    put = packing.PackShard._put

    def die(self, shard, name, *more):
        if name == "train/00002":
            raise KeyboardInterrupt
        return put(self, shard, name, *more)

    monkeypatch.setattr(packing.PackShard, "_put", die)
    with pytest.raises(KeyboardInterrupt):
        killed.export(**options)
    monkeypatch.undo()
    summary = killed.export(**options)
    assert summary.skipped > 0 and held(killed.out) == held(whole.out)
    counts = [(each.kept, each.earlier, each.missing, each.reasons, each.fields) for each in (summary, want)]
    assert counts[0] == counts[1] and killed.unblurred() == whole.unblurred()
    found = [name for name in held(killed.out) if name.endswith(".emb.npy")]
    every, samples = summary.in_all()
    assert every["emb.npy"] == samples == len(found) == len(killed.manifest()) == 7
    assert sum(split.samples for split in summary.splits.values()) == 7
    assert killed.export(**options).shards == 0
