"""Which shard a partition comes from, and the recipe that decides whether an output is still good."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from colours import ColourReader, write_dataset
from dask import hashing

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.image.embedders.partition import EmbedPartition
from curator_dask.rows.reading import ReadShard
from curator_dask.runs.lineage import pieces, trace
from curator_dask.tokens import tokenize

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two datasets that differ in place, number of shards and content."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    write_dataset(here, shards=4, samples=4)
    write_dataset(there, shards=3, samples=5)
    return here, there


def frame_of(folder, **settings):
    return ImageTextPairDataset.from_webdataset(folder, **settings).metadata


def keep(frame):
    return frame


def keep_differently(frame):
    return frame.head(1)


keep.keeps_rows = True

WIDE, WIDER = 23, 24
# name -> (what is done, the shards that are left, whether all their rows are)
KEEPS_PARTITIONS = {
    "plain": (lambda frame: frame, "0123", True),
    "projection": (lambda frame: frame[["__url__", "key"]], "0123", True),
    "filter": (lambda frame: frame[frame.width > WIDE], "0123", False),
    "filter by a list": (lambda frame: frame[frame.key.isin(["000000001", "000010002"])], "0123", False),
    "two filters": (lambda frame: frame[frame.width > WIDE][["key"]].dropna(), "0123", False),
    "partitions[1:]": (lambda frame: frame.partitions[1:], "123", True),
    "partitions[[2, 0]]": (lambda frame: frame.partitions[[2, 0]], "20", True),
    "partitions twice": (lambda frame: frame.partitions[1:].partitions[[2, 0]], "31", True),
    "filter, then partitions": (lambda frame: frame[frame.width > WIDE].partitions[[2, 0]], "20", False),
    "a function": (lambda frame: frame.map_partitions(keep_differently, meta=frame._meta), "0123", False),
    "a function that keeps": (lambda frame: frame.map_partitions(keep, meta=frame._meta), "0123", True),
    "a new column": (lambda frame: frame.assign(twice=frame.width * 2), "0123", False),
    "two branches": (
        lambda frame: frame.map_partitions(
            lambda left, right: left, frame[frame.width > WIDE], meta=frame._meta
        ),
        "0123",
        False,
    ),
    "joined to a small table": (
        lambda frame: frame.merge(
            pd.DataFrame({"width": [24], "note": [1]}).astype("int64[pyarrow]"), on="width"
        ),
        "0123",
        False,
    ),
    "repartition to as many": (lambda frame: frame.repartition(npartitions=4), "0123", True),
}
MIXES_PARTITIONS = {
    "fewer partitions": lambda frame: frame.repartition(npartitions=2),
    "more partitions": lambda frame: frame.repartition(npartitions=8),
    "shuffle": lambda frame: frame.shuffle("key"),
    "shuffle, then partitions": lambda frame: frame.shuffle("key").partitions[[1]],
    "sort": lambda frame: frame.sort_values("width"),
    "concat": lambda frame: dd.concat([frame, frame]),
    "duplicates dropped": lambda frame: frame.drop_duplicates("key"),
    "a filter by a mean": lambda frame: frame[frame.width > frame.width.mean()],
    "a column of neighbours": lambda frame: frame.assign(before=frame.width.cumsum()),
    "a column of other shards": lambda frame: frame.partitions[1:].assign(other=frame.partitions[:3].width),
}


@pytest.mark.parametrize("name", KEEPS_PARTITIONS)
def test_partitions_keep_their_shard(folders, name):
    change, shards, keeps_rows = KEEPS_PARTITIONS[name]
    frame = change(frame_of(folders[0]))
    lineage = trace(frame)
    assert [part.name for part in lineage.ranges] == [f"{int(shard):05d}" for shard in shards]
    assert lineage.keeps_rows is keeps_rows
    assert isinstance(lineage.reader, ReadShard)
    # What was said of partition i is what partition i holds.
    if "__url__" in frame.columns:
        for number, part in enumerate(lineage.ranges):
            assert set(frame.partitions[number].compute()["__url__"]) <= {part.shard.url}


@pytest.mark.parametrize("name", KEEPS_PARTITIONS)
def test_pieces_of_a_frame_are_the_frame(folders, name):
    """The same rows in the same partitions, and no piece carries the others along."""
    change, shards, _ = KEEPS_PARTITIONS[name]
    frame = change(frame_of(folders[0]))
    found = list(pieces(frame, 1))
    assert [piece.npartitions for piece in found] == [1] * len(shards)
    for number, piece in enumerate(found):
        assert_same_rows(piece.compute(), frame.partitions[number].compute())
        ranges = {each for node in piece.expr.walk() for each in ranges_in(node)}
        assert {each.name for each in ranges} == {f"{int(shards[number]):05d}"}
    assert len({piece.expr._name for piece in found}) == len(found)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_pieces_are_of_even_sizes(folders, size):
    frame = frame_of(folders[0])
    found = list(pieces(frame, size))
    sizes = [piece.npartitions for piece in found]
    assert sum(sizes) == 4 and max(sizes) <= size and max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-4 // size)
    assert_same_rows(dd.concat(found).compute(), frame.compute())


@pytest.mark.parametrize("name", MIXES_PARTITIONS)
def test_a_frame_of_mixed_partitions_is_one_piece(folders, name):
    frame = MIXES_PARTITIONS[name](frame_of(folders[0]))
    (piece,) = pieces(frame, 1)
    assert piece.npartitions == frame.optimize().npartitions
    assert len(piece.compute()) == len(frame.compute())


def test_a_frame_beside_one_in_memory_is_one_piece(folders):
    """Of what is no list of ranges nothing can be cut out."""
    frame = frame_of(folders[0])
    beside = dd.from_pandas(pd.DataFrame({"other": range(4)}), npartitions=4)
    both = dd.map_partitions(
        lambda left, right: left, frame, beside, meta=frame._meta, align_dataframes=False
    )
    (piece,) = pieces(both, 1)
    assert piece.npartitions == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.map_partitions(numbered, meta=frame._meta.assign(number=0)),
        lambda frame: frame.sample(frac=0.5, random_state=1),
        lambda frame: frame.random_split([0.5, 0.5], random_state=1)[0],
    ],
)
def test_a_frame_whose_partitions_are_numbered_is_one_piece(folders, change):
    """In a piece they would have other numbers."""
    frame = change(frame_of(folders[0]))
    (piece,) = pieces(frame, 1)
    assert piece.npartitions == 4
    assert_same_rows(piece.compute(), frame.compute())


def numbered(frame, partition_info=None):
    return frame.assign(number=partition_info["number"] if partition_info else 0)


def ranges_in(node):
    """Ranges of shards that an expression, or what is fused in it, carries."""
    for name, value in zip(node._parameters, node.operands, strict=False):
        if name == "iterables":
            yield from (each for items in value for each in items)
        elif name == "exprs":
            for inner in value:
                yield from ranges_in(inner)


def assert_same_rows(one, other):
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))


def test_a_function_that_keeps_rows_says_so_truly(folders):
    """The frames for which `keeps_rows` is said have as many rows as their shards."""
    for change, shards, keeps_rows in KEEPS_PARTITIONS.values():
        if keeps_rows:
            assert len(change(frame_of(folders[0]))) == 4 * len(shards)


@pytest.mark.parametrize("name", MIXES_PARTITIONS)
def test_mixed_partitions_have_no_shard(folders, name):
    lineage = trace(MIXES_PARTITIONS[name](frame_of(folders[0])))
    assert (lineage.ranges, lineage.keeps_rows, lineage.reader) == (None, False, None)


def test_ranges_of_one_shard(folders):
    parts = trace(frame_of(folders[0], rows_per_partition=3).partitions[1:4]).ranges
    assert [(part.shard.name, part.start, part.stop, part.part) for part in parts] == [
        ("00000", 3, None, 1),
        ("00001", 0, 3, 0),
        ("00001", 3, None, 1),
    ]


def test_frames_of_other_origin():
    lineage = trace(dd.from_pandas(pd.DataFrame({"key": list("abcd")}), npartitions=2))
    assert (lineage.ranges, lineage.keeps_rows) == (None, False)


def test_functions_in_the_order_they_are_applied(folders):
    frame = frame_of(folders[0])
    frame = frame.map_partitions(keep, meta=frame._meta).map_partitions(keep_differently, meta=frame._meta)
    assert trace(frame).functions == (keep, keep_differently)
    assert trace(frame[frame.width > WIDE]).functions == (keep, keep_differently)  # two branches, named once


@pytest.mark.parametrize("name", [name for name in KEEPS_PARTITIONS if name != "repartition to as many"])
def test_recipe_says_what_is_done_not_to_which_shards(folders, name):
    change = KEEPS_PARTITIONS[name][0]
    here = trace(change(frame_of(folders[0]))).recipe
    assert here == trace(change(frame_of(folders[0]))).recipe
    if "twice" not in name and "partitions[" not in name and "then" not in name:  # the other has fewer shards
        assert here == trace(change(frame_of(folders[1]))).recipe


def test_picking_partitions_is_not_in_the_recipe(folders):
    frame = frame_of(folders[0])
    assert len({trace(some).recipe for some in (frame, frame.partitions[1:], frame.partitions[[2, 0]])}) == 1


def test_recipes_differ_with_what_is_done(folders):
    frame = frame_of(folders[0])
    done = [
        frame,
        frame[["key", "__url__"]],
        frame[["__url__", "key"]],
        frame[frame.width > WIDE],
        frame[frame.width > WIDER],
        frame[frame.width >= WIDE],
        frame[frame.key.isin(["a", "b"])],
        frame[frame.key.isin(["a", "c"])],
        frame[frame.caption.isin(["a", "b"])],
        frame.map_partitions(keep, meta=frame._meta),
        frame.map_partitions(keep_differently, meta=frame._meta),
        frame.map_partitions(keep, meta=frame._meta)[frame.columns[:1].tolist()],
        frame.map_partitions(lambda part: part[part.width > 1], meta=frame._meta),
        frame.map_partitions(lambda part: part[part.width > 2], meta=frame._meta),
    ]
    assert len({trace(some).recipe for some in done}) == len(done)


def test_recipe_is_the_same_in_another_process(folders):
    """With another hash seed too: a rerun of the same script finds what it finished."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    code = (
        "import sys, dask; dask.config.set(scheduler='sync')\n"
        "import test_lineage as here\n"
        "frame = here.frame_of(sys.argv[1])\n"
        "for name, (change, *_) in here.KEEPS_PARTITIONS.items():\n"
        "    print('recipe', name, here.trace(change(frame)).recipe)\n"
        "print('recipe', here.trace(here.embedded(here.ColourReader(), sys.argv[1])).recipe)\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders[0])],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    there = [line for line in done.stdout.splitlines() if line.startswith("recipe ")]
    frame = frame_of(folders[0])
    here = [f"recipe {name} {trace(change(frame)).recipe}" for name, (change, *_) in KEEPS_PARTITIONS.items()]
    here.append(f"recipe {trace(embedded(ColourReader(), folders[0])).recipe}")
    assert len(there) == len(KEEPS_PARTITIONS) + 1
    assert there == here


