"""Other programs that read new tars: rows, keys and captions are those that went in."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner as ClickRunner
from colours import colour_of, image_of, write_dataset, write_tar
from PIL import Image

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ShardError
from curator_dask.webdataset.layouts import habits, portable_key

pytestmark = pytest.mark.usefixtures("in_this_process")

WHERE = "cast(key[-4:] as int) % 3 = 1"


def by_us(folder):
    dataset = ImageTextPairDataset.from_webdataset(folder, metadata="tar")
    rows = dataset.compute()
    return dict(zip(rows["key"], rows["caption"], strict=True))


def by_webdataset(folder):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
    found = {}
    for sample in samples:
        assert np.asarray(sample["png"])[0, 0].tolist() == list(colour_of(sample["json"]["key"]))
        found[sample["__key__"]] = sample["txt"]
    return found


def by_dali(folder):
    dali = pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn

    paths = [str(path) for path in sorted(folder.glob("*.tar"))]

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        image, text, document = fn.readers.webdataset(
            paths=paths,
            index_paths=[f"{path[:-4]}.idx" for path in paths],
            ext=["png", "txt", "json"],
            missing_component_behavior="error",
            name="reader",
        )
        return image, text, document

    read, found = pipeline(), {}
    read.build()
    for _ in range(read.reader_meta("reader")["epoch_size"]):
        image, text, document = (np.asarray(each.as_array()[0]).tobytes() for each in read.run())
        key = json.loads(document)["key"]
        assert np.asarray(Image.open(io.BytesIO(image)))[0, 0].tolist() == list(colour_of(key))
        found[key] = text.decode()
    return found


def by_clip_retrieval(folder, image="png"):
    """clip-retrieval 2.45's reader of what img2dataset writes; to import the package takes its web server."""
    package = importlib.util.find_spec("clip_retrieval")
    if package is None or not package.submodule_search_locations:
        pytest.skip("could not find clip_retrieval")
    path = Path(package.submodule_search_locations[0], "clip_inference", "reader.py")
    spec = importlib.util.spec_from_file_location("clip_retrieval_reader", path)
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    rows = reader.create_webdataset(urls, np.asarray, lambda texts: texts, image_key=image)
    return {row["image_filename"]: row["text"] for row in rows}


def by_energon(folder, image="png"):
    """megatron-energon 7.4, after its own ``energon prepare``."""
    energon = pytest.importorskip("megatron.energon")
    from megatron.energon.tools.prepare import command

    fields = json.dumps({"image": image, "caption": "txt"})
    options = (
        "--non-interactive --no-progress --num-workers 1 --split-ratio 1,0,0 --sample-type CaptioningSample"
    )
    done = ClickRunner().invoke(command, [str(folder), *options.split(), "--field-map", fields])
    assert done.exit_code == 0, done.output
    here = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    plain = {"batch_size": None, "shuffle_buffer_size": None, "max_samples_per_sequence": None}
    dataset = energon.get_train_dataset(folder, worker_config=here, repeat=False, **plain)
    return {sample.__key__: sample.caption for sample in energon.get_loader(dataset)}


@pytest.mark.parametrize("reader", [by_us, by_webdataset, by_dali, by_clip_retrieval, by_energon])
def test_what_readers_see(tmp_path, reader):
    write_dataset(tmp_path / "data", 3, 10)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    dataset.to_webdataset(tmp_path / "out", where=WHERE, samples_per_shard=4)
    expected = {key: f"caption of {key}" for key in dataset.compute()["key"] if int(key[-4:]) % 3 == 1}
    assert reader(tmp_path / "out") == expected


def odd_dataset(folder):
    """What each reader sees in its own way: suffixes, folders, captions of some, white space, two images."""
    members = [
        ("./a/00.JPG", image_of("0", "JPEG")),
        ("./a/00.TXT", b"zero"),
        ("b.c/01.jpg", image_of("1", "JPEG")),
        ("b.c/01.json", b'{"w": 1}'),
        ("with space.jpg", image_of("2", "JPEG")),
        ("with space.txt", "ü".encode()),
        ("d/03.jpg", image_of("3", "JPEG")),
    ]
    write_tar(folder / "0.tar", members)
    keys = ["a/00", "b.c/01", "with space", "d/03"]
    pq.write_table(pa.table({"key": keys, "score": [1.0, 2.0, None, 0.5]}), folder / "0.parquet")
    return ImageTextPairDataset.from_webdataset(folder)


