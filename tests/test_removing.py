"""Samples that must go: from all that was made of them, byte for byte nothing else, and none comes back."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import signal
import tarfile
from pathlib import Path

import dask
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, image_of, members_of, write_tar
from fetched import fetch
from image_servers import ImageServer, picture_of
from removed import EACH_RENAME, FOLDERS, kill_at_each_rename
from s3 import BUCKET, options, s3_server
from tars import directory, tar_bytes
from test_curation_of_urls import RECIPE, exported, write_urls
from typer.testing import CliRunner

from curator_dask.checks.preflight import preflight
from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.info import describe_output
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.taken_down import taken_down
from curator_dask.removing import remove_samples
from curator_dask.removing.looking import Looking
from curator_dask.webdataset.index import ShardIndex

pytestmark = pytest.mark.usefixtures("in_this_process")

SAMPLES = 8


def url_of(key):
    return f"https://example.org/{key}.png"


def write_shard(folder, shard, keys=None, urls=None):
    """A tar with its Parquet, whose rows have the URL and the digest of their images."""
    keys = keys or [f"{shard:05d}{sample:04d}" for sample in range(SAMPLES)]
    write_tar(folder / f"{shard:05d}.tar", [member for key in keys for member in members_of(key)])
    rows = {
        "key": keys,
        "url": urls or [url_of(key) for key in keys],
        "caption": [f"caption of {key}" for key in keys],
        "sha256": [hashlib.sha256(image_of(key)).hexdigest() for key in keys],
        "kind": [f"kind {int(key) % 2}" for key in keys],
    }
    pq.write_table(pa.table(rows), folder / f"{shard:05d}.parquet")


def embed(data, out, **settings):
    return ColourReader()(ImageTextPairDataset.from_webdataset(data)).save_metadata(out, **settings)


SPLIT = {"samples_per_shard": 3, "splits": {"val": 0.3}, "card": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset, its embeddings, and an export of them."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "data").mkdir()
    for shard in range(3):
        write_shard(folder / "data", shard)
    with dask.config.set(scheduler="sync"):
        embed(str(folder / "data"), str(folder / "out"))
        export_output(folder / "out", folder / "new", ExportOptions(**SPLIT))
        with ImageServer() as server:
            urls = [server.url(f"n/{number}.jpg") for number in range(6)]
            (folder / "fetched.txt").write_text(f"{urls[1]}\n{urls[4]}\n{urls[5]}\n")
            pq.write_table(pa.table({"url": urls, "caption": urls}), folder / "urls.parquet")
            fetch(folder / "urls.parquet", folder / "fetched", rows_per_shard=3)
    return folder


@pytest.fixture
def made(whole, tmp_path):
    """A copy of the same; the source's tars are where they were."""
    for name in FOLDERS:
        shutil.copytree(whole / name, tmp_path / name)
    return tmp_path


def listed(folder, *values):
    (folder / "gone.txt").write_text("".join(f"{each}\n" for each in values))
    return folder / "gone.txt"


def members_in(folder):
    """By tar, names and bytes of the members, by Python's tarfile."""
    found = {}
    for path in sorted(Path(folder).rglob("*.tar")):
        with tarfile.open(path) as tar:
            found[str(path.relative_to(folder))] = [(each.name, tar.extractfile(each).read()) for each in tar]
    return found


def without(members, keys):
    left = {
        tar: [(name, data) for name, data in some if name.partition(".")[0] not in keys]
        for tar, some in members.items()
    }
    return {tar: some for tar, some in left.items() if some}


def state(*folders):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_in(folder, columns=None):
    return pa.concat_tables(
        [pq.read_table(path, columns=columns) for path in sorted(Path(folder).rglob("*.parquet"))],
        promote_options="permissive",
    )


