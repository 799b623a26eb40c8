"""Files that the first version wrote are finished work: what they say of themselves is still understood.

The fingerprints are made here, by hand, of what that version (commit bbc6504) put into them; its recipes of what was
done to the rows are written down.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colour_stages import Brightness, stages_of
from colours import ColourReader, image_of, write_dataset, write_tar
from dask.dataframe.dask_expr import new_collection

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.pipeline import Pipeline
from curator_dask.runs.graph import map_step

pytestmark = pytest.mark.usefixtures("in_this_process")

KEY = b"curator_dask"
COLOUR = {
    "weights": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "transform": {
        "size": [16, 16],
        "interpolation": "bilinear",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "crop_pct": 1.0,
        "crop_mode": "center",
    },
    "output": "model",
    "dim": 3,
    "dtype": "float32",
    "normalized": False,
}
LITE = {
    "model": "tf_efficientnet_lite0",
    "weights": "sha256:6f9744b3ba88e4cf937c63663bc07c9a973aea459e04535cb5303deab17a4f6f",
    "transform": {
        "size": [224, 224],
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.875,
        "crop_mode": "center",
    },
    "output": "pooled",
    "dim": 1280,
    "dtype": "float32",
    "normalized": True,
}


def selected(dataset):
    return dataset.with_metadata(dataset.metadata[["key", "__url__", "image_embedding"]])


def filtered(dataset):
    return dataset.with_metadata(dataset.metadata[dataset.metadata["key"] > "000000001"])


def second(dataset):
    return ColourReader(image_embedding_column="second")(dataset)


def from_shards(folder, **settings):
    return ImageTextPairDataset.from_webdataset(folder, **settings)


# name -> (what is done, the recipe that the first version made of it)
CASES = {
    "one model": (lambda d, m: ColourReader()(from_shards(d)), "5dd3eab4a387c25c8bc668c7bed96699"),
    "two models": (lambda d, m: second(ColourReader()(from_shards(d))), "21e2c24f76eaf334ee7a19584bbd8cf8"),
    "rows of the tar": (
        lambda d, m: ColourReader()(from_shards(d, metadata="tar")),
        "5dd3eab4a387c25c8bc668c7bed96699",
    ),
    "parts": (
        lambda d, m: ColourReader(decoder="pillow", max_pixels=10**6)(from_shards(d, rows_per_partition=3)),
        "8ba32520630fd65fea148c09608ac0a7",
    ),
    "a filter before": (
        lambda d, m: ColourReader()(filtered(from_shards(d))),
        "cb5834d06917eda1381d3379a6b12613",
    ),
    "a filter after": (
        lambda d, m: filtered(ColourReader()(from_shards(d))),
        "04a1bd2f46057c13f67f6c5a34bc8687",
    ),
    "columns": (lambda d, m: selected(ColourReader()(from_shards(d))), "49e0c11ade9c654ee039591e94f469ac"),
    "a pretrained model": (
        lambda d, m: TimmImageEmbedder(f"local-dir:{m}")(from_shards(d)),
        "5dd3eab4a387c25c8bc668c7bed96699",
    ),
    "no model": (lambda d, m: from_shards(d), "a556974dd469c2fa0e70311d01b65085"),
}
if sys.version_info[:2] == (
    3,
    11,
):  # a digest of code is of the syntax tree, which another Python writes otherwise
    CASES["a pipeline"] = (None, "c19942a9e57924b163c53a34abdf3121")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before") / "data"
    write_dataset(folder, 2, 4)
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    from pretrained_efficientnet import write_model_folder

    return write_model_folder(tmp_path_factory.mktemp("model"))


def stamp(path):
    found = path.stat()
    return {"size": found.st_size, "version": str(found.st_mtime_ns)}


def as_the_first_version(path, folder, recipe, before_stages, made=None):
    """Give a file the footer that the first version would have written; `made`: columns of its last run alone."""
    table, schema = pq.read_table(path), pq.read_schema(path)
    now = json.loads(schema.metadata[KEY])
    identities = {}
    for name, info in now["embeddings"].items():
        known = LITE if "local-dir" in info["source"] else {**COLOUR, "model": info["model"]}
        identities[name] = before_stages(known)
    shard = path.name[:5]
    files = {"tar": stamp(folder / f"{shard}.tar")}
    if now["source"] == "parquet" and path.parent != folder:
        files["parquet"] = stamp(folder / f"{shard}.parquet")
    kinds = {each.name: str(each.type) for each in schema}
    for each in identities if made is None else made:  # the others are of the type that they were read as
        if each in kinds:
            kinds[each] = kinds[each].replace("element:", "item:")
    columns = sorted(f"{each}: {'text' if kind == 'string' else kind}" for each, kind in kinds.items())
    state = {"url": str(folder / f"{shard}.tar"), "rows": now["shard"]["rows"], **files}
    parts = {
        "package": "0.1.0",
        "embeddings": {name: each for name, each in identities.items() if made is None or name in made},
        "columns": columns,
        "drop_failed": False,
        "recipe": recipe,
        "shard": state,
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    record = {
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        "complete_as": hashlib.sha256(text.encode()).hexdigest(),
        "id_col": "key",
        "shard": state,
        "dataset": None,
        "source": now["source"],
        "embeddings": {name: {**each, "source": "any"} for name, each in identities.items()},
        "settings": dict.fromkeys(identities),
        "remarks": {},
        "report": now["report"],
        "rows": len(table),
    }
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(record).encode()}), path)


@pytest.mark.parametrize("name", CASES)
def test_files_of_the_first_version_are_skipped(folder, pretrained, tmp_path, name):
    make, recipe = CASES[name]
    out = tmp_path / "out"

    def run():
        if make is None:
            return Pipeline("p", stages=stages_of(folder, out, Brightness())).run().summary
        return make(folder, pretrained).save_metadata(out)

    def with_stages(info):
        if make is not None:
            return info
        return {**info, "output": "model, with the stages Brightness, ColourStage [0be5f23cb92e]"}

    written = run().written
    assert written == (4 if name == "parts" else 2)
    for path in out.glob("*.parquet"):
        as_the_first_version(path, folder, recipe, with_stages)
    before = {path: path.read_bytes() for path in out.iterdir()}
    again = run()
    assert (again.written, again.skipped) == (0, written)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    # And one that is none of that is made again.
    first = min(before)
    pq.write_table(pq.read_table(first).slice(1), first)
    assert run().written == 1


def test_frames_have_the_names_that_they_had_when_their_text_was_of_another_type(folder):
    """Of partitions that were mixed the names are all that tells a finished file."""
    frame = from_shards(folder).metadata
    reader, (ranges,) = frame.expr.operand("func"), frame.expr.operand("iterables")
    empty = reader.schema.empty_table().to_pandas(types_mapper=pd.ArrowDtype)
    before = dd.from_map(reader, ranges, meta=empty, label="read-shard")
    before = new_collection(before.expr.frame)  # without Dask's own conversion of text
    step = ColourReader()(from_shards(folder)).metadata.expr.operand("func")
    added = before._meta.copy(deep=False)
    for name, kind in step.columns.items():
        added[name] = pd.Series(pd.arrays.ArrowExtensionArray(pa.array([], kind)), index=added.index)
    mapped = before.map_partitions(step, meta=added, enforce_metadata=False).shuffle("key")
    assert map_step(frame, step).shuffle("key").expr._name == mapped.expr._name


def test_files_without_columns_that_tars_have_come_to_give_are_finished(tmp_path):
    """A class, or the fields of a JSON with a compound name; where a file is to be made, all get them."""
    folder, out = tmp_path / "data", tmp_path / "out"
    for shard in range(2):
        key = f"{shard:05d}0001"
        more = [
            (f"{key}.cls", b"7"),
            (f"{key}.metadata.json", b'{"width": 3}'),
            (f"{key}.caption.txt", b"text"),
        ]
        write_tar(folder / f"{shard:05d}.tar", [(f"{key}.png", image_of(key)), *more])

    def run():
        return ColourReader()(from_shards(folder)).save_metadata(out)

    assert run().written == 2
    for path in out.glob("*.parquet"):
        schema = pq.read_schema(path)
        table = pq.read_table(path)
        assert (table["cls"].to_pylist(), table["width"].to_pylist()) == ([7], [3])
        pq.write_table(table.drop_columns(["cls", "width"]).replace_schema_metadata(schema.metadata), path)
        as_the_first_version(path, folder, CASES["rows of the tar"][1], lambda info: info)
    assert (run().written, run().skipped) == (0, 2)
    min(out.glob("*.parquet")).unlink()
    assert run().written == 2
    assert all("cls" in pq.read_schema(path).names for path in out.glob("*.parquet"))


def test_a_second_model_beside_a_column_of_the_first_version(folder, tmp_path):
    """The column is that version's finished work, whatever has come to stand beside it."""
    make, recipe = CASES["one model"]
    make(folder, None).save_metadata(tmp_path)
    for path in tmp_path.glob("*.parquet"):
        as_the_first_version(path, folder, recipe, lambda info: info)
    other = ColourReader(image_embedding_column="second")
    assert other(from_shards(folder)).save_metadata(tmp_path).written == 2
    assert make(folder, None).save_metadata(tmp_path).skipped == 2
    assert other(from_shards(folder)).save_metadata(tmp_path).skipped == 2


def test_two_models_in_the_own_files_of_the_first_version(tmp_path):
    """It counted the first model's column in what the second had made, and forgot the first's fingerprint."""
    write_dataset(tmp_path, 2, 4)
    second = ColourReader(image_embedding_column="second")
    for embedder in (ColourReader(), second):
        embedder(from_shards(tmp_path)).save_metadata()
    for path in tmp_path.glob("*.parquet"):
        recipe = "69bcce4ae390deaadead2c6c9b8f8d54"
        as_the_first_version(path, tmp_path, recipe, lambda info: info, made=["second"])
    assert second(from_shards(tmp_path)).save_metadata().skipped == 2
    assert ColourReader()(from_shards(tmp_path)).save_metadata().written == 2
    for embedder in (ColourReader(), second):
        assert embedder(from_shards(tmp_path)).save_metadata().skipped == 2
