"""curate --append: the dataset has grown, and its shards hold no two near copies, the earlier ones untouched."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from test_curation import picture, samples_in, weights  # noqa: F401
from test_export import digests

from curator_dask.curation import Recipe, curate
from curator_dask.dedup import SemanticDeduplication
from curator_dask.errors import ConfigError, OutputError
from curator_dask.info import describe_output
from curator_dask.outputs import packing
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_run import ExportRun
from curator_dask.outputs.exporting import export_output

pytestmark = pytest.mark.usefixtures("in_this_process")

EPS, SAMPLES = 0.002, 8
COUNTS = ("failed", "filtered", "unbalanced", "duplicates", "missing", "kept")


def add_shard(folder, shard, images):
    """A sample of each image, of which the caption says the key."""
    members = []
    for sample, image in enumerate(images):
        key = f"{shard:03}{sample:03}"
        members += [(f"{key}.jpg", image), (f"{key}.txt", f"caption of {key}".encode())]
    write_tar(folder / f"{shard:05}.tar", members)


def fresh(shard):
    return [picture(100 * shard + sample) for sample in range(SAMPLES)]


def week(folder, number):
    """Shards of a week. Of the second: copies of the first, better and the same, and of one another; narrow; broken."""
    if number == 0:
        add_shard(folder, 0, fresh(0))
        return
    images = fresh(2 * number)
    images[0] = picture(number)  # of the first week, to the bit
    images[1] = picture(number + 2, quality=99)  # of the first week, and better: it has more bytes
    images[2] = images[3] = picture(77 + number)  # twice within the shard
    images[4], images[5] = picture(5, width=30), b"no image"
    add_shard(folder, 2 * number, images)
    more = fresh(2 * number + 1)
    more[0] = picture(77 + number, quality=99)  # of the other new shard, and better
    add_shard(folder, 2 * number + 1, more)


@pytest.fixture
def recipe(weights):  # noqa: F811
    return Recipe(
        model="test_vit",
        model_options={
            "pretrained": False,
            "batch_size": 8,
            "autocast": False,
            "checkpoint_path": str(weights),
        },
        statistics=["width", "bytes"],
        where="width >= 40",
        duplicates={"eps": EPS, "recall": 1, "keep": ["bytes desc", "key"]},
        export={"samples_per_shard": 5},
    )


def tars_in(out):
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted((out / "shards").iterdir())
        if path.name != "sizes.json"
    }


def passing_rows(out) -> pd.DataFrame:
    paths = sorted((out / "embeddings").glob("*.parquet"))
    rows = pd.concat([pq.read_table(path).to_pandas() for path in paths], ignore_index=True)
    return rows[rows["image_error"].isna() & (rows["width"] >= 40)].set_index("key")


def expected(out, earlier) -> set[str]:
    """By brute force: exported rows first, then by the recipe's order, each that is near none of those before."""
    rows = passing_rows(out)
    order = sorted(rows.index, key=lambda key: (key not in earlier, -rows.loc[key, "bytes"], key))
    vectors = {key: np.asarray(rows.loc[key, "image_embedding"], np.float64) for key in rows.index}
    kept: list[str] = []
    for key in order:
        if key in earlier or all(vectors[key] @ vectors[other] < 1 - EPS for other in kept):
            kept.append(key)
    return {*kept}


def promises(data, out, earlier, summary) -> set[str]:
    """What holds of all shards together; returns the keys in them."""
    found, rows = samples_in(out / "shards"), passing_rows(out)
    assert found == {key: samples_in(data)[key] for key in found}
    keys = sorted(found)
    vectors = np.stack(rows.loc[keys, "image_embedding"].to_numpy()).astype(np.float64)
    cosines = vectors @ vectors.T
    assert cosines[np.triu_indices(len(keys), 1)].max() < 1 - EPS
    gone = sorted({*rows.index} - {*keys})
    others = np.stack(rows.loc[gone, "image_embedding"].to_numpy()).astype(np.float64)
    assert ((others @ vectors.T).max(axis=1) >= 1 - EPS).all()
    assert {*keys} >= earlier and summary.earlier == len(earlier)
    assert summary.rows == sum(getattr(summary, name) for name in COUNTS) and summary.kept == len(keys)
    info = describe_output(out)
    assert info.chain.adds_up and info.chain.kept == len(keys) and not info.folders["shards"].differences
    assert [getattr(info.chain, name) for name in COUNTS] == [getattr(summary, name) for name in COUNTS]
    return {*keys}