def embedded(embedder, folder):
    return embedder(ImageTextPairDataset.from_webdataset(folder)).metadata


def test_embedding_keeps_partitions_and_rows(folders):
    lineage = trace(embedded(ColourReader(), folders[0]))
    assert [part.name for part in lineage.ranges] == ["00000", "00001", "00002", "00003"]
    assert lineage.keeps_rows
    (step,) = lineage.functions
    assert step.column == "image_embedding"


def test_recipe_of_an_embedding(folders):
    """How fast a vector is made is not in it, nor the model, whose weights' digest is stored by itself."""

    def recipe(embedder, folder=folders[0]):
        return trace(embedded(embedder, folder)).recipe

    base = recipe(ColourReader())
    same = {"batch_size": 7, "num_threads_per_worker": 1, "use_index_files": False, "on_error": "raise"}
    for name, value in same.items():
        assert recipe(ColourReader(**{name: value})) == base, name
    assert recipe(ColourReader(), folders[1]) == base
    assert recipe(TimmImageEmbedder("test_vit", pretrained=False)) == base
    other = {"decoder": "pillow", "max_pixels": 1000, "image_embedding_column": "vector"}
    found = {name: recipe(ColourReader(**{name: value})) for name, value in other.items()}
    assert len({base, *found.values()}) == 1 + len(other), found


def test_recipe_does_not_depend_on_the_columns_that_were_found(folders):
    """A rerun in place reads a Parquet that has the embedding already."""
    reader = trace(frame_of(folders[0])).reader
    wider = replace(
        reader, schema=reader.schema.insert(0, pa.field("image_embedding", pa.list_(pa.float32())))
    )
    assert wider.recipe == reader.recipe


def test_long_chains_are_quick(folders):
    """Each filter names the frame twice: without care, 25 of them would be 2**25 steps."""
    frame = frame_of(folders[0])
    for number in range(25):
        frame = frame[frame.width > number % 5]
    lineage = trace(frame)
    assert len(lineage.ranges) == 4 and not lineage.keeps_rows


def test_tokens_do_not_depend_on_what_else_is_installed(monkeypatch):
    """Dask (2026.7.1) hashes with xxhash where it is installed, as Hugging Face's datasets does; files stay known."""
    values = (np.arange(3), keep_differently, pd.DataFrame({"a": ["b"]}), EmbedPartition)
    found = tokenize(*values)
    assert len(hashing.hashers) > 1, "no test: no faster hash is installed"
    monkeypatch.setattr(hashing, "hashers", [hashing._hash_sha1])
    assert dask.base.tokenize(*values) == found