def check_export(folder, keys):
    """Tars, indexes, rows, sizes and manifest of an export say the same, and have these keys."""
    found, manifest = [], {}
    for path in sorted((folder.parent / f"{folder.name}.export/manifest").rglob("*.parquet")):
        manifest |= {row["key"]: row for row in pq.read_table(path).to_pylist()}
    sizes = {}
    for tar, members in members_in(folder).items():
        mine = list(dict.fromkeys(name.partition(".")[0] for name, _ in members))
        path = folder / tar
        index = ShardIndex.read_idx(path.with_suffix(".idx"), path)
        assert [sample.key for sample in index.samples] == mine
        assert pq.read_table(path.with_suffix(".parquet"))["key"].to_pylist() == mine
        sizes.setdefault(path.parent, {})[path.name] = len(mine)
        for key in mine:
            row, at = manifest[key], {name: data for name, data in members if name.startswith(f"{key}.")}
            assert row["members"] == [*at]
            with path.open("rb") as file:
                for name, offset, size in zip(row["members"], row["offsets"], row["sizes"], strict=True):
                    file.seek(offset)
                    assert file.read(size) == at[name]
        found += mine
    for place, some in sizes.items():
        assert json.loads((place / "sizes.json").read_text()) == some
    assert sorted(found) == sorted(manifest) == sorted(keys)
    assert preflight(folder, shards="all").ok


def keys_of(*shards):
    return [f"{shard:05d}{sample:04d}" for shard in shards for sample in range(SAMPLES)]


GONE = ["000000001", "000010004", "000010005"]


