"""Folders with a file an image, as shards: every image finds its row, and a change costs its own shard alone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import webdataset
from colour_stages import stages_of
from colours import ColourReader, check_colours, image_of, write_dataset

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, ImageError, OutputError, ShardError
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.packing import PackShard
from curator_dask.pipeline import Pipeline
from curator_dask.rows.caption_files import read_captions
from curator_dask.webdataset.finding import discover_images, find_shards
from curator_dask.webdataset.folder_reader import FolderReader
from curator_dask.webdataset.folders import FolderShard, look
from curator_dask.webdataset.stamps import stamp

pytestmark = pytest.mark.usefixtures("in_this_process")

FOLDERS = ("", "a", "a/v1.0", "z/ü")


def write_images(folder: Path, count: int = 40) -> dict[str, bytes]:
    """By key, the images of a folder; its number is the image's colour."""
    found = {}
    for number in random.Random(1).sample(range(count), count):
        below = folder / FOLDERS[number % len(FOLDERS)]
        below.mkdir(parents=True, exist_ok=True)
        path = below / f"pic{number:04d}"
        data = image_of(f"{number:04d}", ("PNG", "BMP")[number % 2])
        suffix = ("png", "WebP", "PNG")[number % 3]
        path.with_suffix(f".{suffix}").write_bytes(data)
        path.with_suffix(".txt").write_text(f"caption of {number}")
        if number % 5 == 0:
            path.with_suffix(".json").write_text(f'{{"width": {number}, "caption": "no"}}')
        found[str(path.relative_to(folder))] = data
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "README.txt").write_text("no image")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.png").write_bytes(b"x")
    return found


def rows_of(dataset):
    return dataset.compute().set_index("key")


@pytest.fixture
def data(tmp_path):
    write_images(tmp_path / "data")
    return tmp_path / "data"


def test_every_image_is_a_row_that_finds_its_image_caption_and_json(tmp_path):
    images = write_images(tmp_path / "data")
    dataset = ImageTextPairDataset.from_images(tmp_path / "data", samples_per_shard=4)
    assert dataset.npartitions > 4 and len(dataset) == len(images)
    rows = rows_of(dataset)
    assert {*rows.index} == {*images}
    for key, row in rows.iterrows():
        number = int(key[-4:])
        assert row["caption"] == f"caption of {number}"
        assert (tmp_path / "data" / row["file_name"]).read_bytes() == images[key]
        assert (row["width"] == number) if number % 5 == 0 else row.isna()["width"]
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed) == (40, 0)
    table = pq.read_table(tmp_path / "out", columns=["key", "image_embedding"])
    digits = [key[-4:] for key in table["key"].to_pylist()]
    check_colours(digits, table["image_embedding"].to_pylist())


def test_images_that_come_or_go_cost_their_own_shard_alone(data, tmp_path):
    def run():
        dataset = ImageTextPairDataset.from_images(data, samples_per_shard=4)
        return ColourReader()(dataset).save_metadata(tmp_path / "out")

    shards = run().written
    assert run().skipped == shards
    names = {shard.name for shard in discover_images(data, 4)}
    (data / "a" / "pic0000a.png").write_bytes(image_of("100"))
    assert names <= {shard.name for shard in discover_images(data, 4)}
    summary = run()
    assert summary.skipped >= shards - 1 and summary.rows + summary.rows_before == 41
    file = data / "pic0024.png"
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    summary = run()
    assert summary.written == 1 and summary.rows + summary.rows_before == 41
    (data / "pic0012.txt").write_text("another caption")
    assert run().written == 1
    table = pq.read_table(tmp_path / "out", filters=[("key", "==", "pic0012")])
    assert table["caption"].to_pylist() == ["another caption"]


