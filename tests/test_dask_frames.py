"""Dask's own operations on our frames, and frames that Dask reads given to embedders."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, read_output, write_dataset

from curator_dask.datasets import ImageTextPairDataset

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def keys(tmp_path):
    return write_dataset(tmp_path / "data", bad={"000010002": b"no image"})


@pytest.fixture
def embedded(keys, tmp_path):
    return ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data"))


def notes_of(keys):
    return pd.DataFrame({"key": keys, "note": [f"note {key}" for key in keys]})


# name -> what is done with our frame, and a frame of the user's own
OPERATIONS = {
    "as it is": lambda ours, theirs: ours,
    "merge": lambda ours, theirs: ours.merge(theirs, on="key"),
    "merge from the other side": lambda ours, theirs: theirs.merge(ours, on="key", how="left"),
    "merge with pandas": lambda ours, theirs: ours.merge(theirs.compute(), on="key", how="outer"),
    "concat": lambda ours, theirs: dd.concat([ours[ours["width"] < 24], ours]),
    "shuffle": lambda ours, theirs: ours.shuffle("key"),
    "sort": lambda ours, theirs: ours.sort_values("key").repartition(npartitions=2),
    "a column": lambda ours, theirs: ours.assign(label=ours["key"] + ours["caption"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_dask_writes_what_it_made_of_our_frame(keys, embedded, tmp_path, name):
    theirs = dd.from_pandas(notes_of(keys), npartitions=2)
    OPERATIONS[name](embedded.metadata, theirs).to_parquet(tmp_path / "out", write_index=False)
    table = read_output(tmp_path / "out")
    assert sorted(table["key"].to_pylist()) == keys
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=["000010002"])
    text = {field.type for field in table.schema if field.name in ("key", "caption", "image_error", "note")}
    assert text == {pa.large_string()}, "pandas' text, in all files"
    if "note" in table.column_names:
        assert table["note"].to_pylist() == [f"note {key}" for key in table["key"].to_pylist()]
    # Vectors keep their type in pandas and Dask where they are asked to take Arrow's.
    assert len(pd.read_parquet(tmp_path / "out", dtype_backend="pyarrow")) == len(keys)
    assert len(dd.read_parquet(tmp_path / "out", dtype_backend="pyarrow").compute()) == len(keys)


@pytest.mark.parametrize("options", [{}, {"dtype_backend": "pyarrow"}, {"filesystem": "pyarrow"}], ids=str)
@pytest.mark.parametrize("columns", [None, ["key", "__url__"]], ids=["all", "few"])
def test_an_output_that_dask_reads_is_embedded_again(keys, embedded, tmp_path, options, columns):
    embedded.save_metadata(tmp_path / "out")
    frame = dd.read_parquet(tmp_path / "out", **options)
    frame = frame if columns is None else frame[columns]
    again = ImageTextPairDataset(tmp_path / "data", frame, embedded.tar_files, "key")
    second = ColourReader(image_embedding_column="second")(again)
    first, then = second.save_metadata(tmp_path / "more"), second.save_metadata(tmp_path / "more")
    assert (first.rows, first.written, then.skipped) == (len(keys), 3, 0)
    table = read_output(tmp_path / "more")
    for name in ["second"] if columns else ["image_embedding", "second"]:
        assert table.schema.field(name).type == pa.list_(pa.float32(), 3), name
        check_colours(table["key"].to_pylist(), table[name].to_pylist(), bad=["000010002"])
    assert table.schema.field("key").type == pa.string()
    # Of few columns Dask would read several files as one partition.
    assert [len(pq.read_table(path)) for path in sorted((tmp_path / "more").iterdir())] == [10, 10, 10]


def test_what_dask_merged_is_embedded_and_saved_with_its_types(keys, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    theirs = dd.from_pandas(notes_of(keys), npartitions=2)
    embedded = ColourReader()(dataset.with_metadata(dataset.metadata.merge(theirs, on="key")))
    assert embedded.save_metadata(tmp_path / "out").rows == len(keys)
    table = read_output(tmp_path / "out")
    assert {table.schema.field(name).type for name in ("key", "note", "image_error")} == {pa.string()}
    assert table["note"].to_pylist() == [f"note {key}" for key in table["key"].to_pylist()]
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=["000010002"])


def test_objects_whose_type_nobody_knows_say_what_to_do(keys, embedded, tmp_path):
    boxes = notes_of(keys).assign(box=[np.zeros(2, np.float32)] * len(keys))
    with dask.config.set({"dataframe.convert-string": False}):  # else Dask makes text of objects
        merged = embedded.metadata.merge(boxes.astype({"key": "string[pyarrow]"}), on="key")
        summary = embedded.with_metadata(merged).save_metadata(tmp_path / "out")
    assert len(summary.failed_shards) == 3
    for reason in summary.failed_shards.values():
        assert "column 'box'" in reason and "astype(pandas.ArrowDtype(...))" in reason
    typed = boxes.astype({"box": pd.ArrowDtype(pa.list_(pa.float32()))})
    merged = embedded.metadata.merge(typed, on="key")
    assert embedded.with_metadata(merged).save_metadata(tmp_path / "out").complete


def test_head_says_what_it_computes(embedded, said):
    assert len(embedded.head(2)) == 2
    told = (
        "head computes 1 of 3 partitions (10 rows, the first of 00000) with ColourReader, and keeps no file"
    )
    assert told in said.text
    embedded.head(2, npartitions=-1)
    assert "head computes 3 of 3 partitions (30 rows, the first of 00000)" in said.text
    mixed = embedded.with_metadata(embedded.metadata.shuffle("key"))
    mixed.head(1)
    assert "head computes 1 of 3 partitions, and all that is mixed into them, with ColourReader" in said.text
    said.messages.clear()
    embedded.persist().head(1)
    assert "head" not in said.text, "nothing is computed"