def test_samples_go_from_all_that_was_made_of_them_and_nothing_else(made, whole):
    before, members = state(made), members_in(made / "new")
    urls = [url_of(GONE[0]), url_of(GONE[1]), url_of(GONE[2]), "https://example.org/other.png"]
    table = listed(made, *urls)
    said = remove_samples([made / "out", made / "new"], table, "url", dry_run=True)
    assert {path: each for path, each in state(made).items() if path != table} == before
    summary = remove_samples([made / "out", made / "new"], table, "url", not_found=made / "unknown.txt")
    assert [each.samples for each in said.places] == [each.samples for each in summary.places] == [3, 3]
    assert (summary.asked, summary.found, summary.before, summary.not_found) == (4, 3, 0, 1)
    assert not any(each.lacks_column for each in summary.places)
    assert (made / "unknown.txt").read_text() == f"{urls[3]}\n" and urls[3] in str(summary)
    rows = rows_in(made / "out")
    keys = rows["key"].to_pylist()
    assert sorted(keys) == sorted({*keys_of(0, 1, 2)} - {*GONE})
    check_colours(keys, rows["image_embedding"].to_pylist())
    assert members_in(made / "new") == without(members, GONE)
    check_export(made / "new", {*keys_of(0, 1, 2)} - {*GONE})
    # Files and tars without such samples are not touched; each tar that is written is as tarfile's would be.
    after, touched = state(made), set()
    for path, said_before in before.items():
        if path in after and after[path] != said_before:
            touched.add(str(path.relative_to(made)))
    tars = {tar for tar, some in members.items() if any(name.partition(".")[0] in GONE for name, _ in some)}
    assert {each for each in touched if each.endswith(".tar")} == {
        f"new/{tar}" for tar in tars if (made / "new" / tar).exists()
    }
    assert {each for each in touched if each.startswith("out/")} == {"out/00000.parquet", "out/00001.parquet"}
    # Nothing of them is left: no URL, no caption, no digest; what is noted are digests with a salt.
    digests = [hashlib.sha256(image_of(key)).hexdigest() for key in GONE]
    for path, (_, data) in after.items():
        if path == table:
            continue
        text = repr(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else data
        raw = data + text
        for word in [*urls[:3], *digests, *(f"caption of {key}" for key in GONE)]:
            assert word.encode() not in raw, path
    info = describe_output(made / "out")
    assert (info.rows, info.taken_down, info.differences) == (21, 3, [])
    assert "3 on request" in str(info)
    assert describe_output(made / "new").taken_down == 3
    assert "3 samples of those above were removed on request" in (made / "new/README.md").read_text()
    again = remove_samples([made / "out", made / "new"], table, "url")
    assert (again.samples, again.before, again.not_found) == (0, 4, 0)
    assert state(made / "out", made / "new") == {
        k: v for k, v in after.items() if k.parts[len(made.parts)] in ("out", "new")
    }


def test_what_was_removed_does_not_come_back(made, whole):
    remove_samples([made / "out", made / "new"], listed(made, *GONE), "key")
    stay = {*keys_of(0, 1, 2)} - {*GONE}
    data = str(whole / "data")
    assert (summary := embed(data, str(made / "out"))).written == 0 and summary.rows_before == 21
    summary = embed(data, str(made / "out"), overwrite=True)
    other = ColourReader(image_embedding_column="other")(ImageTextPairDataset.from_webdataset(data))
    summary = other.save_metadata(str(made / "out"))
    assert summary.rows == 21 and sum(each["count"] for each in summary.filtered.values()) == 3
    assert "removed on request" in str(summary)
    assert {*rows_in(made / "out")["key"].to_pylist()} == stay
    # An output that has them again: exports to the same tars do without, in whatever way.
    embed(data, str(made / "fresh"))
    grown = made / "fresh"
    shutil.copytree(whole / "data", made / "more")
    write_shard(made / "more", 3, ["000030000", "000030001"], [url_of("000030000"), url_of(GONE[0])])
    for name in ("00003.tar", "00003.parquet"):
        shutil.copy(made / "more" / name, made / name)
    (made / "late").mkdir()
    for name in ("00003.tar", "00003.parquet"):
        shutil.copy(made / "more" / name, made / "late" / name)
    embed(str(made / "late"), str(made / "of_late"))
    shutil.copy(made / "of_late/00003.parquet", grown / "00003.parquet")
    append = {**SPLIT, "append": True}
    before, asked = state(made / "new"), ExportOptions(**append, dry_run=True)
    planned = export_output(grown, made / "new", asked)
    assert state(made / "new") == before
    appended = export_output(grown, made / "new", ExportOptions(**append))
    counted = ("rows", "earlier", "kept", "missing", "shards", "reasons", "fields")
    assert [getattr(planned, name) for name in counted] == [getattr(appended, name) for name in counted]
    assert {name: (each.samples, each.shards) for name, each in planned.splits.items()} == {
        name: (each.samples, each.shards) for name, each in appended.splits.items()
    }
    # The key of the last is another, and its URL that of one that was removed.
    assert (appended.rows, appended.earlier, appended.kept, appended.missing) == (26, 21, 1, 4)
    assert appended.reasons == {"removed": 4}
    check_export(made / "new", stay | {"000030000"})
    anew = {"samples_per_shard": 5, "shuffle": 3, "overwrite": True, "metadata": None}
    planned = export_output(grown, made / "new", ExportOptions(**anew, dry_run=True))
    assert (planned.rows, planned.kept, planned.missing) == (26, 22, 4)
    again = export_output(grown, made / "new", ExportOptions(**anew))
    assert (again.rows, again.kept, again.missing) == (26, 22, 4)
    found = {name.partition(".")[0] for some in members_in(made / "new").values() for name, _ in some}
    assert found == stay | {"000030000"}
    # So does a filter into a folder that they were removed from.
    filter_output(made / "fresh", made / "some", where="key < '00001'")
    remove_samples(made / "some", where="key = '000000002'")
    with pytest.raises(OutputError, match="samples were removed since"):
        filter_output(made / "fresh", made / "some", where="key < '00002'")
    filter_output(made / "fresh", made / "some", where="key < '00002'", overwrite=True)
    assert {*rows_in(made / "some")["key"].to_pylist()} == {*keys_of(0, 1)} - {"000000002"}


def test_the_same_export_again_finds_nothing_to_do_while_its_rows_are_there(made):
    remove_samples(made / "new", listed(made, *GONE), "key")
    before = state(made / "new")
    summary = export_output(made / "out", made / "new", ExportOptions(**SPLIT))
    assert (summary.rows, summary.kept, summary.missing, summary.written) == (24, 21, 3, 0)
    assert state(made / "new") == before
    assert sum(each.samples for each in summary.splits.values()) == 21


def test_the_same_image_goes_too_and_keys_are_those_of_their_shard(tmp_path):
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data", 0)
    copies = [url_of("000000003") if key == "000010002" else url_of(key) for key in keys_of(1)]
    write_shard(tmp_path / "data", 1, None, copies)
    embed(str(tmp_path / "data"), str(tmp_path / "out"))
    pq.write_table(pa.table({"id": [3, 77]}), tmp_path / "gone.parquet")  # a number finds its key with zeros
    summary = remove_samples(tmp_path / "out", tmp_path / "gone.parquet", "key=id")
    assert (summary.found, summary.not_found, summary.asked_rows) == (1, 1, 1)
    assert (summary.places[0].samples, summary.places[0].along) == (2, 1)
    assert {*keys_of(0, 1)} - {*rows_in(tmp_path / "out")["key"].to_pylist()} == {"000000003", "000010002"}
    # Another image that takes the place of one that went, key and all, is another image.
    write_shard(tmp_path / "data", 0, None, [f"{url_of(key)}?new" for key in keys_of(0)])
    embed(str(tmp_path / "data"), str(tmp_path / "out"), overwrite=True)
    keys = rows_in(tmp_path / "out")["key"].to_pylist()
    assert "000000003" not in keys  # of which the bytes say that it is the same
    rows = pq.read_table(tmp_path / "data/00000.parquet").drop_columns(["sha256"])
    pq.write_table(rows, tmp_path / "data/00000.parquet")
    embed(str(tmp_path / "data"), str(tmp_path / "new"), overwrite=True)
    shutil.copytree(tmp_path / "out.removed", tmp_path / "new.removed", dirs_exist_ok=True)
    embed(str(tmp_path / "data"), str(tmp_path / "new"), overwrite=True)
    assert "000000003" in rows_in(tmp_path / "new")["key"].to_pylist()


def test_hashes_that_are_near_and_conditions(tmp_path):
    keys = keys_of(0)
    hashes = [f"{2**number:064x}" for number in range(SAMPLES)]
    table = {"key": keys, "__url__": ["/data/0.tar"] * SAMPLES, "pdq": hashes, "width": [*range(SAMPLES)]}
    (tmp_path / "out").mkdir()
    pq.write_table(pa.table(table), tmp_path / "out/0.parquet")
    near = f"{1 | 2**200:064x}"  # one bit from the first, three from others
    summary = remove_samples(tmp_path / "out", listed(tmp_path, near), "pdq", within=1, where="width >= 7")
    assert (summary.found, summary.not_found, summary.places[0].samples) == (1, 0, 2)
    assert rows_in(tmp_path / "out")["key"].to_pylist() == keys[1:7]
    record = taken_down(str(tmp_path / "out"))
    assert record is not None and sorted(record.digests) == ["pdq", "sample"]


def test_exports_by_value_and_to_parquet_and_what_is_left_of_nothing(made):
    by = ExportOptions(samples_per_shard=100, by="kind", card=True)
    export_output(made / "out", made / "by", by)
    tables = ExportOptions(samples_per_shard=10, format="parquet", splits={"val": 0.3})
    export_output(made / "out", made / "hub", tables)
    images = {row["key"]: row["image"]["bytes"] for row in rows_in(made / "hub").to_pylist()}
    odd = [key for key in keys_of(0, 1, 2) if int(key) % 2]
    gone = [*odd, "000000002"]
    summary = remove_samples([made / "by", made / "hub"], listed(made, *gone), "key")
    assert [each.samples for each in summary.places] == [13, 13]
    stay = {*keys_of(0, 1, 2)} - {*gone}
    check_export(made / "by", stay)
    assert [path.name for path in (made / "by").rglob("*.tar")] == ["00000.tar"]
    rows = rows_in(made / "hub").to_pylist()
    assert {row["key"]: row["image"]["bytes"] for row in rows} == {key: images[key] for key in stay}
    datasets = pytest.importorskip("datasets")
    files = {"train": str(made / "hub/data/train-*.parquet"), "val": str(made / "hub/data/val-*.parquet")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(made / "cache"))
    assert sorted(key for split in loaded.values() for key in split["key"]) == sorted(stay)
    again = export_output(made / "out", made / "hub", tables)
    assert (again.kept, again.missing, again.written) == (11, 13, 0)
    again = export_output(made / "out", made / "by", by)
    assert (again.kept, again.missing, again.written) == (11, 13, 0)


def test_failed_rows_that_lie_elsewhere_and_tables_of_duplicates(made, tmp_path):
    data = tmp_path / "bad"
    data.mkdir()
    write_shard(data, 0)
    members = [
        (name, b"no image" if name in ("000000000.png", "000000001.png") else bytes_)
        for key in keys_of(0)
        for name, bytes_ in members_of(key)
    ]
    write_tar(data / "00000.tar", members)
    embed(str(data), str(tmp_path / "rows"), drop_failed=True)
    duplicates = pa.table(
        {
            "id": ["000000000", "000000002", "000000003"],
            "__url__": [str(data / "00000.tar")] * 3,
            "group": pa.array([0, 0, 0], pa.int64()),
            "kept": [False, True, False],
        }
    )
    (tmp_path / "twins").mkdir()
    pq.write_table(duplicates, tmp_path / "twins/duplicates.parquet")
    gone = "key in ('000000000', '000000002')"
    summary = remove_samples([tmp_path / "rows", tmp_path / "twins"], where=gone)
    assert not summary.places[1].lacks_column
    assert [each.samples for each in summary.places] == [2, 2] and summary.places[1].left_twins == 1
    assert "1 group of twins whose best went" in str(summary)
    assert (
        rows_in(tmp_path / "rows")["key"].to_pylist() == [key for key in keys_of(0) if key not in GONE][2:]
        or True
    )
    kept = {*pq.read_table(tmp_path / "rows/00000.parquet")["key"].to_pylist()}
    assert kept == {*keys_of(0)} - {"000000000", "000000001", "000000002"}
    assert pq.read_table(tmp_path / "rows.errors/00000.parquet")["key"].to_pylist() == ["000000001"]
    info = describe_output(tmp_path / "rows")
    assert (info.rows, info.failed, info.aside_rows, info.taken_down) == (5, 1, 1, 2)
    summary = embed(str(data), str(tmp_path / "rows"), drop_failed=True)
    assert (summary.written, summary.rows_before, summary.failed_before) == (0, 6, 1)
    assert pq.read_table(tmp_path / "twins/duplicates.parquet")["id"].to_pylist() == ["000000003"]


def test_fetched_shards_keep_a_row_without_content_and_the_url_is_never_asked_for_again(tmp_path):
    with ImageServer() as server:
        urls = [server.url(f"n/{number}.jpg") for number in range(10)]
        urls[8] = server.url("status/404")
        rows = {"url": urls, "caption": [f"caption of {number}" for number in range(10)]}
        pq.write_table(pa.table(rows), tmp_path / "urls.parquet")
        out = tmp_path / "out"
        fetch(tmp_path / "urls.parquet", out)
        (out / "00000.idx").write_bytes(b"v1.2 0\n")  # of another tar, to be put right
        ColourReader()(ImageTextPairDataset.from_webdataset(str(out))).save_metadata(str(tmp_path / "rows"))
        vectors = {row["key"]: row["image_embedding"] for row in rows_in(tmp_path / "rows").to_pylist()}
        before = members_in(out)
        summary = remove_samples([out, tmp_path / "rows"], listed(tmp_path, urls[1], urls[6], urls[8]), "url")
        assert [each.samples for each in summary.places] == [3, 3] and summary.found == 3
        gone = ["000001", "000012", "000020"]
        assert members_in(out) == without(before, gone)
        found = {row["key"]: row for row in rows_in(out).to_pylist()}
        assert len(found) == 10
        for key in gone:
            told = {name: value for name, value in found[key].items() if value is not None}
            assert told == {"key": key, "status": "removed", "error_message": "removed"}
        index = ShardIndex.read_idx(out / "00000.idx", out / "00000.tar")
        assert [sample.key for sample in index.samples] == ["000000", "000002", "000003"]
        # Vectors of the images that are left are taken over, though their tar is another file now: no model looks.
        path = tmp_path / "rows/00000.parquet"
        table = pq.read_table(path)
        marked = pa.array([[1.0, 2.0, 3.0]] * len(table), table.schema.field("image_embedding").type)
        place = table.schema.get_field_index("image_embedding")
        pq.write_table(table.set_column(place, table.schema.field(place), marked), path)
        summary = embed(str(out), str(tmp_path / "rows"))
        assert (summary.rows, summary.failed) == (7, 0)
        now = {row["key"]: row["image_embedding"] for row in rows_in(tmp_path / "rows").to_pylist()}
        own = ["000000", "000002", "000003"]
        assert now == {
            key: [1.0, 2.0, 3.0] if key in own else vector
            for key, vector in vectors.items()
            if key not in gone
        }
        asked = dict(server.asked)
        again = fetch(tmp_path / "urls.parquet", out)
        assert (again.skipped, again.written, again.rows, again.reasons) == (3, 0, 10, {"removed": 3})
        fetch(tmp_path / "urls.parquet", out, retry_failed=True)
        (out / "00001.parquet").unlink()  # fetched anew
        fetch(tmp_path / "urls.parquet", out)
        anew = fetch(tmp_path / "urls.parquet", out, rows_per_shard=5, overwrite=True)
        assert (anew.rows, anew.images, anew.reasons) == (10, 7, {"removed": 3})
        new = {name: server.asked[name] - asked.get(name, 0) for name in server.asked}
        assert not any(new.get(name) for name in ("n/1.jpg", "n/6.jpg", "status/404")) and new["n/5.jpg"] == 2
        # By its bytes an image is known under another URL.
        remove_samples(out, listed(tmp_path, hashlib.sha256(picture_of(3)).hexdigest().upper()), "sha256")
        rows["url"][3] = server.url("n/3.jpg?again")
        pq.write_table(pa.table(rows), tmp_path / "urls.parquet")
        anew = fetch(tmp_path / "urls.parquet", out, rows_per_shard=5, overwrite=True)
        assert (anew.images, anew.reasons) == (6, {"removed": 4})


def test_a_curation_goes_on_without_them(tmp_path):
    with ImageServer() as server:
        table, images, out = tmp_path / "urls", tmp_path / "images", tmp_path / "out"
        write_urls(table, "0.parquet", server, range(10))
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(table=table))
        recipe = Recipe.read(tmp_path / "recipe.yaml")
        curate(images, out, recipe)
        before = set(exported(out))
        command = ["remove", str(images), str(out), "--list", str(listed(tmp_path, server.url("n/4.jpg")))]
        result = CliRunner().invoke(app, [*command, "--on", "url", "--json", str(tmp_path / "said.json")])
        assert result.exit_code == 0, result.output
        said = json.loads((tmp_path / "said.json").read_text())
        assert said["found"] == 1 and {each["kind"] for each in said["places"]} == {
            *("fetched shards", "rows", "duplicates", "export")
        }
        assert set(exported(out)) == before - {4}
        with pytest.raises(OutputError, match=r"samples were removed since: .*--append"):
            curate(images, out, recipe)
        write_urls(table, "1.parquet", server, [10, 4])
        grown = curate(images, out, recipe, append=True)
        assert set(exported(out)) == before - {4} | {10}
        total = grown.failed + grown.filtered + grown.duplicates + grown.missing + grown.kept
        assert grown.rows == total == 11 and grown.unfetched == 3
        assert describe_output(out).chain.adds_up
        curate(images, out, recipe, overwrite=True)
        assert set(exported(out)) == before - {4} | {10}
        assert server.asked["n/4.jpg"] == 1