def test_files_of_shards_that_are_gone_are_not_left_beside_their_rows(data, tmp_path):
    def run(samples=4, **options):
        dataset = ImageTextPairDataset.from_images(data, samples_per_shard=samples)
        return dataset.save_metadata(tmp_path / "out", **options)

    def keys():
        return sorted(pq.read_table(tmp_path / "out", columns=["key"])["key"].to_pylist())

    run()
    every = keys()
    some = ImageTextPairDataset.from_images(data, samples_per_shard=4)
    some = some.with_metadata(some.metadata.partitions[2:4])
    assert some.save_metadata(tmp_path / "out").skipped == 2 and keys() == every  # the others are no strays
    end = FolderShard.of(discover_images(data, 4).shards[3].url).after  # an image that ends a shard
    next(path for path in data.glob(f"{end}.*") if path.suffix.lower() != ".txt").unlink()
    (data / f"{end}.txt").unlink()
    with pytest.raises(
        OutputError, match=r"1 file of the same rows in other partitions, .*after-.* use overwrite"
    ):
        run()
    run(overwrite=True)
    assert keys() == [key for key in every if key != end]
    with pytest.raises(OutputError, match=r"of the same rows in other partitions|was made of"):
        run(samples=10)
    run(samples=10, overwrite=True)
    assert keys() == [key for key in every if key != end]


def test_names_that_are_long_or_no_text(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in (b"a\xe4.png", b"z" * 240 + b".png", b"with #%~ signs.png", b"~1000.images.png"):
        Path(os.fsdecode(bytes(folder) + b"/" + name)).write_bytes(image_of("7"))
    dataset = ImageTextPairDataset.from_images(folder, samples_per_shard=1)
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed, dataset.npartitions) == (4, 0, 4)
    keys = pq.read_table(tmp_path / "out", columns=["key"])["key"].to_pylist()
    assert sorted(keys) == ["a\\xe4", "with #%~ signs", "z" * 240, "~1000_images"]
    assert dataset.to_webdataset(tmp_path / "tars").kept == 4


def test_what_cannot_be_read_costs_its_row(data, tmp_path):
    (data / "empty.jpg").touch()
    (data / "text.jpg").write_text("no image")
    (data / "gone.jpg").symlink_to("nothing")
    (data / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(data / "pipe.jpg")
    (data / "alone.txt").write_text("a caption without an image")
    dataset = ImageTextPairDataset.from_images(data)
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed) == (45, 5)
    rows = pq.read_table(tmp_path / "out").to_pandas().set_index("key")["image_error"]
    assert rows["empty"] == "empty (0 bytes)"
    assert "gone.jpg is a link to what is not there" in rows["gone"]
    assert "self.jpg" in rows["self"]
    assert "pipe.jpg is no regular file" in rows["pipe"]
    exported = dataset.to_webdataset(tmp_path / "tars")
    assert (exported.kept, exported.missing) == (42, 3)
    with FolderReader(look_url := next(iter(discover_images(data))).url) as reader:
        member = reader.index.samples[0].members[0]
        (data / member.target).unlink()
        with pytest.raises(ImageError, match=f"unreadable: {data / member.target}: No such file"):
            reader.read(member)
    assert stamp(look_url).size == sum(m.size for s in look(look_url).index.samples for m in s.members)


def test_several_images_of_a_name_have_their_suffixes_in_their_keys(tmp_path):
    for name in ("a.png", "a.JPG", "b.c.png", "d.png"):
        (tmp_path / name).write_bytes(image_of("7"))
    (tmp_path / "a.txt").write_text("of both")
    (tmp_path / "b.c.txt").write_text("of one")
    rows = rows_of(ImageTextPairDataset.from_images(tmp_path))
    assert rows["file_name"].to_dict() == {
        "a_JPG": "a.JPG",
        "a_png": "a.png",
        "b_c": "b.c.png",
        "d": "d.png",
    }
    assert rows["caption"].fillna("").to_dict() == {
        "a_JPG": "of both",
        "a_png": "of both",
        "b_c": "of one",
        "d": "",
    }
    (tmp_path / "b_c.png").write_bytes(image_of("8"))
    with pytest.raises(DatasetError, match=r"b_c\.png: would have the key 'b_c', as 'b\.c\.png' has"):
        ImageTextPairDataset.from_images(tmp_path)