def test_a_portable_layout(tmp_path):
    dataset = odd_dataset(tmp_path / "data")
    original = dataset.to_webdataset(tmp_path / "original")
    assert [each.partition(":")[0] for each in original.habits] == [
        "not every sample has .JPG, .TXT, .jpg, .json, .txt",
        ".JPG, .TXT",
        "2 keys have dots, white space or odd bytes",
    ]
    assert "without an index, 00000 for example: 00000.idx: expected names without white space" in str(
        original
    )
    with tarfile.open(tmp_path / "original" / "00000.tar") as tar:
        assert tar.getnames()[:3] == ["a/00.JPG", "a/00.TXT", "b.c/01.jpg"]
    portable = dataset.to_webdataset(tmp_path / "portable", layout="portable", columns=["score"])
    assert portable.habits == [] and portable.no_index == {}
    with tarfile.open(tmp_path / "portable" / "00000.tar") as tar:
        found = {each.name: tar.extractfile(each).read() for each in tar}
    keys = ["a/00", "b_c/01", "with_space", "d/03"]
    assert sorted(found) == sorted(f"{key}.{suffix}" for key in keys for suffix in ("jpg", "txt", "json"))
    assert [found[f"{key}.txt"].decode() for key in keys] == ["zero", "", "ü", ""]
    assert [found[f"{key}.json"] for key in keys] == [
        b'{"score": 1.0}',
        b'{"w": 1, "score": 2.0}',
        b'{"score": null}',
        b'{"score": 0.5}',
    ]
    assert pq.read_table(tmp_path / "portable" / "00000.parquet")["key"].to_pylist() == keys
    again = ImageTextPairDataset.from_webdataset(tmp_path / "portable")
    assert again.to_webdataset(tmp_path / "again").missing == 0
    assert by_us(tmp_path / "portable") == dict(zip(keys, ["zero", "", "ü", ""], strict=True))


def test_hugging_faces_datasets(tmp_path):
    """What it refuses as it was it reads as it is portable."""
    datasets = pytest.importorskip("datasets")
    dataset = odd_dataset(tmp_path / "data")

    def read(layout):
        dataset.to_webdataset(tmp_path / layout, layout=layout)
        files = str(tmp_path / layout / "00000.tar")
        rows = datasets.load_dataset(
            "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "hf")
        )
        return {row["__key__"]: row["txt"] for row in rows}

    with pytest.raises(ValueError, match="the same types"):
        read("original")
    assert read("portable") == {"a/00": "zero", "b_c/01": "", "with_space": "ü", "d/03": ""}


@pytest.mark.parametrize("reader", [by_clip_retrieval, by_energon])
def test_readers_that_leave_out_what_has_no_caption(tmp_path, reader):
    dataset = odd_dataset(tmp_path / "data")
    dataset.to_webdataset(tmp_path / "portable", layout="portable")
    found = {"a/00": "zero", "b_c/01": "", "with_space": "ü", "d/03": ""}
    assert reader(tmp_path / "portable", "jpg") == found


def test_names_that_would_be_one(tmp_path):
    write_tar(tmp_path / "data" / "0.tar", [("a.jpg", b"1"), ("a.JPG", b"2")])
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    with pytest.raises(ShardError, match=r"differ in upper and lower case alone.*layout='original'"):
        dataset.to_webdataset(tmp_path / "out", layout="portable")
    assert dataset.to_webdataset(tmp_path / "out").kept == 1


def test_habits():
    assert habits({"jpg": 3, "txt": 3}, 3, 0) == []
    assert portable_key("a.b/c d\udcff") == "a_b/c_d_xff"