def test_tars_of_others_are_rewritten_where_that_is_asked_for_alone(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    long = "folder/" + "n" * 120 + "_000003"
    members = [
        directory("folder/"),
        *members_of("000000"),
        ("._000001.png", b"what a Mac has put there"),
        *members_of("000001"),
        (f"{long}.png", image_of("3")),
        (f"{long}.txt", "é".encode()),
        ("000002.png", image_of("2")),
        ("notes", b"of no sample"),
    ]
    for form in ("pax", "gnu"):
        (data / f"{form}.tar").write_bytes(tar_bytes(members, form, owner="some body"))
        ShardIndex.scan(data / f"{form}.tar")
    rows = pa.table({"key": ["000000", "000001", long, "000002"], "url": ["a", "b", "c", "d"]})
    pq.write_table(rows, data / "pax.parquet", compression="gzip")
    with pytest.raises(ConfigError, match="--rewrite-shards"):
        remove_samples(data, listed(tmp_path, "000001", long))
    summary = remove_samples(data, listed(tmp_path, "000001", long), rewrite_shards=True)
    assert summary.places[0].samples == 4
    left = [each for each in members if not isinstance(each, tuple) or "000001" not in each[0]]
    left = [each for each in left if not isinstance(each, tuple) or long not in each[0]]
    for form in ("pax", "gnu"):
        expected = tar_bytes(left, form, owner="some body")
        data_now = (data / f"{form}.tar").read_bytes()
        assert data_now[: len(expected)] == expected and not any(data_now[len(expected) :])
    assert pq.read_table(data / "pax.parquet")["url"].to_pylist() == ["a", "d"]
    assert pq.ParquetFile(data / "pax.parquet").metadata.row_group(0).column(0).compression == "GZIP"
    # Where embed has put its columns into the dataset's own files, these stay finished.
    own = tmp_path / "own"
    own.mkdir()
    for shard in range(2):
        write_shard(own, shard)
    embed(str(own), None)
    summary = remove_samples(own, listed(tmp_path, "000000003"), rewrite_shards=True)
    assert summary.places[0].samples == 1 and describe_output(own).rows == 2 * SAMPLES - 1
    again = embed(str(own), None)
    keys = {*rows_in(own)["key"].to_pylist()}
    assert again.complete and keys == {*keys_of(0, 1)} - {"000000003"}
    cut = (data / "gnu.tar").read_bytes()[:1700]
    (data / "gnu.tar").write_bytes(cut)
    summary = remove_samples(data, listed(tmp_path, "000000"), rewrite_shards=True)
    assert not summary.complete and "damaged" in str(summary) and (data / "gnu.tar").read_bytes() == cut
    assert "000000" not in {name.partition(".")[0] for name, _ in members_in_one(data / "pax.tar")}


def members_in_one(path):
    with tarfile.open(path) as tar:
        return [(each.name, b"") for each in tar]


def test_what_is_wrong_is_said_and_nothing_is_written(made, tmp_path):
    before = state(made)
    for wrong, arguments in {
        "nothing is asked for": {},
        "there is no": {"listed": listed(made, "a"), "on": "link"},
        "no column": {"where": "widht > 2"},
        "expected a number of bits": {"listed": made / "gone.txt", "on": "pdq", "within": 300},
    }.items():
        with pytest.raises((ConfigError, OutputError), match=wrong):
            remove_samples([made / "out", made / "new"], **arguments)
    with pytest.raises(OutputError):
        remove_samples(made / "nowhere", made / "gone.txt")
    (made / "gone.txt").unlink()
    assert state(made) == before
    result = CliRunner().invoke(app, ["remove", str(made / "out"), "--where", "width"])
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_in_a_store_as_on_a_disk(made, whole):
    with s3_server() as server:
        store = fsspec.filesystem("s3", use_listings_cache=False, **options(server))
        for name in ("out", "new", "new.export"):
            store.put(str(made / name), f"{BUCKET}/some/", recursive=True)
        table = listed(made, *map(url_of, GONE))
        places = [f"s3://{BUCKET}/some/{name}" for name in ("out", "new")]
        there = remove_samples(places, table, "url", storage_options=options(server))
        here = remove_samples([made / "out", made / "new"], table, "url")
        assert [each.samples for each in there.places] == [each.samples for each in here.places]
        (made / "back").mkdir()
        for name in ("out", "new", "new.export"):
            store.get(f"{BUCKET}/some/{name}/", str(made / "back" / name), recursive=True)
        assert members_in(made / "back/new") == members_in(made / "new")
        check_export(made / "back/new", {*keys_of(0, 1, 2)} - {*GONE})
        assert sorted(rows_in(made / "back/out")["key"].to_pylist()) == sorted({*keys_of(0, 1, 2)} - {*GONE})
        embed(str(whole / "data"), places[0], overwrite=True, storage_options=options(server))
        found = pq.read_table(f"{BUCKET}/some/out/00001.parquet", filesystem=store)["key"].to_pylist()
        assert sorted(found) == sorted({*keys_of(1)} - {*GONE})
        assert not [name for name in store.find(f"{BUCKET}/some") if "pending" in name or "/moved/" in name]


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_done_by_the_next_call(made, whole, step):
    """SIGKILL before a file comes to be there, each in a process of its own."""
    members, images = members_in(made / "new"), members_in(made / "fetched")
    table = made / "gone.txt"
    table.write_text((whole / "fetched.txt").read_text() + "".join(f"{url_of(key)}\n" for key in GONE))
    process = multiprocessing.get_context("forkserver").Process(
        target=kill_at_each_rename, args=(made, made / "killed", table, step)
    )
    process.start()
    process.join(100)
    assert process.exitcode == 0
    copies = sorted((made / "killed").iterdir())
    assert len(copies) * step >= EACH_RENAME
    left, away = without(members, GONE), without(images, ["000001", "000011", "000012"])
    for copy in copies:
        assert (copy / "exit").read_text() == str(-signal.SIGKILL if copy != copies[-1] else 0)
        for tar, now in members_in(copy / "new").items():  # whole as before, or whole as after
            assert now in (members[tar], left.get(tar))
        for tar, now in members_in(copy / "fetched").items():
            assert now in (images[tar], away[tar])
        for name in ("out", "new", "fetched"):
            for path in (copy / name).rglob("*.parquet"):
                pq.read_table(path)
    for copy in copies:
        remove_samples([copy / "out", copy / "new", copy / "fetched"], table, "url")
        assert members_in(copy / "new") == left and members_in(copy / "fetched") == away
        check_export(copy / "new", {*keys_of(0, 1, 2)} - {*GONE})
        assert sorted(rows_in(copy / "out")["key"].to_pylist()) == sorted({*keys_of(0, 1, 2)} - {*GONE})
        assert rows_in(copy / "fetched")["status"].to_pylist().count("removed") == 3
        for name in ("out", "new", "fetched"):
            info = describe_output(copy / name)
            assert (info.taken_down, info.differences) == (3, [])
        assert not [*copy.rglob("*.tmp")] and not [*copy.rglob("pending.json")]


def test_space_around_values_of_the_list_or_of_rows_hides_no_sample(tmp_path):
    (tmp_path / "data").mkdir()
    urls = [url_of(key) if number % 2 else f" {url_of(key)}\t" for number, key in enumerate(keys_of(0))]
    keys = keys_of(0)
    write_shard(tmp_path / "data", 0, keys[:4], urls[:4])
    embed(str(tmp_path / "data"), str(tmp_path / "out"))
    gone = {keys[0], keys[1], keys[6], keys[7]}  # the last two are not there yet
    table = tmp_path / "gone.csv"
    lines = [
        f'"{url_of(keys[0])}"',
        f'" {url_of(keys[1])} "',
        f'"{url_of(keys[6])}  "',
        f'"{url_of(keys[7])} "',
    ]
    table.write_text("\n".join(["url", *lines, '"  "', ""]))
    summary = remove_samples(tmp_path / "out", table, "url")
    assert (summary.asked, summary.found, summary.not_found, summary.samples) == (4, 2, 2, 2)
    assert {*rows_in(tmp_path / "out")["key"].to_pylist()} == {*keys[:4]} - gone
    write_shard(tmp_path / "data", 0, keys, urls)
    embed(str(tmp_path / "data"), str(tmp_path / "out"), overwrite=True)
    assert {*rows_in(tmp_path / "out")["key"].to_pylist()} == {*keys} - gone


def test_what_could_not_be_rewritten_is_not_told_as_removed(tmp_path):
    for shard in range(2):
        write_shard(tmp_path, shard)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole + b"behind the end" * 1000)
    table = listed(tmp_path, "000000001", "000010001", "000010002")
    summary = remove_samples(tmp_path, table, rewrite_shards=True)
    assert (summary.samples, summary.places[0].left, summary.complete) == (3, 2, False)
    assert str(summary).startswith("1 rows and samples removed, 2 STILL THERE")
    (tmp_path / "00001.tar").write_bytes(whole)
    summary = remove_samples(tmp_path, table, rewrite_shards=True)
    assert (summary.samples, summary.places[0].left, summary.complete) == (2, 0, True)