def write_captions(path: Path, names: list[str], form: str) -> Path:
    columns = {
        "file_name": [*names, "of/no.png"],
        "caption": [*map(caption_of, names), "x"],
        "n": range(len(names) + 1),
    }
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if form == "parquet":
        pq.write_table(table, path.with_suffix(".parquet"))
    elif form == "csv":
        pyarrow.csv.write_csv(table, path.with_suffix(".csv"))
    else:
        path.with_suffix(".jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    return path.with_suffix(f".{form}")


def caption_of(name: str) -> str:
    return f'of "{name}", in the table'


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_captions_from_a_table(data, tmp_path, said, form):
    names = sorted(
        str(path.relative_to(data)) for path in data.rglob("pic*") if path.suffix[1:] in ("png", "PNG")
    )
    captions = write_captions(tmp_path / "captions", [f"./{name}" for name in names], form)
    dataset = ImageTextPairDataset.from_images(data, captions=captions, samples_per_shard=4)
    assert f"40 images, {len(names)} with a row; 1 row without an image" in said.text
    rows = dataset.compute()
    assert list(rows.columns) == ["key", "file_name", "caption", "n", "__url__"]
    assert len(rows) == 40 and rows["caption"].notna().sum() == len(names)
    for _, row in rows[rows["caption"].notna()].iterrows():
        assert row["caption"] == caption_of(f"./{row['file_name']}") and names[row["n"]] == row["file_name"]
    if form == "parquet":
        best = dataset.top("n", n=2).compute()
        assert sorted(best["file_name"]) == sorted(names[-2:])
        assert ColourReader()(dataset).save_metadata(tmp_path / "out").written == dataset.npartitions
        assert ColourReader()(dataset).save_metadata(tmp_path / "out").written == 0
        write_captions(tmp_path / "captions", names, form)
        changed = ImageTextPairDataset.from_images(data, captions=captions, samples_per_shard=4)
        assert ColourReader()(changed).save_metadata(tmp_path / "out").written == dataset.npartitions
        table = pq.read_table(tmp_path / "out").to_pandas().dropna(subset="caption")
        assert {*table["caption"]} == {*map(caption_of, names)}
        check_colours([key[-4:] for key in table["key"]], table["image_embedding"])


def test_no_captions(data):
    rows = ImageTextPairDataset.from_images(data, captions=None, id_col="id").compute()
    assert list(rows.columns) == ["id", "file_name", "__url__"] and len(rows) == 40


def test_tables_of_captions_that_do_not_fit(data, tmp_path, said):
    for table, words in (
        ({"name": ["pic0000.png"]}, r"expected a column 'file_name' .* found \['name'\]"),
        ({"file_name": ["pic0000.png", "./pic0000.png"]}, r"1 image in several rows each, 'pic0000\.png'"),
        ({"file_name": ["data/pic0000.png"]}, r"none of the 40 images .* found 'data/pic0000\.png'"),
        ({"file_name": [["pic0000.png"]]}, r"column 'file_name': expected text .* found list<.*write it as"),
        ({"file_name": [b"pic\xff.png"]}, r"column 'file_name': expected text in UTF-8.* found binary"),
        ({"file_name": ["pic0000.png"], "key": ["a"]}, r"has columns \['key'\]"),
        ({"file_name": ["pic0000.png"], "image_error": ["a"]}, r"has columns \['image_error'\]"),
    ):
        pq.write_table(pa.table(table), tmp_path / "captions.parquet")
        with pytest.raises(DatasetError, match=words):
            ImageTextPairDataset.from_images(data, captions=tmp_path / "captions.parquet")
    (tmp_path / "captions.csv").write_bytes("file_name,caption\npic0000.png,café\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"captions\.csv: cannot be read: .*UTF"):
        ImageTextPairDataset.from_images(data, captions=tmp_path / "captions.csv")
    (tmp_path / "captions.csv").write_text("file_name,caption,score\npic0000.png,007,5\n")
    rows = ImageTextPairDataset.from_images(data, captions=tmp_path / "captions.csv").compute()
    assert rows.dropna(subset=["caption"])[["caption", "score"]].to_numpy().tolist() == [["007", 5]]
    pd.DataFrame({"file_name": ["pic0000.png"], "caption": ["a"]}).to_csv(tmp_path / "captions.csv")
    rows = ImageTextPairDataset.from_images(data, captions=tmp_path / "captions.csv")
    assert list(rows.metadata.columns) == ["key", "file_name", "caption", "__url__"]
    assert "1 column without a name left out" in said.text
    (tmp_path / "captions.csv").write_text("file_name,caption,by\npic0000.png,,\na/pic0001.WebP,,me\n")
    rows = ImageTextPairDataset.from_images(data, captions=tmp_path / "captions.csv").compute()
    assert rows["caption"].isna().all() and rows["by"].dropna().tolist() == ["me"]
    (tmp_path / "captions.csv").write_text("file_name,a,a\npic0000.png,1,2\n")
    with pytest.raises(DatasetError, match="several columns are named 'a'"):
        ImageTextPairDataset.from_images(data, captions=tmp_path / "captions.csv")
    (tmp_path / "captions.jsonl").write_text('\ufeff{"file_name": "pic0000.png", "caption": "2020-01-01"}\n')
    views = {"file_name": ["pic0000.png"], "caption": pa.array(["2020-01-01"], pa.string_view())}
    pq.write_table(pa.table(views), tmp_path / "captions.parquet")
    for name in ("captions.jsonl", "captions.parquet"):
        captions = ImageTextPairDataset.from_images(data, captions=tmp_path / name).compute()["caption"]
        assert captions.dropna().tolist() == ["2020-01-01"]
    (tmp_path / "captions.csv").write_bytes(b"")
    for name, words in (
        ("captions.csv", "cannot be read"),
        ("captions.xml", "captions: "),
        ("data/pic0000.txt", "type"),
    ):
        with pytest.raises(DatasetError, match=words):
            ImageTextPairDataset.from_images(data, captions=tmp_path / name)


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("file_name;caption\r0.jpg;a\r1.jpg;b\r", ["a", "b"]),
        ("sep=;\r\nfile_name;caption\r\n0.jpg;a\r\n", ["a"]),
        ("\ufeff\n\nfile_name;caption\n0.jpg;a\n", ["a"]),
        ('"a\nb";file_name;caption\n1;0.jpg;c\n', ["c"]),
        ('file_name,caption\n0.jpg,"a ""b"",\nc, d.jpg"\n1.jpg,e\n', ['a "b",\nc, d.jpg', "e"]),
        ('file_name\tcaption\n0.jpg\t"a\tb"\n1.jpg\t"c\nd"', ["a\tb", "c\nd"]),
        ('file_name\tcaption\n0.jpg\t"a\n1.jpg\tb "c"\n2.jpg\t"d\n', ['"a', 'b "c"', '"d']),
        ('file_name\tcaption\n0.jpg\t"a" b\n1.jpg\t"c"\n', ['"a" b', '"c"']),
        ('file_name\tcaption\n0.jpg\t"a\nb"\n1.jpg\t"c\n2.jpg\td"\n', "the row of another image, '2.jpg'"),
        (
            'file_name,caption\n0.jpg,"a\n1.jpg,b "c"\n',
            r"the row of another image, '1\.jpg'.* Close the quotes",
        ),
        ('caption,file_name\n"a,0.jpg\nb "c",1.jpg\n', "the row of another image, '0.jpg'"),
        ('file_name,caption\n0.jpg,a\n1.jpg,"b\n', "a double quote is not closed: 'b'"),
        ("x" * 200_000, r"expected a column 'file_name' .* found \['x{60}'\]"),
        ("file_name,\0\n0.jpg,a\n", "not text in UTF-8"),
        ("file_name,caption", "no rows"),
        (",file_name,caption, ,\n0,0.jpg,a,,\n1,1.jpg,b,,\n", ["a", "b"]),
        ('file_name,caption,, \n0.jpg,,,\n1.jpg,"",,\n2.jpg,NA,,\n3.jpg, ,,\n', [None, "", "NA", " "]),
        ('file_name\tcaption\n0.jpg\t\n1.jpg\t""\n2.jpg\tnull\n', [None, "", "null"]),
        ('file_name\tcaption\n0.jpg\t\n1.jpg\t"a\n2.jpg\tb\n', [None, '"a', "b"]),
        (
            '{"file_name": "0.jpg", "caption": "a"}\n\n{"file_name": "1.jpg", "caption": 7}',
            "line 3: 'caption' is a number .7.*text",
        ),
        (
            '{"file_name": "0.jpg", "caption": "a"}\n{"file_name": "1.jpg"',
            r"line 2: expected an object .* found .*\(Expecting",
        ),
        (
            '{"file_name": "0.jpg", "w": {"a": 1}}\n{"file_name": "1.jpg", "w": {"a": "b"}}',
            "changed from number.* JSON Lines",
        ),
        ('{"file_name": "0.jpg", "file_name": "1.jpg"}', "line 1: 'file_name' stands in it twice"),
        ('{"file_name": "0.jpg"}\n"1.jpg"', "line 2: expected an object .* found text"),
        ("[" + '{"file_name": "0.jpg"}]', "line 1: .* found a list.* Write each element"),
        ("[\n" + '{"file_name": "0.jpg"}\n]', "line 1: .* Write each element of the array"),
    ],
)
def test_captions_with_delimiters(text, captions):
    name = "a.jsonl" if text[0] in "[{" else "a.tsv" if "\t" in text else "a.csv"
    if isinstance(captions, str):
        with pytest.raises(ValueError, match=f"(?s){captions}"):
            read_captions(name, text.encode())
    else:
        table = read_captions(name, text.encode())
        assert table["caption"].to_pylist() == captions and all(map(str.strip, table.column_names))