def test_new_rows_go_behind_and_no_two_are_near(recipe, tmp_path, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "out"
    week(data, 0)
    first = curate(data, out, recipe, append=True)  # nothing is there: as without it
    earlier = {*samples_in(out / "shards")}
    assert (first.kept, first.earlier, len(earlier)) == (SAMPLES, 0, SAMPLES)
    week(data, 1)
    with pytest.raises(OutputError, match="append=True"):
        curate(data, out, recipe)
    killed, whole = (tmp_path / name / "out" for name in ("killed", "whole"))
    before = tars_in(out)
    summary = curate(data, out, recipe, append=True)
    after = tars_in(out)
    assert {name: after[name] for name in before} == before
    want = expected(out, earlier)
    assert promises(data, out, earlier, summary) == want
    # A better copy of an exported row goes; of new ones that are near one another the best stays.
    assert "002001" not in want and {"003000", "002002", "002003"} & want == {"003000"}
    assert (summary.failed, summary.filtered, summary.duplicates) == (1, 1, 4)
    assert f"of these {len(want) - SAMPLES} new" in str(summary)
    again = curate(data, out, recipe, append=True)
    assert tars_in(out) == after and again.earlier == again.kept == len(want)
    found = digests(out / "duplicates")
    with pytest.raises(OutputError, match=r"has tars that were added since.*append=True"):
        curate(data, out, recipe)
    assert digests(out / "duplicates") == found and tars_in(out) == after
    # The next week: one by one, and both weeks at once.
    week(data, 2)
    summary = curate(data, out, recipe, append=True)
    assert promises(data, out, want, summary) == expected(out, want)
    assert {name: said for name, said in tars_in(out).items() if name in after} == after
    for place in (killed, whole):
        shutil.copytree(data.parent / "data", place.parent / "data")
        for path in sorted((place.parent / "data").glob("*.tar"))[1:]:
            path.unlink()
        curate(place.parent / "data", place, recipe)
        for path in sorted(data.glob("*.tar"))[1:]:
            shutil.copy2(path, place.parent / "data")
    both = curate(whole.parent / "data", whole, recipe, append=True)
    promises(whole.parent / "data", whole, earlier, both)

    def die(self, shard, name, pack=packing.PackShard._pack):
        if name == "00004":
            raise KeyboardInterrupt
        return pack(self, shard, name)

    monkeypatch.setattr(packing.PackShard, "_pack", die)
    with pytest.raises(KeyboardInterrupt):
        curate(killed.parent / "data", killed, recipe, append=True)
    monkeypatch.undo()
    there = tars_in(killed)
    assert 2 < len([name for name in there if name.endswith(".tar")]) < both.steps["shards"].shards + 2
    curate(killed.parent / "data", killed, recipe, append=True)
    assert {name: said for name, said in tars_in(killed).items() if name in there} == there
    names = ("shards/00002.tar", "shards/00003.tar", "shards/00004.tar")
    assert digests(killed / "shards") == digests(whole / "shards"), names


def test_killed_and_grown_meanwhile_no_two_are_near(recipe, tmp_path, monkeypatch):
    """A better copy of a sample that the call that died had written comes in: the one that is there stays."""
    data, out = tmp_path / "data", tmp_path / "out"
    week(data, 0)
    curate(data, out, recipe)
    add_shard(data, 1, fresh(1))

    def die(self, shard, name, pack=packing.PackShard._pack):
        if name == "00003":
            raise KeyboardInterrupt
        return pack(self, shard, name)

    monkeypatch.setattr(packing.PackShard, "_pack", die)
    with pytest.raises(KeyboardInterrupt):
        curate(data, out, recipe, append=True)
    monkeypatch.undo()
    there, written = tars_in(out), {*samples_in(out / "shards")}
    assert "001000" in written and len(written) == SAMPLES + 5
    add_shard(data, 2, [picture(100, quality=99), *fresh(2)[1:]])
    summary = curate(data, out, recipe, append=True)
    assert {name: said for name, said in tars_in(out).items() if name in there} == there
    assert promises(data, out, written, summary) == expected(out, written)
    assert "002000" not in samples_in(out / "shards")


def test_what_depends_on_all_rows_is_refused_and_what_passes_no_more_stays(recipe, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    asked = {"statistics": ["bytes", "phash"], "export": {"samples_per_shard": 5}}
    week(data, 0)
    for more in ({"top": {"bytes": 5}}, {"at_most": {"phash": 1}}, {"balance": {"concepts": "c", "most": 3}}):
        with pytest.raises(ConfigError, match=f"append: {next(iter(more))} would choose among all rows"):
            curate(data, out, Recipe(**asked, **more), append=True)
    with pytest.raises(ConfigError, match="append and overwrite"):
        curate(data, out, Recipe(**asked), append=True, overwrite=True)
    assert not out.exists()
    hashes = {**asked, "duplicates": {"exact": {"image_phash": 2}}, "prefix": "image_"}
    curate(data, out, Recipe(**hashes), append=True)
    week(data, 1)
    with pytest.raises(OutputError, match="a recipe that chooses other rows"):
        curate(data, out, Recipe(**hashes, where="image_bytes > 0"), append=True)
    before = tars_in(out)
    add_shard(data, 0, [b"no image", *fresh(0)[1:]])  # a shard has changed, and its first image is broken now
    summary = curate(data, out, Recipe(**hashes), append=True)
    assert {name: said for name, said in tars_in(out).items() if name in before} == before
    assert (summary.earlier, summary.stay, summary.failed) == (SAMPLES - 1, 1, 2)
    assert summary.rows == sum(getattr(summary, name) for name in COUNTS)
    assert "1 more in earlier tars" in str(summary)
    info = describe_output(out)
    assert info.chain.adds_up and (info.chain.kept, info.chain.stay) == (summary.kept, 1)
    assert "+ stay" in str(info)
    found = samples_in(out / "shards")
    assert len(found) == summary.kept + 1 and "002001" not in found and "002000" not in found


def test_an_overwrite_that_died_has_not_made_tars_of_its_recipe(tmp_path, monkeypatch):
    """Those of the recipe before are there yet: they are not added to as if they were of the new one."""
    data, out = tmp_path / "data", tmp_path / "out"
    week(data, 0)
    asked = {"statistics": ["bytes", "width"], "export": {"samples_per_shard": 5}}
    curate(data, out, Recipe(**asked))
    other = Recipe(**asked, where="bytes > 0 and key < '000004'")

    def die(self, *args):
        raise KeyboardInterrupt

    before = tars_in(out)
    for whole in (False, True):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(*((packing.PackShard, "_pack", die) if whole else (ExportRun, "_select", die)))
            curate(data, out, other, overwrite=True)
        if not whole:
            for recipe, append in ((other, True), (other, False), (Recipe(**asked), True)):
                with pytest.raises(OutputError, match="a recipe that chooses other rows"):
                    curate(data, out, recipe, append=append)
            assert tars_in(out) == before
    summary = curate(data, out, other, append=True)  # they are gone by now
    assert (summary.kept, summary.earlier, summary.stay) == (4, 0, 0)
    assert {*samples_in(out / "shards")} == {f"00000{number}" for number in range(4)}
    assert curate(data, out, other).kept == 4


def test_step_by_step_dedup_leaves_what_is_exported(recipe, tmp_path):
    """The commands of each step: --exported of dedup, then export --without --append."""
    data, whole = tmp_path / "data", tmp_path / "whole"
    rows, found, out = whole / "embeddings", tmp_path / "found", tmp_path / "step" / "shards"
    find = SemanticDeduplication(EPS, ["bytes desc", "key"], 1, exported=out)
    options = ExportOptions(
        where="width >= 40 and image_error is null", without=str(found), samples_per_shard=5, append=True
    )
    for number in (0, 1):
        week(data, number)
        if number:
            shutil.rmtree(whole)
        curate(data, whole, recipe)
        summary = find(str(rows)).save(found)
        earlier = {*samples_in(out)} if number else set()
        assert summary.stay == len(earlier)
        done = export_output(rows, out, options)
        assert done.outdated == 0 and {*samples_in(out)} == {*samples_in(out)} | earlier
    table = pq.read_table(found / "duplicates.parquet").to_pandas().set_index("id")
    assert table.loc["002001", "duplicate_of"] == "000003" and table.loc["000003", "kept"]
    shutil.copytree(rows, tmp_path / "step" / "embeddings")
    assert {*samples_in(out)} == expected(tmp_path / "step", earlier)


def test_an_interrupted_export_finds_the_same_duplicates_again(tmp_path, monkeypatch):
    """b is in a tar already, and a is not: c stays the duplicate of a, the better one, or the rest would be others."""
    angles, keys = np.radians([4.0, 0.0, 2.0]), ["b", "a", "c"]
    tar = write_tar(tmp_path / "data" / "0.tar", [(f"{key}.txt", key.encode()) for key in keys])
    vectors = pa.array([[np.cos(angle), np.sin(angle)] for angle in angles], pa.list_(pa.float32(), 2))
    table = {"key": keys, "__url__": [str(tar)] * 3, "image_embedding": vectors, "score": [2, 3, 1]}
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table(table), tmp_path / "rows" / "0.parquet")
    found, out = tmp_path / "found", tmp_path / "out"
    find = SemanticDeduplication(0.001, "score", 1, exported=out)
    options = ExportOptions(samples_per_shard=1, without=str(found), append=True)

    def die(self, shard, name, pack=packing.PackShard._pack):
        if name == "00001":
            raise KeyboardInterrupt
        return pack(self, shard, name)

    find(str(tmp_path / "rows")).save(found)
    monkeypatch.setattr(packing.PackShard, "_pack", die)
    with pytest.raises(KeyboardInterrupt):
        export_output(tmp_path / "rows", out, options)
    monkeypatch.undo()
    assert {*samples_in(out)} == {"b"}
    find(str(tmp_path / "rows")).save(found)
    table = pq.read_table(found / "duplicates.parquet").to_pandas().set_index("id")
    assert table["duplicate_of"].dropna().to_dict() == {"c": "a"}
    summary = export_output(tmp_path / "rows", out, options)
    assert (summary.skipped, summary.written, {*samples_in(out)}) == (1, 1, {"a", "b"})
    # Once it is done both are in tars, and c goes for whichever comes first.
    assert find(str(tmp_path / "rows")).save(found).stay == 2