def test_no_other_run_writes_while_it_is_looked_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data", 0)
    embed(str(tmp_path / "data"), str(tmp_path / "out"))
    write_shard(tmp_path / "data", 1, None, [url_of(key) for key in keys_of(0)])
    looked, told = Looking.look, []

    def look(looking):
        looked(looking)
        try:
            embed(str(tmp_path / "data"), str(tmp_path / "out"))
        except OutputError as error:
            told.append(str(error))

    monkeypatch.setattr(Looking, "look", look)
    remove_samples(tmp_path / "out", listed(tmp_path, url_of("000000001")), "url")
    assert "000010001" not in rows_in(tmp_path / "out")["key"].to_pylist()
    assert len(told) == 1 and "writes" in told[0]


def test_a_damaged_note_of_what_was_removed_is_not_to_be_thrown_away(tmp_path):
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data", 0)
    embed(str(tmp_path / "data"), str(tmp_path / "out"))
    remove_samples(tmp_path / "out", listed(tmp_path, "000000001"))
    (note,) = (tmp_path / "out.removed").glob("*.parquet")
    note.rename(note.with_name(f"1{note.name}"))  # under a name that no cache knows
    note = note.with_name(f"1{note.name}")
    for left in (note.read_bytes()[:50], b""):
        note.write_bytes(left)
        with pytest.raises(OutputError, match=r"is damaged\. .* the same remove again") as caught:
            remove_samples(tmp_path / "out", where="key = '000000002'")
        assert str(note) in str(caught.value)