def test_an_export_has_the_original_bytes_and_webdataset_reads_it(tmp_path):
    images = write_images(tmp_path / "data")
    dataset = ImageTextPairDataset.from_images(tmp_path / "data", samples_per_shard=4)
    options = {"samples_per_shard": 15, "where": "caption != 'caption of 3'"}
    summary = dataset.to_webdataset(tmp_path / "tars", **options)
    assert (summary.kept, summary.filtered, summary.shards) == (39, 1, 3)
    found = {}
    urls = sorted(map(str, (tmp_path / "tars").glob("*.tar")))
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        image = next(sample[suffix] for suffix in ("png", "webp") if suffix in sample)
        found[sample["__key__"]] = hashlib.sha256(image).hexdigest()
        assert sample["txt"].decode() == f"caption of {int(sample['__key__'][-4:])}"
    wanted = {key: hashlib.sha256(data).hexdigest() for key, data in images.items() if key[-4:] != "0003"}
    assert found == wanted
    assert (
        dataset.to_webdataset(
            tmp_path / "tars", samples_per_shard=15, where="caption != 'caption of 3'"
        ).written
        == 0
    )
    ImageTextPairDataset.from_webdataset(tmp_path / "tars")


def test_a_file_that_changes_while_it_is_exported_stops_its_tar(data, tmp_path, monkeypatch):
    """And no other: of a shard only the files that are copied must be as they were."""
    dataset = ImageTextPairDataset.from_images(data)
    file = data / "pic0000.png"
    packed = PackShard.__call__

    def pack(self, shard):
        if shard.number == 0:
            file.write_bytes(image_of("1"))
        return packed(self, shard)

    monkeypatch.setattr(PackShard, "__call__", pack)
    options = {"samples_per_shard": 10, "shuffle": 1}
    summary = dataset.to_webdataset(tmp_path / "tars", **options)
    (why,) = summary.failed_shards.values()
    assert str(file) in why and "was changed since" in why and summary.written == 3
    monkeypatch.setattr(PackShard, "__call__", packed)
    # The order is another, since the rows are: all are written anew.
    assert dataset.to_webdataset(tmp_path / "tars", **options, overwrite=True).complete
    manifest = pq.read_table(tmp_path / "tars.export" / "manifest").to_pylist()
    assert {offset for row in manifest for offset in row["source_offsets"]} == {0}


def test_shards_are_told_by_names_alone(tmp_path):
    """Whatever comes or goes, shards that do not have it stay as they are; and each is found by its url again."""
    rng, folder = random.Random(3), tmp_path / "many"
    (folder / "b").mkdir(parents=True)
    names = [f"{'b/' * (number % 2)}{rng.getrandbits(40):010x}" for number in range(1200)]
    for name in names:
        (folder / f"{name}.jpg").touch()
    found = discover_images(folder, 40).shards
    sizes = [len(look(shard.url).index.samples) for shard in found]
    assert sum(sizes) == len(names) and all(20 <= size <= 80 for size in sizes[:-1])
    assert 25 <= sum(sizes) / len(sizes) <= 50
    keys = [sample.key for shard in found for sample in look(shard.url).index.samples]
    assert keys == sorted(names, key=lambda name: ("/" in name, name))
    before = {shard.url: stamp(shard.url) for shard in found}
    (folder / f"{'8' * 10}.jpg").touch()
    (folder / f"{keys[5]}.jpg").unlink()
    after = {shard.url: stamp(shard.url) for shard in discover_images(folder, 40)}
    assert len(before.items() - after.items()) <= 4
    assert FolderShard.of(found[3].url) == FolderShard(str(folder), FolderShard.of(found[3].url).after, 40)


def test_a_listing_that_is_kept_does_not_hide_a_change(data):
    old = time.time() - 100
    for below in FOLDERS[::-1]:
        os.utime(data / below, (old, old))
    url = discover_images(data).shards[0].url
    assert len(look(url).index.samples) == 40
    (data / "new.png").write_bytes(image_of("1"))
    assert len(look(url).index.samples) == 41


def test_mixed_rows_are_tried_again_and_exported(data, tmp_path):
    """Of such rows it is not written down how their shards were; of images in files there is no time to compare."""
    embedded = ColourReader(max_pixels=10)(ImageTextPairDataset.from_images(data))
    mixed = embedded.with_metadata(embedded.metadata.repartition(npartitions=2))
    failed = mixed.save_metadata(tmp_path / "out").failed
    again = ColourReader().retry(tmp_path / "out")
    assert 0 == again.failed < again.rows == failed
    assert export_output(tmp_path / "out", tmp_path / "tars").kept == failed


def test_what_is_no_folder_of_images_is_said(data, tmp_path):
    write_dataset(tmp_path / "tars", 1, 2)
    assert find_shards(tmp_path / "tars").shards[0].url.endswith("00000.tar")
    assert find_shards(data) == discover_images(data)
    (tmp_path / "tars" / "more.png").write_bytes(image_of("5"))
    assert len(find_shards(tmp_path / "tars", images=True)) == 1
    with pytest.raises(DatasetError, match="images that are files of their own are read by from_images"):
        ImageTextPairDataset.from_webdataset(data)
    with pytest.raises(DatasetError, match="expected at least one image, found none"):
        (tmp_path / "nothing").mkdir()
        ImageTextPairDataset.from_images(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="found no folder"):
        ImageTextPairDataset.from_images(data / "pic0000.png")
    with pytest.raises(ConfigError, match="at least 1"):
        ImageTextPairDataset.from_images(data, samples_per_shard=0)
    with pytest.raises(ConfigError, match="give save_metadata a path"):
        ImageTextPairDataset.from_images(data).save_metadata()
    for url in (FolderShard(str(data), "zz/z", 9).url, FolderShard(str(tmp_path / "gone"), "", 9).url):
        with pytest.raises(ShardError, match=r"no image behind 'zz/z'|the folder cannot be listed"):
            stamp(url)


def test_a_pipeline_takes_it_as_it_takes_tars(data, tmp_path):
    images = [image for batch in Pipeline("images", stages=stages_of(data)).run() for image in batch.data]
    assert len(images) == 40 and all(Path(image.image_path).is_file() for image in images)
    assert all(image.image_path.startswith(f"{data / image.image_id}.") for image in images)
    check_colours([image.image_id[-4:] for image in images], [image.embedding for image in images])


def test_a_link_to_a_folder_shows_what_is_elsewhere_and_no_image_twice(data, tmp_path):
    names = [f"elsewhere{number}" for number in range(4)]
    for name in names:  # each with links to all others
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.png").write_bytes(image_of("0001"))
        for other in names:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    before = sorted(s.key for shard in discover_images(data, 4) for s in look(shard.url).index.samples)
    (data / "a" / "up").symlink_to(data)
    (data / "above").symlink_to(data.parent)
    (data / "again").symlink_to(data / "z")
    (data / "linked").symlink_to(tmp_path / names[0])
    keys = [sample.key for shard in discover_images(data, 4) for sample in look(shard.url).index.samples]
    assert len(keys) == len({*keys}) and "linked/one" in keys
    assert sorted(key for key in keys if not key.startswith(("linked/", "above/"))) == before
    assert [key for key in keys if key.startswith("linked/")] == ["linked/one"]
    assert sorted(key for key in keys if key.startswith("above/")) == [f"above/{name}/one" for name in names]
